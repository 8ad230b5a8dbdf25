// Recipes: what a file may say, and the one line that a wrong one gets.
#include "qat/recipe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "format/error.h"
#include "qat/nearest.h"
#include "tests/test_paths.h"

namespace qat {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

template <class F>
std::string error_of(F&& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

std::string parse_error(const std::string& text) {
  return error_of([&] { recipe_from_toml(text, "r.toml"); });
}

Recipe valid() {
  Recipe r;
  r.model = "m";
  r.out = "o";
  r.data = {"t.txt"};
  return r;
}

std::string set_error(const std::string& assignment) {
  return error_of([&] {
    Recipe r;
    recipe_set(r, assignment);
  });
}

template <class F>
std::string invalid(F&& change) {
  Recipe r = valid();
  change(r);
  return error_of([&] { validate_recipe(r); });
}

TEST(Recipe, ReadsEveryType) {
  const Recipe r = recipe_from_toml(R"(
[model]
model = "in"
[quantization]
rules = ["ffn_down=q8_0", 'a"b=f16']
[data]
data = "one.txt"
[train]
steps = 7
lr = 1
beta1 = 0.5
seed = 9223372036854770000
gradient_checkpointing = true
)",
                                    "r.toml");
  EXPECT_EQ(r.model, "in");
  EXPECT_EQ(r.rules, (std::vector<std::string>{"ffn_down=q8_0", "a\"b=f16"}));
  EXPECT_EQ(r.data, std::vector<std::string>{"one.txt"});
  EXPECT_EQ(r.steps, 7);
  EXPECT_EQ(r.lr, 1.0);
  EXPECT_EQ(r.beta1, 0.5);
  EXPECT_EQ(r.seed, 9223372036854770000u);
  EXPECT_TRUE(r.gradient_checkpointing);
  EXPECT_EQ(r.batch, Recipe().batch);  // the rest keeps its default
}

TEST(Recipe, WrittenFormReadsBackEqual) {
  Recipe r = valid();
  r.model = "with \"quotes\", \\ and \n newline, é";
  r.lr = 0.1 + 0.2;
  r.eps = 1e-30;
  r.clip = 3;
  r.seed = 1234567890123456789u;
  r.data = {"a", "b c"};
  const std::string text = recipe_to_toml(r);
  const Recipe back = recipe_from_toml(text, "written");
  EXPECT_EQ(recipe_to_toml(back), text);
  EXPECT_EQ(back.model, r.model);
  EXPECT_EQ(back.lr, r.lr);
  EXPECT_EQ(back.eps, r.eps);
  EXPECT_EQ(back.data, r.data);
}

TEST(Recipe, EveryKeyOfTheStructIsInTheTable) {
  // A member without a row would keep its default whatever the file says: the sizes of the rows' types fill the struct.
  const std::string text = recipe_to_toml(Recipe());
  size_t rows = 0;
  for (size_t at = text.find(" = "); at != std::string::npos; at = text.find(" = ", at + 1)) ++rows;
  EXPECT_EQ(rows, 63u);
  const size_t strings = 11, lists = 2, wholes = 19, numbers = 25, flags = 6;
  EXPECT_EQ(strings + lists + wholes + numbers + flags, rows);
  EXPECT_EQ(sizeof(Recipe),
            strings * sizeof(std::string) + lists * sizeof(std::vector<std::string>) + (wholes + numbers + flags) * 8);
}

TEST(Recipe, ErrorsNameFileLineAndWhatWasMeant) {
  EXPECT_THAT(parse_error("[train]\nstpes = 3\n"),
              AllOf(HasSubstr("r.toml:2: unknown key \"stpes\""), HasSubstr("did you mean \"steps\"?")));
  EXPECT_THAT(parse_error("[train]\nzzzzzzzzzzz = 3\n"),
              AllOf(HasSubstr("unknown key"), Not(HasSubstr("did you mean")), HasSubstr("--explain")));
  EXPECT_THAT(parse_error("[trian]\nsteps = 3\n"),
              HasSubstr("r.toml:1: unknown section [trian]: expected one of [model]"));
  EXPECT_THAT(parse_error("steps = 3\n"),
              HasSubstr("r.toml:1: \"steps\" belongs in [train], found outside any section"));
  EXPECT_THAT(parse_error("stesp = 3\n"), HasSubstr("did you mean \"steps\"?"));
  EXPECT_THAT(parse_error("[model]\nsteps = 3\n"),
              HasSubstr("r.toml:2: \"steps\" belongs in [train], found in [model]"));
  EXPECT_THAT(parse_error("[train]\nsteps = \"many\"\n"),
              HasSubstr("r.toml:2: [train] steps: expected whole number, found the text \"many\""));
  EXPECT_THAT(parse_error("[train]\nsteps = 1.5\n"), HasSubstr("expected whole number, found 1.5"));
  EXPECT_THAT(parse_error("[train]\nlr = true\n"), HasSubstr("expected number, found true"));
  EXPECT_THAT(parse_error("[train]\ngradient_checkpointing = 1\n"), HasSubstr("expected true or false, found 1"));
  EXPECT_THAT(parse_error("[model]\nmodel = 1\n"), HasSubstr("expected text, found 1"));
  EXPECT_THAT(parse_error("[data]\ndata = [1]\n"), HasSubstr("expected texts in the list, found 1"));
  EXPECT_THAT(parse_error("[data]\ndata = 1\n"), HasSubstr("expected list of texts, found 1"));
  EXPECT_THAT(parse_error("[train]\nsteps = 0\n"),
              HasSubstr("r.toml:2: [train] steps: expected whole number at least 1, found 0"));
  EXPECT_THAT(parse_error("[train]\nlr = nan\n"), HasSubstr("expected number from 0 to 10, found nan"));
  EXPECT_THAT(parse_error("[train]\nseed = -1\n"), HasSubstr("at least 0, found -1"));
  EXPECT_THAT(parse_error("[train]\nsteps = \n"), HasSubstr("r.toml:2: not valid TOML"));
  EXPECT_THAT(parse_error("[train]\nsteps = 1\nsteps = 2\n"), HasSubstr("r.toml:3: not valid TOML"));
  EXPECT_THAT(parse_error("[model]\nmodel = \"\xff\"\n"), HasSubstr("not valid TOML"));
}

TEST(Recipe, FileErrorsNameTheFile) {
  const TemporaryDirectory directory;
  EXPECT_THAT(error_of([&] { recipe_from_file(directory / "absent.toml"); }), HasSubstr("absent.toml"));
  std::ofstream(directory / "bad.toml") << "[train]\nsteps = 0\n";
  EXPECT_THAT(error_of([&] { recipe_from_file(directory / "bad.toml"); }), HasSubstr("bad.toml:2:"));
}

TEST(Recipe, SetChangesOneKey) {
  Recipe r;
  recipe_set(r, "train.steps=12");
  recipe_set(r, "lr=2e-5");
  recipe_set(r, "plan=none");
  recipe_set(r, "model=a=b c");
  recipe_set(r, "eval_text=\"quoted\"");
  recipe_set(r, "data=[\"x\", \"y\"]");
  recipe_set(r, "rules=blk.[0-3]=q8_0");
  EXPECT_EQ(r.steps, 12);
  EXPECT_EQ(r.lr, 2e-5);
  EXPECT_EQ(r.plan, "none");
  EXPECT_EQ(r.model, "a=b c");
  EXPECT_EQ(r.eval_text, "quoted");
  EXPECT_EQ(r.data, (std::vector<std::string>{"x", "y"}));
  EXPECT_EQ(r.rules, std::vector<std::string>{"blk.[0-3]=q8_0"});
  recipe_set(r, "data=");
  EXPECT_TRUE(r.data.empty());

  EXPECT_THAT(set_error("steps"), HasSubstr("--set steps: expected KEY=VALUE"));
  EXPECT_THAT(set_error("stps=3"), HasSubstr("did you mean \"steps\"?"));
  EXPECT_THAT(set_error("model.steps=3"), HasSubstr("\"steps\" belongs in [train]"));
  EXPECT_THAT(set_error("nowhere.steps=3"), HasSubstr("unknown section [nowhere]"));
  EXPECT_THAT(set_error("steps=many"), HasSubstr("[train] steps: expected whole number, found \"many\""));
  EXPECT_THAT(set_error("steps=-1"), HasSubstr("expected whole number at least 1, found -1"));
}

TEST(Recipe, AChosenPlanBecomesItsRulesAfterTheRecipesOwn) {
  const TemporaryDirectory directory;
  std::ofstream(directory / "qat_plan.json") << R"({"format": "qat_plan", "version": 1, "name": "dynamic", "rules": [
    {"pattern": "^blk\\.(0|3)\\.ffn_up\\.", "grid": "Q8_0"}, {"pattern": "^token_embd\\.", "grid": "Q4_0"}]})";
  Recipe r;
  r.rules = {"attn_q=f16"};
  r.plan = directory.path();
  take_plan_file(r);
  EXPECT_EQ(r.plan, "q4_0");
  EXPECT_EQ(r.rules, (std::vector<std::string>{"attn_q=f16", "^blk\\.(0|3)\\.ffn_up\\.=Q8_0", "^token_embd\\.=Q4_0"}));
  EXPECT_EQ(recipe_from_toml(recipe_to_toml(r), "r.toml").rules, r.rules);

  Recipe named;
  take_plan_file(named);  // a name stays
  EXPECT_EQ(named.plan, "q4_0");
  EXPECT_TRUE(named.rules.empty());
  named.plan = directory / "absent";
  EXPECT_THAT(error_of([&] { take_plan_file(named); }), HasSubstr("absent"));
}

TEST(Recipe, ImpossibleRunsAreRefused) {
  EXPECT_THAT(invalid([](Recipe& r) { r.model = ""; }), HasSubstr("[model] model is missing"));
  EXPECT_THAT(invalid([](Recipe& r) { r.out = ""; }), HasSubstr("[model] out is missing"));
  EXPECT_THAT(invalid([](Recipe& r) { r.data = {}; }), HasSubstr("[data] data is missing"));
  EXPECT_THAT(invalid([](Recipe& r) { r.batch = 0; }),
              HasSubstr("[train] batch: expected whole number from 1 to 16777216, found 0"));
  EXPECT_THAT(invalid([](Recipe& r) { r.beta2 = 1; }), HasSubstr("[train] beta2: expected number from 0 to"));
  EXPECT_THAT(invalid([](Recipe& r) { r.seed = ~uint64_t{0}; }), HasSubstr("[train] seed"));
  EXPECT_THAT(invalid([](Recipe& r) { r.kl = 0; }), HasSubstr("there is no loss"));
  EXPECT_THAT(invalid([](Recipe& r) { r.kl = 0, r.ce = 1, r.teacher_top_k = 8; }), HasSubstr("teacher_top_k: kl"));
  EXPECT_THAT(invalid([](Recipe& r) { r.kl = 0, r.ce = 1, r.teacher_cache = true; }), HasSubstr("there is no teacher"));
  EXPECT_THAT(invalid([](Recipe& r) { r.kl = 0, r.ce = 1, r.hidden = 1; }),
              HasSubstr("and there is no teacher, found 1"));
  EXPECT_THAT(invalid([](Recipe& r) { r.hidden = 0.5, r.teacher_top_k = 64, r.teacher_cache = true; }),
              HasSubstr("hidden compares with what the teacher's layers pass on: expected 0 with teacher_cache"));
  EXPECT_THAT(invalid([](Recipe& r) { r.hidden = 0.5, r.blockwise = true; }), HasSubstr("expected 0 with blockwise"));
  EXPECT_EQ(invalid([](Recipe& r) { r.hidden = 1; }), "no error");
  EXPECT_THAT(invalid([](Recipe& r) { r.teacher_cache = true; }),
              HasSubstr("teacher_cache: expected teacher_top_k of at least 1 (64, say), found 0"));
  EXPECT_THAT(invalid([](Recipe& r) { r.jsd_beta = 1; }), HasSubstr("jsd_beta: expected number from 0.01 to 0.99"));
  EXPECT_THAT(invalid([](Recipe& r) { r.plan = "none", r.kl = 0, r.reverse_kl = 1; }), HasSubstr("their KL is 0"));
  EXPECT_THAT(invalid([](Recipe& r) { r.plan = "none"; }), HasSubstr("set kl = 0 and ce = 1"));
  EXPECT_THAT(invalid([](Recipe& r) { r.warmup = 2000; }),
              HasSubstr("warmup: expected at most steps = 1000, found 2000"));
  EXPECT_THAT(invalid([](Recipe& r) { r.device = "cuda:"; }),
              HasSubstr("device: expected cpu, cuda or cuda:N, found \"cuda:\""));
  EXPECT_THAT(invalid([](Recipe& r) { r.rules = {"q8_0"}; }),
              HasSubstr("rules: expected PATTERN=TYPE, found \"q8_0\""));
  EXPECT_THAT(invalid([](Recipe& r) { r.rules = {"a=q9_0"}; }), HasSubstr("found \"q9_0\""));
  EXPECT_THAT(invalid([](Recipe& r) { r.output_type = "i8"; }), HasSubstr("output_type: expected one of f32"));
  EXPECT_THAT(invalid([](Recipe& r) {
                r.plan = "mobile";
                r.rules = {"mlp=Q4_0"};
              }),
              HasSubstr("rules: expected one of f32, f16, bf16, i8, i4, i2, found \"Q4_0\""));
  EXPECT_THAT(invalid([](Recipe& r) { r.plan = "q4_00"; }), HasSubstr("q4_00"));
  EXPECT_THAT(invalid([](Recipe& r) { r.init = "gtpq"; }),
              HasSubstr("init: expected plain, search or gptq, found \"gtpq\""));
  EXPECT_THAT(invalid([](Recipe& r) { r.optimizer = "adamw8"; }),
              HasSubstr("[train] optimizer: expected adamw or adamw8bit, found \"adamw8\"; did you mean"));
  EXPECT_THAT(invalid([](Recipe& r) { r.lora_rank = 4097; }),
              HasSubstr("[train] lora_rank: expected whole number from 0 to 4096, found 4097"));
  EXPECT_THAT(invalid([](Recipe& r) { r.plan = "none", r.ce = 1, r.lora_rank = 4; }),
              HasSubstr("[train] lora_rank: expected 0 with plan = \"none\""));
  EXPECT_THAT(invalid([](Recipe& r) { r.dampening = 0.006, r.lora_rank = 4; }),
              HasSubstr("[quantization] dampening: expected 0 with lora_rank = 4"));
  EXPECT_THAT(invalid([](Recipe& r) { r.optimizer = "lion"; }), Not(HasSubstr("did you mean")));
  EXPECT_THAT(invalid([](Recipe& r) { r.blockwise = true, r.lora_rank = 4; }),
              HasSubstr("lora_rank: expected 0, found 4"));
  EXPECT_EQ(invalid([](Recipe&) {}), "no error");
  EXPECT_EQ(invalid([](Recipe& r) { r.plan = "none", r.kl = 0, r.ce = 1, r.device = "cuda:3"; }), "no error");
  EXPECT_EQ(invalid([](Recipe& r) { r.kl = 0, r.reverse_kl = 1; }), "no error");
  EXPECT_EQ(invalid([](Recipe& r) { r.kl = 0, r.jsd = 1, r.teacher_top_k = 64, r.teacher_cache = true; }), "no error");
}

TEST(Recipe, ResumeRefusesWhatDecidesTheResult) {
  Recipe now = valid();
  now.out = "elsewhere";
  now.log_every = 1;
  now.threads = 3;
  EXPECT_TRUE(recipe_conflicts(valid(), now).empty());
  now.lr = 0.5;
  now.optimizer = "adamw8bit";
  now.data.push_back("more.txt");
  EXPECT_EQ(recipe_conflicts(valid(), now),
            (std::vector<std::string>{"[data] data: [\"t.txt\"] -> [\"t.txt\", \"more.txt\"]",
                                      "[train] lr: 1e-4 -> 0.5", "[train] optimizer: \"adamw\" -> \"adamw8bit\""}));
}

TEST(Recipe, ExplainShowsEveryKeyWithDefaultAndBounds) {
  const std::string text = explain_recipe();
  EXPECT_THAT(text, HasSubstr("  steps = 1000\n      whole number, at least 1. optimizer steps\n"));
  EXPECT_THAT(text, HasSubstr("  threads = 0  *\n"));
}

TEST(Nearest, CountsSwapsAsOne) {
  EXPECT_EQ(edit_distance("stpes", "steps"), 1);
  EXPECT_EQ(edit_distance("", "abc"), 3);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3);
  EXPECT_EQ(nearest("quantise", {"quantize", "export"}), "quantize");
  EXPECT_EQ(nearest("banana", {"quantize", "export"}), "");
}

}  // namespace
}  // namespace qat
