#!/usr/bin/env bash
# Two models by `qat bench`, in turn: tokens per second of each round, and the median of the rounds' ratios. Prefill of PROMPT tokens, decoding of
# TOKENS after 16.
# usage: [ROUNDS=5 REPEAT=3 PROMPT=128 TOKENS=24 THREADS=2] bench/compare_models.sh MODEL BASE
#   e.g. bench/compare_models.sh gemma4-e2b-mobile/ gemma4-e2b-q4_0.gguf
set -euo pipefail
[ $# = 2 ] || { sed -n '2,5p' "$0" >&2; exit 2; }
rounds=${ROUNDS:-5} repeat=${REPEAT:-3} prompt=${PROMPT:-128} tokens=${TOKENS:-24} threads=${THREADS:-2}
here=$(cd "$(dirname "$0")/.." && pwd)
qat=${QAT_BUILD:-$here/build}/qat
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

number() { sed -n "s/.*\"$1\": *\([0-9.eE+-]*\).*/\1/p" "$2"; }
# speeds MODEL: "PREFILL DECODE"
speeds() {
  "$qat" bench "$1" --threads "$threads" --prompt "$prompt" --tokens "$tokens" --context 16 --repeat "$repeat" --json >"$work/json"
  echo "$(number prefill_tokens_per_s "$work/json") $(number decode_tokens_per_s "$work/json")"
}
median() { sort -g | awk '{ x[NR] = $1 } END { printf "%.2f", (x[int((NR + 1) / 2)] + x[int((NR + 2) / 2)]) / 2 }'; }

printf '%-8s %28s %28s\n' round "prefill $prompt (tokens/s)" 'decode (tokens/s)'
for round in $(seq "$rounds"); do
  echo "$(speeds "$1") $(speeds "$2")" | tee -a "$work/rounds" | awk -v round="$round" '{
    printf "%-8d %10.1f /%7.1f = %6.2f %10.1f /%7.1f = %6.2f\n", round, $1, $3, $1 / $3, $2, $4, $2 / $4 }'
done
printf '%-8s %28s %28s\n' median "$(awk '{ print $1 / $3 }' "$work/rounds" | median)" "$(awk '{ print $2 / $4 }' "$work/rounds" | median)"
