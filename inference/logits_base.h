// The file of llama-perplexity's --kl-divergence-base: the logits of a base model over a text, 16 bits each.
//
//   "_logits_", i32 context, i32 vocab, i32 chunks, i32 tokens[chunks * context], then for each scored token of each
//   chunk a row of u16: f32 scale and f32 min_log_prob in the first four, then vocab codes, padded to an even count.
//   log p(v) = scale * code(v) + min_log_prob; what is more than 16 below the largest logit has code 0.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "format/file_io.h"
#include "inference/evaluate.h"
#include "inference/kernels.h"

namespace qat {

// u16 words of a row.
inline int64_t base_row_words(int64_t vocab) { return 2 * ((vocab + 1) / 2) + 4; }

// Fills base_row_words(vocab) words; returns log_sum_exp(logits).
float encode_base_row(const VectorKernels& kernels, const float* logits, int64_t vocab, uint16_t* out);

// Opens a file; everything but the rows' contents is checked against its length and each other. Throws Error.
class LogitsBase {
 public:
  explicit LogitsBase(const std::string& path);
  const std::string& path() const { return file_.path(); }
  int64_t vocab() const { return vocab_; }
  const EvalChunks& chunks() const { return chunks_; }  // add_bos and bos_id unset: the file does not say
  // Row of the index-th scored token of all chunks, as log probabilities. Throws Error when its scale is no number.
  void read_row(int64_t index, float* log_probs) const;

 private:
  MappedFile file_;
  int64_t vocab_ = 0;
  size_t rows_offset_ = 0;  // bytes
  EvalChunks chunks_;
};

class LogitsBaseWriter {
 public:
  LogitsBaseWriter(const std::string& path, const EvalChunks& chunks, int64_t vocab);
  void append(const std::vector<uint16_t>& rows) { file_.write(rows.data(), rows.size() * sizeof(uint16_t)); }
  void commit() { file_.commit(); }

 private:
  AtomicFile file_;
};

}  // namespace qat
