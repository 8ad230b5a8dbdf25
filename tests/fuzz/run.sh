#!/usr/bin/env bash
# Fuzzes every parser: tests/fuzz/run.sh [SECONDS each, default 60 [SEED]]. What a run found stays in build-asan/corpus, so that
# the next goes on from there; an input that crashes is left in build-asan/crashes. Without a seed every run tries other
# inputs; with one (1 in .ci/run, from an empty corpus) the same ones in the same order, so that a change is judged by itself.
# Needs clang with libFuzzer.
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=${1:-60}
seed=${2:-0}  # libFuzzer: 0 is the clock
build=build-asan

cmake --preset asan-ubsan >/dev/null
targets=$(sed -n 's/^foreach(name \(.*\))$/\1/p' tests/fuzz/CMakeLists.txt)
# shellcheck disable=SC2086  # a list of words
cmake --build "$build" --target fuzz_seeds $(printf 'fuzz_%s ' $targets)
mkdir -p "$build/crashes"
"$build/fuzz_seeds" "$build/seeds"

fuzz_one() {
  local name=$1 log="$build/fuzz_$1.log"
  mkdir -p "$build/corpus/$name"
  if "$build/fuzz_$name" -max_total_time="$seconds" -seed="$seed" -timeout=10 -rss_limit_mb=2048 -max_len=32768 -print_final_stats=1 \
      -artifact_prefix="$build/crashes/$name-" "$build/corpus/$name" "$build/seeds/$name" >"$log" 2>&1; then
    printf '%-16s ok, %s inputs\n' "$name" "$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")"
  else
    printf '%-16s FAILED, see %s\n' "$name" "$log"
    tail -n 30 "$log"
    return 1
  fi
}
export -f fuzz_one
export build seconds seed
# shellcheck disable=SC2086
printf '%s\n' $targets | xargs -P "$(nproc)" -I{} bash -c 'fuzz_one {}'
