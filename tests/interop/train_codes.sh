#!/usr/bin/env bash
# Every weight that the trainer's last forward pass multiplied by is, bit for bit, what gguf-py reads from the exported file.
source "$(dirname "$0")/common.sh"
trainer=$build/qat-train
[ -x "$trainer" ] || { echo "SKIP: built without training (QAT_TRAINING=OFF)"; exit 77; }

cat "$repository"/format/*.cc >"$work/text.txt"
models=()
for shape in llama-tiny gemma3-tiny gemma4-tiny; do
  "$qat" init --shape $shape --out "$work/$shape" >/dev/null 2>&1
  models+=("$work/$shape")
done
[ ! -d "$shared/checkpoints/stories260K" ] || models+=("$shared/checkpoints/stories260K")

arguments=()
for model in "${models[@]}"; do
  for plan in q4_0 q4_0-gptq q8_0; do
    run=$work/run-$(basename "$model")-$plan
    [ $plan = q4_0-gptq ] && init=gptq freeze_after=0.6 || init=plain freeze_after=1.0
    mkdir -p "$run"
    cat >"$run/recipe.toml" <<EOF
[model]
model = "$model"
out = "$run"
[quantization]
plan = "${plan%-gptq}"
init = "$init"
freeze_after = $freeze_after
[data]
data = ["$work/text.txt"]
sequence = 64
eval_sequences = 2
[train]
steps = 3
batch = 2
lr = 0.002
warmup = 1
checkpoint_every = 0
EOF
    "$trainer" --recipe "$run/recipe.toml" --dump-weights "$run/used.safetensors" >/dev/null 2>&1
    "$qat" export "$run/quantized" --format gguf --out "$run/model.gguf" >/dev/null
    arguments+=("$model/config.json" "$run/used.safetensors" "$run/model.gguf")
  done
done
judge python3 "$interop/train_codes.py" "${arguments[@]}"
