#!/usr/bin/env bash
# llama-perplexity loads what we write, and measures what `qat eval` measures: perplexity of float and Q4_0 files, mean KLD between them; and its
# logits with keys and values in Q8_0 are ours (heads of 32, 64 and 128 numbers, with a window and without). Not of the random Gemmas: llama.cpp's
# GELU comes from a table of float16, and what that changes in keys and values moves one code in a hundred; in gemma4-mini layers add less.
source "$(dirname "$0")/common.sh"

names=()
measure() {  # measure MODEL TEXT CONTEXT CHUNKS
  local name=$1 text=$2 context=$3 chunks=$4 file=$work/$1
  names+=("$name")
  "$qat" export "$references/models/$name" --format gguf --type f32 --out "$file-float.gguf" >/dev/null
  "$qat" quantize "$references/models/$name" --plan q4_0 --out "$file-q4" >/dev/null
  "$qat" export "$file-q4" --format gguf --out "$file-q4.gguf" >/dev/null
  local judged=(-f "$text" -c "$context" --chunks "$chunks" -t 2 --kl-divergence-base "$file.kld")
  judge llama-perplexity -m "$file-float.gguf" "${judged[@]}" >"$file.float.log" 2>&1 || { tail -n 3 "$file.float.log"; exit 1; }
  judge llama-perplexity -m "$file-q4.gguf" "${judged[@]}" --kl-divergence >"$file.q4.log" 2>&1 || { tail -n 3 "$file.q4.log"; exit 1; }
  local ours=(--text "$text" --context "$context" --chunks "$chunks" --json)
  "$qat" eval "$file-float.gguf" "${ours[@]}" >"$file.float.json"
  "$qat" eval "$file-q4.gguf" --base "$file-float.gguf" "${ours[@]}" >"$file.q4.json"
  "$qat" eval "$file-q4.gguf" --base "$file.kld" --json >"$file.saved.json"
  case $name in llama-256 | gemma4-mini)
    # Not rotated by a Hadamard matrix first, as llama.cpp has it since 2026: that is another grid.
    judge env LLAMA_ATTN_ROT_DISABLE=1 llama-perplexity -m "$file-float.gguf" -f "$text" -c "$context" --chunks "$chunks" -t 2 \
      -fa on -ctk q8_0 -ctv q8_0 --kl-divergence-base "$file.kld" >"$file.cache.log" 2>&1 || { tail -n 3 "$file.cache.log"; exit 1; }
    for cache in q8_0 float; do "$qat" eval "$file-float.gguf" --base "$file.kld" --kv-cache $cache --json >"$file.cache-$cache.json"; done ;;
  esac
}
for name in llama llama-256 gemma3 gemma4-e2b gemma4-e4b gemma4-31b; do measure $name "$references/text.txt" 128 8; done
for row in "stories260K tinystories_eval.txt 256 40" "gemma4-micro prose_eval.txt 512 12" "gemma4-mini prose_eval.txt 512 3"; do
  read -r name text context chunks <<<"$row"
  if [ -d "$references/models/$name" ] && [ -f "$shared/text/$text" ]; then measure "$name" "$shared/text/$text" "$context" "$chunks"; fi
done
judge python3 "$interop/compare_perplexity.py" "$work" "${names[@]}"
