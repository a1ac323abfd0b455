#!/bin/bash
# Runs the tests of kernels, stores and parsers under ThreadSanitizer. GCC's OpenMP runtime is not instrumented and
# makes every parallel region look like a race; clang's tells the sanitizer of its barriers through libarcher.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/build.sh tsan

archer=$(ls /usr/lib/llvm-*/lib/libarcher.so 2>/dev/null | sort -V | tail -n1)
if [ -z "$archer" ]; then
  echo "tsan: libarcher.so is missing (Debian: libomp-dev)" >&2
  exit 1
fi
export OMP_TOOL_LIBRARIES=$archer OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}
export TSAN_OPTIONS="ignore_noninstrumented_modules=1 halt_on_error=1 ${TSAN_OPTIONS:-}"
ctest --test-dir build/tsan --output-on-failure -E "${TSAN_EXCLUDE:-Golden|golden|Conformance|install}"
