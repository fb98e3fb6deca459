#!/usr/bin/env python3
"""Writes the seeds of the fuzzers into corpus/ beside this file: small GGUF files and texts that reach every branch worth reaching."""
import pathlib
import struct

ROOT = pathlib.Path(__file__).parent / "corpus"


def text(s):
    b = s.encode() if isinstance(s, str) else s
    return struct.pack("<Q", len(b)) + b


def array(kind, fmt, values):
    return struct.pack("<IQ", kind, len(values)) + b"".join(text(v) if fmt is None else struct.pack("<" + fmt, v) for v in values)


def gguf(keys, tensors=(), version=3, alignment=32):
    """keys: (name, type, bytes); tensors: (name, shape, type, size in bytes)."""
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys))
    for name, kind, value in keys:
        out += text(name) + struct.pack("<I", kind) + value
    data = b""
    for name, shape, kind, size in tensors:
        data += b"\0" * (-len(data) % alignment)
        out += text(name) + struct.pack("<I", len(shape)) + struct.pack("<%dQ" % len(shape), *shape)
        out += struct.pack("<IQ", kind, len(data))
        data += bytes(range(256)) * (size // 256) + bytes(range(size % 256))
    return out + b"\0" * (-len(out) % alignment) + data


def byte_alphabet():
    itself = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in itself]
    return [chr(b) if b in itself else chr(0x100 + others.index(b)) for b in range(256)]


def vocabulary(pre="qwen2", extra=(), types=None, merges=("a b", "Ġ w", "Ġw o"), eos=0):
    tokens = byte_alphabet() + ["ab", "Ġw", "Ġwo", "<|im_end|>", "<a>", "<ab>", *extra]
    kinds = types or [1] * 259 + [3, 4, 3] + [5] * len(extra)
    return [
        ("tokenizer.ggml.model", 8, text("gpt2")),
        ("tokenizer.ggml.pre", 8, text(pre)),
        ("tokenizer.ggml.tokens", 9, array(8, None, tokens)),
        ("tokenizer.ggml.token_type", 9, array(5, "i", kinds)),
        ("tokenizer.ggml.merges", 9, array(8, None, merges)),
        ("tokenizer.ggml.eos_token_id", 4, struct.pack("<I", eos)),
        ("tokenizer.ggml.add_bos_token", 7, b"\0"),
        ("tokenizer.chat_template", 8, text("{{ x }}")),
    ]


EVERY_TYPE = [
    ("a.u8", 0, b"\x80"), ("a.i8", 1, b"\x80"), ("a.u16", 2, b"\x01\x80"), ("a.i16", 3, b"\x01\x80"),
    ("a.u32", 4, b"\x01\0\0\x80"), ("a.i32", 5, b"\x01\0\0\x80"), ("a.f32", 6, struct.pack("<f", 1.5)), ("a.bool", 7, b"\x01"),
    ("a.string", 8, text("value")), ("a.u64", 10, b"\xff" * 8), ("a.i64", 11, b"\xff" * 8), ("a.f64", 12, struct.pack("<d", float("nan"))),
    ("a.bools", 9, array(7, "?", [True, False])), ("a.ints", 9, array(5, "i", [1, -2])), ("a.floats", 9, array(6, "f", [0.5])),
    ("a.strings", 9, array(8, None, ["x", "", "yy"])), ("a.empty", 9, array(12, "d", [])),
    ("a.nested", 9, struct.pack("<IQ", 9, 2) + array(0, "B", [1, 2]) + array(8, None, ["z"])),
]
TENSORS = [("token_embd.weight", (64, 3), 8, 204), ("norm", (5,), 0, 20), ("experts", (256, 2, 2), 12, 576), ("new_type", (7,), 99, 64)]

SEEDS = {
    "gguf/every_type": gguf(EVERY_TYPE, TENSORS),
    "gguf/version_2": gguf(EVERY_TYPE[:3], TENSORS[:1], version=2),
    "gguf/no_tensors": gguf([("general.architecture", 8, text("x"))]),
    "gguf/aligned_8": gguf([("general.alignment", 4, struct.pack("<I", 8))], TENSORS[1:3], alignment=8),
    "gguf/aligned_4096": gguf([("general.alignment", 4, struct.pack("<I", 4096))], TENSORS[1:2] * 1, alignment=4096),
    "gguf/split": gguf([("split.no", 2, b"\0\0"), ("split.count", 2, b"\1\0"), ("split.tensors.count", 5, struct.pack("<i", 1))], TENSORS[1:2]),
    "gguf/big_endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "gguf/version_1": b"GGUF" + struct.pack("<III", 1, 0, 0),
    "gguf/lfs_pointer": b"version https://git-lfs.github.com/spec/v1\n",
    "gguf/cut": gguf(EVERY_TYPE, TENSORS)[:-100],
    "gguf/huge_counts": b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1 << 60),
    "grammar/arithmetic": b"Groot ::= term ([-+*/] term)*\nterm ::= [a-z]+ | \"(\" root \")\" | [0-9]{1,3}\0a+(b*12)",
    "grammar/classes": b"Groot ::= [^\\x00-\\x1f\\u00e9-\\U0001F600]* . \"\\n\" # end\0ab\n",
    "grammar/schema_object": b'S{"type": "object", "properties": {"a": {"type": "integer", "minimum": -12, "maximum": 340}, "ab": {"type": ["string", "null"]}},'
    b' "required": ["ab"], "additionalProperties": {"enum": [1, "x"]}}\0{"a": 12, "ab": null}',
    "grammar/schema_others": b'S{"$defs": {"n": {"type": "array", "items": {"$ref": "#/$defs/n"}, "maxItems": 2}}, "anyOf": [{"$ref": "#/$defs/n"},'
    b' {"type": "string", "pattern": "^[a-c]{2}(x|y)?$"}, {"type": "string", "format": "date"}, {"allOf": [{"properties": {"k": {}}}]}]}\0[[],[[]]]',
    # The first byte is the route and, times 4, the form of calls.
    "request/completion": b'\x00{"prompt": ["a", [1, 2], "b"], "n_predict": 5, "stop": ["x"], "logit_bias": {"5": -1, "a": false}, "grammar": "root ::= \\"a\\"", "n": 2}',
    "request/chat": b'\x01{"messages": [{"role": "system", "content": "x"}, {"role": "assistant", "content": null, "tool_calls": [{"id": "1", "function": {"name": "f",'
    b' "arguments": "{\\"a\\": 1}"}}]}, {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "y"}]}], "tools": [{"type": "function", "function":'
    b' {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}}], "tool_choice": "required", "parallel_tool_calls": false}',
    "request/chat_continued": b'\x05{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "<think>a"}], "continue_final_message": true,'
    b' "chat_template_kwargs": {"enable_thinking": true}, "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "array"}}}, "reasoning_format": "none"}',
    "request/messages": b'\x0a{"max_tokens": 5, "system": [{"type": "text", "text": "s"}], "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content":'
    b' [{"type": "thinking", "thinking": "t"}, {"type": "tool_use", "id": "1", "name": "f", "input": {"a": 1}}]}, {"role": "user", "content": [{"type": "tool_result",'
    b' "tool_use_id": "1", "content": "r"}]}], "tools": [{"name": "f", "input_schema": {"type": "object"}}], "tool_choice": {"type": "tool", "name": "f"}}',
    "request/responses": b'\x0f{"instructions": "s", "input": [{"role": "user", "content": [{"type": "input_text", "text": "x"}]}, {"type": "reasoning", "summary": [],'
    b' "content": [{"type": "reasoning_text", "text": "t"}]}, {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}, {"type": "function_call_output",'
    b' "call_id": "1", "output": "r"}], "tools": [{"type": "function", "name": "f", "parameters": {}}], "text": {"format": {"type": "json_object"}}, "reasoning": {"effort": "low"}}',
    "template/chatml": b"{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content | trim }}\n{% endfor %}",
    "template/macro": b"{% macro f(a, b=2) %}{{ a }}{{ caller() }}{% endmacro %}{% call f(1) %}x{% endcall %}{% set ns = namespace(n=0) %}"
    b"{% for i in range(3) if i is odd %}{% set ns.n = ns.n + loop.index %}{% endfor %}{{ ns.n }}",
    "template/filters": b"{{ tools | tojson(indent=2) }}{{ messages | map(attribute='role') | join(',') }}{{ 'a b'.split() | sort(reverse=true) | list }}"
    b"{{ messages[1:] | selectattr('role', 'equalto', 'user') | list | length }}{{ '%s-%05.1f' % ('x', 2) }}{{ '{:>4}'.format('x') }}",
    "template/recursive": b"{%- for x in [[1, [2]]] recursive -%}{{ loop(x) if x is iterable else x }}{%- endfor -%}{% raw %}{{ }}{% endraw %}{# c #}",
    "template/conversation": b"{{ messages }}\0" + b'[{"role": "user", "content": "caf\\u00e9"}]',
    "tokenizer/qwen2": gguf(vocabulary()),
    "tokenizer/qwen35_unused": gguf(vocabulary("qwen35", extra=["", "", "\xff"])),
    "tokenizer/unknown_merge": gguf(vocabulary(merges=("a zz",))),
    "tokenizer/eos_outside": gguf(vocabulary(eos=100000)),
    "tokenizer/text_code": b"Tdef f(self, *args):\n\treturn self.x + 0x7f  # isn't\r\n\r\n   <|im_end|>",
    "tokenizer/text_marks": "TCafe\u0301 \u1100\u1161\u11a8 a\u0323\u0307 \u0344\u2126 \u2028\u180e\u3000x".encode(),
    "tokenizer/text_scripts": "T日本語の。한국어 Привет नमस्ते שלום 🙂🏽 ½Ⅷ٣ 'S 'ſ".encode(),
    "tokenizer/text_spaces": b"T   \n\n  \t x     y\r\n " + b" " * 70,
    "tokenizer/text_invalid": b"Tab\xc3(\xed\xa0\x80\xf4\x90\x80\x80\xff",
}

for name, data in SEEDS.items():
    path = ROOT / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    print(path, len(data))
