#include <algorithm>
#include <cmath>

#include "format/error.h"
#include "inference/generate.h"

namespace qat {
namespace {

// Seeds the four words of xoshiro256** (Blackman and Vigna), as its authors advise.
uint64_t split_mix(uint64_t* state) {
  uint64_t z = (*state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

uint64_t rotate_left(uint64_t x, int k) { return (x << k) | (x >> (64 - k)); }

// Likelier first; equal logits in order of id, so that the order is one on every machine.
bool likelier(const std::pair<float, int32_t>& a, const std::pair<float, int32_t>& b) {
  return a.first > b.first || (a.first == b.first && a.second < b.second);
}

}  // namespace

Sampler::Sampler(const SamplingOptions& options) : options_(options), kernels_(&vector_kernels(select_isa())) {
  uint64_t seed = options.seed;
  for (uint64_t& word : state_) word = split_mix(&seed);
}

double Sampler::uniform() {
  const uint64_t result = rotate_left(state_[1] * 5, 7) * 9;
  const uint64_t shifted = state_[1] << 17;
  state_[2] ^= state_[0];
  state_[3] ^= state_[1];
  state_[1] ^= state_[2];
  state_[0] ^= state_[3];
  state_[2] ^= shifted;
  state_[3] = rotate_left(state_[3], 45);
  return static_cast<double>(result >> 11) * 0x1p-53;
}

// The top_k likeliest, likeliest first: a heap whose root is the least of those kept turns away most tokens at one
// comparison.
void Sampler::keep_top_k(Span<const float> logits) {
  const size_t k = static_cast<size_t>(options_.top_k);
  for (size_t i = 0; i < logits.size(); ++i) {
    const std::pair<float, int32_t> candidate(logits[i], static_cast<int32_t>(i));
    if (candidates_.size() < k) {
      candidates_.push_back(candidate);
      std::push_heap(candidates_.begin(), candidates_.end(), likelier);
    } else if (likelier(candidate, candidates_.front())) {
      std::pop_heap(candidates_.begin(), candidates_.end(), likelier);
      candidates_.back() = candidate;
      std::push_heap(candidates_.begin(), candidates_.end(), likelier);
    }
  }
  std::sort_heap(candidates_.begin(), candidates_.end(), likelier);
}

// Any token, in proportion to its probability: what a teacher's training data are drawn by, so it should not take long.
int32_t Sampler::sample_all(Span<const float> logits) {
  probabilities_.resize(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) probabilities_[i] = logits[i] / options_.temperature;
  kernels_->softmax(probabilities_.data(), static_cast<int64_t>(logits.size()), probabilities_.data());
  double left = uniform();
  for (size_t i = 0; i < logits.size(); ++i) {
    left -= static_cast<double>(probabilities_[i]);
    if (left < 0.0) return static_cast<int32_t>(i);
  }
  // The probabilities of float sum to a little less than 1.
  return static_cast<int32_t>(std::max_element(probabilities_.begin(), probabilities_.end()) - probabilities_.begin());
}

int32_t Sampler::sample(Span<const float> logits) {
  QAT_CHECK(!logits.empty());
  bool numbers = true;
  for (const float x : logits) numbers &= x < HUGE_VALF;
  if (!numbers) fail("the model's logits are not numbers: its weights are damaged, or its training has diverged");
  if (options_.temperature <= 0.0f)
    return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  const bool few = options_.top_k > 0 && static_cast<size_t>(options_.top_k) < logits.size();
  if (!few && options_.top_p >= 1.0f) return sample_all(logits);

  candidates_.clear();
  if (few) {
    keep_top_k(logits);
  } else {
    for (size_t i = 0; i < logits.size(); ++i) candidates_.emplace_back(logits[i], static_cast<int32_t>(i));
    std::sort(candidates_.begin(), candidates_.end(), likelier);
  }
  const float highest = candidates_.front().first;
  double total = 0.0;
  for (auto& candidate : candidates_) {
    candidate.first = std::exp((candidate.first - highest) / options_.temperature);
    total += static_cast<double>(candidate.first);
  }
  if (options_.top_p < 1.0f) {
    // The shortest run of the likeliest whose probability reaches top_p; at least one.
    const double wanted = static_cast<double>(options_.top_p) * total;
    double sum = 0.0;
    size_t kept = 0;
    while (kept < candidates_.size() && (kept == 0 || sum < wanted))
      sum += static_cast<double>(candidates_[kept++].first);
    candidates_.resize(kept);
    total = sum;
  }
  double left = uniform() * total;
  for (const auto& candidate : candidates_) {
    left -= static_cast<double>(candidate.first);
    if (left < 0.0) return candidate.second;
  }
  return candidates_.back().second;
}

}  // namespace qat
