"""The numbers that gguf-py reads from an exported file against codes times scales of the quantized checkpoint. No tolerance.

usage: compare_codes.py CHECKPOINT FILE.gguf [CHECKPOINT FILE.gguf ...]

Names are mapped here by gguf-py's own table, and the rows of llama's q and k are interleaved here once more.
"""
import json
import pathlib
import sys

import gguf
import numpy as np
from gguf.quants import dequantize
from safetensors.torch import load_file  # numpy has no bfloat16

ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "gemma3_text": gguf.MODEL_ARCH.GEMMA3, "gemma4_text": gguf.MODEL_ARCH.GEMMA4}


def coded_values(tensors, name, grid):
    """float32 [out, in] = code * scale, multiplied in float32 as every reader of the format does."""
    codes, scales = tensors[name + ".codes"].numpy(), tensors[name + ".scales"].float().numpy()
    rows = codes.shape[0]
    if grid == "Q4_0":  # two codes a byte, the first in the low half, plus 8
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(rows, -1).astype(np.int8) - 8
    blocks = codes.reshape(rows, scales.shape[1], -1).astype(np.float32)
    if grid != "Q6_K":
        return (scales[:, :, None] * blocks).reshape(rows, -1)
    groups = scales[:, :, None] * tensors[name + ".sub_scales"].float().numpy().reshape(rows, -1, 16)
    return (groups[:, :, :, None] * blocks.reshape(rows, -1, 16, 16)).reshape(rows, -1)


def interleaved(values, heads):
    return values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)


def check(checkpoint, file):
    config = json.loads((checkpoint / "config.json").read_text())
    grids = json.loads((checkpoint / "qat_plan.json").read_text())["tensors"]
    tensors = load_file(checkpoint / "model.safetensors")
    names = gguf.get_tensor_name_map(ARCHITECTURES[config["model_type"]], config["num_hidden_layers"])
    written = {t.name: t for t in gguf.GGUFReader(file).tensors}
    counts = {}
    for name, grid in grids.items():
        suffixed = name if name.endswith(".weight") else name + ".weight"
        tensor = written[names.get_name(suffixed, try_suffixes=(".weight",))]
        found = dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1])
        if grid in ("Q4_0", "Q8_0", "Q6_K"):
            assert tensor.tensor_type.name == grid, (name, tensor.tensor_type.name, grid)
            expected = coded_values(tensors, name, grid)
        else:
            expected = tensors[name].float().numpy()
        if config["model_type"] == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            expected = interleaved(expected, config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"])
        if config["model_type"] == "gemma3_text" and name.endswith("norm.weight"):
            expected = np.float32(1.0) + expected
        if not np.array_equal(expected.astype(np.float32), found):
            yield f"{file}: {name} ({grid}): {np.count_nonzero(expected != found)} of {found.size} values differ"
        counts[grid] = counts.get(grid, 0) + found.size
    print(f"{file}: " + ", ".join(f"{count} {grid}" for grid, count in sorted(counts.items())))


arguments = sys.argv[1:]
faults = [line for checkpoint, file in zip(arguments[0::2], arguments[1::2]) for line in check(pathlib.Path(checkpoint), file)]
print("\n".join(faults))
sys.exit(1 if faults or not arguments else 0)
