#!/usr/bin/env bash
# The recipes of the small Gemma 4 models with three seeds each, all side by side on one GPU, as many steps as SECONDS allow; beside them, on
# the processor's other threads, recipes/ablation.sh. After build.sh. Their directories come back to be judged elsewhere: recipes/evidence.sh
# and recipes/mobile_evidence.sh take what they find.
# The steps are chosen by the speed of 40 steps, of which two thirds are what whole runs with their evaluations reach.
# usage: bench/cuda/evidence.sh SECONDS OUT      BUILD, QAT_SHARED (checkpoints/, text/), SEEDS ("1 2 3"), JOBS of the ablation (7; 0: none),
#        VARIANTS of it, SAMPLES (a folder with samples-SEED of the float model's text), DEVICE from the environment
set -u
[ $# = 2 ] || { sed -n '2,8p' "$0" >&2; exit 2; }
seconds=$1 out=$2
cd "$(dirname "$0")/../.."
mkdir -p "$out"
out=$(realpath "$out")
export QAT_BUILD=${BUILD:-$PWD/build-cuda}
shared=${QAT_SHARED:-$PWD/.dev/shared} seeds=${SEEDS:-1 2 3} device=${DEVICE:-cuda}
[ -f "$QAT_BUILD/environment" ] && . "$QAT_BUILD/environment"
qat=$QAT_BUILD/qat
work=$(mktemp -d)
# What is there when the time ends comes back too, in one archive: some machines return few files.
finish() {
  trap - EXIT TERM
  kill $(jobs -p) 2>/dev/null
  (cd "$out" && tar czf evidence.tar.gz --exclude=checkpoints --exclude='teacher_samples*' --exclude='samples-*' -- */ *.log && rm -rf -- */)
  rm -rf "$work"
}
trap finish EXIT
trap 'exit 1' TERM

# NAME MODEL RECIPE TOKENS_OF_A_STEP
cases() { cat <<CASES
micro-q4_0 gemma4-micro gemma4-micro.toml 8192
micro-mobile gemma4-micro gemma4-micro-mobile.toml 8192
mini-mobile gemma4-mini gemma4-mini-mobile.toml 8192
CASES
}
# train DIRECTORY MODEL RECIPE SEED STEPS SETTINGS...
train() {
  local directory=$1 model=$2 recipe=$3 seed=$4 steps=$5 setting flags=()
  shift 5
  for setting in "$@"; do flags+=(--set "$setting"); done
  OMP_NUM_THREADS=1 "$qat" train "recipes/$recipe" --model "$shared/checkpoints/$model" --data "$shared/text/prose_train.txt" --out "$directory" \
    --device "$device" --threads 1 --steps "$steps" --set "eval_text=$shared/text/prose_eval.txt" --set "seed=$seed" --set checkpoint_every=0 \
    "${flags[@]}" >"$directory.log" 2>&1 </dev/null
}
all() {  # all FOLDER STEPS_OR_FILE SETTINGS...: every case with every seed
  local folder=$1 steps=$2 name model recipe tokens seed runs=()
  shift 2
  mkdir -p "$folder"
  while read -r name model recipe tokens; do
    for seed in $seeds; do
      train "$folder/$name-$seed" "$model" "$recipe" "$seed" "$(if [ -f "$steps" ]; then sed -n "s/^$name //p" "$steps"; else echo "$steps"; fi)" "$@" &
      runs+=($!)
    done
  done < <(cases)
  wait "${runs[@]}"
}

all "$work/trial" "${TRIAL:-40}" warmup=2 eval_every=0 eval_sequences=1
while read -r name _ _ tokens; do
  rate=$(for seed in $seeds; do grep -h tokens_per_s "$work/trial/$name-$seed/metrics.jsonl" | tail -n 1 | sed 's/.*"tokens_per_s": *\([0-9.]*\).*/\1/'; done | sort -g | head -n 1)
  echo "$name $(awk -v r="${rate:-1000}" -v t="$tokens" -v s=$((seconds - SECONDS - 45)) 'BEGIN { n = int(0.6 * r * s / t / 50) * 50; print (n > 1500 ? 1500 : n < 1 ? 1 : n) }')"
done < <(cases) | tee "$work/steps"
tail -n 2 "$work"/trial/*.log | tr '\r' '\n' | grep -aiE 'error' | head
echo "steps chosen after $SECONDS s"

if [ "${JOBS:-7}" -gt 0 ]; then
  mkdir -p "$out/ablation"
  [ -z "${SAMPLES:-}" ] || cp -rp "$SAMPLES"/samples-* "$out/ablation/"
  OMP_NUM_THREADS=1 SEEDS=$seeds JOBS=${JOBS:-7} timeout $((seconds - SECONDS)) recipes/ablation.sh "$shared/checkpoints/stories260K" recipes/stories260k.toml \
    "$shared/text/tinystories_eval.txt" 256 "$shared/text/tinystories_train.txt" "$out/ablation" "${VARIANTS:-recipes/ablation/stories260k.txt}" \
    >"$out/ablation.log" 2>&1 &
  ablation=$!
fi
all "$out" "$work/steps" eval_every=200
echo "trained after $SECONDS s"
for directory in "$out"/*/; do [ -d "$directory/quantized" ] && tail -n 1 "$directory/metrics.jsonl" | cut -c1-300; done
[ -z "${ablation:-}" ] || { wait $ablation; cat "$out/ablation.log"; }
echo "all after $SECONDS s"
