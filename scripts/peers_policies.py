#!/usr/bin/env python3
"""Decodes at depth under several policies of attend, and with llama.cpp, in turn: what a token costs and what memory the
process takes.

Every round runs all of them once; a ratio is tokens/s over those of attend's exact run of the same round. Keeps its
measurements in build/peers/policies.json and writes the part between its markers of docs/performance.md.
"""

import argparse
import json
import os
import statistics
import sys

from peers_model import ATTEND, GENERATED, ROOT, WORK, Point, call, commit, cpu_name, llama_bench, quartiles, say

BEGIN, END = "<!-- policies: begin -->", "<!-- policies: end -->"
DEPTHS = {"smollm2-135m": 8000, "gemma3-270m": 30000}
POLICIES = ["softmax", "q8_0", "q4_0", "kivi:bits=4", "snapkv:budget=1024", "h2o:budget=1024", "quest:budget=1024",
            "{duo}", "{duo} + q8_0", "streaming:window=1020,sinks=4"]
# Type of keys and values, flash attention.
LLAMA = {"llama.cpp, f16": ("f16", 1), "llama.cpp, f16, no flash attention": ("f16", 0), "llama.cpp, q8_0": ("q8_0", 1)}


class DeepPoint(Point):
    def __init__(self, model, tokens, threads, bench):
        super().__init__(model, "decode", tokens, "f16", threads, bench)

    def llama_with(self, codec, flash):
        out, _, rss = call([self.bench, "-m", self.path, "-t", self.threads, "-fa", flash, "-ctk", codec, "-ctv", codec,
                            "-r", 1, "-o", "json", "-p", 0, "-n", GENERATED, "-d", self.actual])
        return {"decode": out[0]["avg_ts"], "rss": rss}

    def attend_with(self, policy):
        out, _, rss = call([ATTEND, "run", "-m", self.path, "-f", self.prompt, "-n", GENERATED, "--temp", 0, "--ignore-eos",
                            "--threads", self.threads, "--policy", policy, "--json"])
        return {"decode": out["decode_tps"], "prefill": out["prefill_tps"], "kv": out["kv_bytes"], "rss": rss}


def measure(model, policies, rounds, threads, bench):
    point = DeepPoint(model, DEPTHS[model], threads, bench)
    samples = {}
    for r in range(rounds):
        for policy in policies:
            samples.setdefault(policy, []).append(point.attend_with(policy))
            say(f"peers: {model}, round {r + 1}, {policy}: {samples[policy][-1]['decode']:.1f} tokens/s")
        for name, (codec, flash) in LLAMA.items():
            samples.setdefault(name, []).append(point.llama_with(codec, flash))
            say(f"peers: {model}, round {r + 1}, {name}: {samples[name][-1]['decode']:.1f} tokens/s")
    exact = samples[policies[0]]
    rows = []
    for name, runs in samples.items():
        row = {"name": name, "decode": quartiles([x["decode"] for x in runs]),
               "ratio": quartiles([x["decode"] / e["decode"] for x, e in zip(runs, exact)]),
               "rss": statistics.median(x["rss"] for x in runs)}
        if "kv" in runs[0]:
            row |= {"kv": statistics.median(x["kv"] for x in runs), "prefill": quartiles([x["prefill"] for x in runs])}
        rows.append(row)
    return {"model": model, "tokens": point.actual, "rounds": rounds, "commit": commit(), "rows": rows}


def span(q, digits):
    return f"{q[1]:.{digits}f}" if q[0] == q[2] else f"{q[1]:.{digits}f} ({q[0]:.{digits}f}-{q[2]:.{digits}f})"


def report(results, threads):
    lines = [BEGIN, "## Decoding at depth under policies, beside llama.cpp", "",
             f"`scripts/peers_policies.py`, on {cpu_name()} ({os.cpu_count()} cores), {threads} threads: a prompt, then "
             f"{GENERATED} tokens. Medians (quartiles) of rounds that run every line once; the ratio is to attend's exact "
             "run of the same round. Memory is the peak resident size of the whole process.", ""]
    for result in results.values():
        lines += [f"### {result['model']}, {result['tokens']} tokens ({result['rounds']} rounds, {result['commit']})", "",
                  "| policy | prefill, tokens/s | decode, tokens/s | of exact | KV, MiB | process, MiB |",
                  "|---|---:|---:|---:|---:|---:|"]
        for row in result["rows"]:
            prefill = span(row["prefill"], 0) if "prefill" in row else ""
            kv = f"{row['kv'] / 2**20:.0f}" if "kv" in row else ""
            name = f"`{row['name']}`" if "kv" in row else row["name"]
            lines.append(f"| {name} | {prefill} | {span(row['decode'], 1)} | {span(row['ratio'], 2)} | {kv} "
                         f"| {row['rss'] / 2**20:.0f} |")
        lines.append("")
    lines.append(END)
    page = ROOT / "docs" / "performance.md"
    text = page.read_text()
    if BEGIN not in text:
        text += "\n" + BEGIN + "\n" + END + "\n"
    page.write_text(text[:text.index(BEGIN)] + "\n".join(lines) + text[text.index(END) + len(END):])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", choices=list(DEPTHS), help="only this one")
    parser.add_argument("--policies", help="in place of the usual ones, separated by ';'; the first is what ratios are to")
    args = parser.parse_args()
    bench = llama_bench()
    WORK.mkdir(parents=True, exist_ok=True)
    kept = WORK / "policies.json"
    results = json.loads(kept.read_text()) if kept.exists() else {}
    for model in DEPTHS:
        if args.model in (None, model):
            gates = ROOT / "docs" / "plans" / f"duo-{model}.json"
            policies = [p.strip() for p in args.policies.split(";")] if args.policies else POLICIES
            policies = [p.format(duo=f'duo:plan="{gates}"') for p in policies if "{duo}" not in p or gates.exists()]
            results[model] = measure(model, policies, args.rounds, args.threads, bench)
            for row in results[model]["rows"]:
                row["name"] = row["name"].replace(f"{ROOT}/", "")
            kept.write_text(json.dumps(results, indent=1))
    report(results, args.threads)


if __name__ == "__main__":
    sys.exit(main())
