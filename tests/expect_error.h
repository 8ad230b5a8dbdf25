// What a user sees when something is wrong: one line, naming the place.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "format/error.h"

namespace qat {

// Runs `work`, which must throw Error with `fragment` in its text, on one line.
template <class Work>
void expect_error(Work work, const std::string& fragment) {
  try {
    work();
  } catch (const Error& e) {
    const std::string text = e.what();
    EXPECT_THAT(text, testing::HasSubstr(fragment));
    EXPECT_EQ(text.find('\n'), std::string::npos) << text;
    return;
  }
  ADD_FAILURE() << "expected an Error with \"" << fragment << "\", found none";
}

// True when `work` succeeded or threw Error: what damaged input may do. Anything else (a crash, another exception) may
// not.
template <class Work>
bool succeeds_or_errs(Work work) {
  try {
    work();
  } catch (const Error& e) {
    EXPECT_STRNE(e.what(), "");
    return false;
  }
  return true;
}

}  // namespace qat
