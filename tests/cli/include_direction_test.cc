// The arrows between rooms point one way: what each room may include, as docs and the link targets say, against what
// its files do.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <vector>

namespace qat {
namespace {

namespace fs = std::filesystem;

struct Room {
  const char* folder;                 // longest match wins, so qat/cli is not qat
  std::set<std::string> may_include;  // other rooms
  std::set<std::string> third_party;  // prefixes of <...> beyond the standard library and POSIX
  std::set<std::string> only_in_cc;   // of these, the ones that headers must not show
};

const std::vector<Room>& rooms() {
  static const std::vector<Room> table = {
      {"format",
       {},
       {"nlohmann/", "pcre2.h", "utf8proc.h", "protobuf-c/"},
       {"nlohmann/", "pcre2.h", "utf8proc.h", "protobuf-c/"}},
      {"fakequant", {"format"}, {"torch/", "ATen/", "c10/"}, {}},
      {"inference", {"format"}, {"Eigen/"}, {"Eigen/"}},
      {"export", {"format", "inference"}, {"Eigen/", "nlohmann/"}, {"Eigen/", "nlohmann/"}},
      {"qat", {"format"}, {"toml++/"}, {"toml++/"}},
      {"qat/train",
       {"format", "fakequant", "export", "qat"},
       {"torch/", "ATen/", "c10/", "CLI/", "nlohmann/", "xxhash.h"},
       {"nlohmann/", "xxhash.h"}},
      {"qat/report", {"format", "inference"}, {"nlohmann/", "kainjow/"}, {"nlohmann/", "kainjow/"}},
      {"qat/cli",
       {"format", "inference", "export", "qat", "qat/report"},
       {"CLI/", "nlohmann/", "xxhash.h"},
       {"nlohmann/", "xxhash.h"}},
      {"bench", {"format", "inference", "export"}, {"benchmark/"}, {}},
  };
  return table;
}

// Made by the build, in its folder.
bool is_generated(const std::string& name) { return std::regex_match(name, std::regex("[a-z_]+\\.pb-c\\.h")); }

std::string room_of(const std::string& path) {
  std::string best;
  for (const Room& room : rooms()) {
    const std::string folder = room.folder;
    if (path.rfind(folder + "/", 0) == 0 && folder.size() > best.size()) best = folder;
  }
  return best;
}

bool has_prefix(const std::string& text, const std::set<std::string>& prefixes) {
  for (const std::string& prefix : prefixes) {
    if (text.rfind(prefix, 0) == 0) return true;
  }
  return false;
}

// Headers of the C++ standard library have no dot and no slash; of POSIX and the compiler, ".h" but none of ours.
bool is_system_header(const std::string& name) {
  static const std::regex pattern("[a-z_0-9]+|(sys/)?[a-z0-9_]+\\.h");
  static const std::set<std::string> libraries = {"pcre2.h", "utf8proc.h", "xxhash.h"};
  return std::regex_match(name, pattern) && libraries.count(name) == 0;
}

struct Include {
  std::string name;
  bool quoted;
};

std::vector<Include> includes_of(const fs::path& file) {
  static const std::regex pattern("^\\s*#\\s*include\\s*([<\"])([^>\"]+)[>\"]");
  std::vector<Include> list;
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    std::smatch match;
    if (std::regex_search(line, match, pattern)) list.push_back({match[2], match[1] == "\""});
  }
  return list;
}

std::vector<fs::path> sources_below(const fs::path& folder) {
  std::vector<fs::path> files;
  if (!fs::exists(folder)) return files;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    const std::string extension = entry.path().extension().string();
    if (extension == ".h" || extension == ".cc") files.push_back(entry.path());
  }
  return files;
}

TEST(Includes, PointOneWay) {
  const fs::path root = QAT_SOURCE_DIR;
  int files = 0;
  for (const Room& room : rooms()) {
    for (const fs::path& file : sources_below(root / room.folder)) {
      const std::string path = fs::relative(file, root).string();
      if (room_of(path) != room.folder) continue;
      ++files;
      const bool header = file.extension() == ".h";
      for (const Include& include : includes_of(file)) {
        if (!include.quoted) {
          const bool shown = header && has_prefix(include.name, room.only_in_cc);
          EXPECT_TRUE(is_system_header(include.name) || has_prefix(include.name, room.third_party))
              << path << " includes <" << include.name << ">";
          EXPECT_FALSE(shown) << path << " shows <" << include.name << "> to everyone who includes it";
        } else if (!is_generated(include.name)) {
          const std::string other = room_of(include.name);
          EXPECT_TRUE(other == room.folder || room.may_include.count(other) == 1)
              << path << " includes \"" << include.name << "\"";
          EXPECT_TRUE(fs::exists(root / include.name))
              << path << " includes \"" << include.name << "\": includes are relative to the root";
        }
      }
    }
  }
  EXPECT_GT(files, 50);
}

TEST(Includes, ASourceIncludesItsOwnHeaderFirst) {
  const fs::path root = QAT_SOURCE_DIR;
  for (const Room& room : rooms()) {
    for (const fs::path& file : sources_below(root / room.folder)) {
      fs::path header = file;
      header.replace_extension(".h");
      if (file.extension() != ".cc" || !fs::exists(header)) continue;
      const std::vector<Include> list = includes_of(file);
      ASSERT_FALSE(list.empty()) << file;
      EXPECT_EQ(list[0].name, fs::relative(header, root).string()) << file;
    }
  }
}

// A test file that nobody builds proves nothing.
TEST(Tests, EveryTestFileIsInItsList) {
  const fs::path root = fs::path(QAT_SOURCE_DIR) / "tests";
  for (const fs::path& file : sources_below(root)) {
    const std::string name = file.filename().string();
    if (name.size() < 8 || name.compare(name.size() - 8, 8, "_test.cc") != 0) continue;
    std::ifstream in(file.parent_path() / "CMakeLists.txt");
    const std::string list((std::istreambuf_iterator<char>(in)), {});
    EXPECT_TRUE(list.find(name) != std::string::npos) << file << " is not in its CMakeLists.txt";
  }
}

}  // namespace
}  // namespace qat
