// Every row of the table of kernels for packed codes, against the grids' own decoding, sums in double, and integers.
// Rows end where a page that must not be read begins.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cfloat>

#include "inference/kernels.h"
#include "tests/inference/random.h"

namespace qat {
namespace {

// Copies bytes to the end of a page; the next one faults.
class Guarded {
 public:
  explicit Guarded(const std::vector<uint8_t>& bytes) : page_(static_cast<size_t>(getpagesize())) {
    const size_t size = (bytes.size() + page_ - 1) / page_ * page_;
    map_size_ = size + page_;
    map_ = static_cast<uint8_t*>(mmap(nullptr, map_size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    EXPECT_EQ(mprotect(map_ + size, page_, PROT_NONE), 0);
    data_ = map_ + size - bytes.size();
    std::copy(bytes.begin(), bytes.end(), data_);
  }
  Guarded(const Guarded&) = delete;
  ~Guarded() { munmap(map_, map_size_); }
  const uint8_t* data() const { return data_; }

 private:
  size_t page_, map_size_ = 0;
  uint8_t *map_ = nullptr, *data_ = nullptr;
};

std::vector<int8_t> random_codes(int bits, int64_t count, Random* random) {
  std::vector<int8_t> codes(static_cast<size_t>(count));
  for (int8_t& code : codes)
    code = static_cast<int8_t>(static_cast<int>(std::floor(random->next() * static_cast<float>(1 << (bits - 1)))));
  return codes;
}

std::vector<uint8_t> packed(int bits, const std::vector<int8_t>& codes) {
  const int64_t cols = static_cast<int64_t>(codes.size());
  std::vector<uint8_t> bytes(row_bytes(code_type(bits), cols));
  pack_codes(bits, codes.data(), 1, cols, bytes.data());
  return bytes;
}

std::vector<int64_t> lengths() {
  std::vector<int64_t> all;
  for (int64_t n = 1; n <= 140; ++n) all.push_back(n);
  all.insert(all.end(), {255, 256, 257, 1000, 1537});
  return all;
}

class ChannelKernels : public testing::TestWithParam<ChannelKernel> {
 protected:
  void SetUp() override {
    if (!isa_supported(GetParam().isa)) GTEST_SKIP() << "this processor does not run " << isa_name(GetParam().isa);
  }
  const int bits_ = code_bits(GetParam().type);
};

TEST_P(ChannelKernels, DecodeIsTheGridsBitForBit) {
  Random random(21);
  for (const int64_t cols : lengths()) {
    const Guarded row(packed(bits_, random_codes(bits_, cols, &random)));
    std::vector<float> expected(static_cast<size_t>(cols)), actual(static_cast<size_t>(cols) + 1, 7.0f);
    decode_packed(bits_, row.data(), 0, cols, 0.37f, expected.data());
    GetParam().decode(row.data(), cols, 0.37f, actual.data());
    EXPECT_EQ(actual.back(), 7.0f) << "wrote past the end";
    actual.pop_back();
    EXPECT_EQ(actual, expected) << cols;
  }
}

TEST_P(ChannelKernels, DotAgreesWithDouble) {
  Random random(22);
  for (const int64_t cols : lengths()) {
    const std::vector<int8_t> codes = random_codes(bits_, cols, &random);
    const Guarded row(packed(bits_, codes));
    const std::vector<float> x = random.floats(cols, 3.0f);
    double sum = 0.0, magnitude = 0.0;
    for (size_t k = 0; k < x.size(); ++k) {
      const double product = 0.37f * static_cast<double>(codes[k]) * static_cast<double>(x[k]);
      sum += product;
      magnitude += std::fabs(product);
    }
    const double bound = 0.5 * FLT_EPSILON * static_cast<double>(cols + 4) * magnitude;
    EXPECT_NEAR(GetParam().dot(row.data(), cols, 0.37f, x.data()), sum, bound) << cols;
  }
}

// Integers: exactly, for every count of rows, with codes that are all extreme as well.
TEST_P(ChannelKernels, MultiplyIsExact) {
  Random random(23);
  for (const int64_t cols : lengths()) {
    for (const int extreme : {0, lowest_code(bits_), highest_code(bits_)}) {
      std::vector<int8_t> codes = random_codes(bits_, cols, &random);
      if (extreme != 0) codes.assign(codes.size(), static_cast<int8_t>(extreme));
      const Guarded row(packed(bits_, codes));
      const int64_t stride = arranged_bytes(cols);
      std::vector<int8_t> arranged(static_cast<size_t>(kCodeRows * stride), 99);
      int64_t expected[kCodeRows] = {};
      for (int64_t r = 0; r < kCodeRows; ++r) {
        std::vector<int8_t> x = random_codes(8, cols, &random);
        if (extreme != 0 && r < 2) x.assign(x.size(), r == 0 ? -128 : 127);
        for (size_t k = 0; k < x.size(); ++k) expected[r] += codes[k] * x[k];
        GetParam().arrange(x.data(), cols, arranged.data() + r * stride);
      }
      for (int64_t rows = 1; rows <= kCodeRows; ++rows) {
        int32_t sums[kCodeRows + 1];
        std::fill_n(sums, kCodeRows + 1, 7);
        GetParam().multiply(row.data(), 0, 1, arranged.data(), rows, cols, sums);
        for (int64_t r = 0; r < rows; ++r) ASSERT_EQ(sums[r], expected[r]) << cols << " columns, row " << r;
        EXPECT_EQ(sums[rows], 7) << "wrote past the end";
      }
    }
  }
}

// The longest row whose sum of extremes still fits.
TEST_P(ChannelKernels, TheLongestRow) {
  const std::vector<int8_t> codes(static_cast<size_t>(kMostCodes), static_cast<int8_t>(lowest_code(bits_)));
  const std::vector<int8_t> x(codes.size(), -128);
  std::vector<int8_t> arranged(static_cast<size_t>(arranged_bytes(kMostCodes)));
  GetParam().arrange(x.data(), kMostCodes, arranged.data());
  int32_t sum = 0;
  GetParam().multiply(packed(bits_, codes).data(), 0, 1, arranged.data(), 1, kMostCodes, &sum);
  EXPECT_EQ(sum, kMostCodes * 128 * -lowest_code(bits_));
}

INSTANTIATE_TEST_SUITE_P(Table, ChannelKernels, testing::ValuesIn(channel_kernels().begin(), channel_kernels().end()),
                         [](const testing::TestParamInfo<ChannelKernel>& row) {
                           return std::string(dtype_name(row.param.type)) + "_" + isa_name(row.param.isa);
                         });

TEST(ChannelKernelTable, HasEveryWidthForEveryIsa) {
  for (const int bits : {2, 4, 8}) {
    for (const Isa isa : built_isas()) EXPECT_NE(find_channel_kernel(code_type(bits), isa), nullptr) << isa_name(isa);
  }
  EXPECT_EQ(find_channel_kernel(DType::Q4_0, Isa::scalar), nullptr);
}

}  // namespace
}  // namespace qat
