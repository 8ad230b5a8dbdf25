#!/usr/bin/env bash
# The memory that `qat train` says it will take beside what it then takes (getrusage), as the Markdown table of qat/train/README.md.
# usage: bench/memory.sh CHECKPOINTS_DIR TEXT    (a directory with stories260K, gemma4-micro and gemma4-mini; 4 steps each, 5 minutes)
set -euo pipefail
[ $# = 2 ] || { sed -n '2,3p' "$0" >&2; exit 2; }
checkpoints=$1 text=$2
here=$(cd "$(dirname "$0")/.." && pwd)
qat=${QAT_BUILD:-$here/build}/qat
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# figures MODEL BATCH SEQUENCE PLAN CHECKPOINTING: "counted 1 thread / 2 threads | measured".
figures() {
  local threads need=() peak=()
  for threads in 1 2; do
    rm -rf "$scratch/run"
    printf '[train]\n' >"$scratch/recipe.toml"
    "$qat" train "$scratch/recipe.toml" --model "$checkpoints/$1" --data "$text" --plan "$4" --steps 4 --out "$scratch/run" --threads $threads \
      --set batch="$2" --set sequence="$3" --set gradient_checkpointing="$5" --set warmup=1 --set eval_sequences=1 --set activations_after=0 \
      --set checkpoint_every=0 --set loss_chunk=2048 >"$scratch/log" 2>&1 || { cat "$scratch/log" >&2; exit 1; }
    need+=("$(sed -n 's/.*needs about \([0-9.]* .B\) of memory.*/\1/p' "$scratch/log" | head -1)")
    peak+=("$(sed -n 's/.*peak memory \([0-9.]* .B\).*/\1/p' "$scratch/log" | tail -1)")
  done
  printf '%s, %s | %s, %s' "${need[@]}" "${peak[@]}"
}

printf '| | counted, 1 and 2 threads | measured | ... `gradient_checkpointing`, counted | measured |\n|---|---|---|---|---|\n'
while read -r model batch sequence plan; do
  printf '| %s, %s x %s, %s | %s | %s |\n' "$model" "$batch" "$sequence" "$plan" "$(figures "$model" "$batch" "$sequence" "$plan" false)" \
    "$(figures "$model" "$batch" "$sequence" "$plan" true)"
done <<'RUNS'
stories260K 16 256 q4_0
gemma4-micro 8 512 q4_0
gemma4-micro 8 256 mobile
gemma4-mini 8 256 q4_0
RUNS
