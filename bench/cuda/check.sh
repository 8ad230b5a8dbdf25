#!/usr/bin/env bash
# Is training on a GPU right, and how fast is it? After build.sh: the tests that need a device, the losses of small models on
# CPU and GPU, and steps of a random 1.1 B model. About four minutes; each part has a limit of its own, and a part that fails
# leaves the others alone.
# usage: bench/cuda/check.sh     PARTS="device tests losses speed" LIMIT=seconds for all of them, BUILD, QAT_SHARED (small
#        models and texts: checkpoints/, text/, goldens/), OUT (a folder for logs and check.json) from the environment
#        DEVICE=cpu SHAPE=llama-tiny STEPS=2: a rehearsal without GPU
set -u
cd "$(dirname "$0")/../.."
here=$PWD/bench/cuda build=${BUILD:-$PWD/build-cuda} shared=${QAT_SHARED:-$PWD/.dev/shared}
parts=${PARTS:-device tests losses speed} limit=${LIMIT:-240} device=${DEVICE:-cuda} shape=${SHAPE:-llama-1b}
python=${PYTHON:-python3}
export QAT_SHARED=$shared
[ -f "$build/environment" ] && . "$build/environment"
work=$build/check
rm -rf "$work"
mkdir -p "$work"
export RESULTS=$work/results.jsonl
[ -d "$shared" ] || { shared=$PWD/../shared; export QAT_SHARED=$shared; }
prose=$shared/text/prose_train.txt prose_eval=$shared/text/prose_eval.txt
tales=$shared/text/tinystories_train.txt tales_eval=$shared/text/tinystories_eval.txt

left() { echo $((limit - SECONDS)); }
wanted() { case " $parts " in *" $1 "*) [ "$(left)" -gt 5 ] || { say "$1: skipped, no time left"; return 1; } ;; *) return 1 ;; esac }
say() { echo "$*" | tee -a "$work/table.txt"; }
# try SECONDS LOG COMMAND...: under a limit; says what failed, and goes on.
try() {
  local most=$1 log=$2 start=$SECONDS code
  shift 2
  [ "$most" -le "$(left)" ] || most=$(left)
  [ "$most" -gt 0 ] || { say "skipped, no time left: $(basename "$log" .log)"; return 1; }
  timeout -k 5 "$most" "$@" > "$log" 2>&1 < /dev/null
  code=$?
  [ $code = 0 ] && return 0
  say "FAILED ($code, after $((SECONDS - start)) s): $(basename "$log" .log)"
  grep -aE -A4 'qat: error|rror:|: Failure' "$log" | head -24 | cut -c1-200
  tail -n 2 "$log" | tr '\r' '\n' | tail -n 2 | cut -c1-300
  return 1
}

# --- The device ---
if wanted device; then
  say "$(nvidia-smi -L 2>&1 | head -4)"
  try 60 "$work/torch.log" "$python" -c 'import torch; print("torch", torch.__version__, "CUDA", torch.version.cuda, torch.cuda.is_available() and torch.cuda.get_device_name())' \
    && say "$(cat "$work/torch.log")"
fi

# The big model is written while tests and small models run.
model=$work/llama-1b
if wanted speed; then
  (timeout 120 "$build/qat" init --shape "$shape" --seed 1 --out "$model" > "$work/init.log" 2>&1; echo "$? after $SECONDS s" > "$work/init.done") &
  writer=$!
fi

# --- Tests ---
if wanted tests; then
  # summary LOG: what GoogleTest counted, and the tests that failed
  summary() { say "$1: $(grep -aE '^\[  (PASSED|SKIPPED|FAILED)  ?\] [0-9]+ test' "$work/$1.log" | sed 's/^\[ *//; s/ *\]//; s/, listed below://' | tr '\n' ' ')"
              grep -aE '^\[  (FAILED|SKIPPED) \] [A-Z]' "$work/$1.log" | sort -u | head -12 | cut -c1-150; }
  try 60 "$work/fakequant.log" "$build/fakequant_test"
  summary fakequant
  try 90 "$work/train_cuda.log" "$build/train_test" '--gtest_filter=Cuda*'
  summary train_cuda
  [ "$device" = cpu ] || { try 60 "$work/train_cpu.log" env GOMP_SPINCOUNT=1000 OMP_NUM_THREADS=8 "$build/train_test" '--gtest_filter=*Golden*:*Train10*:*HeadLosses*:*AdamW*'
  summary train_cpu; }
fi

# --- The same losses ---
# train_small SIDE DEVICE NAME MODEL RECIPE TEXT HELD_OUT SETTINGS...: 20 steps into NAME-SIDE
train_small() {
  local side=$1 where=$2 name=$3 checkpoint=$shared/checkpoints/$4 recipe=recipes/$5 text=$6 held_out=$7 setting
  shift 7
  local settings=("eval_text=$held_out" sequence=256 eval_sequences=32 warmup=2 log_every=1 eval_every=0 checkpoint_every=0
                  calibration_sequences=16 "$@") flags=()
  for setting in "${settings[@]}"; do flags+=(--set "$setting"); done
  try 70 "$work/$name-$side.log" "$build/qat" train "$recipe" --model "$checkpoint" --data "$text" --out "$work/$name-$side" \
    --device "$where" --steps "${STEPS:-20}" --threads 3 "${flags[@]}"
}
cases() { cat <<CASES
stories260K-q4_0 stories260K q4_0.toml $tales $tales_eval batch=16 accumulate=1 lr=1e-4
stories260K-recipe stories260K stories260k.toml $tales $tales_eval
gemma4-micro-q4_0 gemma4-micro q4_0.toml $prose $prose_eval accumulate=1 lr=1e-3
gemma4-micro-mobile gemma4-micro gemma4-micro-mobile.toml $prose $prose_eval batch=4
CASES
}
if wanted losses; then
  # The CPU's runs all at once, beside the GPU's one after the other.
  runs=()
  while read -r -a words; do train_small cpu cpu "${words[@]}" & runs+=($!); done < <(cases)
  while read -r -a words; do train_small gpu "$device" "${words[@]}"; done < <(cases)
  wait "${runs[@]}"
  while read -r name _; do
    say "$("$python" "$here/figures.py" compare "$name" "$work/$name-cpu" "$work/$name-gpu" 2>&1 | tail -n 1)"
  done < <(cases)
fi

# --- Speed ---
# step NAME KIND BATCH: a few steps, with the float teacher; KIND fp32 or tf32, which LibTorch takes from the environment
step() {
  local name=$1 kind=$2 batch=$3 smi sampler settings=()
  [ "$(left)" -gt 25 ] || { say "$name: skipped, no time left"; return; }
  [ "$kind" = tf32 ] && settings=(env TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1)
  smi=$work/$name.smi
  nvidia-smi --query-gpu=memory.used,utilization.gpu,clocks.sm --format=csv,noheader,nounits -lms 200 > "$smi" 2>/dev/null &
  sampler=$!
  local start=$SECONDS
  try 75 "$work/$name.log" "${settings[@]}" "$build/qat" train recipes/q4_0.toml --model "$model" --data "$prose" --out "$work/run-$name" \
    --device "$device" --steps 7 --set "eval_text=$prose_eval" --set sequence=512 --set eval_sequences=4 --set "batch=$batch" --set accumulate=1 \
    --set loss_chunk=2048 --set log_every=1 --set eval_every=0 --set checkpoint_every=0 --set warmup=2 "${@:4}"
  kill $sampler 2>/dev/null
  wait $sampler 2>/dev/null
  say "$("$python" "$here/figures.py" speed "$name" "$work/run-$name" "$smi" "$work/matmul.json" "$kind" 2>&1 | tail -n 1) ($((SECONDS - start)) s in all)"
  rm -rf "$work/run-$name/quantized"
}
if wanted speed; then
  if [ "$device" = cpu ]; then echo '{"fp32": {"8192x8192x8192": 0.1}, "tf32": {"8192x8192x8192": 0.1}}' > "$work/matmul.json"
  else try 40 "$work/matmul.log" "$python" "$here/figures.py" matmul "$work/matmul.json" && while read -r line; do say "$line"; done < "$work/matmul.log"; fi
  wait $writer
  say "model $shape: $(du -shL "$model" | cut -f1), init: $(cat "$work/init.done")"
  step fp32-8x512 fp32 8
  step tf32-8x512 tf32 8
  step tf32-16x512 tf32 16
  step tf32-32x512-checkpointed tf32 32 --set gradient_checkpointing=true
  rm -rf "$model"
fi

"$python" - "$work" <<'PYTHON'
import json, os, sys
work = sys.argv[1]
lines = [json.loads(line) for line in open(work + "/results.jsonl")] if os.path.exists(work + "/results.jsonl") else []
result = {"results": lines, "table": open(work + "/table.txt").read().splitlines()}
if os.path.exists(work + "/matmul.json"): result["matmul_tflops"] = json.load(open(work + "/matmul.json"))
json.dump(result, open(work + "/check.json", "w"), indent=1)
PYTHON
if [ -n "${OUT:-}" ]; then
  mkdir -p "$OUT"
  cp "$work/check.json" "$OUT"
  tar -C "$work" -czf "$OUT/logs.tar.gz" $(cd "$work" && ls *.log *.smi */metrics.jsonl ../*.log 2>/dev/null)
fi
echo
echo "=== after $SECONDS s ==="
cat "$work/table.txt"
