#include "format/safetensors.h"

#include <chrono>
#include <cstring>
#include <filesystem>
#include <limits>

#include "format/number.h"
#include "tests/expect_error.h"
#include "tests/file_size_limit.h"
#include "tests/test_paths.h"

namespace qat {
namespace {

// A file with this header (as given, valid or not) and `data_size` bytes 0, 1, 2, ... of data.
std::string file_bytes(const std::string& header, size_t data_size) {
  const uint64_t size = header.size();
  std::string bytes(reinterpret_cast<const char*>(&size), 8);
  bytes += header;
  for (size_t i = 0; i < data_size; ++i) bytes += static_cast<char>(i);
  return bytes;
}

std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& offsets) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":" + offsets + "}";
}

// Touches every byte of every tensor, so that a view beyond the file would be seen (by a sanitizer, or as a crash).
uint64_t sum_of(const Safetensors& file) {
  uint64_t sum = 0;
  for (const TensorView& tensor : file.tensors())
    for (const uint8_t byte : tensor.bytes) sum += byte;
  return sum;
}

TEST(SafetensorsWriter, WritesExactlyTheseBytes) {
  TemporaryDirectory dir;
  SafetensorsWriter writer(dir / "a", {{"b", DType::I16, {2}}, {"a", DType::U8, {1, 3}}}, {{"k", "v"}});
  const int16_t b[] = {258, -1};
  writer.append(b, 2);
  writer.append(b + 1, 2);
  writer.append("xyz", 3);
  writer.commit();
  const std::string header = R"({"__metadata__":{"k":"v"},"b":{"dtype":"I16","shape":[2],"data_offsets":[0,4]},)"
                             R"("a":{"dtype":"U8","shape":[1,3],"data_offsets":[4,7]}})";
  const std::string padded = header + std::string((8 - header.size() % 8) % 8, ' ');
  const uint64_t size = padded.size();
  EXPECT_EQ(read_file(dir / "a"),
            std::string(reinterpret_cast<const char*>(&size), 8) + padded + "\x02\x01\xff\xffxyz");
}

TEST(SafetensorsWriter, AFullDiskIsAnErrorAndLeavesNothing) {
  TemporaryDirectory dir;
  const FileSizeLimit limit(100000);
  const auto write = [&](int64_t size) {
    const std::string data(static_cast<size_t>(size), 'x');
    SafetensorsWriter writer(dir / "a", {{"a", DType::U8, {size}}});
    writer.append(data.data(), data.size());
    writer.commit();
  };
  // More than is written at a time, and what the buffer holds until the end.
  expect_error([&] { write(8 << 20); }, "/a: cannot write 8388608 bytes at position ");
  expect_error([&] { write(1 << 20); }, "/a: cannot write to disk: File too large");
  EXPECT_TRUE(std::filesystem::is_empty(dir.path()));
}

TEST(Safetensors, ReadsBackEveryTypeAndShape) {
  TemporaryDirectory dir;
  std::vector<TensorSpec> specs;
  for (const DTypeInfo& info : dtype_table())
    if (info.safetensors != nullptr) specs.push_back({std::string("t.") + info.name, info.id, {3, 5}});
  specs.push_back({"scalar", DType::U8, {}});
  specs.push_back({"empty", DType::F32, {4, 0}});
  specs.push_back({"utf8 \"\\ \xc3\xa9", DType::U8, {2}});
  SafetensorsWriter writer(dir / "a", specs, {});
  for (const TensorSpec& spec : specs) {
    const std::string bytes(*tensor_bytes(spec.dtype, spec.shape), static_cast<char>(spec.name.size()));
    writer.append(bytes.data(), bytes.size());
  }
  writer.commit();

  const Safetensors file(dir / "a");
  ASSERT_EQ(file.tensors().size(), specs.size());
  EXPECT_TRUE(file.metadata().empty());
  for (const TensorSpec& spec : specs) {
    const TensorView& tensor = file.at(spec.name);
    EXPECT_EQ(tensor.dtype, spec.dtype);
    EXPECT_EQ(tensor.shape, spec.shape);
    EXPECT_EQ(tensor.bytes.size(), *tensor_bytes(spec.dtype, spec.shape));
    for (const uint8_t byte : tensor.bytes) EXPECT_EQ(byte, spec.name.size());
  }
  EXPECT_EQ(file.at("scalar").count(), 1);
  EXPECT_EQ(file.at("empty").count(), 0);
  EXPECT_EQ(file.find("none"), nullptr);
  expect_error([&] { file.at("none"); }, dir / "a" + ": expected tensor none, found none");
}

TEST(Safetensors, ConvertsFloatsAndIntegersThatAreNotAligned) {
  TemporaryDirectory dir;
  const float values[] = {1.5f, -0.0f, 65504.0f, -3.0f};
  std::string data = "x";  // shifts everything that follows to odd addresses
  const auto put = [&](auto value) { data.append(reinterpret_cast<const char*>(&value), sizeof value); };
  for (const float v : values) put(v);
  for (const float v : values) put(f32_to_f16(v));
  for (const float v : values) put(f32_to_bf16(v));
  for (const float v : values) put(static_cast<double>(v));
  put(int32_t{-7});
  put(std::numeric_limits<int64_t>::min());
  std::string header = "{" + entry("x", "U8", "[1]", "[0,1]") + "," + entry("f32", "F32", "[4]", "[1,17]") + "," +
                       entry("f16", "F16", "[4]", "[17,25]") + "," + entry("bf16", "BF16", "[4]", "[25,33]") + "," +
                       entry("f64", "F64", "[4]", "[33,65]") + "," + entry("i32", "I32", "[]", "[65,69]") + "," +
                       entry("i64", "I64", "[1]", "[69,77]") + "}";
  put_file(dir / "a", file_bytes(header, 0) + data);
  const Safetensors file(dir / "a");
  EXPECT_EQ(file.at("f32").bytes.size(), 16u);
  for (const char* name : {"f32", "f16", "bf16", "f64"}) {
    const std::vector<float> floats = to_floats(file.at(name), "a");
    ASSERT_EQ(floats.size(), 4u);
    for (int i = 0; i < 4; ++i) {
      const float expected = std::string(name) == "bf16" ? bf16_to_f32(f32_to_bf16(values[i])) : values[i];
      EXPECT_EQ(float_bits(floats[static_cast<size_t>(i)]), float_bits(expected)) << name << " " << i;
    }
    float last_two[2] = {};
    to_floats(file.at(name), 2, 2, last_two, "a");
    EXPECT_EQ(last_two[1], -3.0f) << name;
  }
  EXPECT_EQ(to_ints(file.at("i32"), "a"), std::vector<int64_t>{-7});
  EXPECT_EQ(to_ints(file.at("i64"), "a"), std::vector<int64_t>{std::numeric_limits<int64_t>::min()});
  EXPECT_EQ(to_ints(file.at("x"), "a"), std::vector<int64_t>{'x'});
  expect_error([&] { to_floats(file.at("i32"), "a"); }, "a: tensor i32: expected F32, F16, BF16 or F64, found I32");
  expect_error([&] { to_ints(file.at("f32"), "a"); }, "a: tensor f32: expected integers");
}

TEST(Safetensors, FindsShardsThroughTheIndex) {
  TemporaryDirectory dir;
  put_file(dir / "one.safetensors", file_bytes("{" + entry("b", "U8", "[2]", "[0,2]") + "}", 2));
  put_file(dir / "two.safetensors", file_bytes("{" + entry("a", "U8", "[3]", "[0,3]") + "}", 3));
  const std::string index = dir / "model.safetensors.index.json";
  put_file(index, R"({"metadata":{"total_size":5},"weight_map":{"b":"one.safetensors","a":"two.safetensors"}})");
  const Safetensors file(dir.path());
  ASSERT_EQ(file.tensors().size(), 2u);
  EXPECT_EQ(file.tensors()[0].name, "a");
  EXPECT_EQ(file.at("a").bytes.size(), 3u);
  EXPECT_EQ(file.at("b").bytes.size(), 2u);
  for (const TensorView& tensor : file.tensors())
    EXPECT_EQ(file.file_of(tensor.bytes.data())->path(), dir / (tensor.name == "a" ? "two" : "one") + ".safetensors");
  EXPECT_EQ(file.file_of(reinterpret_cast<const uint8_t*>(&file)), nullptr);

  const auto opens = [&] { Safetensors again(dir.path()); };
  put_file(index, R"({"weight_map":{"b":"one.safetensors","c":"two.safetensors"}})");
  expect_error(opens, "/two.safetensors: expected tensor c as the index says, found none");
  put_file(index, R"({"weight_map":{"b":"three.safetensors"}})");
  expect_error(opens, "three.safetensors: cannot open");
  for (const char* outside : {R"("../one.safetensors")", R"("/etc/passwd")", R"("sub/one")", R"("..")", R"("")", "1",
                              R"("a\u0000b")", R"("a\nb")", R"("\u001b[2J")"}) {
    put_file(index, std::string(R"({"weight_map":{"b":)") + outside + "}}");
    expect_error(opens, "tensor b: expected the name of a file beside the index");
  }
  for (const char* text : {"", "[]", "{}", R"({"weight_map":[]})"}) {
    put_file(index, text);
    expect_error(opens, "model.safetensors.index.json: ");
  }
  put_file(dir / "three.safetensors", file_bytes("{" + entry("a", "U8", "[3]", "[0,3]") + "}", 3));
  put_file(index, R"({"weight_map":{"b":"three.safetensors","a":"two.safetensors"}})");
  expect_error(opens, "tensor a is also in another shard");
  TemporaryDirectory empty;
  expect_error([&] { Safetensors none(empty.path()); }, "expected model.safetensors or model.safetensors.index.json");
}

TEST(Safetensors, OpensManyTensorsInLinearTime) {
  TemporaryDirectory dir;
  std::vector<TensorSpec> specs;
  for (int i = 0; i < 30000; ++i) specs.push_back({"model.layers." + std::to_string(i) + ".weight", DType::U8, {0}});
  SafetensorsWriter(dir / "a", specs).commit();
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(Safetensors(dir / "a").tensors().size(), specs.size());
  // A tenth of a second on an idle machine; minutes when something in it is quadratic.
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(15));
}

TEST(Safetensors, RefusesHostileHeaders) {
  const std::string big(70, '1');
  const struct {
    std::string name, header;
    size_t data;
    std::string expected;
  } kCases[] = {
      {"empty header", "", 0, "begins with {"},
      {"array", "[]", 0, "begins with {"},
      {"not JSON", "{\"a\"", 0, "JSON header: "},
      {"text after it", "{}x", 0, "JSON header: "},
      {"control characters in a message", "{\"a\n\x01", 0, "JSON header: "},
      {"invalid UTF-8", "{\"\xff\":1}", 0, "JSON header: "},
      {"deep", "{" + std::string(100000, '[').insert(0, "\"a\":"), 0, "expected at most 3 levels"},
      {"entry is a number", "{\"a\":1}", 0, "tensor a: expected a JSON object, found number"},
      {"tensor twice", "{" + entry("a", "U8", "[1]", "[0,1]") + "," + entry("a", "U8", "[1]", "[0,1]") + "}", 1,
       "\"a\" appears twice"},
      {"key twice", R"({"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}})", 1,
       "\"dtype\" appears twice"},
      {"no dtype", R"({"a":{"shape":[1],"data_offsets":[0,1]}})", 1, "tensor a: expected a \"dtype\", found none"},
      {"no shape", R"({"a":{"dtype":"U8","data_offsets":[0,1]}})", 1, "expected a \"shape\", found none"},
      {"no offsets", R"({"a":{"dtype":"U8","shape":[1]}})", 1, "expected a \"data_offsets\", found none"},
      {"dtype is a number", R"({"a":{"dtype":1,"shape":[1],"data_offsets":[0,1]}})", 1,
       "dtype: expected a string, found number"},
      {"unknown dtype", "{" + entry("a", "F7", "[1]", "[0,1]") + "}", 1, "tensor a: dtype \"F7\" is not known"},
      {"shape is a number", "{" + entry("a", "U8", "1", "[0,1]") + "}", 1, "shape: expected an array, found number"},
      {"negative size", "{" + entry("a", "U8", "[-1]", "[0,1]") + "}", 1,
       "expected sizes from 0 to 2^63 - 1, found -1"},
      {"size 1.0", "{" + entry("a", "U8", "[1.0]", "[0,1]") + "}", 1, "expected sizes from 0 to 2^63 - 1, found 1.0"},
      {"size 2^63", "{" + entry("a", "U8", "[9223372036854775808]", "[0,1]") + "}", 1, "expected sizes from 0"},
      {"huge size", "{" + entry("a", "U8", "[" + big + "]", "[0,1]") + "}", 1, "expected sizes from 0"},
      {"overflowing product", "{" + entry("a", "U8", "[4294967296,4294967296]", "[0,1]") + "}", 1, "overflows"},
      {"overflow hidden by a zero", "{" + entry("a", "U8", "[4294967296,4294967296,0]", "[0,0]") + "}", 0, "overflows"},
      {"overflowing bytes", "{" + entry("a", "F64", "[2305843009213693952]", "[0,0]") + "}", 0, "overflows"},
      {"one offset", "{" + entry("a", "U8", "[1]", "[0]") + "}", 1, "data_offsets: expected two sizes, found [0]"},
      {"negative offset", "{" + entry("a", "U8", "[1]", "[-1,0]") + "}", 1, "data_offsets: expected two sizes"},
      {"begin after end", "{" + entry("a", "U8", "[1]", "[1,0]") + "}", 1, "within the 1 bytes of data, found [1, 0]"},
      {"beyond the file", "{" + entry("a", "U8", "[2]", "[0,2]") + "}", 1, "within the 1 bytes of data, found [0, 2]"},
      {"huge offset", "{" + entry("a", "U8", "[1]", "[0,18446744073709551615]") + "}", 1, "within the 1 bytes of data"},
      {"wrong bytes", "{" + entry("a", "F32", "[2]", "[0,7]") + "}", 7,
       "shape [2] of F32 is 8 bytes, data_offsets say 7"},
      {"overlap", "{" + entry("a", "U8", "[2]", "[0,2]") + "," + entry("b", "U8", "[2]", "[1,3]") + "}", 3,
       "tensor b: expected its data at offset 2, found 1 (overlap)"},
      {"hole", "{" + entry("a", "U8", "[1]", "[0,1]") + "," + entry("b", "U8", "[1]", "[2,3]") + "}", 3,
       "tensor b: expected its data at offset 1, found 2 (hole)"},
      {"too long", "{" + entry("a", "U8", "[1]", "[0,1]") + "}", 3, "end after the last tensor, found 2 more bytes"},
      {"metadata is a number", R"({"__metadata__":1})", 0, "__metadata__: expected an object, found number"},
      {"metadata of a number", R"({"__metadata__":{"a":1}})", 0, "__metadata__: a: expected a string, found number"},
      {"line break in a name", R"({"a\nb":1})", 0, "tensor a\\x0ab: expected a JSON object"},
  };
  TemporaryDirectory dir;
  for (const auto& c : kCases) {
    SCOPED_TRACE(c.name);
    put_file(dir / "a", file_bytes(c.header, c.data));
    expect_error([&] { Safetensors file(dir / "a"); }, c.expected);
    expect_error([&] { Safetensors file(dir / "a"); }, dir / "a");
  }
}

TEST(Safetensors, RefusesImpossibleHeaderLengths) {
  TemporaryDirectory dir;
  for (const uint64_t length : {uint64_t{3}, uint64_t{100'000'001}, uint64_t{1} << 63, ~uint64_t{0}}) {
    put_file(dir / "a", std::string(reinterpret_cast<const char*>(&length), 8) + "{}");
    expect_error([&] { Safetensors file(dir / "a"); },
                 "expected a safetensors header of at most 2 bytes, found length");
  }
  put_file(dir / "a", "{}");
  expect_error([&] { Safetensors file(dir / "a"); },
               "expected a safetensors header length of 8 bytes, found a file of 2");
}

TEST(Safetensors, SurvivesEveryTruncationAndEveryFlippedBit) {
  TemporaryDirectory dir;
  const std::string header = R"({"__metadata__":{"format":"pt"},)" + entry("a", "F32", "[2,2]", "[0,16]") + "," +
                             entry("b", "BF16", "[3]", "[16,22]") + "}";
  const std::string good = file_bytes(header, 22);
  for (size_t size = 0; size < good.size(); ++size) {
    put_file(dir / "a", good.substr(0, size));
    expect_error([&] { Safetensors file(dir / "a"); }, dir / "a");
  }
  int accepted = 0;
  for (size_t bit = 0; bit < (8 + header.size()) * 8; ++bit) {
    std::string bad = good;
    bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << (bit % 8)));
    put_file(dir / "a", bad);
    accepted += succeeds_or_errs([&] { sum_of(Safetensors(dir / "a")); });
  }
  // A flip inside a name or the metadata leaves a valid file; most others must not.
  EXPECT_LT(accepted, 200);
}

TEST(Safetensors, ReadsFilesThatTheReferenceWrote) {
  QAT_NEED_SHARED("goldens/gemma4-e2b/golden.safetensors");
  const Safetensors file(shared_path("goldens/gemma4-e2b/golden.safetensors"));
  EXPECT_EQ(file.at("input_ids").shape, (std::vector<int64_t>{2, 80}));
  EXPECT_EQ(to_ints(file.at("input_ids"), file.path()).size(), 160u);
  EXPECT_EQ(file.at("logits").dtype, DType::F32);
}

}  // namespace
}  // namespace qat
