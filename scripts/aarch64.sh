#!/bin/bash
# aarch64.sh: cross-builds attend for AArch64 and checks it under qemu: instruction sets, conformance of every mechanism,
# unit tests of the rooms with kernels and of the models.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh aarch64
scripts/build.sh aarch64
qemu-aarch64 build/aarch64/attend isa
qemu-aarch64 build/aarch64/attend check
ctest --test-dir build/aarch64 -j 2 --output-on-failure --no-tests=error -L '^(tensor|simd|exact|kv|lm|install)$'
