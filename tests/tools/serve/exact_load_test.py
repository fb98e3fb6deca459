#!/usr/bin/env python3
"""Exactness under load. 64 clients send texts of mixed lengths, sampled and greedy, with grammars, schemas, biases and penalties, any number of drafts and
shared beginnings, streaming and not; a third of them hang up in mid-answer. Every answer that ends has the ids that `foretoken decode` gives alone, and
afterwards every page, thread and open file is back and the memory is what it was after the first hundred requests.
    exact_load_test.py PROGRAM MODEL [requests]
FORETOKEN_LOAD_REQUESTS: how many requests in all, where none are named; default 2000.
"""
import concurrent.futures
import json
import os
import random
import re
import sys
import threading
import time

from server import Server, decode_alone

program, model = sys.argv[1:3]
num_requests = int(sys.argv[3] if len(sys.argv) > 3 else os.environ.get("FORETOKEN_LOAD_REQUESTS", "2000"))
NUM_CLIENTS = 64
FIRST = 100  # requests after which memory is compared
# What memory may grow by after that: the arenas of the C library, of which every thread that has a connection may take part of another one.
MOST_GROWTH_KB = 24 << 10
# What AddressSanitizer keeps of freed memory would count as growth.
os.environ.setdefault("ASAN_OPTIONS", "quarantine_size_mb=1")
failures = []


def check(condition, what):
    if not condition:
        failures.append(what)
        print("FAILED:", what, flush=True)


# ---- what is asked, and what decode says to it ----

stems = ["import os\nimport sys\n\n\ndef read_lines(path):\n    with open(path) as f:\n        return f.read().splitlines()\n\n\n" * count for count in (1, 6, 14)]
beginnings = ["x", "def main():", "class A:\n    def f(self):\n", "for i in range(10):\n", *stems, *[stem + tail for stem in stems for tail in ("def g(", "class Reader:\n")]]
person = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}}, "required": ["name", "age"]}
rules = [  # fields of a request, flags of decode
    ({}, []), ({}, []), ({"temperature": 0.8, "seed": 7}, ["--temp", "0.8", "--seed", "7"]),
    ({"temperature": 1.1, "top_k": 40, "top_p": 0.9, "seed": 3}, ["--temp", "1.1", "--top-k", "40", "--top-p", "0.9", "--seed", "3"]),
    ({"temperature": 0.7, "min_p": 0.05, "seed": 11}, ["--temp", "0.7", "--min-p", "0.05", "--seed", "11"]),
    ({"json_schema": person, "temperature": 1, "seed": 5}, ["--json-schema", json.dumps(person), "--temp", "1", "--seed", "5"]),
    ({"grammar": "root ::= [a-z ]+ \"!\""}, ["--grammar", "root ::= [a-z ]+ \"!\""]),
    ({"repeat_penalty": 1.3, "frequency_penalty": 0.4, "repeat_last_n": 40}, ["--repeat-penalty", "1.3", "--frequency-penalty", "0.4", "--repeat-last-n", "40"]),
    ({"logit_bias": [[13, -4], [198, False]], "presence_penalty": 0.5}, ["--logit-bias", "13-4,198=-inf", "--presence-penalty", "0.5"]),
]
draw = random.Random(1)
texts = [(draw.choice(beginnings), draw.choice((1, 7, 24, 48, 90)), *rules[i % len(rules)]) for i in range(45)]
texts += [("def main():", 300, *rules[0]), (stems[1], 200, *rules[3])]
with concurrent.futures.ThreadPoolExecutor(2) as pool:
    wanted = list(pool.map(lambda text: decode_alone(program, model, text[0], text[1], "-t", "1", "--mtp", "2", *text[3]), texts))

server = Server(program, model, "--parallel", "8", "--max-queue", "256", "-c", "2048", "--timeout", "5", "--cache-ram", "6M", "--kv-memory", "12M")
finished, hung_up = [], []


def one(draw):
    index = draw.randrange(len(texts))
    prompt, tokens, fields, _ = texts[index]
    body = {"prompt": prompt, "n_predict": tokens, "return_tokens": True, "speculative.n_max": draw.choice([0, 1, 2, 4, 8]), "stream": draw.random() < 0.5,
            "cache_prompt": draw.random() < 0.9, **fields}
    if draw.randrange(3) == 0:  # hangs up, at once or in mid-answer
        socket = server.connect()
        text = json.dumps({**body, "n_predict": 1000}).encode()
        socket.sendall(b"POST /completion HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(text) + text)
        if body["stream"]:
            socket.recv(draw.choice([1, 200, 4000]))
        else:
            time.sleep(draw.random() * 0.1)
        socket.close()
        hung_up.append(index)
        return
    if body["stream"]:
        ids = [id for event in server.stream("/completion", body) if not event["stop"] for id in event["tokens"]]
    else:
        status, answer = server.post("/completion", body)
        check(status == 200, f"status {status}: {answer[:200]}")
        ids = json.loads(answer).get("tokens")
    check(ids == wanted[index], f"text {index}, {fields}, k {body['speculative.n_max']}: other ids than decode's")
    finished.append(index)


def run(count, seed):
    """`count` requests from NUM_CLIENTS clients."""
    left = iter(range(count))
    lock = threading.Lock()

    def client(number):
        draw = random.Random(seed * 1000 + number)
        while True:
            with lock:
                if next(left, None) is None:
                    return
            try:
                one(draw)
            except Exception as error:  # noqa: BLE001
                check(False, repr(error))

    clients = [threading.Thread(target=client, args=(number,)) for number in range(NUM_CLIENTS)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()


def gauge(text, name):
    return int(re.search(rf"^{name} (\d+)$", text, re.MULTILINE).group(1))


def settled():
    """Waits until no answer runs and no connection is left: (threads, open files), and KB of memory."""
    for _ in range(600):
        text = server.get("/metrics")[1].decode()
        if gauge(text, "llamacpp:requests_processing") == gauge(text, "llamacpp:requests_deferred") == 0:
            break
        time.sleep(0.05)
    else:
        check(False, "answers still run after their clients have gone")
    counts = None
    for _ in range(100):
        before, counts = counts, (server.threads(), server.open_files())
        if counts == before and not server.open_sockets():
            break
        time.sleep(0.2)
    text = server.get("/metrics")[1].decode()
    pages, free, cached = (gauge(text, "foretoken:" + name) for name in ("kv_pages", "kv_pages_free", "cache_pages"))
    check(pages == free + cached and pages > 0, f"of {pages} pages {free} are free and {cached} in the cache: some are lost")
    slots = json.loads(server.get("/slots")[1])
    check(not any(slot["is_processing"] for slot in slots), "a slot is lost")
    time.sleep(0.3)
    return counts, server.memory_kb()


begin = time.time()
idle, _ = settled()
run(min(FIRST, num_requests), seed=1)
first, first_kb = settled()
if num_requests > FIRST:
    run(num_requests - FIRST, seed=2)
last, last_kb = settled()
print(f"{len(finished)} answers ended, {len(hung_up)} clients hung up, {time.time() - begin:.0f} s; memory {first_kb} KB after {FIRST} requests, {last_kb} KB at the end", flush=True)
check(len(finished) + len(hung_up) == num_requests, f"{num_requests - len(finished) - len(hung_up)} requests came to nothing")
check(len(hung_up) > num_requests // 5, "hardly anybody hung up")
check(first == idle and last == idle, f"(threads, open files): {idle} at first, {first} after {FIRST} requests, {last} at the end")
if "FORETOKEN_LOAD_NO_MEMORY" not in os.environ:  # sanitizers keep what was freed
    check(last_kb - first_kb < MOST_GROWTH_KB, f"memory grew from {first_kb} to {last_kb} KB")
code = server.stop()
check(code == 0, f"exit code {code} after SIGTERM")
print("passed" if not failures else f"{len(failures)} checks failed")
sys.exit(1 if failures else 0)
