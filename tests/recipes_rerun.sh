#!/usr/bin/env bash
# The shortest result in recipes/results/ comes out again: stories260K, 40 steps of recipes/stories260k.toml on its text alone, one
# thread. Codes of a run depend on the last bits of sums, and so on processor and libraries: the figures may differ by what another
# seed would make of them, no more.
# usage: recipes_rerun.sh QAT RESULT.json [--write]     --write: keeps the figures instead of comparing
set -euo pipefail
qat=$1 result=$2
here=$(cd "$(dirname "$0")/.." && pwd)
shared=${QAT_SHARED:-$here/../shared}
[ -d "$shared/checkpoints/stories260K" ] || { echo "SKIP: needs the checkpoint stories260K beside the repository (QAT_SHARED)"; exit 77; }
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
settings=(--set steps=40 --set warmup=5 --set text_share=0 --set calibration_sequences=32 --set eval_every=0 --set checkpoint_every=0 --set seed=1)
"$qat" train "$here/recipes/stories260k.toml" --model "$shared/checkpoints/stories260K" --data "$shared/text/tinystories_train.txt" --threads 1 \
  "${settings[@]}" --out "$dir/run" >"$dir/log" 2>&1 || { tail -n 5 "$dir/log"; exit 1; }
"$qat" eval "$dir/run/quantized" --base "$shared/checkpoints/stories260K" --text "$shared/text/tinystories_eval.txt" --context 256 --threads 1 \
  --json >"$dir/found.json" 2>>"$dir/log" || { tail -n 5 "$dir/log"; exit 1; }
value() { sed -n "s/^ *\"$1\": *\\([-+0-9.eE]*\\),\\{0,1\\}\$/\\1/p" "$2"; }
if [ "${3:-}" = --write ]; then
  printf '{\n  "command": "recipes/stories260k.toml, tinystories_train.txt alone, --threads 1 %s; qat eval, n_ctx 256",\n' "${settings[*]}" >"$result"
  printf '  "perplexity": %s,\n  "mean_kld": %s,\n  "same_top": %s\n}\n' "$(value perplexity "$dir/found.json")" "$(value mean_kld "$dir/found.json")" \
    "$(value same_top "$dir/found.json")" >>"$result"
  exit
fi
near() {  # near KEY PART: found and kept differ by that part of the kept at most
  awk -v key="$1" -v part="$2" -v kept="$(value "$1" "$result")" -v found="$(value "$1" "$dir/found.json")" 'BEGIN {
    apart = (found - kept) / kept
    printf "%s: kept %s, found %s (%+.2f %%)\n", key, kept, found, 100 * apart
    exit !(kept != "" && found != "" && apart <= part && apart >= -part) }'
}
near perplexity 0.01
near mean_kld 0.06
near same_top 0.01
