// What the fuzz targets share. A target is: bytes in, and either it works or it throws Error with one line of text.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

#include "format/error.h"

namespace qat {

// Text for a tokenizer that survived its loading: words, runs of spaces, a line break, digits, two alphabets, an
// invalid byte.
inline constexpr std::string_view kFuzzText = "Hi ab  aab<bos>\n\n\tcaf\xc3\xa9 \xd0\xb6 \xff 1234's";

// A file in memory, for functions that take a path.
class InputFile {
 public:
  InputFile(const uint8_t* data, size_t size) : fd_(memfd_create("input", MFD_CLOEXEC)) {
    QAT_CHECK(fd_ >= 0 && write(fd_, data, size) == static_cast<ssize_t>(size));
  }
  InputFile(const InputFile&) = delete;
  ~InputFile() { close(fd_); }
  std::string path() const { return "/proc/self/fd/" + std::to_string(fd_); }

 private:
  int fd_;
};

// A directory that lives as long as the process, for functions that look for several files.
class InputDirectory {
 public:
  InputDirectory() {
    std::string name = (std::filesystem::temp_directory_path() / "qat-fuzz-XXXXXX").string();
    QAT_CHECK(mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  InputDirectory(const InputDirectory&) = delete;
  ~InputDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  void put(const std::string& name, std::string_view contents) const {
    std::ofstream(path_ + "/" + name, std::ios::binary) << contents;
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

inline std::string_view as_text(const uint8_t* data, size_t size) {
  return std::string_view(reinterpret_cast<const char*>(data), size);
}

// Runs `work`; an Error is fine when its text is one line.
template <class Work>
int run_target(Work work) {
  try {
    work();
  } catch (const Error& e) {
    const std::string_view text = e.what();
    QAT_CHECK(!text.empty() && text.find('\n') == std::string_view::npos);
  }
  return 0;
}

// Reads every byte, so that a view that reaches beyond its file is found.
template <class Bytes>
void touch(const Bytes& bytes) {
  volatile uint8_t sum = 0;
  for (const uint8_t byte : bytes) sum = static_cast<uint8_t>(sum + byte);
}

}  // namespace qat
