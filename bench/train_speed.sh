#!/usr/bin/env bash
# A QAT step of qat (student on Q4_0 and float teacher) beside PyTorch's plain float step: tokens/s and peak memory of both, in
# alternating runs, since machines are noisy. Needs the reference programs: tests/interop/setup.sh.
# usage: bench/train_speed.sh MODEL_DIR TEXT [BATCH LENGTH STEPS ROUNDS]      (defaults: 8 256 4 3)
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,4p' "$0" >&2; exit 2; }
here=$(cd "$(dirname "$0")/.." && pwd)
model=$(realpath "$1") text=$(realpath "$2") batch=${3:-8} length=${4:-256} steps=${5:-4} rounds=${6:-3}
qat=${QAT_BUILD:-$here/build}/qat
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
head -c $((batch * length * (steps + 4) * 8)) "$text" >"$work/text.txt"

for round in $(seq "$rounds"); do
  for plan in q4_0 none; do
    rm -rf "$work/run"
    losses=(--set kl=1 --set ce=0)
    [ $plan = q4_0 ] || losses=(--set kl=0 --set ce=1)
    "$qat" train --model "$model" --data "$work/text.txt" --out "$work/run" --set plan=$plan "${losses[@]}" --set batch="$batch" \
      --set sequence="$length" --set steps=$((steps + 1)) --set warmup=0 --set eval_sequences=1 --set eval_every=0 \
      --set checkpoint_every=0 --set log_every=1 >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
    # The first step pays for the memory it allocates; PyTorch's first is not counted either.
    speed=$(sed -n 's/.*"step":\([0-9]*\).*"tokens_per_s":\([0-9.]*\).*/\1 \2/p' "$work/run/metrics.jsonl" |
      awk -v tokens=$((batch * length)) '$1 > 1 { seconds += tokens / $2; n++ } END { printf "%.0f", n * tokens / seconds }')
    [ $plan = q4_0 ] && what="qat, QAT step to Q4_0 with teacher" || what="qat, float step"
    printf '%-40s %6s tokens/s, peak memory %s\n' "$what" "$speed" "$(sed -n 's/.*peak memory //p' "$work/log")"
  done
  "$here/tests/interop/judge" python3 "$here/bench/pytorch_train_speed.py" "$model" --batch "$batch" --length "$length" --steps "$steps" \
    2>/dev/null | tail -n 1
done
