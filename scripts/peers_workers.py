"""Workers of peers.py that run in its virtual environment: the reference in double precision, PyTorch, ONNX Runtime and
OpenVINO. Each speaks the protocol of peers_worker.h and keeps what it loaded between calls.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

WORDS = ["batch", "heads", "kv_heads", "queries", "keys", "width", "type", "causal", "window", "copies", "threads",
         "folder"]
DIGITS = {"f32": 24, "f16": 11, "bf16": 8}  # bits of the significand


class Shape:
    def __init__(self, words):
        for name, word in zip(WORDS, words, strict=True):
            setattr(self, name, word if name in ("type", "folder") else int(word))

    def read(self, name):
        heads, tokens = (self.heads, self.queries) if name == "q" else (self.kv_heads, self.keys)
        values = np.fromfile(Path(self.folder) / f"{name}.f32", np.float32)
        return values.reshape(self.batch, heads, tokens, self.width)

    def write(self, name, values):
        np.ascontiguousarray(values, np.float32).tofile(Path(self.folder) / f"{name}.f32")

    def visible(self, queries=None):
        """Which keys each of the queries sees; None if all see all."""
        if not self.window and (not self.causal or self.queries == 1):
            return None
        rows = np.arange(self.queries) if queries is None else queries
        position, key = rows[:, None] + self.keys - self.queries, np.arange(self.keys)[None]
        seen = np.ones((len(rows), self.keys), bool)
        if self.causal:
            seen &= key <= position
        if self.window:
            seen &= position - key < self.window
        return seen


def rounded(values, kind):
    if kind == "f16":
        return values.astype(np.float16).astype(np.float32)
    if kind == "bf16":  # to nearest, ties to even
        bits = values.view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    return values


class Reference:
    """Makes the inputs when a shape is loaded; then checks results at up to 64 queries of every head."""

    def load(self, s):
        random = np.random.default_rng(1)
        for name, deviation in (("q", 2), ("k", 1), ("v", 1)):
            heads, tokens = (s.heads, s.queries) if name == "q" else (s.kv_heads, s.keys)
            s.write(name, rounded(random.normal(0, deviation, (s.batch, heads, tokens, s.width)).astype(np.float32),
                                  s.type))
        q, k, v = s.read("q"), s.read("k"), s.read("v")
        rows = np.unique(np.linspace(0, s.queries - 1, min(64, s.queries)).round().astype(int))
        seen = s.visible(rows)
        want = np.empty((s.batch, s.heads, len(rows), s.width))
        for b in range(s.batch):
            for h in range(s.heads):
                shared = h // (s.heads // s.kv_heads)
                scores = q[b, h, rows].astype(float) @ k[b, shared].astype(float).T / np.sqrt(s.width)
                if seen is not None:
                    scores[~seen] = -np.inf
                weights = np.exp(scores - scores.max(axis=1, keepdims=True))
                want[b, h] = weights / weights.sum(axis=1, keepdims=True) @ v[b, shared].astype(float)
        self.s, self.rows, self.want = s, rows, want

    def check(self):
        """The relative error, and the most that passes: half the digits of the type must be right."""
        out = np.fromfile(Path(self.s.folder) / "out.f32", np.float32)
        out = out.reshape(self.s.batch, self.s.heads, self.s.queries, self.s.width)[:, :, self.rows]
        error = float(np.linalg.norm(out - self.want) / np.linalg.norm(self.want))
        return {"error_of_result": error if np.isfinite(error) else 1e9, "limit": 2 ** (-DIGITS[self.s.type] / 2)}


def rotating(functions):
    """One call after another of the functions, each on its own copy."""
    turn = -1

    def call():
        nonlocal turn
        turn = (turn + 1) % len(functions)
        return functions[turn]()

    return call


class Torch:
    """PyTorch. kind: sdpa (scaled_dot_product_attention), flex (compiled FlexAttention), unfused (two products and a
    softmax)."""

    def __init__(self, kind):
        import torch
        self.torch, self.kind, self.version = torch, kind, torch.__version__
        torch.set_grad_enabled(False)

    def load(self, s):
        torch = self.torch
        torch.set_num_threads(s.threads)
        dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[s.type]
        q, k, v = (torch.from_numpy(s.read(n)).to(dtype) for n in "qkv")
        attend = getattr(self, self.kind)(s)
        call = rotating([lambda k=k.clone(), v=v.clone(): attend(q, k, v) for _ in range(s.copies)])
        s.write("out", call().float().numpy())
        return call

    def sdpa(self, s):
        attention = self.torch.nn.functional.scaled_dot_product_attention
        grouped, causal, mask = s.heads != s.kv_heads, bool(s.causal and s.queries > 1), None
        if s.window:
            causal, mask = False, self.torch.from_numpy(s.visible())
        return lambda q, k, v: attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)

    def flex(self, s):
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention
        mask = None
        if s.causal and s.queries > 1:
            last, window = s.keys - s.queries, s.window or s.keys
            mask = create_block_mask(lambda b, h, i, j: (j <= i + last) & (i + last - j < window), None, None,
                                     s.queries, s.keys, device="cpu")
        self.torch.compiler.reset()
        compiled = self.torch.compile(flex_attention, dynamic=False)
        return lambda q, k, v: compiled(q, k, v, block_mask=mask, enable_gqa=s.heads != s.kv_heads)

    def unfused(self, s):
        if s.causal or s.window or s.heads != s.kv_heads:
            raise ValueError("measured at unmasked shapes only")
        return lambda q, k, v: self.torch.softmax(q @ k.transpose(-1, -2) * s.width**-0.5, -1) @ v


class OnnxRuntime:
    """The operators that its exporters write: MultiHeadAttention for encoders, GroupQueryAttention with a cache that
    it updates in place for decoders."""

    def __init__(self, _):
        import onnxruntime
        self.ort, self.version = onnxruntime, onnxruntime.__version__

    def session(self, s, operator, inputs, outputs, **attributes):
        from onnx import TensorProto, helper
        kind = {"f32": TensorProto.FLOAT, "f16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[s.type]
        kinds = {"seqlens_k": TensorProto.INT32, "total_sequence_length": TensorProto.INT32}

        def info(name):
            return helper.make_tensor_value_info(name, kinds.get(name, kind), None)

        node = helper.make_node(operator, inputs, outputs, domain="com.microsoft", **attributes)
        graph = helper.make_graph([node], "attention", [info(n) for n in inputs], [info(n) for n in outputs])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17),
                                                        helper.make_opsetid("com.microsoft", 1)], ir_version=8)
        options = self.ort.SessionOptions()
        options.intra_op_num_threads = s.threads
        return self.ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def load(self, s):
        dtype = np.float16 if s.type == "f16" else np.float32
        arrays = {n: s.read(n).astype(dtype) for n in "qkv"}

        def packed(values):  # [B, H, T, D] -> [B, T, H * D]
            return np.ascontiguousarray(values.transpose(0, 2, 1, 3)).reshape(s.batch, values.shape[2], -1)

        value = self.ort.OrtValue.ortvalue_from_numpy
        bindings = []
        if s.causal:
            session = self.session(s, "GroupQueryAttention", ["query", "key", "value", "past_key", "past_value",
                                                              "seqlens_k", "total_sequence_length"],
                                   ["output", "present_key", "present_value"], num_heads=s.heads,
                                   kv_num_heads=s.kv_heads, local_window_size=s.window or -1)
            new = s.queries  # the last tokens of the cache are this call's
            given = {"query": packed(arrays["q"]), "key": packed(arrays["k"][:, :, -new:]),
                     "value": packed(arrays["v"][:, :, -new:]), "seqlens_k": np.full(s.batch, s.keys - 1, np.int32),
                     "total_sequence_length": np.array([s.keys], np.int32)}
            for _ in range(s.copies):
                binding = session.io_binding()
                for name, array in given.items():
                    binding.bind_ortvalue_input(name, value(array))
                binding.bind_output("output")
                for name, array in (("key", arrays["k"]), ("value", arrays["v"])):
                    cache = value(array.copy())
                    binding.bind_ortvalue_input("past_" + name, cache)
                    binding.bind_ortvalue_output("present_" + name, cache)
                bindings.append(binding)
        else:
            session = self.session(s, "MultiHeadAttention", ["query", "key", "value"], ["output"], num_heads=s.heads)
            for _ in range(s.copies):
                binding = session.io_binding()
                for name, n in (("query", "q"), ("key", "k"), ("value", "v")):
                    binding.bind_ortvalue_input(name, value(packed(arrays[n])))
                binding.bind_output("output")
                bindings.append(binding)
        call = rotating([lambda binding=b: session.run_with_iobinding(binding) for b in bindings])
        call()
        out = bindings[0].copy_outputs_to_cpu()[0].reshape(s.batch, s.queries, s.heads, s.width)
        s.write("out", out.transpose(0, 2, 1, 3))
        return call


class OpenVino:
    """ScaledDotProductAttention on the CPU plugin, in the type of the row; a decoding step in the stateful form that
    its exporters write, in which the plugin keeps the cache."""

    def __init__(self, _):
        import openvino
        self.ov, self.version = openvino, openvino.__version__.split("-")[0]

    def load(self, s):
        model = self.step(s) if s.queries == 1 else self.whole(s)
        compiled = self.ov.Core().compile_model(model, "CPU", {
            "INFERENCE_NUM_THREADS": s.threads, "INFERENCE_PRECISION_HINT": s.type, "KV_CACHE_PRECISION": s.type,
            "PERFORMANCE_HINT": "LATENCY"})
        arrays, requests = {n: s.read(n) for n in "qkv"}, []
        for _ in range(s.copies):
            request = compiled.create_infer_request()
            for state in request.query_state():
                state.state = self.tensor(arrays[state.name[-1]][:, :, :-1], s.type)
            for n in "qkv":
                request.set_tensor(n, self.tensor(arrays[n][:, :, -s.queries:], s.type))
            if s.queries == 1:
                request.set_tensor("beams", self.ov.Tensor(np.arange(s.batch, dtype=np.int32)))
            requests.append(request.infer)
        call = rotating(requests)
        s.write("out", list(call().values())[0])
        return call

    def whole(self, s):
        from openvino import opset13 as op
        inputs = [self.parameter(n, [s.batch, s.heads if n == "q" else s.kv_heads, s.queries if n == "q" else s.keys,
                                     s.width], s.type) for n in "qkv"]
        more = {"causal": bool(s.causal)}
        if s.window:
            more = {"causal": False, "attention_mask": op.constant(s.visible())}
        out = op.scaled_dot_product_attention(inputs[0], *(self.spread(s, x) for x in inputs[1:]), **more)
        return self.ov.Model([op.convert(out, "f32")], inputs, "attention")

    def step(self, s):
        from openvino import opset6, opset13 as op
        from openvino.op.util import Variable, VariableInfo
        q = self.parameter("q", [s.batch, s.heads, -1, s.width], s.type)
        beams = op.parameter([s.batch], self.ov.Type.i32, name="beams")
        beams.output(0).get_tensor().set_names({"beams"})
        inputs, cached, kept = [q], [], []
        for n in "kv":
            new = self.parameter(n, [s.batch, s.kv_heads, -1, s.width], s.type)
            info = VariableInfo()
            info.data_shape, info.data_type, info.variable_id = new.partial_shape, new.get_element_type(), "past_" + n
            variable = Variable(info)
            empty = op.convert(op.constant(np.zeros((s.batch, s.kv_heads, 0, s.width), np.float32)), s.type)
            past = op.gather(opset6.read_value(empty, variable), beams, op.constant(0, np.int64))
            both = op.concat([past, new], 2)
            kept.append(opset6.assign(both, variable))
            cached.append(self.spread(s, both))
            inputs.append(new)
        out = op.scaled_dot_product_attention(q, *cached, causal=False)
        return self.ov.Model([op.result(op.convert(out, "f32"))], kept, [*inputs, beams], "step")

    def parameter(self, name, shape, kind):
        from openvino import opset13 as op
        made = op.parameter(self.ov.PartialShape(shape), getattr(self.ov.Type, kind), name=name)
        made.output(0).get_tensor().set_names({name})
        return made

    def spread(self, s, x):
        """Each key head for its query heads, as exporters write it."""
        from openvino import opset13 as op
        group = s.heads // s.kv_heads
        if group == 1:
            return x
        x = op.unsqueeze(x, op.constant(2, np.int64))
        x = op.broadcast(x, op.constant([1, 1, group, 1, 1], np.int64), broadcast_spec="BIDIRECTIONAL")
        return op.reshape(x, op.constant([0, s.heads, -1, s.width], np.int64), True)

    def tensor(self, values, kind):
        if kind == "bf16":  # the upper half of an f32
            made = self.ov.Tensor(self.ov.Type.bf16, list(values.shape))
            made.data.view(np.uint16)[...] = np.ascontiguousarray(values).view(np.uint32) >> 16
            return made
        return self.ov.Tensor(np.ascontiguousarray(values, np.float16 if kind == "f16" else np.float32))


WORKERS = {"reference": lambda _: Reference(), "torch": Torch, "onnxruntime": OnnxRuntime, "openvino": OpenVino}


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer

    def answer(**values):
        print(json.dumps(values), file=answers, flush=True)

    try:
        worker = WORKERS[sys.argv[1]](sys.argv[2] if len(sys.argv) > 2 else "")
    except Exception as error:
        answer(error=f"{type(error).__name__}: {error}".splitlines()[0])
        return
    answer(ready=True, version=getattr(worker, "version", ""))
    call = None

    def seconds_of(calls):
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - begin) / calls

    for line in sys.stdin:
        words = line.split()
        try:
            if words[0] == "load":
                call = None  # frees what it holds first
                call = worker.load(Shape(words[1:]))
                answer(seconds=seconds_of(1) if call else 0)
            elif words[0] == "check":
                answer(**worker.check())
            else:
                calls = int(words[1])
                if calls > 1:
                    call()  # threads wake up before the clock starts
                answer(seconds=seconds_of(calls))
        except Exception as error:
            answer(error=(f"{type(error).__name__}: {error}".splitlines() or ["?"])[0][:300])


if __name__ == "__main__":
    main()
