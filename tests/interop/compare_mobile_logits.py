"""Logits of directories in the mobile schema: ours against transformers'.

usage: compare_mobile_logits.py DIRECTORY LOGITS.safetensors [DIRECTORY LOGITS.safetensors ...]

transformers runs in float64. A static grid's input is often a sum of products of two other grids, and lies on the boundary of two steps
then: in float32 the order of the sum decides which is taken, and one step changes every later token a little. In float64 those sums are
exact. (Not those of a norm or an exponential: a step or two in a million still differ, and a model as small as gemma4-micro feels each.)
How far transformers' own float32 comes from its float64 is shown beside; where that is more than the bound, it is the bound.
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
    exact = log_probabilities(model, ours["input_ids"])
    single = compare(exact, log_probabilities(load(directory, torch.float32)[0], ours["input_ids"]))
    same, divergence = compare(exact, torch.log_softmax(ours["logits"].double(), -1))
    print(f"{directory}: {len(linears)} quantized linears, {rounded} with static activations, {caches} cache scales; "
          f"{ours['input_ids'].numel()} tokens: same top {100 * same:.2f} %, mean KLD {divergence:.2e} "
          f"(transformers' float32: {100 * single[0]:.2f} %, {single[1]:.2e})")
    bound = max(DIVERGENCE, 1.5 * single[1]) if rounded else WEIGHTS_ONLY_DIVERGENCE
    least = min(SAME_TOP, single[0] - 0.005)
    if same < least:
        yield f"same top token: expected at least {least}, found {same}"
    if not divergence <= bound:
        yield f"mean KLD: expected at most {bound}, found {divergence}"
    if rounded not in (0, len(linears) - 1):  # all but the head
        yield f"linears with static activations: expected {len(linears) - 1}, found {rounded}"


arguments = sys.argv[1:]
lines = [f"{directory}: {fault}" for directory, logits in zip(arguments[0::2], arguments[1::2]) for fault in faults(directory, logits)]
print("\n".join(lines))
sys.exit(1 if lines or not arguments else 0)
