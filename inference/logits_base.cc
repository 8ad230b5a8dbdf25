#include "inference/logits_base.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "format/error.h"
#include "format/number.h"
#include "inference/metrics.h"

namespace qat {
namespace {

constexpr char kMagic[] = "_logits_";
constexpr size_t kMagicSize = 8, kHeaderSize = kMagicSize + 3 * sizeof(int32_t);
constexpr float kDepth = 16.0f;  // nats below the largest logit that are kept
constexpr float kLevels = 65535.0f;

int32_t read_i32(const uint8_t* p) {
  int32_t value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

}  // namespace

float encode_base_row(const VectorKernels& kernels, const float* logits, int64_t vocab, uint16_t* out) {
  const float highest = kernels.max(logits, vocab);
  const float lowest = std::max(*std::min_element(logits, logits + vocab), highest - kDepth);
  const float lse = log_sum_exp(kernels, logits, vocab);
  const float scale = (highest - lowest) / kLevels;
  const float min_log_prob = lowest - lse;
  std::memcpy(out, &scale, sizeof scale);
  std::memcpy(out + 2, &min_log_prob, sizeof min_log_prob);
  uint16_t* codes = out + 4;
  if (vocab % 2 != 0) codes[vocab] = 0;
  const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
  for (int64_t v = 0; v < vocab; ++v) {
    const float level = inverse * std::max(logits[v] - lowest, 0.0f);
    codes[v] =
        static_cast<uint16_t>(float_bits(level + 0x1p23f));  // the low bits of the sum are the nearest whole number
  }
  return lse;
}

LogitsBase::LogitsBase(const std::string& path) : file_(path) {
  const Span<const uint8_t> bytes = file_.bytes();
  if (bytes.size() < kHeaderSize || std::memcmp(bytes.data(), kMagic, kMagicSize) != 0)
    fail(path, ": not a file of saved logits: expected it to begin with ", kMagic);
  const int32_t context = read_i32(bytes.data() + 8), vocab = read_i32(bytes.data() + 12),
                count = read_i32(bytes.data() + 16);
  if (context < 4 || vocab < 1 || count < 1)
    fail(path, ": header: expected a context of 4 or more, a vocabulary and chunks, found ", context, ", ", vocab,
         " and ", count);
  vocab_ = vocab;
  const uint64_t tokens = static_cast<uint64_t>(context) * static_cast<uint64_t>(count);  // below 2^62
  const uint64_t after_header = bytes.size() - kHeaderSize;
  if (tokens > after_header / sizeof(int32_t))
    fail(path, ": expected ", tokens, " tokens (", count, " chunks of ", context, "), found ", after_header, " bytes");
  rows_offset_ = kHeaderSize + tokens * sizeof(int32_t);
  // tokens is bounded by the file's length now, a row by 2^33 bytes: compare by division, the product may not fit.
  const uint64_t rows = static_cast<uint64_t>(count) * static_cast<uint64_t>(context - 1 - context / 2);
  const uint64_t row_size = static_cast<uint64_t>(base_row_words(vocab)) * sizeof(uint16_t);
  const uint64_t rest = bytes.size() - rows_offset_;
  if (rest / row_size != rows || rest % row_size != 0)
    fail(path, ": expected ", rows, " rows of ", row_size, " bytes after the tokens, found ", rest, " bytes");
  chunks_.context = context;
  chunks_.tokens.resize(tokens);
  std::memcpy(chunks_.tokens.data(), bytes.data() + kHeaderSize, tokens * sizeof(int32_t));
  for (size_t i = 0; i < tokens; ++i)
    if (chunks_.tokens[i] < 0 || chunks_.tokens[i] >= vocab)
      fail(path, ": token ", i, ": expected an id below ", vocab, ", found ", chunks_.tokens[i]);
}

void LogitsBase::read_row(int64_t index, float* log_probs) const {
  const uint8_t* row =
      file_.bytes().data() + rows_offset_ + static_cast<size_t>(index * base_row_words(vocab_)) * sizeof(uint16_t);
  float scale, min_log_prob;
  std::memcpy(&scale, row, sizeof scale);
  std::memcpy(&min_log_prob, row + sizeof scale, sizeof min_log_prob);
  if (!std::isfinite(scale) || !std::isfinite(min_log_prob) || scale < 0.0f)
    fail(path(), ": row ", index, ": expected a scale and an offset, found ", scale, " and ", min_log_prob);
  const uint8_t* codes = row + 8;
  for (int64_t v = 0; v < vocab_; ++v) {
    uint16_t code;
    std::memcpy(&code, codes + 2 * v, sizeof code);
    log_probs[v] = scale * static_cast<float>(code) + min_log_prob;
  }
}

LogitsBaseWriter::LogitsBaseWriter(const std::string& path, const EvalChunks& chunks, int64_t vocab) : file_(path) {
  const int32_t header[3] = {static_cast<int32_t>(chunks.context), static_cast<int32_t>(vocab),
                             static_cast<int32_t>(chunks.count())};
  file_.write(kMagic, kMagicSize);
  file_.write(header, sizeof header);
  file_.write(chunks.tokens.data(), chunks.tokens.size() * sizeof(int32_t));
}

}  // namespace qat
