#!/usr/bin/env bash
# The README's table of speed: each MODEL by `qat bench`, and GGUF files by llama.cpp's llama-bench in turn with it, ROUNDS times; medians, and the
# median of the rounds' ratios. Prefill of PROMPT tokens, decoding of TOKENS after 16.
# usage: [ROUNDS=5 PROMPT=128 TOKENS=32 THREADS=2] bench/speed_table.sh MODEL...
#   e.g. bench/speed_table.sh llama-1b-q4_0.gguf gemma4-e2b-q4_0.gguf gemma4-e2b-mobile/      (bench/make_model.sh, qat init --plan mobile)
# NO_MMAP=1: weights copied into memory by both. QAT_LLAMA_CPP: a folder with llama-bench; else the one that tests/interop/setup.sh installs.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,6p' "$0" >&2; exit 2; }
rounds=${ROUNDS:-5} prompt=${PROMPT:-128} tokens=${TOKENS:-32} threads=${THREADS:-2}
here=$(cd "$(dirname "$0")/.." && pwd)
qat=${QAT_BUILD:-$here/build}/qat
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

number() { sed -n "s/.*\"$1\": *\([0-9.eE+-]*\).*/\1/p" "$2"; }
median() { sort -g | awk '{ x[NR] = $1 } END { printf "%.6g", (x[int((NR + 1) / 2)] + x[int((NR + 2) / 2)]) / 2 }'; }
# The judges' threads sleep while they wait, which is right for tests; here they may have the machine.
llama_bench() {
  if [ -n "${QAT_LLAMA_CPP:-}" ]; then "$QAT_LLAMA_CPP/llama-bench" "$@"
  else OMP_WAIT_POLICY=active "$here/tests/interop/judge" llama-bench "$@"; fi
}
ours=() theirs=()
if [ "${NO_MMAP:-0}" = 1 ]; then  # llama-bench spells it in two ways
  help=$(llama_bench --help 2>&1)
  case $help in *--load-mode*) theirs=(-lm none) ;; *) theirs=(-mmp 0) ;; esac
  ours=(--no-mmap)
fi
llama_speed() {
  llama_bench -m "$1" -t "$threads" -dev none -ngl 0 -r 1 -o jsonl "${theirs[@]}" "${@:2}" >"$work/llama" 2>"$work/log" || { tail -n 5 "$work/log" >&2; exit 1; }
  number avg_ts "$work/llama"
}

printf '| file | prefill %d (tokens/s) | x llama.cpp | decode (tokens/s) | x llama.cpp | of read bandwidth | resident (MB) |\n|---|---|---|---|---|---|---|\n' "$prompt"
for model in "$@"; do
  rm -f "$work"/*.list
  for round in $(seq "$rounds"); do
    "$qat" bench "$model" --threads "$threads" --prompt "$prompt" --tokens "$tokens" --context 16 --repeat 1 --json "${ours[@]}" >"$work/qat" 2>"$work/log" ||
      { tail -n 5 "$work/log" >&2; exit 1; }
    for key in prefill_tokens_per_s decode_tokens_per_s read_bandwidth_share peak_rss_bytes; do number $key "$work/qat" >>"$work/$key.list"; done
    [ -f "$model" ] || continue
    prefill=$(llama_speed "$(realpath "$model")" -p "$prompt" -n 0)
    decode=$(llama_speed "$(realpath "$model")" -p 0 -n "$tokens" -d 16)
    awk -v a="$(number prefill_tokens_per_s "$work/qat")" -v b="$prefill" 'BEGIN { print a / b }' >>"$work/prefill_ratio.list"
    awk -v a="$(number decode_tokens_per_s "$work/qat")" -v b="$decode" 'BEGIN { print a / b }' >>"$work/decode_ratio.list"
  done
  ratio() { [ -f "$work/$1_ratio.list" ] && printf '%.2f' "$(median <"$work/$1_ratio.list")" || printf -- '-'; }
  printf '| %s | %.1f | %s | %.1f | %s | %.0f %% | %.0f |\n' "$(basename "$model")" "$(median <"$work/prefill_tokens_per_s.list")" "$(ratio prefill)" \
    "$(median <"$work/decode_tokens_per_s.list")" "$(ratio decode)" "$(awk -v x="$(median <"$work/read_bandwidth_share.list")" 'BEGIN { print 100 * x }')" \
    "$(awk -v x="$(median <"$work/peak_rss_bytes.list")" 'BEGIN { print x / 1e6 }')"
done
