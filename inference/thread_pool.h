// A few threads that stay, for loops of microseconds: work is published, taken in pieces by whoever is there, and
// waited for.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace qat {

// One caller at a time. Between loops a worker spins for some tens of microseconds, then sleeps; one that has not woken
// when the work is done is not waited for.
class ThreadPool {
 public:
  explicit ThreadPool(int threads);  // including the caller; 0: all processors this process may use
  ThreadPool(const ThreadPool&) = delete;
  ~ThreadPool();
  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // body(begin, end, worker) over pieces of [0, count), each of at most `piece` items (or all at once in the caller,
  // when there is no other thread); worker is in [0, size()). Returns when all are done. What a body throws is thrown
  // here, after the rest.
  template <class Body>
  void parallel_for(int64_t count, int64_t piece, const Body& body) {
    parallel_for(count, {piece, piece}, body);
  }

  // The same over pieces that begin at multiples of `least` and become smaller towards the end, `least` items at the
  // smallest: large ones suit who reads memory, and no thread waits long for the last one.
  struct Pieces {
    int64_t most, least;
  };
  template <class Body>
  void parallel_for(int64_t count, Pieces pieces, const Body& body) {
    if (count <= 0) return;
    if (workers_.empty() || count <= pieces.least) return body(int64_t{0}, count, 0);
    run({count, pieces, &body, [](const void* b, int64_t begin, int64_t end, int worker) {
           (*static_cast<const Body*>(b))(begin, end, worker);
         }});
  }

 private:
  struct Job {
    int64_t count = 0;
    Pieces pieces = {0, 0};
    const void* body = nullptr;
    void (*call)(const void* body, int64_t begin, int64_t end, int worker) = nullptr;
  };
  void run(const Job& job);
  int64_t take(const Job& job, int64_t* begin);
  void take_pieces(const Job& job, int worker);
  void work(int worker);
  uint64_t wait_for_job(uint64_t seen);

  std::vector<std::thread> workers_;
  Job job_;
  std::atomic<int64_t> next_{0};         // first item nobody has taken
  std::atomic<uint64_t> generation_{0};  // odd: job_ is open; even: closed
  std::atomic<int> inside_{0};           // workers that may be reading job_
  std::atomic<int> asleep_{0};
  std::atomic<bool> stop_{false};
  std::exception_ptr exception_;  // the first that a body threw
  std::mutex mutex_;
  std::condition_variable wake_;
};

}  // namespace qat
