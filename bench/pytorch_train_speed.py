"""Tokens per second, processor time and peak memory of a float32 training step in PyTorch and transformers: what `qat train` is
held against (bench/train_speed.sh).

usage: pytorch_train_speed.py MODEL_DIR [--batch 8] [--length 256] [--steps 3] [--threads N]
"""
import argparse
import resource
import time

import torch
from transformers import AutoModelForCausalLM

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--batch", type=int, default=8)
parser.add_argument("--length", type=int, default=256)
parser.add_argument("--steps", type=int, default=3)
parser.add_argument("--threads", type=int, default=0)
options = parser.parse_args()
if options.threads > 0:
    torch.set_num_threads(options.threads)

model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
model.train()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.0)
torch.manual_seed(1)
ids = torch.randint(0, model.config.get_text_config().vocab_size, (options.batch, options.length))


def step():
    model(ids, labels=ids).loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def processor_seconds():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


step()
wall, processor = time.monotonic(), processor_seconds()
for _ in range(options.steps):
    step()
tokens = options.batch * options.length * options.steps
wall, processor = time.monotonic() - wall, processor_seconds() - processor
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads: {tokens / wall:.0f} tokens/s, "
      f"{1e6 * processor / tokens:.0f} us of processor time per token, peak {peak:.0f} MB")
