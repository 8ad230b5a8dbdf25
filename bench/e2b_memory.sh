#!/usr/bin/env bash
# Size and memory of the mobile schema in the real shape of Gemma 4 E2B: writes a directory with random weights (2.1 GB), states what the file
# holds, and generates 64 tokens after a prompt of 512 under /usr/bin/time (package: time).
# usage: bench/e2b_memory.sh DIR        (DIR is kept, and used again when it is there)
set -euo pipefail
[ $# = 1 ] || { sed -n '2,4p' "$0" >&2; exit 2; }
here=$(cd "$(dirname "$0")/.." && pwd)
qat=${QAT_BUILD:-$here/build}/qat
[ -f "$1/model.safetensors" ] || "$qat" init --shape gemma4-e2b --plan mobile --seed 1 --out "$1"
total=$(stat -c %s "$1/model.safetensors")
# 262144 rows of 35 layers x 256 codes of 4 bits, and a float32 scale for each row and layer; the head: 1536 codes of 2 bits and a scale.
table=$((262144 * (35 * 256 / 2 + 35 * 4))) head=$((262144 * (1536 / 4 + 4)))
printf 'file                          %12d bytes\nwithout the per-layer table   %12d\n... and without the head      %12d\n' \
  "$total" $((total - table)) $((total - table - head))
prompt=$(head -c 511 "$here/LICENSE")  # a byte tokenizer: 511 tokens and BOS
/usr/bin/time -f 'peak resident memory %M kB' "$qat" generate "$1" --prompt "$prompt" --tokens 64 --temperature 0 2>&1 >/dev/null | tail -n 2
