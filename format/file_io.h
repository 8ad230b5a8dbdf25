// Files: read by mapping, written whole or not at all.
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>

#include "format/span.h"

namespace qat {

// A read-only mapping of a whole file. Move-only; open and mapped until its destruction. An empty file maps to an empty
// span.
class MappedFile {
 public:
  MappedFile() = default;
  explicit MappedFile(const std::string& path);  // throws Error: cannot open, not a regular file
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  const std::string& path() const { return path_; }
  Span<const uint8_t> bytes() const { return {data_, size_}; }

  // Copies a part of bytes() by reading the file. For a few bytes here and there that takes a tenth of the time of a
  // page fault, which maps sixteen pages, and adds nothing to resident memory. Throws Error: the file has become
  // shorter, or cannot be read.
  void read(const uint8_t* part, size_t size, uint8_t* out) const;
  bool holds(const uint8_t* part, size_t size) const;  // all of it, in bytes()

 private:
  std::string path_;
  int descriptor_ = -1;
  const uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

// Tells the kernel that a part of a mapped file is not needed for now, so that it does not count as memory in use; it
// comes back from the file when read again. Whole pages inside the range only.
void release_pages(const void* data, size_t size);
// Tells the kernel that a part of a mapped file will be read whole, again and again: it may bring it in, and map it, in
// pages of megabytes, whose addresses cost less to look up (llama-1b in Q4_0 decodes 7 % faster). What is in the page
// cache in small pages stays so: to be called before anything of it is looked at, since that brings what is around it
// in, too, 8 MB on some disks.
void advise_huge_pages(const void* data, size_t size);
// Reads in what of it is not in memory and maps all, in the order of addresses. A hint, too: where it fails, pages come
// as they are touched.
void populate_pages(const void* data, size_t size);

// Writes PATH.tmp.PID, and on commit() flushes, syncs and renames it over PATH. Destroyed without commit, it removes
// the temporary file, so PATH is either the old file or the complete new one. Throws Error on any failed write (disk
// full).
class AtomicFile {
 public:
  explicit AtomicFile(const std::string& path);
  AtomicFile(const AtomicFile&) = delete;
  ~AtomicFile();
  void write(const void* data, size_t size);
  void write(Span<const uint8_t> bytes) { write(bytes.data(), bytes.size()); }
  void write_zeros(size_t count);
  uint64_t position() const { return position_; }
  void commit();

 private:
  std::string path_, temporary_;
  std::unique_ptr<char[]> buffer_;  // the file's; as much of it is touched as is written
  std::FILE* file_ = nullptr;
  uint64_t position_ = 0;
};

// Whole small files (config.json and the like). read_file refuses files over max_bytes.
std::string read_file(const std::string& path, size_t max_bytes = size_t{1} << 30);
void write_file(const std::string& path, const std::string& contents);  // atomic
void copy_file_atomic(const std::string& from, const std::string& to);

// A directory written whole or not at all: fill path(), then commit() syncs it and renames it over `final_path`.
// An existing directory there is replaced; with a `marker`, only when it is empty or holds a file of that name (so that
// `--out ~` costs nobody a home). Destroyed without commit, the temporary directory is removed.
class AtomicDirectory {
 public:
  explicit AtomicDirectory(const std::string& final_path, const std::string& marker = "");
  AtomicDirectory(const AtomicDirectory&) = delete;
  ~AtomicDirectory();
  const std::string& path() const { return temporary_; }
  void commit();

 private:
  std::string final_, temporary_;
};

}  // namespace qat
