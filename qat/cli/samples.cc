#include "qat/cli/samples.h"

#include <algorithm>
#include <filesystem>

#include "format/error.h"
#include "format/safetensors.h"
#include "inference/generate.h"
#include "qat/cli/options.h"
#include "qat/cli/summary.h"
#include "qat/progress.h"

namespace qat {
namespace {

std::map<std::string, std::string> description(const std::string& model, const SampleRequest& request) {
  return {{"model_hash", model_hash(model)},
          {"count", std::to_string(request.count)},
          {"length", std::to_string(request.length)},
          {"seed", std::to_string(request.seed)}};
}

}  // namespace

void write_samples(const std::string& model_path, const SampleRequest& request, const EngineOptions& engine,
                   const std::string& out) {
  RunningModel model = run_model(model_path, engine);
  if (model.tokenizer->bos_id() < 0) fail(model_path, ": the tokenizer has no BOS token to begin a sequence with");
  const InterruptGuard guard;
  ProgressBar bar("sample", request.count);
  const auto start = std::chrono::steady_clock::now();
  const auto sequences =
      sample_sequences(*model.engine, *model.tokenizer, request.count, request.length, request.seed, [&](int64_t done) {
        const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        bar.update(done, std::to_string(static_cast<int64_t>(static_cast<double>(done * request.length) /
                                                             std::max(seconds, 1e-9))) +
                             " tokens/s");
        throw_if_interrupted();
      });
  bar.finish();
  SafetensorsWriter writer(out, {{"input_ids", DType::I32, {request.count, request.length}}},
                           description(model_path, request));
  for (const std::vector<int32_t>& sequence : sequences) {
    QAT_CHECK(static_cast<int64_t>(sequence.size()) == request.length);
    writer.append(sequence.data(), sequence.size() * sizeof(int32_t));
  }
  writer.commit();
}

bool samples_match(const std::string& path, const std::string& model, const SampleRequest& request) {
  if (!std::filesystem::exists(path)) return false;
  try {
    const Safetensors file(path);
    return file.find("input_ids") != nullptr && file.metadata() == description(model, request);
  } catch (const Error&) {
    return false;  // damaged: to be written anew
  }
}

}  // namespace qat
