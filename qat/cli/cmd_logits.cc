// qat logits: token ids in, float32 logits out, so that anyone can compare this engine with any other program.
#include <CLI/CLI.hpp>
#include <charconv>
#include <filesystem>
#include <optional>

#include "format/error.h"
#include "format/safetensors.h"
#include "qat/cli/commands.h"
#include "qat/cli/options.h"
#include "qat/progress.h"

namespace qat {
namespace {

struct LogitsOptions {
  std::string model, ids, out;
  EngineOptions engine;
};

constexpr int64_t kPiece = 64;  // tokens whose logits exist at once

struct IdMatrix {
  int64_t rows = 0, cols = 0;  // sequences, tokens of each
  std::vector<int64_t> ids;
};

bool looks_like_safetensors(const std::string& path) {
  const MappedFile file(path);
  return file.bytes().size() > 8 && file.bytes()[8] == '{';
}

IdMatrix read_ids_safetensors(const std::string& path) {
  const Safetensors file(path);
  const TensorView& view = file.at("input_ids");
  const size_t rank = view.shape.size();
  if (rank != 1 && rank != 2)
    fail(path, ": input_ids: expected shape [sequences, tokens] or [tokens], found ", shape_text(view.shape));
  return {rank == 2 ? view.shape[0] : 1, view.shape.back(), to_ints(view, path)};
}

// One sequence per line, ids between blanks or commas.
IdMatrix read_ids_text(const std::string& path) {
  const std::string text = read_text(path);
  IdMatrix matrix;
  int64_t line = 1, in_line = 0;
  const auto end_line = [&] {
    if (in_line == 0) return;
    if (matrix.rows > 0 && in_line != matrix.cols) {
      fail(path, ":", line, ": expected ", matrix.cols, " ids as on the lines before, found ", in_line);
    }
    matrix.cols = in_line;
    ++matrix.rows;
    in_line = 0;
  };
  for (size_t at = 0; at < text.size();) {
    const char c = text[at];
    if (c == '\n') {
      end_line();
      ++line;
      ++at;
    } else if (c == ' ' || c == '\t' || c == ',' || c == '\r') {
      ++at;
    } else {
      int64_t id = 0;
      const auto [end, error] = std::from_chars(text.data() + at, text.data() + text.size(), id);
      const size_t next = std::min(text.find_first_of(" \t,\r\n", at), text.size());
      if (error != std::errc() || end != text.data() + next)
        fail(path, ":", line, ": expected token ids, found \"", text.substr(at, std::min<size_t>(next - at, 40)), "\"");
      matrix.ids.push_back(id);
      ++in_line;
      at = next;
    }
  }
  end_line();
  return matrix;
}

IdMatrix read_ids(const std::string& path, int64_t vocab) {
  IdMatrix matrix = looks_like_safetensors(path) ? read_ids_safetensors(path) : read_ids_text(path);
  if (matrix.ids.empty()) fail(path, ": expected token ids, found none");
  for (size_t i = 0; i < matrix.ids.size(); ++i) {
    const int64_t id = matrix.ids[i];
    if (id >= 0 && id < vocab) continue;
    const int64_t index = static_cast<int64_t>(i);
    fail(path, ": sequence ", index / matrix.cols, ", token ", index % matrix.cols, ": expected an id below ", vocab,
         " (the model's vocabulary), found ", id);
  }
  return matrix;
}

void run_logits(const LogitsOptions& options) {
  check_output_file(options.out);
  const std::unique_ptr<Engine> started = start_engine(load_weights(options.model), options.engine);
  Engine& engine = *started;
  const int64_t vocab = engine.config().vocab;
  const IdMatrix matrix = read_ids(options.ids, vocab);
  const InterruptGuard guard;
  SafetensorsWriter writer(options.out, {{"input_ids", DType::I64, {matrix.rows, matrix.cols}},
                                         {"logits", DType::F32, {matrix.rows, matrix.cols, vocab}}});
  writer.append(matrix.ids.data(), matrix.ids.size() * sizeof(int64_t));
  std::vector<float> logits(static_cast<size_t>(std::min(kPiece, matrix.cols) * vocab));
  KvCache cache(engine, matrix.cols);
  ProgressBar bar("logits", matrix.rows * matrix.cols);
  for (int64_t row = 0; row < matrix.rows; ++row) {
    cache.clear();
    for (int64_t at = 0; at < matrix.cols; at += kPiece) {
      const int64_t count = std::min(kPiece, matrix.cols - at);
      const auto begin = matrix.ids.begin() + row * matrix.cols + at;
      const std::vector<int32_t> tokens(begin, begin + count);
      engine.forward(tokens, cache, 0, logits.data());
      writer.append(logits.data(), static_cast<size_t>(count * vocab) * sizeof(float));
      bar.update(row * matrix.cols + at + count);
      throw_if_interrupted();
    }
  }
  writer.commit();
  bar.finish();
  std::printf("%s: logits of %lld sequences of %lld tokens, vocabulary %lld\n", options.out.c_str(),
              static_cast<long long>(matrix.rows), static_cast<long long>(matrix.cols), static_cast<long long>(vocab));
}

}  // namespace

void add_logits_command(CLI::App& app) {
  auto options = std::make_shared<LogitsOptions>();
  CLI::App* command = app.add_subcommand("logits", "Float32 logits of given token ids");
  command->add_option("MODEL", options->model, kModelHelp)->required();
  command
      ->add_option("--ids", options->ids,
                   "Safetensors file with input_ids [n, t], or text: a sequence of ids per line, all of one length")
      ->required()
      ->type_name("FILE");
  command->add_option("--out", options->out, "Safetensors file: input_ids I64 [n, t], logits F32 [n, t, vocabulary]")
      ->required()
      ->type_name("FILE");
  add_engine_options(*command, options->engine, true);
  options->engine.float_activations = true;  // as with --exact: these logits are to be compared with others' floats
  command->footer(
      "Example:\n  echo 2 651 4320 8426 > ids.txt && qat logits model.gguf --ids ids.txt --out logits.safetensors");
  command->callback([options] { run_logits(*options); });
}

}  // namespace qat
