"""Logits of directories in the mobile schema: ours against transformers'.

usage: compare_mobile_logits.py DIRECTORY LOGITS.safetensors [DIRECTORY LOGITS.safetensors ...]

transformers runs in float32 and in float64; the nearer one is held against the bounds, both are shown. A static grid's input is often a sum
of products of two other grids, and lies on the boundary of two steps then: the last bit of a sum decides which is taken, and one step
changes every later token a little. transformers' own two results differ by more than the bounds on gemma4-micro, because of a single step.
"""
import sys

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file

SAME_TOP, DIVERGENCE = 0.995, 1e-4
WEIGHTS_ONLY_DIVERGENCE = 1e-9  # no grid, no step

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def load(directory, dtype):
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, output_loading_info=True, attn_implementation="eager")


def key_faults(directory, keys):
    unexpected = [key for key in keys["unexpected_keys"] if not key.endswith(("k_cache_scale", "v_cache_scale"))]
    for what, wrong in (("missing", keys["missing_keys"]), ("unexpected", unexpected), ("of another shape", keys["mismatched_keys"])):
        if wrong:
            yield f"keys {what}: {sorted(wrong)[:5]}"


def log_probabilities(model, ids):
    with torch.no_grad():
        return torch.log_softmax(model(ids).logits.double(), -1)


def compare(base, other):
    """Same top token, mean KL divergence."""
    return (base.argmax(-1) == other.argmax(-1)).double().mean().item(), (base.exp() * (base - other)).sum(-1).mean().item()


def faults(directory, logits):
    model, keys = load(directory, torch.float64)
    yield from key_faults(directory, keys)
    linears = [m for m in model.modules() if type(m).__name__ == "QuantizedLinear"]
    rounded = sum(bool(m.input_activation_scale != 0) and bool(m.output_activation_scale != 0) for m in linears)
    with safe_open(directory + "/model.safetensors", "pt") as file:
        caches = sum(name.endswith("_cache_scale") for name in file.keys())
    ours = load_file(logits)
    mine = torch.log_softmax(ours["logits"].double(), -1)
    theirs = {"float64": log_probabilities(model, ours["input_ids"]),
              "float32": log_probabilities(load(directory, torch.float32)[0], ours["input_ids"])}
    results = {name: compare(base, mine) for name, base in theirs.items()}
    results["its float32 against its float64"] = compare(theirs["float64"], theirs["float32"])
    print(f"{directory}: {len(linears)} quantized linears, {rounded} with static activations, {caches} cache scales; "
          f"{ours['input_ids'].numel()} tokens; same top, mean KLD: " +
          "; ".join(f"{name} {100 * same:.2f} %, {divergence:.2e}" for name, (same, divergence) in results.items()))
    same, divergence = min(results["float64"], results["float32"], key=lambda result: result[1])
    bound = DIVERGENCE if rounded else WEIGHTS_ONLY_DIVERGENCE
    if same < SAME_TOP:
        yield f"same top token: expected at least {SAME_TOP}, found {same}"
    if not divergence <= bound:
        yield f"mean KLD: expected at most {bound}, found {divergence}"
    if rounded not in (0, len(linears) - 1):  # all but the head
        yield f"linears with static activations: expected {len(linears) - 1}, found {rounded}"


arguments = sys.argv[1:]
lines = [f"{directory}: {fault}" for directory, logits in zip(arguments[0::2], arguments[1::2]) for fault in faults(directory, logits)]
print("\n".join(lines))
sys.exit(1 if lines or not arguments else 0)
