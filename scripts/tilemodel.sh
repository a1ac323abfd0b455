#!/bin/bash
# tilemodel.sh: builds attend with AMX's tiles in software and checks what runs on them, on a machine with AVX512_BF16
# (attend isa says why not elsewhere): conformance of softmax, unit tests of kernels.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/build.sh tilemodel attend test_simd test_exact
ATTEND_ISA=amx build/tilemodel/attend isa >/dev/null
build/tilemodel/attend check softmax
build/tilemodel/tests/test_simd --gtest_brief=1
build/tilemodel/tests/test_exact --gtest_brief=1 --gtest_filter='*amx*:Amx*:Tiles*'
