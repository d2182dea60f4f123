"""Story 4 in Python, as fanout.c: a queue.Queue with room for one; `fixed`: room for all."""

import os
import queue
import sys
import threading
import time

REQUESTS = 80
WORKERS = 3
fixed = sys.argv[1:] == ["fixed"]


def send_result(to):
    to.put(3)


def serve_request():
    answers = queue.Queue(WORKERS if fixed else 1)
    for _ in range(WORKERS):
        threading.Thread(target=send_result, args=(answers,), daemon=True).start()
    answers.get()


print("ready", os.getpid(), flush=True)
sys.stdin.readline()
for _ in range(REQUESTS):
    serve_request()
    time.sleep(0.12)
print("truth kept", 0 if fixed else REQUESTS)
print("done", flush=True)
sys.stdin.readline()
os._exit(0)
