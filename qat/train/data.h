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

// Rows of Sequences that are one text: without their BOS, each goes on where the one before ended.
struct TextRows {
  int64_t first = 0, count = 0;
  bool bos = false;  // each row begins with one
  int64_t copy = 0;  // how often the same rows came before
};

struct TrainingData {
  Sequences train;
  std::vector<TextRows> texts;  // of train; other rows (the teacher's samples) stand alone
  Sequences eval;               // held out; recipe.eval_sequences at most, spread evenly over what there is
  uint64_t hash = 0;            // of both, so that a resumed run can tell that its data is the same
};

// Sequence `index` of train as it is seen in an epoch (counted from 0), train.length tokens. The first time, row
// `index`; later, where `shift` is set, rows of a text begin elsewhere in it, so that a small text does not come in the
// same pieces again. A function of its arguments.
void copy_sequence(const TrainingData& data, int64_t index, int64_t epoch, uint64_t seed, bool shift, int32_t* out);

// Reads recipe.data in order. Text is tokenized by the tokenizer of recipe.model and packed: each sequence is BOS,
// where the tokenizer adds one, and the next tokens of the text. "teacher" is OUT/teacher_samples.safetensors
// (input_ids, whole sequences). text_share: texts are repeated until they have it. Without eval_text the last 1 % of
// the sequences, at least one, are held out. Throws Error: no text, text shorter than one sequence, ids outside the
// vocabulary, samples of another length.
TrainingData load_training_data(const Recipe& recipe, const ModelConfig& config);

// Which sequence comes when: a permutation of [0, count) per epoch, drawn from (seed, epoch) alone, so that a position
// is all the state there is.
class DataOrder {
 public:
  DataOrder(int64_t count, uint64_t seed) : count_(count), seed_(seed) {}
  int64_t at(int64_t position);  // index of the sequence used at `position`, counted over all epochs
  int64_t epoch(int64_t position) const { return position / count_; }

 private:
  int64_t count_;
  uint64_t seed_;
  int64_t epoch_ = -1;
  std::vector<int64_t> permutation_;
};

}  // namespace qat
