#!/usr/bin/env python3
"""Records GGUF blocks with the values that the reference package `gguf` gives them, for tests/simd/dequantize_test.cpp.

    pip install gguf==0.19.0
    python3 scripts/record_quant_blocks.py tests/data/quant

For each type: <TYPE>.blocks, the bytes of the blocks, and <TYPE>.npy, their values as f32. The first blocks are edge
cases (all bits 0, all bits 1, alternating bits, largest, subnormal and negative scales), the rest random bits with finite
scales. Infinite and NaN scales are left out: NaN bits are not defined by the format.
"""
import pathlib
import sys

import numpy as np
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType as Type

# Offsets of the f16 scales in a block.
SCALES = {Type.F16: [0], Type.Q8_0: [0], Type.Q4_1: [0, 2], Type.Q5_0: [0], Type.Q4_K: [0, 2], Type.Q6_K: [208]}
EDGES = [0x0000, 0x8000, 0x0001, 0x83FF, 0x7BFF, 0xFBFF, 0x3C00, 0x0400]  # 0, -0, subnormal, largest, 1, smallest normal


def blocks_of(kind, count, random):
    size = GGML_QUANT_SIZES[kind][1]
    blocks = random.integers(0, 256, (count, size), dtype=np.uint8)
    blocks[0], blocks[1], blocks[2], blocks[3] = 0x00, 0xFF, 0xAA, 0x55
    for offset in SCALES.get(kind, []):
        scale = blocks[:, offset:offset + 2].copy().view(np.uint16)
        scale[(scale & 0x7C00) == 0x7C00] &= 0xBFFF  # finite
        for i in range(8 * len(EDGES)):
            scale[4 + i] = EDGES[i // 8 if offset != 2 else i % 8]
        blocks[:, offset:offset + 2] = scale.view(np.uint8)
    if kind == Type.BF16:
        exponent = blocks.view(np.uint16)
        exponent[(exponent & 0x7F80) == 0x7F80] &= 0xBFFF
    if kind == Type.F32:
        exponent = blocks.view(np.uint32)
        exponent[(exponent & 0x7F800000) == 0x7F800000] &= 0xBFFFFFFF
    return blocks


def main():
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for number, (kind, count) in enumerate({Type.F32: 256, Type.F16: 512, Type.BF16: 512, Type.Q8_0: 128, Type.Q4_1: 128,
                                            Type.Q5_0: 128, Type.Q4_K: 96, Type.Q6_K: 96}.items()):
        blocks = blocks_of(kind, count, np.random.default_rng(2024 + number))
        values = quants.dequantize(blocks, kind).astype(np.float32).reshape(-1)
        assert values.size == count * GGML_QUANT_SIZES[kind][0] and np.isfinite(values).all(), kind
        (folder / f"{kind.name}.blocks").write_bytes(blocks.tobytes())
        np.save(folder / f"{kind.name}.npy", values)


if __name__ == "__main__":
    main()
