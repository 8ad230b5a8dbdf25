// Every command does its work on a tiny model that it makes itself.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
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

// init -> tiny/, text.txt; what most tests begin with.
class Command : public ::testing::Test {
 protected:
  void SetUp() override {
    expect_success("init --shape gemma4-tiny --seed 1 --out tiny");
    write_contents(place / "text.txt", sample_text(1500));
  }
  CommandResult expect_success(const std::string& arguments) {
    CommandResult result = place.qat(arguments);
    EXPECT_EQ(result.status, 0) << arguments << "\n" << result.err;
    return result;
  }
  Workplace place;
};

TEST_F(Command, InitWritesAModelDirectoryThatDependsOnTheSeedOnly) {
  EXPECT_THAT(place.names("tiny"), ElementsAre("config.json", "generation_config.json", "model.safetensors",
                                               "tokenizer.json", "tokenizer_config.json"));
  expect_success("init --shape gemma4-tiny --seed 1 --threads 1 --out same");
  expect_success("init --shape gemma4-tiny --seed 2 --out other");
  EXPECT_EQ(file_contents(place / "tiny/model.safetensors"), file_contents(place / "same/model.safetensors"));
  EXPECT_NE(file_contents(place / "tiny/model.safetensors"), file_contents(place / "other/model.safetensors"));
}

TEST_F(Command, QuantizeToADynamicPlanStaysWithinTheSizeAndCanBeUsedAgain) {
  const std::string quantize = "quantize tiny --plan dynamic --calibrate text.txt --calibrate-tokens 512 ";
  expect_success("quantize tiny --plan q4_0 --out plain");
  const CommandResult first = expect_success(quantize + "--budget q4_0 --rule 'layers.0.mlp.up=f16' --out equal");
  EXPECT_THAT(first.out, AllOf(HasSubstr("types chosen: "), HasSubstr("=Q8_0\n")));
  expect_success("export plain --out plain.gguf");
  expect_success("export equal --out equal.gguf");
  EXPECT_LE(std::filesystem::file_size(place / "equal.gguf"), std::filesystem::file_size(place / "plain.gguf"));
  EXPECT_THAT(expect_success("inspect equal").out, HasSubstr("F16"));  // a rule settles a tensor's type

  // Other weights, the same types; the same types and rule, the same bytes.
  expect_success("quantize tiny --plan equal --out again");
  expect_success("quantize tiny --plan equal/qat_plan.json --rule search --out searched");
  EXPECT_EQ(file_contents(place / "again/model.safetensors"), file_contents(place / "equal/model.safetensors"));
  EXPECT_EQ(file_contents(place / "again/qat_plan.json"), file_contents(place / "equal/qat_plan.json"));
  EXPECT_EQ(file_contents(place / "searched/qat_plan.json"), file_contents(place / "equal/qat_plan.json"));
}

TEST_F(Command, InitDrawsNormalWeightsAndSetsNormsToWhatDoesNothing) {
  expect_success("init --shape gemma3-tiny --dtype f32 --out g3");
  const Safetensors gemma4(place / "tiny"), gemma3(place / "g3");
  double sum = 0, squares = 0;
  const std::vector<float> weights = to_floats(gemma4.at("model.layers.0.mlp.up_proj.weight"), "tiny");
  for (const float w : weights) sum += w, squares += static_cast<double>(w) * w;
  const double n = static_cast<double>(weights.size());
  EXPECT_NEAR(sum / n, 0.0, 4 * 0.02 / std::sqrt(n));
  EXPECT_NEAR(std::sqrt(squares / n), 0.02, 4 * 0.02 / std::sqrt(2 * n));
  EXPECT_EQ(gemma4.at("model.layers.0.mlp.up_proj.weight").dtype, DType::BF16);
  EXPECT_EQ(to_floats(gemma4.at("model.norm.weight"), "tiny")[5], 1.0f);
  EXPECT_EQ(to_floats(gemma4.at("model.layers.2.layer_scalar"), "tiny")[0], 1.0f);
  EXPECT_EQ(to_floats(gemma3.at("model.norm.weight"), "g3")[5], 0.0f);
  EXPECT_EQ(gemma3.at("model.norm.weight").dtype, DType::F32);
}

TEST_F(Command, InitTakesAConfigATokenizerAndAVocabulary) {
  expect_success("init --config tiny/config.json --tokenizer-from tiny --vocab 300 --out wide");
  const Json config = Json::parse(file_contents(place / "wide/config.json"));
  EXPECT_EQ(config["vocab_size"], 300);
  EXPECT_EQ(config["vocab_size_per_layer_input"], 300);
  EXPECT_EQ(config["bos_token_id"], 2);
  EXPECT_EQ(file_contents(place / "wide/tokenizer.json"), file_contents(place / "tiny/tokenizer.json"));
  EXPECT_THAT(expect_success("generate wide --prompt hello --tokens 5").out, HasSubstr("hello"));
}

TEST_F(Command, EveryTinyShapeRunsAndExports) {
  for (const std::string shape : {"llama-tiny", "gemma3-tiny", "gemma4-tiny"}) {
    expect_success("init --shape " + shape + " --out " + shape);
    expect_success("export " + shape + " --format gguf --type f32 --out " + shape + ".gguf");
    const Json hf =
        Json::parse(expect_success("eval " + shape + " --text text.txt --context 64 --chunks 4 --json").out);
    const Json gguf =
        Json::parse(expect_success("eval " + shape + ".gguf --text text.txt --context 64 --chunks 4 --json").out);
    // A new model knows nothing: its perplexity is near the size of the vocabulary.
    EXPECT_NEAR(hf["perplexity"], 260, 26) << shape;
    EXPECT_NEAR(hf["perplexity"].get<double>() / gguf["perplexity"].get<double>(), 1.0, 1e-5) << shape;
  }
}

TEST_F(Command, QuantizeExportEvalAgree) {
  EXPECT_THAT(expect_success("quantize tiny --plan q4_0 --out ptq").out, HasSubstr("bits per weight"));
  expect_success("export ptq --format gguf --out ptq.gguf");
  const Json direct = Json::parse(expect_success("eval ptq --text text.txt --context 64 --base tiny --json").out);
  const Json file = Json::parse(expect_success("eval ptq.gguf --text text.txt --context 64 --base tiny --json").out);
  EXPECT_GT(direct["mean_kld"], 0.0);
  EXPECT_NEAR(direct["mean_kld"].get<double>() / file["mean_kld"].get<double>(), 1.0, 1e-4);
  EXPECT_LT(file["bits_per_weight"], 9.0);
  // The documented keys.
  for (const char* key : {"model",
                          "base",
                          "text",
                          "context",
                          "chunks",
                          "tokens",
                          "perplexity",
                          "perplexity_error",
                          "mean_nll",
                          "base_perplexity",
                          "ln_ppl_ratio",
                          "ppl_ratio",
                          "mean_kld",
                          "mean_kld_error",
                          "kld_percentiles",
                          "same_top",
                          "same_top_error",
                          "mean_delta_p",
                          "rms_delta_p",
                          "tokens_per_second",
                          "size_bytes",
                          "bits_per_weight"}) {
    EXPECT_TRUE(file.contains(key)) << key;
  }
  EXPECT_TRUE(file["kld_percentiles"].contains("p99"));
  EXPECT_EQ(file["size_bytes"], std::filesystem::file_size(place / "ptq.gguf"));

  const CommandResult table = expect_success("eval ptq.gguf --text text.txt --context 64 --base tiny");
  EXPECT_THAT(table.out,
              AllOf(HasSubstr("Perplexity"), HasSubstr("KL divergence"), HasSubstr("99.9 %"), HasSubstr("median")));
  EXPECT_THAT(table.err, HasSubstr("tokens/s"));
}

TEST_F(Command, AgainstItselfNothingDiffers) {
  const Json json = Json::parse(expect_success("eval tiny --text text.txt --context 64 --base tiny --json").out);
  EXPECT_NEAR(json["mean_kld"], 0.0, 1e-9);
  EXPECT_EQ(json["same_top"], 1.0);
  EXPECT_NEAR(json["ppl_ratio"], 1.0, 1e-9);
}

TEST_F(Command, ASavedBaseReplacesTheModelAndTheText) {
  expect_success("quantize tiny --plan q4_0 --out ptq");
  const Json alone =
      Json::parse(expect_success("eval tiny --text text.txt --context 64 --save-base base.kld --json").out);
  const Json live = Json::parse(expect_success("eval ptq --text text.txt --context 64 --base tiny --json").out);
  const Json saved = Json::parse(expect_success("eval ptq --base base.kld --json").out);
  EXPECT_FALSE(alone.contains("mean_kld"));
  EXPECT_NEAR(saved["perplexity"].get<double>() / live["perplexity"].get<double>(), 1.0, 1e-9);
  // The file holds 16-bit logarithms.
  EXPECT_NEAR(saved["base_perplexity"].get<double>() / alone["perplexity"].get<double>(), 1.0, 1e-3);
  EXPECT_NEAR(saved["mean_kld"], live["mean_kld"].get<double>(), 1e-3);
  // The text may be named: then it must be the same one.
  expect_success("eval ptq --base base.kld --text text.txt --json");
  write_contents(place / "other.txt", "x" + sample_text(1500));
  EXPECT_THAT(place.qat("eval ptq --base base.kld --text other.txt").err, HasSubstr("not the same text"));
  EXPECT_THAT(place.qat("eval ptq --base base.kld --context 32").err, HasSubstr("base.kld was saved with 64"));
  EXPECT_THAT(place.qat("eval ptq --base base.kld --chunks 2").err, HasSubstr("is compared whole"));
}

TEST_F(Command, SearchedScalesAreNoWorseAndActivationsWeighThem) {
  expect_success("quantize tiny --plan q4_0 --rule llama.cpp --out reference");
  expect_success("quantize tiny --plan q4_0 --rule search --out search");
  expect_success("quantize tiny --plan q4_0 --importance-text text.txt --importance-chunks 2 --out weighted");
  const auto bytes = [&](const std::string& name) { return file_contents(place / (name + "/model.safetensors")); };
  EXPECT_NE(bytes("reference"), bytes("search"));
  EXPECT_NE(bytes("search"), bytes("weighted"));
  expect_success("quantize tiny --plan q4_0 --method mse --out mse");
  EXPECT_EQ(bytes("search"), bytes("mse"));
}

TEST_F(Command, GptqOfBothKindsOfPlan) {
  write_contents(place / "long.txt", sample_text(4000));
  for (const std::string plan : {"q4_0", "mobile"}) {
    const std::string quantize = "quantize tiny --plan " + plan + " --calibrate long.txt --rule gptq ";
    expect_success(quantize + "--threads 1 --out " + plan);
    expect_success(quantize + "--threads 2 --out again");
    EXPECT_TRUE(file_contents(place / (plan + "/model.safetensors")) ==
                file_contents(place / "again/model.safetensors"));
    ASSERT_EQ(place.shell("rm -r again").status, 0);
    expect_success("eval " + plan + " --text text.txt --context 64 --base tiny --json");
    expect_success("export " + plan + " --out " + plan + ".gguf");
  }
}

TEST_F(Command, TensorTypesFollowTheFlags) {
  expect_success(
      "quantize tiny --plan q4_0 --rule 'ffn_down=q8_0' --tensor-type 'attn_q=f16' --token-embedding-type bf16 --out "
      "mixed");
  const Json json = Json::parse(expect_success("inspect mixed --json").out);
  EXPECT_EQ(json["kind"], "quantized_checkpoint");
  std::map<std::string, std::string> types;
  for (const Json& tensor : json["tensor_list"]) types[tensor["name"]] = tensor["type"];
  EXPECT_EQ(types["model.layers.0.mlp.down_proj.weight"], "Q8_0");
  EXPECT_EQ(types["model.layers.0.self_attn.q_proj.weight"], "F16");
  EXPECT_EQ(types["model.layers.0.mlp.up_proj.weight"], "Q4_0");
  EXPECT_EQ(types["model.embed_tokens.weight"], "BF16");
}

// Quantized under the plan mobile, out again both ways, and looked at.
TEST_F(Command, MobileQuantizeExportEvalInspect) {
  write_contents(place / "long.txt", sample_text(4000));
  expect_success("quantize tiny --plan mobile --calibrate long.txt --calibrate-tokens 1024 --out mobile");
  expect_success("export mobile --format mobile --out again");
  EXPECT_TRUE(file_contents(place / "mobile/model.safetensors") == file_contents(place / "again/model.safetensors"));
  expect_success("export mobile --format gguf --out mobile.gguf");
  expect_success("eval mobile --text text.txt --context 64 --base tiny --json");
  expect_success("generate mobile --prompt hello --tokens 5");
  write_contents(place / "ids.txt", "2 10 20 30 40 50\n");
  expect_success("logits mobile --ids ids.txt --out file.safetensors");
  expect_success("logits mobile --ids ids.txt --kv-cache float --out float.safetensors");
  EXPECT_NE(file_contents(place / "file.safetensors"), file_contents(place / "float.safetensors"));
  expect_success("logits tiny --ids ids.txt --out floats.safetensors");
  expect_success("logits tiny --ids ids.txt --kv-cache q8_0 --out blocks.safetensors");
  EXPECT_NE(file_contents(place / "floats.safetensors"), file_contents(place / "blocks.safetensors"));
  for (const std::string model : {"tiny", "mobile"}) {
    expect_success("logits " + model + " --ids ids.txt --out mapped.safetensors");
    expect_success("logits " + model + " --ids ids.txt --no-mmap --out copied.safetensors");
    EXPECT_TRUE(file_contents(place / "mapped.safetensors") == file_contents(place / "copied.safetensors"));
  }
  // Without static scales the GGUF file is the same model.
  expect_success("quantize tiny --plan mobile --activations off --kv-bits float --out weights");
  const auto perplexity = [&](const std::string& model) {
    return Json::parse(expect_success("eval " + model + " --text text.txt --context 64 --reference --json").out)
        .at("perplexity")
        .get<double>();
  };
  expect_success("export weights --out weights.gguf");
  EXPECT_NEAR(perplexity("weights") / perplexity("weights.gguf"), 1.0, 1e-5);
  ASSERT_EQ(place.shell("mkdir other && mv weights other/mobile").status, 0);  // the file has the directory's name
  expect_success("export other/mobile --out other.gguf");
  EXPECT_TRUE(file_contents(place / "other.gguf") == file_contents(place / "mobile.gguf"));

  EXPECT_THAT(expect_success("inspect mobile").out,
              AllOf(HasSubstr("mobile schema"), HasSubstr("8 bits, static, around 48 linears"),
                    HasSubstr("input scale"), HasSubstr("8 (layers 0-1 3-4), 4 (layers 2 5)")));
  const Json json = Json::parse(expect_success("inspect mobile --json").out);
  EXPECT_EQ(json["kind"], "mobile");
  EXPECT_EQ(json["kv_cache"][2]["bits"], 4);
  EXPECT_GT(json["kv_cache"][2]["k_scale"], 0.0);
  std::map<std::string, Json> tensors;
  for (const Json& tensor : json["tensor_list"]) tensors[tensor["name"]] = tensor;
  const Json& down = tensors["model.layers.4.mlp.down_proj.weight"];  // 512 wide at 2 bits, and a float32 for each row
  EXPECT_EQ(down["type"], "I2");
  EXPECT_DOUBLE_EQ(down["bits_per_weight"], 2.0 + 32.0 / 512);
  EXPECT_GT(down["input_scale"], 0.0);
  EXPECT_EQ(tensors["lm_head.weight"]["input_scale"], 0.0);
  EXPECT_THAT(expect_success("inspect other/mobile --no-tensors").out, HasSubstr("activations      float"));
}

TEST_F(Command, MobileOptionsDecide) {
  write_contents(place / "long.txt", sample_text(4000));
  const std::string quantize = "quantize tiny --plan mobile --calibrate long.txt ";
  expect_success(quantize + "--out a");
  for (const std::string options :
       {"--observer max", "--observer percentile", "--rule max", "--rule 'mlp=I4'", "--kv-bits 4", "--activations off",
        "--importance-text text.txt", "--calibrate-tokens 600"}) {
    expect_success(quantize + options + " --out b");
    EXPECT_FALSE(file_contents(place / "a/model.safetensors") == file_contents(place / "b/model.safetensors"))
        << options;
  }
  expect_success(quantize + "--observer mse --rule search --kv-bits 8,4 --activations on --out b");
  EXPECT_TRUE(file_contents(place / "a/model.safetensors") == file_contents(place / "b/model.safetensors"));
}

TEST_F(Command, InitMakesAMobileModel) {
  expect_success("init --shape gemma4-tiny --plan mobile --seed 1 --out a");
  expect_success("init --shape gemma4-tiny --plan mobile --seed 1 --threads 1 --out b");
  EXPECT_TRUE(file_contents(place / "a/model.safetensors") == file_contents(place / "b/model.safetensors"));
  EXPECT_THAT(place.names("a"), ElementsAre("config.json", "generation_config.json", "model.safetensors",
                                            "tokenizer.json", "tokenizer_config.json"));
  EXPECT_THAT(place.names(), ElementsAre("a", "b", "text.txt", "tiny"));
  expect_success("generate a --prompt hello --tokens 5");
  // The best scale of normal numbers leaves about an eighth of their energy at 2 bits, and 1 % at 4.
  const Safetensors file(place / "a");
  const float two = to_floats(file.at("lm_head.weight_scale"), "a")[0],
              four = to_floats(file.at("model.layers.0.mlp.up_proj.weight_scale"), "a")[0];
  EXPECT_NEAR(two, 0.02, 0.003);
  EXPECT_NEAR(four, 0.02 / 3, 0.001);
  expect_success("export a --out a.gguf");
}

TEST_F(Command, LogitsFromTextAndSafetensorsAgreeInEveryForm) {
  write_contents(place / "ids.txt", "2 10 20 30\n2,40,50,60\n");
  EXPECT_THAT(expect_success("logits tiny --ids ids.txt --out a.safetensors").out,
              HasSubstr("2 sequences of 4 tokens"));
  expect_success("logits tiny --ids a.safetensors --out b.safetensors --threads 1");
  EXPECT_EQ(file_contents(place / "a.safetensors"), file_contents(place / "b.safetensors"));
  const Safetensors file(place / "a.safetensors");
  EXPECT_EQ(file.at("logits").shape, (std::vector<int64_t>{2, 4, 260}));
  EXPECT_EQ(to_ints(file.at("input_ids"), "a"), (std::vector<int64_t>{2, 10, 20, 30, 2, 40, 50, 60}));
  expect_success("logits tiny --ids ids.txt --reference --out r.safetensors");
  const std::vector<float> fast = to_floats(file.at("logits"), "a"),
                           slow = to_floats(Safetensors(place / "r.safetensors").at("logits"), "r");
  float largest = 0, difference = 0;
  for (size_t i = 0; i < fast.size(); ++i) {
    largest = std::max(largest, std::abs(slow[i]));
    difference = std::max(difference, std::abs(slow[i] - fast[i]));
  }
  EXPECT_GT(largest, 0.0f);
  EXPECT_LE(difference, 1e-3f * largest);
}

TEST_F(Command, LogitsOfALongSequenceDoNotDependOnThePieces) {
  // 150 tokens are run in pieces of 64; the first 20 of them alone must give the same rows.
  std::string longer = "2", shorter = "2";
  for (int i = 1; i < 150; ++i)
    longer += " " + std::to_string(4 + i), shorter += i < 20 ? " " + std::to_string(4 + i) : "";
  write_contents(place / "long.txt", longer + "\n");
  write_contents(place / "short.txt", shorter + "\n");
  expect_success("logits tiny --ids long.txt --reference --out long.safetensors");
  expect_success("logits tiny --ids short.txt --reference --out short.safetensors");
  std::vector<float> a = to_floats(Safetensors(place / "long.safetensors").at("logits"), "long");
  const std::vector<float> b = to_floats(Safetensors(place / "short.safetensors").at("logits"), "short");
  a.resize(b.size());
  EXPECT_EQ(a, b);
}

TEST_F(Command, GenerateRepeatsItselfWithTheSameSeed) {
  const CommandResult first = expect_success("generate tiny --prompt 'Hello' --tokens 40 --seed 7");
  EXPECT_EQ(first.out.substr(0, 5), "Hello");
  EXPECT_THAT(first.err, HasSubstr("tokens/s"));
  EXPECT_EQ(expect_success("generate tiny --prompt 'Hello' --tokens 40 --seed 7").out, first.out);
  EXPECT_NE(expect_success("generate tiny --prompt 'Hello' --tokens 40 --seed 8").out, first.out);
  EXPECT_EQ("Hello" + expect_success("generate tiny --prompt 'Hello' --tokens 40 --seed 7 --no-echo").out, first.out);
}

TEST_F(Command, BenchMeasuresSpeedAgainstMemory) {
  const std::string few = " --threads 1 --prompt 16 --tokens 4 --repeat 2";
  const Json json = Json::parse(expect_success("bench tiny --json" + few).out);
  for (const char* key : {"model", "isa", "prefill_tokens_per_s", "decode_tokens_per_s", "weight_bytes_per_token",
                          "cache_bytes_per_token", "peak_rss_bytes"})
    EXPECT_TRUE(json.contains(key)) << key;
  EXPECT_EQ(json["threads"], 1);
  EXPECT_EQ(json["prompt"], 16);
  EXPECT_EQ(json["tokens"], 4);
  EXPECT_EQ(json["context"], 16);
  EXPECT_EQ(json["repeat"], 2);
  for (const std::string work : {"prefill", "decode"}) {
    const double median = json[work + "_tokens_per_s"];
    EXPECT_GT(json[work + "_tokens_per_s_min"], 0.0);
    EXPECT_LE(json[work + "_tokens_per_s_min"], median);
    EXPECT_GE(json[work + "_tokens_per_s_max"], median);
    EXPECT_EQ(json[work + "_seconds"].size(), 2u);
  }
  const double bytes = json["bytes_per_token"], speed = json["decode_tokens_per_s"];
  EXPECT_EQ(bytes, json["weight_bytes_per_token"].get<double>() + json["cache_bytes_per_token"].get<double>());
  EXPECT_DOUBLE_EQ(json["decode_gb_per_s"], bytes * speed / 1e9);
  EXPECT_DOUBLE_EQ(json["read_bandwidth_share"],
                   json["decode_gb_per_s"].get<double>() / json["read_bandwidth_gb_per_s"].get<double>());
  // A later token sees more of the cache, and the same weights.
  const Json later = Json::parse(expect_success("bench tiny --json --context 40" + few).out);
  EXPECT_EQ(later["context"], 40);
  EXPECT_EQ(later["weight_bytes_per_token"], json["weight_bytes_per_token"]);
  EXPECT_GT(later["cache_bytes_per_token"], json["cache_bytes_per_token"]);

  EXPECT_THAT(expect_success("bench tiny" + few).out,
              AllOf(HasSubstr("prefill, 16 tokens"), HasSubstr("decode, 4 tokens after 16"), HasSubstr("GB/s"),
                    HasSubstr("1 thread")));
  // Several contexts, each with its row; the first is what the keys above are of.
  const Json each = Json::parse(expect_success("bench --context 16,40,0 tiny --json" + few).out)["contexts"];
  ASSERT_EQ(each.size(), 3u);
  EXPECT_EQ(each[0]["cache_bytes_per_token"], json["cache_bytes_per_token"]);
  EXPECT_EQ(each[1]["cache_bytes_per_token"], later["cache_bytes_per_token"]);
  EXPECT_EQ(each[0]["of_first_context"], 1.0);
  EXPECT_GT(each[2]["of_first_context"], 0.0);
  EXPECT_THAT(expect_success("bench tiny --context 16,40" + few).out,
              AllOf(HasSubstr("decode, 4 tokens after 16"), HasSubstr("decode, 4 tokens after 40"),
                    HasSubstr("Decoding after 40 has ")));
  // The shape was made for 1024 positions.
  EXPECT_THAT(expect_success("bench tiny --threads 1 --prompt 8 --tokens 2 --repeat 1 --context 1030").err,
              HasSubstr("1032 positions are more than the 1024 the model was made for"));
}

TEST_F(Command, SampleWritesSequencesThatBeginWithBos) {
  expect_success("sample tiny --count 3 --length 16 --seed 5 --out s.safetensors");
  const Safetensors file(place / "s.safetensors");
  EXPECT_EQ(file.at("input_ids").shape, (std::vector<int64_t>{3, 16}));
  EXPECT_EQ(file.at("input_ids").dtype, DType::I32);
  const std::vector<int64_t> ids = to_ints(file.at("input_ids"), "s");
  for (const size_t begin : {0, 16, 32}) EXPECT_EQ(ids[begin], 2);
  // Sequence i depends on seed + i.
  expect_success("sample tiny --count 2 --length 16 --seed 6 --out t.safetensors");
  const std::vector<int64_t> shifted = to_ints(Safetensors(place / "t.safetensors").at("input_ids"), "t");
  EXPECT_TRUE(std::equal(shifted.begin(), shifted.end(), ids.begin() + 16));
}

TEST_F(Command, InspectTellsWhatIsThere) {
  expect_success("export tiny --format gguf --type f16 --out tiny.gguf");
  const CommandResult gguf = expect_success("inspect tiny.gguf --metadata");
  EXPECT_THAT(gguf.out,
              AllOf(HasSubstr("GGUF file"), HasSubstr("gemma4"), HasSubstr("token_embd.weight"),
                    HasSubstr("general.architecture = gemma4"), HasSubstr("the last 3 without K/V of their own")));
  EXPECT_THAT(expect_success("inspect tiny.gguf --no-tensors").out, Not(HasSubstr("token_embd.weight")));
  EXPECT_THAT(
      expect_success("inspect tiny").out,
      AllOf(HasSubstr("Hugging Face directory"), HasSubstr("model.embed_tokens.weight"), HasSubstr("[260, 128]")));
  EXPECT_THAT(expect_success("inspect tiny/model.safetensors").out, HasSubstr("safetensors"));
  const Json json = Json::parse(expect_success("inspect tiny --json").out);
  EXPECT_EQ(json["bits_per_weight"], 16.0);
  EXPECT_EQ(json["types"]["BF16"]["bytes"].get<int64_t>(), 2 * json["weights"].get<int64_t>());
  EXPECT_EQ(json["config"]["layers"], 6);
}

TEST_F(Command, RecipePrintsTheTableOrAWholeRecipe) {
  EXPECT_THAT(expect_success("recipe --explain").out, HasSubstr("teacher_tokens"));
  const std::string recipes = QAT_SOURCE_DIR "/recipes";
  for (const auto& entry : std::filesystem::directory_iterator(recipes)) {
    if (entry.path().extension() != ".toml") continue;
    const std::string whole = expect_success("recipe " + entry.path().string()).out;
    write_contents(place / "whole.toml", whole);
    EXPECT_EQ(expect_success("recipe whole.toml").out, whole);
  }
}

TEST_F(Command, TrainPreparesARunAndStartsTheTrainer) {
  // A stand-in for qat-train, beside a copy of qat: says what it was called with.
  ASSERT_EQ(place
                .shell("mkdir bin && cp \"$qat\" bin/qat && printf '#!/bin/sh\\necho trainer \"$@\"\\n' > "
                       "bin/qat-train && chmod +x bin/qat-train")
                .status,
            0);
  const auto train = [&](const std::string& arguments) { return place.shell("bin/qat train " + arguments); };
  const std::string run = "--model tiny --out run --data teacher --set teacher_tokens=100 --set sequence=32 --steps 60";
  const CommandResult first = train(run);
  ASSERT_EQ(first.status, 0) << first.err;
  EXPECT_EQ(first.out, "trainer --recipe run/recipe.toml\n");
  EXPECT_THAT(file_contents(place / "run/recipe.toml"), AllOf(HasSubstr("steps = 60"), HasSubstr("model = \"tiny\"")));
  const Safetensors samples(place / "run/teacher_samples.safetensors");
  EXPECT_EQ(samples.at("input_ids").shape, (std::vector<int64_t>{4, 32}));
  EXPECT_EQ(samples.metadata().at("seed"), "1");

  // The samples are kept as long as they are what the recipe asks for.
  EXPECT_THAT(first.err, HasSubstr("writes 4 sequences"));
  EXPECT_THAT(train(run).err, Not(HasSubstr("writes")));
  EXPECT_THAT(train(run + " --set seed=2").err, HasSubstr("writes 4 sequences"));

  // A run that is not finished is not thrown away.
  ASSERT_EQ(place.shell("mkdir run/checkpoints && touch run/checkpoints/step-00000040.safetensors").status, 0);
  const CommandResult again = train(run + " --set seed=3");
  EXPECT_EQ(again.status, 1);
  EXPECT_THAT(again.err, HasSubstr("run: holds an unfinished run (step 40 of 60): go on with --resume"));
  EXPECT_THAT(file_contents(place / "run/recipe.toml"), HasSubstr("seed = 2"));

  // Nor is one that is finished, or whose layers are on their way.
  ASSERT_EQ(place.shell("mkdir run/quantized").status, 0);
  EXPECT_THAT(train(run).err, HasSubstr("run: holds a finished run: choose another --out, or remove run"));
  EXPECT_EQ(train("--resume --out run").out, "run: this run is finished; its result is run/quantized\n");
  EXPECT_THAT(file_contents(place / "run/recipe.toml"), HasSubstr("seed = 2"));
  EXPECT_THAT(place.shell("bin/qat eval run --text text.txt").err,
              HasSubstr("run: this is a run of qat train: name its result, run/quantized"));
  for (const char* part : {"blocks", "start"}) {
    ASSERT_EQ(place.shell("rm -rf run/quantized run/blocks run/start && mkdir run/" + std::string(part)).status, 0);
    EXPECT_THAT(train(run).err, HasSubstr("run: holds an unfinished blockwise run: go on with --resume")) << part;
  }
  ASSERT_EQ(place.shell("rmdir run/start && mkdir run/hf").status, 0);  // of plain training, which this is not
  EXPECT_THAT(train(run).err, HasSubstr("run: holds an unfinished run (step 40 of 60)"));
  // What a killed run was writing counts for nothing.
  ASSERT_EQ(place.shell("mv run/checkpoints/step-00000040.safetensors run/checkpoints/step-00000040.safetensors.tmp.7")
                .status,
            0);
  EXPECT_EQ(train(run + " --set seed=2").status, 0);

  // Resuming: with the recipe of the run, with what may change, not with what decides the result.
  EXPECT_EQ(train("--resume --out run").out, "trainer --recipe run/recipe.toml --resume\n");
  EXPECT_EQ(train("--resume --out run --set log_every=3").status, 0);
  EXPECT_THAT(file_contents(place / "run/recipe.toml"), HasSubstr("log_every = 3"));
  const CommandResult changed = train("--resume --out run --lr 0.5");
  EXPECT_EQ(changed.status, 1);
  EXPECT_THAT(changed.err, HasSubstr("run/recipe.toml: a resumed run cannot change [train] lr: 1e-4 -> 0.5"));
}

}  // namespace
}  // namespace qat
