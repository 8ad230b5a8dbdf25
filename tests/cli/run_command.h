// Runs the built `qat` as a user would: through a shell, with what it prints and its exit status.
#pragma once

#include <sys/wait.h>

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>

#include "tests/test_paths.h"

namespace qat {

inline std::string file_contents(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline void write_contents(const std::string& path, const std::string& contents) {
  std::ofstream(path, std::ios::binary) << contents;
}

struct CommandResult {
  int status = -1;  // exit status; 128 + signal when it was killed
  std::string out, err;
};

// A directory in which commands run and leave their files.
class Workplace {
 public:
  // `command` is shell text; $qat is the program.
  CommandResult shell(const std::string& command) const {
    const std::string line = "cd '" + directory_.path() + "' && qat='" QAT_BINARY "' && { " + command + "\n} >'" +
                             (directory_ / ".out") + "' 2>'" + (directory_ / ".err") + "'";
    const int status = std::system(("bash -c \"" + escaped(line) + "\"").c_str());
    CommandResult result;
    result.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    result.out = file_contents(directory_ / ".out");
    result.err = file_contents(directory_ / ".err");
    return result;
  }
  CommandResult qat(const std::string& arguments) const { return shell("\"$qat\" " + arguments); }

  std::string operator/(const std::string& file) const { return directory_ / file; }
  bool has(const std::string& file) const { return std::filesystem::exists(directory_ / file); }
  // Every name in the directory, to see that nothing half-written is left.
  std::vector<std::string> names(const std::string& below = ".") const {
    std::vector<std::string> list;
    for (const auto& entry : std::filesystem::directory_iterator(directory_ / below)) {
      const std::string name = entry.path().filename().string();
      if (name != ".out" && name != ".err") list.push_back(name);
    }
    std::sort(list.begin(), list.end());
    return list;
  }

 private:
  static std::string escaped(const std::string& text) {
    std::string out;
    for (const char c : text) {
      if (c == '"' || c == '$' || c == '\\' || c == '`') out += '\\';
      out += c;
    }
    return out;
  }
  TemporaryDirectory directory_;
};

// Some kilobytes of text that a byte vocabulary and a model can chew on.
inline std::string sample_text(size_t bytes) {
  static const char* const words[] = {"river", "stone", "the",   "a",     "walks", "sings",
                                      "of",    "light", "under", "naïve", "and",   "quiet"};
  std::string text;
  for (uint32_t state = 12345; text.size() < bytes;) {
    state = state * 1664525u + 1013904223u;
    text += words[(state >> 16) % 12];
    text += (state >> 28) == 0 ? ".\n" : " ";
  }
  return text;
}

}  // namespace qat
