"""The arithmetic of bench/cuda/check.sh.
usage: figures.py matmul OUT.json                    rates of big matrix products on this GPU
       figures.py compare NAME CPU_RUN CUDA_RUN      one line: how far the losses of two runs are apart
       figures.py speed NAME RUN SMI.csv MATMUL.json KIND   one line: tokens/s, memory, share of the products' rate
compare and speed also append to $RESULTS, a line of JSON each."""
import json
import os
import statistics
import sys


def record(entry):
    if os.environ.get("RESULTS"):
        with open(os.environ["RESULTS"], "a") as file:
            file.write(json.dumps(entry) + "\n")


def metrics(run):
    with open(os.path.join(run, "metrics.jsonl")) as file:
        return [json.loads(line) for line in file]


def matmul(out):
    import torch

    def rate(m, k, n, dtype):
        a, b = torch.randn(m, k, device="cuda", dtype=dtype), torch.randn(k, n, device="cuda", dtype=dtype)
        for _ in range(3):
            a @ b
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(10):
            a @ b
        end.record()
        end.synchronize()
        return 2 * m * k * n * 10 / (start.elapsed_time(end) / 1e3) / 1e12

    rates = {}
    for kind, dtype in (("fp32", torch.float32), ("tf32", torch.float32), ("bf16", torch.bfloat16)):
        torch.backends.cuda.matmul.allow_tf32 = kind == "tf32"
        rates[kind] = {"8192x8192x8192": rate(8192, 8192, 8192, dtype), "4096x2048x8192": rate(4096, 2048, 8192, dtype)}
        print(f"matmul {kind}: " + ", ".join(f"{shape} {r:.0f} TFLOP/s" for shape, r in rates[kind].items()))
    with open(out, "w") as file:
        json.dump(rates, file)


def compare(name, cpu, cuda):
    one, other = metrics(cpu), metrics(cuda)
    losses = [(a["loss"], b["loss"]) for a, b in zip(one, other) if "loss" in a and "loss" in b]
    apart = [abs(a - b) / abs(a) for a, b in losses]
    last = [[line["eval_kl"] for line in lines if "eval_kl" in line] for lines in (one, other)]
    entry = {"part": "losses", "name": name, "steps": len(losses), "first_loss_apart": apart[0], "max_loss_apart": max(apart),
             "kld_start": [last[0][0], last[1][0]], "kld_end": [last[0][-1], last[1][-1]]}
    record(entry)
    print(f"{name:24} {len(losses):3} steps  loss apart: first {apart[0]:.1e}, most {max(apart):.1e}   held-out KLD "
          f"cpu {last[0][0]:.5f} -> {last[0][-1]:.5f}, cuda {last[1][0]:.5f} -> {last[1][-1]:.5f}")


def speed(name, run, smi, rates, kind):
    lines = [line for line in metrics(run) if "tokens_per_s" in line]
    # The first steps choose kernels and fill the allocator.
    tokens_per_s = statistics.median(line["tokens_per_s"] for line in lines[2:] or lines)
    with open(os.path.join(os.path.dirname(run), "llama-1b", "config.json")) as file:
        c = json.load(file)
    width, kv = c["hidden_size"], c["num_key_value_heads"] * c["head_dim"]
    own = c["num_attention_heads"] * c["head_dim"]
    layer = width * (2 * own + 2 * kv + 3 * c["intermediate_size"])
    weights = c["num_hidden_layers"] * layer + c["vocab_size"] * width  # the embedding's look-up multiplies nothing
    tflops = 8 * weights * tokens_per_s / 1e12  # forward 2, backward 4, teacher 2
    with open(rates) as file:
        limit = json.load(file)[kind]["8192x8192x8192"]
    memory, busy = 0, []
    with open(smi) as file:
        for line in file:
            fields = line.replace(" ", "").strip().split(",")
            if len(fields) >= 2 and fields[0].isdigit():
                memory = max(memory, int(fields[0]))
                if fields[1].isdigit():
                    busy.append(int(fields[1]))
    entry = {"part": "speed", "name": name, "tokens_per_s": tokens_per_s, "tflops": tflops, "limit_tflops": limit,
             "share": tflops / limit, "gpu_memory_mib": memory, "steps_tokens_per_s": [line["tokens_per_s"] for line in lines],
             "loss": [line["loss"] for line in lines]}
    record(entry)
    print(f"{name:24} {tokens_per_s:8.0f} tokens/s  {tflops:6.1f} TFLOP/s of {limit:.0f} ({kind}): {100 * tflops / limit:.0f} %   "
          f"GPU memory {memory / 1024:.1f} GiB   last loss {lines[-1]['loss']:.4f}")


if __name__ == "__main__":
    {"matmul": matmul, "compare": compare, "speed": speed}[sys.argv[1]](*sys.argv[2:])
