#!/usr/bin/env python3
"""Compares attend's kernels with PyTorch, ONNX Runtime, OpenVINO and llama.cpp's ggml at the same shapes.

Each library runs in a process of its own that keeps its tensors and times calls when asked; the others then sleep.
Every result is first checked against a reference in double precision: what is wrong gets no time. Then a peer and
attend alternate: nine pairs, three where a call takes over 20 s. A ratio is the peer's time over attend's in the same
pair; it holds if its lower quartile does.

Installs the peers into build/peers/venv, writes the part of docs/performance.md between its markers and a chart beside
it, and keeps every measurement in build/peers/kernels.json.
"""

import argparse
import functools
import json
import os
import resource
import select
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from peers_model import ATTEND, ROOT, SDIST, WORK, build_llama, commit, quartiles, say
from peers_report import report

SCRIPTS = ROOT / "scripts"
VENV = WORK / "venv"
PYTHON = VENV / "bin" / "python"
DATA = WORK / "data"
KEPT = WORK / "kernels.json"
DISK = 8 << 30  # what the peers need

# PyPI's torch is built for CUDA: it runs on a CPU, but wants these libraries to be there when it is imported.
TORCH_NEEDS = ["cuda-toolkit[cublas,cudart,cufft,cufile,cupti,cusparse,nvrtc]==13.2.2", "nvidia-cudnn-cu13==9.26.0.51",
               "nvidia-cusparselt-cu13==0.8.1", "nvidia-nccl-cu13==2.30.7", "nvidia-nvshmem-cu13==3.7.2", "filelock",
               "typing-extensions>=4.13", "setuptools>=77.0.3", "sympy>=1.13.3", "networkx", "jinja2", "fsspec"]
PACKAGES = {  # one pip call a list
    "numpy": [["numpy==2.4.6"]],
    "torch": [["--no-deps", "torch==2.15.0"], TORCH_NEEDS],
    "onnxruntime": [["onnxruntime==1.31.1", "onnx==1.23.2"]],
    "openvino": [["openvino==2026.4.1"]],
}
REST = 0.05  # seconds between calls: worker threads of PyTorch, ggml and ONNX Runtime spin for a while after one
BURST = 0.05  # short calls are timed several at once, for at least so many seconds


@dataclass
class Row:
    name: str  # of attend bench
    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    width: int
    type: str = "f32"
    causal: bool = True
    window: int = 0

    @property
    def decode(self):
        return self.queries == 1

    @property
    def flops(self):
        pairs = 0
        for i in range(self.queries):
            seen = i + self.keys - self.queries + 1 if self.causal else self.keys
            pairs += min(seen, self.window) if self.window else seen
        return 4 * self.width * pairs * self.heads * self.batch

    @property
    def bytes(self):
        return 2 * self.batch * self.kv_heads * self.keys * self.width * (4 if self.type == "f32" else 2)

    @property
    def copies(self):
        """Keys and values that calls rotate over, as in attend bench: those of a decoding step come from memory."""
        return 2 + int(2 * last_cache_bytes() / self.bytes) if self.decode else 1

    def words(self, threads):
        return " ".join(str(w) for w in (self.batch, self.heads, self.kv_heads, self.queries, self.keys, self.width,
                                         self.type, int(self.causal), self.window, self.copies, threads, DATA))


ROWS = [
    Row("exact/prefill-f32-causal-d64", 1, 8, 8, 2048, 2048, 64),
    Row("exact/prefill-f32-causal-d128", 1, 8, 8, 2048, 2048, 128),
    Row("exact/prefill-f32-full-d64", 1, 8, 8, 2048, 2048, 64, causal=False),
    Row("exact/prefill-f32-full-d128", 1, 8, 8, 2048, 2048, 128, causal=False),
    Row("exact/prefill-f32-causal-8x2-4k-d128", 1, 8, 2, 4096, 4096, 128),
    Row("exact/prefill-f16-causal-d128", 1, 8, 8, 2048, 2048, 128, "f16"),
    Row("exact/prefill-bf16-causal-d64", 1, 8, 8, 2048, 2048, 64, "bf16"),
    Row("exact/prefill-bf16-causal-d128", 1, 8, 8, 2048, 2048, 128, "bf16"),
    Row("exact/prefill-bf16-full-d64", 1, 8, 8, 2048, 2048, 64, "bf16", causal=False),
    Row("exact/prefill-bf16-full-d128", 1, 8, 8, 2048, 2048, 128, "bf16", causal=False),
    Row("exact/window256-f32", 1, 8, 8, 8192, 8192, 64, window=256),
    Row("exact/short-t16", 32, 12, 12, 16, 16, 64, causal=False),
    Row("exact/short-t64", 32, 12, 12, 64, 64, 64, causal=False),
    Row("exact/short-t256", 32, 12, 12, 256, 256, 64, causal=False),
    Row("exact/decode-f16-8x2-32k", 1, 8, 2, 1, 32768, 128, "f16"),
    Row("exact/decode-bf16-8x2-32k", 1, 8, 2, 1, 32768, 128, "bf16"),
    Row("exact/decode-f16-8x8-32k", 1, 8, 8, 1, 32768, 64, "f16"),
    Row("exact/decode-f16-32x8-8k", 1, 32, 8, 1, 8192, 128, "f16"),
]


@dataclass
class Side:
    name: str
    package: str = ""  # of PACKAGES; empty: built here
    arguments: list = field(default_factory=list)
    only: str = ""  # rows whose name holds this
    preload: bool = False
    process: "Worker | None" = None
    gap: str = ""
    version: str = ""

    @property
    def product(self):
        return {"torch": "PyTorch", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}.get(self.package, "ggml of")


@functools.cache
def last_cache_bytes():
    sizes = [subprocess.run(["getconf", f"LEVEL{level}_CACHE_SIZE"], capture_output=True, text=True).stdout.strip()
             for level in (2, 3)]
    return max(8 << 20, *(int(s) for s in sizes if s.isdigit()))


class Worker:
    """A process that answers a line with a line of JSON; what goes wrong becomes {"error": why}."""

    def __init__(self, command, environment):
        self.command, self.environment, self.process = command, environment, None

    def start(self):
        log = open(WORK / "workers.log", "a")
        self.process = subprocess.Popen([str(c) for c in self.command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=log, env={**os.environ, **self.environment})
        return self.answer()

    def ask(self, line):
        if self.process is None:
            self.start()
        try:
            self.process.stdin.write((line + "\n").encode())
            self.process.stdin.flush()
        except OSError:
            pass  # it is gone: answer() says so
        return self.answer()

    def answer(self, seconds=900):
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        line = self.process.stdout.readline() if ready else b""
        if line:
            return json.loads(line)
        self.stop()
        return {"error": "the process died" if ready else f"no answer in {seconds} s"}

    def stop(self):
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None


def run(command, log):
    with open(WORK / log, "a") as file:
        return subprocess.run([str(c) for c in command], stdout=file, stderr=subprocess.STDOUT).returncode


def install(package):
    """Installs one of PACKAGES; why it can't, or nothing."""
    mark = VENV / f"{package}.installed"
    if mark.exists() and mark.read_text() == json.dumps(PACKAGES[package]):
        return ""
    free = shutil.disk_usage(WORK).free
    if free < DISK:
        sys.exit(f"peers: {free / 2**30:.1f} GiB of disk are free, the peers need {DISK >> 30}")
    if not PYTHON.exists() and run([sys.executable, "-m", "venv", VENV], "build.log"):
        sys.exit(f"peers: can't make a virtual environment (Debian: python3-venv), see {WORK / 'build.log'}")
    say(f"peers: installing {package}")
    for packages in PACKAGES[package]:
        done = subprocess.run([PYTHON, "-m", "pip", "install", "--quiet", "--no-cache-dir", *packages],
                              capture_output=True, text=True)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            return (errors or ["pip failed"])[-1].removeprefix("ERROR: ")
    mark.write_text(json.dumps(PACKAGES[package]))
    return ""


def build_ggml():
    llama, built = build_llama("ggml")
    libraries = [built / "ggml" / "src" / f"lib{name}.a" for name in ("ggml", "ggml-cpu", "ggml-base")]
    binary = WORK / "peers_ggml"
    if run(["g++", "-std=c++20", "-O2", "-fopenmp", "-I", llama / "ggml" / "include", SCRIPTS / "peers_ggml.cpp", "-o",
            binary, *libraries, "-lpthread", "-ldl"], "build.log"):
        return None, "compiling peers_ggml.cpp failed, see build.log"
    return binary, ""


def build_attend():
    """A program that links the installed library, as a user's would."""
    folder = WORK / "attend"
    (folder / "source").mkdir(parents=True, exist_ok=True)
    (folder / "source" / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.25)\nproject(peers_attend LANGUAGES CXX)\nfind_package(attend REQUIRED)\n"
        f"add_executable(peers_attend {SCRIPTS}/peers_attend.cpp)\n"
        "target_link_libraries(peers_attend PRIVATE attend::attend)\n")
    for command in (["cmake", "--install", ROOT / "build" / "release", "--prefix", folder / "prefix"],
                    ["cmake", "-S", folder / "source", "-B", folder / "build", "-DCMAKE_BUILD_TYPE=Release",
                     f"-DCMAKE_PREFIX_PATH={folder / 'prefix'}"],
                    ["cmake", "--build", folder / "build"]):
        if run(command, "build.log"):
            sys.exit(f"peers: building the attend worker failed, see {WORK / 'build.log'}")
    return folder / "build" / "peers_attend"


def build_preload():
    """MKL, which PyTorch's wheel holds, asks these whether the CPU is Intel's and else takes its oldest code."""
    source, library = WORK / "mkl.c", WORK / "libmkl.so"
    source.write_text("int mkl_serv_intel_cpu_true(void) { return 1; }\nint mkl_serv_intel_cpu(void) { return 1; }\n")
    return library if run(["cc", "-shared", "-fPIC", "-O2", source, "-o", library], "build.log") == 0 else None


def sides(threads, wanted):
    other = "AuthenticAMD" in Path("/proc/cpuinfo").read_text()  # than the CPUs that MKL knows
    mkl = ", MKL preloaded" if other else ""
    found = [
        Side("PyTorch SDPA", "torch", ["torch", "sdpa"]),
        *([Side("PyTorch SDPA" + mkl, "torch", ["torch", "sdpa"], preload=True)] if other else []),
        Side("FlexAttention, compiled" + mkl, "torch", ["torch", "flex"], preload=other),
        Side("PyTorch products and softmax" + mkl, "torch", ["torch", "unfused"], only="short", preload=other),
        Side("ONNX Runtime", "onnxruntime", ["onnxruntime"]),
        Side("OpenVINO", "openvino", ["openvino"]),
        Side("ggml flash_attn_ext"),
    ]
    found = [s for s in found if wanted.lower() in s.name.lower()]
    environment = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads),
                   "TORCHINDUCTOR_CACHE_DIR": str(WORK / "inductor")}
    gaps = {package: install(package) for package in dict.fromkeys(["numpy", *(s.package for s in found if s.package)])}
    if gaps["numpy"]:
        sys.exit("peers: the reference needs numpy, which can't be installed: " + gaps["numpy"])
    for s in found:
        more = {}
        if s.package:
            s.gap = gaps[s.package]
            command = [PYTHON, SCRIPTS / "peers_workers.py", *s.arguments]
        else:
            binary, s.gap = build_ggml()
            command, s.version = [binary], SDIST
        if s.preload:
            library = build_preload()
            more, s.gap = {"LD_PRELOAD": str(library)}, s.gap or ("" if library else "no C compiler")
        if s.gap:
            continue
        s.process = Worker(command, {**environment, **more})
        first = s.process.start()
        s.gap, s.version = first.get("error", ""), first.get("version", "") or s.version
    attend = Side("attend", process=Worker([build_attend()], {}))
    return attend, found, Worker([PYTHON, SCRIPTS / "peers_workers.py", "reference"], environment)


def load(side, row, threads, reference):
    """Loads a shape and checks the result: {"calls": of a timing} or {"gap": why not}."""
    if side.gap:
        return {"gap": "not installed: " + side.gap}
    (DATA / "out.f32").unlink(missing_ok=True)
    answer = side.process.ask("load " + row.words(threads))
    if "error" in answer:
        return {"gap": "does not run: " + answer["error"]}
    checked = reference.ask("check")
    if "error" in checked:
        return {"gap": "result can't be checked: " + checked["error"]}
    result = {"error": checked["error_of_result"]}
    if result["error"] > checked["limit"]:
        return {**result, "gap": f"wrong: relative error {result['error']:.2g}, {checked['limit']:.2g} allowed"}
    once = answer["seconds"]
    for calls in (4 if row.decode else 1, 1):  # the first calls over each copy allocate
        time.sleep(REST)
        if once < 5:
            answer = side.process.ask(f"time {calls * row.copies}")
        if "error" in answer:
            return {**result, "gap": "does not run: " + answer["error"]}
        once = answer["seconds"]
    return {**result, "once": once, "calls": max(1, round(BURST / once))}


def measure(row, attend, peers, reference, threads, rounds):
    say(f"peers: {row.name}")
    answer = reference.ask("load " + row.words(threads))
    if "error" in answer:
        sys.exit("peers: the reference failed: " + answer["error"])
    own = load(attend, row, threads, reference)
    if "gap" in own:
        sys.exit(f"peers: attend at {row.name}: {own['gap']}")
    loaded = [(p, load(p, row, threads, reference)) for p in peers if p.only in row.name]
    running = [(p, got, [], []) for p, got in loaded if "gap" not in got]

    def seconds(side, calls):
        time.sleep(REST)
        answer = side.process.ask(f"time {calls}")
        if "error" in answer and side is attend:
            sys.exit(f"peers: attend at {row.name}: {answer['error']}")
        return answer.get("seconds") or answer["error"]

    samples = []
    for i in range(rounds):
        for peer, got, times, ratios in running:
            if "gap" in got or (got["once"] > 20 and i >= 3):
                continue
            order = [(attend, own), (peer, got)]
            taken = {side.name: seconds(side, what["calls"]) for side, what in (order if i % 2 == 0 else order[::-1])}
            samples.append(taken["attend"])
            if isinstance(taken[peer.name], str):
                got["gap"] = "stopped: " + taken[peer.name]
                continue
            times.append(taken[peer.name])
            ratios.append(taken[peer.name] / taken["attend"])
    if not running:
        samples = [seconds(attend, own["calls"]) for _ in range(rounds)]
    lines = [{"side": "attend", "seconds": quartiles(samples), "pairs": len(samples), "samples": samples,
              "error": own["error"]}]
    for peer, got in loaded:
        line = {"side": peer.name, **{k: got[k] for k in ("error", "gap") if k in got}}
        for p, _, times, ratios in running:
            if p is peer and "gap" not in got:
                line |= {"seconds": quartiles(times), "ratio": quartiles(ratios), "pairs": len(times), "samples": times,
                         "ratios": ratios}
                say(f"peers:   {peer.name}: {line['ratio'][1]:.2f} times attend's time ({line['ratio'][0]:.2f}-"
                    f"{line['ratio'][2]:.2f})")
        if "gap" in got:
            say(f"peers:   {peer.name}: {got['gap']}")
        lines.append(line)
    return {"name": row.name, "type": row.type, "decode": row.decode, "flops": row.flops, "bytes": row.bytes,
            "shape": [row.batch, row.heads, row.kv_heads, row.queries, row.keys, row.width], "lines": lines,
            "mask": f"window {row.window}" if row.window else "causal" if row.causal else "full"}


def limits(row, threads):
    """What attend bench says of the row: its machine, and the row's share of that machine's limit."""
    done = subprocess.run([ATTEND, "bench", row.name, "--threads", str(threads), "--json"], capture_output=True)
    if done.returncode:
        return {}, None
    out = json.loads(done.stdout)
    own = next((r for r in out["rows"] if r["name"] == row.name), {})
    return out["machine"], {k: own[k] for k in ("limit_share", "limit_share_quartiles", "ms") if k in own}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=int, default=9, help="pairs of a peer and attend")
    parser.add_argument("--row", default="", help="only rows whose name holds this; the others stay as measured before")
    parser.add_argument("--peer", default="", help="only peers whose name holds this; keeps and writes nothing")
    parser.add_argument("--report", action="store_true", help="measure nothing, write the page from what is kept")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "performance.md", help="the page that is written")
    args = parser.parse_args()

    WORK.mkdir(parents=True, exist_ok=True)
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {"rows": {}}
    if not args.report:
        DATA.mkdir(exist_ok=True)
        attend, peers, reference = sides(args.threads, args.peer)
        kept["threads"] = args.threads
        kept["versions"] = kept.get("versions", {}) | {p.product: p.version for p in peers if p.version}
        for row in ROWS:
            if args.row not in row.name:
                continue
            result = measure(row, attend, peers, reference, args.threads, args.rounds)
            machine, result["limit"] = limits(row, args.threads)
            kept["machine"] = machine or kept.get("machine", {})
            kept["rows"][row.name] = result | {"commit": commit()}
            if not args.peer:
                KEPT.write_text(json.dumps(kept, indent=1))
        for side in [attend, *peers]:
            if side.process:
                side.process.stop()
        reference.stop()
        shutil.rmtree(DATA)
    if not args.peer:
        report(kept, [row.name for row in ROWS], args.page)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
