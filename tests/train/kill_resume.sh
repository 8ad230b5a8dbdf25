#!/usr/bin/env bash
# A training run killed with SIGKILL at ten random moments and resumed each time ends in the bytes of one left alone.
# usage: kill_resume.sh QAT QAT_TRAIN [SEED [OPTIMIZER]]
set -euo pipefail
qat=$1 trainer=$2 RANDOM=${3:-$$} optimizer=${4:-adamw}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
here=$(cd "$(dirname "$0")/../.." && pwd)

"$qat" init --shape llama-tiny --out "$dir/model" >/dev/null 2>&1
cat "$here"/format/*.cc >"$dir/text.txt"
recipe() {  # recipe OUT
  mkdir -p "$1"
  cat >"$1/recipe.toml" <<EOF
[model]
model = "$dir/model"
out = "$1"
[quantization]
dampening = 0.02
[data]
data = ["$dir/text.txt"]
sequence = 64
eval_sequences = 4
[train]
steps = 60
batch = 2
warmup = 5
lr = 0.001
optimizer = "$optimizer"
eval_every = 20
checkpoint_every = 1
log_every = 1
average = 0.9
threads = 1
EOF
}
seconds() { date +%s.%N; }
recipe "$dir/whole"
start=$(seconds)
"$trainer" --recipe "$dir/whole/recipe.toml" >/dev/null 2>&1
whole=$(awk -v a="$start" -v b="$(seconds)" 'BEGIN { print b - a }')

recipe "$dir/killed"
kills=0
while [ $kills -lt 10 ]; do
  "$trainer" --recipe "$dir/killed/recipe.toml" --resume >/dev/null 2>&1 &
  pid=$!
  sleep "$(awk -v r=$RANDOM -v whole="$whole" 'BEGIN { print whole / 4 * r / 32768 }')"
  kill -KILL $pid 2>/dev/null || break
  wait $pid 2>/dev/null || true
  kills=$((kills + 1))
done
"$trainer" --recipe "$dir/killed/recipe.toml" --resume >/dev/null 2>&1

# What the clock decides is no part of the comparison.
strip() { sed -E 's/,?"(time|tokens_per_s)":[^,}]*//g' "$1/metrics.jsonl"; }
diff -r "$dir/whole/quantized" "$dir/killed/quantized"
diff <(strip "$dir/whole") <(strip "$dir/killed")
leftovers=$(find "$dir/killed" -name '*.tmp*')
[ -z "$leftovers" ] || { echo "left behind: $leftovers" >&2; exit 1; }
echo "killed $kills times (an uninterrupted run takes $whole s): the same bytes"
[ $kills -ge 5 ] || { echo "only $kills kills hit a living run" >&2; exit 1; }
