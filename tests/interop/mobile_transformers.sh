#!/usr/bin/env bash
# A directory in the mobile schema loads in transformers with no key too many or too few, and computes there what our reference path
# computes. transformers does not quantize its KV cache, so neither do we here.
source "$(dirname "$0")/common.sh"

rows=()
check() {  # check NAME MODEL TEXT OPTION...
  local name=$1 model=$references/models/$2 text=$3
  shift 3
  "$qat" quantize "$model" --plan mobile "$@" --out "$work/$name" >/dev/null
  "$build/interop_tokenize" "$work/$name" "$text" | tr -d '[],' | cut -d ' ' -f 1-512 >"$work/$name.ids"
  "$qat" logits "$work/$name" --ids "$work/$name.ids" --reference --kv-cache float --out "$work/$name.safetensors" >/dev/null
  rows+=("$work/$name" "$work/$name.safetensors")
}
# Random weights: every kind of model, every width.
for name in llama gemma3 gemma4-e2b gemma4-e4b gemma4-31b; do
  check $name $name "$references/text.txt" --activations off --kv-bits float
done
# Trained ones: static activations and cache scales too.
for name in gemma4-micro gemma4-mini; do
  if [ -d "$references/models/$name" ] && [ -f "$shared/text/prose_eval.txt" ]; then
    head -c 100000 "$shared/text/prose_eval.txt" >"$work/$name.txt"
    check $name $name "$work/$name.txt" --calibrate "$shared/text/prose_train.txt"
  fi
done
judge python3 "$interop/compare_mobile_logits.py" "${rows[@]}"
