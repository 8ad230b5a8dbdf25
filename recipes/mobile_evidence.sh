#!/usr/bin/env bash
# Reproduces the README's mobile table for one model: the best of nine ways to quantize to the mobile schema without training, and QAT, both
# measured by the engine on the directories in the schema, as they would be shipped (first 200 kB of the evaluation text, context 512).
# usage: recipes/mobile_evidence.sh MODEL_DIR RECIPE.toml EVAL_TEXT TRAIN_TEXT OUT_DIR
#   e.g. recipes/mobile_evidence.sh gemma4-micro recipes/gemma4-micro-mobile.toml prose_eval.txt prose_train.txt runs/gemma4-micro-mobile
# SEEDS (default 1; e.g. "1 2 3"), THREADS (0: all), DEVICE (cpu); TEACHER=no: train on TRAIN_TEXT alone. What was finished before is kept.
set -euo pipefail
[ $# = 5 ] || { sed -n '2,6p' "$0" >&2; exit 2; }
model=$1 recipe=$2 eval_text=$3 train_text=$4 out=$5
here=$(cd "$(dirname "$0")/.." && pwd)
qat=${QAT_BUILD:-$here/build}/qat
context=512
mkdir -p "$out"
head -c 200000 "$eval_text" >"$out/eval.txt"

# value KEY FILE: a number of the JSON that `qat eval` wrote.
value() { sed -n "s/^ *\"$1\": *\\([-+0-9.eE]*\\),\\{0,1\\}\$/\\1/p" "$2"; }
evaluate() {  # evaluate DIR NAME
  [ -s "$out/$2.json" ] || "$qat" eval "$1" --text "$out/eval.txt" --context $context --base "$model" --threads "${THREADS:-0}" --json >"$out/$2.json"
}

echo "== PTQ: three observers; weights by squared error, plain and weighted by activations, and by the error of outputs (gptq)" >&2
best=
for observer in mse percentile max; do
  for weights in plain weighted gptq; do
    name=ptq-$observer-$weights
    case $weights in
      plain) how=() ;;
      weighted) how=(--importance-text "$train_text" --importance-chunks 64) ;;
      gptq) how=(--rule gptq) ;;
    esac
    [ -e "$out/$name/qat_plan.json" ] || "$qat" quantize "$model" --plan mobile --calibrate "$train_text" --observer $observer "${how[@]}" --out "$out/$name" >/dev/null
    evaluate "$out/$name" $name
    if [ -z "$best" ] || awk -v a="$(value perplexity "$out/$name.json")" -v b="$(value perplexity "$out/$best.json")" 'BEGIN { exit !(a < b) }'
    then best=$name; fi
  done
done

data=(--data "$train_text")
[ "${TEACHER:-yes}" = no ] || data=(--data teacher "${data[@]}")
seeds=${SEEDS:-1}
for seed in $seeds; do
  name=qat-$seed
  [ -s "$out/$name.json" ] && continue
  if [ ! -e "$out/$name/quantized/model.safetensors" ]; then
    echo "== QAT ($recipe), seed $seed" >&2
    started=$(date +%s)
    resume=()
    [ ! -d "$out/$name/checkpoints" ] || resume=(--resume)
    "$qat" train "$recipe" "${resume[@]}" --model "$model" "${data[@]}" --set eval_text="$eval_text" --set seed="$seed" --threads "${THREADS:-0}" \
      --device "${DEVICE:-cpu}" --out "$out/$name"
    echo "seed $seed, training, samples included: $(($(date +%s) - started)) s" | tee -a "$out/time.txt" >&2
  fi
  evaluate "$out/$name/quantized" $name
done

size() { stat -c %s "$1"/*.safetensors | awk '{ s += $1 } END { print s }'; }
{
  printf '%-28s %12s %12s %12s %10s\n' model 'size (bytes)' perplexity 'mean KLD' 'same top'
  printf '%-28s %12s %12.4f %12s %10s\n' float "$(size "$model")" "$(value base_perplexity "$out/$best.json")" 0 100
  for name in "$out"/ptq-*.json $(for seed in $seeds; do echo "$out/qat-$seed.json"; done); do
    label=$(basename "$name" .json)
    directory=$out/$label && [[ $label = ptq-* ]] || directory=$out/$label/quantized
    printf '%-28s %12d %12.4f %12.5f %9.2f%%\n' "$label" "$(size "$directory")" "$(value perplexity "$name")" \
      "$(value mean_kld "$name")" "$(awk -v x="$(value same_top "$name")" 'BEGIN { print 100 * x }')"
  done
  echo "best without training: $best. QAT, beside it and beside float:"
  for seed in $seeds; do
    name=$out/qat-$seed.json
    awk -v f="$(value base_perplexity "$name")" -v p="$(value perplexity "$out/$best.json")" -v q="$(value perplexity "$name")" \
      -v pk="$(value mean_kld "$out/$best.json")" -v qk="$(value mean_kld "$name")" -v seed="$seed" 'BEGIN {
        printf "  seed %s: closes %.1f %% of its gap in log-perplexity; perplexity %.3f of float; mean KLD %.3f of it\n", seed,
          100 * (log(p) - log(q)) / (log(p) - log(f)), q / f, qk / pk }'
  done
} | tee "$out/table.txt"
