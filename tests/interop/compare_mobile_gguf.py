"""The numbers of an exported GGUF file against codes times scales of a directory in the mobile schema. No tolerance.

usage: compare_mobile_gguf.py DIRECTORY FILE.gguf [DIRECTORY FILE.gguf ...]

gguf-py reads the file and dequantizes it, except Q2_0, which it does not know how to: there, by the format's rule. Codes are unpacked
and names mapped independently of the program.
"""
import json
import pathlib
import sys

import gguf
import numpy as np
from gguf.quants import dequantize
from safetensors.torch import load_file  # numpy has no bfloat16

ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "gemma3_text": gguf.MODEL_ARCH.GEMMA3, "gemma4_text": gguf.MODEL_ARCH.GEMMA4}


def unpacked(packed, columns):
    """Codes, as the schema packs them: low bits first, plus half of the range; int8 as it is."""
    if packed.dtype == np.int8:
        return packed
    per_byte = 4 if packed.shape[1] * 4 - columns < 4 else 2
    bits = 8 // per_byte
    fields = [(packed >> (bits * i)) & (2 ** bits - 1) for i in range(per_byte)]
    return np.stack(fields, -1).reshape(len(packed), -1)[:, :columns].astype(np.int8) - 2 ** (bits - 1)


def values(tensors, module, columns):
    """float32 [rows, columns] = code * scale."""
    table = module + ".embedding_quantized"
    codes = unpacked(tensors[table if table in tensors else module + ".weight"].numpy(), columns).astype(np.float32)
    scales = tensors[module + (".embedding_scale" if table in tensors else ".weight_scale")].numpy()
    return codes * np.repeat(scales, columns // scales.shape[1], axis=1)


def written(tensor):
    if tensor.tensor_type.name != "Q2_0":
        return dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1])
    blocks = tensor.data.reshape(-1, 18)  # float16 d, 64 codes of 2 bits, low bits first: d * (code - 1)
    d = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    codes = np.stack([(blocks[:, 2:] >> (2 * i)) & 3 for i in range(4)], -1).reshape(len(blocks), 64).astype(np.float32)
    return (d * (codes - 1)).reshape(tensor.shape[::-1])


def interleaved(rows, heads):
    return rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def check(directory, file):
    config = json.loads((directory / "config.json").read_text())
    tensors = load_file(directory / "model.safetensors")
    names = gguf.get_tensor_name_map(ARCHITECTURES[config["model_type"]], config["num_hidden_layers"])
    found = {t.name: t for t in gguf.GGUFReader(file).tensors}
    counts = {}
    for name in sorted(tensors):
        if name.endswith(("_scale", "_activation_scale")):
            continue
        module = name.removesuffix(".weight").removesuffix(".embedding_quantized")
        theirs = names.get_name(module + ".weight", try_suffixes=(".weight",))
        if theirs == "output.weight" and theirs not in found:
            theirs = "token_embd.weight"
        tensor = found.pop(theirs, None) if theirs != "token_embd.weight" else found[theirs]
        assert tensor is not None, (file, name, theirs)
        numbers = written(tensor)
        coded = name.endswith(".embedding_quantized") or module + ".weight_scale" in tensors
        expected = values(tensors, module, numbers.shape[-1]) if coded else tensors[name].float().numpy()
        if config["model_type"] == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            expected = interleaved(expected, config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"])
        if config["model_type"] == "gemma3_text" and name.endswith("norm.weight"):
            expected = np.float32(1.0) + expected
        if not np.array_equal(expected, numbers):
            yield f"{file}: {name} ({tensor.tensor_type.name}): {np.count_nonzero(expected != numbers)} of {numbers.size} values differ"
        counts[tensor.tensor_type.name] = counts.get(tensor.tensor_type.name, 0) + numbers.size
    left = set(found) - {"token_embd.weight", "rope_freqs.weight"}
    if left:
        yield f"{file}: tensors that the directory has not: {sorted(left)}"
    print(f"{file}: " + ", ".join(f"{count} {grid}" for grid, count in sorted(counts.items())))


arguments = sys.argv[1:]
faults = [line for directory, file in zip(arguments[0::2], arguments[1::2]) for line in check(pathlib.Path(directory), file)]
print("\n".join(faults))
sys.exit(1 if faults or not arguments else 0)
