// Where a run of `qat train` leaves its result, below the directory that --out names.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace qat {

constexpr const char* kRunRecipe = "recipe.toml";           // a directory that holds it is a run
constexpr const char* kRunResults[] = {"quantized", "hf"};  // what it trained for a grid, and plain floats

inline std::string run_result(const std::string& out, bool floats) { return out + "/" + kRunResults[floats ? 1 : 0]; }

inline bool is_run(const std::string& directory) {
  std::error_code ignored;
  return std::filesystem::exists(directory + "/" + kRunRecipe, ignored);
}

// The results that are there; of a run that has not ended: none.
inline std::vector<std::string> run_results(const std::string& out) {
  std::vector<std::string> found;
  std::error_code ignored;
  for (const bool floats : {false, true}) {
    const std::string result = run_result(out, floats);
    if (std::filesystem::is_directory(result, ignored)) found.push_back(result);
  }
  return found;
}

}  // namespace qat
