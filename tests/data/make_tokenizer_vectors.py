#!/usr/bin/env python3
"""Writes tokenizer_vectors_smollm.json: texts with the ids that the tokenizers library gives for the demonstration model's vocabulary, split
as SmolLM's own tokenizer does (numbers digit by digit, then GPT-2's pattern; no normalising): python3 make_tokenizer_vectors.py MODEL OUT

Needs gguf and tokenizers from PyPI.
"""
import json
import random
import sys

import gguf
from tokenizers import Tokenizer, models, pre_tokenizers

PIECES = ["Hello", "world", "don't", "I'll", "THEY'RE", "it's", " ", "  ", "   ", "\t", "\n", "\r\n", "\n\n", "1", "42", "2026", "3.14", "\u00bd", "\u0663",
          "\u2167", "!", "?!", "...", "-->", "_x", "self.x", "def f(a, b=1):", "{}", "\u00e9", "e\u0301", "\u00f1", "\u4f60\u597d", "\u65e5\u672c", "\uac00",
          "\u0301", "\u3000", "\u00a0", "\u2003", "\u180e", "\u200b", "\U0001f600", "'", "'s", "\u2019s", "'S", "\u017f", "a", "Z", "\u0430\u0431", "\x1c", "0x1F"]


def main(model, out):
    fields = gguf.GGUFReader(model).fields
    vocabulary = {t: i for i, t in enumerate(fields["tokenizer.ggml.tokens"].contents())}
    merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"].contents()]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    rng = random.Random(3)
    texts = PIECES + ["".join(rng.choices(PIECES, k=rng.randint(2, 12))) for _ in range(300 - len(PIECES))]
    with open(out, "w") as file:
        json.dump([{"text": t, "ids": tokenizer.encode(t, add_special_tokens=False).ids} for t in texts], file, ensure_ascii=True, separators=(",", ":"))
        file.write("\n")


main(*sys.argv[1:])
