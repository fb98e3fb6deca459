#!/usr/bin/env python3
"""llama.cpp's server out of the Python package xllamacpp, under the flags that llama.cpp's own program has: what bench-serve.py compares with where no
llama-server is built. The wheel is compiled for AVX2 alone: compare with FORETOKEN_ISA=avx2.

    python3 -m venv /tmp/llama && /tmp/llama/bin/pip install xllamacpp==2026.10.11549
    scripts/bench-serve.py --llama-server "/tmp/llama/bin/python scripts/llama-server.py"
"""
import argparse
import signal
import sys

import xllamacpp

parser = argparse.ArgumentParser()
parser.add_argument("-m", required=True)
parser.add_argument("-t", type=int, required=True)
parser.add_argument("-tb", type=int, required=True)
parser.add_argument("-np", type=int, default=1)
parser.add_argument("-c", type=int, required=True)
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--spec-type", choices=["draft-mtp"])
parser.add_argument("--spec-draft-n-max", type=int, default=3)
flags = parser.parse_args()

params = xllamacpp.CommonParams()
params.model.path = flags.m
params.cpuparams.n_threads = flags.t
params.cpuparams_batch.n_threads = flags.tb
params.n_parallel = flags.np
params.n_ctx = flags.c
params.cache_ram_mib = 0
params.hostnames = ["127.0.0.1"]
params.port = flags.port
if flags.spec_type:
    params.load_mtp = True
    params.speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_MTP]
    params.speculative.draft.n_max = flags.spec_draft_n_max
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
server = xllamacpp.Server(params)
print(xllamacpp.get_system_info(), server.listening_address, flush=True)
while True:
    signal.pause()
