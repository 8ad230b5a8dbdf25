// A recipe: everything that determines a training run, as TOML or as flags of `qat train`. One table of keys
// (recipe.cc) drives parsing, --explain, the resolved recipe written beside every result, and the errors (unknown key:
// the nearest one is suggested).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace qat {

struct Recipe {
  // [model]
  std::string model;  // HF directory to fine-tune
  std::string
      teacher;      // HF directory of the float teacher; empty: the model itself, frozen (only read when distills())
  std::string out;  // output directory
  // [quantization]
  std::string plan = "q4_0";       // "none" = plain float training
  std::vector<std::string> rules;  // "PATTERN=TYPE", first match wins
  std::string embedding_type,
      output_type;             // as llama-quantize's --token-embedding-type, --output-tensor-type; empty: the plan's
  std::string init = "plain";  // where codes begin: "plain", "search", "gptq", or a directory (init_is_directory)
  // plan "mobile"
  bool activations = true;                          // static 8-bit activations into and out of each linear
  int64_t kv_sliding_bits = 8, kv_global_bits = 4;  // static KV cache: 2, 4, 8; 0: float
  std::string observer = "mse";                     // calibration: "mse", "percentile", "max"
  int64_t calibration_sequences = 32;
  double activations_after = 0.1;  // fraction of steps trained before activations and caches become static
  double narrow_after = 0.0;       // fraction of steps in which 2-bit weights still have 4 bits
  double freeze_after = 0.9;       // fraction of steps after which codes stay; 1: never
  double dampening = 0.0;          // of the way to its level that a weight goes per step at the freeze; a cosine from 0
  double scale_lr = 1e-3;          // peak learning rate of the logarithms of weight scales
  double activation_lr = 1e-3;     // and of those of activations and caches
  // [data]
  std::vector<std::string>
      data;  // text files, directories of text files, or "teacher" (the float model writes its own)
  int64_t teacher_tokens = 1000000;  // how much "teacher" writes
  double text_share = 0.0;      // of the sequences, beside "teacher"'s; texts repeat until they have it; 0: as given
  int64_t sequence = 256;       // tokens per sequence
  bool shift = true;            // after the first epoch, sequences of a text begin elsewhere in it
  std::string eval_text;        // text file for evaluation during training; empty: the last 1 % of the data
  int64_t eval_sequences = 64;  // sequences of it that each evaluation uses
  // [train]
  int64_t steps = 1000;
  int64_t batch = 8;       // sequences per step and accumulation round
  int64_t accumulate = 1;  // rounds per step
  double lr = 1e-4, min_lr_ratio = 0.1;
  double relative_lr = 0.0;         // of weights on grids of learned scales, in units of their scale; 0: lr
  double norm_lr = 0.0;             // of norms; 0: lr
  int64_t lora_rank = 0;            // of the adapters that are trained instead of weights; 0: weights are trained
  double lora_alpha = 16.0;         // an adapter's product counts alpha / rank times
  int64_t warmup = 50;              // steps
  std::string optimizer = "adamw";  // "adamw", "adamw8bit"
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.0;
  double average = 0.0;  // decay of the running mean of weights and scales that is evaluated and written; 0: none
  double clip = 1.0;     // global gradient norm, 0 = off
  // The loss: a weighted sum (qat/train/losses.h).
  double kl = 1.0, reverse_kl = 0.0, jsd = 0.0, ce = 0.0;
  double jsd_beta = 0.5;       // the teacher's share in the mean distribution
  double hidden = 0.0;         // of the relative squared error of what layers pass on; falls to 0 by half the run
  double temperature = 1.0;    // of the divergences
  bool teacher_cache = false;  // the teacher's top k are computed once, into OUT/teacher_top_k.safetensors
  int64_t teacher_top_k = 0;   // teacher logits that the divergences know by name, the rest as one tail; 0: all
  bool gradient_checkpointing = false;
  int64_t loss_chunk = 256;  // tokens whose logits exist at once
  bool blockwise = false;    // layer by layer, by the error of each one's output; steps are then of each layer
  uint64_t seed = 1;
  int64_t eval_every = 100, checkpoint_every = 100, log_every = 10;  // steps; 0 = never
  int64_t keep_checkpoints = 2;
  int64_t threads = 0;         // 0: all processors
  std::string device = "cpu";  // "cpu", "cuda", "cuda:1"
  bool tf32 = false;           // on CUDA: matrix products in TF32
};

// Whether the loss has a part that needs a teacher.
inline bool distills(const Recipe& r) { return r.kl > 0.0 || r.reverse_kl > 0.0 || r.jsd > 0.0; }

// Parses TOML text or file. Throws Error: syntax (with line), unknown key (with the nearest), wrong type, impossible
// value.
Recipe recipe_from_file(const std::string& path);
Recipe recipe_from_toml(const std::string& text, const std::string& origin);
// One "section.key=value" or "key=value" on top. The value is TOML; text needs no quotes, a list may be one bare text.
void recipe_set(Recipe& recipe, const std::string& assignment);
// Where `plan` is a directory of qat quantize --plan dynamic, or its qat_plan.json: the plan q4_0 instead, with that
// file's rules after the recipe's own. Throws Error for a file that holds no such plan.
void take_plan_file(Recipe& recipe);
// Whether init names a quantized checkpoint: a text with a slash.
bool init_is_directory(const std::string& init);
// What must hold before a run: every number in its bounds, model, out and data given, plan, rules and types known,
// losses and device possible. Looks at no file. Throws Error naming key, bound and value.
void validate_recipe(const Recipe& recipe);
std::string recipe_to_toml(const Recipe& recipe);  // every key, with its comment
std::string explain_recipe();                      // every key: type, default, bounds, meaning

// Why a run begun with `before` cannot go on with `now`: one text per key that decides the result and differs,
// "[train] lr: 1e-4 -> 0.001". What may change between the two (where the run lives, how it is reported, memory for
// time, threads, device) is a column of the table and said by explain_recipe(); only an unchanged recipe on the same
// device and thread count promises the same bits.
std::vector<std::string> recipe_conflicts(const Recipe& before, const Recipe& now);

}  // namespace qat
