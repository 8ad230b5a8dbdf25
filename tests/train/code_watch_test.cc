// Codes that training moved, and codes that swing, counted on a model whose weights the test moves by hand.
#include "qat/train/code_watch.h"

#include <gtest/gtest.h>

#include "tests/test_paths.h"
#include "tests/train/tiny_model.h"

namespace qat {
namespace {

class Watched : public testing::Test {
 protected:
  void SetUp() override {
    write_tiny_model(directory_ / "model");
    source_ = std::make_unique<FloatCheckpoint>(directory_ / "model");
    model_ = std::make_unique<Model>(*source_, torch::kCPU);
    const Plan plan = plan_from_name("q4_0");
    model_->apply_plan(plan, resolve_plan(plan, model_->table(), source_->dtypes()));
    for (Parameter& p : model_->parameters())
      if (p.log_scale.defined()) blocks_.push_back(&p);
    ASSERT_FALSE(blocks_.empty());
    // Every weight in the middle of the cell of code 1.
    for (Parameter* p : blocks_) p->master.detach().copy_(level(*p, 1.0));
  }
  // What `code` means in each block.
  static torch::Tensor level(const Parameter& p, double code) {
    return (p.scales().view({-1, 1}) * code)
        .expand({p.log_scale.numel(), p.master.numel() / p.log_scale.numel()})
        .reshape(p.master.sizes());
  }
  void set_all(double code) {
    for (Parameter* p : blocks_) p->master.detach().copy_(level(*p, code));
  }

  TemporaryDirectory directory_;
  std::unique_ptr<FloatCheckpoint> source_;
  std::unique_ptr<Model> model_;
  std::vector<Parameter*> blocks_;
};

TEST_F(Watched, CountsWhatMovedAndWhatTurnedBack) {
  CodeWatch watch(*model_);
  CodeWatch::Shares shares = watch.observe(*model_);
  EXPECT_EQ(shares.moved, 0.0);
  EXPECT_EQ(shares.oscillating, 0.0);
  set_all(2.0);  // up: moved, but nothing turned back
  shares = watch.observe(*model_);
  EXPECT_EQ(shares.moved, 1.0);
  EXPECT_EQ(shares.oscillating, 0.0);
  set_all(2.3);  // the same code
  EXPECT_EQ(watch.observe(*model_).oscillating, 0.0);
  set_all(1.0);  // and back
  shares = watch.observe(*model_);
  EXPECT_EQ(shares.moved, 0.0);
  EXPECT_EQ(shares.oscillating, 1.0);
  watch.start(*model_);
  set_all(3.0);
  EXPECT_EQ(watch.observe(*model_).oscillating, 0.0);
}

// Masters go the given part of the way to their level; those on it stay.
TEST_F(Watched, WeightsAreDrawnToTheirLevels) {
  set_all(1.4);
  model_->draw_to_levels(0.25);
  for (const Parameter* p : blocks_)
    EXPECT_TRUE(torch::allclose(p->master.detach(), level(*p, 1.3), 1e-5, 1e-7)) << p->info.name;
  set_all(-3.0);
  model_->draw_to_levels(0.25);
  for (const Parameter* p : blocks_)
    EXPECT_TRUE(torch::allclose(p->master.detach(), level(*p, -3.0), 1e-6, 0.0)) << p->info.name;
}

}  // namespace
}  // namespace qat
