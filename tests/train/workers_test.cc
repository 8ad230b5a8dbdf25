// Sequences trained side by side: the same gradients as together, the same bits every time, errors handed on.
#include "qat/train/workers.h"

#include <ATen/Parallel.h>

#include <atomic>

#include "format/error.h"
#include "qat/train/losses.h"
#include "tests/train/trainer_fixture.h"

namespace qat {
namespace {

class Workers : public Trainer {
 protected:
  // Gradients of the mean next-token loss of 3 sequences, each kind of trained tensors as one vector. Without a plan
  // the masters, and all that follows, are in double precision.
  std::vector<torch::Tensor> gradients(const std::string& plan_name, int64_t workers) {
    const FloatCheckpoint source(directory_ / "model");
    Model model(source, torch::kCPU);
    if (plan_name.empty()) {
      for (Parameter& p : model.parameters())
        p.master = p.master.detach().to(torch::kFloat64).requires_grad_(p.trained);
    } else {
      const Plan plan = plan_from_name(plan_name);
      model.apply_plan(plan, resolve_plan(plan, model.table(), source.dtypes()));
    }
    for (StaticGrids::Grid& grid : model.static_grids().all()) {  // as if calibrated
      const torch::NoGradGuard no_grad;
      grid.log_scale.fill_(std::log(0.05));
    }
    model.static_grids().refresh();
    torch::manual_seed(3);
    const torch::Tensor ids = torch::randint(0, 260, {3, 20}, torch::kInt64);
    const Positions positions = make_positions(model.config(), 20, torch::kCPU);
    LossOptions options;
    options.ce = 1.0;
    StepWeights weights(model);
    WorkerWeights shared(weights.forward(), workers);
    run_workers(workers, 2, [&](int64_t worker) {
      const int64_t first = 3 * worker / workers, count = 3 * (worker + 1) / workers - first;
      const torch::Tensor own = ids.narrow(0, first, count);
      const torch::Tensor hidden = forward_hidden(model.config(), shared.of(worker), positions, own);
      const HeadInput student{hidden.reshape({-1, model.config().hidden}), shared.of(worker).head(),
                              model.config().softcap};
      const torch::Tensor targets = torch::cat({own.narrow(1, 1, 19), torch::full({count, 1}, -1, torch::kInt64)}, 1);
      const Losses losses = head_losses(student, nullptr, targets.reshape(-1), options);
      (losses.total * (static_cast<double>(count) / 3.0)).backward();
    });
    shared.gather();
    weights.backward();
    std::vector<std::vector<torch::Tensor>> kinds(Trained::activation_scale + 1);
    for (const Trained& t : model.trained())
      if (t.tensor.grad().defined()) kinds[t.kind].push_back(t.tensor.grad().reshape(-1));
    std::vector<torch::Tensor> gradients;
    for (const std::vector<torch::Tensor>& kind : kinds)
      if (!kind.empty()) gradients.push_back(torch::cat(kind));
    return gradients;
  }
};

// In double precision to the last digits; in float a model this small amplifies roundings (the plan's tensors are there
// to see that no scale's gradient is lost or counted twice).
TEST_F(Workers, GradientsAreThoseOfOne) {
  struct Case {
    std::string plan;
    size_t kinds;
    double tolerance;
  };
  for (const Case& c : {Case{"", 2, 1e-12}, Case{"q4_0", 3, 1e-3}, Case{"mobile", 4, 1e-3}}) {
    const std::vector<torch::Tensor> one = gradients(c.plan, 1);
    ASSERT_EQ(one.size(), c.kinds);
    for (const int64_t workers : {2, 3}) {
      const std::vector<torch::Tensor> several = gradients(c.plan, workers);
      ASSERT_EQ(one.size(), several.size());
      for (size_t kind = 0; kind < one.size(); ++kind) {
        const double size = one[kind].norm().item<double>();
        EXPECT_GT(size, 0.0);
        EXPECT_LE((one[kind] - several[kind]).norm().item<double>(), c.tolerance * size)
            << c.plan << ", kind " << kind << ", " << workers << " workers";
      }
    }
  }
}

TEST_F(Workers, ARunHasTheSameBitsEveryTime) {
  Recipe first = recipe("first"), second = recipe("second"), alone = recipe("alone");
  for (Recipe* r : {&first, &second}) r->threads = 2;
  for (Recipe* r : {&first, &second, &alone}) {
    r->batch = 3;
    train(*r);
  }
  EXPECT_EQ(read_file(first.out + "/quantized/model.safetensors"),
            read_file(second.out + "/quantized/model.safetensors"));
  const std::vector<Json> together = metrics(first), single = metrics(alone);
  EXPECT_EQ(together, metrics(second));
  ASSERT_EQ(together.size(), single.size());
  for (size_t i = 0; i < single.size(); ++i) {
    if (!single[i].contains("loss")) continue;
    EXPECT_NEAR(together[i]["loss"].get<double>(), single[i]["loss"].get<double>(), 1e-3);
  }
}

TEST(RunWorkers, EachOnceWithSingleThreadedOperations) {
  const int64_t threads = at::get_num_threads();
  std::atomic<int> ran{0};
  run_workers(3, threads, [&](int64_t) {
    EXPECT_EQ(at::get_num_threads(), 1);
    EXPECT_TRUE(torch::GradMode::is_enabled());
    ++ran;
  });
  EXPECT_EQ(ran, 3);
  EXPECT_EQ(at::get_num_threads(), threads);
  EXPECT_THROW(run_workers(2, threads,
                           [](int64_t worker) {
                             if (worker == 1) fail("the second");
                           }),
               Error);
}

TEST(RunWorkers, HowMany) {
  EXPECT_EQ(workers_for(4, 8, 1 << 20, torch::kCPU), 4);
  EXPECT_EQ(workers_for(16, 3, 1 << 20, torch::kCPU), 3);
  EXPECT_EQ(workers_for(1, 8, int64_t{1} << 40, torch::kCPU), 1);
  EXPECT_EQ(workers_for(2, 8, int64_t{1} << 30, torch::kCPU), 1) << "gradients of a large model exist once";
  EXPECT_EQ(workers_for(4, 8, 1 << 20, torch::kCUDA), 1);
}

}  // namespace
}  // namespace qat
