#!/usr/bin/env python3
"""Draws a picture from what `foretoken bench --json FILE` wrote.

    scripts/plot.py bench.json docs/bench.png

Four panels: tokens per second by arm with 95% intervals, V(n) against what the bytes allow, U(n) against independent routing, and where a
cycle's time goes. Needs matplotlib (Debian: python3-matplotlib).
"""
import argparse
import json

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

PARTS = ("draft_ms", "verify_ms", "accept_ms", "refresh_ms")
COLOURS = ("#4c78a8", "#72b7b2", "#bab0ac", "#f58518")


def speeds(ax, arms):
    """Bars of the medians with their bootstrap intervals."""
    names = [arm["name"] for arm in arms]
    medians = [arm["tokens_per_second"] for arm in arms]
    low = [arm["tokens_per_second"] - arm["ci95"][0] for arm in arms]
    high = [arm["ci95"][1] - arm["tokens_per_second"] for arm in arms]
    ax.bar(names, medians, yerr=[low, high], capsize=4, color=COLOURS[0])
    for i, arm in enumerate(arms):
        ax.annotate(f"{arm['speedup']:.2f}x", (i, medians[i]), ha="center", va="bottom", xytext=(0, 8), textcoords="offset points")
    ax.set_ylabel("tokens / s")
    ax.set_ylim(0, max(arm["ci95"][1] for arm in arms) * 1.2)
    ax.tick_params(axis="x", rotation=20)
    ax.set_title("decode speed, ratio to the first arm")


def by_rows(arm, key):
    """(rows, values) of a list indexed by rows, without the widths that hardly ever ran."""
    windows = arm.get("windows_by_rows", [])
    pairs = [(n, v) for n, v in enumerate(arm.get(key, [])) if v and windows[n] >= 0.05 * sum(windows)]
    return [n for n, _ in pairs], [v for _, v in pairs]


def pass_times(ax, arms):
    """Time of a pass over n rows in units of a pass over one, and the same of the bytes that a grouped pass has to read."""
    limit = {}
    for arm in arms:
        rows, slowdown = by_rows(arm, "slowdown_by_rows")
        if rows and rows != [1]:
            ax.plot(rows, slowdown, "o-", label=arm["name"])
        if not arm["name"].endswith("per-token"):
            limit.update(zip(*by_rows(arm, "byte_ratio_by_rows")))
    rows = sorted(limit)
    ax.plot(rows, [limit[n] for n in rows], "k--", label="bytes")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_xlabel("rows n")
    ax.set_ylabel("V(n)")
    ax.set_ylim(bottom=0)
    ax.legend(fontsize=8)
    ax.set_title("pass over n rows ÷ pass over one")


def experts(ax, arms, run):
    """Distinct experts of a window, and what independent routing would give."""
    widest = 1
    for arm in arms:
        rows, distinct = by_rows(arm, "distinct_experts_by_rows")
        if rows and rows != [1]:
            ax.plot(rows, distinct, "o-", label=arm["name"])
            widest = max(widest, rows[-1])
    total, top_k = run.get("expert_count"), run.get("expert_used_count")
    if total and top_k:
        rows = list(range(1, widest + 1))
        ax.plot(rows, [total * (1 - (1 - top_k / total) ** n) / top_k for n in rows], "k--", label="independent")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_xlabel("rows n")
    ax.set_ylabel("U(n)")
    ax.set_ylim(bottom=0)
    ax.legend(fontsize=8)
    ax.set_title("distinct experts, in units of top-k")


def cycles(ax, arms):
    """Stacked milliseconds a cycle."""
    names = [arm["name"] for arm in arms]
    base = [0.0] * len(arms)
    for part, colour in zip(PARTS, COLOURS):
        ms = [arm.get(part) or 0.0 for arm in arms]
        ax.bar(names, ms, bottom=base, label=part.removesuffix("_ms"), color=colour)
        base = [b + m for b, m in zip(base, ms)]
    ax.set_ylabel("ms a cycle")
    ax.tick_params(axis="x", rotation=20)
    ax.legend(fontsize=8)
    ax.set_title("where a cycle's time goes")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json")
    parser.add_argument("png")
    options = parser.parse_args()
    with open(options.json, encoding="utf-8") as file:
        run = json.load(file)
    if not run.get("identical"):
        raise SystemExit(f"{options.json}: the arms' ids differ; there is nothing to draw")
    figure, axes = plt.subplots(2, 2, figsize=(11, 8))
    speeds(axes[0][0], run["arms"])
    pass_times(axes[0][1], run["arms"])
    experts(axes[1][0], run["arms"], run)
    cycles(axes[1][1], run["arms"])
    figure.suptitle(f"{run['processor']}, {run['threads']} threads, {run['isa']}, {run['bandwidth_gb_per_s']:.1f} GB/s read; "
                    f"foretoken {run['version']} ({run['commit']})", fontsize=10)
    figure.tight_layout()
    figure.savefig(options.png, dpi=110)


if __name__ == "__main__":
    main()
