// The teacher's top k for every training sequence, computed once: OUT/teacher_top_k.safetensors.
//
// Tensor "rows", U8 (sequences, bytes per sequence), a row after the other:
//   int32 ids (length, k) | float32 logarithms of the tails' mass (length) | float16 log-probabilities (length, k)
// all little-endian; tensor "hashes", U64 (sequences): XXH3 of each row. The metadata says what they belong to: k and
// the temperature, hashes of teacher, tokenizer and text, and which of its sequences are there.
//
// A log-probability of -8 is a float16 within 0.004: rows are normalized again as they are read, which leaves noise
// of some 1e-6 nats in the KL.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "format/safetensors.h"
#include "qat/train/data.h"
#include "qat/train/losses.h"
#include "qat/train/model.h"

namespace qat {

// What a cache belongs to.
struct TeacherCacheKey {
  uint64_t teacher = 0;    // hash of its weights and config.json
  uint64_t tokenizer = 0;  // of the tokenizer's file in recipe.model
  uint64_t text = 0;       // of all training sequences, as ids
  int64_t length = 0;      // tokens per sequence
  int64_t k = 0, vocab = 0;
  double temperature = 1.0;
  std::vector<int64_t> sequences;  // which of them a run uses, ascending

  int64_t tokens() const { return static_cast<int64_t>(sequences.size()) * length; }
  int64_t row_bytes() const { return length * (k * 6 + 4); }
  uint64_t bytes() const { return sequences.size() * (static_cast<uint64_t>(row_bytes()) + sizeof(uint64_t)); }
};
// The sequences are those that recipe.steps steps see: a text longer than the run costs nothing.
TeacherCacheKey teacher_cache_key(const Recipe& recipe, const Model& teacher, const Sequences& train);

// A mapped cache. Throws Error, one line: damaged; written by another teacher or tokenizer, for another text, ...; each
// says what differs and what to do.
class TeacherCache {
 public:
  TeacherCache(const std::string& path, const TeacherCacheKey& key);
  // The rows of these sequences one after the other, (sequences * length) tokens. Throws Error when they are not what
  // was written. Any number of threads may read.
  TopK read(const std::vector<int64_t>& sequences, torch::Device device) const;

 private:
  const uint8_t* checked_row(int64_t sequence) const;
  Safetensors file_;
  TeacherCacheKey key_;
  const uint8_t* rows_ = nullptr;
  std::vector<uint64_t> hashes_;
};

// The teacher's top k of some training sequences, `batch` of them at a time.
using TeacherPass = std::function<TopK(const std::vector<int64_t>& sequences)>;

// Writes the cache whole or not at all, with a progress bar. Throws Error: the disk has not that much room, or a signal
// came (g_stop_signal).
void write_teacher_cache(const std::string& path, const TeacherCacheKey& key, int64_t batch, const TeacherPass& pass);

// Opens OUT/teacher_top_k.safetensors, writing it first when it is not there; says which, and how large it is.
TeacherCache open_teacher_cache(const std::string& out, const TeacherCacheKey& key, int64_t batch,
                                const TeacherPass& pass);

// Throws Error when the disk of `directory` has less than `bytes` free.
void check_free_space(const std::string& directory, uint64_t bytes);

}  // namespace qat
