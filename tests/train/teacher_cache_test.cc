// The teacher's logits on disk: what is read is what was written, runs with it are runs, and a cache that belongs to
// something else is refused in a line that says to what.
#include "qat/train/teacher_cache.h"

#include <gmock/gmock.h>

#include <cmath>
#include <csignal>
#include <cstring>

#include "tests/train/trainer_fixture.h"

namespace qat {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

TeacherCacheKey small_key(int64_t k) {
  TeacherCacheKey key;
  key.teacher = 1, key.tokenizer = 2, key.text = 3;
  key.length = 5, key.k = k, key.vocab = 40;
  key.sequences = {0, 2, 3, 7, 8, 11, 12};
  return key;
}

// The same for the same sequences.
TopK some_top_k(const TeacherCacheKey& key, const std::vector<int64_t>& sequences) {
  std::vector<torch::Tensor> logits;
  for (const int64_t s : sequences) {
    torch::manual_seed(static_cast<uint64_t>(s));
    logits.push_back(4 * torch::randn({key.length, key.vocab}));
  }
  return teacher_top_k({torch::cat(logits), torch::eye(key.vocab), 0.0}, key.k, 1.0, 100);
}

template <class F>
std::string error_in(F&& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

class TeacherCacheFile : public testing::Test {
 protected:
  void SetUp() override { g_stop_signal = 0; }
  void TearDown() override { g_stop_signal = 0; }
  void write(const TeacherCacheKey& key, int64_t batch = 3) const {
    write_teacher_cache(path(), key, batch, [&](const auto& sequences) { return some_top_k(key, sequences); });
  }
  std::string path() const { return directory_ / "teacher_top_k.safetensors"; }
  std::string open_error(const TeacherCacheKey& key) const {
    return error_in([&] { TeacherCache(path(), key).read(key.sequences, torch::kCPU); });
  }
  TemporaryDirectory directory_;
};

TEST_F(TeacherCacheFile, GivesBackWhatWasWritten) {
  for (const int64_t k : {1, 7, 40}) {
    const TeacherCacheKey key = small_key(k);
    write(key);
    EXPECT_NEAR(static_cast<double>(fs::file_size(path())), static_cast<double>(key.bytes()), 1000.0);
    const TeacherCache cache(path(), key);
    for (const auto& sequences : std::vector<std::vector<int64_t>>{key.sequences, {11, 0}, {8}}) {
      const TopK found = cache.read(sequences, torch::kCPU), expected = some_top_k(key, sequences);
      EXPECT_TRUE(torch::equal(found.ids, expected.ids));
      // Within what a float16 keeps, once for the number itself and once for the sum it is divided by.
      const torch::Tensor bound = (expected.log_p.abs() + 8.0) * std::pow(2.0, -11);
      EXPECT_TRUE(((found.log_p - expected.log_p).abs() <= bound).all().item<bool>());
      if (k == key.vocab) continue;
      EXPECT_LE((found.log_tail - expected.log_tail).abs().max().item<double>(), 8.0 * std::pow(2.0, -11));
      const torch::Tensor mass = found.log_p.exp().sum(-1) + found.log_tail.exp();
      EXPECT_LE((mass - 1.0).abs().max().item<double>(), 1e-6);
    }
  }
}

TEST_F(TeacherCacheFile, DamageIsNoticed) {
  const TeacherCacheKey key = small_key(7);
  write(key);
  const std::string good = read_file(path());
  for (const size_t size : {size_t{0}, size_t{7}, size_t{100}, good.size() / 2, good.size() - 1}) {
    put_file(path(), good.substr(0, size));
    EXPECT_THAT(open_error(key), AllOf(HasSubstr(path()), HasSubstr("remove the file"))) << size;
  }
  put_file(path(), good + "x");
  EXPECT_THAT(open_error(key), HasSubstr("1 more bytes"));
  uint64_t header = 0;
  std::memcpy(&header, good.data(), sizeof header);
  const auto bytes = static_cast<size_t>(key.row_bytes());
  for (const size_t at : {size_t{0}, bytes + 3, 2 * bytes + 5 * 7 * 4, 7 * bytes - 1, 7 * bytes + 2}) {
    std::string bad = good;
    bad[8 + header + at] ^= 1;
    put_file(path(), bad);
    EXPECT_THAT(open_error(key), AllOf(HasSubstr(path() + ": sequence "), HasSubstr("the file is damaged"))) << at;
  }
}

TEST_F(TeacherCacheFile, FilesOfAnotherKindAreRefused) {
  const TeacherCacheKey key = small_key(7);
  const auto put = [&](const std::map<std::string, std::string>& metadata) {
    SafetensorsWriter file(path(), {{"rows", DType::U8, {0}}}, metadata);
    file.commit();
  };
  put({{"format", "pt"}});
  EXPECT_THAT(open_error(key), HasSubstr("expected a cache of a teacher's logits"));
  put({});
  EXPECT_THAT(open_error(key), HasSubstr("metadata: expected format, found none"));
  put({{"format", "qat_teacher_top_k"}, {"version", "2"}});
  EXPECT_THAT(open_error(key), HasSubstr("expected version 1, found 2"));
  write(key);
  TeacherCacheKey longer = key;
  longer.sequences.push_back(13);
  EXPECT_THAT(open_error(longer), HasSubstr("of other sequences of this text"));
}

TEST_F(TeacherCacheFile, WhatIsStoppedLeavesNothing) {
  const TeacherCacheKey key = small_key(7);
  put_file(path() + ".tmp.12345", "of a killed run");
  const std::string error = error_in([&] {
    write_teacher_cache(path(), key, 2, [&](const auto& sequences) {
      g_stop_signal = SIGINT;
      return some_top_k(key, sequences);
    });
  });
  EXPECT_THAT(error, HasSubstr("stopped after 2 of 7 sequences"));
  EXPECT_TRUE(fs::is_empty(directory_.path()));
}

TEST_F(TeacherCacheFile, AsksForRoomFirst) {
  EXPECT_THAT(error_in([&] { check_free_space(directory_.path(), uint64_t{1} << 60); }),
              AllOf(HasSubstr("the teacher cache needs 1.15 EB"), HasSubstr("lower teacher_top_k")));
  check_free_space(directory_.path(), 1);
}

class CachedTrainer : public Trainer {
 protected:
  Recipe cached(const std::string& out) const {
    Recipe r = recipe(out);
    r.teacher_top_k = 16;
    r.teacher_cache = true;
    return r;
  }
  static std::string cache_of(const Recipe& r) { return r.out + "/teacher_top_k.safetensors"; }
};

TEST_F(CachedTrainer, TrainsAsWithTheTeacherBeside) {
  const Recipe with = cached("with");
  Recipe without = cached("without");
  without.teacher_cache = false;
  train(with);
  train(without);
  EXPECT_FALSE(fs::exists(cache_of(without)));
  const std::vector<Json> a = metrics(with), b = metrics(without);
  ASSERT_EQ(a.size(), b.size());
  // The first step sees the same weights, and nothing but the float16 of the cache between the two. From then on a code
  // that lands on the other side of its edge takes the runs apart.
  EXPECT_EQ(a[1]["step"], 1);
  for (const char* key : {"loss", "kl", "grad_norm"})
    EXPECT_NEAR(a[1][key].get<double>(), b[1][key].get<double>(), 2e-3 * b[1][key].get<double>()) << key;
  EXPECT_NEAR(a.back()["eval_kl"].get<double>(), b.back()["eval_kl"].get<double>(),
              0.1 * b.back()["eval_kl"].get<double>());
  // Evaluations are against all of the teacher's logits.
  EXPECT_EQ(a.front()["eval_kl"], b.front()["eval_kl"]);
}

TEST_F(CachedTrainer, UsesWhatItFinds) {
  const Recipe r = cached("run");
  train(r);
  const auto written = fs::last_write_time(cache_of(r));
  testing::internal::CaptureStderr();
  testing::internal::CaptureStdout();
  run_training({r, false, ""});
  testing::internal::GetCapturedStdout();
  EXPECT_THAT(testing::internal::GetCapturedStderr(),
              HasSubstr("teacher cache: 16 of 260 logits for 480 tokens, 48.2 kB, from "));
  EXPECT_EQ(fs::last_write_time(cache_of(r)), written);
}

TEST_F(CachedTrainer, ResumingAfterEveryStepGivesTheSameBits) {
  Recipe whole = cached("whole"), pieces = cached("pieces");
  whole.threads = pieces.threads = 2;
  whole.reverse_kl = pieces.reverse_kl = 0.2;
  train(whole);
  fs::create_directories(pieces.out);
  fs::copy_file(cache_of(whole), cache_of(pieces));
  for (int64_t step = 1; step < whole.steps + 1; ++step) {
    g_stop_signal = SIGTERM;
    ASSERT_EQ(train(pieces, step > 1).step, step);
  }
  g_stop_signal = 0;
  train(pieces, true);
  EXPECT_EQ(read_file(pieces.out + "/quantized/model.safetensors"),
            read_file(whole.out + "/quantized/model.safetensors"));
  EXPECT_EQ(metrics(pieces), metrics(whole));
}

TEST_F(CachedTrainer, ACacheOfSomethingElseIsRefused) {
  fs::copy(directory_ / "model", directory_ / "teacher");
  Recipe r = cached("run");
  r.teacher = directory_ / "teacher";
  train(r);
  const auto refused = [&](Recipe changed) { return error_of(changed); };
  const std::string what_to_do = "remove it, and it is written again, or take back the change";
  Recipe changed = r;
  changed.teacher_top_k = 17;
  EXPECT_THAT(refused(changed),
              AllOf(HasSubstr(cache_of(r)), HasSubstr("of another [train] teacher_top_k: expected 17, "
                                                      "found 16; " +
                                                      what_to_do)));
  changed = r;
  changed.temperature = 2.0;
  EXPECT_THAT(refused(changed), HasSubstr("of another [train] temperature: expected 2, found 1; "));
  changed = r;
  changed.sequence = 23;
  EXPECT_THAT(refused(changed), HasSubstr("of another length ([data] sequence): expected 23, found 24; "));
  changed = r;
  changed.seed = 2;
  EXPECT_THAT(refused(changed), HasSubstr("of other sequences of this text ([train] seed, steps, batch or accumulate"));

  const std::string text = read_file(directory_ / "text.txt");
  put_file(directory_ / "text.txt", "another " + text);
  EXPECT_THAT(refused(r), AllOf(HasSubstr("of another training text ([data] data)"), HasSubstr(what_to_do)));
  put_file(directory_ / "text.txt", text);

  const std::string tokenizer = read_file(directory_ / "model/tokenizer.json");
  put_file(directory_ / "model/tokenizer.json", tokenizer + "\n");
  EXPECT_THAT(refused(r), AllOf(HasSubstr("of another tokenizer ([model] model)"), HasSubstr(what_to_do)));
  put_file(directory_ / "model/tokenizer.json", tokenizer);

  std::string weights = read_file(directory_ / "teacher/model.safetensors");
  weights[weights.size() - 4] ^= 1;  // one bit of one weight
  put_file(directory_ / "teacher/model.safetensors", weights);
  EXPECT_THAT(refused(r),
              AllOf(HasSubstr("another teacher's (its weights or config.json differ)"), HasSubstr(what_to_do)));
  EXPECT_TRUE(fs::exists(cache_of(r)));
}

TEST_F(CachedTrainer, StopsAtDamageInTheMiddleOfTraining) {
  const Recipe r = cached("run");
  train(r);
  std::string bytes = read_file(cache_of(r));
  bytes[bytes.size() / 2] ^= 4;
  put_file(cache_of(r), bytes);
  EXPECT_THAT(error_of(r), AllOf(HasSubstr(cache_of(r) + ": sequence "), HasSubstr("damaged")));
}

TEST_F(CachedTrainer, MoreLogitsThanThereAreIsRefused) {
  Recipe r = cached("run");
  r.teacher_top_k = 261;
  EXPECT_THAT(error_of(r), HasSubstr("teacher_top_k: expected at most the vocabulary of 260, found 261"));
}

}  // namespace
}  // namespace qat
