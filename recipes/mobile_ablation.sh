#!/usr/bin/env bash
# What each part of the mobile schema costs a model that is quantized without training (PTQ), and which rules of PTQ cost least:
# perplexity and mean KL divergence to the float model, on the files.
# usage: recipes/mobile_ablation.sh MODEL_DIR CALIBRATION_TEXT EVAL_TEXT OUT_DIR
#   e.g. recipes/mobile_ablation.sh gemma4-micro prose_train.txt prose_eval.txt runs/ablation
set -euo pipefail
[ $# = 4 ] || { sed -n '2,5p' "$0" >&2; exit 2; }
model=$1 calibration=$2 eval_text=$3 out=$4
qat=${QAT_BUILD:-$(cd "$(dirname "$0")/.." && pwd)/build}/qat
mkdir -p "$out"
"$qat" eval "$model" --text "$eval_text" --save-base "$out/base.kld" >/dev/null
trap 'rm -f "$out/base.kld"' EXIT

# value KEY FILE: a number of the JSON that `qat eval` wrote.
value() { sed -n "s/^ *\"$1\": *\\([-+0-9.eE]*\\),\\{0,1\\}\$/\\1/p" "$2"; }
row() {  # row LABEL OPTION...
  local label=$1
  shift
  "$qat" quantize "$model" --plan mobile --calibrate "$calibration" "$@" --out "$out/model" >/dev/null
  "$qat" eval "$out/model" --base "$out/base.kld" --json >"$out/model.json"
  printf '| %s | %.3f | %.4f | %.4f | %.1f %% |\n' "$label" "$(value bits_per_weight "$out/model.json")" \
    "$(value perplexity "$out/model.json")" "$(value mean_kld "$out/model.json")" \
    "$(awk -v x="$(value same_top "$out/model.json")" 'BEGIN { print 100 * x }')"
}
header() { printf '\n| %s | bits per weight | perplexity | mean KLD | same top |\n|---|---|---|---|---|\n' "$1"; }

still=(--activations off --kv-bits float)
wide=(--rule 'mlp|embed=i4')  # everything 4 bits, gates 8
header "one thing at a time, searched scales"
row 'weights 4 bits (gates 8)' "${wide[@]}" "${still[@]}"
row '... and 2-bit MLPs where the plan has them' --rule 'embed=i4' "${still[@]}"
row '... and 2-bit embedding and head: all weights' "${still[@]}"
row '4-bit weights, static 8-bit activations' "${wide[@]}" --kv-bits float
row '4-bit weights, KV cache 8/8' "${wide[@]}" --activations off --kv-bits 8
row '4-bit weights, KV cache 8/4' "${wide[@]}" --activations off --kv-bits 8,4
row 'all weights, activations, KV cache 8/8' --kv-bits 8
row 'the whole plan: KV cache 8/4' --kv-bits 8,4

header "the whole plan: observer, rule of weight scales"
for observer in mse percentile max; do
  row "$observer, largest magnitude" --observer $observer --rule max
  row "$observer, searched" --observer $observer --rule search
  row "$observer, searched, weighted by activations" --observer $observer --importance-text "$calibration" --importance-chunks 32
done
