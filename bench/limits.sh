#!/usr/bin/env bash
# What a model's speed depends on, by `qat bench` and `qat generate`, by turns, medians of the rounds' ratios: a long context against a short one,
# two threads against one, memory beside the model, and the time to a first token when the file is in the page cache.
# usage: [ROUNDS=5 LONG=4096 TOKENS=32 THREADS=2 KV=file] bench/limits.sh MODEL...        (KV: of qat bench --kv-cache)
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,4p' "$0" >&2; exit 2; }
rounds=${ROUNDS:-5} long=${LONG:-4096} tokens=${TOKENS:-32} threads=${THREADS:-2}
here=$(cd "$(dirname "$0")/.." && pwd)
qat=${QAT_BUILD:-$here/build}/qat
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

number() { sed -n "s/.*\"$1\": *\([0-9.eE+-]*\).*/\1/p" "$2"; }
bench() {
  "$qat" bench "$model" --tokens "$tokens" --kv-cache "${KV:-file}" --json "${@:2}" >"$work/$1" 2>"$work/log" || { tail -n 5 "$work/log" >&2; exit 1; }
}
note() { awk -v a="$2" -v b="$3" 'BEGIN { print a / b }' >>"$work/$1.list"; }  # note NAME A B: A / B of this round
median() { sort -g "$work/$1.list" | awk '{ x[NR] = $1 } END { printf "%.2f", (x[int((NR + 1) / 2)] + x[int((NR + 2) / 2)]) / 2 }'; }

for model in "$@"; do
  rm -f "$work"/*.list
  for round in $(seq "$rounds"); do
    bench near --threads "$threads" --prompt 64 --context 64 --repeat 1
    # Memory's speed drifts from one second to the next: by turns in one process, a short one on both sides of the long one
    bench far --threads "$threads" --prompt 64 --context "64,$long,64" --repeat 5
    number decode_tokens_per_s "$work/far" | awk 'NR > 1 { x[NR - 1] = $1 } END { print 2 * x[2] / (x[1] + x[3]) }' >>"$work/context.list"
    bench one --threads 1 --prompt 128 --context 64 --repeat 5
    bench two --threads 2 --prompt 128 --context 64 --repeat 5
    for what in prefill decode; do note "$what" "$(number ${what}_tokens_per_s "$work/two")" "$(number ${what}_tokens_per_s "$work/one")"; done
    began=$(date +%s%N)
    "$qat" generate "$model" --prompt "Once" --tokens 1 --threads "$threads" >/dev/null 2>&1
    note first "$(($(date +%s%N) - began))" 1000000000
  done
  printf '%s\n' "$model"
  printf '  decode after %d tokens / after 64        %s    (cache read per token: %s of %s bytes)\n' "$long" "$(median context)" \
    "$(number cache_bytes_per_token "$work/far" | sed -n 3p)" "$(number bytes_per_token "$work/far" | sed -n 3p)"
  printf '  2 threads / 1: prefill, decode           %s  %s\n' "$(median prefill)" "$(median decode)"
  printf '  process start to first token, seconds    %s\n' "$(median first)"
  printf '  resident beside the weights read, MB     %s    (peak %s, weights of a token %s)\n' "$(awk -v a="$(number peak_rss_bytes "$work/near")" \
    -v b="$(number weight_bytes_per_token "$work/near")" 'BEGIN { printf "%.1f", (a - b) / 1e6 }')" "$(number peak_rss_bytes "$work/near")" \
    "$(number weight_bytes_per_token "$work/near")"
done
