#!/usr/bin/env bash
# Everything that cmake/setup.sh would install but the compiler, CMake and LibTorch, in one folder of about 15 MB that can
# be carried to a machine without network: headers, static libraries, protoc-c and pkg-config, from Debian's packages.
# Needs apt-get and network here; nothing there. Nothing of this machine changes.
# usage: bench/cuda/pack.sh [FOLDER]     default .dev; build.sh there finds it
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:-.dev}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

libraries=(libeigen3-dev libcli11-dev nlohmann-json3-dev libtomlplusplus-dev libpcre2-dev libutf8proc-dev libprotobuf-c-dev
           libxxhash-dev libkainjow-mustache-dev libgtest-dev libgmock-dev)
tools=(protobuf-c-compiler pkgconf-bin)
# The libraries these two programs load, without those of every C++ compiler.
mapfile -t needed < <(apt-cache depends --recurse --no-suggests --no-recommends --no-conflicts --no-breaks --no-replaces \
                        --no-enhances "${tools[@]}" | grep -E '^(lib|zlib)' | grep -vE '^(libc6|libgcc-s1|libstdc\+\+6|libcrypt1)$')
(cd "$work" && apt-get download -q "${libraries[@]}" "${tools[@]}" "${needed[@]}" >/dev/null 2>"$work/log") || { cat "$work/log" >&2; exit 1; }
for package in "$work"/*.deb; do dpkg -x "$package" "$work/root"; done
root=$work/root/usr

rm -rf "$folder"/{bin,include,lib,libexec,share}
mkdir -p "$folder"/{bin,libexec,share}
cp -r "$root/include" "$root/lib" "$folder"
for part in cmake eigen3 pkgconfig; do cp -r "$root/share/$part" "$folder/share"; done
rm -rf "$folder/include/eigen3/unsupported"
# Static libraries alone: what is built runs without this folder.
find "$folder/lib" \( -name '*.so' -o -name '*.so.*' -o -name 'libpcre2-[13p]*' -o -name 'libtoml*' \) -delete
# Under the names by which they are loaded, and no links: not every copy keeps those.
find "$work/root" -name '*.so.*' -type l -exec cp -L {} "$folder/libexec" \;
# A .pc file that says where it is itself, wherever the folder is carried.
sed -i -E 's#=/usr(/|$)#=${pcfiledir}/../../..\1#' "$folder"/lib/*/pkgconfig/*.pc
sed -i -E 's#=/usr(/|$)#=${pcfiledir}/../..\1#' "$folder"/share/pkgconfig/*.pc

wrap() {  # wrap PROGRAM NAME: bin/NAME starts libexec/PROGRAM with the libraries beside it
  cp -L "$root/bin/$1" "$folder/libexec/$1"
  cat > "$folder/bin/$2" <<'WRAPPER'
#!/bin/sh
here=$(cd "$(dirname "$0")/../libexec" && pwd)
WRAPPER
  echo "LD_LIBRARY_PATH=\"\$here\" exec \"\$here/$1\" \"\$@\"" >> "$folder/bin/$2"
  chmod +x "$folder/bin/$2"
}
wrap protoc-c protoc-c
wrap pkgconf pkg-config

du -sh "$folder" >&2
