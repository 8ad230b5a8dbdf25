// Training data: text and teacher samples packed into sequences, and the order in which they are used.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "format/model_config.h"
#include "qat/recipe.h"

namespace qat {

struct Sequences {
  int64_t length = 0;           // tokens per sequence
  std::vector<int32_t> tokens;  // count() * length
  int64_t count() const { return length == 0 ? 0 : static_cast<int64_t>(tokens.size()) / length; }
  const int32_t* row(int64_t i) const { return tokens.data() + i * length; }
};

struct TrainingData {
  Sequences train;
  Sequences eval;     // held out; recipe.eval_sequences at most, spread evenly over what there is
  uint64_t hash = 0;  // of both, so that a resumed run can tell that its data is the same
};

// Reads recipe.data in order. Text is tokenized by the tokenizer of recipe.model and packed: each sequence is BOS,
// where the tokenizer adds one, and the next tokens of the text. "teacher" is OUT/teacher_samples.safetensors
// (input_ids, whole sequences). Without eval_text the last 1 % of the sequences, at least one, are held out. Throws
// Error: no text, text shorter than one sequence, ids outside the vocabulary, samples of another length.
TrainingData load_training_data(const Recipe& recipe, const ModelConfig& config);

// Which sequence comes when: a permutation of [0, count) per epoch, drawn from (seed, epoch) alone, so that a position
// is all the state there is.
class DataOrder {
 public:
  DataOrder(int64_t count, uint64_t seed) : count_(count), seed_(seed) {}
  int64_t at(int64_t position);  // index of the sequence used at `position`, counted over all epochs

 private:
  int64_t count_;
  uint64_t seed_;
  int64_t epoch_ = -1;
  std::vector<int64_t> permutation_;
};

}  // namespace qat
