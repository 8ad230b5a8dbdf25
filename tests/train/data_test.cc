// Packing of text, samples of the teacher, what is wrong with either, and the order of sequences.
#include "qat/train/data.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/test_paths.h"
#include "tests/train/tiny_model.h"

namespace qat {
namespace {

using testing::HasSubstr;

class Data : public testing::Test {
 protected:
  void SetUp() override {
    write_tiny_model(directory_ / "model");
    std::filesystem::create_directories(directory_ / "out");
    recipe_.model = directory_ / "model";
    recipe_.out = directory_ / "out";
    recipe_.sequence = 16;
    recipe_.eval_sequences = 4;
    config_ = model_config_from_hf(recipe_.model);
  }

  std::string text(const std::string& name, const std::string& contents) {
    write_file(directory_ / name, contents);
    return directory_ / name;
  }

  void write_samples(const std::vector<int32_t>& ids, int64_t length) {
    SafetensorsWriter file(recipe_.out + "/teacher_samples.safetensors",
                           {{"input_ids", DType::I32, {static_cast<int64_t>(ids.size()) / length, length}}});
    file.append(ids.data(), ids.size() * 4);
    file.commit();
  }

  std::string error() {
    try {
      load_training_data(recipe_, config_);
    } catch (const Error& e) {
      return e.what();
    }
    return "no error";
  }

  TemporaryDirectory directory_;
  Recipe recipe_;
  ModelConfig config_;
};

TEST_F(Data, PacksTextWithBosInFrontOfEverySequence) {
  const std::string contents = tiny_text(40);
  recipe_.data = {text("a.txt", contents)};
  recipe_.eval_text = text("eval.txt", tiny_text(10));
  const TrainingData data = load_training_data(recipe_, config_);
  const std::vector<int32_t> ids = tokenizer_from_hf(recipe_.model, config_.vocab)->encode(contents);
  ASSERT_EQ(data.train.count(), static_cast<int64_t>(ids.size()) / 15);
  for (int64_t i = 0; i < data.train.count(); ++i) {
    EXPECT_EQ(data.train.row(i)[0], 2);
    EXPECT_TRUE(std::equal(data.train.row(i) + 1, data.train.row(i) + 16, ids.begin() + i * 15));
  }
  EXPECT_EQ(data.eval.count(), 4);
}

// In later epochs rows of a text begin elsewhere in it, samples stay; nothing that is held out is ever seen.
TEST_F(Data, LaterEpochsCutTheTextElsewhere) {
  const std::string contents = tiny_text(60);
  std::vector<int32_t> samples;
  for (int i = 0; i < 32; ++i) samples.push_back(10 + i);
  write_samples(samples, 16);
  recipe_.data = {"teacher", text("a.txt", contents)};
  const TrainingData data = load_training_data(recipe_, config_);
  const std::vector<int32_t> ids = tokenizer_from_hf(recipe_.model, config_.vocab)->encode(contents);
  const int64_t rows = data.train.count() - 2;
  const auto seen = ids.begin() + rows * 15;  // the rest is held out
  const auto row = [&](int64_t index, int64_t epoch, bool shift = true) {
    std::vector<int32_t> out(16);
    copy_sequence(data, index, epoch, 7, shift, out.data());
    return out;
  };
  int moved = 0;
  for (int64_t epoch = 0; epoch < 4; ++epoch) {
    for (int64_t i = 0; i < data.train.count(); ++i) {
      const std::vector<int32_t> found = row(i, epoch), plain(data.train.row(i), data.train.row(i) + 16);
      EXPECT_EQ(row(i, epoch), found);
      EXPECT_EQ(row(i, epoch, false), plain);
      if (i < 2 || epoch == 0) {
        EXPECT_EQ(found, plain);
        continue;
      }
      moved += found != plain;
      EXPECT_EQ(found[0], 2);
      EXPECT_NE(std::search(ids.begin(), seen, found.begin() + 1, found.end()), seen) << i << " in epoch " << epoch;
    }
  }
  EXPECT_GT(moved, rows);
}

TEST_F(Data, TextsRepeatUntilTheyHaveTheirShare) {
  std::vector<int32_t> samples(16 * 50, 7);
  write_samples(samples, 16);
  recipe_.data = {"teacher", text("a.txt", tiny_text(40)), text("b.txt", tiny_text(23))};
  recipe_.eval_text = text("eval.txt", tiny_text(10));
  const TrainingData plain = load_training_data(recipe_, config_);
  ASSERT_EQ(plain.texts.size(), 2u);
  const int64_t rows = plain.train.count() - 50;
  recipe_.text_share = 0.8;
  const TrainingData data = load_training_data(recipe_, config_);
  EXPECT_GE(data.train.count() - 50, 200);
  EXPECT_LT(data.train.count() - 50, 200 + rows);
  // Copies hold the rows of their text, and are seen cut elsewhere from the first epoch on.
  ASSERT_GT(data.texts.size(), 2u);
  const TextRows &text = data.texts[0], &copy = data.texts[2];
  EXPECT_EQ(copy.copy, 1);
  ASSERT_EQ(copy.count, text.count);
  EXPECT_TRUE(
      std::equal(data.train.row(text.first), data.train.row(text.first + text.count), data.train.row(copy.first)));
  std::vector<int32_t> first(16), again(16);
  copy_sequence(data, text.first, 0, 7, true, first.data());
  copy_sequence(data, copy.first, 0, 7, true, again.data());
  EXPECT_TRUE(std::equal(first.begin(), first.end(), data.train.row(text.first)));
  EXPECT_NE(first, again);
  recipe_.data = {"teacher"};  // no text: nothing to repeat
  EXPECT_EQ(load_training_data(recipe_, config_).train.count(), 50);
}

TEST_F(Data, HoldsOutTheLastHundredth) {
  recipe_.data = {text("a.txt", std::string(15 * 250, 'x') + std::string(15 * 50, 'y'))};
  const TrainingData data = load_training_data(recipe_, config_);
  EXPECT_EQ(data.train.count(), 297);
  EXPECT_EQ(data.eval.count(), 3);
}

TEST_F(Data, ReadsDirectoriesByNameAndLeavesHiddenFilesOut) {
  std::filesystem::create_directories(directory_ / "texts/b");
  text("texts/b/2.txt", std::string(15, '2'));
  text("texts/1.txt", std::string(15, '1'));
  text("texts/.hidden", std::string(150, '!'));
  recipe_.data = {directory_ / "texts"};
  recipe_.eval_text = text("eval.txt", tiny_text(10));
  const TrainingData data = load_training_data(recipe_, config_);
  ASSERT_EQ(data.train.count(), 2);
  EXPECT_EQ(data.train.row(0)[1] + 1, data.train.row(1)[1]);  // '1', then '2'
}

TEST_F(Data, TakesTheTeachersSamples) {
  std::vector<int32_t> ids(48);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i);
  write_samples(ids, 16);
  recipe_.data = {"teacher"};
  recipe_.eval_text = text("eval.txt", tiny_text(10));
  EXPECT_EQ(load_training_data(recipe_, config_).train.tokens, ids);
}

TEST_F(Data, HashSeesEveryToken) {
  recipe_.data = {text("a.txt", tiny_text(100))};
  const uint64_t before = load_training_data(recipe_, config_).hash;
  EXPECT_EQ(load_training_data(recipe_, config_).hash, before);
  std::string changed = tiny_text(100);
  changed[77] = '#';
  text("a.txt", changed);
  EXPECT_NE(load_training_data(recipe_, config_).hash, before);
}

TEST_F(Data, SaysWhatIsWrong) {
  recipe_.data = {text("empty.txt", "")};
  EXPECT_THAT(error(), HasSubstr("empty.txt: expected text, found nothing"));
  recipe_.data = {text("short.txt", "four")};
  EXPECT_THAT(error(), HasSubstr("short.txt: expected text of at least one sequence (15 tokens), found 4 tokens"));
  recipe_.data = {directory_ / "missing.txt"};
  EXPECT_THAT(error(), HasSubstr("missing.txt"));
  recipe_.data = {"teacher"};
  EXPECT_THAT(error(), HasSubstr("teacher_samples.safetensors: not found"));
  write_samples(std::vector<int32_t>(32, 5), 32);
  EXPECT_THAT(error(), HasSubstr("expected sequences of 16 tokens, found shape [1, 32]"));
  write_samples(std::vector<int32_t>(32, 260), 16);
  EXPECT_THAT(error(), HasSubstr("expected token ids below the model's vocabulary of 260, found 260"));
  recipe_.data = {text("one.txt", std::string(15, 'x'))};
  EXPECT_THAT(error(), HasSubstr("expected at least two sequences"));
}

TEST_F(Data, BytesThatAreNotUtf8AreTokensToo) {
  recipe_.data = {text("a.txt", std::string(300, '\xff'))};
  EXPECT_NO_THROW(load_training_data(recipe_, config_));
}

TEST(DataOrder, IsAPermutationPerEpochAndAFunctionOfThePosition) {
  DataOrder forward(97, 5), backward(97, 5), other(97, 6);
  std::vector<std::vector<int64_t>> epochs(3);
  for (int64_t p = 0; p < 3 * 97; ++p) epochs[static_cast<size_t>(p / 97)].push_back(forward.at(p));
  for (int64_t p = 3 * 97 - 1; p >= 0; --p)
    EXPECT_EQ(backward.at(p), epochs[static_cast<size_t>(p / 97)][static_cast<size_t>(p % 97)]);
  EXPECT_NE(epochs[0], epochs[1]);
  EXPECT_NE(epochs[1], epochs[2]);
  std::vector<int64_t> reseeded;
  for (int64_t p = 0; p < 97; ++p) reseeded.push_back(other.at(p));
  EXPECT_NE(reseeded, epochs[0]);
  for (auto& epoch : epochs) {
    std::sort(epoch.begin(), epoch.end());
    for (int64_t i = 0; i < 97; ++i) EXPECT_EQ(epoch[static_cast<size_t>(i)], i);
  }
}

}  // namespace
}  // namespace qat
