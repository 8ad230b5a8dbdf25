#!/usr/bin/env bash
# Prefill and decode of one GGUF file by `qat bench` and by llama.cpp's llama-bench, by turns, since machines are noisy: the median of
# each program, and the median of the rounds' ratios. Both run on the processor, with a warm-up before what is measured.
# usage: bench/compare_llama_cpp.sh FILE.gguf [ROUNDS=5] [PROMPT=512] [TOKENS=64] [THREADS=2] [CONTEXT=0]
# CONTEXT positions are in the cache before decoding (0: as llama-bench does unless told otherwise).
# QAT_LLAMA_CPP: a folder with llama-bench; else the one that tests/interop/setup.sh installs.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,6p' "$0" >&2; exit 2; }
here=$(cd "$(dirname "$0")/.." && pwd)
model=$(realpath "$1") rounds=${2:-5} prompt=${3:-512} tokens=${4:-64} threads=${5:-2} context=${6:-0}
qat=${QAT_BUILD:-$here/build}/qat
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

llama_bench() {
  if [ -n "${QAT_LLAMA_CPP:-}" ]; then "$QAT_LLAMA_CPP/llama-bench" "$@"
  # The judges' threads sleep while they wait, which is right for tests; here they may have the machine.
  else OMP_WAIT_POLICY=active "$here/tests/interop/judge" llama-bench "$@"
  fi
}
number() {  # number KEY FILE: its values, from either program's JSON
  sed -n "s/.*\"$1\": *\([0-9.eE+-]*\).*/\1/p" "$2"
}
llama_speed() {  # llama_speed OPTION ...: tokens per second of one test
  llama_bench -m "$model" -t "$threads" -dev none -ngl 0 -r 1 -o jsonl "$@" >"$work/llama" 2>"$work/log" ||
    { tail -n 5 "$work/log" >&2; return 1; }
  number avg_ts "$work/llama"
}

printf '%-9s %12s %11s %16s %11s\n' tokens/s 'prefill: qat' llama.cpp 'decode: qat' llama.cpp
for round in $(seq "$rounds"); do
  "$qat" bench "$model" --threads "$threads" --prompt "$prompt" --tokens "$tokens" --context "$context" --repeat 1 --json \
    >"$work/qat" 2>"$work/log" || { cat "$work/log" >&2; exit 1; }
  prefill=$(llama_speed -p "$prompt" -n 0)
  decode=$(llama_speed -p 0 -n "$tokens" -d "$context")
  echo "$(number prefill_tokens_per_s "$work/qat") $prefill $(number decode_tokens_per_s "$work/qat") $decode $(number decode_gb_per_s \
    "$work/qat") $(number read_bandwidth_gb_per_s "$work/qat")" | tee -a "$work/rounds" |
    awk -v round="$round" '{ printf "round %-3d %12.1f %11.1f %16.1f %11.1f\n", round, $1, $2, $3, $4 }'
done

median() {  # median EXPRESSION: over the rounds, of an expression of the columns above
  awk "{ print $1 }" "$work/rounds" | sort -g | awk '{ x[NR] = $1 } END { print NR % 2 ? x[(NR + 1) / 2] : (x[NR / 2] + x[NR / 2 + 1]) / 2 }'
}
line() {  # line NAME COLUMN_OF_QAT COLUMN_OF_LLAMA_CPP
  printf '%-28s %10.1f %11.1f %18.3f\n' "$1" "$(median "\$$2")" "$(median "\$$3")" "$(median "\$$2 / \$$3")"
}
printf '\n%-28s %10s %11s %18s\n' "median of $rounds, tokens/s" qat llama.cpp 'qat / llama.cpp'
line "prefill, $prompt tokens" 1 2
line "decode, $tokens after $context" 3 4
printf 'qat decodes at %.1f GB/s of the %.1f GB/s that %d threads read; llama.cpp %s\n' "$(median '$5')" "$(median '$6')" "$threads" \
  "$(sed -n 's/.*"build_commit": *"\([^"]*\)".*"build_number": *\([0-9]*\).*/build \2 (\1)/p' "$work/llama")"
