#!/usr/bin/env bash
# Quantization by llama.cpp's rule: every tensor's type and bytes, and every key, as llama-quantize writes them.
source "$(dirname "$0")/common.sh"

pairs=()
check() {  # check FOLDER MODEL PLAN [OPTION ...]
  local folder=$1 name=$2 plan=$3
  shift 3
  "$qat" quantize "$references/models/$name" --plan "$plan" "$@" --out "$work/$folder-$name" >/dev/null
  "$qat" export "$work/$folder-$name" --format gguf --out "$work/$folder-$name.gguf" >/dev/null
  rm -r "${work:?}/$folder-$name"
  pairs+=("$work/$folder-$name.gguf" "$references/$folder/$name.gguf")
}
for name in $(models); do
  check q4_0 "$name" q4_0 --rule llama.cpp
  [[ $name != golden-* ]] || continue
  check q8_0 "$name" q8_0
  check pure "$name" q4_0 --pure
  check embedding_q8_0 "$name" q4_0 --token-embedding-type q8_0
done
judge python3 "$interop/compare_gguf.py" "${pairs[@]}"
