// qat-train: the half of `qat train` that links LibTorch.
#include <malloc.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "fakequant/libtorch.h"
#include "format/error.h"
#include "format/file_io.h"
#include "qat/train/trainer.h"

namespace qat {
namespace {

// glibc gives big blocks back to the kernel at every free; a training step asks for the same blocks again and again,
// and spends half of its time in page faults unless they are kept.
void keep_freed_memory() {
#ifdef M_MMAP_THRESHOLD
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, -1);
  mallopt(M_ARENA_MAX, 1);  // what one worker frees serves the other
#endif
}

// Between two operations OpenMP's threads, and OpenBLAS's, wait for each other in a loop. On a machine that has other
// work to do, that loop eats the time the other thread needs: measured, 11 times slower on two busy processors. After a
// short spin they should sleep instead. The libraries read their settings when they are loaded, so the program starts
// itself again.
void restart_with_patient_threads(char** argv) {
  if (std::getenv("GOMP_SPINCOUNT") != nullptr || std::getenv("OMP_WAIT_POLICY") != nullptr) return;
  setenv("GOMP_SPINCOUNT", "1000", 1);
  setenv("OPENBLAS_THREAD_TIMEOUT", "14", 0);  // 2^14 cycles, instead of 2^26
  execv("/proc/self/exe", argv);               // when that fails, training is only slower
}

void on_signal(int signal) { g_stop_signal = signal; }

// The first signal lets the step end and saves; a second one kills.
void install_signal_handlers() {
  struct sigaction action = {};
  action.sa_handler = on_signal;
  action.sa_flags = static_cast<int>(SA_RESETHAND | SA_RESTART);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

int run(int argc, char** argv) {
  TrainRequest request;
  std::string recipe;
  CLI::App app("Trains by a recipe; `qat train` starts it", "qat-train");
  app.add_option("--recipe", recipe, "Recipe, complete")->required()->type_name("FILE");
  app.add_flag("--resume", request.resume, "Go on from the newest checkpoint in the output directory");
  app.add_option("--dump-weights", request.dump_weights,
                 "Also write the weights of the last forward pass, as it multiplied by them")
      ->type_name("FILE");
  app.footer("Example:\n  qat-train --recipe runs/gemma-q4/recipe.toml --resume");
  CLI11_PARSE(app, argc, argv);
  request.recipe = recipe_from_file(recipe);
  const TrainResult result = run_training(request);
  if (result.interrupted == 0) return 0;
  if (request.recipe.blockwise) std::fprintf(stderr, "stopped after %lld layers", static_cast<long long>(result.step));
  else
    std::fprintf(stderr, "stopped after step %lld of %lld, saved %s", static_cast<long long>(result.step),
                 static_cast<long long>(request.recipe.steps), result.checkpoint.c_str());
  std::fprintf(stderr, "\ngo on with: qat train --resume --out %s\n", request.recipe.out.c_str());
  return 128 + result.interrupted;
}

// The first line: LibTorch appends a stack trace.
std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

}  // namespace
}  // namespace qat

int main(int argc, char** argv) {
  qat::restart_with_patient_threads(argv);
  setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", 0);  // deterministic products on CUDA
  qat::keep_freed_memory();
  qat::install_signal_handlers();
  try {
    return qat::run(argc, argv);
  } catch (const c10::Error& error) {
    std::fprintf(stderr, "qat: error: LibTorch: %s\n", qat::first_line(error.what_without_backtrace()).c_str());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "qat: error: %s\n", error.what());
  }
  return 1;
}
