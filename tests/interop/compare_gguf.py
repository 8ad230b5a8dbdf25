"""Compares GGUF files of ours with a reference program's, key by key and tensor by tensor, byte by byte.

usage: compare_gguf.py OURS THEIRS [OURS THEIRS ...]

The order of keys and tensors does not count. Exit status 1 and one line per difference when the files differ.
"""
import sys

from gguf import GGUFReader

# Keys that may differ, and why. Nothing else may (but see same_token_types).
MEANT = {
    "GGUF.kv_count": "follows from the keys below",
    "general.name": "the directory's name as it is; the converter turns it into a title",
    "general.size_label": "always the parameter count; the converter believes words like 'mini' in the directory's name",
    "general.basename": "guessed from the directory's name by the converter; llama.cpp does not read it",
    "general.finetune": "the same",
    "general.version": "the same",
}
NORMAL, CONTROL = 1, 3


def metadata(reader):
    return {key: ([t.name for t in field.types], field.contents()) for key, field in reader.fields.items()}


def same_token_types(ours, theirs):
    """gemma4: the converter forgets that "<mask>" and "<start_of_turn>" are special where tokenizer_config.json does not name
    them, and llama.cpp then spells them out. We keep what tokenizer.json says, and transformers' ids."""
    return len(ours) == len(theirs) and all(a == b or (a, b) == (CONTROL, NORMAL) for a, b in zip(ours, theirs))


def different_keys(a, b):
    for key in sorted(a.keys() | b.keys()):
        if key in MEANT or a.get(key) == b.get(key):
            continue
        if key == "tokenizer.ggml.token_type" and b["general.architecture"][1] == "gemma4" and same_token_types(a[key][1], b[key][1]):
            continue
        yield f"key {key}: expected {str(b.get(key))[:200]}, found {str(a.get(key))[:200]}"


def different_tensors(ours, theirs):
    a, b = ({t.name: t for t in reader.tensors} for reader in (ours, theirs))
    if len(a) != len(ours.tensors):
        yield "a tensor is there twice"
    for name in sorted(a.keys() | b.keys()):
        if name not in a or name not in b:
            yield f"tensor {name}: " + ("missing" if name in b else "not expected")
            continue
        expected = (b[name].tensor_type.name, [int(n) for n in b[name].shape])
        found = (a[name].tensor_type.name, [int(n) for n in a[name].shape])
        x, y = a[name].data.tobytes(), b[name].data.tobytes()
        if expected != found:
            yield f"tensor {name}: expected {expected}, found {found}"
        elif x != y:
            wrong = [i for i in range(len(x)) if x[i] != y[i]]
            yield f"tensor {name} ({found[0]}): {len(wrong)} of {len(x)} bytes differ, the first at {wrong[0]}"


def main(files):
    keys = tensors = differences = 0
    for ours, theirs in zip(files[0::2], files[1::2]):
        a, b = GGUFReader(ours), GGUFReader(theirs)
        for line in [*different_keys(metadata(a), metadata(b)), *different_tensors(a, b)]:
            print(f"{ours}: {line}")
            differences += 1
        keys += len(b.fields)
        tensors += len(b.tensors)
    print(f"{len(files) // 2} files, {tensors} tensors, {keys} keys: {differences} differences")
    return 1 if differences or not tensors else 0


sys.exit(main(sys.argv[1:]))
