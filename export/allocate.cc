#include "export/allocate.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "format/error.h"

namespace qat {
namespace {

using Choices = std::vector<TypeCost>;

constexpr size_t kMostStates = size_t{1} << 13;  // kept per tensor; far more than models of hundreds of tensors need

// A choice among a tensor's, and the way back to it.
struct Candidate {
  size_t index = 0;
  double bytes = 0.0, cost = 0.0;
};

// From small to large, without those that another one undercuts in both bytes and cost.
std::vector<Candidate> efficient(const Choices& choices) {
  std::vector<Candidate> sorted;
  for (size_t i = 0; i < choices.size(); ++i)
    sorted.push_back({i, static_cast<double>(choices[i].bytes), choices[i].cost});
  std::stable_sort(sorted.begin(), sorted.end(), [](const Candidate& a, const Candidate& b) {
    return a.bytes != b.bytes ? a.bytes < b.bytes : a.cost < b.cost;
  });
  std::vector<Candidate> kept;
  for (const Candidate& c : sorted)
    if (kept.empty() || c.cost < kept.back().cost) kept.push_back(c);
  return kept;
}

// The lower convex hull: what can be best for some price of a byte.
std::vector<Candidate> hull_of(const std::vector<Candidate>& choices) {
  std::vector<Candidate> hull;
  const auto gain = [](const Candidate& a, const Candidate& b) { return (a.cost - b.cost) / (b.bytes - a.bytes); };
  for (const Candidate& c : choices) {
    while (hull.size() >= 2 && gain(hull[hull.size() - 2], hull.back()) <= gain(hull.back(), c)) hull.pop_back();
    hull.push_back(c);
  }
  return hull;
}

// Takes the steps up the hulls that gain most per byte, as long as they fit, then whatever still fits.
struct Greedy {
  std::vector<size_t> chosen;
  double bytes = 0.0, cost = 0.0;
  double price = 0.0;  // cost per byte at which the budget was spent; 0: everything fits

  Greedy(const std::vector<std::vector<Candidate>>& tensors, double budget) {
    struct Step {
      size_t tensor = 0;
      Candidate from, to;
      double gain = 0.0;  // per byte
    };
    std::vector<Step> steps;
    for (size_t t = 0; t < tensors.size(); ++t) {
      const std::vector<Candidate> hull = hull_of(tensors[t]);
      chosen.push_back(hull.front().index);
      bytes += hull.front().bytes;
      cost += hull.front().cost;
      for (size_t i = 1; i < hull.size(); ++i)
        steps.push_back(
            {t, hull[i - 1], hull[i], (hull[i - 1].cost - hull[i].cost) / (hull[i].bytes - hull[i - 1].bytes)});
    }
    std::stable_sort(steps.begin(), steps.end(), [](const Step& a, const Step& b) { return a.gain > b.gain; });
    for (const Step& step : steps) {
      const double more = step.to.bytes - step.from.bytes;
      const bool next = chosen[step.tensor] == step.from.index;  // not when the step before it did not fit
      if (!next || bytes + more > budget) {
        if (price == 0.0) price = step.gain;
        continue;
      }
      chosen[step.tensor] = step.to.index;
      bytes += more;
      cost += step.to.cost - step.from.cost;
    }
  }
};

// One of the best ways to choose for the first tensors.
struct State {
  double bytes = 0.0, cost = 0.0;
  uint32_t before = 0, choice = 0;  // the state of the tensors before, and the last one's candidate
};

// No two where one undercuts the other.
void drop_undercut(std::vector<State>* states) {
  std::sort(states->begin(), states->end(),
            [](const State& a, const State& b) { return a.bytes != b.bytes ? a.bytes < b.bytes : a.cost < b.cost; });
  double least = std::numeric_limits<double>::infinity();
  states->erase(std::remove_if(states->begin(), states->end(),
                               [&](const State& s) {
                                 if (s.cost >= least) return true;
                                 least = s.cost;
                                 return false;
                               }),
                states->end());
}

}  // namespace

std::vector<size_t> allocate_types(const std::vector<std::vector<TypeCost>>& choices, uint64_t budget_bytes) {
  std::vector<std::vector<Candidate>> tensors;
  double least_bytes = 0.0;
  for (const Choices& c : choices) {
    QAT_CHECK(!c.empty());
    tensors.push_back(efficient(c));
    least_bytes += tensors.back().front().bytes;
  }
  const auto budget = static_cast<double>(budget_bytes);
  if (least_bytes > budget)
    fail("the smallest types take ", static_cast<uint64_t>(least_bytes), " bytes, more than the budget of ",
         budget_bytes);
  const Greedy greedy(tensors, budget);

  // What the tensors not yet chosen must cost at least when a byte has the price at which the greedy way stopped
  // (Lagrange), and take at least.
  const size_t n = tensors.size();
  std::vector<double> priced_after(n + 1, 0.0), bytes_after(n + 1, 0.0);
  for (size_t t = n; t-- > 0;) {
    double least = std::numeric_limits<double>::infinity();
    for (const Candidate& c : tensors[t]) least = std::min(least, c.cost + greedy.price * c.bytes);
    priced_after[t] = priced_after[t + 1] + least;
    bytes_after[t] = bytes_after[t + 1] + tensors[t].front().bytes;
  }

  std::vector<std::vector<State>> stages = {{State()}};
  for (size_t t = 0; t < n; ++t) {
    std::vector<State> next;
    const auto priced = [&](const State& s) { return s.cost + greedy.price * s.bytes; };
    for (size_t s = 0; s < stages[t].size(); ++s) {
      for (size_t k = 0; k < tensors[t].size(); ++k) {
        const State state = {stages[t][s].bytes + tensors[t][k].bytes, stages[t][s].cost + tensors[t][k].cost,
                             static_cast<uint32_t>(s), static_cast<uint32_t>(k)};
        const bool fits = state.bytes + bytes_after[t + 1] <= budget;
        const double bound = priced(state) + priced_after[t + 1] - greedy.price * budget;
        if (fits && bound <= greedy.cost * (1.0 + 1e-12)) next.push_back(state);
      }
    }
    drop_undercut(&next);
    if (next.size() > kMostStates) {
      std::nth_element(next.begin(), next.begin() + kMostStates, next.end(),
                       [&](const State& a, const State& b) { return priced(a) < priced(b); });
      next.resize(kMostStates);
    }
    stages.push_back(std::move(next));
  }
  if (stages.back().empty()) return greedy.chosen;  // its own states fell to roundings of the bound
  const auto best = std::min_element(stages.back().begin(), stages.back().end(),
                                     [](const State& a, const State& b) { return a.cost < b.cost; });
  if (best->cost >= greedy.cost) return greedy.chosen;

  std::vector<size_t> chosen(n);
  auto at = static_cast<size_t>(best - stages.back().begin());
  for (size_t t = n; t-- > 0;) {
    const State& state = stages[t + 1][at];
    chosen[t] = tensors[t][state.choice].index;
    at = state.before;
  }
  return chosen;
}

}  // namespace qat
