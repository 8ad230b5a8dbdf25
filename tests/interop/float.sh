#!/usr/bin/env bash
# Float GGUF files: every key and every tensor as llama.cpp's converter writes them, in F32, F16 and BF16.
source "$(dirname "$0")/common.sh"

pairs=()
for name in $(models); do
  for type in f32 f16 bf16; do
    "$qat" export "$references/models/$name" --format gguf --type $type --out "$work/$name-$type.gguf" >/dev/null
    pairs+=("$work/$name-$type.gguf" "$references/float/$name-$type.gguf")
  done
done
judge python3 "$interop/compare_gguf.py" "${pairs[@]}"
