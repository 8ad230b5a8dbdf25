// The choice of types under a budget: optima known by enumeration, budgets that cannot be met, more budget never worse.
#include "export/allocate.h"

#include <gtest/gtest.h>

#include <limits>
#include <random>

#include "tests/expect_error.h"

namespace qat {
namespace {

using Tensors = std::vector<std::vector<TypeCost>>;

struct Total {
  uint64_t bytes = 0;
  double cost = 0.0;
};

Total total_of(const Tensors& tensors, const std::vector<size_t>& chosen) {
  Total total;
  EXPECT_EQ(chosen.size(), tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    total.bytes += tensors[i].at(chosen[i]).bytes;
    total.cost += tensors[i].at(chosen[i]).cost;
  }
  return total;
}

// Every way to choose.
double least_cost(const Tensors& tensors, uint64_t budget) {
  std::vector<size_t> chosen(tensors.size(), 0);
  double least = std::numeric_limits<double>::infinity();
  for (;;) {
    const Total total = total_of(tensors, chosen);
    if (total.bytes <= budget) least = std::min(least, total.cost);
    size_t t = 0;
    while (t < tensors.size() && ++chosen[t] == tensors[t].size()) chosen[t++] = 0;
    if (t == tensors.size()) return least;
  }
}

Tensors random_tensors(uint32_t seed, size_t count) {
  std::mt19937 random(seed);
  Tensors tensors(count);
  for (std::vector<TypeCost>& choices : tensors) {
    const uint64_t weights = 32 * (1 + random() % 40);
    const double sensitivity = std::exp(static_cast<double>(random() % 1000) / 100.0);
    // Q6_K is not always better than its neighbours would let one expect: not every choice lies on the hull.
    const double q6 = 0.01 + static_cast<double>(random() % 100) / 150.0;
    choices = {{DType::Q4_0, weights * 18 / 32, sensitivity},
               {DType::Q6_K, weights * 26 / 32, sensitivity * q6},
               {DType::Q8_0, weights * 34 / 32, sensitivity / 250},
               {DType::F16, weights * 2, 0.0}};
  }
  return tensors;
}

TEST(Allocate, FindsTheLeastCostThatEnumerationFinds) {
  for (uint32_t seed = 0; seed < 60; ++seed) {
    const Tensors tensors = random_tensors(seed, 7);
    const uint64_t smallest = total_of(tensors, std::vector<size_t>(7, 0)).bytes;
    for (const double part : {1.0, 1.1, 1.4, 2.0, 3.0}) {
      const auto budget = static_cast<uint64_t>(part * static_cast<double>(smallest));
      const Total found = total_of(tensors, allocate_types(tensors, budget));
      EXPECT_LE(found.bytes, budget);
      EXPECT_NEAR(found.cost, least_cost(tensors, budget), 1e-9) << "seed " << seed << ", budget " << budget;
    }
  }
}

TEST(Allocate, SpendsSlackThatTheBestRatioLeaves) {
  // The first tensor gains most per byte, but then nothing else fits; the other two together gain more.
  const Tensors tensors = {{{DType::Q4_0, 10, 10.0}, {DType::Q8_0, 16, 0.0}},
                           {{DType::Q4_0, 10, 9.0}, {DType::Q8_0, 15, 1.0}},
                           {{DType::Q4_0, 10, 9.0}, {DType::Q8_0, 15, 1.0}}};
  EXPECT_EQ(allocate_types(tensors, 40), (std::vector<size_t>{0, 1, 1}));
  EXPECT_EQ(allocate_types(tensors, 36), (std::vector<size_t>{1, 0, 0}));
  EXPECT_EQ(allocate_types(tensors, 46), (std::vector<size_t>{1, 1, 1}));
}

TEST(Allocate, NeverTakesAChoiceThatASmallerOneBeats) {
  const Tensors tensors = {{{DType::Q8_0, 34, 0.5}, {DType::Q4_0, 18, 0.5}, {DType::F16, 64, 0.6}}};
  EXPECT_EQ(allocate_types(tensors, 1000), (std::vector<size_t>{1}));
}

TEST(Allocate, MoreBudgetNeverCostsMore) {
  const Tensors tensors = random_tensors(99, 150);  // more than can be enumerated
  const uint64_t smallest = total_of(tensors, std::vector<size_t>(150, 0)).bytes;
  double before = std::numeric_limits<double>::infinity();
  for (int step = 0; step <= 60; ++step) {
    const auto budget = static_cast<uint64_t>(static_cast<double>(smallest) * (1.0 + step / 16.0));
    const Total found = total_of(tensors, allocate_types(tensors, budget));
    EXPECT_LE(found.bytes, budget);
    EXPECT_LE(found.cost, before * (1.0 + 1e-12));
    before = found.cost;
  }
  EXPECT_EQ(before, 0.0);  // the last budget has room for F16 everywhere
}

TEST(Allocate, ABudgetThatCannotBeMetIsAnErrorWithBothNumbers) {
  const Tensors tensors = {{{DType::Q4_0, 18, 1.0}}, {{DType::Q4_0, 36, 1.0}, {DType::Q8_0, 68, 0.0}}};
  EXPECT_EQ(allocate_types(tensors, 54), (std::vector<size_t>{0, 0}));
  expect_error([&] { allocate_types(tensors, 53); }, "take 54 bytes, more than the budget of 53");
}

}  // namespace
}  // namespace qat
