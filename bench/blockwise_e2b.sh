#!/usr/bin/env bash
# The layer-by-layer path in the real shape of Gemma 4 E2B (random weights, 9.3 GB as BF16): memory and time of the whole, from the checkpoint to
# a quantized checkpoint, under /usr/bin/time (package: time).
# usage: bench/blockwise_e2b.sh DIR TEXT        (DIR/model is kept, and used again when it is there)
# STEPS of each layer (2), SEQUENCES of 256 tokens (8), INIT (plain), THREADS (0: all)
set -euo pipefail
[ $# = 2 ] || { sed -n '2,5p' "$0" >&2; exit 2; }
here=$(cd "$(dirname "$0")/.." && pwd)
qat=${QAT_BUILD:-$here/build}/qat
[ -f "$1/model/config.json" ] || "$qat" init --shape gemma4-e2b --seed 1 --out "$1/model"
rm -rf "$1/run"
/usr/bin/time -f 'peak resident memory %M kB, %E of wall time, %U s of processor time' "$qat" train "$here/recipes/blockwise.toml" \
  --model "$1/model" --data "$2" --out "$1/run" --threads "${THREADS:-0}" --set init="${INIT:-plain}" --set steps="${STEPS:-2}" --set batch=4 \
  --set calibration_sequences="${SEQUENCES:-8}" --set eval_sequences=1
du -sh "$1/run/quantized"
