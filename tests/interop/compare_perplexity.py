"""Our perplexity and KL divergence against llama-perplexity's. usage: compare_perplexity.py WORK NAME ...

WORK/NAME.{float,q4}.log are llama-perplexity's; WORK/NAME.{float,q4,saved}.json ours, the last against llama.cpp's saved logits.
"""
import json
import pathlib
import re
import sys

FLOAT_PERPLEXITY, QUANTIZED_PERPLEXITY, DIVERGENCE = 0.0002, 0.003, 0.05  # relative; llama.cpp rounds activations to Q8_0 for Q4_0


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
sys.exit(1 if failed else 0)
