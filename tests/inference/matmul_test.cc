// Products of activations with stored matrices: right for every type and ragged shape, and the same bits whatever the
// threads and whatever the other rows.
#include "inference/matmul.h"

#include <gtest/gtest.h>

#include <cfloat>
#include <cstring>
#include <filesystem>

#include "format/channel_grid.h"
#include "tests/expect_error.h"
#include "tests/inference/random.h"
#include "tests/test_paths.h"

namespace qat {
namespace {

struct Shape {
  int64_t rows, outputs, cols;
};

class Matmul : public testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    if (!isa_supported(GetParam())) GTEST_SKIP() << "this processor does not run " << isa_name(GetParam());
  }
  std::vector<float> multiply(int threads, const std::vector<float>& x, int64_t rows, const Matrix& w) {
    ThreadPool pool(threads);
    MatmulInput input;
    std::vector<float> y(static_cast<size_t>(rows * w.rows) + 1, 7.0f);
    input.set(x.data(), rows, w.cols);
    matmul({GetParam()}, pool, input, w, y.data());
    EXPECT_EQ(y.back(), 7.0f) << "wrote past the end";
    y.pop_back();
    return y;
  }
};

TEST_P(Matmul, EveryTypeAndRaggedShape) {
  Random random(3);
  for (const DType type : kRunnable) {
    const int64_t block = dtype_info(type).block_size;
    const int64_t wide = block == 1 ? 300 : 512;  // more than one pass over the columns
    for (const Shape s : {Shape{1, 1, block}, Shape{2, 3, block}, Shape{7, 9, block}, Shape{8, 8, 2 * block},
                          Shape{9, 64, block}, Shape{16, 65, block}, Shape{17, 5, 3 * block}, Shape{24, 4, block},
                          Shape{25, 130, block}, Shape{49, 12, wide}, Shape{3, 67, wide}, Shape{1, 33, wide}}) {
      const StoredRows stored(type, random.floats(s.outputs * s.cols), s.outputs, s.cols);
      const std::vector<float> x = random.floats(s.rows * s.cols);
      std::vector<float> w(static_cast<size_t>(s.outputs * s.cols));
      decode_rows(type, stored.data(), s.outputs, s.cols, w.data());
      const std::vector<float> y = multiply(2, x, s.rows, {type, s.outputs, s.cols, stored.data()});
      for (int64_t r = 0; r < s.rows; ++r) {
        for (int64_t o = 0; o < s.outputs; ++o) {
          double sum = 0.0, magnitude = 0.0;
          for (int64_t k = 0; k < s.cols; ++k) {
            const double product = static_cast<double>(x[static_cast<size_t>(r * s.cols + k)]) *
                                   static_cast<double>(w[static_cast<size_t>(o * s.cols + k)]);
            sum += product;
            magnitude += std::fabs(product);
          }
          const double bound = 0.5 * FLT_EPSILON * static_cast<double>(s.cols + 4) * magnitude;
          ASSERT_NEAR(y[static_cast<size_t>(r * s.outputs + o)], sum, bound)
              << dtype_name(type) << " " << s.rows << " x " << s.outputs << " x " << s.cols << " at " << r << ", " << o;
        }
      }
    }
  }
}

// A matrix on a channel-wise grid, its scales at an odd address.
struct ChannelMatrix {
  ChannelMatrix(int bits, int64_t rows, int64_t cols, int64_t scales_per_row, Random* random)
      : codes(static_cast<size_t>(rows * cols)),
        packed(row_bytes(code_type(bits), cols) * static_cast<size_t>(rows)),
        scale_bytes(static_cast<size_t>(rows * scales_per_row) * 4 + 1),
        values(codes.size()) {
    for (int8_t& code : codes)
      code = static_cast<int8_t>(static_cast<int>(std::floor(random->next() * static_cast<float>(1 << (bits - 1)))));
    pack_codes(bits, codes.data(), rows, cols, packed.data());
    for (int64_t i = 0; i < rows * scales_per_row; ++i) {
      const float scale = 1.5f + random->next();
      std::memcpy(scale_bytes.data() + 1 + 4 * i, &scale, 4);
      const int64_t group = cols / scales_per_row;
      decode_channel(codes.data() + i * group, group, scale, values.data() + i * group);
    }
    matrix = {code_type(bits), rows, cols, packed.data()};
    matrix.scales = scale_bytes.data() + 1;
    matrix.scales_per_row = scales_per_row;
  }
  std::vector<int8_t> codes;
  std::vector<uint8_t> packed, scale_bytes;
  std::vector<float> values;  // code * scale
  Matrix matrix;
};

TEST_P(Matmul, ChannelWiseGrids) {
  Random random(6);
  for (const int bits : {2, 4, 8}) {
    for (const Shape s : {Shape{1, 1, 1}, Shape{1, 5, 37}, Shape{2, 3, 7}, Shape{9, 64, 96}, Shape{17, 70, 301},
                          Shape{3, 67, 514}, Shape{1, 33, 514}}) {
      const ChannelMatrix w(bits, s.outputs, s.cols, 1, &random);
      const std::vector<float> x = random.floats(s.rows * s.cols);
      const std::vector<float> y = multiply(2, x, s.rows, w.matrix);
      const std::vector<float> floats =
          multiply(2, x, s.rows, {DType::F32, s.outputs, s.cols, reinterpret_cast<const uint8_t*>(w.values.data())});
      const std::string where = std::to_string(bits) + " bits, " + std::to_string(s.rows) + " x " +
                                std::to_string(s.outputs) + " x " + std::to_string(s.cols);
      // Decoded to the same floats, added in the same order; a lone row has an order of its own.
      if (s.rows > 1) {
        EXPECT_EQ(y, floats) << where;
        continue;
      }
      for (size_t o = 0; o < y.size(); ++o) {
        double magnitude = 0.0;
        for (size_t k = 0; k < x.size(); ++k)
          magnitude += std::fabs(static_cast<double>(x[k]) * static_cast<double>(w.values[o * x.size() + k]));
        ASSERT_NEAR(y[o], floats[o], FLT_EPSILON * static_cast<double>(s.cols + 4) * magnitude) << where;
      }
    }
  }
}

// Inputs on their static grid: sums of products of codes, exactly, times both scales. The reference adds floats.
TEST_P(Matmul, CodesOnBothSides) {
  Random random(8);
  for (const int bits : {2, 4, 8}) {
    for (const Shape s : {Shape{1, 1, 1}, Shape{1, 50, 300}, Shape{2, 3, 7}, Shape{4, 64, 128}, Shape{5, 70, 301},
                          Shape{11, 130, 64}, Shape{3, 67, 514}}) {
      ChannelMatrix w(bits, s.outputs, s.cols, 1, &random);
      w.matrix.input_scale = 0.013f;
      const std::vector<float> x = random.floats(s.rows * s.cols, 2.0f);  // some beyond the grid
      std::vector<int8_t> codes(x.size());
      encode_channel(8, x.data(), s.rows * s.cols, w.matrix.input_scale, codes.data());
      const std::vector<float> y = multiply(2, x, s.rows, w.matrix);
      for (int64_t r = 0; r < s.rows; ++r) {
        for (int64_t o = 0; o < s.outputs; ++o) {
          int64_t sum = 0, magnitude = 0;
          for (int64_t k = 0; k < s.cols; ++k) {
            const int64_t product =
                codes[static_cast<size_t>(r * s.cols + k)] * w.codes[static_cast<size_t>(o * s.cols + k)];
            sum += product;
            magnitude += std::abs(product);
          }
          float scale;
          std::memcpy(&scale, w.matrix.scales + 4 * o, 4);
          const double unit = static_cast<double>(w.matrix.input_scale) * static_cast<double>(scale);
          const float actual = y[static_cast<size_t>(r * s.outputs + o)];
          if (GetParam() == Isa::scalar) {  // each product has two roundings, their double sum none that counts
            ASSERT_NEAR(actual, static_cast<double>(sum) * unit,
                        2 * FLT_EPSILON * static_cast<double>(magnitude) * unit);
          } else {
            ASSERT_EQ(actual, static_cast<float>(static_cast<double>(sum) * unit))
                << bits << " bits at " << r << ", " << o;
          }
        }
      }
    }
  }
}

// One input into matrices of several grids and scales, as q, k and v may be.
TEST_P(Matmul, OneInputForSeveralGrids) {
  Random random(9);
  const int64_t cols = 70, outputs = 9, rows = 3;
  std::vector<ChannelMatrix> matrices;
  for (const int bits : {4, 4, 2, 8, 4}) matrices.emplace_back(bits, outputs, cols, 1, &random);
  const float scales[] = {0.01f, 0.02f, 0.02f, 0.0f, 0.01f};
  const std::vector<float> x = random.floats(rows * cols);
  ThreadPool pool(2);
  MatmulInput input;
  input.set(x.data(), rows, cols);
  for (size_t i = 0; i < matrices.size(); ++i) {
    matrices[i].matrix.input_scale = scales[i];
    std::vector<float> y(static_cast<size_t>(rows * outputs));
    matmul({GetParam()}, pool, input, matrices[i].matrix, y.data());
    EXPECT_EQ(y, multiply(1, x, rows, matrices[i].matrix)) << i;
  }
}

TEST_P(Matmul, WhatIsNoNumberStaysNone) {
  Random random(10);
  ChannelMatrix w(4, 5, 40, 1, &random);
  w.matrix.input_scale = 0.02f;
  std::vector<float> x = random.floats(3 * 40);
  const std::vector<float> before = multiply(1, x, 3, w.matrix);
  x[47] = NAN;
  const std::vector<float> after = multiply(1, x, 3, w.matrix);
  for (size_t i = 0; i < after.size(); ++i) {
    if (i / 5 == 1) {
      EXPECT_TRUE(std::isnan(after[i]));
    } else {
      EXPECT_EQ(after[i], before[i]);
    }
  }
}

TEST_P(Matmul, RowsOfAnEmbeddingWithSeveralScales) {
  Random random(7);
  for (const int bits : {2, 4, 8}) {
    const ChannelMatrix w(bits, 5, 42, 6, &random);  // groups of 7 begin inside bytes
    for (int64_t row = 0; row < 5; ++row) {
      for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, 42}, {3, 20}, {41, 1}, {7, 7}}) {
        std::vector<float> out(static_cast<size_t>(count));
        decode_row(GetParam(), w.matrix, row, first, count, out.data());
        const auto begin = w.values.begin() + row * 42 + first;
        EXPECT_EQ(out, std::vector<float>(begin, begin + count)) << bits << " bits, row " << row << " from " << first;
      }
    }
  }
}

// Rows of a table that lies in a file come from there; what was put into memory since, from memory.
TEST_P(Matmul, RowsOfATableInAFile) {
  Random random(12);
  ChannelMatrix w(4, 5, 42, 6, &random);
  TemporaryDirectory dir;
  write_file(dir / "table",
             std::string(w.packed.begin(), w.packed.end()) + std::string(w.scale_bytes.begin(), w.scale_bytes.end()));
  const MappedFile file(dir / "table");
  Matrix table = w.matrix;
  table.data = file.bytes().data();
  table.scales = file.bytes().data() + w.packed.size() + 1;
  table.file = table.scale_file = &file;
  std::vector<uint8_t> room(stored_row_bytes(table));
  const auto read = [&](int64_t row) {
    std::vector<float> out(42);
    read_table_row(GetParam(), table, row, room.data(), out.data());
    return out;
  };
  const auto expected = [&](int64_t row) {
    return std::vector<float>(w.values.begin() + row * 42, w.values.begin() + (row + 1) * 42);
  };
  for (const int64_t row : {0, 4, 2}) EXPECT_EQ(read(row), expected(row));
  table.scales = w.matrix.scales;
  EXPECT_EQ(read(3), expected(3));
  std::filesystem::resize_file(dir / "table", w.packed.size() - 1);
  EXPECT_EQ(read(0), expected(0));
  expect_error([&] { read(4); }, "ends at");
}

// Gate and up block by block, against two products, two roundings and an activation, one after the other.
TEST_P(Matmul, AGateTogetherIsWhatItIsInSteps) {
  Random random(13);
  const Arithmetic how = {GetParam(), true};
  const VectorKernels& ops = vector_kernels(GetParam());
  const auto check = [&](const Matrix& gate, const Matrix& up, int64_t rows, int threads,
                         decltype(ops.gelu_multiply) activate) {
    std::vector<float> x = random.floats(rows * gate.cols);
    x[x.size() / 2] = NAN;
    const auto size = static_cast<size_t>(rows * gate.rows);
    ThreadPool pool(threads);
    MatmulInput input;
    std::vector<float> together(size + 1, 7.0f), steps(size), other(size);
    input.set(x.data(), rows, gate.cols);
    const bool joined = matmul_gated(how, pool, input, {&gate, &up, activate, together.data()});
    const bool are_many = rows > (gate.input_scale != 0.0f ? kCodeRows : 1);
    EXPECT_EQ(joined, GetParam() != Isa::scalar && are_many);
    EXPECT_EQ(together.back(), 7.0f) << "wrote past the end";
    together.pop_back();
    if (!joined) {
      EXPECT_EQ(together, std::vector<float>(size, 7.0f));
      return;
    }
    matmul(how, pool, input, gate, steps.data());
    matmul(how, pool, input, up, other.data());
    if (gate.output_scale != 0.0f) ops.round_to_grid(steps.data(), rows * gate.rows, gate.output_scale);
    if (up.output_scale != 0.0f) ops.round_to_grid(other.data(), rows * gate.rows, up.output_scale);
    activate(steps.data(), other.data(), rows * gate.rows);
    EXPECT_EQ(std::memcmp(together.data(), steps.data(), size * sizeof(float)), 0)
        << rows << " x " << gate.rows << " x " << gate.cols << ", " << threads << " threads";
  };
  for (const Shape s : {Shape{1, 9, 256}, Shape{2, 9, 256}, Shape{3, 5, 256}, Shape{9, 64, 256}, Shape{33, 70, 768},
                        Shape{70, 200, 256}}) {
    for (const DType type : {DType::Q4_0, DType::Q8_0, DType::Q2_0, DType::Q6_K}) {
      const StoredRows g(type, random.floats(s.outputs * s.cols), s.outputs, s.cols);
      const StoredRows u(type, random.floats(s.outputs * s.cols), s.outputs, s.cols);
      check({type, s.outputs, s.cols, g.data()}, {type, s.outputs, s.cols, u.data()}, s.rows, 3, ops.silu_multiply);
    }
    for (const int bits : {2, 4, 8}) {
      ChannelMatrix gate(bits, s.outputs, s.cols - 3, 1, &random), up(bits, s.outputs, s.cols - 3, 1, &random);
      gate.matrix.input_scale = up.matrix.input_scale = 0.02f;
      gate.matrix.output_scale = 0.03f;
      up.matrix.output_scale = bits == 2 ? 0.0f : 0.05f;
      for (const int threads : {1, 3}) check(gate.matrix, up.matrix, s.rows, threads, ops.gelu_multiply);
    }
  }
}

// Where no kernel meets both, nothing is done.
TEST_P(Matmul, AGateOfTwoKindsIsRefused) {
  Random random(14);
  const int64_t rows = 5, outputs = 9, cols = 64;
  const std::vector<float> values = random.floats(outputs * cols), x = random.floats(rows * cols);
  const StoredRows q4(DType::Q4_0, values, outputs, cols), q8(DType::Q8_0, values, outputs, cols);
  const StoredRows floats(DType::F32, values, outputs, cols);
  ChannelMatrix a(4, outputs, cols, 1, &random), b(4, outputs, cols, 1, &random);
  a.matrix.input_scale = 0.02f;
  b.matrix.input_scale = 0.03f;
  const Matrix of_q4 = {DType::Q4_0, outputs, cols, q4.data()}, of_q8 = {DType::Q8_0, outputs, cols, q8.data()};
  const Matrix of_floats = {DType::F32, outputs, cols, floats.data()};
  const auto refuses = [&](const Matrix& gate, const Matrix& up, bool rounds) {
    ThreadPool pool(2);
    MatmulInput input;
    input.set(x.data(), rows, cols);
    std::vector<float> y(static_cast<size_t>(rows * outputs), 7.0f);
    const auto activate = vector_kernels(GetParam()).gelu_multiply;
    EXPECT_FALSE(matmul_gated({GetParam(), rounds}, pool, input, {&gate, &up, activate, y.data()}));
    EXPECT_EQ(y, std::vector<float>(y.size(), 7.0f));
  };
  refuses(of_q4, of_q8, true);
  refuses(a.matrix, b.matrix, true);
  refuses(of_floats, of_floats, true);
  refuses(of_q4, of_q4, false);
}

// Of a lone row, neighbours of one type and grid are one loop over their rows.
TEST_P(Matmul, SeveralProductsAreWhatTheyAreOneByOne) {
  Random random(8);
  const int64_t cols = 96;
  const StoredRows few(DType::Q4_0, random.floats(5 * cols), 5, cols);
  const StoredRows many(DType::Q4_0, random.floats(700 * cols), 700, cols);
  const StoredRows other(DType::Q8_0, random.floats(64 * cols), 64, cols);
  ChannelMatrix a(4, 300, cols, 1, &random), b(4, 41, cols, 1, &random), c(4, 30, cols, 1, &random);
  a.matrix.input_scale = b.matrix.input_scale = 0.05f;
  c.matrix.input_scale = 0.03f;
  const Matrix q4_few = {DType::Q4_0, 5, cols, few.data()}, q4_many = {DType::Q4_0, 700, cols, many.data()};
  const Matrix q8 = {DType::Q8_0, 64, cols, other.data()};
  const std::vector<std::vector<const Matrix*>> sets = {{&q4_few, &q4_many, &q4_few},
                                                        {&q4_many, &q8, &q4_few},
                                                        {&a.matrix, &b.matrix, &c.matrix},
                                                        {&c.matrix, &a.matrix}};
  for (const auto& matrices : sets) {
    for (const int64_t rows : {1, 3}) {
      const std::vector<float> x = random.floats(rows * cols);
      for (const int threads : {1, 3}) {
        ThreadPool pool(threads);
        MatmulInput together, alone;
        together.set(x.data(), rows, cols);
        std::vector<std::vector<float>> y;
        for (const Matrix* w : matrices) y.emplace_back(static_cast<size_t>(rows * w->rows), 7.0f);
        std::vector<Product> products;
        for (size_t i = 0; i < matrices.size(); ++i) products.push_back({matrices[i], y[i].data()});
        matmul({GetParam(), true}, pool, together, {products.data(), products.size()});
        for (size_t i = 0; i < matrices.size(); ++i) {
          std::vector<float> one(y[i].size(), 9.0f);
          alone.set(x.data(), rows, cols);
          matmul({GetParam(), true}, pool, alone, *matrices[i], one.data());
          EXPECT_EQ(y[i], one) << "product " << i << ", " << rows << " rows, " << threads << " threads";
        }
      }
    }
  }
}

TEST_P(Matmul, SameBitsForAnyCountOfThreads) {
  Random random(4);
  const int64_t outputs = 700, cols = 96;
  const StoredRows stored(DType::Q4_0, random.floats(outputs * cols), outputs, cols);
  const Matrix w = {DType::Q4_0, outputs, cols, stored.data()};
  for (const int64_t rows : {1, 30}) {
    const std::vector<float> x = random.floats(rows * cols);
    const std::vector<float> one = multiply(1, x, rows, w);
    for (const int threads : {2, 3, 5})
      EXPECT_EQ(multiply(threads, x, rows, w), one) << threads << " threads, " << rows << " rows";
  }
}

TEST_P(Matmul, ARowDoesNotDependOnTheOthers) {
  Random random(5);
  const int64_t outputs = 40, cols = 300, rows = 30;
  const StoredRows stored(DType::BF16, random.floats(outputs * cols), outputs, cols);
  const Matrix w = {DType::BF16, outputs, cols, stored.data()};
  const std::vector<float> x = random.floats(rows * cols);
  const std::vector<float> all = multiply(1, x, rows, w);
  for (int64_t first = 0; first < rows; ++first) {
    for (const int64_t count : {int64_t{2}, int64_t{9}, rows - first}) {
      if (count < 2 || first + count > rows) continue;
      const std::vector<float> part(x.begin() + first * cols, x.begin() + (first + count) * cols);
      const std::vector<float> expected(all.begin() + first * outputs, all.begin() + (first + count) * outputs);
      ASSERT_EQ(multiply(1, part, count, w), expected) << count << " rows from " << first;
    }
  }
}

// Integers have no order: a lone row, a batch and any count of threads give the same bits.
TEST_P(Matmul, CodesGiveTheSameBitsInAnyCompany) {
  Random random(11);
  const int64_t cols = 320, outputs = 600, rows = 9;
  ChannelMatrix w(4, outputs, cols, 1, &random);
  w.matrix.input_scale = 0.02f;
  const std::vector<float> x = random.floats(rows * cols);
  const std::vector<float> all = multiply(1, x, rows, w.matrix);
  EXPECT_EQ(multiply(3, x, rows, w.matrix), all);
  for (int64_t r = 0; r < rows; ++r) {
    const std::vector<float> row(x.begin() + r * cols, x.begin() + (r + 1) * cols);
    const std::vector<float> expected(all.begin() + r * outputs, all.begin() + (r + 1) * outputs);
    if (GetParam() != Isa::scalar) {
      EXPECT_EQ(multiply(2, row, 1, w.matrix), expected);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, Matmul, testing::ValuesIn(built_isas().begin(), built_isas().end()),
                         [](const testing::TestParamInfo<Isa>& isa) { return std::string(isa_name(isa.param)); });

}  // namespace
}  // namespace qat
