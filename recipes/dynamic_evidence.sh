#!/usr/bin/env bash
# Reproduces the README's table of mixed types for one model: the plan q4_0 and types chosen under the size of its file, by each rule of
# rounding, and after training to either, measured by the engine on the exported files.
# usage: recipes/dynamic_evidence.sh MODEL_DIR EVAL_TEXT CONTEXT TRAIN_TEXT OUT_DIR
#   e.g. recipes/dynamic_evidence.sh gemma4-micro prose_eval.txt 512 prose_train.txt runs/gemma4-micro-dynamic
# EVAL_BYTES (default 200000): so much of the text is evaluated. BUDGET=4.5: that many bits per weight of the quantized matrices, beside a
# plan q4_0 with embedding and output in Q4_0 too (--pure). RECIPE=FILE: trains to both plans too, with SEEDS (1), JOBS runs at a time (2), a
# thread each, the recipe changed by SET (SET="steps=200 batch=8"); runs that are there are not made again.
# With JUDGE=1 llama-perplexity measures the pair of llama.cpp's rule too (tests/interop/setup.sh).
set -euo pipefail
[ $# = 5 ] || { sed -n '2,9p' "$0" >&2; exit 2; }
export model=$1 eval_text=$2 context=$3 train_text=$4 out=$5
export budget=${BUDGET:-q4_0}
[ "$budget" = q4_0 ] && pure=() || pure=(--pure)
here=$(cd "$(dirname "$0")/.." && pwd)
export qat=${QAT_BUILD:-$here/build}/qat
judge=$here/tests/interop/judge
mkdir -p "$out"
head -c "${EVAL_BYTES:-200000}" "$eval_text" >"$out/eval.txt"
settings="budget $budget, recipe ${RECIPE:-none} ${SET:-}, ${EVAL_BYTES:-200000} bytes"
[ ! -s "$out/settings" ] || [ "$settings" = "$(cat "$out/settings")" ] || { echo "$out holds another table ($(cat "$out/settings")): name another directory" >&2; exit 1; }
echo "$settings" >"$out/settings"

# value KEY FILE: a number of the JSON that `qat eval` wrote.
value() { sed -n "s/^ *\"$1\": *\\([-+0-9.eE]*\\),\\{0,1\\}\$/\\1/p" "$2"; }

for rule in llama.cpp search gptq; do
  [ $rule = gptq ] && calibrate=(--calibrate "$train_text") || calibrate=()
  "$qat" quantize "$model" --plan q4_0 "${pure[@]}" --rule $rule "${calibrate[@]}" --out "$out/q4_0-$rule" >/dev/null
  "$qat" quantize "$model" --plan dynamic --budget "$budget" --rule $rule --calibrate "$train_text" --out "$out/dyna-$rule" | tee "$out/dyna-$rule.txt" >&2
  for plan in q4_0 dyna; do
    "$qat" export "$out/$plan-$rule" --format gguf --out "$out/$plan-$rule.gguf" >/dev/null
    "$qat" eval "$out/$plan-$rule.gguf" --text "$out/eval.txt" --context "$context" --base "$model" --json >"$out/$plan-$rule.json"
  done
done

# trained PLAN SEED: to the plan q4_0 or to the types of OUT/dyna-search.
trained() {
  local name=$out/$1-qat-$2 plan=$out/$1-search settings=() assignment
  [ ! -s "$name.json" ] || return 0  # finished before
  [ "$1" = dyna ] || plan=q4_0
  [ "$1" = dyna ] || [ "$budget" = q4_0 ] || settings=(--set embedding_type=q4_0 --set output_type=q4_0)
  for assignment in ${SET:-}; do settings+=(--set "$assignment"); done
  rm -rf "$name"  # what an interrupted one left: it has no checkpoints
  "$qat" train "$RECIPE" --model "$model" --plan "$plan" --data "$train_text" --out "$name" --threads 1 \
    --set seed="$2" --set checkpoint_every=0 "${settings[@]}" >"$name.log" 2>&1
  "$qat" export "$name/quantized" --format gguf --out "$name.gguf" >/dev/null
  "$qat" eval "$name.gguf" --text "$out/eval.txt" --context "$context" --base "$model" --threads 1 --json >"$name.json"
}
export -f trained
seeds=${SEEDS:-1}
[ -z "${RECIPE:-}" ] || for seed in $seeds; do printf 'trained q4_0 %s\ntrained dyna %s\n' "$seed" "$seed"; done |
  RECIPE=$RECIPE xargs -P "${JOBS:-2}" -I{} bash -euo pipefail -c '{}'

# row LABEL FILE...: means, and half of what the files lie apart.
row() {
  local label=$1 name
  shift
  for name in "$@"; do
    echo "$(value perplexity "$out/$name.json") $(value mean_kld "$out/$name.json") $(value same_top "$out/$name.json") $(stat -c %s "$out/$name.gguf")"
  done | awk -v label="$label" '
    { for (i = 1; i <= 4; i++) { s[i] += $i; if (NR == 1 || $i < a[i]) a[i] = $i; if (NR == 1 || $i > b[i]) b[i] = $i } }
    function cell(i, f, form) { return sprintf(form, f * s[i] / NR) (NR > 1 ? sprintf(" +- " form, f * (b[i] - a[i]) / 2) : "") }
    END { printf "%-20s %12d %22s %22s %18s\n", label, s[4] / NR, cell(1, 1, "%.4f"), cell(2, 1, "%.5f"), cell(3, 100, "%.2f") }'
}
{
  printf '%-20s %12s %22s %22s %18s\n' 'plan, rule' 'size (bytes)' perplexity 'mean KLD' 'same top (%)'
  printf '%-20s %12s %22.4f %22s %18s\n' float - "$(value base_perplexity "$out/q4_0-llama.cpp.json")" 0 100
  for rule in llama.cpp search gptq; do
    for plan in q4_0 dyna; do row "$plan-$rule" "$plan-$rule"; done
  done
  [ -z "${RECIPE:-}" ] || for plan in q4_0 dyna; do row "$plan, trained" $(for seed in $seeds; do echo "$plan-qat-$seed"; done); done
} | tee "$out/table.txt"

[ "${JUDGE:-0}" = 1 ] || exit 0
echo "== llama-perplexity" >&2
"$qat" export "$model" --format gguf --type f32 --out "$out/float.gguf" >/dev/null
cd "$out"
"$judge" llama-perplexity -m "$PWD/float.gguf" -f "$PWD/eval.txt" -c "$context" --kl-divergence-base "$PWD/base.kld" >float.log 2>&1
for name in q4_0-llama.cpp dyna-llama.cpp; do
  "$judge" llama-perplexity -m "$PWD/$name.gguf" -f "$PWD/eval.txt" -c "$context" --kl-divergence-base "$PWD/base.kld" --kl-divergence >$name.log 2>&1
  printf '%-20s %12d %22s %22s %18s\n' "$name" "$(stat -c %s $name.gguf)" "$(sed -n 's/^Mean PPL(Q) *: *\([0-9.]*\).*/\1/p' $name.log)" \
    "$(sed -n 's/^Mean *KLD: *\([-0-9.]*\).*/\1/p' $name.log)" "$(sed -n 's/^Same top p: *\([0-9.]*\).*/\1/p' $name.log)"
done | tee judged.txt
rm -f base.kld
