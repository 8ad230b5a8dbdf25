#include "qat/train/data.h"

#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <memory>
#include <numeric>

#include "format/error.h"
#include "format/file_io.h"
#include "format/safetensors.h"
#include "format/tokenizer.h"

namespace qat {
namespace fs = std::filesystem;
namespace {

// The text files that a data entry names: itself, or the visible regular files below a directory, by name.
std::vector<std::string> text_files(const std::string& entry) {
  if (!fs::is_directory(entry)) return {entry};
  std::vector<std::string> files;
  for (auto it = fs::recursive_directory_iterator(entry); it != fs::recursive_directory_iterator(); ++it) {
    if (it->path().filename().string().front() == '.') {
      if (it->is_directory()) it.disable_recursion_pending();
    } else if (it->is_regular_file()) {
      files.push_back(it->path().string());
    }
  }
  std::sort(files.begin(), files.end());
  if (files.empty()) fail(entry, ": expected text files in this directory, found none");
  return files;
}

void check_ids(const std::vector<int32_t>& ids, int64_t vocab, const std::string& origin) {
  for (const int32_t id : ids)
    if (id < 0 || id >= vocab)
      fail(origin, ": expected token ids below the model's vocabulary of ", vocab, ", found ", id);
}

Sequences pack_text(const std::string& entry, int64_t length, int64_t vocab, const Tokenizer& tokenizer) {
  std::vector<int32_t> stream;
  size_t bytes = 0;
  for (const std::string& file : text_files(entry)) {
    const std::string text = read_file(file);
    bytes += text.size();
    const std::vector<int32_t> ids = tokenizer.encode(text, /*parse_special=*/false);
    stream.insert(stream.end(), ids.begin(), ids.end());
  }
  if (bytes == 0) fail(entry, ": expected text, found nothing (0 bytes)");
  check_ids(stream, vocab, entry);
  const bool bos = tokenizer.add_bos();
  const auto payload = static_cast<size_t>(length - (bos ? 1 : 0));
  if (stream.size() < payload)
    fail(entry, ": expected text of at least one sequence (", payload, " tokens), found ", stream.size(), " tokens");
  Sequences sequences;
  sequences.length = length;
  for (size_t begin = 0; begin + payload <= stream.size(); begin += payload) {
    if (bos) sequences.tokens.push_back(tokenizer.bos_id());
    sequences.tokens.insert(sequences.tokens.end(), stream.begin() + static_cast<std::ptrdiff_t>(begin),
                            stream.begin() + static_cast<std::ptrdiff_t>(begin + payload));
  }
  return sequences;
}

Sequences read_samples(const std::string& path, int64_t length, int64_t vocab) {
  if (!fs::exists(path))
    fail(path, ": not found: data \"teacher\" is what the teacher wrote; `qat train` makes this file");
  const Safetensors file(path);
  const TensorView& ids = file.at("input_ids");
  if (ids.shape.size() != 2 || ids.shape[0] < 1 || ids.shape[1] != length)
    fail(path, ": input_ids: expected sequences of ", length, " tokens, found shape ", shape_text(ids.shape));
  const std::vector<int64_t> values = to_ints(ids, path);
  Sequences sequences;
  sequences.length = length;
  sequences.tokens.assign(values.begin(), values.end());
  check_ids(sequences.tokens, vocab, path);
  return sequences;
}

// Appends copies of the texts, all of them in turn, until they are `share` of all rows.
void repeat_texts(double share, Sequences* all, std::vector<TextRows>* texts) {
  int64_t rows = 0;
  for (const TextRows& text : *texts) rows += text.count;
  const double samples = static_cast<double>(all->count() - rows);
  const auto wanted = static_cast<int64_t>(std::ceil(samples * share / (1.0 - share)));
  if (rows == 0 || samples == 0.0) return;
  const size_t count = texts->size();
  for (size_t i = 0; rows < wanted; ++i) {
    TextRows text = (*texts)[i % count];
    text.copy = static_cast<int64_t>(i / count) + 1;
    const int64_t first = all->count();
    all->tokens.resize(all->tokens.size() + static_cast<size_t>(text.count * all->length));
    std::copy_n(all->row(text.first), text.count * all->length, all->tokens.begin() + first * all->length);
    text.first = first;
    texts->push_back(text);
    rows += text.count;
  }
}

Sequences spread(const Sequences& from, int64_t wanted) {
  Sequences out;
  out.length = from.length;
  const int64_t n = std::min(wanted, from.count());
  for (int64_t i = 0; i < n; ++i) {
    const int32_t* row = from.row(i * from.count() / n);
    out.tokens.insert(out.tokens.end(), row, row + from.length);
  }
  return out;
}

// SplitMix64 (Steele, Lea, Flood 2014) as a function of a counter.
uint64_t mixed(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

}  // namespace

TrainingData load_training_data(const Recipe& recipe, const ModelConfig& config) {
  std::unique_ptr<Tokenizer> tokenizer;
  const auto pack = [&](const std::string& entry) {
    if (tokenizer == nullptr) tokenizer = tokenizer_from_hf(recipe.model, config.vocab);
    return pack_text(entry, recipe.sequence, config.vocab, *tokenizer);
  };
  Sequences all;
  all.length = recipe.sequence;
  TrainingData data;
  for (const std::string& entry : recipe.data) {
    const bool samples = entry == "teacher";
    const Sequences part =
        samples ? read_samples(recipe.out + "/teacher_samples.safetensors", recipe.sequence, config.vocab)
                : pack(entry);
    if (!samples) data.texts.push_back({all.count(), part.count(), tokenizer->add_bos(), 0});
    all.tokens.insert(all.tokens.end(), part.tokens.begin(), part.tokens.end());
  }
  Sequences held_out;
  if (!recipe.eval_text.empty()) {
    held_out = pack(recipe.eval_text);
  } else {
    const int64_t kept = all.count() - (all.count() + 99) / 100;
    if (kept < 1)
      fail("data: expected at least two sequences, one of them to hold out, found ", all.count(),
           "; or give eval_text");
    held_out.length = recipe.sequence;
    held_out.tokens.assign(all.tokens.begin() + static_cast<std::ptrdiff_t>(kept * recipe.sequence), all.tokens.end());
    all.tokens.resize(static_cast<size_t>(kept * recipe.sequence));
    for (TextRows& text : data.texts) text.count = std::clamp<int64_t>(kept - text.first, 0, text.count);
  }
  repeat_texts(recipe.text_share, &all, &data.texts);
  data.eval = spread(held_out, recipe.eval_sequences);
  data.train = std::move(all);
  data.hash = XXH3_64bits(data.train.tokens.data(), data.train.tokens.size() * sizeof(int32_t)) ^
              mixed(XXH3_64bits(data.eval.tokens.data(), data.eval.tokens.size() * sizeof(int32_t)));
  return data;
}

void copy_sequence(const TrainingData& data, int64_t index, int64_t epoch, uint64_t seed, bool shift, int32_t* out) {
  const int64_t length = data.train.length;
  const auto text = std::find_if(data.texts.begin(), data.texts.end(),
                                 [&](const TextRows& t) { return index >= t.first && index < t.first + t.count; });
  if (!shift || text == data.texts.end() || (epoch == 0 && text->copy == 0)) {
    std::copy_n(data.train.row(index), length, out);
    return;
  }
  const int64_t bos = text->bos ? 1 : 0, payload = length - bos;
  if (text->bos) *out++ = data.train.row(text->first)[0];
  // All rows of a text move by the same distance, so that an epoch still sees nearly all of it once.
  const uint64_t key =
      mixed(seed + 0x9e3779b97f4a7c15u * static_cast<uint64_t>(epoch)) + static_cast<uint64_t>(text->first);
  const auto distance = static_cast<int64_t>(mixed(key) % static_cast<uint64_t>(payload));
  int64_t at = ((index - text->first) * payload + distance) % ((text->count - 1) * payload + 1);
  for (int64_t left = payload; left > 0;) {
    const int64_t begin = at % payload, count = std::min(left, payload - begin);
    std::copy_n(data.train.row(text->first + at / payload) + bos + begin, count, out);
    out += count;
    at += count;
    left -= count;
  }
}

int64_t DataOrder::at(int64_t position) {
  QAT_CHECK(count_ > 0 && position >= 0);
  if (const int64_t epoch = position / count_; epoch != epoch_) {
    epoch_ = epoch;
    permutation_.resize(static_cast<size_t>(count_));
    std::iota(permutation_.begin(), permutation_.end(), int64_t{0});
    const uint64_t key = mixed(seed_ + 0x9e3779b97f4a7c15u * static_cast<uint64_t>(epoch + 1));
    for (int64_t i = count_ - 1; i > 0; --i) {
      const uint64_t random = mixed(key + 0x9e3779b97f4a7c15u * static_cast<uint64_t>(i));
      std::swap(permutation_[static_cast<size_t>(i)], permutation_[random % static_cast<uint64_t>(i + 1)]);
    }
  }
  return permutation_[static_cast<size_t>(position % count_)];
}

}  // namespace qat
