// `qat compare`: its figures are those of `qat eval`, what it writes is one page that loads nothing and that no name
// can break out of, and faults leave nothing behind.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "format/safetensors.h"
#include "tests/cli/run_command.h"

namespace qat {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using Json = nlohmann::json;

constexpr const char* kRest = " --text text.txt --context 64 --chunks 3 --threads 1 --out report";

// tiny/ (float), ptq/ (Q4_0), ptq.gguf (the same), trained/ (Q4_0, one norm changed), text.txt.
class Compare : public ::testing::Test {
 protected:
  void SetUp() override {
    ok("init --shape llama-tiny --seed 1 --out tiny");
    ok("quantize tiny --plan q4_0 --out ptq");
    ok("quantize tiny --plan q4_0 --rule search --out search");
    write_contents(place / "text.txt", sample_text(1500));
  }
  CommandResult ok(const std::string& arguments) {
    CommandResult result = place.qat(arguments);
    EXPECT_EQ(result.status, 0) << arguments << "\n" << result.err;
    return result;
  }
  Json report() { return Json::parse(file_contents(place / "report/report.json")); }
  std::string html() { return file_contents(place / "report/report.html"); }
  // A directory as `qat train` leaves it: `quantized` with a norm that training moved.
  void make_run(const std::string& name) {
    ASSERT_EQ(place.shell("mkdir " + name + " && cp -r search " + name + "/quantized && touch " + name + "/recipe.toml")
                  .status,
              0);
    std::string metrics;
    for (int step = 0; step <= 40; step += 10) {
      const std::string at = "\"step\":" + std::to_string(step);
      metrics += "{\"loss\":" + std::to_string(1.0 / (step + 1)) + "," + at + "}\n";
      metrics += "{\"eval_perplexity\":" + std::to_string(260 - step) + ",\"eval_kl\":0.5," + at + "}\n";
    }
    write_contents(place / (name + "/metrics.jsonl"), metrics + "{\"half");
  }
  Workplace place;
};

// Elements of well-formed XML-like text: every tag closed in order, every attribute quoted, every & an entity. Returns
// what is wrong, or "".
std::string fault_of(const std::string& page) {
  static const std::set<std::string> kEntities = {"amp", "lt", "gt", "quot", "#39"};
  std::vector<std::string> open;
  for (size_t i = page.find("<html"); i < page.size();) {
    if (page[i] == '&') {
      const size_t end = page.find(';', i);
      if (end == std::string::npos || kEntities.count(page.substr(i + 1, end - i - 1)) == 0)
        return "entity at " + page.substr(i, 40);
      i = end;
    } else if (page[i] == '<') {
      const size_t end = page.find('>', i);
      const std::string tag = page.substr(i + 1, end - i - 1);
      const std::string name = tag.substr(0, tag.find_first_of(" /", 1));
      if (end == std::string::npos || std::count(tag.begin(), tag.end(), '"') % 2 != 0) return "tag <" + tag;
      if (tag[0] == '/') {
        if (open.empty() || "/" + open.back() != tag)
          return "closing <" + tag + "> after " + (open.empty() ? "" : open.back());
        open.pop_back();
      } else if (tag.back() != '/') {
        open.push_back(name);
      }
      i = end;
    }
    ++i;
  }
  return open.empty() ? "" : "not closed: " + open.back();
}

TEST_F(Compare, FiguresAreThoseOfEval) {
  ok("export ptq --format gguf --out ptq.gguf");
  ok(std::string("compare tiny ptq.gguf search --label search=better") + kRest);
  EXPECT_THAT(place.names("report"), ElementsAre("report.html", "report.json", "report.md"));
  const Json json = report();
  ASSERT_EQ(json["models"].size(), 2u);
  EXPECT_EQ(json["models"][0]["label"], "ptq");
  EXPECT_EQ(json["models"][1]["label"], "better");
  for (const Json& model : json["models"]) {
    const std::string path = model["path"];
    const Json eval =
        Json::parse(ok("eval " + path + " --base tiny --text text.txt --context 64 --chunks 3 --threads 1 --json").out);
    int compared = 0;
    for (const auto& [key, value] : eval.items()) {
      static const std::set<std::string> others = {"model",  "base",    "text",     "context",
                                                   "chunks", "seconds", "mean_nll", "tokens_per_second"};
      if (others.count(key) == 1) continue;
      EXPECT_EQ(model[key], value) << path << " " << key;
      ++compared;
    }
    EXPECT_GT(compared, 15);
    EXPECT_GT(model["mean_kld"], 0.0);
    EXPECT_EQ(json["float"]["perplexity"], eval["base_perplexity"]);
  }
}

TEST_F(Compare, WeightErrorsAreThoseOfTheFilesWhateverTheirRowOrder) {
  // Exported as GGUF, q and k have their rows interleaved, and everything else its other names.
  ok("export ptq --format gguf --out ptq.gguf");
  ok(std::string("compare tiny ptq ptq.gguf") + kRest);
  const Json json = report();
  const Json &direct = json["models"][0]["tensors"], &gguf = json["models"][1]["tensors"];
  EXPECT_EQ(direct, gguf);
  ASSERT_GT(direct.size(), 10u);
  for (const Json& tensor : direct) {
    // A uniform grid of 16 levels over a block of normal weights: a step of some 0.3 standard deviations.
    if (tensor["type"] == "Q4_0") {
      EXPECT_GT(tensor["relative_error"], 0.05) << tensor;
      EXPECT_LT(tensor["relative_error"], 0.15) << tensor;
    }
  }
  const Json& histogram = json["histogram"]["models"][0];
  double codes = 0.0, floats = 0.0;
  for (const double share : histogram["level_shares"]) codes += share;
  for (const double share : histogram["float_shares"]) floats += share;
  EXPECT_NEAR(codes, 1.0, 1e-9);
  EXPECT_NEAR(floats, 1.0, 1e-9);
}

TEST_F(Compare, RunsBringTheirCurvesAndAreTrained) {
  make_run("run");
  ok(std::string("compare tiny ptq search run --prompt 'the river'") + kRest);
  const Json json = report();
  EXPECT_FALSE(json["models"][0]["trained"]);
  EXPECT_TRUE(json["models"][2]["trained"]);
  EXPECT_EQ(json["models"][2]["training"].size(), 10u);
  EXPECT_EQ(json["models"][2]["label"], "run");
  // run/ holds what search/ holds: no code moved from there, some from ptq/.
  ASSERT_EQ(json["moved_codes"].size(), 2u);
  EXPECT_GT(json["moved_codes"][0]["share"], 0.01);
  EXPECT_EQ(json["moved_codes"][1]["share"], 0.0);
  EXPECT_EQ(json["models"][2]["mean_kld"], json["models"][1]["mean_kld"]);
  EXPECT_THAT(html(), AllOf(HasSubstr("Held-out perplexity"), HasSubstr("Codes that training moved")));
  EXPECT_EQ(fault_of(html()), "");
}

TEST_F(Compare, TrainedIsWhatHasOtherNorms) {
  ASSERT_EQ(place.shell("cp -r tiny other").status, 0);
  std::string bytes = file_contents(place / "other/model.safetensors");
  uint64_t header = 0;
  std::memcpy(&header, bytes.data(), sizeof header);
  const Json names = Json::parse(bytes.substr(8, header));
  const size_t begin = names["model.norm.weight"]["data_offsets"][0];
  bytes[8 + header + begin] = static_cast<char>(bytes[8 + header + begin] ^ 0x10);
  write_contents(place / "other/model.safetensors", bytes);
  ok("quantize other --plan q4_0 --out trained");
  ok(std::string("compare tiny ptq trained") + kRest);
  EXPECT_FALSE(report()["models"][0]["trained"]);
  EXPECT_TRUE(report()["models"][1]["trained"]);
}

TEST_F(Compare, ThePageIsOneFileThatLoadsNothing) {
  ok(std::string("compare tiny ptq search") + kRest);
  const std::string page = html();
  EXPECT_EQ(fault_of(page), "");
  for (const char* part :
       {"http://", "https://", "<script", "<link", "<img", "<iframe", "url(", "@import", "javascript:"})
    EXPECT_THAT(page, Not(HasSubstr(part)));
  EXPECT_THAT(page, AllOf(HasSubstr("default-src 'none'"), HasSubstr("<svg"), HasSubstr("prefers-color-scheme: dark")));
  EXPECT_THAT(file_contents(place / "report/report.md"), HasSubstr("| ptq | not trained |"));
}

TEST_F(Compare, NamesCannotBecomeMarkup) {
  const std::string evil = "</title><script>alert(1)</script>\\\"'&{{title}}{{{svg}}}";
  ASSERT_EQ(place.shell("cp -r ptq 'a<b>&'").status, 0);
  const CommandResult result = place.shell("\"$qat\" compare tiny ptq 'a<b>&' --label ptq=\"" + evil +
                                           "\" --prompt $'x</p><img src=1 onerror=y>\\x1b\\xff|`'" + kRest);
  ASSERT_EQ(result.status, 0) << result.err;
  const std::string page = html(), markdown = file_contents(place / "report/report.md");
  EXPECT_EQ(fault_of(page), "");
  for (const std::string& text : {page, markdown})
    EXPECT_THAT(text, AllOf(Not(HasSubstr("\x1b")), Not(HasSubstr("\xff"))));
  EXPECT_THAT(page, Not(HasSubstr("<script")));
  // In Markdown, lines indented by four are code; elsewhere nothing may open a tag.
  std::istringstream lines(markdown);
  for (std::string line; std::getline(lines, line);)
    EXPECT_TRUE(line.rfind("    ", 0) == 0 || line.find('<') == line.npos) << line;
  EXPECT_THAT(page, AllOf(HasSubstr("&lt;script&gt;alert(1)"), HasSubstr("a&lt;b&gt;&amp;"), HasSubstr("{{title}}"),
                          Not(HasSubstr("<img"))));
  EXPECT_EQ(report()["models"][0]["label"], "</title><script>alert(1)</script>\"'&{{title}}{{{svg}}}");
}

TEST_F(Compare, FaultsAreOneLineAndLeaveNothing) {
  ASSERT_EQ(place.shell("mkdir full run && touch full/x run/recipe.toml").status, 0);
  ok("init --config tiny/config.json --tokenizer-from tiny --vocab 300 --out wide");
  write_contents(place / "short.txt", "too short");
  const std::vector<std::string> before = place.names();
  const auto expect_error = [&](const std::string& arguments, const std::string& part) {
    const CommandResult result = place.qat("compare " + arguments);
    EXPECT_EQ(result.status, 1) << arguments;
    EXPECT_EQ(result.err.rfind("qat: error: ", 0), 0u) << result.err;
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
    EXPECT_THAT(result.err, HasSubstr(part)) << arguments;
    EXPECT_EQ(result.out, "");
    EXPECT_EQ(place.names(), before) << arguments;
  };
  const std::string rest = kRest;
  expect_error("tiny" + rest, "MODEL is required");
  expect_error("tiny missing" + rest, "missing: ");
  expect_error("missing ptq" + rest, "missing: ");
  expect_error("tiny wide" + rest, "tiny: the vocabulary has 260 tokens, that of wide has 300");
  expect_error("tiny run" + rest, "run: a run of `qat train` without a result");
  expect_error("tiny ptq --text short.txt --context 64 --out report", "short.txt: expected at least 128 tokens");
  expect_error("tiny ptq --text missing.txt --out report", "missing.txt: cannot open");
  expect_error("tiny ptq --text text.txt --context 64 --out full", "full: the directory exists and is not empty");
  expect_error("tiny ptq --text text.txt --context 64 --out text.txt",
               "text.txt: expected a directory to write, found a file");
  expect_error("tiny ptq --text text.txt --context 64 --out text.txt/report", "cannot create");
  expect_error("tiny ptq --out report", "--text is required");
  expect_error("tiny ptq --tensor mlp" + rest, "--tensor: the float model has no matrix \"mlp\"");
  expect_error("tiny ptq --label pqt=x" + rest, "--label: expected PATH=NAME");
  EXPECT_EQ(place.shell("ulimit -f 8; \"$qat\" compare tiny ptq" + rest).status, 1);  // 8 kB a file
  EXPECT_EQ(place.names(), before);
}

}  // namespace
}  // namespace qat
