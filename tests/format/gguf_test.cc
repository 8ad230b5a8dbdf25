#include "format/gguf.h"

#include <cstring>
#include <limits>

#include "tests/expect_error.h"
#include "tests/file_size_limit.h"
#include "tests/test_paths.h"

namespace qat {
namespace {

// The bytes of a GGUF file, value by value: what GgufWriter would never write can be written here.
class Bytes {
 public:
  Bytes(uint64_t tensors, uint64_t keys, uint32_t version = 3) {
    text_ = "GGUF";
    put<uint32_t>(version);
    put<uint64_t>(tensors);
    put<uint64_t>(keys);
  }
  template <class T>
  Bytes& put(T value) {
    text_.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  Bytes& string(const std::string& s) {
    put<uint64_t>(s.size());
    text_ += s;
    return *this;
  }
  Bytes& key(const std::string& name, uint32_t type) { return string(name).put<uint32_t>(type); }
  Bytes& tensor(const std::string& name, const std::vector<uint64_t>& dims, uint32_t type, uint64_t offset) {
    string(name).put<uint32_t>(static_cast<uint32_t>(dims.size()));
    for (const uint64_t dim : dims) put(dim);
    return put(type).put(offset);
  }
  // Padding and `size` bytes of data.
  Bytes& data(size_t size, size_t alignment = 32) {
    text_.resize((text_.size() + alignment - 1) / alignment * alignment);
    text_.append(size, 'd');
    return *this;
  }
  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

constexpr uint32_t kF32 = 0, kQ4_0 = 2;
constexpr uint32_t kU8 = 0, kU32 = 4, kBool = 7, kString = 8, kArray = 9;

template <class T>
GgufValue value(T v) {
  return GgufValue(std::in_place_type<T>, std::move(v));
}

GgufMetadata metadata_of_every_type() {
  return {{"u8", value<uint8_t>(200)},
          {"i8", value<int8_t>(-100)},
          {"u16", value<uint16_t>(60000)},
          {"i16", value<int16_t>(-30000)},
          {"u32", value<uint32_t>(4000000000u)},
          {"i32", value<int32_t>(-2000000000)},
          {"f32", value<float>(1.5f)},
          {"bool", value<bool>(true)},
          {"string", value<std::string>("h\xc3\xa9llo")},
          {"u64", value<uint64_t>(std::numeric_limits<uint64_t>::max())},
          {"i64", value<int64_t>(std::numeric_limits<int64_t>::min())},
          {"f64", value<double>(0.1)},
          {"a.u8", value<std::vector<uint8_t>>({1, 2})},
          {"a.i8", value<std::vector<int8_t>>({-1, 2})},
          {"a.u16", value<std::vector<uint16_t>>({1, 2})},
          {"a.i16", value<std::vector<int16_t>>({-1, 2})},
          {"a.u32", value<std::vector<uint32_t>>({1, 2})},
          {"a.i32", value<std::vector<int32_t>>({-1, 2})},
          {"a.f32", value<std::vector<float>>({0.5f, -2.0f})},
          {"a.bool", value<std::vector<bool>>({true, false, true})},
          {"a.string", value<std::vector<std::string>>({"", "a", std::string("\0b", 2)})},
          {"a.u64", value<std::vector<uint64_t>>({1, uint64_t{1} << 63})},
          {"a.i64", value<std::vector<int64_t>>({-1, 2})},
          {"a.f64", value<std::vector<double>>({0.5, -2.0})},
          {"a.empty", value<std::vector<int32_t>>({})}};
}

TEST(Gguf, WritesExactlyTheseBytes) {
  TemporaryDirectory dir;
  GgufWriter writer(dir / "a", {{"n", value<uint32_t>(7)}, {"t", value<std::vector<std::string>>({"x", "yz"})}},
                    {{"w", DType::F32, {2, 3}}, {"v", DType::F16, {5}}});
  writer.append(std::string(10, '1').data(), 10);
  writer.append(std::string(14, '2').data(), 14);
  writer.append("", 0);
  writer.append(std::string(10, '3').data(), 10);
  writer.commit();
  Bytes expected(2, 2);
  expected.key("n", kU32).put<uint32_t>(7);
  expected.key("t", kArray).put<uint32_t>(kString).put<uint64_t>(2).string("x").string("yz");
  expected.tensor("w", {3, 2}, kF32, 0).tensor("v", {5}, 1, 32).data(0);
  const std::string data =
      std::string(10, '1') + std::string(14, '2') + std::string(8, '\0') + std::string(10, '3') + std::string(22, '\0');
  EXPECT_EQ(read_file(dir / "a"), expected.text() + data);
}

TEST(Gguf, ReadsBackEveryValueAndTensor) {
  TemporaryDirectory dir;
  const GgufMetadata metadata = metadata_of_every_type();
  std::vector<GgufTensorSpec> specs;
  for (const DTypeInfo& info : dtype_table())
    if (info.ggml_id >= 0) specs.push_back({std::string(info.name), info.id, {2, 3, 256}});
  GgufWriter writer(dir / "a", metadata, specs);
  for (const GgufTensorSpec& spec : specs) {
    const std::string bytes(*tensor_bytes(spec.dtype, spec.shape), spec.name[0]);
    writer.append(bytes.data(), bytes.size());
  }
  writer.commit();

  const GgufFile file(dir / "a");
  EXPECT_EQ(file.metadata(), metadata);
  ASSERT_EQ(file.tensors().size(), specs.size());
  for (size_t i = 0; i < specs.size(); ++i) {
    const GgufTensor& tensor = file.tensors()[i];
    EXPECT_EQ(tensor.name, specs[i].name);
    EXPECT_EQ(tensor.dtype, specs[i].dtype);
    EXPECT_EQ(tensor.shape, specs[i].shape);
    EXPECT_EQ(tensor.bytes.size(), *tensor_bytes(tensor.dtype, tensor.shape));
    for (const uint8_t byte : tensor.bytes) ASSERT_EQ(byte, tensor.name[0]);
    EXPECT_EQ(&file.tensor(tensor.name), &tensor);
  }
  EXPECT_EQ(file.find_tensor("none"), nullptr);
  expect_error([&] { file.tensor("none"); }, dir / "a" + ": expected tensor none, found none");
}

TEST(Gguf, TypedAccessConvertsWhatFitsAndNamesWhatDoesNot) {
  TemporaryDirectory dir;
  GgufWriter(dir / "a", metadata_of_every_type(), {}).commit();
  const GgufFile file(dir / "a");
  EXPECT_EQ(file.get_int("u8"), 200);
  EXPECT_EQ(file.get_int("i8"), -100);
  EXPECT_EQ(file.get_int("u32"), 4000000000);
  EXPECT_EQ(file.get_int("i64"), std::numeric_limits<int64_t>::min());
  EXPECT_EQ(file.get_int("none", 5), 5);
  EXPECT_EQ(file.get_int("u16", 5), 60000);
  EXPECT_EQ(file.get_float("f32"), 1.5);
  EXPECT_EQ(file.get_float("f64", 7.0), 0.1);
  EXPECT_EQ(file.get_float("none", 7.0), 7.0);
  EXPECT_TRUE(file.get_bool("bool", false));
  EXPECT_TRUE(file.get_bool("none", true));
  EXPECT_EQ(file.get_string("string"), "h\xc3\xa9llo");
  for (const char* key : {"a.i8", "a.i16", "a.i32", "a.i64"})
    EXPECT_EQ(file.get_ints(key), (std::vector<int64_t>{-1, 2})) << key;
  for (const char* key : {"a.u8", "a.u16", "a.u32"}) EXPECT_EQ(file.get_ints(key), (std::vector<int64_t>{1, 2})) << key;
  EXPECT_EQ(file.get_ints("a.bool"), (std::vector<int64_t>{1, 0, 1}));
  EXPECT_EQ(file.get_ints("a.empty"), std::vector<int64_t>{});
  EXPECT_EQ(file.get_ints("i8"), std::vector<int64_t>{-100});
  EXPECT_EQ(file.get_ints("bool"), std::vector<int64_t>{1});
  EXPECT_EQ(file.get_floats("a.f32"), (std::vector<float>{0.5f, -2.0f}));
  EXPECT_EQ(file.get_floats("a.f64"), (std::vector<float>{0.5f, -2.0f}));
  EXPECT_EQ(file.get_floats("f32"), std::vector<float>{1.5f});
  EXPECT_EQ(file.get_strings("string"), std::vector<std::string>{"h\xc3\xa9llo"});
  EXPECT_EQ(file.get_strings("a.string").size(), 3u);

  expect_error([&] { file.get_int("none"); }, dir / "a" + ": expected key none, found none");
  expect_error([&] { file.get_int("u64"); }, ": key u64: expected an integer below 2^63, found uint64");
  expect_error([&] { file.get_int("f32"); }, ": key f32: expected an integer below 2^63, found float32");
  expect_error([&] { file.get_int("bool"); }, "found bool");
  expect_error([&] { file.get_int("a.i8", 1); }, "found an array of int8");
  expect_error([&] { file.get_float("u8"); }, ": key u8: expected a float, found uint8");
  expect_error([&] { file.get_bool("u8", true); }, ": key u8: expected a bool, found uint8");
  expect_error([&] { file.get_string("u8"); }, ": key u8: expected a string, found uint8");
  expect_error([&] { file.get_strings("a.u8"); }, ": key a.u8: expected strings, found an array of uint8");
  expect_error([&] { file.get_ints("a.u64"); }, ": key a.u64: expected integers below 2^63, found an array of uint64");
  expect_error([&] { file.get_ints("a.f32"); }, "found an array of float32");
  expect_error([&] { file.get_ints("string"); }, "found string");
  expect_error([&] { file.get_floats("a.u8"); }, "expected floats, found an array of uint8");
}

TEST(Gguf, ReadsOtherAlignmentsScalarsAndVersion2) {
  TemporaryDirectory dir;
  Bytes bytes(2, 1, 2);
  bytes.key("general.alignment", kU32).put<uint32_t>(64);
  bytes.tensor("second", {4}, kF32, 64).tensor("scalar", {}, kF32, 0).data(80, 64);  // any order; no padding at the end
  put_file(dir / "a", bytes.text());
  const GgufFile file(dir / "a");
  EXPECT_TRUE(file.tensor("scalar").shape.empty());
  EXPECT_EQ(file.tensor("scalar").bytes.size(), 4u);
  EXPECT_EQ(file.tensor("second").bytes.begin() - file.tensor("scalar").bytes.begin(), 64);
}

TEST(Gguf, RefusesHostileFiles) {
  const std::string long_name(2000, 'n');
  const uint64_t huge = ~uint64_t{0};
  const struct {
    const char* name;
    Bytes bytes;
    const char* expected;
  } kCases[] = {
      {"version 1", Bytes(0, 0, 1), "expected GGUF version 2 or 3, found 1"},
      {"version 4", Bytes(0, 0, 4), "expected GGUF version 2 or 3, found 4"},
      {"big-endian", Bytes(0, 0, 0x03000000), "expected a little-endian GGUF file, found a big-endian one"},
      {"too many tensors", Bytes(1, 0), "tensor count: expected at most 0 in the 8 bytes left, found 1"},
      {"2^64 keys", Bytes(0, huge), "key count: expected at most 0 in the 0 bytes left"},
      {"key longer than the file", Bytes(0, 1).put<uint64_t>(100).put<uint64_t>(0),
       "key 0 at byte 32: expected 100 bytes, found the end of the file after 8"},
      {"huge key", Bytes(0, 1).put(huge).put<uint64_t>(0),
       "key 0: expected a string of at most 1024 bytes, found length"},
      {"long key", Bytes(0, 1).key(long_name, kU8).put<uint8_t>(0),
       "expected a string of at most 1024 bytes, found length 2000"},
      {"unknown value type", Bytes(0, 1).key("a", 13).put<uint64_t>(0),
       "key a: expected a value type from 0 to 12, found 13"},
      {"unknown element type", Bytes(0, 1).key("a", kArray).put<uint32_t>(13).put<uint64_t>(0),
       "key a: expected a value type from 0 to 12, found 13"},
      {"nested array", Bytes(0, 1).key("a", kArray).put<uint32_t>(kArray).put<uint64_t>(0),
       "key a: arrays of arrays are not supported"},
      {"array longer than the file", Bytes(0, 1).key("a", kArray).put<uint32_t>(kU32).put<uint64_t>(2).put<uint32_t>(0),
       "key a: array length: expected at most 1 in the 4 bytes left, found 2"},
      {"huge array", Bytes(0, 1).key("a", kArray).put<uint32_t>(kString).put(huge),
       "key a: array length: expected at most 0"},
      {"huge string", Bytes(0, 1).key("a", kString).put(huge), "key a at byte 45: expected 18446744073709551615 bytes"},
      {"bool of 2", Bytes(0, 1).key("a", kBool).put<uint8_t>(2), "key a: expected a bool of 0 or 1, found 2"},
      {"key twice", Bytes(0, 2).key("a", kU8).put<uint8_t>(0).key("a", kU8).put<uint8_t>(0), "key a appears twice"},
      {"alignment 0", Bytes(0, 1).key("general.alignment", kU32).put<uint32_t>(0),
       "key general.alignment: expected a power of two, found 0"},
      {"alignment 24", Bytes(0, 1).key("general.alignment", kU32).put<uint32_t>(24),
       "expected a power of two, found 24"},
      {"alignment of u8", Bytes(0, 1).key("general.alignment", kU8).put<uint8_t>(32),
       "key general.alignment: expected uint32, found uint8"},
      {"part of a split model", Bytes(0, 1).key("split.count", 2).put<uint16_t>(3), "one part of a split model"},
      {"5 dimensions", Bytes(1, 0).tensor("t", {1, 1, 1, 1, 1}, kF32, 0).data(4),
       "tensor t: expected at most 4 dimensions, found 5"},
      {"zero size", Bytes(1, 0).tensor("t", {32, 0}, kF32, 0).data(4),
       "tensor t: expected sizes from 1 to 2^63 - 1, found 0"},
      {"size 2^63", Bytes(1, 0).tensor("t", {uint64_t{1} << 63}, kF32, 0).data(4), "expected sizes from 1 to 2^63 - 1"},
      {"overflow", Bytes(1, 0).tensor("t", {uint64_t{1} << 32, uint64_t{1} << 32}, kF32, 0).data(4),
       "tensor t: its size in bytes overflows"},
      {"unknown type", Bytes(1, 0).tensor("t", {4}, 99, 0).data(16), "tensor t: type 99 is not known"},
      {"type that ggml removed", Bytes(1, 0).tensor("t", {4}, 4, 0).data(16), "tensor t: type 4 is not known"},
      {"ragged row", Bytes(1, 0).tensor("t", {33, 2}, kQ4_0, 0).data(64),
       "tensor t: expected rows of a multiple of 32 elements for Q4_0, found 33"},
      {"scalar Q4_0", Bytes(1, 0).tensor("t", {}, kQ4_0, 0).data(64), "found 1"},
      {"long tensor name", Bytes(1, 0).tensor(long_name, {4}, kF32, 0).data(16),
       "name of tensor 0: expected a string of at most 1024"},
      {"tensor twice", Bytes(2, 0).tensor("t", {4}, kF32, 0).tensor("t", {4}, kF32, 32).data(64),
       "tensor t appears twice"},
      {"offset not aligned", Bytes(1, 0).tensor("t", {4}, kF32, 8).data(64),
       "tensor t: expected an offset that is a multiple of 32, found 8"},
      {"beyond the file", Bytes(1, 0).tensor("t", {4}, kF32, 32).data(40),
       "tensor t: expected its 16 bytes at offset 32, found only 40 bytes of data"},
      {"huge offset", Bytes(1, 0).tensor("t", {4}, kF32, huge - 31).data(40), "found only 40 bytes of data"},
      {"overlap", Bytes(2, 0).tensor("a", {16}, kF32, 0).tensor("b", {4}, kF32, 32).data(64),
       "tensor b: its data at offset 32 overlaps another tensor that ends at 64"},
      {"too long", Bytes(1, 0).tensor("t", {4}, kF32, 0).data(33),
       "expected the file to end after the last tensor, found 17 more bytes"},
      {"line break in a key", Bytes(0, 1).key("a\nb", 13).put<uint64_t>(0), "key a\\x0ab: expected a value type"},
  };
  TemporaryDirectory dir;
  for (const auto& c : kCases) {
    SCOPED_TRACE(c.name);
    put_file(dir / "a", c.bytes.text());
    expect_error([&] { GgufFile file(dir / "a"); }, c.expected);
    expect_error([&] { GgufFile file(dir / "a"); }, dir / "a");
  }
  put_file(dir / "a", "GGML and more");
  expect_error([&] { GgufFile file(dir / "a"); }, "expected a file that begins with \"GGUF\", found another format");
}

std::string small_file() {
  Bytes bytes(2, 3);
  bytes.key("general.architecture", kString).string("llama");
  bytes.key("list", kArray).put<uint32_t>(kString).put<uint64_t>(2).string("a").string("b");
  bytes.key("n", kU32).put<uint32_t>(7);
  bytes.tensor("w", {32, 2}, kQ4_0, 0).tensor("v", {3}, kF32, 64).data(76);
  return bytes.text();
}

TEST(Gguf, SurvivesEveryTruncationAndEveryFlippedBit) {
  TemporaryDirectory dir;
  const std::string good = small_file();
  put_file(dir / "a", good);
  EXPECT_EQ(GgufFile(dir / "a").tensors().size(), 2u);
  for (size_t size = 0; size < good.size(); ++size) {
    put_file(dir / "a", good.substr(0, size));
    expect_error([&] { GgufFile file(dir / "a"); }, dir / "a");
  }
  int accepted = 0;
  for (size_t bit = 0; bit < (good.size() - 76) * 8; ++bit) {
    std::string bad = good;
    bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << (bit % 8)));
    put_file(dir / "a", bad);
    accepted += succeeds_or_errs([&] {
      const GgufFile file(dir / "a");
      uint64_t sum = 0;
      for (const GgufTensor& tensor : file.tensors())
        for (const uint8_t byte : tensor.bytes) sum += byte;
      EXPECT_NE(sum, 0u);
    });
  }
  RecordProperty("accepted", accepted);
  // Flips inside names, numbers and padding leave a valid file; flips of lengths, counts and offsets must not.
  EXPECT_LT(accepted, 700);
}

TEST(GgufWriter, AFullDiskIsAnErrorAndLeavesNothing) {
  TemporaryDirectory dir;
  const FileSizeLimit limit(100000);
  const auto write = [&](int64_t size) {
    const std::string data(static_cast<size_t>(size), 'x');
    GgufWriter writer(dir / "a", {}, {{"a", DType::I8, {size}}});
    writer.append(data.data(), data.size());
    writer.commit();
  };
  // More than is written at a time, and what the buffer holds until the end.
  expect_error([&] { write(8 << 20); }, "/a: cannot write 8388608 bytes at position ");
  expect_error([&] { write(1 << 20); }, "/a: cannot write to disk: File too large");
  EXPECT_TRUE(std::filesystem::is_empty(dir.path()));
}

}  // namespace
}  // namespace qat
