"""Weights that a training run multiplied by against what gguf-py reads from the exported file. No tolerance.

usage: train_codes.py CONFIG USED.safetensors FILE.gguf [CONFIG USED.safetensors FILE.gguf ...]

Names are mapped by gguf-py's own table; the rows of llama's q and k are interleaved and Gemma 3's norms shifted here once more.
"""
import json
import pathlib
import sys

import gguf
import numpy as np
from gguf.quants import dequantize
from safetensors.numpy import load_file

ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "gemma3_text": gguf.MODEL_ARCH.GEMMA3, "gemma4_text": gguf.MODEL_ARCH.GEMMA4}


def expected_values(config, name, values):
    if config["model_type"] == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
        heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
        return values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
    if config["model_type"] == "gemma3_text" and name.endswith("norm.weight"):
        return np.float32(1.0) + values
    return values


def check(config, used, file):
    names = gguf.get_tensor_name_map(ARCHITECTURES[config["model_type"]], config["num_hidden_layers"])
    written = {t.name: t for t in gguf.GGUFReader(file).tensors}
    compared = set()
    counts = {}
    for name, values in used.items():
        suffixed = name if name.endswith(".weight") else name + ".weight"
        tensor = written[names.get_name(suffixed, try_suffixes=(".weight",))]
        found = dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1])
        expected = expected_values(config, name, values)
        if not np.array_equal(expected, found):
            yield f"{file}: {name}: {np.count_nonzero(expected != found)} of {found.size} values differ"
        compared.add(tensor.name)
        counts[tensor.tensor_type.name] = counts.get(tensor.tensor_type.name, 0) + found.size
    for name in set(written) - compared - {"rope_freqs.weight"}:
        yield f"{file}: {name}: the trainer used no such tensor"
    print(f"{file}: equal: " + ", ".join(f"{count} {grid}" for grid, count in sorted(counts.items())))


arguments = sys.argv[1:]
faults = [fault for config, used, file in zip(*[iter(arguments)] * 3) for fault in check(json.loads(pathlib.Path(config).read_text()), load_file(used), file)]
print("\n".join(faults))
sys.exit(1 if faults or not arguments else 0)
