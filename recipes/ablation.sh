#!/usr/bin/env bash
# What each change to a recipe gives: trains every variant with every seed, several runs side by side, and prints mean and spread of what
# `qat eval` finds in the results, against the float model on text that was not trained on.
# usage: recipes/ablation.sh MODEL_DIR RECIPE.toml EVAL_TEXT CONTEXT TRAIN_TEXT OUT_DIR VARIANTS
#   e.g. SEEDS="1 2 3" recipes/ablation.sh stories260K recipes/stories260k.toml eval.txt 256 train.txt runs/ablation recipes/ablation/stories260k.txt
# VARIANTS: a line for each, "NAME KEY=VALUE KEY=VALUE ..."; # begins a comment, {seed} is the run's seed. Data are the float model's own text
# (teacher=no: not) and TRAIN_TEXT, copies=N times. SEEDS (default 1), JOBS runs at a time (2), THREADS of each (1), DEVICE (cpu), EVAL_BYTES of the text (200000).
set -euo pipefail
[ $# = 7 ] || { sed -n '2,7p' "$0" >&2; exit 2; }
export model=$1 recipe=$2 eval_text=$3 context=$4 train_text=$5 out=$6
variants=$7
here=$(cd "$(dirname "$0")/.." && pwd)
export qat=${QAT_BUILD:-$here/build}/qat threads=${THREADS:-1} device=${DEVICE:-cpu}
mkdir -p "$out"
head -c "${EVAL_BYTES:-200000}" "$eval_text" >"$out/eval.txt"

value() { sed -n "s/^ *\"$1\": *\\([-+0-9.eE]*\\),\\{0,1\\}\$/\\1/p" "$2"; }

# one NAME SEED KEY=VALUE...: a run and its figures, in OUT/NAME-SEED.
one() {
  local name=$1 seed=$2 dir=$out/$1-$2 settings=(--data teacher) assignment copies=1
  shift 2
  [ -s "$dir.json" ] && return  # finished before
  rm -rf "$dir"                 # what an interrupted one left
  for assignment in "$@"; do
    case $assignment in
      copies=*) copies=${assignment#*=} ;;
      teacher=no) settings=("${settings[@]:2}") ;;
      *) settings+=(--set "${assignment//\{seed\}/$seed}") ;;
    esac
  done
  while [ "$copies" -gt 0 ]; do settings+=(--data "$train_text") copies=$((copies - 1)); done
  if [ -d "$out/samples-$seed" ]; then  # the float model's text is written once for each seed
    mkdir -p "$dir"
    cp -pn "$out/samples-$seed"/{recipe.toml,teacher_samples.safetensors} "$dir/" 2>/dev/null || true
  fi
  "$qat" train "$recipe" --model "$model" --out "$dir" --threads "$threads" --device "$device" \
    --set seed="$seed" --set checkpoint_every=0 --set eval_text="$out/eval.txt" --set eval_sequences=32 "${settings[@]}" >"$dir.log" 2>&1 \
    && "$qat" eval "$dir/quantized" --base "$model" --text "$out/eval.txt" --context "$context" --threads "$threads" --json >"$dir.json" 2>>"$dir.log" \
    || { echo "$name, seed $seed: failed, see $dir.log" >&2; rm -f "$dir.json"; }
  [ "$name" = samples ] || rm -rf "$dir/checkpoints" "$dir/teacher_samples.safetensors"
}
export -f one

for seed in ${SEEDS:-1}; do
  [ -d "$out/samples-$seed" ] || ! grep -v '^ *\(#\|$\)' "$variants" | grep -qv teacher=no && continue
  echo "one samples-$seed $seed steps=1 warmup=0 init=plain eval_sequences=1"
done | sed 's/^one samples-[0-9]*/one samples/' | xargs -P "${JOBS:-2}" -I{} bash -c '{}'
rm -f "$out"/samples-*.json
{
  grep -v '^ *\(#\|$\)' "$variants" | while read -r name settings; do
    for seed in ${SEEDS:-1}; do echo "one $name $seed $settings"; done
  done
} | xargs -P "${JOBS:-2}" -I{} bash -c '{}'

# NAME KEY FACTOR: mean over seeds, and how far they lie apart.
summary() {
  local seed
  for seed in ${SEEDS:-1}; do [ -s "$out/$1-$seed.json" ] && value "$2" "$out/$1-$seed.json"; done |
    awk -v f="$3" -v p="$4" '{ x = f * $1; s += x; if (NR == 1 || x < a) a = x; if (NR == 1 || x > b) b = x } END { if (NR) printf p " +- " p, s / NR, (b - a) / 2; else printf "-" }'
}
{
  printf '| variant | perplexity | mean KLD | same top token (%%) |\n|---|---|---|---|\n'
  grep -v '^ *\(#\|$\)' "$variants" | while read -r name settings; do
    printf '| %s: %s | %s | %s | %s |\n' "$name" "$settings" "$(summary "$name" perplexity 1 %.4f)" "$(summary "$name" mean_kld 1 %.5f)" \
      "$(summary "$name" same_top 100 %.2f)"
  done
} | tee "$out/table.md"
