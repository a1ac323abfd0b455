#!/usr/bin/env python3
"""Compares attend with llama.cpp on the same models, files, threads and context lengths.

llama.cpp is built natively from the source that the package llama-cpp-python holds. Calls alternate between its
settings (with and without flash attention, which keys and values in q8_0 need) and attend: nine rounds, three where a
call takes over 20 s. A ratio is attend's figure over that of llama.cpp's best setting in the same round; it holds if its
lower quartile does.

Writes docs/performance.md (the part between its markers) and keeps every measurement in build/peers/measured.json. A run
over some models or kinds keeps the other rows as they were; each row names the commit that it was measured at.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tarfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "peers"
ATTEND = ROOT / "build" / "release" / "attend"
SDIST = "llama-cpp-python==0.3.36"
LICENCES = Path("/usr/share/common-licenses")
TEXTS = ["GPL-3", "GPL-2", "LGPL-2.1", "LGPL-3", "GFDL-1.3", "GFDL-1.2", "MPL-2.0", "MPL-1.1", "Apache-2.0", "Artistic"]
# GCC 12 takes the instruction that loads AMX's configuration for one that reads no memory, drops what was stored for it,
# and llama.cpp crashes.
KEEP_STORES = "-DCMAKE_CXX_FLAGS=-fno-tree-dse -fno-dse"
GENERATED = 32  # tokens of a decode measurement

# Tokens of the prompts that are read, and depths at which decoding is measured.
POINTS = {
    "smollm2-135m": {"prefill": [512, 2048, 8000], "decode": [0, 2048, 4096, 8000]},
    "gemma3-270m": {"prefill": [512, 2048, 8192, 16384, 30000], "decode": [0, 4096, 16384, 30000]},
}
CODECS = ["f16", "q8_0"]  # of keys and values
BEGIN, END = "<!-- models: begin -->", "<!-- models: end -->"


def say(text):
    print(text, file=sys.stderr, flush=True)


def build_llama(target="llama-bench"):
    """Builds a target of llama.cpp; the folder of its source and the folder that it is built in."""
    WORK.mkdir(parents=True, exist_ok=True)
    archives = list(WORK.glob("llama_cpp_python-*.tar.gz"))
    if not archives:
        say("peers: downloading the source of " + SDIST)
        subprocess.run(["pip", "download", "--quiet", "--no-deps", "--no-binary", "llama-cpp-python", "-d", WORK,
                        SDIST], check=True)
        archives = list(WORK.glob("llama_cpp_python-*.tar.gz"))
    source = WORK / "source"
    if not source.exists():
        with tarfile.open(archives[0]) as archive:
            archive.extractall(source)
    llama = next(source.glob("*/vendor/llama.cpp"))
    built = WORK / "llama"
    if not (built / "build.ninja").exists():
        say("peers: building llama.cpp (about ten minutes)")
    with open(WORK / "build.log", "w") as log:
        for command in (
            ["cmake", "-S", llama, "-B", built, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON",
             KEEP_STORES, "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_CURL=OFF", "-DLLAMA_OPENSSL=OFF", "-DLLAMA_BUILD_TESTS=OFF",
             "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_SERVER=OFF"],
            ["ninja", "-C", built, "-j2", target],
        ):
            if subprocess.run(["nice", *command], stdout=log, stderr=log).returncode:
                sys.exit(f"peers: building llama.cpp failed, see {WORK / 'build.log'}")
    return llama, built


def llama_bench():
    if os.environ.get("LLAMA_BENCH"):
        return Path(os.environ["LLAMA_BENCH"])
    binary = WORK / "llama" / "bin" / "llama-bench"
    if not binary.exists():
        build_llama()
    return binary


def call(command):
    """Runs a command; its JSON, wall seconds and peak resident bytes."""
    began = time.monotonic()
    process = subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                               stdin=subprocess.DEVNULL)
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began
    if status:
        sys.exit(f"peers: failed: {' '.join(str(c) for c in command)}")
    return json.loads(out), seconds, usage.ru_maxrss * 1024


def prompt_of(model, path, tokens):
    """A file whose text is about so many tokens, and how many it is."""
    file = WORK / f"prompt-{model}-{tokens}.txt"
    text = "\n".join((LICENCES / name).read_text() for name in TEXTS if (LICENCES / name).exists())

    def ids(content):
        done = subprocess.run([ATTEND, "tokenize", "-m", path, "--json"], input=content.encode(), capture_output=True,
                              check=True)
        return json.loads(done.stdout)["tokens"]

    if tokens <= 1:
        file.write_text("The")
        return file, len(ids("The"))
    low, high = 0, len(text)
    while high - low > 1:  # the longest prefix of at most so many tokens
        middle = (low + high) // 2
        if len(ids(text[:middle])) <= tokens:
            low = middle
        else:
            high = middle
        if high - low < 3:
            break
    file.write_text(text[:low])
    return file, len(ids(text[:low]))


class Point:
    def __init__(self, model, kind, tokens, codec, threads, bench):
        self.model, self.kind, self.tokens, self.codec = model, kind, tokens, codec
        self.threads, self.bench = threads, bench
        self.path = next(m["path"] for m in models() if m["name"] == model)
        self.prompt, self.actual = prompt_of(model, self.path, tokens)

    def llama(self, flash):
        command = [self.bench, "-m", self.path, "-t", self.threads, "-fa", flash, "-ctk", self.codec, "-ctv", self.codec,
                   "-r", 1, "-o", "json"]
        if self.kind == "prefill":
            command += ["-p", self.actual, "-n", 0]
        else:
            command += ["-p", 0, "-n", GENERATED, "-d", self.actual if self.tokens else 0]
        out, seconds, rss = call(command)
        return {"tps": out[0]["avg_ts"], "seconds": seconds, "rss": rss}

    def attend(self):
        out, seconds, rss = call([ATTEND, "run", "-m", self.path, "-f", self.prompt, "-n",
                                  1 if self.kind == "prefill" else GENERATED, "--temp", 0, "--ignore-eos", "--threads",
                                  self.threads, "--policy", self.codec, "--json"])
        return {"tps": out["prefill_tps" if self.kind == "prefill" else "decode_tps"], "seconds": seconds, "rss": rss}

    def measure(self, rounds):
        sides = {"flash": lambda: self.llama(1), "plain": lambda: self.llama(0), "attend": self.attend}
        if self.codec != "f16":
            del sides["plain"]
        samples = {side: [] for side in sides}
        done = 0
        while done < rounds:
            for side, run in sides.items():
                samples[side].append(run())
            done += 1
            if done == 1 and max(s[0]["seconds"] for s in samples.values()) > 20:
                rounds = min(rounds, 3)
        best = max(sides.keys() - {"attend"}, key=lambda s: statistics.median(x["tps"] for x in samples[s]))
        ratios = [a["tps"] / b["tps"] for a, b in zip(samples["attend"], samples[best])]
        return {"model": self.model, "kind": self.kind, "tokens": self.tokens, "actual": self.actual,
                "codec": self.codec, "best": best,
                "ratio": quartiles(ratios), "rounds": rounds,
                **{s: {"tps": quartiles([x["tps"] for x in v]), "rss": statistics.median(x["rss"] for x in v)}
                   for s, v in samples.items()}}


def models():
    return json.loads(subprocess.run([ATTEND, "models", "--json"], capture_output=True, check=True).stdout)


def quartiles(values):
    if len(values) == 1:
        return [values[0]] * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return [low, middle, high]


def load_times(model, bench, threads, rounds):
    path = next(m["path"] for m in models() if m["name"] == model)
    seconds = {"llama.cpp": [], "attend": []}
    for _ in range(rounds):
        seconds["llama.cpp"].append(
            call([bench, "-m", path, "-t", threads, "-p", 1, "-n", 0, "-r", 1, "--no-warmup", "-o", "json"])[1])
        seconds["attend"].append(
            call([ATTEND, "run", "-m", path, "-p", "The", "-n", 1, "--temp", 0, "--threads", threads, "--json"])[1])
    return {"model": model, "kind": "load", **{k: quartiles(v) for k, v in seconds.items()}}


def cpu_name():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def commit():
    return subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()


def report(results, threads, page):
    def span(q, digits):
        return f"{q[1]:.{digits}f} ({q[0]:.{digits}f}-{q[2]:.{digits}f})"

    isa = json.loads(subprocess.run([ATTEND, "isa", "--json"], capture_output=True, check=True).stdout)
    active = next((i["name"] for i in (isa if isinstance(isa, list) else isa.get("isas", [])) if i.get("active")), "?")
    lines = [BEGIN, "## Models, beside llama.cpp", "",
             f"`make peers-model`, on {cpu_name()} ({os.cpu_count()} cores), {threads} threads, instruction set {active}, "
             f"llama.cpp as packaged in {SDIST}. Tokens/s, median (quartiles) of alternated "
             "calls; the ratio is attend over llama.cpp's best setting of that row, round by round. Memory is the peak "
             "resident size of the whole process, in MiB.", ""]
    for model in POINTS:
        rows = [r for r in results if r["model"] == model and r["kind"] != "load"]
        if not rows:
            continue
        lines += [f"### {model}", "",
                  "| what | tokens | KV | rounds | llama.cpp, flash attention | llama.cpp, without | attend | ratio | "
                  "MiB, llama.cpp's best | MiB, attend | commit |",
                  "|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---|"]
        for r in rows:
            digits = 0 if r["attend"]["tps"][1] >= 100 else 1
            lines.append(f"| {'prefill' if r['kind'] == 'prefill' else 'decode at depth'} | {r['actual'] if r['tokens'] else 0} "
                         f"| {r['codec']} | {r['rounds']} | {span(r['flash']['tps'], digits)} "
                         f"| {span(r['plain']['tps'], digits) if 'plain' in r else ''} "
                         f"| {span(r['attend']['tps'], digits)} | {span(r['ratio'], 2)} "
                         f"| {r[r['best']]['rss'] / 2**20:.0f} | {r['attend']['rss'] / 2**20:.0f} | {r['commit']} |")
        load = next((r for r in results if r["model"] == model and r["kind"] == "load"), None)
        if load:
            lines += ["", f"Loading and one token, seconds: llama.cpp {span(load['llama.cpp'], 2)}, "
                          f"attend {span(load['attend'], 2)}."]
        lines.append("")
    lines.append(END)
    text = page.read_text() if page.exists() else "# Performance\n\n" + BEGIN + "\n" + END + "\n"
    if BEGIN not in text:
        text += "\n" + BEGIN + "\n" + END + "\n"
    page.write_text(text[:text.index(BEGIN)] + "\n".join(lines) + text[text.index(END) + len(END):])


def key(row):
    return row["model"], row["kind"], row.get("tokens", 0), row.get("codec", CODECS[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--most", type=int, default=1 << 20, help="longest prompt in tokens")
    parser.add_argument("--model", choices=list(POINTS), help="only this one")
    parser.add_argument("--kind", choices=["load", "prefill", "decode"], help="only rows of this kind")
    parser.add_argument("--codec", choices=CODECS, help="only rows with keys and values of this type")
    parser.add_argument("--least", type=int, default=0, help="shortest prompt in tokens")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "performance.md", help="the page that is written")
    args = parser.parse_args()

    bench = llama_bench()
    kept = WORK / "measured.json"
    WORK.mkdir(parents=True, exist_ok=True)
    earlier = json.loads(kept.read_text()) if kept.exists() else []
    results = {key(r): r for r in earlier}

    def keep(row):
        results[key(row)] = row | {"commit": commit()}
        kept.write_text(json.dumps(list(results.values()), indent=1))

    for model, kinds in POINTS.items():
        if args.model and model != args.model:
            continue
        subprocess.run([ATTEND, "pull", model], check=True, stdout=subprocess.DEVNULL)
        if args.kind in (None, "load"):
            keep(load_times(model, bench, args.threads, args.rounds))
        for kind, sizes in kinds.items():
            for tokens in sizes:
                if not args.least <= tokens <= args.most or args.kind not in (None, kind):
                    continue
                for codec in [args.codec] if args.codec else CODECS:
                    r = Point(model, kind, tokens, codec, args.threads, bench).measure(args.rounds)
                    keep(r)
                    say(f"peers: {model} {kind} {tokens} {codec}: llama.cpp {r[r['best']]['tps'][1]:.1f} ({r['best']}), "
                        f"attend {r['attend']['tps'][1]:.1f} tokens/s, ratio {r['ratio'][1]:.2f}")
    order = {place: i for i, place in enumerate(
        (model, kind, tokens, codec) for model, kinds in POINTS.items()
        for kind, sizes in [("load", [0]), *kinds.items()] for tokens in sizes for codec in CODECS)}
    results = sorted((r for k, r in results.items() if k in order), key=lambda r: order[key(r)])
    report(results, args.threads, args.page)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
