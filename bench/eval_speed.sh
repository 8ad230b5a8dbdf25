#!/usr/bin/env bash
# `qat eval` and llama-perplexity on the same GGUF file and text, by turns: seconds of the whole process, tokens per second, and the perplexities.
# usage: [ROUNDS=5 CONTEXT=512 THREADS=2] bench/eval_speed.sh MODEL.gguf TEXT
# QAT_LLAMA_CPP: a folder with llama-perplexity; else the one that tests/interop/setup.sh installs.
set -euo pipefail
[ $# = 2 ] || { sed -n '2,4p' "$0" >&2; exit 2; }
model=$(realpath "$1") text=$(realpath "$2") rounds=${ROUNDS:-5} context=${CONTEXT:-512} threads=${THREADS:-2}
here=$(cd "$(dirname "$0")/.." && pwd)
qat=${QAT_BUILD:-$here/build}/qat
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

llama_perplexity() {
  if [ -n "${QAT_LLAMA_CPP:-}" ]; then "$QAT_LLAMA_CPP/llama-perplexity" "$@"
  # The judges' threads sleep while they wait, which is right for tests; here they may have the machine.
  else OMP_WAIT_POLICY=active "$here/tests/interop/judge" llama-perplexity "$@"; fi
}
seconds() {  # seconds COMMAND...: of the wall, to three places
  local began
  began=$(date +%s%N)
  "$@" >"$work/out" 2>&1 || { tail -n 5 "$work/out" >&2; return 1; }
  awk -v ns="$(($(date +%s%N) - began))" 'BEGIN { printf "%.3f\n", ns / 1e9 }'
}

for round in $(seq "$rounds"); do
  ours=$(seconds "$qat" eval "$model" --text "$text" --context "$context" --threads "$threads" --json)
  cp "$work/out" "$work/qat"
  theirs=$(seconds llama_perplexity -m "$model" -f "$text" -c "$context" -t "$threads" -dev none -ngl 0)
  cp "$work/out" "$work/llama"
  printf 'round %d: qat eval %s s, llama-perplexity %s s\n' "$round" "$ours" "$theirs" >&2
  echo "$ours $theirs" >>"$work/rounds"
done
tokens=$(sed -n 's/.*"tokens": *\([0-9]*\).*/\1/p' "$work/qat")
median() { awk "{ print $1 }" "$work/rounds" | sort -g | awk '{ x[NR] = $1 } END { printf "%.3f", (x[int((NR + 1) / 2)] + x[int((NR + 2) / 2)]) / 2 }'; }
printf 'median of %d: qat eval %s s, llama-perplexity %s s; qat is %s times as fast (%s tokens evaluated, context %d, %d threads)\n' "$rounds" "$(median '$1')" \
  "$(median '$2')" "$(median '$2 / $1')" "$tokens" "$context" "$threads"
printf 'perplexity: qat %s, llama-perplexity %s\n' "$(sed -n 's/.*"perplexity": *\([0-9.]*\).*/\1/p' "$work/qat" | head -n 1)" \
  "$(sed -n 's/.*Final estimate: PPL = \([0-9.]*\).*/\1/p' "$work/llama")"
