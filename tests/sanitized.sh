#!/usr/bin/env bash
# The tests of everything but the trainer under AddressSanitizer and UndefinedBehaviorSanitizer, one process a core.
# usage: tests/sanitized.sh. Needs clang (cmake/setup.sh --fuzz). Logs are in build-asan/.
set -euo pipefail
cd "$(dirname "$0")/.."
build=build-asan
tests=(test_cli test_inference test_format export_test test_recipe)

cmake --preset asan-ubsan >/dev/null
cmake --build "$build" --target "${tests[@]}"

# A test program's tests are dealt to so many processes; the program that takes longest begins.
shards=4
run_shard() {
  local log=$build/$1.$2.log
  if GTEST_TOTAL_SHARDS=$shards GTEST_SHARD_INDEX=$2 "$build/$1" --gtest_brief=1 >"$log" 2>&1; then
    grep -hE '^\[==========\]' "$log" | sed "s/^/$1 /"
  else
    printf '%s FAILED, see %s\n' "$1" "$log"
    grep -v -e Skipped -e 'does not run' "$log" | tail -n 60
    return 1
  fi
}
export -f run_shard
export build shards
for test in "${tests[@]}"; do
  for ((i = 0; i < shards; ++i)); do echo "$test $i"; done
done | xargs -P "$(nproc)" -L1 bash -c 'run_shard "$0" "$1"'
