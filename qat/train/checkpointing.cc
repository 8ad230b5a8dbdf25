#include "qat/train/checkpointing.h"

namespace qat {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Carries a std::function through the context of an autograd function.
struct FunctionHolder : torch::CustomClassHolder {
  explicit FunctionHolder(const TensorFunction& f) : function(f) {}
  TensorFunction function;
};

struct Checkpointed : torch::autograd::Function<Checkpointed> {
  static variable_list forward(AutogradContext* context, const TensorFunction& function, at::TensorList inputs) {
    context->save_for_backward(inputs.vec());
    context->saved_data["function"] = c10::IValue::make_capsule(c10::make_intrusive<FunctionHolder>(function));
    context->set_materialize_grads(false);
    return function(inputs.vec());  // gradients are off inside forward
  }

  static variable_list backward(AutogradContext* context, variable_list output_gradients) {
    const auto capsule = context->saved_data["function"].toCapsule();
    const TensorFunction& function = static_cast<FunctionHolder*>(capsule.get())->function;
    variable_list inputs;
    for (const torch::Tensor& saved : context->get_saved_variables())
      inputs.push_back(saved.detach().requires_grad_(saved.requires_grad()));
    variable_list outputs;
    {
      const torch::AutoGradMode enable(true);
      outputs = function(inputs);
    }
    variable_list roots, root_gradients, wanted;
    for (size_t i = 0; i < outputs.size(); ++i) {
      if (!output_gradients[i].defined() || !outputs[i].requires_grad()) continue;
      roots.push_back(outputs[i]);
      root_gradients.push_back(output_gradients[i]);
    }
    for (const torch::Tensor& input : inputs)
      if (input.requires_grad()) wanted.push_back(input);
    const variable_list found = torch::autograd::grad(roots, wanted, root_gradients, /*retain_graph=*/false,
                                                      /*create_graph=*/false, /*allow_unused=*/true);
    variable_list gradients = {torch::Tensor()};  // of `function`
    size_t next = 0;
    for (const torch::Tensor& input : inputs)
      gradients.push_back(input.requires_grad() ? found[next++] : torch::Tensor());
    return gradients;
  }
};

}  // namespace

variable_list checkpointed(const TensorFunction& function, const variable_list& inputs) {
  return Checkpointed::apply(function, at::TensorList(inputs));
}

}  // namespace qat
