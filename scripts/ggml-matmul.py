#!/usr/bin/env python3
"""What ggml's kernels take for one row times one large matrix: the other side of `bench_kernels --isa avx2` (docs/speed.md), without a model file.

    python3 -m venv /tmp/llama && /tmp/llama/bin/pip install xllamacpp==2026.10.11549 numpy
    /tmp/llama/bin/python scripts/ggml-matmul.py IQ3_S,IQ2_S [--mib 512] [--cols 2048] [--threads 2] [--seconds 2]

The functions are those of the library in the Python package xllamacpp, which is compiled for AVX2 alone. The matrix is 64 random rows, repeated.
"""
import argparse
import ctypes
import importlib.util
import pathlib
import time

import numpy as np


class InitParams(ctypes.Structure):  # struct ggml_init_params
    _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


def load_ggml():
    folder = pathlib.Path(importlib.util.find_spec("xllamacpp").origin).parent
    ggml = ctypes.CDLL(str(next(folder.glob("xllamacpp*.so"))))
    pointer, whole, size = ctypes.c_void_p, ctypes.c_int64, ctypes.c_size_t
    for name, result, arguments in [
            ("ggml_init", pointer, [InitParams]),
            ("ggml_type_name", ctypes.c_char_p, [ctypes.c_int]),
            ("ggml_row_size", size, [ctypes.c_int, whole]),
            ("ggml_quantize_init", None, [ctypes.c_int]),
            ("ggml_quantize_chunk", size, [ctypes.c_int, pointer, pointer, whole, whole, whole, pointer]),
            ("ggml_new_tensor_2d", pointer, [pointer, ctypes.c_int, whole, whole]),
            ("ggml_mul_mat", pointer, [pointer, pointer, pointer]),
            ("ggml_new_graph", pointer, [pointer]),
            ("ggml_build_forward_expand", None, [pointer, pointer]),
            ("ggml_backend_cpu_init", pointer, []),
            ("ggml_backend_cpu_set_n_threads", None, [pointer, ctypes.c_int]),
            ("ggml_backend_graph_compute", ctypes.c_int, [pointer, pointer]),
            ("ggml_backend_alloc_ctx_tensors", pointer, [pointer, pointer]),
            ("ggml_backend_buffer_free", None, [pointer]),
            ("ggml_backend_tensor_set", None, [pointer, pointer, size, size])]:
        function = getattr(ggml, name)
        function.restype, function.argtypes = result, arguments
    return ggml


def type_id(ggml, name):
    for index in range(43):  # GGML_TYPE_COUNT of that version; some numbers in between have no name
        found = ggml.ggml_type_name(index)
        if found and found.decode().upper() == name.upper():
            return index
    raise SystemExit(f"{name}: ggml has no such type")


def measure(ggml, backend, name, options):
    kind, cols = type_id(ggml, name), options.cols
    row_bytes = ggml.ggml_row_size(kind, cols)
    rows = (options.mib << 20) // row_bytes // 64 * 64
    context = ggml.ggml_init(InitParams(1 << 20, None, True))
    matrix, row = ggml.ggml_new_tensor_2d(context, kind, cols, rows), ggml.ggml_new_tensor_2d(context, 0, cols, 1)
    graph = ggml.ggml_new_graph(context)
    ggml.ggml_build_forward_expand(graph, ggml.ggml_mul_mat(context, matrix, row))
    buffer = ggml.ggml_backend_alloc_ctx_tensors(context, backend)
    random = np.random.default_rng(1)
    values, importance = random.standard_normal((64, cols)).astype(np.float32), np.ones(cols, np.float32)
    piece = np.zeros(64 * row_bytes, np.uint8)
    ggml.ggml_quantize_init(kind)
    ggml.ggml_quantize_chunk(kind, values.ctypes.data, piece.ctypes.data, 0, 64, cols, importance.ctypes.data)
    for begin in range(0, rows, 64):
        ggml.ggml_backend_tensor_set(matrix, piece.ctypes.data, begin * row_bytes, piece.nbytes)
    ggml.ggml_backend_tensor_set(row, values.ctypes.data, 0, cols * 4)
    ggml.ggml_backend_graph_compute(backend, graph)
    begin, passes = time.perf_counter(), 0
    while time.perf_counter() < begin + options.seconds:
        ggml.ggml_backend_graph_compute(backend, graph)
        passes += 1
    seconds = (time.perf_counter() - begin) / passes
    ggml.ggml_backend_buffer_free(buffer)
    print(f"{name} {rows} x {cols}, {options.threads} threads, n = 1: {rows * row_bytes / seconds / 1e9:.1f} GB/s of the file, "
          f"{rows * cols / seconds / 1e9:.1f} G products/s", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types")
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--cols", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2)
    options = parser.parse_args()
    ggml = load_ggml()
    backend = ggml.ggml_backend_cpu_init()
    ggml.ggml_backend_cpu_set_n_threads(backend, options.threads)
    for name in options.types.split(","):
        measure(ggml, backend, name, options)


if __name__ == "__main__":
    main()
