#!/usr/bin/env python3
"""Draws what a cluster reached over links of several latencies against the model of its costs: a pass takes the time of its share of the work and, for
each message, that of the link.

    scripts/plot-cluster.py docs/cluster-links.tsv docs/cluster-links.svg [--alone-ms 0.1376]

--alone-ms: a pass of one process with one thread. A gbit of 0 stands for a link that nothing held back.
"""
import argparse
import csv
import math

LEFT, TOP, WIDTH, HEIGHT = 64, 24, 520, 330
X = (0.004, 2)  # ms of the link
Y = (20, 10000)  # tokens a second
CLASSES = {("2", "rows"): "rows", ("2", "layers"): "layers", ("3", "rows"): "rows3", ("3", "layers"): "layers3"}
STYLE = """
text { font: 12px sans-serif; fill: #333 } .grid { stroke: #8884 } .axis { stroke: #888; fill: none }
.rows, .rows3 { --c: #2f6fb5 } .layers, .layers3 { --c: #c0561a }
path { stroke: var(--c); fill: none; stroke-width: 1.5 } .rows3 path, .layers3 path { stroke-dasharray: 5 4 }
.off { fill: var(--c); stroke: var(--c) } .mtp { fill: none; stroke: var(--c); stroke-width: 1.5 }
@media (prefers-color-scheme: dark) { text { fill: #ddd } .rows, .rows3 { --c: #6fb0f5 } .layers, .layers3 { --c: #f59a5c } }
"""


def x_of(ms):
    return LEFT + WIDTH * math.log(ms / X[0]) / math.log(X[1] / X[0])


def y_of(tok_s):
    return TOP + HEIGHT * (1 - math.log(tok_s / Y[0]) / math.log(Y[1] / Y[0]))


def modelled(alone_ms, hosts, mode, messages, link_ms):
    """Tokens a second."""
    return 1000 / (alone_ms / (1 if mode == "layers" else hosts) + messages * link_ms)


def mark(name, x, y, size, hosts):
    """Round for two hosts, square for three."""
    if hosts == "2":
        return f'<circle class="{name}" cx="{x:.1f}" cy="{y:.1f}" r="{size}"/>'
    return f'<rect class="{name}" x="{x - size:.1f}" y="{y - size:.1f}" width="{2 * size}" height="{2 * size}"/>'


def axes():
    parts = [f'<rect class="axis" x="{LEFT}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}"/>']
    for ms in (0.01, 0.1, 1):
        parts.append(f'<line class="grid" x1="{x_of(ms):.1f}" x2="{x_of(ms):.1f}" y1="{TOP}" y2="{TOP + HEIGHT}"/>'
                     f'<text x="{x_of(ms):.1f}" y="{TOP + HEIGHT + 16}" text-anchor="middle">{ms}</text>')
    for tok_s in (100, 1000, 10000):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y_of(tok_s):.1f}" y2="{y_of(tok_s):.1f}"/>'
                     f'<text x="{LEFT - 6}" y="{y_of(tok_s) + 4:.1f}" text-anchor="end">{tok_s}</text>')
    parts.append(f'<text x="{LEFT + WIDTH / 2}" y="{TOP + HEIGHT + 34}" text-anchor="middle">link, ms one way</text>')
    parts.append(f'<text transform="translate(14 {TOP + HEIGHT / 2}) rotate(-90)" text-anchor="middle">tokens a second</text>')
    return parts


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table")
    parser.add_argument("picture")
    parser.add_argument("--alone-ms", type=float, default=0.1376)
    arguments = parser.parse_args()
    with open(arguments.table) as file:
        table = list(csv.DictReader(file, delimiter="\t"))
    parts = axes()
    legend_y = TOP + HEIGHT - 76
    for (hosts, mode), name in CLASSES.items():
        own = [row for row in table if (row["hosts"], row["mode"]) == (hosts, mode)]
        if not own:
            continue
        messages = sum(float(row["messages"]) for row in own) / len(own)
        first = min(float(row["link_ms"]) for row in own)
        steps = [first * (1.2 / first) ** (i / 40) for i in range(41)]
        line = " ".join(f"{x_of(ms):.1f},{y_of(modelled(arguments.alone_ms, int(hosts), mode, messages, ms)):.1f}" for ms in steps)
        parts.append(f'<g class="{name}"><path d="M{line}"/>')
        for row in own:
            at = x_of(float(row["link_ms"]))
            parts.append(mark("off", at, y_of(float(row["off_tok_s"])), 3.5, hosts) + mark("mtp", at, y_of(float(row["mtp3_tok_s"])), 5, hosts))
        parts.append(f'<path d="M{LEFT + 12},{legend_y - 4} h26"/><text x="{LEFT + 46}" y="{legend_y}">{hosts} hosts, {mode}: the model</text></g>')
        legend_y += 18
    parts.append(f'<g class="rows"><circle class="off" cx="{LEFT + 20}" cy="{legend_y - 4}" r="3.5"/><circle class="mtp" cx="{LEFT + 34}" cy="{legend_y - 4}" r="5"/>'
                 f'<text x="{LEFT + 46}" y="{legend_y}">measured without drafts, with --mtp 3; square: 3 hosts</text></g>')
    with open(arguments.picture, "w") as file:
        file.write(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 16} {TOP + HEIGHT + 44}" role="img" '
                   f'aria-label="Tokens a second over links of several latencies, measured and by the model">\n<style>{STYLE}</style>\n'
                   + "\n".join(parts) + "\n</svg>\n")


main()
