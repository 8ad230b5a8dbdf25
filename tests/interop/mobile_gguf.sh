#!/usr/bin/env bash
# The mobile schema as GGUF: every tensor that gguf-py reads equals codes times scales of the directory, and llama-perplexity runs the
# file and measures what `qat eval` measures on it.
source "$(dirname "$0")/common.sh"

pairs=()
for name in $(models); do
  [[ $name != golden-* ]] || continue
  "$qat" quantize "$references/models/$name" --plan mobile --activations off --kv-bits float --out "$work/$name" >/dev/null
  "$qat" export "$work/$name" --format gguf --out "$work/$name.gguf" >/dev/null
  pairs+=("$work/$name" "$work/$name.gguf")
done
judge python3 "$interop/compare_mobile_gguf.py" "${pairs[@]}"

rows=()
measure() {  # measure MODEL TEXT CONTEXT CHUNKS
  local file=$work/$1
  judge llama-perplexity -m "$file.gguf" -f "$2" -c "$3" --chunks "$4" -t 2 >"$file.log" 2>&1 || { tail -n 3 "$file.log"; exit 1; }
  "$qat" eval "$file.gguf" --text "$2" --context "$3" --chunks "$4" --json >"$file.json"
  rows+=("$1")
}
for name in gemma4-e2b gemma4-e4b gemma3 llama; do measure $name "$references/text.txt" 128 8; done
for row in "gemma4-micro 12" "gemma4-mini 3"; do
  read -r name chunks <<<"$row"
  if [ -d "$references/models/$name" ] && [ -f "$shared/text/prose_eval.txt" ]; then measure "$name" "$shared/text/prose_eval.txt" 512 "$chunks"; fi
done
for name in "${rows[@]}"; do
  theirs=$(sed -n 's/.*Final estimate: PPL = \([0-9.]*\).*/\1/p' "$work/$name.log")
  ours=$(sed -n 's/^ *"perplexity": \([0-9.e+]*\),$/\1/p' "$work/$name.json")
  awk -v name="$name" -v ours="$ours" -v theirs="$theirs" 'BEGIN {
    error = ours / theirs - 1
    printf "%s: perplexity: ours %.4f, llama-perplexity %.4f, %.3f %%\n", name, ours, theirs, 100 * error
    exit !(error < 0.005 && error > -0.005)
  }' || { echo "$name: expected at most 0.5 %"; exit 1; }
done
