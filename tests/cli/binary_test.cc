// What the built program is: quick to answer, and free of LibTorch.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>

#include "tests/cli/run_command.h"

namespace qat {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(Binary, LinksNoLibTorch) {
  const Workplace place;
  const CommandResult result = place.shell("ldd \"$qat\"");
  ASSERT_EQ(result.status, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("libc.so"));
  for (const char* library : {"torch", "libc10", "protobuf.so", "tomlplusplus"})
    EXPECT_THAT(result.out, Not(HasSubstr(library)));
}

TEST(Binary, HelpAnswersInFiftyMilliseconds) {
  if (QAT_SANITIZED) GTEST_SKIP() << "needs a build without sanitizers: they take their time to start";
  const Workplace place;
  const std::string command = std::string(QAT_BINARY) + " --help > /dev/null";
  std::vector<double> milliseconds;
  for (int i = 0; i < 9; ++i) {
    const auto start = std::chrono::steady_clock::now();
    ASSERT_EQ(std::system(command.c_str()), 0);
    milliseconds.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
  }
  std::nth_element(milliseconds.begin(), milliseconds.begin() + 4, milliseconds.end());
  RecordProperty("median_ms", std::to_string(milliseconds[4]));
  EXPECT_LT(milliseconds[4], 50.0);
}

TEST(Binary, EveryCommandHasHelpThatEndsInAnExample) {
  const Workplace place;
  const CommandResult help = place.qat("--help");
  EXPECT_EQ(help.status, 0);
  for (const std::string command :
       {"train", "quantize", "export", "eval", "bench", "generate", "inspect", "logits", "sample", "init", "recipe"}) {
    EXPECT_THAT(help.out, HasSubstr("\n  " + command + " "));
    const CommandResult result = place.qat(command + " --help");
    EXPECT_EQ(result.status, 0);
    EXPECT_EQ(result.err, "");
    const size_t example = result.out.find("\nExample:\n  ");
    ASSERT_NE(example, std::string::npos) << command;
    EXPECT_THAT(result.out.substr(example), HasSubstr("qat " + command));
    EXPECT_EQ(result.out.find("REQUIRED"), std::string::npos);
  }
}

TEST(Binary, VersionAndBareCall) {
  const Workplace place;
  EXPECT_EQ(place.qat("--version").out.substr(0, 4), "qat ");
  const CommandResult bare = place.qat("");
  EXPECT_EQ(bare.status, 1);
  EXPECT_EQ(bare.out, "");
  EXPECT_THAT(bare.err, HasSubstr("Usage: qat COMMAND"));
}

}  // namespace
}  // namespace qat
