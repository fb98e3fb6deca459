#!/usr/bin/env python3
"""The server over several processes. Sixteen clients at once, sampled and greedy, with a grammar, drafts and shared beginnings: every answer has the ids
that `foretoken decode` gives in one process, and SIGTERM ends the server and all its processes in order.
    cluster_test.py PROGRAM MODEL
Exits with 77 where there is no mpirun, or no MPI in the program.
"""
import concurrent.futures
import json
import os
import shutil
import sys
import tempfile

from server import Server, decode_alone

program, model = sys.argv[1:3]
if shutil.which("mpirun") is None:
    print("not run: there is no mpirun here")
    sys.exit(77)
# A folder of its own for Open MPI: in the one in /tmp an mpirun that ends can remove what one that starts has just found.
session_folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
os.environ.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", OMPI_MCA_rmaps_base_oversubscribe="1",
                  OMPI_MCA_orte_tmpdir_base=session_folder.name)

stem = "import os\nimport sys\n\n\ndef read_lines(path):\n    with open(path) as f:\n        return f.read().splitlines()\n\n\n"
rules = [  # fields of a request, flags of decode
    ({}, []), ({"temperature": 0.8, "seed": 7}, ["--temp", "0.8", "--seed", "7"]),
    ({"grammar": "root ::= [a-z ]+ \"!\""}, ["--grammar", "root ::= [a-z ]+ \"!\""]),
    ({"repeat_penalty": 1.3, "repeat_last_n": 40}, ["--repeat-penalty", "1.3", "--repeat-last-n", "40"]),
]
texts = [(beginning, 24, *rule) for beginning in ("def main():", stem + "def g(", stem + "class Reader:\n") for rule in rules]
with concurrent.futures.ThreadPoolExecutor(2) as pool:
    wanted = list(pool.map(lambda text: decode_alone(program, model, text[0], text[1], "-t", "1", *text[3]), texts))

failures = []
for mode in ("rows", "layers"):
    try:
        server = Server(program, model, "--parallel", "4", "-c", "1024", "-t", "1", "--cluster", mode, "--cluster-shares", "1:1", before=("mpirun", "-n", "2"))
    except RuntimeError as error:
        if "without MPI" not in str(error):
            raise
        print("not run: this program was built without MPI")
        sys.exit(77)

    def ask(number):
        index = number % len(texts)
        prompt, tokens, fields, _ = texts[index]
        status, answer = server.post("/completion", {"prompt": prompt, "n_predict": tokens, "return_tokens": True, "speculative.n_max": number % 4, **fields})
        ids = json.loads(answer).get("tokens")
        if status != 200 or ids != wanted[index]:
            failures.append(f"{mode}: text {index}, k {number % 4}: status {status}, {ids} instead of {wanted[index]}")

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(48)))
    server.stop()
    if not any("cluster: " in line and " passes" in line for line in server.log):
        failures.append(f"{mode}: the server did not end in order: {server.log[-5:]}")
print("\n".join(failures) or "48 answers over two processes by rows and by layers have the ids of one process")
sys.exit(1 if failures else 0)
