#!/usr/bin/env python3
"""Checks Foretoken on SmolLM2: check-smollm.py PROGRAM MODEL TEXT; see check-smollm.sh."""
import json
import subprocess
import sys

# Mean negative log likelihood of llama.cpp (build 11549 of October 2026, CPU, keys and values of 16 bits) over the same 4,000 ids.
LLAMA_PERPLEXITY = 63.6184

QUESTIONS = [
    ("What is the capital of France?", "Paris"),
    ("What is the capital of Italy?", "Rome"),
    ("Which planet is the largest in the solar system?", "Jupiter"),
    ("What do bees make?", "honey"),
    ("What color is the sky on a clear day?", "blue"),
    ("What is the opposite of hot?", "cold"),
    ("Name the ocean between Europe and America.", "Atlantic"),
    ("What is water made of?", "hydrogen"),
    ("How many days are in a week?", "7|seven"),
    ("Who wrote Romeo and Juliet?", "Shakespeare"),
]
NOTICE = ("The library on Mill Street closes at six in the evening from Monday to Friday. On Saturday the library on Mill Street closes at noon, "
          "and on Sunday the library on Mill Street stays closed. Books can be returned at any hour in the box beside the door of the library on "
          "Mill Street.")


def run(program, *arguments):
    done = subprocess.run([program, *arguments, "--json", "-"], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(arguments)}: exit {done.returncode}\n{done.stderr}")
    return json.loads(done.stdout)


def as_chat(text):
    """One turn in the form of the model's own template, with the system text that it sets."""
    return ("<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
            f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n")


def main(program, model, text):
    failures = []

    def check(holds, what):
        print(("ok    " if holds else "WRONG ") + what, flush=True)
        if not holds:
            failures.append(what)

    perplexity = run(program, "eval", "-m", model, "-f", text)["perplexity"]
    check(abs(perplexity / LLAMA_PERPLEXITY - 1) < 0.005, f"perplexity {perplexity:.4f}, llama.cpp's {LLAMA_PERPLEXITY}")

    prompt = as_chat("Summarise this notice, with all days and times: " + NOTICE)
    plain = run(program, "decode", "-m", model, "--parse-special", "-p", prompt, "-n", "160")
    drafted = run(program, "decode", "-m", model, "--parse-special", "-p", prompt, "-n", "160", "--draft", "ngram", "--mtp", "4", "--mtp-fixed")
    check(plain["ids"] == drafted["ids"], f"n-gram drafts leave the text as it is: {plain['text'][:60]!r}")
    check(drafted["acceptance_length"] > 1.1, f"{drafted['acceptance_length']:.2f} tokens a verify pass")

    right = 0
    for question, words in QUESTIONS:
        answer = run(program, "decode", "-m", model, "--parse-special", "-p", as_chat(question), "-n", "48")["text"]
        holds = any(word.lower() in answer.lower() for word in words.split("|"))
        right += holds
        print(f"      {'+' if holds else '-'} {question} {' '.join(answer.split())[:100]}")
    check(right >= 7, f"{right} of {len(QUESTIONS)} answers hold the word that they are about")

    check(run(program, "selfcheck", "-m", model, "-p", "Once upon a time", "-n", "8")["identical"], "selfcheck: no setting changes a bit")
    sys.exit(1 if failures else 0)


main(*sys.argv[1:])
