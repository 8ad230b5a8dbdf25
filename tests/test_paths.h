// Where tests find data that is not in the repository: real checkpoints and goldens, in a directory `shared` beside the
// repository (or QAT_SHARED). Tests that need it skip, and say so, when it is absent.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

namespace qat {

inline std::string shared_path(const std::string& relative) {
  const char* variable = std::getenv("QAT_SHARED");
  const std::string root = variable != nullptr ? variable : std::string(QAT_SOURCE_DIR) + "/../shared";
  return root + "/" + relative;
}

#define QAT_NEED_SHARED(relative)                             \
  if (!std::filesystem::exists(::qat::shared_path(relative))) \
  GTEST_SKIP() << "needs " << ::qat::shared_path(relative) << " (set QAT_SHARED to its parent)"

// Writes a file without the care (and the sync, slow in a loop) of write_file().
inline void put_file(const std::string& path, const std::string& contents) {
  std::ofstream(path, std::ios::binary) << contents;
}

// A fresh directory, removed with its contents at the end of the scope.
class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string name = (std::filesystem::temp_directory_path() / "qat-test-XXXXXX").string();
    path_ = mkdtemp(name.data());
  }
  ~TemporaryDirectory() { std::filesystem::remove_all(path_); }
  std::string operator/(const std::string& file) const { return path_ + "/" + file; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace qat
