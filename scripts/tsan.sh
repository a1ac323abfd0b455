#!/bin/bash
# Runs the tests of the thread pool, kernels, stores and parsers under ThreadSanitizer (clang). The golden runs of whole
# models and conformance are left out: they take an hour there and share the same kernels.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/build.sh tsan
export TSAN_OPTIONS="halt_on_error=1 ${TSAN_OPTIONS:-}"
ctest --test-dir build/tsan --output-on-failure -E "${TSAN_EXCLUDE:-Golden|Conform|install|docs}"
