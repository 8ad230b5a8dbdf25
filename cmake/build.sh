#!/usr/bin/env bash
# Installs what is missing and builds qat into build/ (or $QAT_BUILD).
# usage: cmake/build.sh [--tests] [--target NAME]... [-DOPTION=VALUE]...
set -euo pipefail
cd "$(dirname "$0")/.."
build=${QAT_BUILD:-build}

setup=() options=(-DQAT_TESTS=OFF) targets=()
while [ $# -gt 0 ]; do
  case $1 in
    --tests) setup+=(--tests); options=(-DQAT_TESTS=ON) ;;
    --target) targets+=(--target "$2"); shift ;;
    -D*) options+=("$1") ;;
    *) echo "cmake/build.sh: unknown option $1" >&2; exit 2 ;;
  esac
  shift
done

training=ON
case " ${options[*]} " in *QAT_TRAINING=OFF*) setup+=(--no-training); training=OFF ;; esac
torch=$(cmake/setup.sh "${setup[@]}" | sed -n 's/^torch: //p')
log=$build/configure.log
mkdir -p "$build"

configure() { cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release "${options[@]}" "$@" >"$log" 2>&1; }
if [ $training = ON ] && [ -n "$torch" ]; then
  if ! configure -DCMAKE_PREFIX_PATH="$torch;${CMAKE_PREFIX_PATH:-}"; then
    echo "The LibTorch in $torch cannot be used to build (see $log); using Debian's." >&2
    rm -rf "$build/CMakeCache.txt" "$build/CMakeFiles"
    cmake/setup.sh "${setup[@]}" --debian-torch >/dev/null
    configure
  fi
else
  configure
fi || { tail -n 20 "$log" >&2; echo "cmake/build.sh: configuring failed, the whole log is $log" >&2; exit 1; }
grep -h 'LibTorch ' "$log" | sed 's/^-- //' >&2 || true
cmake --build "$build" "${targets[@]}"
