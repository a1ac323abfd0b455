"""What peers.py writes: its part of a page of docs and a chart beside it."""

import math
import os
from html import escape

from peers_model import ROOT, cpu_name

BEGIN, END = "<!-- kernels: begin -->", "<!-- kernels: end -->"
COLOURS = ["#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5"]


def span(q, form):
    return f"{q[1]:{form}} ({q[0]:{form}}-{q[2]:{form}})"


def milliseconds(seconds):
    digits = max(0, 2 - math.floor(math.log10(seconds[1] * 1e3)))
    return span([s * 1e3 for s in seconds], f".{digits}f")


def shape_text(row):
    batch, heads, kv_heads, queries, keys, width = row["shape"]
    tokens = f"T {keys}" if queries == keys else f"{queries} query, {keys} keys"
    shared = f"{heads}:{kv_heads}" if heads != kv_heads else str(heads)
    mask = "" if row["decode"] else f", {row['mask']}"
    return f"{'batch %d, ' % batch if batch > 1 else ''}{shared} heads, {tokens}, D {width}, {row['type']}{mask}"


def verdict(ratio):
    return "attend" if ratio[0] > 1 else "peer" if ratio[2] < 1 else "neither"


def table(rows, rate, per):
    lines = [f"| row | library | ms | {rate} | share of limit | its time / attend's | pairs | faster | error |",
             "|---|---|---:|---:|---:|---:|---:|---|---:|"]
    for row in rows:
        for i, line in enumerate(row["lines"]):
            first = f"`{row['name']}`<br>{shape_text(row)}" if i == 0 else ""
            error = f"{line['error']:.1e}" if "error" in line else ""
            if "seconds" not in line:
                lines.append(f"| {first} | {line['side']} | {line['gap'].replace('|', '/')} | | | | | | {error} |")
                continue
            share, ratio, faster = "", "", ""
            if i == 0 and row.get("limit") and "limit_share" in row["limit"]:
                low, high = row["limit"]["limit_share_quartiles"]
                share = f"{row['limit']['limit_share']:.0%} ({low:.0%}-{high:.0%})"
            if "ratio" in line:
                ratio, faster = span(line["ratio"], ".2f"), verdict(line["ratio"])
            lines.append(f"| {first} | {line['side']} | {milliseconds(line['seconds'])} "
                         f"| {row[per] / line['seconds'][1] / 1e9:.1f} | {share} | {ratio} "
                         f"| {line['pairs'] if i else ''} | {faster} | {error} |")
    return lines


def chart(rows):
    """Each row's ratios on a logarithmic axis: a dot at the median, a line over the quartiles."""
    names = list(dict.fromkeys(line["side"] for row in rows for line in row["lines"][1:]))
    dots = [(row, line) for row in rows for line in row["lines"] if "ratio" in line]
    if not dots:
        return ""
    left, width, top, step = 270, 900, 34 + 18 * len(names), 13
    low = min(0.8, min(line["ratio"][0] for _, line in dots)) / 1.1
    high = max(2.0, max(line["ratio"][2] for _, line in dots)) * 1.1

    def x(value):
        return left + (width - left - 20) * math.log(value / low) / math.log(high / low)

    parts, y = [], top
    for row in rows:
        here = [line for line in row["lines"] if "ratio" in line]
        height = step * max(1, len(here)) + 10
        parts.append(f'<text x="{left - 10}" y="{y + height / 2}" text-anchor="end">{escape(row["name"])}</text>')
        parts.append(f'<line x1="8" x2="{width - 8}" y1="{y + height}" y2="{y + height}" class="rule"/>')
        for i, line in enumerate(here):
            at, colour = y + 10 + step * i, COLOURS[names.index(line["side"]) % len(COLOURS)]
            a, b, c = (x(v) for v in line["ratio"])
            parts.append(f'<g stroke="{colour}" fill="{colour}"><title>{escape(line["side"])}: '
                         f'{span(line["ratio"], ".2f")}</title><line x1="{a:.1f}" x2="{c:.1f}" y1="{at}" y2="{at}" '
                         f'stroke-width="2"/><circle cx="{b:.1f}" cy="{at}" r="4"/></g>')
        y += height
    ticks = [f * 10**e for e in range(-3, 5) for f in (1, 2, 5) if low < f * 10**e < high]
    for tick in ticks:
        parts.append(f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{top}" y2="{y}" '
                     f'class="{"one" if tick == 1 else "rule"}"/>'
                     f'<text x="{x(tick):.1f}" y="{y + 16}" text-anchor="middle">{tick:g}</text>')
    for i, name in enumerate(names):
        parts.append(f'<circle cx="{left + 6}" cy="{20 + 18 * i}" r="4" fill="{COLOURS[i % len(COLOURS)]}"/>'
                     f'<text x="{left + 16}" y="{24 + 18 * i}">{escape(name)}</text>')
    height = y + 44
    parts.append(f'<text x="{(left + width) / 2}" y="{y + 36}" text-anchor="middle">time of the library / time of '
                 "attend (right of 1: attend is faster)</text>")
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            'font-family="sans-serif" font-size="12">\n<style>.rule{stroke:#ddd}.one{stroke:#333;stroke-width:1.5}'
            f'</style>\n<rect width="{width}" height="{height}" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n")


def report(kept, order, page):
    rows = [kept["rows"][name] for name in order if name in kept["rows"]]
    machine, versions = kept.get("machine", {}), kept.get("versions", {})
    commits = list(dict.fromkeys(r["commit"] for r in rows))
    rates = (f"; {machine['f32_gflops']:.0f} GFLOP/s f32, {machine['read_gbps']:.0f} GB/s read from memory"
             if "f32_gflops" in machine else "")
    lines = [BEGIN, "## Kernels, beside other libraries", "",
             f"`make peers`, on {cpu_name()} ({os.cpu_count()} cores), {kept.get('threads', 2)} threads, instruction "
             f"set {machine.get('isa', '?')}{rates}; attend {', '.join(commits)}; "
             + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".", "",
             "Median (quartiles) of calls that alternated with attend's; each library in its own process with its own "
             "defaults and as many threads. Ratios are of neighbouring calls; attend is *faster* where the lower "
             "quartile is above 1, the library where the upper one is below 1, else neither. The share of the limit is "
             "from `attend bench ROW`, whose limit is visible pairs at the multiply-add rate of its arithmetic plus one exp each, or "
             "the bytes of keys and values at the read bandwidth. The error is relative, over sampled rows, against "
             "double precision; a result without half of its type's digits gets no time. attend and ggml read f32 "
             "queries and give f32 (in the bf16 prefill row attend multiplies in bf16 too), the others work in the type of "
             "the row.", "",
             "PyTorch's wheel holds MKL, which takes its oldest code on CPUs that are not Intel's. *MKL preloaded* is "
             "PyTorch with a preloaded function that tells MKL the CPU is Intel's, so that it takes its newest code.",
             "", "FlexAttention has a block mask where there is a mask; SDPA has a boolean one for the window. ONNX "
             "Runtime runs GroupQueryAttention with a cache updated in place where attention is causal, else "
             "MultiHeadAttention. OpenVINO decodes in the stateful form that its exporters write. ggml has the f16 "
             "mask that llama.cpp gives it. Keys and values of a decoding step come from memory: calls rotate over "
             "copies beyond the caches.", ""]
    if chart(rows):
        picture = f"kernels{page.stem.removeprefix('performance')}.svg"
        lines += [f"![Ratios of times]({picture})", ""]
        page.with_name(picture).write_text(chart(rows))
    for title, part, rate, per in (("Prefill", [r for r in rows if not r["decode"]], "GFLOP/s", "flops"),
                                   ("Decode", [r for r in rows if r["decode"]], "GB/s", "bytes")):
        if part:
            lines += [f"### {title}", "", *table(part, rate, per), ""]
    text = page.read_text()
    if BEGIN not in text:
        text += f"\n{BEGIN}\n{END}\n"
    page.write_text(text[:text.index(BEGIN)] + "\n".join([*lines, END]) + text[text.index(END) + len(END):])
