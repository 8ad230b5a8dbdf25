#!/usr/bin/env bash
# Reproduces the README's first table for one model: float, Q4_0 without training (llama-quantize's, and the best that qat knows) and QAT
# with several seeds, same types and size, all judged by llama.cpp's own llama-perplexity on the exported files, on text never trained on.
# usage: recipes/evidence.sh MODEL_DIR RECIPE.toml CONTEXT TRAIN_TEXT OUT_DIR EVAL_TEXT...
#   e.g. recipes/evidence.sh stories260K recipes/stories260k.toml 256 tinystories_train.txt runs/stories260k tinystories_eval.txt
# SEEDS (default "1 2 3"); EVAL_BYTES of each text (200000); THREADS (0: all), DEVICE (cpu); TEACHER=no: train on TRAIN_TEXT alone. What is
# there already is not made again. Needs the reference programs: tests/interop/setup.sh. The table, the commands and the recipe as resolved
# are in OUT_DIR/results.md; recipes/results/ keeps those that the README quotes.
set -euo pipefail
[ $# -ge 6 ] || { sed -n '2,8p' "$0" >&2; exit 2; }
called="recipes/evidence.sh $(for word in "$@"; do basename "$word"; done | tr '\n' ' ')"
model=$1 recipe=$2 context=$3 train_text=$4 out=$5
shift 5
here=$(cd "$(dirname "$0")/.." && pwd)
qat=${QAT_BUILD:-$here/build}/qat
judge=$here/tests/interop/judge
seeds=${SEEDS:-1 2 3}
mkdir -p "$out"
out=$(realpath "$out")
texts=()
for text in "$@"; do
  name=$(basename "$text" .txt)
  head -c "${EVAL_BYTES:-200000}" "$text" >"$out/$name.txt"
  texts+=("$name")
done
data=(--data "$train_text")
[ "${TEACHER:-yes}" = no ] || data=(--data teacher "${data[@]}")

echo "== Float GGUF (llama.cpp's converter), llama-quantize Q4_0, qat's gptq" >&2
# In the checkpoint's own type: llama-quantize keeps the matrices that it does not quantize as it finds them, and so does qat.
grep -q '"dtype": *"bfloat16"\|"torch_dtype": *"bfloat16"' "$model/config.json" && type=bf16 || type=f32
[ -s "$out/float.gguf" ] || "$judge" hf-to-gguf "$(realpath "$model")" --outfile "$out/float.gguf" --outtype $type >"$out/convert.log" 2>&1
[ -s "$out/ptq.gguf" ] || "$judge" llama-quantize "$out/float.gguf" "$out/ptq.gguf" Q4_0 >"$out/quantize.log" 2>&1
if [ ! -s "$out/gptq.gguf" ]; then
  "$qat" quantize "$model" --plan q4_0 --rule gptq --calibrate "$train_text" --out "$out/gptq" >/dev/null
  "$qat" export "$out/gptq" --format gguf --out "$out/gptq.gguf" >/dev/null
fi

files=(ptq gptq)
for seed in $seeds; do
  files+=("qat-$seed")
  [ ! -s "$out/qat-$seed.gguf" ] || continue
  echo "== QAT ($recipe), seed $seed" >&2
  started=$(date +%s)
  resume=()
  [ ! -d "$out/qat-$seed/checkpoints" ] || resume=(--resume)
  "$qat" train "$recipe" "${resume[@]}" --model "$model" "${data[@]}" --out "$out/qat-$seed" --threads "${THREADS:-0}" \
    --device "${DEVICE:-cpu}" --set seed="$seed"
  "$qat" export "$out/qat-$seed/quantized" --format gguf --out "$out/qat-$seed.gguf"
  echo "$(($(date +%s) - started))" >"$out/qat-$seed.seconds"
done

echo "== llama-perplexity" >&2
# The KL run saves the float model's logits clipped at 16 nats, so perplexities come from runs of their own.
perplexity() { sed -n 's/.*Final estimate: PPL = \([0-9.]*\).*/\1/p' "$1"; }
run_judge() {  # run_judge LOG WANTED ARGUMENT...: until its last lines are there (its log can end early), three times at most
  local log=$1 wanted=$2 try
  shift 2
  for try in 1 2 3; do
    ! grep -qs "$wanted" "$log" || return 0
    "$judge" llama-perplexity -c "$context" "$@" >"$log" 2>&1 || true
  done
  grep -qs "$wanted" "$log" || { echo "llama-perplexity failed, see $log" >&2; exit 1; }
}
judged() {  # judged FILE TEXT: perplexity and divergence into FILE-TEXT.log and .kl
  run_judge "$out/$1-$2.log" "Final estimate" -m "$out/$1.gguf" -f "$out/$2.txt"
  run_judge "$out/$1-$2.kl" "Same top p:" -m "$out/$1.gguf" -f "$out/$2.txt" --kl-divergence-base "$out/$2.base" --kl-divergence
}
for text in "${texts[@]}"; do
  rm -f "$out/float-$text.log"
  run_judge "$out/float-$text.log" "Final estimate" -m "$out/float.gguf" -f "$out/$text.txt" --kl-divergence-base "$out/$text.base"
  for file in "${files[@]}"; do judged "$file" "$text"; done
  rm -f "$out/$text.base"
done

# row LABEL TEXT FILE...: mean over the files, and half of what they lie apart.
row() {
  local label=$1 text=$2 file
  shift 2
  for file in "$@"; do
    echo "$(perplexity "$out/$file-$text.log") $(sed -n 's/^Mean *KLD: *\([-0-9.]*\).*/\1/p' "$out/$file-$text.kl") $(sed -n 's/^Same top p: *\([0-9.]*\).*/\1/p' "$out/$file-$text.kl")"
  done | awk -v label="$label" -v float="$(perplexity "$out/float-$text.log")" -v ptq="$(perplexity "$out/gptq-$text.log")" -v size="$(stat -c %s "$out/$1.gguf")" '
    { x[1] = $1; x[2] = $2; x[3] = $3; x[4] = 100 * (log(ptq) - log($1)) / (log(ptq) - log(float))
      for (i = 1; i <= 4; i++) { sum[i] += x[i]; if (NR == 1 || x[i] < low[i]) low[i] = x[i]; if (NR == 1 || x[i] > high[i]) high[i] = x[i] } }
    function cell(i, form) { return sprintf(form, sum[i] / NR) (NR > 1 ? sprintf(" ± " form, (high[i] - low[i]) / 2) : "") }
    END { printf "| %s | %d | %s | %s | %s | %s |\n", label, size, cell(1, "%.3f"), cell(2, "%.4f"), cell(3, "%.1f %%"), cell(4, "%.0f %%") }'
}
{
  echo "# $(basename "$model"), $(basename "$recipe")"
  echo
  echo "Commit $(git -C "$here" rev-parse --short HEAD 2>/dev/null || echo unknown), $(date +%F), seeds $seeds, $(cat "$out"/qat-*.seconds | awk '{ s += $1 } END { printf "%.1f min a seed", s / NR / 60 }') on ${DEVICE:-cpu}, ${THREADS:-all} threads:"
  echo "\`${TEACHER:+TEACHER=$TEACHER }SEEDS=\"$seeds\" $called\`"
  for text in "${texts[@]}"; do
    printf '\n%s, first %d bytes, n_ctx %d; gap: share of the distance in log-perplexity from gptq to float.\n\n' "$text" "$(stat -c %s "$out/$text.txt")" "$context"
    printf '| file | bytes | perplexity | mean KLD | same top token | gap closed |\n|---|---|---|---|---|---|\n'
    printf '| float | %d | %.3f | 0 | 100 %% | |\n' "$(stat -c %s "$out/float.gguf")" "$(perplexity "$out/float-$text.log")"
    row "llama-quantize Q4_0" "$text" ptq
    row "qat gptq, without training" "$text" gptq
    row "**qat, trained**" "$text" $(for seed in $seeds; do echo "qat-$seed"; done)
  done
  printf '\n```toml\n'
  sed 's|"[^"]*/\([^"/]*\)"|"\1"|g' "$out/qat-${seeds%% *}/recipe.toml"
  printf '```\n'
} >"$out/results.md"
sed -n '/^[A-Za-z]*, first\|^[a-z0-9_]*, first\|^|/p' "$out/results.md"
