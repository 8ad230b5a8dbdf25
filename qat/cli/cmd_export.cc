// qat export: a checkpoint as a file that other runtimes load.
#include <CLI/CLI.hpp>
#include <filesystem>

#include "export/gguf_export.h"
#include "export/mobile_export.h"
#include "format/error.h"
#include "qat/cli/commands.h"
#include "qat/cli/options.h"
#include "qat/cli/summary.h"
#include "qat/progress.h"

namespace qat {
namespace {

struct ExportOptions {
  std::string model, out;
  std::string format = "gguf";
  std::string type;  // of the matrices, for HF directories; empty: as the checkpoint has them
};

// The type that loses nothing: that of the token embedding, when GGUF matrices may have it.
DType float_type(const ExportOptions& options) {
  const FloatCheckpoint checkpoint(options.model);
  for (const std::string& notice : checkpoint.notices()) std::fprintf(stderr, "%s\n", notice.c_str());
  if (!options.type.empty()) return grid_from_name(options.type, "--type");
  const DType stored = checkpoint.dtype(*find_tensor_info(checkpoint.table(), Role::token_embedding));
  return stored == DType::F16 || stored == DType::BF16 ? stored : DType::F32;
}

void check_request(const ExportOptions& options, ModelKind kind) {
  if (kind == ModelKind::gguf)
    fail(options.model, ": expected a Hugging Face directory or a quantized checkpoint, found a GGUF file");
  if (options.format == "mobile" && kind != ModelKind::mobile) {
    fail(options.model, ": expected a model in the mobile schema, found ",
         kind == ModelKind::hf_directory ? "a float model" : "a checkpoint quantized under another plan",
         "; `qat quantize HF_DIR --plan mobile` makes one from a float model");
  }
  if (options.type.empty()) return;
  if (kind == ModelKind::quantized_checkpoint) {
    fail("--type ", options.type, ": ", options.model,
         " is a quantized checkpoint, whose plan has chosen the types; leave --type out");
  }
  if (kind == ModelKind::mobile)
    fail("--type ", options.type, ": ", options.model, " is quantized, its codes decide the types; leave --type out");
}

void write_export(const ExportOptions& options, ModelKind kind, const ExportProgress& progress) {
  if (options.format == "mobile") return export_mobile(options.model, options.out, progress);
  if (kind == ModelKind::mobile) return export_gguf_mobile(options.model, options.out, progress);
  if (kind == ModelKind::quantized_checkpoint) return export_gguf(options.model, options.out, progress);
  export_gguf_float(options.model, float_type(options), options.out, progress);
}

void run_export(const ExportOptions& options) {
  if (options.format == "mobile") check_mobile_output(options.out);
  else check_output_file(options.out);
  const ModelKind kind = detect_model_kind(options.model);
  check_request(options, kind);
  std::error_code ignored;
  if (std::filesystem::equivalent(options.model, options.out, ignored))
    fail("--out: ", options.out, " is the model itself");
  const InterruptGuard guard;
  ProgressBar bar("export", 1000);
  write_export(options, kind, [&](uint64_t done, uint64_t bytes) {
    bar.update(
        static_cast<int64_t>(1000.0 * static_cast<double>(done) / static_cast<double>(std::max<uint64_t>(bytes, 1))),
        bytes_text(done));
    throw_if_interrupted();
  });
  bar.finish();
  std::printf("%s: %s\n", options.out.c_str(), bytes_text(model_size_bytes(options.out)).c_str());
}

}  // namespace

void add_export_command(CLI::App& app) {
  auto options = std::make_shared<ExportOptions>();
  CLI::App* command = app.add_subcommand("export", "Write a checkpoint as a file for other runtimes");
  command
      ->add_option("DIR", options->model,
                   "Quantized checkpoint, mobile directory (both repacked, never rounded again) or float Hugging Face "
                   "directory")
      ->required();
  command
      ->add_option(
          "--format", options->format,
          "gguf: llama.cpp, Ollama, LM Studio; mobile: transformers, of a model quantized under the plan mobile")
      ->check(one_of({"gguf", "mobile"}))
      ->type_name("FORMAT")
      ->capture_default_str();
  command->add_option("--out", options->out, "File to write; of --format mobile, a directory")
      ->required()
      ->type_name("FILE");
  command
      ->add_option("--type", options->type,
                   "Type of the matrices of a Hugging Face directory: f32, f16, bf16; as it has them when left out")
      ->check(one_of({"f32", "f16", "bf16"}))
      ->type_name("TYPE");
  command->footer(
      "Example:\n  qat export gemma-q4 --format gguf --out gemma-q4_0.gguf\n  qat export gemma/ --format gguf --type "
      "bf16 --out gemma-bf16.gguf\n  qat export gemma-mobile --format gguf --out gemma-mobile.gguf");
  command->callback([options] { run_export(*options); });
}

}  // namespace qat
