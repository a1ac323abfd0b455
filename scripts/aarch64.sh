#!/bin/bash
# aarch64.sh: cross-builds attend for AArch64 and checks it under qemu: instruction sets, conformance of some mechanisms
# that between them run every kernel (CHECK="name .." for others, CHECK= for all, which takes an hour), unit tests.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh aarch64
scripts/build.sh aarch64
qemu-aarch64 build/aarch64/attend isa
read -ra names <<<"${CHECK-softmax sigmoid mla lssar}"
# On a processor without int8 dot products, so that nothing beyond the baseline runs unnoticed; the tests have them.
QEMU_CPU=cortex-a72 qemu-aarch64 build/aarch64/attend check "${names[@]}"
# Left out: what measures resident memory, which is qemu's own there.
ctest --test-dir build/aarch64 -j 2 --output-on-failure --no-tests=error -L '^(tensor|simd|exact|kv)$' \
  -E 'VirtualStore.HoldsMemoryWhereKeysLie|OffloadedStore.KeepsLayersOnDisk|Stores.ComeAndGoWithoutGrowth'
