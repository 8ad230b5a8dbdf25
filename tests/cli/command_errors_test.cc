// Whatever is wrong, the user gets one line that names the file and what was expected, exit status 1, and nothing
// half-written.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "format/safetensors.h"
#include "tests/cli/run_command.h"

namespace qat {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using Json = nlohmann::json;

class CommandError : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_EQ(place.qat("init --shape gemma4-tiny --seed 1 --out tiny").status, 0);
    write_contents(place / "text.txt", sample_text(2000));
  }

  // Runs `command` (shell text, $qat is the program) and expects one line with all of `parts`, and no new name in the
  // directory.
  template <class... Parts>
  void expect_error_in_shell(const std::string& command, const Parts&... parts) {
    const std::vector<std::string> before = place.names();
    const CommandResult result = place.shell(command);
    EXPECT_EQ(result.status, 1) << command << "\n" << result.err;
    EXPECT_EQ(result.out, "") << command;
    EXPECT_EQ(result.err.rfind("qat: error: ", 0), 0u) << command << "\n" << result.err;
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << command << "\n" << result.err;
    const std::vector<std::string> wanted = {parts...};
    for (const std::string& part : wanted) EXPECT_THAT(result.err, HasSubstr(part)) << command;
    EXPECT_EQ(place.names(), before) << command;
  }
  template <class... Parts>
  void expect_error(const std::string& arguments, const Parts&... parts) {
    expect_error_in_shell("\"$qat\" " + arguments, std::string(parts)...);
  }

  // tiny with one file replaced, as the directory `broken`.
  void break_file(const std::string& file, const std::string& contents) {
    ASSERT_EQ(place.shell("rm -rf broken && cp -r tiny broken").status, 0);
    write_contents(place / ("broken/" + file), contents);
  }
  void break_config(const std::string& key, const Json& value) {
    Json config = Json::parse(file_contents(place / "tiny/config.json"));
    config[key] = value;
    break_file("config.json", config.dump());
  }
  // tiny with its safetensors header changed; the data stays.
  template <class F>
  void break_header(F&& change) {
    const std::string bytes = file_contents(place / "tiny/model.safetensors");
    uint64_t size = 0;
    std::memcpy(&size, bytes.data(), sizeof size);
    const std::string data = bytes.substr(8 + size);
    Json header = Json::parse(bytes.substr(8, size));
    change(header);
    const std::string text = header.dump();
    size = text.size();
    break_file("model.safetensors", std::string(reinterpret_cast<const char*>(&size), sizeof size) + text + data);
  }
  Workplace place;
};

TEST_F(CommandError, Usage) {
  expect_error("quantise x", "unknown command \"quantise\"; did you mean \"quantize\"?");
  expect_error("banana", "unknown command \"banana\"; see `qat --help`");
  expect_error("--halp", "unknown option \"--halp\"; did you mean \"--help\"?");
  expect_error("eval tiny --contxt 3", "eval: unknown option \"--contxt\"; did you mean \"--context\"?");
  expect_error("quantize", "HF_DIR is required; see `qat quantize --help`");
  expect_error("quantize tiny --out q", "--plan is required");
  expect_error("export tiny more --out x.gguf", "unexpected argument \"more\"");
  expect_error("generate tiny --prompt x --tokens abc", "--tokens: expected a whole number, at least 1, found \"abc\"");
  expect_error("generate tiny --prompt x --top-p 1.5", "--top-p: expected a number from 0 to 1, found \"1.5\"");
  expect_error("bench", "MODEL is required");
  expect_error("bench tiny --tokens 0", "--tokens: expected a whole number from 1 to 16777216, found \"0\"");
  expect_error("bench tiny --prompt 0", "--prompt: expected a whole number from 1 to 16777216, found \"0\"");
  expect_error("bench tiny --repeat 0", "--repeat: expected a whole number from 1 to 1048576, found \"0\"");
  expect_error("bench tiny --context -1", "--context: expected a whole number from 0 to 16777216, found \"-1\"");
  expect_error("export tiny --format mlx --out x", "--format: expected gguf, mobile, found \"mlx\"");
  expect_error("eval tiny", "--text is required");
  expect_error("init --out new", "expected --shape NAME or --config FILE");
  expect_error("init --shape gemma4-tin --out new", "expected one of llama-tiny", "did you mean \"gemma4-tiny\"?");
}

TEST_F(CommandError, AbsentFilesAreNamed) {
  expect_error("quantize absent --plan q4_0 --out q", "absent");
  expect_error("export absent --out x.gguf", "absent");
  expect_error("eval absent --text text.txt", "absent");
  expect_error("eval tiny --text absent.txt", "absent.txt");
  expect_error("eval tiny --text text.txt --context 64 --base absent", "absent");
  expect_error("generate absent --prompt x", "absent");
  expect_error("bench absent", "absent");
  expect_error("inspect absent", "absent");
  expect_error("logits tiny --ids absent --out l.safetensors", "absent");
  expect_error("sample absent --count 1 --length 4 --out s.safetensors", "absent");
  expect_error("init --config absent.json --out new", "absent.json");
  expect_error("init --shape gemma4-tiny --tokenizer-from absent --out new", "absent");
  expect_error("recipe absent.toml", "absent.toml");
  expect_error("train absent.toml", "absent.toml");
  expect_error("train --resume --out absent", "absent/recipe.toml: not found");
}

TEST_F(CommandError, ModelsCutShortAnywhereAreRefused) {
  const std::string weights = file_contents(place / "tiny/model.safetensors");
  for (const size_t size : {size_t{0}, size_t{4}, size_t{100}, weights.size() / 2, weights.size() - 1}) {
    break_file("model.safetensors", weights.substr(0, size));
    expect_error("generate broken --prompt x", "broken/model.safetensors");
    expect_error("quantize broken --plan q4_0 --out q", "broken/model.safetensors");
    expect_error("inspect broken", "broken/model.safetensors");
  }
  break_file("model.safetensors", weights + "x");
  expect_error("generate broken --prompt x", "broken/model.safetensors");

  ASSERT_EQ(place.qat("export tiny --format gguf --out tiny.gguf").status, 0);
  const std::string gguf = file_contents(place / "tiny.gguf");
  for (const size_t size : {size_t{3}, size_t{4}, size_t{20}, size_t{1000}, gguf.size() / 2, gguf.size() - 64}) {
    write_contents(place / "cut.gguf", gguf.substr(0, size));
    expect_error("generate cut.gguf --prompt x", "cut.gguf");
    if (size > 4) expect_error("inspect cut.gguf", "cut.gguf");
  }
}

TEST_F(CommandError, ConfigsThatAreNoModelAreRefused) {
  const std::string config = file_contents(place / "tiny/config.json");
  break_file("config.json", config.substr(0, config.size() / 2));
  expect_error("generate broken --prompt x", "broken/config.json");
  expect_error("quantize broken --plan q4_0 --out q", "broken/config.json");
  expect_error("init --config broken/config.json --out new", "broken/config.json");
  break_config("model_type", "mamba");
  expect_error("generate broken --prompt x", "broken/config.json", "mamba");
  break_config("enable_moe_block", true);
  expect_error("export broken --out x.gguf", "broken/config.json", "mixture of experts");
  break_config("hidden_size", 256);
  expect_error("generate broken --prompt x", "broken", "[260, 256]", "[260, 128]");
  break_config("num_hidden_layers", "six");
  expect_error("generate broken --prompt x", "broken/config.json", "num_hidden_layers");
}

TEST_F(CommandError, TensorsThatDoNotFitAreNamed) {
  const std::string name = "model.layers.1.mlp.up_proj.weight";
  break_header([&](Json& header) {
    header["another"] = header[name];
    header.erase(name);
  });
  expect_error("generate broken --prompt x", "broken", name);
  break_header([&](Json& header) { header[name]["shape"] = {128, 256}; });
  expect_error("generate broken --prompt x", "broken", name, "[256, 128]", "[128, 256]");
  break_header([&](Json& header) { header[name]["dtype"] = "I16"; });
  expect_error("quantize broken --plan q4_0 --out q", "broken", name, "I16");
  break_header([&](Json& header) { header[name]["dtype"] = "F32"; });
  expect_error("generate broken --prompt x", "broken/model.safetensors", name);
  break_header([&](Json& header) { header[name]["data_offsets"] = {0, uint64_t{1} << 62}; });
  expect_error("generate broken --prompt x", "broken/model.safetensors", name);
  break_header([&](Json& header) { header[name]["shape"] = {uint64_t{1} << 40, uint64_t{1} << 40}; });
  expect_error("inspect broken", "broken/model.safetensors", name);
}

TEST_F(CommandError, TokenizersThatDoNotFitAreRefused) {
  const std::string tokenizer = file_contents(place / "tiny/tokenizer.json");
  break_file("tokenizer.json", tokenizer.substr(0, tokenizer.size() / 2));
  expect_error("generate broken --prompt x", "broken/tokenizer.json");
  expect_error("eval broken --text text.txt --context 64", "broken/tokenizer.json");
  expect_error("export broken --out x.gguf", "broken/tokenizer.json");
  expect_error("init --shape gemma4-tiny --tokenizer-from broken --out new", "tokenizer.json");
  // More tokens than the model has rows.
  expect_error("init --shape gemma4-tiny --vocab 200 --out new", "--tokenizer bytes has 260 tokens, the model 200");
  expect_error("init --shape gemma4-tiny --vocab 200 --tokenizer-from tiny --out new", "tiny/tokenizer.json", "200");
}

TEST_F(CommandError, PlansAndTypes) {
  expect_error("quantize tiny --plan q4 --out q", "q4", "q4_0");
  expect_error("quantize tiny --plan q4_0 --tensor-type 'x=q9' --out q", "--tensor-type", "q9");
  expect_error("quantize tiny --plan q4_0 --tensor-type q8_0 --out q",
               "--tensor-type: expected PATTERN=TYPE, found \"q8_0\"");
  expect_error("quantize tiny --plan q4_0 --tensor-type '(=q8_0' --out q", "(");
  expect_error("quantize tiny --plan q4_0 --rule best --out q",
               "--rule: expected llama.cpp, search, gptq or PATTERN=TYPE, found \"best\"");
  expect_error("quantize tiny --plan q4_0 --rule llama.cpp --rule search --out q", "both");
  expect_error("quantize tiny --plan q4_0 --rule gptq --rule search --out q", "both gptq and search were given");
  expect_error("quantize tiny --plan q4_0 --rule gptq --out q", "give a text to run (--calibrate TEXT)");
  expect_error("quantize tiny --plan q4_0 --rule gptq --importance-text text.txt --out q",
               "--rule gptq takes no --importance-text");
  write_contents(place / "short.txt", "too short");
  expect_error("quantize tiny --plan q4_0 --rule gptq --calibrate short.txt --out q",
               "too short: expected at least 512 tokens, found 10");
  expect_error("quantize tiny --plan q4_0 --rule gptq --calibrate absent.txt --out q", "absent.txt");
  expect_error("quantize tiny --plan q4_0 --output-tensor-type i8 --out q", "--output-tensor-type", "i8");
  expect_error("export tiny --type q4_0 --out x.gguf", "--type: expected f32, f16, bf16, found \"q4_0\"");
  ASSERT_EQ(place.qat("quantize tiny --plan q4_0 --out ptq").status, 0);
  expect_error("export ptq --type f16 --out x.gguf", "--type f16", "ptq is a quantized checkpoint");
  ASSERT_EQ(place.qat("export ptq --out ptq.gguf").status, 0);
  expect_error("export ptq.gguf --out x.gguf",
               "ptq.gguf: expected a Hugging Face directory or a quantized checkpoint, found a GGUF file");
  expect_error("quantize ptq.gguf --plan q4_0 --out x",
               "ptq.gguf: expected the directory of a Hugging Face checkpoint, found a file");
  expect_error("quantize ptq --plan q4_0 --out x", "ptq: expected float weights, found a checkpoint already quantized");
  expect_error("quantize tiny --plan q4_k --out x", "plan \"q4_k\": expected none (no quantization), f32, ",
               "or a directory of qat quantize --plan dynamic");
  expect_error("quantize tiny --plan tiny --out x", "plan tiny: expected a directory of qat quantize --plan dynamic");
}

TEST_F(CommandError, DynamicPlans) {
  const std::string bare = "quantize tiny --plan dynamic --out q ", with = bare + "--calibrate text.txt ";
  expect_error(with, "give one (--budget 4.5, --budget 700MB, --budget q4_0)");
  expect_error(bare + "--budget 5", "give a text to run (--calibrate TEXT)");
  for (const std::string budget : {"big", "0", "-4", "40", "5bits", "1e30GB", "mobile", "none", "nan"})
    expect_error(with + "--budget " + budget, "--budget: expected bits per weight (4.5), a file's size (700MB)");
  expect_error(with + "--budget 2.2", "--budget 2.2: tiny takes at least ", " bits per weight");
  expect_error(with + "--budget 20kB", "--budget 20kB: tiny takes at least ", " kB as a file, ");
  expect_error(with + "--budget 5 --pure", "plan dynamic chooses types itself");
  expect_error(with + "--budget 5 --token-embedding-type q8_0", "plan dynamic chooses types itself");
  expect_error(with + "--budget 5 --rule 'mlp=f32'", "--budget 5: tiny takes at least ");
  expect_error(with + "--budget 5 --kv-bits 8", "--kv-bits: the plan q4_0 does not have it");
  expect_error("quantize tiny --plan q4_0 --budget 5 --out q", "--budget: the plan q4_0 does not have it");
  write_contents(place / "short.txt", "too short");
  expect_error(bare + "--budget 6 --calibrate short.txt", "too short: expected at least 512 tokens, found 10");
  ASSERT_EQ(place.qat("quantize tiny --plan q4_0 --out ptq").status, 0);
  expect_error("quantize tiny --plan ptq --out q", "ptq/qat_plan.json: expected a plan of qat quantize --plan dynamic");
  expect_error("train --model tiny --plan dynamic --data text.txt --out run", "name that directory");
  expect_error("train --model tiny --plan ptq --data text.txt --out run", "ptq/qat_plan.json: expected a plan of");
}

TEST_F(CommandError, MobilePlans) {
  const std::string quantize = "quantize tiny --plan mobile --out q ", with = quantize + "--calibrate text.txt ";
  expect_error(quantize, "give a text to calibrate them on (--calibrate TEXT)", "--activations off --kv-bits float");
  expect_error(quantize + "--activations off", "--calibrate TEXT");  // the cache wants it
  write_contents(place / "short.txt", "too short");
  expect_error(quantize + "--calibrate short.txt", "too short: expected at least 512 tokens, found 10");
  expect_error(quantize + "--calibrate absent.txt", "absent.txt");
  expect_error(with + "--calibrate-tokens 100", "--calibrate-tokens: expected a whole number, at least 512");
  expect_error(with + "--rule 'layers.7=i4'", "plan rule \"layers.7\": matches no tensor that can be quantized");
  expect_error(with + "--rule 'mlp=q4_0'", "expected one of i2, i4, i8, f32, f16, bf16 (plan mobile), found \"q4_0\"");
  expect_error("quantize tiny --plan q4_0 --rule 'mlp=i4' --out q", "expected one of f32, f16, bf16", "found \"i4\"");
  expect_error(with + "--rule llama.cpp", "--rule: expected search, max, gptq or PATTERN=TYPE, found \"llama.cpp\"");
  expect_error("quantize tiny --plan q4_0 --rule max --out q", "--rule: expected llama.cpp, search");
  expect_error("quantize tiny --plan mobile --activations off --kv-bits float --rule gptq --out q",
               "give a text to run (--calibrate TEXT)");
  expect_error(with + "--pure", "--pure: the plan mobile has a width for each kind of tensor");
  expect_error(with + "--kv-bits 3", "--kv-bits: expected 2, 4, 8 or float", "found \"3\"");
  expect_error(with + "--kv-bits 8,", "--kv-bits: expected 2, 4, 8 or float");
  expect_error(with + "--observer mean", "--observer: expected mse, percentile, max");
  for (const std::string option : {"--kv-bits 8", "--activations off"})
    expect_error("quantize tiny --plan q4_0 --out q " + option, "the plan q4_0 does not have it");
  expect_error("quantize tiny --plan q4_0 --out q --calibrate text.txt", "the plan q4_0 has no static scales");
  expect_error("quantize tiny --plan mobile --calibrate text.txt --out tiny", "tiny", "not replaced");
}

TEST_F(CommandError, MobileExports) {
  expect_error("export tiny --format mobile --out m",
               "tiny: expected a model in the mobile schema, found a float model", "qat quantize HF_DIR --plan mobile");
  ASSERT_EQ(place.qat("quantize tiny --plan q4_0 --out ptq").status, 0);
  expect_error("export ptq --format mobile --out m", "ptq: expected a model in the mobile schema, found a checkpoint");
  ASSERT_EQ(place.qat("export ptq --out ptq.gguf").status, 0);
  expect_error("export ptq.gguf --format mobile --out m", "ptq.gguf", "GGUF file");
  ASSERT_EQ(place.qat("init --shape gemma4-tiny --plan mobile --out mobile").status, 0);
  expect_error("export mobile --type f16 --out x.gguf", "--type f16", "leave --type out");
  expect_error("export mobile --format mobile --out tiny", "tiny: the directory exists and is not empty");
  expect_error("export mobile --format mobile --out mobile", "mobile is the model itself");
  expect_error("quantize mobile --plan q4_0 --out q", "mobile");
  expect_error_in_shell("ulimit -f 64; \"$qat\" export mobile --format mobile --out m", std::string("m"));
  expect_error_in_shell("ulimit -f 64; \"$qat\" init --shape gemma4-tiny --plan mobile --out m", std::string("m"));
}

// Damage in a directory of the schema: scales that are no scales, widths that do not fit.
TEST_F(CommandError, MobileDirectories) {
  ASSERT_EQ(place.qat("init --shape gemma4-tiny --plan mobile --out mobile").status, 0);
  const std::string bytes = file_contents(place / "mobile/model.safetensors");
  uint64_t size = 0;
  std::memcpy(&size, bytes.data(), sizeof size);
  const Json header = Json::parse(bytes.substr(8, size));
  const auto broken = [&](const std::string& tensor, float value) {
    std::string changed = bytes;
    const size_t at = 8 + size + header[tensor]["data_offsets"][0].get<size_t>();
    std::memcpy(&changed[at], &value, sizeof value);
    ASSERT_EQ(place.shell("rm -rf broken && cp -r mobile broken").status, 0);
    write_contents(place / "broken/model.safetensors", changed);
  };
  const std::string linear = "model.layers.1.mlp.up_proj";
  for (const float wrong : {-1.0f, NAN, INFINITY}) {
    for (const std::string& name :
         {linear + ".input_activation_scale", std::string("model.layers.0.self_attn.k_cache_scale")}) {
      broken(name, wrong);
      expect_error("generate broken --prompt x", "broken", name, "expected a finite scale, 0 or above");
      expect_error("export broken --out x.gguf", name);
      expect_error("inspect broken", name);
    }
    broken(linear + ".weight_scale", wrong);
    expect_error("export broken --format mobile --out m",
                 linear + ".weight_scale: row 0: expected a finite scale above 0");
  }
  broken(linear + ".input_activation_scale", 0.0f);  // off is no fault
  EXPECT_EQ(place.qat("generate broken --prompt x --tokens 3").status, 0);
  broken(linear + ".weight_scale", 1.0001f);
  expect_error("export broken --out x.gguf", linear + ".weight: row 0: expected a scale that Q4_0 holds exactly");
  // The configuration says 2 bits where the file has 4.
  Json config = Json::parse(file_contents(place / "mobile/config.json"));
  config["quantization_config"]["module_quant_configs"] = {{"mlp", {{"num_bits", 2}}}};
  ASSERT_EQ(place.shell("rm -rf broken && cp -r mobile broken").status, 0);
  write_contents(place / "broken/config.json", config.dump());
  expect_error("generate broken --prompt x", "broken: tensor ", "[260, 32]", "[260, 64]");
}

TEST_F(CommandError, Texts) {
  write_contents(place / "empty.txt", "");
  write_contents(place / "short.txt", "too short");
  expect_error("eval tiny --text empty.txt", "empty.txt: the text is empty");
  expect_error("eval tiny --text short.txt --context 64", "short.txt", "128");
  expect_error("quantize tiny --plan q4_0 --importance-text empty.txt --out q", "empty.txt: the text is empty");
  expect_error("eval tiny --text tiny", "tiny");
  // Not UTF-8: taken as bytes, which this tokenizer has.
  std::string bytes;
  for (int i = 0; i < 1000; ++i) bytes += static_cast<char>(0x80 + i % 128);
  write_contents(place / "bytes.txt", bytes);
  EXPECT_EQ(place.qat("eval tiny --text bytes.txt --context 64").status, 0);
}

TEST_F(CommandError, ModelsThatCannotBeCompared) {
  ASSERT_EQ(place.qat("init --shape gemma4-tiny --vocab 300 --out wide").status, 0);
  expect_error("eval tiny --text text.txt --context 64 --base wide", "wide", "300", "260");
  // Same size, other ids: two bytes of the vocabulary change places.
  Json tokenizer = Json::parse(file_contents(place / "tiny/tokenizer.json"));
  std::swap(tokenizer["model"]["vocab"]["<0x74>"], tokenizer["model"]["vocab"]["<0x75>"]);
  break_file("tokenizer.json", tokenizer.dump());
  expect_error("eval tiny --text text.txt --context 64 --base broken", "broken: token", "not the same tokenizer");
  expect_error("eval tiny --text text.txt --base wide --save-base b", "--save-base and --base exclude each other");
  write_contents(place / "damaged.kld", "_logits_\1\2\3");
  expect_error("eval tiny --base damaged.kld", "damaged.kld");
}

TEST_F(CommandError, TokenIds) {
  const auto expect_ids_error = [&](const std::string& ids, const std::string& part) {
    write_contents(place / "ids.txt", ids);
    expect_error("logits tiny --ids ids.txt --out l.safetensors", "ids.txt", part);
  };
  expect_ids_error("1 2 3\n4 260 6\n",
                   "sequence 1, token 1: expected an id below 260 (the model's vocabulary), found 260");
  expect_ids_error("1 -2 3\n", "found -2");
  expect_ids_error("1 2 3\n4 5\n", "ids.txt:2: expected 3 ids as on the lines before, found 2");
  expect_ids_error("1 2 three\n", "ids.txt:1: expected token ids, found \"three\"");
  expect_ids_error("99999999999999999999\n", "expected token ids");
  expect_ids_error("\n \n", "expected token ids, found none");
  expect_ids_error("", "empty");
  expect_error("logits tiny --ids tiny/model.safetensors --out l.safetensors", "tiny/model.safetensors", "input_ids");
}

TEST_F(CommandError, NothingIsOverwrittenThatIsNotOurs) {
  expect_error("quantize tiny --plan q4_0 --out tiny", "tiny", "not replaced");
  expect_error("init --shape gemma4-tiny --out tiny", "tiny: the directory exists and is not empty");
  expect_error("quantize tiny --plan q4_0 --out text.txt", "text.txt: expected a directory to write, found a file");
  expect_error("export tiny --out tiny", "tiny: expected a file to write, found a directory");
  expect_error("export tiny --out no/such/dir/x.gguf", "no/such/dir does not exist");
  expect_error("logits tiny --ids text.txt --out no/x", "no does not exist");
  // A quantized checkpoint may be replaced by another one.
  ASSERT_EQ(place.qat("quantize tiny --plan q4_0 --out ptq").status, 0);
  EXPECT_EQ(place.qat("quantize tiny --plan q8_0 --out ptq").status, 0);
}

TEST_F(CommandError, AFullDeviceLeavesNothingBehind) {
  ASSERT_EQ(place.qat("quantize tiny --plan q4_0 --out ptq").status, 0);
  write_contents(place / "ids.txt", "2 10 20 30 40 50 60 70 80 90\n");
  write_contents(
      place / "many.txt", "2" + [] {
        std::string ids;
        for (int i = 0; i < 127; ++i) ids += " 9";
        return ids;
      }() + "\n");
  const std::string full = "ulimit -f 64; \"$qat\" ";  // 64 kB a file
  expect_error_in_shell(full + "init --shape gemma4-tiny --out new", std::string("new"));
  expect_error_in_shell(full + "quantize tiny --plan q4_0 --out q", std::string("q"));
  expect_error_in_shell(full + "export ptq --out x.gguf", std::string("x.gguf"));
  expect_error_in_shell(full + "export tiny --type f32 --out x.gguf", std::string("x.gguf"));
  expect_error_in_shell(full + "logits tiny --ids many.txt --out l.safetensors", std::string("l.safetensors"));
  expect_error_in_shell(full + "eval tiny --text text.txt --context 512 --save-base b.kld", std::string("b.kld"));
  // The old file stays when the new one cannot be written.
  write_contents(place / "old.gguf", "old");
  expect_error_in_shell(full + "export tiny --type f32 --out old.gguf", std::string("old.gguf"));
  EXPECT_EQ(file_contents(place / "old.gguf"), "old");
  // Standard output counts as well.
  const CommandResult result = place.shell("\"$qat\" inspect tiny > /dev/full");
  EXPECT_EQ(result.status, 1);
  EXPECT_THAT(result.err, HasSubstr("standard output"));
}

TEST_F(CommandError, Recipes) {
  write_contents(place / "r.toml", "[train]\nstpes = 3\n");
  expect_error("recipe r.toml", "r.toml:2: unknown key \"stpes\"; did you mean \"steps\"?");
  expect_error("train r.toml --model tiny --out run --data text.txt", "r.toml:2: unknown key");
  write_contents(place / "r.toml", "[train]\nsteps = 0\n");
  expect_error("train r.toml --model tiny --out run --data text.txt",
               "r.toml:2: [train] steps: expected whole number at least 1, found 0");
  expect_error("train --model tiny --out run --data text.txt --steps many", "expected whole number, found \"many\"");
  expect_error("train --model tiny --out run --data text.txt --set kl=0", "there is no loss");
  expect_error("train", "[model] model is missing");
}

TEST_F(CommandError, TrainLooksAtItsInputsFirst) {
  ASSERT_EQ(
      place.shell("mkdir bin && cp \"$qat\" bin/qat && printf '#!/bin/sh\\n' > bin/qat-train && chmod +x bin/qat-train")
          .status,
      0);
  const std::string train = "bin/qat train --out run --data text.txt ";
  expect_error_in_shell(train + "--model absent", std::string("absent"));
  expect_error_in_shell(train + "--model tiny --set teacher=absent", std::string("absent"));
  expect_error_in_shell(train + "--model tiny --data absent.txt", std::string("absent.txt: no such text file"));
  expect_error_in_shell(train + "--model tiny --set eval_text=absent.txt", std::string("absent.txt: no such text"));
  expect_error_in_shell(train + "--model tiny --steps 12", std::string("found 50; set it too: --set warmup=N"));
  EXPECT_EQ(place.shell(train + "--model tiny").status, 0);
}

TEST_F(CommandError, WithoutATrainerTrainSaysHowToGetIt) {
  ASSERT_EQ(place.shell("mkdir bin && cp \"$qat\" bin/qat").status, 0);
  expect_error_in_shell("PATH=/usr/bin:/bin bin/qat train --model tiny --out run --data text.txt",
                        std::string("qat-train"), std::string("-DQAT_TRAINING=ON"));
}

TEST_F(CommandError, CtrlCRemovesWhatWasHalfWritten) {
  const std::vector<std::string> before = place.names();
  const CommandResult result = place.shell(
      "\"$qat\" init --shape llama-1b --threads 1 --out big & pid=$!\n"
      "until ls big.tmp.*/model.safetensors* >/dev/null 2>&1 || ! kill -0 $pid; do sleep 0.01; done\n"
      "kill -INT $pid; wait $pid");
  EXPECT_EQ(result.status, 130);
  EXPECT_EQ(result.err, "qat: error: interrupted; nothing was written\n");
  EXPECT_EQ(place.names(), before);
}

}  // namespace
}  // namespace qat
