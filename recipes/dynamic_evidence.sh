#!/usr/bin/env bash
# Reproduces the README's table of mixed types for one model: the plan q4_0 and types chosen under the size of its file, by each rule of
# rounding, measured by the engine on the exported files.
# usage: recipes/dynamic_evidence.sh MODEL_DIR EVAL_TEXT CONTEXT TRAIN_TEXT OUT_DIR
#   e.g. recipes/dynamic_evidence.sh gemma4-micro prose_eval.txt 512 prose_train.txt runs/gemma4-micro-dynamic
# EVAL_BYTES (default 200000): so much of the text is evaluated. With JUDGE=1 llama-perplexity measures the pair of llama.cpp's rule
# too (tests/interop/setup.sh).
set -euo pipefail
[ $# = 5 ] || { sed -n '2,7p' "$0" >&2; exit 2; }
model=$1 eval_text=$2 context=$3 train_text=$4 out=$5
here=$(cd "$(dirname "$0")/.." && pwd)
qat=${QAT_BUILD:-$here/build}/qat
judge=$here/tests/interop/judge
mkdir -p "$out"
head -c "${EVAL_BYTES:-200000}" "$eval_text" >"$out/eval.txt"

# value KEY FILE: a number of the JSON that `qat eval` wrote.
value() { sed -n "s/^ *\"$1\": *\\([-+0-9.eE]*\\),\\{0,1\\}\$/\\1/p" "$2"; }

for rule in llama.cpp search gptq; do
  [ $rule = gptq ] && calibrate=(--calibrate "$train_text") || calibrate=()
  "$qat" quantize "$model" --plan q4_0 --rule $rule "${calibrate[@]}" --out "$out/q4_0-$rule" >/dev/null
  "$qat" quantize "$model" --plan dynamic --budget q4_0 --rule $rule --calibrate "$train_text" --out "$out/dyna-$rule" | tee "$out/dyna-$rule.txt" >&2
  for plan in q4_0 dyna; do
    "$qat" export "$out/$plan-$rule" --format gguf --out "$out/$plan-$rule.gguf" >/dev/null
    "$qat" eval "$out/$plan-$rule.gguf" --text "$out/eval.txt" --context "$context" --base "$model" --json >"$out/$plan-$rule.json"
  done
done

{
  printf '%-20s %12s %12s %12s %10s\n' 'plan, rule' 'size (bytes)' perplexity 'mean KLD' 'same top'
  printf '%-20s %12s %12.4f %12s %10s\n' float - "$(value base_perplexity "$out/q4_0-llama.cpp.json")" 0 100
  for rule in llama.cpp search gptq; do
    for plan in q4_0 dyna; do
      name=$plan-$rule
      printf '%-20s %12d %12.4f %12.5f %9.2f%%\n' "$name" "$(stat -c %s "$out/$name.gguf")" "$(value perplexity "$out/$name.json")" \
        "$(value mean_kld "$out/$name.json")" "$(awk -v x="$(value same_top "$out/$name.json")" 'BEGIN { print 100 * x }')"
    done
  done
} | tee "$out/table.txt"

[ "${JUDGE:-0}" = 1 ] || exit 0
echo "== llama-perplexity" >&2
"$qat" export "$model" --format gguf --type f32 --out "$out/float.gguf" >/dev/null
cd "$out"
"$judge" llama-perplexity -m "$PWD/float.gguf" -f "$PWD/eval.txt" -c "$context" --kl-divergence-base "$PWD/base.kld" >float.log 2>&1
for name in q4_0-llama.cpp dyna-llama.cpp; do
  "$judge" llama-perplexity -m "$PWD/$name.gguf" -f "$PWD/eval.txt" -c "$context" --kl-divergence-base "$PWD/base.kld" --kl-divergence >$name.log 2>&1
  printf '%-20s %12d %12s %12s %10s\n' "$name" "$(stat -c %s $name.gguf)" "$(sed -n 's/^Mean PPL(Q) *: *\([0-9.]*\).*/\1/p' $name.log)" \
    "$(sed -n 's/^Mean *KLD: *\([-0-9.]*\).*/\1/p' $name.log)" "$(sed -n 's/^Same top p: *\([0-9.]*\).*/\1/p' $name.log)"
done | tee judged.txt
rm -f base.kld
