#include "format/file_io.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "tests/expect_error.h"
#include "tests/file_size_limit.h"
#include "tests/test_paths.h"

namespace qat {
namespace {

namespace fs = std::filesystem;

std::string text_of(const MappedFile& file) { return std::string(file.bytes().begin(), file.bytes().end()); }

std::vector<std::string> names_in(const std::string& directory) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(directory)) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

TEST(MappedFile, ShowsTheBytesAndSurvivesMoves) {
  TemporaryDirectory dir;
  write_file(dir / "a", "hello");
  MappedFile file(dir / "a");
  EXPECT_EQ(text_of(file), "hello");
  MappedFile moved(std::move(file));
  EXPECT_EQ(text_of(moved), "hello");
  EXPECT_EQ(moved.path(), dir / "a");
  MappedFile assigned;
  assigned = std::move(moved);
  EXPECT_EQ(text_of(assigned), "hello");
}

TEST(MappedFile, ReadsAPartAndNoticesThatTheFileWasCut) {
  TemporaryDirectory dir;
  write_file(dir / "a", "hello, world");
  const MappedFile file(dir / "a");
  uint8_t part[5];
  file.read(file.bytes().data() + 7, 5, part);
  EXPECT_EQ(std::string(part, part + 5), "world");
  EXPECT_TRUE(file.holds(file.bytes().data(), 12));
  EXPECT_FALSE(file.holds(file.bytes().data() + 1, 12));
  EXPECT_FALSE(file.holds(part, 1));
  EXPECT_FALSE(MappedFile().holds(part, 1));
  MappedFile other(dir / "a"), moved(std::move(other)), assigned;
  assigned = std::move(moved);
  assigned.read(assigned.bytes().data(), 5, part);
  EXPECT_EQ(std::string(part, part + 5), "hello");
  fs::resize_file(dir / "a", 9);
  expect_error([&] { file.read(file.bytes().data() + 7, 5, part); },
               dir / "a: ends at 9 bytes, had 12 when it was opened");
}

// Calls f and returns how often this thread met a page that was not mapped.
template <class F>
long faults_of(const F& f) {
  const auto faults = [] {
    rusage usage;
    getrusage(RUSAGE_THREAD, &usage);
    return usage.ru_minflt + usage.ru_majflt;
  };
  const long before = faults();
  f();
  return faults() - before;
}

TEST(MappedFile, PopulatedPagesAreMapped) {
  TemporaryDirectory dir;
  constexpr size_t kSize = 8 << 20, kPage = 4096;
  write_file(dir / "a", std::string(kSize, 'x'));
  const MappedFile file(dir / "a");
  int sum = 0;
  const auto touch = [&] {
    for (size_t at = kSize / 2; at < kSize; at += kPage) sum += file.bytes()[at];
  };
  constexpr int kPopulateRead = 22;  // MADV_POPULATE_READ, since Linux 5.14
  if (madvise(const_cast<uint8_t*>(file.bytes().data()), kPage, kPopulateRead) != 0)
    GTEST_SKIP() << "this kernel cannot populate pages: " << std::strerror(errno);
  release_pages(file.bytes().data(), kSize);
  EXPECT_GT(faults_of(touch), 0);
  release_pages(file.bytes().data(), kSize);
  populate_pages(file.bytes().data() + kSize / 2, kSize / 2);
  EXPECT_EQ(faults_of(touch), 0);
  EXPECT_EQ(sum, 2 * static_cast<int>('x') * static_cast<int>(kSize / 2 / kPage));
}

TEST(MappedFile, AnEmptyFileIsAnEmptySpan) {
  TemporaryDirectory dir;
  write_file(dir / "empty", "");
  EXPECT_TRUE(MappedFile(dir / "empty").bytes().empty());
}

TEST(MappedFile, RefusesWhatIsNotARegularFile) {
  TemporaryDirectory dir;
  ASSERT_EQ(mkfifo((dir / "pipe").c_str(), 0600), 0);
  expect_error([&] { MappedFile(dir / "missing"); }, "missing: cannot open: No such file or directory");
  expect_error([&] { MappedFile(dir.path()); }, "expected a regular file, found a directory");
  expect_error([&] { MappedFile(dir / "pipe"); }, "expected a regular file");  // and does not wait for a writer
}

TEST(AtomicFile, OnlyCommitChangesTheFile) {
  TemporaryDirectory dir;
  write_file(dir / "a", "old");
  {
    AtomicFile file(dir / "a");
    file.write("new", 3);
    EXPECT_EQ(read_file(dir / "a"), "old");
  }
  EXPECT_EQ(read_file(dir / "a"), "old");
  EXPECT_EQ(names_in(dir.path()), std::vector<std::string>{"a"});

  AtomicFile file(dir / "a");
  file.write("new", 3);
  file.write_zeros(10000);
  file.write("", 0);
  EXPECT_EQ(file.position(), 10003u);
  file.commit();
  EXPECT_EQ(read_file(dir / "a"), "new" + std::string(10000, '\0'));
  EXPECT_EQ(names_in(dir.path()), std::vector<std::string>{"a"});
}

TEST(AtomicFile, AFullDiskIsAnErrorAndLeavesTheOldFile) {
  TemporaryDirectory dir;
  write_file(dir / "a", "old");
  // Large writes fail at once; what still waits in the buffer (11000 bytes are two pages and a rest) fails at commit.
  for (const size_t size : {size_t{11000}, size_t{1} << 20}) {
    const FileSizeLimit limit(10000);
    expect_error([&] { write_file(dir / "a", std::string(size, 'x')); }, "/a: cannot write");
    expect_error([&] { write_file(dir / "a", std::string(size, 'x')); }, "File too large");
  }
  EXPECT_EQ(read_file(dir / "a"), "old");
  EXPECT_EQ(names_in(dir.path()), std::vector<std::string>{"a"});
}

TEST(AtomicFile, RefusesImpossiblePlacesBeforeAnythingIsWritten) {
  TemporaryDirectory dir;
  expect_error([&] { AtomicFile(dir.path()); }, "exists and is not a regular file");
  expect_error([&] { AtomicFile("/dev/null"); }, "/dev/null: cannot write: it exists and is not a regular file");
  expect_error([&] { AtomicFile(dir / "missing/a"); }, "No such file or directory");
}

TEST(ReadFile, ReadsWholeFilesUpToItsLimit) {
  TemporaryDirectory dir;
  const std::string contents(100000, 'x');
  write_file(dir / "a", contents);
  copy_file_atomic(dir / "a", dir / "b");
  EXPECT_EQ(read_file(dir / "b", 100000), contents);
  expect_error([&] { read_file(dir / "b", 99999); }, "/b: expected at most 99999 bytes, found more");
  expect_error([&] { read_file(dir / "c"); }, "/c: cannot open: No such file or directory");
  expect_error([&] { read_file(dir.path()); }, "Is a directory");
}

TEST(AtomicDirectory, AppearsWholeOrNotAtAll) {
  TemporaryDirectory dir;
  {
    AtomicDirectory abandoned(dir / "runs/model");
    write_file(abandoned.path() + "/a", "1");
  }
  EXPECT_TRUE(names_in(dir / "runs").empty());

  AtomicDirectory model(dir / "runs/model/");
  write_file(model.path() + "/a", "1");
  fs::create_directory(model.path() + "/sub");
  write_file(model.path() + "/sub/b", "2");
  EXPECT_FALSE(fs::exists(dir / "runs/model"));
  model.commit();
  EXPECT_EQ(read_file(dir / "runs/model/a"), "1");
  EXPECT_EQ(read_file(dir / "runs/model/sub/b"), "2");
  EXPECT_EQ(names_in(dir / "runs"), std::vector<std::string>{"model"});
}

TEST(AtomicDirectory, ReplacesTheOldOneWithAllItsFiles) {
  TemporaryDirectory dir;
  fs::create_directory(dir / "model");
  write_file(dir / "model/old", "1");
  // Through another name of the same directory: what is replaced is the directory, not the name.
  fs::create_directory_symlink(dir / "model", dir / "link");
  for (const std::string& name : {dir / "model", dir / "model/.", dir / "link"}) {
    AtomicDirectory model(name);
    write_file(model.path() + "/new", name);
    model.commit();
    EXPECT_EQ(names_in(dir / "model"), std::vector<std::string>{"new"});
    EXPECT_EQ(read_file(dir / "model/new"), name);
    EXPECT_EQ(names_in(dir.path()), (std::vector<std::string>{"link", "model"}));
  }
}

TEST(AtomicDirectory, ReplacesOnlyWhatCarriesTheMarker) {
  TemporaryDirectory dir;
  fs::create_directory(dir / "empty");
  fs::create_directory(dir / "home");
  write_file(dir / "home/thesis.tex", "years of work");
  write_file(dir / "file", "");
  EXPECT_NO_THROW(AtomicDirectory(dir / "empty", "plan.json"));
  expect_error([&] { AtomicDirectory(dir / "home", "plan.json"); },
               "will not replace this directory: it is not empty and holds no plan.json");
  expect_error([&] { AtomicDirectory(dir / "file"); }, "a file of that name exists");
  write_file(dir / "home/plan.json", "");
  EXPECT_NO_THROW(AtomicDirectory(dir / "home", "plan.json"));
}

}  // namespace
}  // namespace qat
