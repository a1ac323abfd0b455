"""Compares attend with the ONNX reference on its attention cases.

usage: onnx_cases.py ATTEND OUT.md

ONNX's operator is translated into attend's ports and options:
  3-D inputs          heads are split off and moved before the tokens
  past_key, past_value are put before K and V
  attn_mask           port bias; true becomes 0, false -inf; missing columns are -inf
  is_causal           --causal; without a cache ONNX puts the first query on the first key: port q_positions
  nonpad_kv_seqlen    --kv-lens
  left_window_size    option window (which counts the query's own token)
  right_window_size   port bias, where it is not causal anyway
"""

import pathlib
import subprocess
import sys
import tempfile
import warnings

import numpy as np

warnings.filterwarnings("ignore")

from onnx.backend.test.case.node import collect_testcases  # noqa: E402

# Largest difference from the expected output, absolute plus relative. The reference computes in the input's own type.
TOLERANCES = {"float32": (1e-6, 1e-4), "float16": (2e-3, 2e-3), "bfloat16": (1.6e-2, 1.6e-2)}


def split_heads(x, heads):
    batch, tokens, width = x.shape
    return x.reshape(batch, tokens, heads, width // heads).transpose(0, 2, 1, 3)


def translate(case):
    """Arrays by port, options and flags of one case."""
    node = case.model.graph.node[0]
    attributes = {}
    for a in node.attribute:
        attributes[a.name] = a.f if a.type == 1 else a.i
    given = iter(case.data_sets[0][0])
    inputs = {}
    names = ["Q", "K", "V", "attn_mask", "past_key", "past_value", "nonpad_kv_seqlen"]
    for name, written in zip(names, node.input):
        if written:
            inputs[name] = np.asarray(next(given))
    q, k, v = inputs["Q"], inputs["K"], inputs["V"]
    if q.ndim == 3:
        q = split_heads(q, attributes["q_num_heads"])
        k = split_heads(k, attributes["kv_num_heads"])
        v = split_heads(v, attributes["kv_num_heads"])
    if "past_key" in inputs:
        k = np.concatenate([inputs["past_key"], k], axis=2)
        v = np.concatenate([inputs["past_value"], v], axis=2)
    queries, keys = q.shape[2], k.shape[2]
    arrays, options, flags = {"q": q, "k": k, "v": v}, [], []
    bias = None
    if "attn_mask" in inputs:
        mask = inputs["attn_mask"]
        bias = np.where(mask, 0.0, -np.inf) if mask.dtype == bool else mask.astype(np.float32)
        missing = keys - bias.shape[-1]
        if missing > 0:
            bias = np.pad(bias, [(0, 0)] * (bias.ndim - 1) + [(0, missing)], constant_values=-np.inf)
        bias = bias.astype(np.float32).reshape((1,) * (4 - bias.ndim) + bias.shape)
    causal = bool(attributes.get("is_causal", 0))
    left, right = attributes.get("left_window_size", -1), attributes.get("right_window_size", -1)
    nonpad = inputs.get("nonpad_kv_seqlen")
    if "past_key" in inputs:
        first = np.full(q.shape[0], inputs["past_key"].shape[2])
    elif nonpad is not None:
        first = nonpad - queries
    else:
        first = np.zeros(q.shape[0], np.int64)
    positions = (first[:, None] + np.arange(queries)[None, :]).astype(np.int32)
    if right >= 0 and not causal:
        hidden = np.arange(keys)[None, None, :] > positions[:, :, None] + right
        ahead = np.where(hidden, -np.inf, 0.0).astype(np.float32)[:, None]
        bias = ahead if bias is None else bias + ahead
    if bias is not None:
        arrays["bias"] = bias
    if nonpad is not None:
        arrays["kv_lens"] = nonpad.astype(np.int64)
    elif causal or left >= 0:
        arrays["q_positions"] = positions
    if causal:
        flags.append("--causal")
    if left >= 0:
        options.append(f"window={left + 1}")
    if attributes.get("softcap", 0):
        options.append(f"softcap={attributes['softcap']:.9g}")
    if "scale" in attributes:
        flags += ["--scale", f"{attributes['scale']:.9g}"]
    return arrays, options, flags


def save(path, x):
    if x.dtype.name == "bfloat16":
        x = x.view(np.uint16)
    np.save(path, np.ascontiguousarray(x))


def run(attend, case):
    """(outcome, error, note)."""
    arrays, options, flags = translate(case)
    expected = np.asarray(case.data_sets[0][1][0])
    absolute, relative = TOLERANCES[expected.dtype.name]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        command = [attend, "apply", "softmax" + (":" + ",".join(options) if options else ""), "-o", str(folder / "out.npy")]
        for name, array in arrays.items():
            save(folder / f"{name}.npy", array)
            command += ["--in", f"{name}={folder / name}.npy"]
        done = subprocess.run(command + flags, capture_output=True, text=True)
        if done.returncode != 0:
            return "failed", float("nan"), done.stderr.strip()
        got = np.load(folder / "out.npy")
    if expected.ndim == 3:
        got = got.transpose(0, 2, 1, 3).reshape(expected.shape)
    want = expected.astype(np.float64)
    error = np.abs(got - want)
    worst = float(error.max())
    if not np.all(error <= absolute + relative * np.abs(want)):
        return "failed", worst, f"beyond {absolute} + {relative} |y|"
    extra = "qk_matmul_output" in case.model.graph.node[0].output
    return "equal", worst, "Y; the scores themselves are no output of attend" if extra else ""


def main():
    attend, out = sys.argv[1], pathlib.Path(sys.argv[2])
    cases = [c for c in collect_testcases(None) if any(n.op_type == "Attention" for n in c.model.graph.node)]
    if not cases:
        sys.exit("onnx_cases: the package holds no attention cases")
    rows, counts = [], {"equal": 0, "partly": 0, "failed": 0}
    for case in cases:
        outcome, error, note = run(attend, case)
        counts["partly" if outcome == "equal" and note else outcome] += 1
        rows.append(f"| {case.name} | {case.data_sets[0][1][0].dtype.name} | {outcome} | {error:.1e} | {note} |")
        if outcome == "failed":
            print(f"{case.name}: {error:.3g} {note}")
    summary = (
        f"{len(cases)} cases: {counts['equal']} equal, {counts['partly']} equal in Y but with a further output that attend "
        f"does not give (the scores before or after softmax), {counts['failed']} failed."
    )
    lines = [
        "# The ONNX reference's attention cases",
        "",
        "Made by `make onnx-cases` (scripts/onnx_cases.py) with onnx 1.23.0: each case of the operator Attention runs through",
        "`attend apply softmax`, its ports translated as the script's head says. The reference computes in the type of its",
        "inputs, attend in f32, so f16 and bf16 cases differ by the rounding of their type.",
        "",
        summary,
        "",
        "| case | type | outcome | largest difference | note |",
        "| --- | --- | --- | --- | --- |",
        *rows,
    ]
    out.write_text("\n".join(lines) + "\n")
    print(summary)
    print(f"written: {out}")
    sys.exit(1 if counts["failed"] else 0)


if __name__ == "__main__":
    main()
