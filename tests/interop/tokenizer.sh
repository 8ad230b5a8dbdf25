#!/usr/bin/env bash
# Token ids: ours from the HF directory and from our GGUF file, llama-tokenize's from that file, and those of Hugging Face's own
# tokenizers library, are the same.
source "$(dirname "$0")/common.sh"

mkdir "$work/texts" "$work/gguf"
files=("$references/text.txt")
[ ! -f "$shared/text/wikitext2_test.txt" ] || files+=("$shared/text/wikitext2_test.txt")
judge python3 "$interop/make_texts.py" "$work/texts" "${files[@]}"
texts=("$work"/texts/*.txt)

names=() fast=()
for directory in "$references"/models/* "$references"/tokenizers/*; do
  name=$(basename "$directory")
  [[ $name != golden-* ]] || continue  # their tokenizers are among the others
  names+=("$name")
  "$qat" export "$directory" --format gguf --type f16 --out "$work/gguf/$name.gguf" >/dev/null
  "$build/interop_tokenize" "$directory" "${texts[@]}" >"$work/$name.hf"
  [ ! -f "$directory/tokenizer.json" ] || fast+=("$directory/tokenizer.json" "$work/$name.hf")
  "$build/interop_tokenize" "$work/gguf/$name.gguf" "${texts[@]}" >"$work/$name.gguf-ids"
done
judge bash -c 'cd "$1" && shift && for name in "$@"; do for text in texts/*.txt; do
    llama-tokenize -m gguf/$name.gguf -f $text --ids --log-disable 2>/dev/null || echo failed; done >$name.llama; done' - "$work" "${names[@]}"

status=0
judge python3 "$interop/compare_ids.py" "$work/texts" "${fast[@]}" || status=1
for name in "${names[@]}"; do
  for ours in hf gguf-ids; do
    cmp -s "$work/$name.$ours" "$work/$name.llama" && continue
    status=1
    for i in "${!texts[@]}"; do
      a=$(sed -n "$((i + 1))p" "$work/$name.$ours") b=$(sed -n "$((i + 1))p" "$work/$name.llama")
      [ "$a" = "$b" ] || echo "$name ($ours): $(basename "${texts[i]}"): expected ${b:0:300}, found ${a:0:300}"
    done
  done
done
echo "${#names[@]} tokenizers, ${#texts[@]} texts, $(cat "$work"/*.llama | tr -cd , | wc -c) ids"
exit $status
