// Tokens may end in the middle of a character.
#include "qat/cli/utf8_stream.h"

#include <gtest/gtest.h>

namespace qat {
namespace {

TEST(Utf8Stream, GivesWholeCharacters) {
  Utf8Stream stream;
  EXPECT_EQ(stream.add("a\xc3"), "a");
  EXPECT_EQ(stream.add("\xa9z"), "éz");
  EXPECT_EQ(stream.add("\xf0\x9f\x98"), "");
  EXPECT_EQ(stream.add("\x80"), "😀");
  EXPECT_EQ(stream.finish(), "");
}

TEST(Utf8Stream, ReplacesWhatIsNoCharacter) {
  const std::string replacement = "\xef\xbf\xbd";
  Utf8Stream stream;
  EXPECT_EQ(stream.add("\x80"), replacement);                    // begins nothing
  EXPECT_EQ(stream.add("\xc0\xaf"), replacement + replacement);  // overlong
  EXPECT_EQ(stream.add("\xe0\x80"), replacement + replacement);  // overlong, seen at the second byte
  EXPECT_EQ(stream.add("\xed\xa0"), replacement + replacement);  // surrogate
  EXPECT_EQ(stream.add("\xf4\x90"), replacement + replacement);  // above U+10FFFF
  EXPECT_EQ(stream.add("\xe2\x82"
                       "A"),
            replacement + "A");  // cut by another character
  EXPECT_EQ(stream.add("\xe2"), "");
  EXPECT_EQ(stream.finish(), replacement);
  EXPECT_EQ(stream.add("ok"), "ok");
}

TEST(Utf8Stream, AnyTextByteByByteIsTheText) {
  const std::string text = "naïve café — 日本語 😀\n\x7f";
  Utf8Stream stream;
  std::string out;
  for (const char c : text) out += stream.add(std::string(1, c));
  EXPECT_EQ(out + stream.finish(), text);
}

}  // namespace
}  // namespace qat
