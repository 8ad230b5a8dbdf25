#include "qat/train/lora.h"

#include <algorithm>
#include <cmath>

#include "format/error.h"
#include "qat/train/model.h"

namespace qat {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// What is trained of an adapted parameter, as it stands.
variable_list inputs_of(const Parameter& p) {
  variable_list inputs;
  if (!p.frozen) inputs = {p.adapter.a, p.adapter.b};
  if (p.learns_scale()) inputs.push_back(p.log_scale);
  return inputs;
}

struct Recipient : torch::CustomClassHolder {
  explicit Recipient(const Parameter& p) : parameter(p) {}
  Parameter parameter;
};

struct QuantizedForStep : torch::autograd::Function<QuantizedForStep> {
  static Tensor forward(AutogradContext* context, const c10::intrusive_ptr<Recipient>& recipient, at::TensorList) {
    // Not save_for_backward(): that is freed by the first of several backward passes.
    context->saved_data["recipient"] = c10::IValue::make_capsule(recipient);
    return recipient->parameter.quantized();  // gradients are off inside forward
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto capsule = context->saved_data["recipient"].toCapsule();
    const auto* recipient = static_cast<Recipient*>(capsule.get());
    Parameter p = recipient->parameter;
    const auto leaf = [](const Tensor& t) { return t.defined() ? t.detach().requires_grad_() : t; };
    p.adapter.a = leaf(p.adapter.a);
    p.adapter.b = leaf(p.adapter.b);
    p.log_scale = leaf(p.log_scale);
    const torch::AutoGradMode enable(true);
    variable_list found = torch::autograd::grad({p.quantized()}, inputs_of(p), {gradients[0]});
    found.insert(found.begin(), Tensor());  // of the recipient
    return found;
  }
};

}  // namespace

bool takes_adapter(const TensorInfo& info, DType grid) {
  return info.layer >= 0 && info.kind == TensorKind::linear && info.shape.size() == 2 && grid != DType::F32;
}

void check_rank(const std::vector<TensorInfo>& table, const std::map<std::string, PlanEntry>& resolved, int64_t rank) {
  const TensorInfo* smallest = nullptr;
  const auto side = [](const TensorInfo& info) { return std::min(info.shape[0], info.shape[1]); };
  for (const TensorInfo& info : table) {
    if (!takes_adapter(info, resolved.at(info.name).grid)) continue;
    if (smallest == nullptr || side(info) < side(*smallest)) smallest = &info;
  }
  if (smallest == nullptr)
    fail("recipe: [train] lora_rank: expected 0, found ", rank,
         ": the plan puts no matrix of a decoder layer on a grid, so there is none to adapt");
  if (rank >= side(*smallest))
    fail("recipe: [train] lora_rank: expected at most ", side(*smallest) - 1, ", since ", smallest->name, " is ",
         shape_text(smallest->shape), ", found ", rank);
}

Adapter make_adapter(const TensorInfo& info, const AdapterOptions& options, std::mt19937_64& random,
                     torch::Device device) {
  const int64_t out = info.shape[0], in = info.shape[1];
  Adapter adapter;
  adapter.scale = options.alpha / static_cast<double>(options.rank);
  adapter.a = torch::empty({options.rank, in}, torch::kFloat32);
  const double bound = 1.0 / std::sqrt(static_cast<double>(in));
  // From the generator's bits, not by <random>'s distributions, which differ between standard libraries.
  std::generate_n(adapter.a.data_ptr<float>(), adapter.a.numel(),
                  [&] { return static_cast<float>(bound * (static_cast<double>(random() >> 11) * 0x1p-52 - 1.0)); });
  adapter.a = adapter.a.to(device).requires_grad_();
  adapter.b = torch::zeros({out, options.rank}, adapter.a.options().requires_grad(false)).requires_grad_();
  return adapter;
}

torch::Tensor adapted(const torch::Tensor& w, const Adapter& adapter) {
  return torch::addmm(w, adapter.b, adapter.a, 1.0, adapter.scale);
}

torch::Tensor quantized_for_step(const Parameter& parameter) {
  return QuantizedForStep::apply(c10::make_intrusive<Recipient>(parameter), at::TensorList(inputs_of(parameter)));
}

}  // namespace qat
