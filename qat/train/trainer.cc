#include "qat/train/trainer.h"

#include <ATen/Context.h>
#include <sys/resource.h>
#include <torch/cuda.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>

#include "format/error.h"
#include "format/file_io.h"
#include "format/run_directory.h"
#include "qat/progress.h"
#include "qat/train/averages.h"
#include "qat/train/blockwise.h"
#include "qat/train/code_watch.h"
#include "qat/train/data.h"
#include "qat/train/initialize.h"
#include "qat/train/losses.h"
#include "qat/train/memory.h"
#include "qat/train/metrics.h"
#include "qat/train/results.h"
#include "qat/train/run_state.h"
#include "qat/train/teacher_cache.h"
#include "qat/train/workers.h"

namespace qat {
namespace fs = std::filesystem;

volatile std::sig_atomic_t g_stop_signal = 0;

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// --- Settings of the process ---

torch::Device open_device(const std::string& name, bool tf32) {
  const torch::Device device(name);
  if (device.is_cpu()) return device;
  if (!torch::cuda::is_available()) fail("device ", name, ": this LibTorch finds no CUDA device");
  const int64_t count = torch::cuda::device_count();
  if (device.has_index() && device.index() >= count) fail("device ", name, ": expected an index below ", count);
  at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/true);
  leave_memory_unfilled();
  at::globalContext().setAllowTF32CuBLAS(tf32);
  return device;
}

Plan plan_of(const Recipe& recipe) {
  Plan plan = plan_from_name(recipe.plan);
  const auto type = [](const std::string& name) { return find_dtype_by_name(name)->id; };  // names: validate_recipe()
  plan.activations = recipe.activations;
  plan.kv_sliding_bits = static_cast<int>(recipe.kv_sliding_bits);
  plan.kv_global_bits = static_cast<int>(recipe.kv_global_bits);
  for (const std::string& rule : recipe.rules) {
    const size_t equals = rule.rfind('=');
    plan.rules.push_back({rule.substr(0, equals), type(rule.substr(equals + 1))});
  }
  if (!recipe.embedding_type.empty()) {
    plan.has_embedding_type = true;
    plan.embedding_type = type(recipe.embedding_type);
  }
  if (!recipe.output_type.empty()) {
    plan.has_output_type = true;
    plan.output_type = type(recipe.output_type);
  }
  return plan;
}

// --- A batch ---

struct Batch {
  torch::Tensor ids;          // (sequences, length) int64
  torch::Tensor targets;      // (sequences * length): the next token, -1 for the last of a sequence
  std::vector<int64_t> rows;  // of training sequences: their places in the data
};

// tokens: whole sequences, one after the other.
Batch make_batch(const std::vector<int32_t>& tokens, int64_t length, torch::Device device) {
  const int64_t count = static_cast<int64_t>(tokens.size()) / length;
  torch::Tensor ids = torch::empty({count, length}, torch::kInt64);
  std::copy(tokens.begin(), tokens.end(), ids.data_ptr<int64_t>());
  const torch::Tensor none = torch::full({count, 1}, -1, torch::kInt64);
  const torch::Tensor targets = torch::cat({ids.narrow(1, 1, length - 1), none}, 1).reshape(-1);
  return {ids.to(device), targets.to(device), {}};
}

struct StepReport {
  double loss = 0.0, kl = 0.0, ce = 0.0;  // means over the step's tokens
  double gradient_norm = 0.0, lr = 0.0;
};

struct Evaluation {
  double kl = 0.0;             // to the teacher, temperature 1, nats per token
  double cross_entropy = 0.0;  // nats per token
};

// --- The run ---

// What a run took, for whoever plans the next: "trained on 1638400 tokens in 2 min 10 s: 12600 tokens/s, peak memory
// 404 MB".
void print_cost(int64_t tokens, double seconds) {
  if (tokens == 0) return;
  struct rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  std::fprintf(stderr, "trained on %lld tokens in %s: %.0f tokens/s, peak memory %s\n", static_cast<long long>(tokens),
               duration_text(seconds).c_str(), static_cast<double>(tokens) / seconds,
               bytes_text(static_cast<uint64_t>(usage.ru_maxrss) * 1024).c_str());
}

class Run {
 public:
  explicit Run(const TrainRequest& request);
  TrainResult execute();

 private:
  void resume();
  void open_cache();  // of the teacher's logits, when the recipe has one
  void initialize();  // codes and scales of a run that begins
  // Turns on what the plan has from this step on: static activations, frozen codes.
  void begin_stages(int64_t step);
  void calibrate();
  int64_t stage_step(double fraction) const {
    return static_cast<int64_t>(std::llround(fraction * static_cast<double>(recipe_.steps)));
  }
  // Of the run's sequences, those at these positions.
  Batch training_batch(const std::vector<int64_t>& positions);
  Batch held_out_batch(int64_t begin, int64_t end) const;
  // Strength before the freeze: a cosine from 0 to the recipe's.
  double dampening(int64_t step) const {
    const double progress =
        static_cast<double>(step) / static_cast<double>(std::max<int64_t>(1, stage_step(recipe_.freeze_after)));
    return recipe_.dampening * 0.5 * (1.0 - std::cos(std::acos(-1.0) * std::min(1.0, progress)));
  }
  StepReport train_step(int64_t step);
  // Weight of hidden_loss(): layers are told what the teacher's say while codes are still being found.
  double hidden_weight(int64_t step) const {
    return recipe_.hidden * std::max(0.0, 1.0 - 2.0 * static_cast<double>(step) / static_cast<double>(recipe_.steps));
  }
  StepReport train_sequences(const Batch& batch, const ForwardWeights& weights, const ForwardOptions& forward,
                             const LossOptions& loss, double hidden) const;
  HeadInput run_model(const Model& model, const ForwardWeights& weights, const torch::Tensor& ids,
                      const ForwardOptions& options) const;
  // Mean losses on the held-out sequences of `weights`, against the teacher when there is one.
  Evaluation evaluate(const Model& model, const ForwardWeights& weights, bool against_teacher) const;
  void log_evaluation(ProgressBar& bar);
  void check_finite(int64_t step, const StepReport& report) const;
  std::string save();
  void finish();

  const TrainRequest& request_;
  const Recipe& recipe_;
  RunInfo info_;
  torch::Device device_;
  FloatCheckpoint source_;
  Plan plan_;
  std::map<std::string, PlanEntry> resolved_;
  Model model_;
  std::unique_ptr<Model> teacher_;
  ForwardWeights teacher_weights_;
  std::unique_ptr<TeacherCache> cache_;  // then training asks it, and only evaluations run the teacher
  TrainingData data_;
  DataOrder order_;
  Positions positions_;
  std::vector<torch::Tensor> trained_;
  AdamW optimizer_;
  Averages averages_;
  CodeWatch watch_;
  int64_t workers_ = 1;
  bool narrowed_ = false, calibrated_ = false, frozen_ = false;  // stages that have begun
  std::unique_ptr<MetricsLog> metrics_;
};

std::vector<torch::Tensor> trained_tensors(const Model& model) {
  std::vector<torch::Tensor> tensors;
  for (const Trained& t : model.trained()) tensors.push_back(t.tensor);
  return tensors;
}

// Logarithms of scales have learning rates of their own, and no decay: 0 is no place for them to go.
std::vector<ParameterRule> parameter_rules(const Model& model, const Recipe& recipe) {
  std::vector<ParameterRule> rules;
  for (const Trained& t : model.trained()) {
    const bool relative = recipe.relative_lr > 0.0 && t.unit.defined();
    const bool scale = t.kind == Trained::weight_scale || t.kind == Trained::activation_scale;
    const double lr = relative                                          ? recipe.relative_lr
                      : t.kind == Trained::weight_scale                 ? recipe.scale_lr
                      : t.kind == Trained::activation_scale             ? recipe.activation_lr
                      : t.kind == Trained::norm && recipe.norm_lr > 0.0 ? recipe.norm_lr
                                                                        : recipe.lr;
    rules.push_back({recipe.lr > 0.0 ? lr / recipe.lr : 1.0, !scale, relative ? t.unit : torch::Tensor()});
  }
  return rules;
}

// The model with its plan applied, before anybody lists what is trained.
Model planned_model(const FloatCheckpoint& source, torch::Device device, const Plan& plan,
                    std::map<std::string, PlanEntry>* resolved, const Recipe& recipe) {
  Model model(source, device);
  if (plan.keep) {
    for (auto& [name, entry] : *resolved) entry.grid = DType::F32;  // plain training: nothing is rounded
  }
  model.apply_plan(plan, *resolved);
  if (recipe.narrow_after > 0.0) model.widen();
  if (recipe.lora_rank > 0) {
    model.adapt({recipe.lora_rank, recipe.lora_alpha, recipe.seed});
    for (Parameter& p : model.parameters())
      p.master_moved = (recipe.init == "gptq" || init_is_directory(recipe.init)) && p.scale_sign.defined();
  }
  return model;
}

Run::Run(const TrainRequest& request)
    : request_(request),
      recipe_(request.recipe),
      info_{0, request.recipe, 0, 0, set_threads(request.recipe.threads)},
      device_(open_device(recipe_.device, recipe_.tf32)),
      source_(recipe_.model),
      plan_(plan_of(recipe_)),
      resolved_(resolve_plan(plan_, source_.table(), source_.dtypes())),
      model_(planned_model(source_, device_, plan_, &resolved_, recipe_)),
      data_(load_training_data(recipe_, model_.config())),
      order_(data_.train.count(), recipe_.seed),
      positions_(make_positions(model_.config(), recipe_.sequence, device_)),
      trained_(trained_tensors(model_)),
      optimizer_(trained_,
                 {recipe_.beta1, recipe_.beta2, recipe_.eps, recipe_.weight_decay, recipe_.optimizer == "adamw8bit"},
                 parameter_rules(model_, recipe_)),
      averages_(trained_, recipe_.average),
      watch_(model_) {
  for (const std::string& notice : source_.notices()) std::fprintf(stderr, "%s\n", notice.c_str());
  info_.data_hash = data_.hash;
  if (recipe_.lora_rank > 0) info_.model_hash = hash_weights(model_);
  if (distills(recipe_)) {
    const FloatCheckpoint checkpoint(recipe_.teacher.empty() ? recipe_.model : recipe_.teacher);
    teacher_ = std::make_unique<Model>(checkpoint, device_);
    if (teacher_->config().vocab != model_.config().vocab)
      fail(checkpoint.directory(), ": teacher: expected the model's vocabulary of ", model_.config().vocab, ", found ",
           teacher_->config().vocab);
    if (recipe_.teacher_top_k > model_.config().vocab)
      fail("recipe: [train] teacher_top_k: expected at most the vocabulary of ", model_.config().vocab, ", found ",
           recipe_.teacher_top_k);
    const ModelConfig &taught = model_.config(), &teaching = teacher_->config();
    if (recipe_.hidden > 0.0 && (taught.hidden != teaching.hidden || taught.layers.size() != teaching.layers.size()))
      fail(checkpoint.directory(), ": teacher: [train] hidden compares layers: expected the model's ",
           taught.layers.size(), " of width ", taught.hidden, ", found ", teaching.layers.size(), " of width ",
           teaching.hidden);
    teacher_weights_ = teacher_->forward_weights();
  }
  int64_t gradient_bytes = 0;
  for (const torch::Tensor& t : trained_) gradient_bytes += t.numel() * static_cast<int64_t>(sizeof(float));
  for (const Parameter& p : model_.parameters())
    if (p.adapter.defined()) gradient_bytes += p.master.numel() * static_cast<int64_t>(sizeof(float));
  workers_ = workers_for(info_.threads, recipe_.batch, gradient_bytes, device_);
  resume();
  open_cache();
  if (info_.step == 0) initialize();
}

void Run::open_cache() {
  if (!recipe_.teacher_cache) return;
  const auto pass = [&](const std::vector<int64_t>& rows) {
    const torch::NoGradGuard no_grad;
    std::vector<int32_t> tokens;
    for (const int64_t row : rows) tokens.insert(tokens.end(), data_.train.row(row), data_.train.row(row + 1));
    const Batch batch = make_batch(tokens, data_.train.length, device_);
    return teacher_top_k(run_model(*teacher_, teacher_weights_, batch.ids, {}), recipe_.teacher_top_k,
                         recipe_.temperature, recipe_.loss_chunk);
  };
  cache_ = std::make_unique<TeacherCache>(
      open_teacher_cache(recipe_.out, teacher_cache_key(recipe_, *teacher_, data_.train), recipe_.batch, pass));
}

void Run::initialize() {
  if (recipe_.init == "plain") return;
  std::vector<std::vector<int32_t>> calibration;
  const int64_t count = std::min(recipe_.calibration_sequences, data_.train.count());
  for (int64_t i = 0; recipe_.init == "gptq" && i < count; ++i) {
    const int32_t* row = data_.train.row(order_.at(i));
    calibration.emplace_back(row, row + data_.train.length);
  }
  initialize_blocks(model_, source_, resolved_, recipe_, std::move(calibration));
  averages_.restart();
  watch_.start(model_);
}

Batch Run::training_batch(const std::vector<int64_t>& positions) {
  const int64_t length = data_.train.length;
  // The teacher's cache knows the sequences as they are in the data, and no others.
  const bool shift = recipe_.shift && !recipe_.teacher_cache;
  std::vector<int32_t> tokens(positions.size() * static_cast<size_t>(length));
  std::vector<int64_t> rows;
  for (size_t i = 0; i < positions.size(); ++i) {
    rows.push_back(order_.at(positions[i]));
    copy_sequence(data_, rows.back(), order_.epoch(positions[i]), recipe_.seed, shift,
                  tokens.data() + i * static_cast<size_t>(length));
  }
  Batch batch = make_batch(tokens, length, device_);
  batch.rows = std::move(rows);
  return batch;
}

Batch Run::held_out_batch(int64_t begin, int64_t end) const {
  return make_batch({data_.eval.row(begin), data_.eval.row(end)}, data_.eval.length, device_);
}

// Without --resume an unfinished run is not thrown away; of a finished one, which `qat train` refuses, the checkpoints
// go.
void Run::resume() {
  fs::create_directories(recipe_.out);
  std::vector<std::string> notices;
  const std::string newest = newest_checkpoint(recipe_.out, &notices);
  if (request_.resume) {
    for (const std::string& notice : notices) std::fprintf(stderr, "skipped: %s\n", notice.c_str());
    if (newest.empty()) {
      std::fprintf(stderr, "%s: no checkpoint yet: starting from the beginning\n", recipe_.out.c_str());
    } else {
      const RunInfo saved = read_run_info(newest);
      std::string conflicts;
      for (const std::string& conflict : recipe_conflicts(saved.recipe, recipe_))
        conflicts += (conflicts.empty() ? "" : "; ") + conflict;
      if (!conflicts.empty()) fail(newest, ": a resumed run cannot change ", conflicts);
      if (saved.data_hash != data_.hash)
        fail(newest, ": the training or evaluation data is not what this run began with: expected hash ",
             saved.data_hash, ", found ", data_.hash);
      if (saved.model_hash != info_.model_hash)
        fail(newest, ": the weights in ", recipe_.model, " are not those whose adapters it holds: expected hash ",
             saved.model_hash, ", found ", info_.model_hash);
      if (saved.threads != info_.threads)
        std::fprintf(
            stderr,
            "threads: saved with %lld, going on with %lld: the last bits will differ from an uninterrupted run\n",
            static_cast<long long>(saved.threads), static_cast<long long>(info_.threads));
      info_.step = saved.step;
      calibrated_ = info_.step > stage_step(recipe_.activations_after);
      narrowed_ = info_.step > stage_step(recipe_.narrow_after);
      if (narrowed_) model_.narrow();
      frozen_ = info_.step > stage_step(recipe_.freeze_after);
      if (frozen_) model_.mark_frozen();  // before it is filled: a checkpoint holds what goes with its stage
      load_run(newest, model_, optimizer_, averages_, watch_);
      std::fprintf(stderr, "resumed %s\n", newest.c_str());
    }
  } else if (!newest.empty()) {
    const RunInfo saved = read_run_info(newest);
    if (saved.step < saved.recipe.steps)
      fail(recipe_.out, ": holds an unfinished run (step ", saved.step, " of ", saved.recipe.steps,
           "): go on with --resume, or remove ", recipe_.out, "/checkpoints");
    fs::remove_all(recipe_.out + "/checkpoints");
  }
  metrics_ = std::make_unique<MetricsLog>(recipe_.out, info_.step);
}

HeadInput Run::run_model(const Model& model, const ForwardWeights& weights, const torch::Tensor& ids,
                         const ForwardOptions& options) const {
  const ModelConfig& config = model.config();
  const torch::Tensor hidden = forward_hidden(config, weights, positions_, ids, options);
  return {hidden.reshape({-1, config.hidden}), weights.head(), config.softcap};
}

// A stage begins before its first step; a checkpoint of the step before does not hold it yet, so a resumed run begins
// it again, from the same numbers.
void Run::begin_stages(int64_t step) {
  if (step > stage_step(recipe_.narrow_after) && !narrowed_) {
    narrowed_ = true;
    if (recipe_.narrow_after > 0.0) {
      model_.narrow();
      averages_.restart();
      watch_.start(model_);
    }
  }
  if (plan_.mobile && step > stage_step(recipe_.activations_after) && !calibrated_) calibrate();
  if (step > stage_step(recipe_.freeze_after) && step <= recipe_.steps && !frozen_) {
    averages_.exchange();  // the codes that stay are those of the means, and so is what goes on from here
    model_.freeze_codes();
    averages_.restart();
    frozen_ = true;
  }
}

void Run::calibrate() {
  calibrated_ = true;
  if (model_.static_grids().all().empty()) return;
  const torch::NoGradGuard no_grad;
  const ForwardWeights weights = model_.forward_weights();
  ForwardOptions options;
  options.probe = model_.static_grids().probe();
  const int64_t count = std::min(recipe_.calibration_sequences, data_.train.count());
  for (int64_t begin = 0; begin < count; begin += recipe_.batch) {
    std::vector<int64_t> positions;
    for (int64_t i = begin; i < std::min(count, begin + recipe_.batch); ++i) positions.push_back(i);
    run_model(model_, weights, training_batch(positions).ids, options);
  }
  model_.static_grids().calibrate(recipe_.observer == "max"          ? Calibration::maximum
                                  : recipe_.observer == "percentile" ? Calibration::percentile
                                                                     : Calibration::least_squares);
  averages_.restart();
}

namespace {

// The options, and what each layer passes on is kept in `states`.
ForwardOptions keeping(ForwardOptions options, std::vector<torch::Tensor>* states) {
  options.residual_hook = [states](size_t index, const torch::Tensor& h) {
    if (index > 0) states->push_back(h);  // 0 is the embedding
    return h;
  };
  return options;
}

}  // namespace

// Forward and backward pass of some of a step's sequences: its gradients are left in `weights`, its part of the means
// is returned.
StepReport Run::train_sequences(const Batch& batch, const ForwardWeights& weights, const ForwardOptions& forward,
                                const LossOptions& loss, double hidden) const {
  std::vector<torch::Tensor> student_states, teacher_states;
  HeadInput teacher;
  if (teacher_ != nullptr && cache_ == nullptr) {
    const torch::NoGradGuard no_grad;
    teacher = run_model(*teacher_, teacher_weights_, batch.ids,
                        hidden > 0.0 ? keeping({}, &teacher_states) : ForwardOptions{});
  }
  const HeadInput student =
      run_model(model_, weights, batch.ids, hidden > 0.0 ? keeping(forward, &student_states) : forward);
  const Losses losses = cache_ != nullptr
                            ? head_losses(student, cache_->read(batch.rows, device_), batch.targets, loss)
                            : head_losses(student, teacher_ != nullptr ? &teacher : nullptr, batch.targets, loss);
  const double share = static_cast<double>(batch.ids.size(0)) / static_cast<double>(recipe_.batch * recipe_.accumulate);
  const torch::Tensor total =
      hidden > 0.0 ? losses.total + hidden_loss(student_states, teacher_states) * hidden : losses.total;
  (total * share).backward();
  StepReport report;
  report.loss = total.item<double>() * share;
  report.kl = losses.kl * share;
  report.ce = losses.cross_entropy * share;
  return report;
}

StepReport Run::train_step(int64_t step) {
  const LossOptions loss = loss_options(recipe_);
  ForwardOptions forward;
  forward.gradient_checkpointing = recipe_.gradient_checkpointing;
  int64_t position = (step - 1) * recipe_.batch * recipe_.accumulate;
  StepReport report;
  StepWeights weights(model_);
  WorkerWeights shared(weights.forward(), workers_);
  for (int64_t round = 0; round < recipe_.accumulate; ++round) {
    std::vector<int64_t> positions;
    for (int64_t i = 0; i < recipe_.batch; ++i) positions.push_back(position++);
    std::vector<Batch> batches;
    for (int64_t w = 0; w < workers_; ++w) {
      const auto first = [&](int64_t worker) { return positions.begin() + recipe_.batch * worker / workers_; };
      batches.push_back(training_batch({first(w), first(w + 1)}));
    }
    std::vector<StepReport> parts(static_cast<size_t>(workers_));
    run_workers(workers_, info_.threads, [&](int64_t worker) {
      const auto w = static_cast<size_t>(worker);
      parts[w] = train_sequences(batches[w], shared.of(worker), forward, loss, hidden_weight(step));
    });
    for (const StepReport& part : parts) {
      report.loss += part.loss;
      report.kl += part.kl;
      report.ce += part.ce;
    }
  }
  shared.gather();
  weights.backward();
  report.gradient_norm = gradient_norm(trained_);
  report.lr = scheduled_lr(recipe_.lr, recipe_.min_lr_ratio, recipe_.warmup, recipe_.steps, step);
  check_finite(step, report);
  const bool clipped = recipe_.clip > 0.0 && report.gradient_norm > recipe_.clip;
  optimizer_.step(report.lr, clipped ? recipe_.clip / report.gradient_norm : 1.0);
  optimizer_.zero_grad();
  if (recipe_.dampening > 0.0) model_.draw_to_levels(dampening(step));
  averages_.update();
  return report;
}

void Run::check_finite(int64_t step, const StepReport& report) const {
  if (std::isfinite(report.loss) && std::isfinite(report.gradient_norm)) return;
  const bool in_loss = !std::isfinite(report.loss);
  const std::string newest = newest_checkpoint(recipe_.out);
  fail("step ", step, ": the ", in_loss ? "loss" : "gradient's norm", " is ",
       in_loss ? report.loss : report.gradient_norm, "; the last good checkpoint is ",
       newest.empty() ? "the model itself (none was saved)" : newest, "; try a lower lr or clip");
}

Evaluation Run::evaluate(const Model& model, const ForwardWeights& weights, bool against_teacher) const {
  const torch::NoGradGuard no_grad;
  const LossOptions loss{1.0, 0.0, 1.0, recipe_.loss_chunk};
  Evaluation sum;
  const int64_t count = data_.eval.count();
  for (int64_t begin = 0; begin < count; begin += recipe_.batch) {
    const Batch batch = held_out_batch(begin, std::min(count, begin + recipe_.batch));
    HeadInput teacher;
    if (against_teacher) teacher = run_model(*teacher_, teacher_weights_, batch.ids, {});
    const Losses losses = head_losses(run_model(model, weights, batch.ids, {}), against_teacher ? &teacher : nullptr,
                                      batch.targets, loss);
    const double share = static_cast<double>(batch.ids.size(0)) / static_cast<double>(count);
    sum.kl += losses.kl * share;
    sum.cross_entropy += losses.cross_entropy * share;
  }
  return sum;
}

void Run::log_evaluation(ProgressBar& bar) {
  const AveragedModel averaged(averages_);
  const Evaluation now = evaluate(model_, model_.forward_weights(), teacher_ != nullptr);
  MetricsLine line = {{"eval_ce", now.cross_entropy}, {"eval_perplexity", std::exp(now.cross_entropy)}};
  char text[160];
  std::snprintf(text, sizeof text, "step %6lld  held out: perplexity %.4f", static_cast<long long>(info_.step),
                std::exp(now.cross_entropy));
  std::string shown = text;
  if (teacher_ != nullptr) {
    line["eval_kl"] = now.kl;
    std::snprintf(text, sizeof text, ", KLD to the teacher %.5f", now.kl);
    shown += text;
  }
  if (teacher_ != nullptr && info_.step == 0) {
    const double teacher = std::exp(evaluate(*teacher_, teacher_weights_, false).cross_entropy);
    line["eval_teacher_perplexity"] = teacher;
    std::snprintf(text, sizeof text, " (whose perplexity is %.4f)", teacher);
    shown += text;
  }
  const int64_t rounded_from = stage_step(recipe_.activations_after) + 1;
  if (!calibrated_ && !model_.static_grids().all().empty() && rounded_from <= recipe_.steps) {
    std::snprintf(text, sizeof text, "; weights alone, %s rounded from step %lld on",
                  plan_.activations ? "activations are" : "K and V are", static_cast<long long>(rounded_from));
    shown += text;
  }
  metrics_->add(info_.step, line);
  bar.print(shown);
}

std::string Run::save() { return save_run(info_, model_, optimizer_, averages_, watch_); }

TrainResult Run::execute() {
  const auto due = [&](int64_t every) { return every > 0 && info_.step % every == 0; };
  const int64_t tokens_per_step = recipe_.batch * recipe_.accumulate * recipe_.sequence;
  const int64_t first = info_.step;
  double training_seconds = 0.0;  // evaluations and checkpoints not counted
  ProgressBar bar("train", recipe_.steps);
  if (info_.step == 0) {
    begin_stages(1);
    log_evaluation(bar);
  }
  double window_seconds = 0.0;
  int64_t window_steps = 0;
  while (info_.step < recipe_.steps) {
    const Clock::time_point start = Clock::now();
    begin_stages(info_.step + 1);
    const StepReport report = train_step(info_.step + 1);
    ++info_.step;
    const double seconds = seconds_since(start);
    window_seconds += seconds;
    training_seconds += seconds;
    ++window_steps;
    const double speed = static_cast<double>(window_steps * tokens_per_step) / window_seconds;
    char text[120];
    if (teacher_ != nullptr)
      std::snprintf(text, sizeof text, "loss %.4f  KLD %.4f  %.0f tokens/s", report.loss, report.kl, speed);
    else std::snprintf(text, sizeof text, "loss %.4f  %.0f tokens/s", report.loss, speed);
    bar.update(info_.step, text);
    if (info_.step == first + 3) bar.print(time_text(recipe_.steps - first, 3, training_seconds));
    if (due(recipe_.log_every)) {
      MetricsLine line = {{"loss", report.loss},
                          {"ce", report.ce},
                          {"lr", report.lr},
                          {"grad_norm", report.gradient_norm},
                          {"tokens_per_s", speed}};
      if (teacher_ != nullptr) line["kl"] = report.kl;
      if (!watch_.empty()) {
        const CodeWatch::Shares codes = watch_.observe(model_);
        line["codes_moved"] = codes.moved;
        line["codes_oscillating"] = codes.oscillating;
      }
      metrics_->add(info_.step, line);
      window_seconds = 0.0;
      window_steps = 0;
    }
    if (info_.step == recipe_.steps) begin_stages(info_.step + 1);  // what never began is calibrated for the file
    if (due(recipe_.eval_every) || info_.step == recipe_.steps) log_evaluation(bar);
    if (g_stop_signal != 0) return {info_.step, g_stop_signal, save()};
    if (due(recipe_.checkpoint_every) || (recipe_.checkpoint_every > 0 && info_.step == recipe_.steps)) save();
  }
  bar.finish();
  print_cost((info_.step - first) * tokens_per_step, training_seconds);
  finish();
  return {info_.step, 0, ""};
}

void Run::finish() {
  const AveragedModel averaged(averages_);
  if (!request_.dump_weights.empty()) write_forward_weights(model_, request_.dump_weights);
  const std::string directory = run_result(recipe_.out, plan_.keep);
  if (plan_.keep) write_hf(model_, source_, directory);
  else if (plan_.mobile) write_mobile(model_, source_.directory(), directory);
  else write_quantized(model_, plan_, resolved_, source_.directory(), directory);
  std::printf("%s: %s\n", plan_.keep ? "model" : "quantized checkpoint", directory.c_str());
  std::printf("metrics: %s/metrics.jsonl, %s/tensorboard\n", recipe_.out.c_str(), recipe_.out.c_str());
  if (plan_.keep)
    std::printf("next: qat quantize %s --plan q4_0 --out %s-q4_0\n", directory.c_str(), recipe_.out.c_str());
  else if (plan_.mobile)
    std::printf("next: qat export %s --format mobile --out DIR, or --format gguf --out model.gguf\n",
                directory.c_str());
  else std::printf("next: qat export %s --format gguf --out model.gguf\n", directory.c_str());
}

}  // namespace

TrainResult run_training(const TrainRequest& request) {
  validate_recipe(request.recipe);
  if (request.recipe.blockwise) return train_blockwise(request, plan_of(request.recipe));
  announce_memory(request.recipe, plan_of(request.recipe));
  return Run(request).execute();
}

}  // namespace qat
