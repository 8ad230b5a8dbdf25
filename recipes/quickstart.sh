#!/usr/bin/env bash
# The whole road on a machine with nothing but Debian: trains a small float model of the Gemma 4 E2B shape on the C++ headers that
# the build needs anyway, quantizes it without training (PTQ) and with it (QAT), to Q4_0 for llama.cpp and to the mobile schema for phones,
# and measures the files.
# usage: recipes/quickstart.sh [DIR]      (default: runs/quickstart; meant to take at most 15 minutes on 2 cores, the build included)
set -euo pipefail
cd "$(dirname "$0")/.."
dir=${1:-runs/quickstart}
[ ! -e "$dir/mobile-qat.gguf" ] || { echo "$dir holds a finished quickstart: name another directory, or remove it" >&2; exit 1; }
step() { printf '\n\033[1m== %s\033[0m\n' "$*" >&2; }

step "1/8 Building (installs what is missing)"
cmake/build.sh --target qat --target qat-train
qat=${QAT_BUILD:-build}/qat
mkdir -p "$dir"
rm -rf "$dir"/init "$dir"/float "$dir"/ptq "$dir"/qat "$dir"/mobile-ptq "$dir"/mobile-run "$dir"/mobile-qat  # what an interrupted quickstart left

step "2/8 Text: Eigen's headers, every 20th file kept for evaluation"
rm -f "$dir"/train.txt "$dir"/eval.txt
n=0
while IFS= read -r file; do
  n=$((n + 1))
  if [ $((n % 20)) = 0 ]; then cat "$file" >>"$dir/eval.txt"; else cat "$file" >>"$dir/train.txt"; fi
done < <(find /usr/include/eigen3 -type f -name '*.h' | LC_ALL=C sort)
head -c 131072 "$dir/eval.txt" >"$dir/eval.part" && mv "$dir/eval.part" "$dir/eval.txt"
wc -c "$dir"/train.txt "$dir"/eval.txt | sed 's/^/   /' >&2

step "3/8 Float training of a new model (byte tokenizer)"
"$qat" init --shape gemma4-tiny --seed 1 --out "$dir/init"
"$qat" train recipes/quickstart-float.toml --model "$dir/init" --data "$dir/train.txt" --set eval_text="$dir/eval.txt" --out "$dir/float"

step "4/8 Q4_0 without training (PTQ, the rule of llama-quantize)"
"$qat" quantize "$dir/float/hf" --plan q4_0 --out "$dir/ptq"

step "5/8 Q4_0 with training (QAT, the float model as teacher)"
"$qat" train recipes/quickstart-qat.toml --model "$dir/float/hf" --data "$dir/train.txt" --set eval_text="$dir/eval.txt" --out "$dir/qat"

step "6/8 The mobile schema: 2 and 4-bit weights, 8-bit activations, quantized KV cache; without training and with it"
"$qat" quantize "$dir/float/hf" --plan mobile --calibrate "$dir/train.txt" --out "$dir/mobile-ptq"
"$qat" train recipes/quickstart-mobile.toml --model "$dir/float/hf" --data "$dir/train.txt" --set eval_text="$dir/eval.txt" --out "$dir/mobile-run"

step "7/8 Export and evaluation of the files"
"$qat" export "$dir/float/hf" --format gguf --type f32 --out "$dir/float.gguf"
"$qat" export "$dir/ptq" --format gguf --out "$dir/ptq.gguf"
"$qat" export "$dir/qat/quantized" --format gguf --out "$dir/qat.gguf"
"$qat" export "$dir/mobile-run/quantized" --format mobile --out "$dir/mobile-qat"
"$qat" export "$dir/mobile-run/quantized" --format gguf --out "$dir/mobile-qat.gguf"
files=(float.gguf ptq.gguf qat.gguf mobile-ptq mobile-qat)
for name in "${files[@]}"; do
  "$qat" eval "$dir/$name" --text "$dir/eval.txt" --context 256 --base "$dir/float.gguf" --json >"$dir/$name.json"
done

step "8/8 A few lines from the QAT file"
"$qat" generate "$dir/qat.gguf" --prompt "template<typename Scalar>
class " --tokens 200 --temperature 0.5 --seed 3

# value KEY FILE: a number of the JSON that `qat eval` wrote.
value() { sed -n "s/^ *\"$1\": *\\([-+0-9.eE]*\\),\\{0,1\\}\$/\\1/p" "$2"; }
echo
# size PATH: bytes of a GGUF file, or of the weights in a directory.
size() { if [ -d "$1" ]; then stat -c %s "$1/model.safetensors"; else stat -c %s "$1"; fi; }
labels=("float (F32)" "Q4_0, PTQ" "Q4_0, QAT" "mobile, PTQ" "mobile, QAT")
printf '%-26s %12s %12s %12s %10s\n' model 'size (bytes)' perplexity 'mean KLD' 'same top'
for i in "${!files[@]}"; do
  json=$dir/${files[$i]}.json
  kld=$(printf '%.5f' "$(value mean_kld "$json")")
  printf '%-26s %12d %12.4f %12s %9.2f%%\n' "${labels[$i]}" "$(size "$dir/${files[$i]}")" "$(value perplexity "$json")" \
    "${kld/#-0.00000/0.00000}" "$(awk -v x="$(value same_top "$json")" 'BEGIN { print 100 * x }')"
done
echo
echo "For llama.cpp: $dir/float.gguf, $dir/ptq.gguf, $dir/qat.gguf, $dir/mobile-qat.gguf (the mobile model, its weights bit for bit)"
echo "For transformers: $dir/mobile-ptq, $dir/mobile-qat"
