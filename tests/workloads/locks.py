"""Python locks with a known number of sleeps: 23 on `cache_lock`, 97 on `session_lock`.

One waiter at a time, as in locks.c. Threads hand turns to each other through pipes: a sleep there is a read.
Nothing else here may sleep in threading.Lock, so no thread is joined: `os._exit` ends the process.
"""

import os
import sys
import threading
import time

CACHE_WAITS, SESSION_WAITS = 23, 97
FUTEX = str(202 if os.uname().machine == "x86_64" else 98)

cache_lock = threading.Lock()
session_lock = threading.Lock()
sleeps = {"cache_lock": 0, "session_lock": 0}


class Turn:
    def __init__(self):
        self.reader, self.writer = os.pipe()

    def give(self):
        os.write(self.writer, b"x")

    def take(self):
        os.read(self.reader, 1)


waiter_turn, holder_turn = Turn(), Turn()


def until_asleep(tid):
    """Returns once the thread sleeps in futex without a time-out: a wait for the interpreter lock has one."""
    while True:
        with open(f"/proc/self/task/{tid}/syscall") as file:
            words = file.read().split()
        if words[0] == FUTEX and words[4] == "0x0":
            return
        time.sleep(0.0002)


def wait_for(lock):
    lock.acquire()
    lock.release()


def worker_main():
    for lock, rounds in ((cache_lock, CACHE_WAITS), (session_lock, SESSION_WAITS)):
        for _ in range(rounds):
            waiter_turn.take()
            wait_for(lock)
            holder_turn.give()
    waiter_turn.take()


def refresh(name, lock, hold, tid):
    lock.acquire()
    waiter_turn.give()
    until_asleep(tid)
    sleeps[name] += 1
    time.sleep(hold)
    lock.release()
    holder_turn.take()


def expect(word):
    line = sys.stdin.readline().strip()
    if line != word:
        sys.exit(f"expected {word}, got {line}")


def main():
    worker = threading.Thread(target=worker_main, daemon=True)
    worker.start()
    print("ready", os.getpid(), flush=True)
    expect("go")
    for _ in range(CACHE_WAITS):
        refresh("cache_lock", cache_lock, 0.02, worker.native_id)
    for _ in range(SESSION_WAITS):
        refresh("session_lock", session_lock, 0.005, worker.native_id)
    for name, count in sleeps.items():
        print("truth", name, count)
    print("done", flush=True)
    expect("quit")
    os._exit(0)


main()
