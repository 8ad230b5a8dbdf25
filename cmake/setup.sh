#!/usr/bin/env bash
# Installs what qat needs to build on Debian 12 or newer, by package name, and only what is missing.
# usage: cmake/setup.sh [--tests] [--arm64] [--fuzz] [--no-training] [--debian-torch]
# A LibTorch that is already there is used instead of Debian's: on CMAKE_PREFIX_PATH, or inside a Python `torch` package.
set -euo pipefail

packages=(g++ cmake ninja-build ccache pkg-config git libeigen3-dev libcli11-dev nlohmann-json3-dev libtomlplusplus-dev
          libpcre2-dev libutf8proc-dev libprotobuf-c-dev protobuf-c-compiler libxxhash-dev libkainjow-mustache-dev)
training=yes user_torch_wanted=yes
for option in "$@"; do
  case $option in
    --tests) packages+=(libgtest-dev libgmock-dev) ;;
    --arm64) packages+=(googletest g++-aarch64-linux-gnu qemu-user) ;;  # tests/arm64.sh
    --fuzz) packages+=(clang libclang-rt-dev) ;;
    --no-training) training=no ;;
    --debian-torch) user_torch_wanted=no ;;
    *) echo "cmake/setup.sh: unknown option $option (there are --tests, --arm64, --fuzz, --no-training, --debian-torch)" >&2; exit 2 ;;
  esac
done

# The directory to add to CMAKE_PREFIX_PATH for a LibTorch the user has, or nothing.
find_user_torch() {
  local directory
  local IFS=':;'
  for directory in ${CMAKE_PREFIX_PATH:-}; do
    [ -f "$directory/share/cmake/Torch/TorchConfig.cmake" ] || [ -f "$directory/Torch/TorchConfig.cmake" ] && { echo "$directory"; return; }
  done
  python3 -c 'import torch; print(torch.utils.cmake_prefix_path)' 2>/dev/null || true
}

user_torch=""
if [ $training = yes ]; then
  [ $user_torch_wanted = no ] || user_torch=$(find_user_torch)
  # OpenBLAS: Debian's LibTorch multiplies matrices with whatever libblas3 is, and the default one is some 50 times slower.
  [ -n "$user_torch" ] || packages+=(libtorch-dev libopenblas0-pthread)
fi

missing=()
for package in "${packages[@]}"; do
  [ "$(dpkg-query -W -f='${Status}' "$package" 2>/dev/null)" = "install ok installed" ] || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  command -v apt-get >/dev/null || { echo "cmake/setup.sh: needs Debian's apt-get, or these installed by hand: ${missing[*]}" >&2; exit 1; }
  sudo=""
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || { echo "cmake/setup.sh: run as root, or install sudo, or install by hand: ${missing[*]}" >&2; exit 1; }
    sudo=sudo
  fi
  echo "installing: ${missing[*]}" >&2
  $sudo apt-get update -q >/dev/null || true  # an old list may still do
  $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null
fi
# The last line of stdout is what build.sh reads.
echo "torch: $user_torch"
