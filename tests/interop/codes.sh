#!/usr/bin/env bash
# Every code and scale of a quantized checkpoint is what gguf-py reads from the exported file: nothing is decided twice.
source "$(dirname "$0")/common.sh"

pairs=()
for name in $(models); do
  [[ $name != golden-* ]] || continue
  "$qat" quantize "$references/models/$name" --plan q4_0 --rule search --out "$work/$name" >/dev/null
  "$qat" export "$work/$name" --format gguf --out "$work/$name.gguf" >/dev/null
  pairs+=("$work/$name" "$work/$name.gguf")
done
judge python3 "$interop/compare_codes.py" "${pairs[@]}"
