#!/bin/bash
# Builds everything and runs all tests; the last line is "N passed, N failed".
set -uo pipefail
cd "$(dirname "$0")/.."
FUZZ_SECONDS=${FUZZ_SECONDS:-10}

stop() {
  echo "$1"
  echo "0 passed, 1 failed"
  exit 1
}

scripts/build.sh release || stop "test: the build failed"
for model in smollm2-135m gemma3-270m; do
  build/release/attend pull "$model" || stop "test: $model could not be obtained"
done

passed=0 failed=0
# Counts the tests of a ctest run by its summary line.
count() {
  local summary total bad
  summary=$(grep -E '[0-9]+ tests failed out of [0-9]+' "$1" | tail -n1)
  total=$(sed -E 's/.*out of ([0-9]+).*/\1/' <<<"$summary")
  bad=$(sed -E 's/.* ([0-9]+) tests failed.*/\1/' <<<"$summary")
  [ -n "$summary" ] || { total=1 bad=1; }
  passed=$((passed + total - bad))
  failed=$((failed + bad))
}

ctest --test-dir build/release -j 2 --output-on-failure --no-tests=error 2>&1 | tee build/ctest.log
count build/ctest.log

scripts/fuzz.sh "$FUZZ_SECONDS" 2>&1 | tee build/fuzzers.log
summary=$(tail -n1 build/fuzzers.log)
if [[ $summary =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed$ ]]; then
  passed=$((passed + BASH_REMATCH[1]))
  failed=$((failed + BASH_REMATCH[2]))
else
  failed=$((failed + 1))
fi

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
