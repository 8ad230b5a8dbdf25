#include "qat/train/teacher_cache.h"

#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "format/error.h"
#include "format/number.h"
#include "qat/progress.h"
#include "qat/train/trainer.h"

namespace qat {
namespace fs = std::filesystem;
namespace {

constexpr const char* kFile = "/teacher_top_k.safetensors";
constexpr const char* kFormat = "qat_teacher_top_k";
constexpr const char* kVersion = "1";

std::string text_of(uint64_t number) { return std::to_string(number); }

std::string text_of(double number) {
  char text[32];
  std::snprintf(text, sizeof text, "%.17g", number);
  return text;
}

std::string grouped(int64_t number) {  // "2,097,152"
  std::string text = std::to_string(number);
  for (auto i = static_cast<int64_t>(text.size()) - 3; i > 0; i -= 3) text.insert(static_cast<size_t>(i), ",");
  return text;
}

// --- What a cache belongs to ---

uint64_t hash_of_file(const std::string& path) {
  const MappedFile file(path);
  return XXH3_64bits(file.bytes().data(), file.bytes().size());
}

// Weights as the float32 that the teacher multiplies by: neither shards nor their types matter.
uint64_t teacher_hash(const Model& teacher, const std::string& directory) {
  uint64_t hash = hash_of_file(directory + "/config.json");
  for (const Parameter& p : teacher.parameters()) {
    const torch::Tensor host = p.master.detach().cpu().contiguous();
    hash = XXH3_64bits_withSeed(p.info.name.data(), p.info.name.size(), hash);
    hash = XXH3_64bits_withSeed(host.data_ptr<float>(), static_cast<size_t>(host.numel()) * sizeof(float), hash);
  }
  return hash;
}

uint64_t tokenizer_hash(const std::string& directory) {
  for (const char* name : {"/tokenizer.json", "/tokenizer.model"})
    if (fs::exists(directory + name)) return hash_of_file(directory + name);
  return 0;  // data that needed one would not have loaded
}

std::vector<int64_t> used_sequences(const Recipe& recipe, int64_t count) {
  DataOrder order(count, recipe.seed);
  const int64_t per_step = recipe.batch * recipe.accumulate;
  const int64_t used = recipe.steps >= (count + per_step - 1) / per_step ? count : recipe.steps * per_step;
  std::vector<int64_t> sequences;
  for (int64_t i = 0; i < used; ++i) sequences.push_back(order.at(i));  // one epoch at most: none comes twice
  std::sort(sequences.begin(), sequences.end());
  return sequences;
}

uint64_t selection_hash(const TeacherCacheKey& key) {
  return XXH3_64bits(key.sequences.data(), key.sequences.size() * sizeof(int64_t));
}

std::map<std::string, std::string> metadata_of(const TeacherCacheKey& key) {
  return {{"format", kFormat},
          {"version", kVersion},
          {"teacher", text_of(key.teacher)},
          {"tokenizer", text_of(key.tokenizer)},
          {"text", text_of(key.text)},
          {"sequences", text_of(selection_hash(key))},
          {"length", std::to_string(key.length)},
          {"k", std::to_string(key.k)},
          {"vocab", std::to_string(key.vocab)},
          {"temperature", text_of(key.temperature)}};
}

// What differs, in words that name the recipe's keys; the first that does: a tokenizer changes the text's ids too.
struct Aspect {
  const char* name;  // in the metadata
  const char* what;
  bool shown;  // its value says something to people
};
constexpr Aspect kAspects[] = {
    {"teacher", "another teacher's (its weights or config.json differ)", false},
    {"vocab", "of another vocabulary size", true},
    {"tokenizer", "of another tokenizer ([model] model)", false},
    {"length", "of sequences of another length ([data] sequence)", true},
    {"text", "of another training text ([data] data)", false},
    {"k", "of another [train] teacher_top_k", true},
    {"temperature", "of another [train] temperature", true},
    {"sequences", "of other sequences of this text ([train] seed, steps, batch or accumulate differ)", false}};

const std::string& value_of(const Safetensors& file, const char* name) {
  const auto found = file.metadata().find(name);
  if (found == file.metadata().end())
    fail(file.path(), ": metadata: expected ", name, ", found none: not a cache of a teacher's logits");
  return found->second;
}

void check_belongs(const Safetensors& file, const TeacherCacheKey& key) {
  if (value_of(file, "format") != kFormat) fail(file.path(), ": expected a cache of a teacher's logits");
  if (value_of(file, "version") != kVersion)
    fail(file.path(), ": expected version ", kVersion, ", found ", printable(value_of(file, "version")),
         ": remove it, and it is written again");
  const std::map<std::string, std::string> expected = metadata_of(key);
  for (const Aspect& aspect : kAspects) {
    const std::string &wanted = expected.at(aspect.name), &found = value_of(file, aspect.name);
    if (wanted == found) continue;
    fail(file.path(), ": this cache is ", aspect.what, ": expected ", aspect.shown ? "" : "hash ", wanted, ", found ",
         printable(found), "; remove it, and it is written again, or take back the change");
  }
}

Safetensors open_file(const std::string& path) {
  try {
    return Safetensors(path);
  } catch (const Error& error) {
    fail(error.what(), "; remove the file, and it is written again");
  }
}

// --- Rows ---

// Where the parts of a row begin, in bytes.
struct RowLayout {
  size_t ids, tails, log_p;
  explicit RowLayout(const TeacherCacheKey& key)
      : ids(static_cast<size_t>(key.length * key.k) * 4),
        tails(static_cast<size_t>(key.length) * 4),
        log_p(static_cast<size_t>(key.length * key.k) * 2) {}
};

// top: a whole number of sequences, on the CPU; row: which of them.
std::vector<uint8_t> encode_row(const TopK& top, int64_t row, const TeacherCacheKey& key) {
  const RowLayout size(key);
  const int64_t entries = key.length * key.k;
  std::vector<uint8_t> bytes(static_cast<size_t>(key.row_bytes()));
  std::vector<int32_t> ids(static_cast<size_t>(entries));
  std::vector<uint16_t> log_p(static_cast<size_t>(entries));
  const int64_t* from_ids = top.ids.data_ptr<int64_t>() + row * entries;
  const float* from_log_p = top.log_p.data_ptr<float>() + row * entries;
  for (int64_t i = 0; i < entries; ++i) {
    ids[static_cast<size_t>(i)] = static_cast<int32_t>(from_ids[i]);
    log_p[static_cast<size_t>(i)] = f32_to_f16(from_log_p[i]);
  }
  std::memcpy(bytes.data(), ids.data(), size.ids);
  std::memcpy(bytes.data() + size.ids, top.log_tail.data_ptr<float>() + row * key.length, size.tails);
  std::memcpy(bytes.data() + size.ids + size.tails, log_p.data(), size.log_p);
  return bytes;
}

// Rounded to float16, the probabilities no longer sum to 1 with their tail.
void normalize(float* log_p, int64_t k, bool has_tail, float& log_tail) {
  double sum = has_tail ? std::exp(static_cast<double>(log_tail)) : 0.0;
  for (int64_t i = 0; i < k; ++i) sum += std::exp(static_cast<double>(log_p[i]));
  const auto shift = static_cast<float>(std::log(sum));
  for (int64_t i = 0; i < k; ++i) log_p[i] -= shift;
  log_tail -= shift;
}

void decode_row(const uint8_t* bytes, const TeacherCacheKey& key, int64_t* ids, float* log_p, float* log_tail) {
  const RowLayout size(key);
  std::memcpy(log_tail, bytes + size.ids, size.tails);
  for (int64_t i = 0; i < key.length * key.k; ++i) {
    int32_t id = 0;
    uint16_t half = 0;
    std::memcpy(&id, bytes + i * 4, 4);
    std::memcpy(&half, bytes + size.ids + size.tails + static_cast<size_t>(i) * 2, 2);
    ids[i] = id;
    log_p[i] = f16_to_f32(half);
  }
  for (int64_t t = 0; t < key.length; ++t) normalize(log_p + t * key.k, key.k, key.k < key.vocab, log_tail[t]);
}

// What a killed run left half-written: nobody else writes this file.
void remove_half_written(const std::string& path) {
  const fs::path parent = fs::path(path).parent_path();
  const std::string begin = fs::path(path).filename().string() + ".tmp.";
  std::vector<fs::path> leftovers;
  for (const auto& entry : fs::directory_iterator(parent.empty() ? "." : parent))
    if (entry.path().filename().string().rfind(begin, 0) == 0) leftovers.push_back(entry.path());
  for (const fs::path& leftover : leftovers) fs::remove(leftover);
}

}  // namespace

TeacherCacheKey teacher_cache_key(const Recipe& recipe, const Model& teacher, const Sequences& train) {
  TeacherCacheKey key;
  key.teacher = teacher_hash(teacher, recipe.teacher.empty() ? recipe.model : recipe.teacher);
  key.tokenizer = tokenizer_hash(recipe.model);
  key.text = XXH3_64bits(train.tokens.data(), train.tokens.size() * sizeof(int32_t));
  key.length = train.length;
  key.k = recipe.teacher_top_k;
  key.vocab = teacher.config().vocab;
  key.temperature = recipe.temperature;
  key.sequences = used_sequences(recipe, train.count());
  return key;
}

TeacherCache::TeacherCache(const std::string& path, const TeacherCacheKey& key) : file_(open_file(path)), key_(key) {
  check_belongs(file_, key_);
  const auto count = static_cast<int64_t>(key_.sequences.size());
  const TensorView &rows = file_.at("rows"), &hashes = file_.at("hashes");
  const std::vector<int64_t> rows_shape = {count, key_.row_bytes()}, hashes_shape = {count};
  if (rows.dtype != DType::U8 || rows.shape != rows_shape)
    fail(path, ": rows: expected U8 ", shape_text(rows_shape), ", found ", dtype_name(rows.dtype), " ",
         shape_text(rows.shape));
  if (hashes.dtype != DType::U64 || hashes.shape != hashes_shape)
    fail(path, ": hashes: expected U64 ", shape_text(hashes_shape), ", found ", dtype_name(hashes.dtype), " ",
         shape_text(hashes.shape));
  rows_ = rows.bytes.data();
  hashes_.resize(static_cast<size_t>(count));
  std::memcpy(hashes_.data(), hashes.bytes.data(), hashes.bytes.size());
}

const uint8_t* TeacherCache::checked_row(int64_t sequence) const {
  const auto found = std::lower_bound(key_.sequences.begin(), key_.sequences.end(), sequence);
  QAT_CHECK(found != key_.sequences.end() && *found == sequence);
  const auto index = static_cast<size_t>(found - key_.sequences.begin());
  const auto bytes = static_cast<size_t>(key_.row_bytes());
  const uint8_t* row = rows_ + index * bytes;
  if (XXH3_64bits(row, bytes) != hashes_[index])
    fail(file_.path(), ": sequence ", sequence,
         ": its bytes are not those that were written (the file is damaged): ", "remove it, and it is written again");
  return row;
}

TopK TeacherCache::read(const std::vector<int64_t>& sequences, torch::Device device) const {
  const auto tokens = static_cast<int64_t>(sequences.size()) * key_.length;
  TopK top{torch::empty({tokens, key_.k}, torch::kInt64), torch::empty({tokens, key_.k}, torch::kFloat32),
           torch::empty({tokens}, torch::kFloat32)};
  int64_t token = 0;
  for (const int64_t sequence : sequences) {
    const uint8_t* row = checked_row(sequence);
    decode_row(row, key_, top.ids.data_ptr<int64_t>() + token * key_.k, top.log_p.data_ptr<float>() + token * key_.k,
               top.log_tail.data_ptr<float>() + token);
    release_pages(row, static_cast<size_t>(key_.row_bytes()));
    token += key_.length;
  }
  return {top.ids.to(device), top.log_p.to(device), top.log_tail.to(device)};
}

void check_free_space(const std::string& directory, uint64_t bytes) {
  std::error_code error;
  const fs::space_info space = fs::space(directory, error);
  if (error || space.available >= bytes) return;  // unknown: the write itself will tell
  fail(directory, ": the teacher cache needs ", bytes_text(bytes), ", the disk has ", bytes_text(space.available),
       " free: lower teacher_top_k, or do without teacher_cache");
}

void write_teacher_cache(const std::string& path, const TeacherCacheKey& key, int64_t batch, const TeacherPass& pass) {
  remove_half_written(path);
  const auto count = static_cast<int64_t>(key.sequences.size());
  check_free_space(fs::absolute(path).parent_path().string(), key.bytes());
  SafetensorsWriter file(path, {{"rows", DType::U8, {count, key.row_bytes()}}, {"hashes", DType::U64, {count}}},
                         metadata_of(key));
  std::vector<uint64_t> hashes;
  ProgressBar bar("teacher cache", count);
  for (int64_t begin = 0; begin < count; begin += batch) {
    const auto at = [&](int64_t i) { return key.sequences.begin() + std::min(i, count); };
    const std::vector<int64_t> some(at(begin), at(begin + batch));
    TopK top = pass(some);
    QAT_CHECK(top.ids.numel() == static_cast<int64_t>(some.size()) * key.length * key.k);
    top = {top.ids.cpu().contiguous(), top.log_p.cpu().contiguous(), top.log_tail.cpu().contiguous()};
    for (size_t i = 0; i < some.size(); ++i) {
      const std::vector<uint8_t> row = encode_row(top, static_cast<int64_t>(i), key);
      hashes.push_back(XXH3_64bits(row.data(), row.size()));
      file.append(row.data(), row.size());
    }
    bar.update(begin + static_cast<int64_t>(some.size()));
    if (g_stop_signal != 0 && begin + batch < count)
      fail(path, ": stopped after ", hashes.size(), " of ", count, " sequences; nothing of it is kept");
  }
  file.append(hashes.data(), hashes.size() * sizeof(uint64_t));
  file.commit();
  bar.finish();
}

TeacherCache open_teacher_cache(const std::string& out, const TeacherCacheKey& key, int64_t batch,
                                const TeacherPass& pass) {
  const std::string path = out + kFile;
  const bool exists = fs::exists(path);
  const std::string size = std::to_string(key.k) + " of " + std::to_string(key.vocab) + " logits for " +
                           grouped(key.tokens()) + " tokens, " + bytes_text(key.bytes());
  if (!exists) {
    std::fprintf(stderr, "teacher cache: %s\n", size.c_str());
    write_teacher_cache(path, key, batch, pass);
  }
  TeacherCache cache(path, key);
  if (exists) std::fprintf(stderr, "teacher cache: %s, from %s\n", size.c_str(), path.c_str());
  return cache;
}

}  // namespace qat
