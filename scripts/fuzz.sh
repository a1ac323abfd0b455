#!/bin/bash
# fuzz.sh SECONDS: runs every fuzzer that long under ASan and UBSan; its last line is "N passed, N failed".
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-60}
scripts/build.sh fuzz fuzzers

passed=0 failed=0
for fuzzer in build/fuzz/fuzz/*_fuzzer; do
  name=$(basename "$fuzzer")
  corpus=build/fuzz/corpus/$name
  mkdir -p "$corpus"
  seeds=()
  [ -d "fuzz/seeds/$name" ] && seeds=("fuzz/seeds/$name")
  if "$fuzzer" "$corpus" "${seeds[@]}" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048 -malloc_limit_mb=64 -max_len=65536 \
    -artifact_prefix="build/fuzz/$name-" -print_final_stats=1 >"build/fuzz/$name.log" 2>&1 </dev/null; then
    passed=$((passed + 1))
    echo "fuzz: $name: $(awk '/number_of_executed_units/ {print $2}' "build/fuzz/$name.log") runs in $seconds s"
  else
    failed=$((failed + 1))
    tail -n 40 "build/fuzz/$name.log"
    echo "fuzz: $name failed (build/fuzz/$name.log)"
  fi
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
