#!/usr/bin/env python3
"""How fast the server is, by the number of clients: tokens a second in all, time to the first token, time between tokens; with MTP off and on, and beside
llama.cpp's server where one is named. All servers are up from the start; one setting is asked at a time, in order and in reverse order by turns, and the
first round is dropped. Needs nothing but Python.

    scripts/bench-serve.py [--model M] [--llama-server COMMAND] [--clients 1,2,4,8,16] [--tokens 96] [--rounds 4] [--threads 2] [--mtp 2]
    scripts/bench-serve.py --second-turn 4000 [--model M]      the second turn of a chat with and without the prefix cache

A client sends one request after the other over its own connection, with a prompt of its own, and reads the stream. Time to the first token counts from the
request's last byte sent; time between tokens is between events that bring some (a window of accepted drafts comes at once and counts once for each token).
"""
import argparse
import http.client
import json
import os
import shlex
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROMPTS = [
    'def read_lines(path):\n    """Return the lines of a text file without their line ends."""\n',
    "import os\nimport sys\n\nclass Parser:\n    def __init__(self, name, parent=None):\n        self.name = name\n",
    "    def test_copy(self):\n        a = [1, 2, 3]\n        b = copy.copy(a)\n",
]


class Server:
    def __init__(self, name, command):
        self.name = name
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen([*command, "--port", str(self.port)], stdout=self.log, stderr=self.log)
        for _ in range(1200):
            if self.process.poll() is not None:
                break
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.1)
        self.log.seek(0)
        sys.exit(f"{name}: the server did not come up\n{self.log.read().decode(errors='replace')[-2000:]}")

    def stop(self):
        self.process.terminate()
        self.process.wait()

    def ask(self, connection, prompt, tokens, **fields):
        """(seconds to the first token, [(seconds, tokens)] at each later event, ids)"""
        body = json.dumps({"prompt": prompt, "n_predict": tokens, "temperature": 0, "top_k": 1, "ignore_eos": True, "stream": True, "return_tokens": True,
                           "cache_prompt": False, **fields})
        connection.request("POST", "/completion", body, {"Content-Type": "application/json"})
        begin = time.perf_counter()
        answer = connection.getresponse()
        if answer.status != 200:
            sys.exit(f"{self.name}: {answer.status} {answer.read()[:300]}")
        times, ids = [], []
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if event.get("stop"):
                continue
            if event.get("tokens"):
                times.append((time.perf_counter() - begin, len(event["tokens"])))
                ids += event["tokens"]
        return times[0][0], times, ids


def load(server, num_clients, fields, options):
    """One run: (tokens a second, times to first tokens, times between tokens), in seconds."""
    first, between, count = [], [], [0]
    barrier = threading.Barrier(num_clients + 1)
    lock = threading.Lock()

    def client(number):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=300)
        connection.connect()
        barrier.wait()
        for turn in range(options.requests):
            prompt = PROMPTS[(number + turn) % len(PROMPTS)] + f"# {number} {turn}\n"
            ttft, times, ids = server.ask(connection, prompt, options.tokens, **fields)
            with lock:
                first.append(ttft)
                count[0] += len(ids)
                for (a, _), (b, n) in zip(times, times[1:]):
                    between.extend([(b - a) / n] * n)
        connection.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(num_clients)]
    for thread in threads:
        thread.start()
    barrier.wait()
    begin = time.perf_counter()
    for thread in threads:
        thread.join()
    return count[0] / (time.perf_counter() - begin), first, between


def p99(values):
    return sorted(values)[min(len(values) - 1, int(0.99 * len(values)))]


def arms(options):
    """(name, server, fields of its requests). Ours is one server, asked with and without drafts."""
    most = max(options.clients)
    common = ["-m", options.model, "-t", str(options.threads)]
    ours = Server("Foretoken", [options.foretoken, "serve", *common, "--parallel", str(most), "-c", "1024", "--cache-ram", "0", "--mtp", str(options.mtp)])
    yield "Foretoken, MTP off", ours, {"speculative.n_max": 0}
    yield f"Foretoken, `--mtp {options.mtp}`", ours, {}
    if options.llama_server:
        theirs = [*shlex.split(options.llama_server), *common, "-tb", str(options.threads), "-np", str(most), "-c", str(1024 * most)]
        yield "llama.cpp, MTP off", Server("llama.cpp", theirs), {}
        yield f"llama.cpp, draft-mtp, n-max {options.mtp}", Server("llama.cpp", [*theirs, "--spec-type", "draft-mtp", "--spec-draft-n-max", str(options.mtp)]), {}


def by_clients(options):
    asked = list(arms(options))
    results = {}
    for turn in range(options.rounds):
        for name, server, fields in asked if turn % 2 == 0 else asked[::-1]:
            for num_clients in options.clients:
                run = load(server, num_clients, fields, options)
                if turn > 0 or options.rounds == 1:
                    results.setdefault((name, num_clients), []).append(run)
    for server in {server for _, server, _ in asked}:
        server.stop()
    print("| | clients | tokens/s | to the first token, ms: median, p99 | between tokens, ms: median, p99 |\n|---|---|---|---|---|")
    for name, _, _ in asked:
        for num_clients in options.clients:
            runs = results[(name, num_clients)]
            speed = statistics.median(run[0] for run in runs)
            first = [1e3 * x for run in runs for x in run[1]]
            between = [1e3 * x for run in runs for x in run[2]]
            print(f"| {name} | {num_clients} | {speed:.{0 if speed >= 100 else 1}f} | {statistics.median(first):.1f}, {p99(first):.1f} | {statistics.median(between):.2f}, {p99(between):.2f} |")


def second_turn(options):
    server = Server("Foretoken", [options.foretoken, "serve", "-m", options.model, "-t", str(options.threads), "--parallel", "2", "-c", str(options.second_turn + 1024),
                                  "--mtp", str(options.mtp)])

    def post(path, body):
        request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.loads(answer.read())

    def tokens_of(messages):
        return post("/v1/messages/count_tokens", {"messages": messages})["input_tokens"]

    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=300)
    ratios = []
    for turn in range(options.rounds):
        text = f"# {turn}\n"
        while tokens_of([{"role": "user", "content": text}]) < options.second_turn:
            text += "def read_lines(path):\n    with open(path) as f:\n        return f.read().splitlines()\n\n\n" * 8
        question = [{"role": "user", "content": text}]
        first = post("/v1/chat/completions", {"messages": question, "max_tokens": 16})
        chat = [*question, {"role": "assistant", "content": first["choices"][0]["message"]["content"]}, {"role": "user", "content": "And for bytes?"}]
        prompt = post("/apply-template", {"messages": chat})["prompt"]
        with_cache, _, ids = server.ask(connection, prompt, 32, cache_prompt=True)
        without, _, cold_ids = server.ask(connection, prompt, 32, cache_prompt=False)
        if ids != cold_ids:
            sys.exit("the second turn has other ids with the prefix cache")
        ratios.append(without / with_cache)
        print(f"second turn of {tokens_of(chat)} tokens: first token after {1e3 * with_cache:.1f} ms with the prefix cache, {1e3 * without:.1f} ms without: "
              f"{ratios[-1]:.1f} times; the same ids")
    server.stop()
    print(f"median: {statistics.median(ratios):.1f} times")


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--foretoken", default=os.path.join(ROOT, "build/release/foretoken"))
parser.add_argument("--model", default=os.path.join(ROOT, "models/foretoken-demo.gguf"))
parser.add_argument("--llama-server", metavar="COMMAND", help="llama.cpp's llama-server, or scripts/llama-server.py")
parser.add_argument("--clients", type=lambda text: [int(x) for x in text.split(",")], default=[1, 2, 4, 8, 16])
parser.add_argument("--tokens", type=int, default=96)
parser.add_argument("--requests", type=int, default=1, help="of each client")
parser.add_argument("--rounds", type=int, default=4)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--mtp", type=int, default=2)
parser.add_argument("--second-turn", type=int, default=0, metavar="TOKENS")
options = parser.parse_args()
if options.second_turn:
    second_turn(options)
else:
    by_clients(options)
