#!/usr/bin/env bash
# What the checks compare with, made once: models, the files that llama.cpp's converter and llama-quantize write from them.
source "$(dirname "$0")/common.sh"

rm -rf "$references"
mkdir -p "$references"/{float,q4_0,pure,embedding_q8_0,q8_0}
cp "$repository/LICENSE" "$references/text.txt"  # English, always there, never changing
judge python3 "$interop/make_models.py" "$references" "$references/text.txt" >"$references/make_models.log" 2>&1 ||
  { tail -n 5 "$references/make_models.log"; exit 1; }
# Trained checkpoints, and those whose logits transformers has recorded, when they are there. The latter have no tokenizer: they get
# the one of the model of the same shape, whose vocabulary is as large.
for directory in "$shared"/checkpoints/*/; do
  [ ! -f "$directory/config.json" ] || cp -r "$directory" "$references/models/$(basename "$directory")"
done
for name in llama gemma3 gemma4-e2b gemma4-e4b gemma4-31b; do
  [ -f "$shared/goldens/$name/config.json" ] || continue
  mkdir "$references/models/golden-$name"
  cp "$shared/goldens/$name"/{config.json,generation_config.json,model.safetensors} "$references/models/$name"/tokenizer* "$references/models/golden-$name"
done
chmod -R u+w "$references/models"

conversions=()
for name in $(models); do
  for type in f32 f16 bf16; do conversions+=("$references/models/$name" "$references/float/$name-$type.gguf" "$type"); done
done
judge python3 "$interop/convert.py" "${conversions[@]}" >"$references/convert.log" 2>&1 || { tail -n 5 "$references/convert.log"; exit 1; }

quantize() {  # quantize FOLDER MODEL TYPE [OPTION ...]
  local folder=$1 name=$2 type=$3
  shift 3
  judge llama-quantize "$@" "$references/float/$name-$(stored_type "$name").gguf" "$references/$folder/$name.gguf" "$type" \
    >"$references/$folder/$name.log" 2>&1 || { tail -n 5 "$references/$folder/$name.log"; exit 1; }
}
for name in $(models); do
  quantize q4_0 "$name" Q4_0
  [[ $name != golden-* ]] || continue  # the same shapes again
  quantize q8_0 "$name" Q8_0
  quantize pure "$name" Q4_0 --pure
  quantize embedding_q8_0 "$name" Q4_0 --token-embedding-type q8_0
done
trap - EXIT
rmdir "$work" 2>/dev/null || true
echo "$(models | wc -w) models, $(ls "$references"/float | wc -l) float files, $(ls "$references"/{q4_0,q8_0,pure,embedding_q8_0}/*.gguf | wc -l) quantized files"
