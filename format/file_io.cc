#include "format/file_io.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <memory>
#include <system_error>
#include <utility>

#include "format/error.h"

namespace qat {
namespace {

namespace fs = std::filesystem;

std::string temporary_name(const std::string& path) { return path + ".tmp." + std::to_string(getpid()); }

// A path's directory as open() wants it: "model.gguf" is in ".".
std::string parent_directory(const std::string& path) {
  const std::string parent = fs::path(path).parent_path().string();
  return parent.empty() ? "." : parent;
}

// Makes what was written under `path` (a file or the names in a directory) survive a power cut.
void sync_path(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail(path, ": cannot open to sync: ", std::strerror(errno));
  const int status = fsync(fd);
  const int error = errno;
  close(fd);
  // Some file systems (network, FUSE) cannot sync a directory and say EINVAL; the data itself has been synced.
  if (status != 0 && error != EINVAL && error != ENOTSUP) fail(path, ": cannot sync: ", std::strerror(error));
}

// Puts the directory `from` where the directory `to` is, and removes the old one.
void replace_directory(const std::string& from, const std::string& to) {
#ifdef RENAME_EXCHANGE
  // One step, so that no moment exists at which `to` is missing.
  if (renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_EXCHANGE) == 0) {
    sync_path(parent_directory(to));
    std::error_code ignored;
    fs::remove_all(from, ignored);
    return;
  }
  if (errno != EINVAL && errno != ENOSYS) fail(to, ": cannot be replaced: ", std::strerror(errno));
#endif
  const std::string aside = from + ".old";
  if (std::rename(to.c_str(), aside.c_str()) != 0) fail(to, ": cannot be moved aside: ", std::strerror(errno));
  if (std::rename(from.c_str(), to.c_str()) != 0) {
    const int error = errno;
    if (std::rename(aside.c_str(), to.c_str()) != 0) fail(to, ": cannot be replaced; the old directory is now ", aside);
    fail(to, ": cannot be replaced: ", std::strerror(error));
  }
  sync_path(parent_directory(to));
  std::error_code ignored;
  fs::remove_all(aside, ignored);
}

// Of the whole pages inside the range. A hint: it may fail.
void advise(const void* data, size_t size, int advice) {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + size) / page * page;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, advice);
}

// Written in pieces as large as this, at multiples of it, a file can stand in the page cache in pages of megabytes.
constexpr size_t kWriteBuffer = size_t{4} << 20;

}  // namespace

void release_pages(const void* data, size_t size) { advise(data, size, MADV_DONTNEED); }

void advise_huge_pages(const void* data, size_t size) {
#if defined(MADV_HUGEPAGE)
  advise(data, size, MADV_HUGEPAGE);
#else
  static_cast<void>(data), static_cast<void>(size);
#endif
}

void populate_pages(const void* data, size_t size) {
#if defined(MADV_POPULATE_READ)
  advise(data, size, MADV_POPULATE_READ);
#else
  static_cast<void>(data), static_cast<void>(size);
#endif
}

MappedFile::MappedFile(const std::string& path) : path_(path) {
  // O_NONBLOCK: opening a pipe must not wait for its writer before we can refuse it.
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) fail(path, ": cannot open: ", std::strerror(errno));
  struct stat info;
  if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    close(fd);
    fail(path, ": expected a regular file, found ", S_ISDIR(info.st_mode) ? "a directory" : "something else");
  }
  size_ = static_cast<size_t>(info.st_size);
  void* data = size_ == 0 ? nullptr : mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd, 0);
  if (data == MAP_FAILED) {
    const int error = errno;
    close(fd);
    fail(path, ": cannot map ", size_, " bytes: ", std::strerror(error));
  }
  descriptor_ = fd;
  data_ = static_cast<const uint8_t*>(data);
}

MappedFile::MappedFile(MappedFile&& other) noexcept { *this = std::move(other); }

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(descriptor_, other.descriptor_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<uint8_t*>(data_), size_);
  if (descriptor_ >= 0) close(descriptor_);
}

bool MappedFile::holds(const uint8_t* part, size_t size) const {
  const auto begin = reinterpret_cast<uintptr_t>(data_), at = reinterpret_cast<uintptr_t>(part);
  return at >= begin && at - begin <= size_ && size <= size_ - (at - begin);
}

void MappedFile::read(const uint8_t* part, size_t size, uint8_t* out) const {
  QAT_CHECK(holds(part, size));
  const auto begin = static_cast<size_t>(part - data_);
  for (size_t done = 0; done < size;) {
    const ssize_t n = pread(descriptor_, out + done, size - done, static_cast<off_t>(begin + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail(path_, ": cannot read ", size, " bytes at ", begin, ": ", std::strerror(errno));
    if (n == 0) fail(path_, ": ends at ", begin + done, " bytes, had ", size_, " when it was opened");
    done += static_cast<size_t>(n);
  }
}

AtomicFile::AtomicFile(const std::string& path) : path_(path), temporary_(temporary_name(path)) {
  // Refused now, not after an hour of work; and renaming over a device would destroy it.
  std::error_code ignored;
  if (fs::exists(path, ignored) && !fs::is_regular_file(path, ignored))
    fail(path, ": cannot write: it exists and is not a regular file");
  file_ = std::fopen(temporary_.c_str(), "wb");
  if (file_ == nullptr) fail(path, ": cannot create ", temporary_, ": ", std::strerror(errno));
  buffer_.reset(new char[kWriteBuffer]);
  std::setvbuf(file_, buffer_.get(), _IOFBF, kWriteBuffer);
}

AtomicFile::~AtomicFile() {
  if (file_ == nullptr) return;
  std::fclose(file_);
  unlink(temporary_.c_str());
}

void AtomicFile::write(const void* data, size_t size) {
  QAT_CHECK(file_ != nullptr);
  if (size == 0) return;
  if (std::fwrite(data, 1, size, file_) != size)
    fail(path_, ": cannot write ", size, " bytes at position ", position_, ": ", std::strerror(errno));
  position_ += size;
}

void AtomicFile::write_zeros(size_t count) {
  constexpr uint8_t kZeros[4096] = {};
  while (count > 0) {
    const size_t piece = std::min(count, sizeof kZeros);
    write(kZeros, piece);
    count -= piece;
  }
}

void AtomicFile::commit() {
  QAT_CHECK(file_ != nullptr);
  if (std::fflush(file_) != 0 || fsync(fileno(file_)) != 0)
    fail(path_, ": cannot write to disk: ", std::strerror(errno));
  std::FILE* file = file_;
  file_ = nullptr;
  if (std::fclose(file) != 0 || std::rename(temporary_.c_str(), path_.c_str()) != 0) {
    const int error = errno;
    unlink(temporary_.c_str());
    fail(path_, ": cannot be put in place: ", std::strerror(error));
  }
  sync_path(parent_directory(path_));
}

std::string read_file(const std::string& path, size_t max_bytes) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), std::fclose);
  if (file == nullptr) fail(path, ": cannot open: ", std::strerror(errno));
  std::string contents;
  char buffer[1 << 14];
  while (const size_t n = std::fread(buffer, 1, sizeof buffer, file.get())) {
    if (n > max_bytes - contents.size()) fail(path, ": expected at most ", max_bytes, " bytes, found more");
    contents.append(buffer, n);
  }
  if (std::ferror(file.get()) != 0) fail(path, ": cannot read: ", std::strerror(errno));
  return contents;
}

void write_file(const std::string& path, const std::string& contents) {
  AtomicFile file(path);
  file.write(contents.data(), contents.size());
  file.commit();
}

void copy_file_atomic(const std::string& from, const std::string& to) {
  const MappedFile source(from);
  AtomicFile file(to);
  file.write(source.bytes());
  file.commit();
}

AtomicDirectory::AtomicDirectory(const std::string& final_path, const std::string& marker) : final_(final_path) {
  while (final_.size() > 1 && final_.back() == '/') final_.pop_back();
  std::error_code error;
  if (fs::exists(final_, error)) {
    // ".", "..", and links: what is renamed must be the directory itself.
    final_ = fs::canonical(final_).string();
    if (!fs::is_directory(final_, error)) fail(final_, ": cannot write a directory here: a file of that name exists");
    if (!marker.empty() && !fs::is_empty(final_, error) && !fs::exists(final_ + "/" + marker, error))
      fail(final_, ": will not replace this directory: it is not empty and holds no ", marker);
  }
  temporary_ = temporary_name(final_);
  fs::remove_all(temporary_, error);
  fs::create_directories(temporary_, error);
  if (error) fail(final_, ": cannot create ", temporary_, ": ", error.message());
}

AtomicDirectory::~AtomicDirectory() {
  std::error_code ignored;
  if (!temporary_.empty()) fs::remove_all(temporary_, ignored);
}

void AtomicDirectory::commit() {
  QAT_CHECK(!temporary_.empty());
  for (const auto& entry : fs::recursive_directory_iterator(temporary_))
    if (entry.is_regular_file() || entry.is_directory()) sync_path(entry.path().string());
  sync_path(temporary_);
  if (fs::exists(final_)) {
    replace_directory(temporary_, final_);
  } else {
    if (std::rename(temporary_.c_str(), final_.c_str()) != 0)
      fail(final_, ": cannot be put in place: ", std::strerror(errno));
    sync_path(parent_directory(final_));
  }
  temporary_.clear();
}

}  // namespace qat
