#!/usr/bin/env bash
# A GGUF file of a known shape with random weights, for measurements of speed: all matrices of one type, tables and head too.
# usage: bench/make_model.sh SHAPE TYPE FILE.gguf      (SHAPE: qat init --help; TYPE: q4_0, q8_0, f16, bf16, ...)
#   bench/make_model.sh llama-1b q4_0 llama-1b-q4_0.gguf          0.6 GB; on the way 2.8 GB beside it
#   bench/make_model.sh gemma4-e2b bf16 gemma4-e2b-bf16.gguf      9.3 GB; on the way 19 GB beside it
set -euo pipefail
[ $# = 3 ] || { sed -n '2,5p' "$0" >&2; exit 2; }
here=$(cd "$(dirname "$0")/.." && pwd)
qat=${QAT_BUILD:-$here/build}/qat
work=$(mktemp -d "$(dirname "$3")/make_model.XXXXXX")
trap 'rm -rf "$work"' EXIT

"$qat" init --shape "$1" --seed 1 --out "$work/$1"
"$qat" quantize "$work/$1" --plan "$2" --pure --out "$work/quantized"
rm -r "${work:?}/$1"
"$qat" export "$work/quantized" --format gguf --out "$3"
