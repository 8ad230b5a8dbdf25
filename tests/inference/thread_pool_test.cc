// The pool does each item once, however often and with however many threads, and hands exceptions to its caller.
#include "inference/thread_pool.h"

#include <gtest/gtest.h>

#include <chrono>
#include <set>
#include <stdexcept>

namespace qat {
namespace {

TEST(ThreadPool, EachItemOnceInManySmallLoops) {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.size(), threads);
    for (int64_t loop = 0; loop < 2000; ++loop) {
      const int64_t count = loop % 40;
      std::vector<std::atomic<int>> seen(static_cast<size_t>(count));
      pool.parallel_for(count, 1 + loop % 7, [&](int64_t begin, int64_t end, int worker) {
        ASSERT_GE(worker, 0);
        ASSERT_LT(worker, threads);
        for (int64_t i = begin; i < end; ++i) ++seen[static_cast<size_t>(i)];
      });
      for (const auto& n : seen) ASSERT_EQ(n, 1);
    }
  }
}

TEST(ThreadPool, PiecesBecomeSmallerTowardsTheEnd) {
  for (const int threads : {2, 3}) {
    ThreadPool pool(threads);
    for (const int64_t count : {1, 63, 64, 65, 1000, 4096, 5001}) {
      for (const int64_t least : {1, 64}) {
        const int64_t most = 8 * least;
        std::vector<std::atomic<int>> seen(static_cast<size_t>(count));
        std::atomic<int64_t> last{0};  // width of the last piece
        pool.parallel_for(count, {most, least}, [&](int64_t begin, int64_t end, int) {
          ASSERT_EQ(begin % least, 0);
          ASSERT_LE(end - begin, most);
          ASSERT_TRUE(end - begin >= least || end == count);
          for (int64_t i = begin; i < end; ++i) ++seen[static_cast<size_t>(i)];
          if (end == count) last = end - begin;
        });
        for (const auto& n : seen) ASSERT_EQ(n, 1);
        EXPECT_LE(last, least);
      }
    }
  }
}

TEST(ThreadPool, WakesWorkersThatSleep) {
  ThreadPool pool(2);
  std::atomic<int> meeting{0};
  std::this_thread::sleep_for(std::chrono::milliseconds(20));  // the worker has long stopped spinning
  // Both pieces wait for each other: this ends only if two threads work.
  pool.parallel_for(2, 1, [&](int64_t, int64_t, int) {
    ++meeting;
    while (meeting < 2) std::this_thread::yield();
  });
  EXPECT_EQ(meeting, 2);
}

TEST(ThreadPool, ThrowsInTheCallerAndGoesOn) {
  ThreadPool pool(3);
  std::atomic<int> done{0};
  const auto work = [&](int64_t begin, int64_t, int) {
    if (begin == 5) throw std::runtime_error("five");
    ++done;
  };
  EXPECT_THROW(pool.parallel_for(10, 1, work), std::runtime_error);
  EXPECT_EQ(done, 9);
  done = 10;
  pool.parallel_for(4, 1, [&](int64_t, int64_t, int) { ++done; });
  EXPECT_EQ(done, 14);
}

}  // namespace
}  // namespace qat
