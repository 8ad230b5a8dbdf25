"""Our ids against those of Hugging Face's tokenizers library. usage: compare_ids.py TEXTS TOKENIZER_JSON IDS [TOKENIZER_JSON IDS ...]

IDS: one list per text, as interop_tokenize prints them; a BOS in front does not count.
"""
import ast
import pathlib
import sys

import tokenizers

texts = [path.read_bytes().decode() for path in sorted(pathlib.Path(sys.argv[1]).iterdir())]
differences = 0
for file, ids_file in zip(sys.argv[2::2], sys.argv[3::2]):
    tokenizer = tokenizers.Tokenizer.from_file(file)
    lists = [ast.literal_eval(line) for line in open(ids_file)]
    assert len(lists) == len(texts)
    bos = [tokenizer.token_to_id(token) for token in ("<bos>", "<|begin_of_text|>")]
    for i, (text, found) in enumerate(zip(texts, lists)):
        expected = tokenizer.encode(text, add_special_tokens=False).ids
        if found != expected and not (found[0] in bos and found[1:] == expected):
            print(f"{file}: text {i:02}: expected {str(expected)[:200]}, found {str(found)[:200]}")
            differences += 1
sys.exit(1 if differences else 0)
