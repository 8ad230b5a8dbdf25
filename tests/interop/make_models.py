"""Small models of every architecture, random but with sharp predictions, saved by transformers, each with a tokenizer trained here.

usage: make_models.py OUT TEXT     writes OUT/models/NAME (complete HF directories) and OUT/tokenizers/NAME (byte-level vocabularies)
"""
import io
import json
import pathlib
import re
import sys

import sentencepiece
import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

VOCAB = 320
SLIDING, FULL = "sliding_attention", "full_attention"
GEMMA_ROPE = {FULL: {"rope_type": "default", "rope_theta": 1000000.0}, SLIDING: {"rope_type": "default", "rope_theta": 10000.0}}
GEMMA4_ROPE = dict(GEMMA_ROPE, **{FULL: {"rope_type": "proportional", "rope_theta": 1000000.0, "partial_rotary_factor": 0.25}})
LLAMA3_ROPE = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 64}
# The patterns that split text before byte-level merges, as Llama 3, Qwen 2 and GPT-2 have them.
BYTE_LEVEL = {
    "llama3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "gpt2": None,
}


def llama(**changes):
    shape = dict(vocab_size=VOCAB, hidden_size=96, intermediate_size=160, num_hidden_layers=3, num_attention_heads=6,
                 num_key_value_heads=2, head_dim=16, max_position_embeddings=512, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2,
                 initializer_range=0.1, tie_word_embeddings=False)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**dict(shape, **changes)))


def gemma3():
    config = transformers.Gemma3TextConfig(
        vocab_size=VOCAB, hidden_size=96, intermediate_size=160, num_hidden_layers=7, num_attention_heads=4, num_key_value_heads=2,
        head_dim=32, sliding_window=16, query_pre_attn_scalar=32, max_position_embeddings=512, initializer_range=0.1,
        layer_types=[SLIDING] * 5 + [FULL, SLIDING], rope_parameters=dict(GEMMA_ROPE, **{FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0}}))
    return transformers.Gemma3ForCausalLM(config)


def gemma4(**changes):
    shape = dict(vocab_size=VOCAB, vocab_size_per_layer_input=VOCAB, hidden_size=96, intermediate_size=160, num_attention_heads=4,
                 head_dim=32, global_head_dim=64, sliding_window=16, max_position_embeddings=512, initializer_range=0.08,
                 rope_parameters=GEMMA4_ROPE, final_logit_softcapping=30.0)
    return transformers.Gemma4ForCausalLM(transformers.Gemma4TextConfig(**dict(shape, **changes)))


def all_models():
    """Name, maker, dtype, tokenizer. Between them: Q6_K and its fallback, F16 fallback, tied and untied heads, every rope."""
    return [
        ("llama", lambda: llama(rope_parameters=dict(LLAMA3_ROPE)), torch.float32, "sentencepiece"),
        ("llama-256", lambda: llama(hidden_size=256, head_dim=32, num_attention_heads=8, intermediate_size=344, num_hidden_layers=2),
         torch.float16, "sentencepiece"),
        ("gemma3", gemma3, torch.bfloat16, "sentencepiece-gemma"),
        ("gemma4-e2b", lambda: gemma4(hidden_size=256, initializer_range=0.04, num_hidden_layers=8, layer_types=([SLIDING] * 3 + [FULL]) * 2, num_key_value_heads=1,
                                      num_kv_shared_layers=4, hidden_size_per_layer_input=32, use_double_wide_mlp=True),
         torch.bfloat16, "gemma4"),
        ("gemma4-e4b", lambda: gemma4(num_hidden_layers=6, layer_types=([SLIDING] * 2 + [FULL]) * 2, num_key_value_heads=2,
                                      num_kv_shared_layers=3, hidden_size_per_layer_input=32), torch.bfloat16, "gemma4"),
        ("gemma4-31b", lambda: gemma4(num_hidden_layers=6, layer_types=([SLIDING] * 2 + [FULL]) * 2, num_key_value_heads=2,
                                      num_global_key_value_heads=1, attention_k_eq_v=True, num_kv_shared_layers=0,
                                      hidden_size_per_layer_input=0), torch.bfloat16, "gemma4"),
    ]


def randomize(model):
    """Norms and scalars away from what they are initialised with, so that a forgotten one shows."""
    with torch.no_grad():
        for name, tensor in list(model.named_parameters()) + list(model.named_buffers()):
            if name.endswith("layer_scalar"):
                tensor.uniform_(0.6, 1.0)
            elif "norm" in name and tensor.dim() == 1:
                tensor.add_(0.1 * torch.randn_like(tensor))
            if "q_norm" in name and model.config.model_type == "gemma4_text":
                tensor.mul_(0.25)  # Gemma 4 does not scale scores: with norms of 1 they would be chaotically sharp


def sentencepiece_model(text, gemma):
    """A BPE of VOCAB pieces with byte fallback. Few enough letters that all fit beside the 256 bytes."""
    words = re.sub(r"[^a-z.,\n ]", " ", text.lower())
    ids = dict(pad_id=0, eos_id=1, bos_id=2, unk_id=3) if gemma else dict(unk_id=0, bos_id=1, eos_id=2, pad_id=-1)
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(words.splitlines()), model_writer=out, model_type="bpe", vocab_size=VOCAB,
                                             byte_fallback=True, character_coverage=1.0, normalization_rule_name="identity",
                                             remove_extra_whitespaces=False, add_dummy_prefix=not gemma, minloglevel=2, **ids)
    return out.getvalue()


def gemma4_tokenizer(text):
    """tokenizer.json of the Gemma 4 kind: spaces become U+2581, BPE over characters, bytes for what is left. No merge crosses a
    newline: llama.cpp cuts there, as Google's vocabulary lets it."""
    marked = re.sub(r"[^a-z., ]", "", text.lower().replace("\n", " ")).replace(" ", "\u2581")
    trained = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>", '<|"|>']
    byte_tokens = [f"<0x{b:02X}>" for b in range(256)]
    trained.train_from_iterator([marked], trainers.BpeTrainer(vocab_size=VOCAB - len(special) - 256, show_progress=False))
    learned = json.loads(trained.to_str())["model"]
    vocab = special + byte_tokens + [token for token, _ in sorted(learned["vocab"].items(), key=lambda entry: entry[1])]
    assert len(vocab) == VOCAB, len(vocab)
    added = [dict(id=i, content=t, single_word=False, lstrip=False, rstrip=False, normalized=False, special=True) for i, t in enumerate(special)]
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                                                     {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
                  "vocab": {token: i for i, token in enumerate(vocab)}, "merges": learned["merges"]},
    }


def byte_level_tokenizer(text, pattern):
    tokenizer = tokenizers.Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    split = [] if pattern is None else [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split + [byte_level]) if split else byte_level
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|begin_of_text|>", "<|end_of_text|>"]
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainers.BpeTrainer(
        vocab_size=700, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    if pattern is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A <|begin_of_text|> $B", special_tokens=[("<|begin_of_text|>", 0)])
    return tokenizer


def write_tokenizer(directory, kind, text):
    if kind == "gemma4":
        (directory / "tokenizer.json").write_text(json.dumps(gemma4_tokenizer(text), ensure_ascii=False))
        (directory / "tokenizer_config.json").write_text(json.dumps({
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>",
            "pad_token": "<pad>", "add_bos_token": True, "add_eos_token": False, "clean_up_tokenization_spaces": False,
            "chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}"}))
    else:
        (directory / "tokenizer.model").write_bytes(sentencepiece_model(text, kind == "sentencepiece-gemma"))


def main(out, text):
    torch.manual_seed(1)
    for name, make, dtype, kind in all_models():
        directory = out / "models" / name
        model = make()
        randomize(model)
        model.to(dtype).save_pretrained(directory)
        write_tokenizer(directory, kind, text)
        if name == "gemma4-e4b":  # recommendations for sampling go into the file too
            path = directory / "generation_config.json"
            path.write_text(json.dumps(dict(json.loads(path.read_text()), do_sample=True, temperature=0.9, top_k=64, top_p=0.95)))
    for name, pattern in BYTE_LEVEL.items():
        directory = out / "tokenizers" / name
        tokenizer = byte_level_tokenizer(text, pattern)
        llama(vocab_size=tokenizer.get_vocab_size(), num_hidden_layers=1, bos_token_id=0, eos_token_id=1).save_pretrained(directory)
        tokenizer.save(str(directory / "tokenizer.json"))
        (directory / "tokenizer_config.json").write_text(json.dumps({
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}))


main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]).read_text(encoding="utf-8"))
