#!/usr/bin/env bash
# What each part of the mobile schema costs once the model is trained with it: the parts are switched on one at a time, each trained alike (short
# runs: see STEPS) and measured on its own file. Beside it the same parts without training (scales searched, activations calibrated).
# usage: recipes/mobile_qat_ablation.sh MODEL_DIR RECIPE.toml EVAL_TEXT TRAIN_TEXT OUT_DIR [STEPS=300]
#   e.g. recipes/mobile_qat_ablation.sh gemma4-micro recipes/gemma4-micro-mobile.toml prose_eval.txt prose_train.txt runs/qat-ablation
set -euo pipefail
[ $# -ge 5 ] || { sed -n '2,5p' "$0" >&2; exit 2; }
model=$1 recipe=$2 eval_text=$3 train_text=$4 out=$5 steps=${6:-300}
qat=${QAT_BUILD:-$(cd "$(dirname "$0")/.." && pwd)/build}/qat
mkdir -p "$out"
head -c 200000 "$eval_text" >"$out/eval.txt"
"$qat" sample "$model" --count 1024 --length 256 --seed 1 --out "$out/samples.safetensors" >/dev/null
"$qat" eval "$model" --text "$out/eval.txt" --save-base "$out/base.kld" >/dev/null
trap 'rm -f "$out/base.kld"' EXIT

# value KEY FILE: a number of the JSON that `qat eval` wrote.
value() { sed -n "s/^ *\"$1\": *\\([-+0-9.eE]*\\),\\{0,1\\}\$/\\1/p" "$2"; }
evaluate() { "$qat" eval "$1" --base "$out/base.kld" --json >"$out/result.json"; }
figures() {
  printf '%.3f | %.4f | %.1f %%' "$(value perplexity "$out/result.json")" "$(value mean_kld "$out/result.json")" \
    "$(awk -v x="$(value same_top "$out/result.json")" 'BEGIN { print 100 * x }')"
}
# row LABEL "option of quantize"... -- key=value...: the same plan for PTQ and for training.
row() {
  local label=$1 ptq=() settings=()
  shift
  while [ "$1" != -- ]; do ptq+=("$1"); shift; done
  shift
  for setting in "$@"; do settings+=(--set "$setting"); done
  rm -rf "$out/ptq" "$out/run"
  "$qat" quantize "$model" --plan mobile --calibrate "$train_text" "${ptq[@]}" --out "$out/ptq" >/dev/null
  evaluate "$out/ptq"
  local without
  without=$(figures)
  "$qat" train "$recipe" --model "$model" --data "$out/samples.safetensors" --data "$train_text" --out "$out/run" --set steps="$steps" \
    --set warmup=20 --set eval_every=0 --set checkpoint_every=0 "${settings[@]}" >"$out/train.log" 2>&1 || { cat "$out/train.log" >&2; exit 1; }
  evaluate "$out/run/quantized"
  printf '| %s | %s | %s |\n' "$label" "$without" "$(figures)"
}

printf '| | perplexity, PTQ | mean KLD | same top | perplexity, QAT of %s steps | mean KLD | same top |\n|---|---|---|---|---|---|---|\n' "$steps"
still=(--activations off --kv-bits float) off=(activations=false kv_sliding_bits=0 kv_global_bits=0)
row 'weights 4 bits (gates 8)' --rule 'mlp|embed=i4' "${still[@]}" -- 'rules=["mlp=I4","embed=I4"]' "${off[@]}"
row '... and 2-bit MLPs where the plan has them' --rule 'embed=i4' "${still[@]}" -- 'rules=["embed=I4"]' "${off[@]}"
row '... and 2-bit embedding and head: all weights' "${still[@]}" -- "${off[@]}"
row '... and static 8-bit activations' --kv-bits float -- kv_sliding_bits=0 kv_global_bits=0
row '... and KV cache 8/8' --kv-bits 8 -- kv_sliding_bits=8 kv_global_bits=8
row '... the whole plan: KV cache 8/4' --kv-bits 8,4 --
