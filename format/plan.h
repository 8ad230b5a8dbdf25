// A quantization plan: which tensor sits on which grid.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "format/grid.h"
#include "format/tensor_table.h"

namespace qat {

// The first rule whose pattern (regular expression, searched anywhere) matches the canonical or the GGUF name decides.
struct PlanRule {
  std::string pattern;
  DType grid = DType::Q4_0;
};

struct Plan {
  std::string name;             // "none", "q4_0", ...
  std::vector<PlanRule> rules;  // user's rules, tried first
  // What llama-quantize does for this target when no rule matches. F32, F16, BF16 targets: every matrix in that type.
  DType target = DType::F32;
  bool keep = false;  // plan "none": every tensor stays as the checkpoint has it
  // Types of embedding tables and of the head, instead of the target's default mixture (tied embedding, per-layer table
  // and output: Q6_K). Set by --token-embedding-type / --output-tensor-type.
  bool has_embedding_type = false, has_output_type = false;
  DType embedding_type = DType::Q6_K, output_type = DType::Q6_K;
  bool pure = false;  // every quantizable tensor gets the target
  // The mobile schema (format/mobile.h): widths as Gemma 4 E2B and E4B were published with, by role (mobile_grid());
  // rules give I2, I4, I8, or a float type. The rest is decided here:
  bool mobile = false;
  bool activations = true;                      // static 8-bit activations into and out of each linear
  int kv_sliding_bits = 8, kv_global_bits = 4;  // KV cache of sliding and of global layers: 2, 4, 8; 0: float
};

constexpr const char* kDynamicPlan = "dynamic";  // the plan q4_0 with rules chosen for one model

// Names: "none"; "f32", "f16", "bf16", "q8_0", "q4_0"; "mobile". Throws Error listing the names.
Plan plan_from_name(const std::string& name);
bool is_plan_name(const std::string& name);

// A plan that was chosen for one model (qat quantize --plan dynamic), from the qat_plan.json that was written with it:
// its directory, or the file itself. Throws Error for a file that holds none: types of other plans follow from a name.
Plan plan_from_file(const std::string& path);
// Whichever of the two the text is; a name if it could be both.
Plan plan_from_name_or_file(const std::string& text);

struct PlanEntry {
  DType grid = DType::F32;
  std::string note;  // "172 columns are no multiple of 32: F16" when the shape forced a fallback, else empty
};

// I2, I4 or I8 as the published mobile checkpoints have it: embedding and head 2 bits; attention 4; per-layer gates 8;
// MLPs 4, and 2 in the KV-shared layers where those are double-wide (E2B); the per-layer table 4 where they are, else 2
// (E4B). `table` decides which of the two a model is like. F32 for what the schema keeps float.
DType mobile_grid(const TensorInfo& info, const std::vector<TensorInfo>& table);

// The grid of every tensor in the table, by canonical name. Norms, scalars and whatever is not quantizable: F32 for 1-D
// tensors; the matrices llama-quantize leaves alone keep BF16/F16/F32 as the checkpoint has them (`source_types`).
// Fallback for rows that blocks do not divide, as in llama-quantize: Q6_K -> Q8_0, Q2_0 -> Q4_0, then F16. The order of
// decisions: format/README.md. A mobile plan takes rows of any width, and keeps floats in the type the checkpoint has.
// Throws Error for a rule that is no regular expression, matches no tensor that can be quantized, or names a type that
// is no grid of such a plan.
std::map<std::string, PlanEntry> resolve_plan(const Plan& plan, const std::vector<TensorInfo>& table,
                                              const std::map<std::string, DType>& source_types);

// The plan as it is kept in a quantized checkpoint: plan.json (name, rules, the resolved grid of each tensor).
std::string plan_to_json(const Plan& plan, const std::map<std::string, PlanEntry>& resolved);
std::map<std::string, DType> resolved_plan_from_json(const std::string& json, const std::string& origin);

}  // namespace qat
