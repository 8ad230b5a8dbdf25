#!/usr/bin/env bash
# The kernels' tests on 64-bit ARM, cross-compiled and run under qemu-user: on a processor that has all extensions, and
# on one without products of matrices of bytes (i8mm), where those tests skip. Minutes; exit status 77: skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
build=${QAT_BUILD_ARM64:-build-arm64}

missing=()
command -v aarch64-linux-gnu-g++ >/dev/null || missing+=(g++-aarch64-linux-gnu)
command -v qemu-aarch64 >/dev/null || missing+=(qemu-user)
[ -f /usr/src/googletest/CMakeLists.txt ] || missing+=(googletest)
if [ ${#missing[@]} -gt 0 ]; then
  echo "SKIP: the kernels for ARM were not tested: needs the packages ${missing[*]} (cmake/setup.sh --arm64 installs them)" >&2
  exit 77
fi

cmake -S tests/arm64 -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_TOOLCHAIN_FILE="$PWD/cmake/aarch64.cmake" >/dev/null
cmake --build "$build"
# run CPU ISA...: the tests, each of the ISAs among them and none of the others.
run() {
  local cpu=$1 log=$build/$1.log isa
  shift
  echo "qemu-aarch64 -cpu $cpu"
  qemu-aarch64 -L /usr/aarch64-linux-gnu -cpu "$cpu" "$build/test_kernels" >"$log" 2>&1 || { cat "$log"; exit 1; }
  for isa in neon i8mm; do
    if [[ " $* " == *" $isa "* ]]; then
      grep -q "OK \] .*$isa" "$log" || { echo "tests/arm64.sh: $cpu ran no test of $isa, see $log" >&2; exit 1; }
    elif grep -q "OK \] .*$isa" "$log"; then
      echo "tests/arm64.sh: $cpu does not have $isa, but its tests ran, see $log" >&2
      exit 1
    fi
  done
  grep -E '^\[  (PASSED|SKIPPED) .*tests?[.,]' "$log"
}
run max neon i8mm &
run neoverse-n1 neon
wait $!
