#!/usr/bin/env python3
"""The measurement behind compare-llama.sh: tokens a second of Foretoken and of a llama.cpp server on one model, as a table in Markdown.

Both decode the same prompts greedily for the same number of tokens, past end-of-text tokens, with the same threads. Rounds take the settings in
order and in reverse order by turns; the first is dropped. A setting's speed in a round is its tokens over its decode time, summed over the
prompts, loading and prompts left out, as either program itself reports it. Needs nothing but Python.
"""
import argparse
import datetime
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

PROMPTS = [
    'def read_lines(path):\n    """Return the lines of a text file without their line ends."""\n',
    "import os\nimport sys\n\nclass Parser:\n    def __init__(self, name, parent=None):\n        self.name = name\n",
    "    def test_copy(self):\n        a = [1, 2, 3]\n        b = copy.copy(a)\n",
]


class Foretoken:
    def __init__(self, options, mtp):
        self.options, self.mtp = options, mtp
        self.name = "Foretoken, MTP off" if mtp == 0 else f"Foretoken, --mtp {mtp}"

    def run(self, prompt):
        o = self.options
        command = [o.foretoken, "decode", "-m", o.model, "-p", prompt, "-n", str(o.tokens), "-t", str(o.threads), "--ignore-eos", "--json", "-"]
        if self.mtp > 0:
            command += ["--mtp", str(self.mtp)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command[:4])} failed:\n{done.stderr}")
        result = json.loads(done.stdout)
        return result["new_tokens"] - 1, result["decode_ms"], result["text"], result["acceptance_length"]

    def close(self):
        pass


class Llama:
    """A server that stays up; it is idle, and costs nothing, while others are measured."""

    def __init__(self, options, mtp):
        self.options = options
        self.name = "llama.cpp, MTP off" if mtp == 0 else f"llama.cpp, draft-mtp, n-max {mtp}"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [options.llama_server, "-m", options.model, "-c", "2048", "-np", "1", "-t", str(options.threads), "-tb", str(options.threads),
                   "--port", str(self.port), "--no-webui"]
        if mtp > 0:
            command += ["--spec-type", "draft-mtp", "--spec-draft-n-max", str(mtp)]
        self.log = tempfile.TemporaryFile()
        self.server = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        for _ in range(1200):
            if self.server.poll() is not None:
                self.fail("the server ended")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.1)
        self.fail("the server did not come up in two minutes")

    def fail(self, what):
        self.log.seek(0)
        tail = self.log.read().decode(errors="replace")[-2000:]
        self.close()
        raise RuntimeError(f"{self.name}: {what}\n{tail}")

    def run(self, prompt):
        body = {"prompt": prompt, "n_predict": self.options.tokens, "temperature": 0, "top_k": 1, "ignore_eos": True, "cache_prompt": False,
                "seed": 1}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/completion", json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=600) as answer:
            result = json.load(answer)
        t = result["timings"]
        drafted, accepted = t.get("draft_n", 0), t.get("draft_n_accepted", 0)
        passes = t["predicted_n"] - accepted
        # Its time begins when the first token is there, as ours does, and its count includes that token.
        return t["predicted_n"] - 1, t["predicted_ms"], result["content"], t["predicted_n"] / passes if drafted and passes else 1.0

    def close(self):
        self.server.terminate()
        self.server.wait()


def version(command):
    done = subprocess.run(command, capture_output=True, text=True)
    return (done.stdout + done.stderr).strip()


def speed(x):
    return f"{x:.0f}" if x >= 100 else f"{x:.1f}"


def processor():
    with open("/proc/cpuinfo") as info:
        found = re.search(r"^model name\s*:\s*(.*)$", info.read(), re.M)
    return found.group(1) if found else "unknown processor"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--foretoken", required=True)
    p.add_argument("--llama-server", required=True)
    p.add_argument("--model", required=True)
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--tokens", type=int, default=400)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--mtp", type=int, default=2, help="drafts a window of the arms with MTP; 0: none of them")
    options = p.parse_args()

    arms = []
    try:
        for mtp in dict.fromkeys([0, options.mtp]):
            arms.append(Foretoken(options, mtp))
            try:
                arms.append(Llama(options, mtp))
            except RuntimeError as error:
                print(error, file=sys.stderr)
                if mtp == 0:
                    return 1
        speeds, lengths, texts = [[] for _ in arms], [0.0] * len(arms), [None] * len(arms)
        for r in range(options.rounds + 1):
            order = range(len(arms)) if r % 2 else range(len(arms) - 1, -1, -1)
            tokens, ms, al = [0] * len(arms), [0.0] * len(arms), [0.0] * len(arms)
            text = [[] for _ in arms]
            for prompt in PROMPTS:
                for a in order:
                    n, t, made, length = arms[a].run(prompt)
                    tokens[a] += n
                    ms[a] += t
                    al[a] += length / len(PROMPTS)
                    text[a].append(made)
            if r > 0:
                for a in range(len(arms)):
                    speeds[a].append(1000 * tokens[a] / ms[a])
            lengths, texts = al, text
    finally:
        for arm in arms:
            arm.close()

    ours = version([options.foretoken, "--version"]).splitlines()[0]
    theirs = " ".join(version([options.llama_server, "--version"]).splitlines()[0:1])
    print(f"{os.path.basename(options.model)}, {len(PROMPTS)} prompts of {options.tokens} greedy tokens, {options.threads} threads, "
          f"{options.rounds} rounds interleaved; {processor()}; {datetime.date.today()}; {ours}; llama.cpp {theirs}\n")
    print("| | tok/s (median; least–most) | over llama.cpp, same MTP | tokens a pass | text as without MTP |\n|---|---|---|---|---|")
    for a, arm in enumerate(arms):
        peer = a + 1 if isinstance(arm, Foretoken) and a + 1 < len(arms) and isinstance(arms[a + 1], Llama) else None
        ratio = "" if peer is None else f"{statistics.median(x / y for x, y in zip(speeds[a], speeds[peer])):.2f}"
        plain = next(b for b, other in enumerate(arms) if type(other) is type(arm))
        same = "" if a == plain else f"{sum(x == y for x, y in zip(texts[a], texts[plain]))} of {len(PROMPTS)}"
        print(f"| {arm.name} | {speed(statistics.median(speeds[a]))} ({speed(min(speeds[a]))}–{speed(max(speeds[a]))}) | {ratio} | {lengths[a]:.2f} | {same} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
