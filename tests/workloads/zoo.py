"""Python: threads that wait in C code called from Python, and in Python called back from C.

go: two threads compute under a lock; done: every thread sleeps where it began.
"""

import functools
import os
import queue
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time

held = threading.Lock()
held.acquire()
hot = threading.Lock()
reader, writer = os.pipe()
start = threading.Barrier(3)
done = queue.Queue()


def wait_lock():
    with held:
        pass


def wait_sorting():
    def compare(a, b):
        wait_lock()
        return a - b

    sorted([3, 1, 2], key=functools.cmp_to_key(compare))


def wait_replacing():
    re.sub("x", lambda match: str(wait_lock()), "axa")


def wait_deep(depth=50):
    if depth == 0:
        wait_lock()
    else:
        max([depth], key=lambda n: wait_deep(n - 1))


def wait_accept():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.accept()


children = []


def wait_child():
    children.append(subprocess.Popen(["sleep", "600"]))
    children[0].wait()


def contend():
    start.wait()
    total = 0
    for n in range(3000):
        with hot:
            total += sum(range(n % 100))
            time.sleep(0)
    done.put(total)
    held.acquire()


WAITS = [
    wait_lock,
    wait_sorting,
    wait_replacing,
    wait_deep,
    wait_accept,
    wait_child,
    lambda: queue.Queue().get(),
    lambda: time.sleep(600),
    lambda: select.select([reader], [], []),
    lambda: os.read(reader, 1),
    lambda: threading.Event().wait(600),
    contend,
    contend,
]
for wait in WAITS:
    threading.Thread(target=wait, daemon=True).start()
signal.alarm(600)
print("ready", os.getpid(), flush=True)
if sys.stdin.readline() == "go\n":
    start.wait()
    for _ in range(2):
        done.get()
    print("done", flush=True)
    sys.stdin.readline()
for child in children:
    child.kill()
os._exit(0)
