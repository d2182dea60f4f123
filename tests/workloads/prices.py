"""Story 3 in Python, as prices.c: a threading.Lock held while a price is fetched, by eight threads, 400 times; `fixed`: not held."""

import itertools
import os
import sys
import threading
import time

REQUESTS = 400
price_lock = threading.Lock()
prices = {}
numbers = itertools.count()
fixed = sys.argv[1:] == ["fixed"]


def fetch_price():
    time.sleep(0.003)
    return 3


def lookup_price(item):
    price = fetch_price() if fixed else None
    with price_lock:
        if not fixed:
            price = fetch_price()
        prices[item % 64] = price


def serve():
    for item in numbers:
        if item >= REQUESTS:
            return
        lookup_price(item)


print("ready", os.getpid(), flush=True)
sys.stdin.readline()
threads = [threading.Thread(target=serve) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("truth requests", REQUESTS)
print("done", flush=True)
sys.stdin.readline()
os._exit(0)
