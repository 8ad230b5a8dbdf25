#include "inference/thread_pool.h"

#include <algorithm>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace qat {
namespace {

constexpr int kSpins = 2000;  // some 30 microseconds of pause instructions on x86

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  if (threads <= 0) threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

// The end of the piece that begins at *begin; 0 when none is left.
int64_t ThreadPool::take(const Job& job, int64_t* begin) {
  const auto [most, least] = job.pieces;
  *begin = next_.load(std::memory_order_relaxed);
  while (*begin < job.count) {
    // Half of an equal share of what is left.
    const int64_t share = (job.count - *begin) / (2 * size());
    const int64_t end = *begin + std::max(least, std::min(most, share) / least * least);
    if (next_.compare_exchange_weak(*begin, end, std::memory_order_relaxed)) return std::min(end, job.count);
  }
  return 0;
}

void ThreadPool::take_pieces(const Job& job, int worker) {
  int64_t begin = 0;
  while (const int64_t end = take(job, &begin)) {
    try {
      job.call(job.body, begin, end, worker);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!exception_) exception_ = std::current_exception();
    }
  }
}

// A worker first counts itself inside, then looks whether the job is still open; the caller first closes the job, then
// waits until nobody is inside. In a single order of these four steps (sequential consistency) no worker can enter
// unseen.
void ThreadPool::run(const Job& job) {
  job_ = job;
  next_.store(0, std::memory_order_relaxed);
  generation_.fetch_add(1);
  if (asleep_.load() > 0) {
    { const std::lock_guard<std::mutex> lock(mutex_); }
    wake_.notify_all();
  }
  take_pieces(job, 0);
  generation_.fetch_add(1);
  for (int spin = 0; inside_.load() > 0; ++spin) {
    if (spin < kSpins) {
      pause();
    } else {
      std::this_thread::yield();  // the worker may have been put aside by the system
    }
  }
  if (exception_) std::rethrow_exception(std::exchange(exception_, nullptr));
}

// Returns the number of an open job (odd) other than `seen`; sleeps after a short spin. 0 when the pool is to stop.
uint64_t ThreadPool::wait_for_job(uint64_t seen) {
  uint64_t now = 0;
  const auto job_or_stop = [&] {
    now = 0;
    if (stop_) return true;
    now = generation_.load();
    return (now & 1) != 0 && now != seen;
  };
  for (int spin = 0; spin < kSpins; ++spin) {
    if (job_or_stop()) return now;
    pause();
  }
  std::unique_lock<std::mutex> lock(mutex_);
  asleep_.fetch_add(1);
  wake_.wait(lock, job_or_stop);
  asleep_.fetch_sub(1);
  return now;
}

void ThreadPool::work(int worker) {
  uint64_t seen = 0;
  while (const uint64_t generation = wait_for_job(seen)) {
    inside_.fetch_add(1);
    if (generation_.load() == generation) take_pieces(job_, worker);
    inside_.fetch_sub(1);
    seen = generation;
  }
}

}  // namespace qat
