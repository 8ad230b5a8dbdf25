// What people see while they wait.
#include "qat/progress.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace qat {
namespace {

int code_points(const std::string& text) {
  return static_cast<int>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

TEST(Progress, Durations) {
  EXPECT_EQ(duration_text(0), "0.0 s");
  EXPECT_EQ(duration_text(4.2), "4.2 s");
  EXPECT_EQ(duration_text(9.96), "10 s");
  EXPECT_EQ(duration_text(59.4), "59 s");
  EXPECT_EQ(duration_text(59.6), "1 min 00 s");
  EXPECT_EQ(duration_text(200), "3 min 20 s");
  EXPECT_EQ(duration_text(3720), "1 h 02 min");
  EXPECT_EQ(duration_text(86400 + 3 * 3600), "1 d 03 h");
  EXPECT_EQ(duration_text(-1), "0.0 s");
}

TEST(Progress, Bytes) {
  EXPECT_EQ(bytes_text(0), "0 B");
  EXPECT_EQ(bytes_text(999), "999 B");
  EXPECT_EQ(bytes_text(1000), "1.00 kB");
  EXPECT_EQ(bytes_text(1034000), "1.03 MB");
  EXPECT_EQ(bytes_text(42000000), "42.0 MB");
  EXPECT_EQ(bytes_text(999400), "999 kB");
  EXPECT_EQ(bytes_text(999600), "1.00 MB");
  EXPECT_EQ(bytes_text(4200000000), "4.20 GB");
  EXPECT_EQ(bytes_text(18446744073709551615u), "18.4 EB");
}

TEST(Progress, LineHasEveryPart) {
  EXPECT_EQ(progress_line("train", 0.5, "loss 1.25", 200, 80, true),
            "train  50% ████████████████████░░░░░░░░░░░░░░░░░░░░  loss 1.25  3 min 20 s left");
  EXPECT_EQ(progress_line("eval", 0.25, "", -1, 40, false), "eval  25% #######......................");
  EXPECT_EQ(progress_line("x", 0.999, "", -1, 14, true), "x  99% ");
}

TEST(Progress, LineNeverWrapsAndKeepsTheTimeLeft) {
  const std::string text = "step 123/1000  loss 2.3456  kld 0.0123  lr 1.0e-04  4567 tok/s ± 3";
  for (int columns = 1; columns < 200; ++columns) {
    for (const double fraction : {0.0, 0.001, 0.333, 0.999, 1.0}) {
      for (const bool utf8 : {false, true}) {
        const std::string line = progress_line("train", fraction, text, 75, columns, utf8);
        EXPECT_LE(code_points(line), columns - 1) << columns;
        EXPECT_EQ(line.find("1 min 15 s left") != std::string::npos, columns >= 29) << columns << line;
      }
    }
  }
}

TEST(Progress, QuickWorkIsSilent) {
  testing::internal::CaptureStderr();
  {
    ProgressBar bar("quick", 10);
    for (int i = 0; i <= 10; ++i) bar.update(i);
    bar.finish();
  }
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

TEST(Progress, SummaryAndLinesAreKept) {
  testing::internal::CaptureStderr();
  ProgressBar bar("quick", 10);
  bar.print("a line");
  bar.finish("done");
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "a line\ndone\n");
}

}  // namespace
}  // namespace qat
