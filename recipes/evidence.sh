#!/usr/bin/env bash
# Reproduces the README's evidence table for one model: float, llama-quantize's Q4_0 and our QAT with the same types, all judged by
# llama.cpp's own llama-perplexity on the exported files.
# usage: recipes/evidence.sh MODEL_DIR RECIPE.toml EVAL_TEXT CONTEXT TRAIN_TEXT OUT_DIR
#   e.g. recipes/evidence.sh stories260K recipes/stories260k.toml tinystories_eval.txt 256 tinystories_train.txt runs/stories260k
# Needs the reference programs: tests/interop/setup.sh.
set -euo pipefail
[ $# = 6 ] || { sed -n '2,6p' "$0" >&2; exit 2; }
model=$1 recipe=$2 eval_text=$3 context=$4 train_text=$5 out=$6
here=$(cd "$(dirname "$0")/.." && pwd)
qat=${QAT_BUILD:-$here/build}/qat
judge=$here/tests/interop/judge
mkdir -p "$out"

echo "== float GGUF (llama.cpp's converter) and llama-quantize Q4_0" >&2
cp "$eval_text" "$out/eval.txt"
# In the checkpoint's own type: llama-quantize keeps the matrices that it does not quantize as it finds them, and so does qat.
grep -q '"dtype": *"bfloat16"\|"torch_dtype": *"bfloat16"' "$model/config.json" && type=bf16 || type=f32
"$judge" hf-to-gguf "$(realpath "$model")" --outfile "$(realpath "$out")/float.gguf" --outtype $type >"$out/convert.log" 2>&1
"$judge" llama-quantize "$(realpath "$out")/float.gguf" "$(realpath "$out")/ptq.gguf" Q4_0 >"$out/quantize.log" 2>&1

echo "== QAT ($recipe)" >&2
started=$(date +%s)
"$qat" train "$recipe" --model "$model" --data teacher --data "$train_text" --out "$out/qat"
"$qat" export "$out/qat/quantized" --format gguf --out "$out/qat.gguf"
echo "training, samples included: $(($(date +%s) - started)) s" | tee "$out/time.txt" >&2

echo "== llama-perplexity" >&2
cd "$out"
"$judge" llama-perplexity -m "$PWD/float.gguf" -f "$PWD/eval.txt" -c "$context" --kl-divergence-base "$PWD/base.kld" >float.log 2>&1
for name in ptq qat; do
  "$judge" llama-perplexity -m "$PWD/$name.gguf" -f "$PWD/eval.txt" -c "$context" --kl-divergence-base "$PWD/base.kld" --kl-divergence >$name.log 2>&1
done
rm -f base.kld
field() { sed -n "s/^$1 *: *\\([-0-9.]*\\).*/\\1/p" "$2"; }
printf '%-22s %12s %12s %12s %10s\n' model 'size (bytes)' perplexity 'mean KLD' 'same top'
printf '%-22s %12d %12s %12s %10s\n' float "$(stat -c %s float.gguf)" "$(field 'Mean PPL(base)' ptq.log)" 0 100
for name in ptq qat; do
  [ $name = ptq ] && label='llama-quantize Q4_0' || label='qat Q4_0'
  printf '%-22s %12d %12s %12s %10s\n' "$label" "$(stat -c %s $name.gguf)" "$(field 'Mean PPL(Q)' $name.log)" \
    "$(sed -n 's/^Mean *KLD: *\([-0-9.]*\).*/\1/p' $name.log)" "$(sed -n 's/^Same top p: *\([0-9.]*\).*/\1/p' $name.log)"
done | tee table.txt
