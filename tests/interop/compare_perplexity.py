"""Our perplexity and KL divergence against llama-perplexity's. usage: compare_perplexity.py WORK NAME ...

WORK/NAME.{float,q4}.log are llama-perplexity's; WORK/NAME.{float,q4,saved}.json ours, the last against llama.cpp's saved logits;
WORK/NAME.cache-{q8_0,float}.json, where there are any: ours against llama.cpp's logits of the float file with keys and values in Q8_0.
"""
import json
import pathlib
import re
import sys

FLOAT_PERPLEXITY, QUANTIZED_PERPLEXITY, DIVERGENCE = 0.0002, 0.003, 0.05  # relative; llama.cpp rounds activations to Q8_0 for Q4_0
CACHE = 0.02  # of the divergence that the cache's rounding makes


def number(log, pattern):
    found = re.search(pattern + r"\s*[=:]\s*([-0-9.]+)", log)
    if found is None:
        sys.exit("no " + pattern + " in:\n" + log[-2000:])
    return float(found.group(1))

work = pathlib.Path(sys.argv[1])
failed = False
for name in sys.argv[2:]:
    logs = {kind: (work / f"{name}.{kind}.log").read_text() for kind in ("float", "q4")}
    ours = {kind: json.loads((work / f"{name}.{kind}.json").read_text()) for kind in ("float", "q4", "saved")}
    rows = [
        ("float perplexity", ours["float"]["perplexity"], number(logs["float"], "Final estimate: PPL"), FLOAT_PERPLEXITY),
        ("Q4_0 perplexity", ours["q4"]["perplexity"], number(logs["q4"], r"Mean PPL\(Q\)"), QUANTIZED_PERPLEXITY),
        ("mean KLD to the float file", ours["q4"]["mean_kld"], number(logs["q4"], r"Mean\s+KLD"), DIVERGENCE),
        ("mean KLD to llama.cpp's saved logits", ours["saved"]["mean_kld"], number(logs["q4"], r"Mean\s+KLD"), DIVERGENCE),
        ("saved base perplexity", ours["saved"]["base_perplexity"], number(logs["q4"], r"Mean PPL\(base\)"), FLOAT_PERPLEXITY),
    ]
    for what, found, expected, bound in rows:
        error = abs(found / expected - 1.0)
        failed = failed or not error <= bound
        print(f"{name}: {what}: ours {found:.6f}, llama-perplexity {expected:.6f}, {100 * error:.3f} %" +
              ("" if error <= bound else f": expected at most {100 * bound} %"))
    if (work / f"{name}.cache-q8_0.json").exists():
        same, other = (json.loads((work / f"{name}.cache-{kind}.json").read_text()) for kind in ("q8_0", "float"))
        right = same["mean_kld"] <= CACHE * other["mean_kld"]
        failed = failed or not right
        print(f"{name}: mean KLD to llama.cpp with a Q8_0 cache: ours with one {same['mean_kld']:.3g}, without {other['mean_kld']:.3g}, "
              f"perplexity {same['perplexity']:.4f}, {same['base_perplexity']:.4f}" + ("" if right else f": expected at most {CACHE} of it"))
sys.exit(1 if failed else 0)
