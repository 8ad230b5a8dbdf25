#!/usr/bin/env bash
# Installs the reference programs that tests/interop holds this project against, as Debian packages, into a system of their own
# in $QAT_JUDGES (default /opt/qat-judges): llama.cpp with its converter, gguf-py, transformers, PyTorch. Nothing else on this
# machine changes. About 2 GB and 3 minutes, the first time; what is there stays.
# usage: tests/interop/setup.sh
set -euo pipefail
root=${QAT_JUDGES:-/opt/qat-judges}
here=$(cd "$(dirname "$0")" && pwd)

sudo=""
if [ "$(id -u)" != 0 ]; then
  command -v sudo >/dev/null || { echo "setup.sh: run as root, or install sudo" >&2; exit 1; }
  sudo="sudo --preserve-env=QAT_JUDGES,http_proxy,https_proxy"
fi

# Debian's unstable branch: the only one with packages of llama.cpp and of a transformers that knows Gemma 4.
packages=(llama.cpp-tools llama.cpp-tools-extra python3-gguf python3-safetensors python3-tokenizers python3-sentencepiece
          python3-protobuf python3-torch python3-transformers libopenblas0-pthread)

installed() {  # asks the judges' own package database, without entering them
  local wanted found
  wanted=${#packages[@]}
  found=$(dpkg-query --admindir="$root/var/lib/dpkg" -W -f='${Status}\n' "${packages[@]}" 2>/dev/null | grep -c '^install ok installed$' || true)
  [ "$found" = "$wanted" ]
}

if ! installed; then
  if ! command -v debootstrap >/dev/null; then
    command -v apt-get >/dev/null || { echo "setup.sh: needs debootstrap" >&2; exit 1; }
    $sudo apt-get update -q >/dev/null || true
    $sudo apt-get install -y -q --no-install-recommends debootstrap >/dev/null
  fi
  # debootstrap leaves a marker behind when it was interrupted: start again then.
  if [ ! -x "$root/usr/bin/apt-get" ] || [ -e "$root/debootstrap" ]; then
    echo "installing a Debian system in $root" >&2
    $sudo rm -rf "$root"
    $sudo debootstrap --variant=minbase --include=ca-certificates sid "$root" "${QAT_DEBIAN_MIRROR:-}" >/dev/null
  fi
  # The machine's proxies and name servers serve the judges too.
  $sudo cp -f /etc/resolv.conf "$root/etc/" 2>/dev/null || true
  $sudo cp -f /etc/apt/apt.conf.d/* "$root/etc/apt/apt.conf.d/" 2>/dev/null || true
  echo "installing ${packages[*]}" >&2
  # In a private mount namespace: proc and dev are gone again when apt is done.
  $sudo unshare --mount --propagation private bash -c '
    set -e
    root=$1; shift
    mount --rbind /proc "$root/proc"
    mount --rbind /dev "$root/dev"
    export DEBIAN_FRONTEND=noninteractive
    chroot "$root" apt-get update -q >/dev/null
    chroot "$root" apt-get install -y -q --no-install-recommends "$@" >/dev/null
    chroot "$root" apt-get clean' setup "$root" "${packages[@]}"
fi

"$here/judge" llama-perplexity --version 2>&1 | grep '^version'
"$here/judge" python3 -c 'import torch, transformers; print("torch", torch.__version__, "transformers", transformers.__version__)'
