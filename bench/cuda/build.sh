#!/usr/bin/env bash
# Builds qat, qat-train and their tests with Python's PyTorch, on a machine with a GPU and without network, into build-cuda/.
# What cmake/setup.sh would install comes from a folder that bench/cuda/pack.sh filled elsewhere; without it, from the system.
# usage: bench/cuda/build.sh [FOLDER]     default .dev     JOBS, BUILD, LIMIT (seconds), TORCH=own (see below) from the
#        environment
set -u
cd "$(dirname "$0")/../.."
repository=$PWD folder=$PWD/${1:-.dev} build=${BUILD:-$PWD/build-cuda}
jobs=${JOBS:-$(nproc)}
started=$SECONDS
mkdir -p "$build"

options=(-G Ninja -DCMAKE_BUILD_TYPE=Release
         # Tests are listed when they are run: the first load of CUDA's libraries can outlast the limit of a build step.
         -DCMAKE_GTEST_DISCOVER_TESTS_DISCOVERY_MODE=PRE_TEST)
if [ -d "$folder/include" ]; then
  chmod -R u+x "$folder"/bin "$folder"/libexec 2>/dev/null
  export PATH=$folder/bin:$PATH
  export PKG_CONFIG_PATH=$(echo "$folder"/lib/*/pkgconfig | tr ' ' :):$folder/share/pkgconfig
  options+=(-DPKG_CONFIG_EXECUTABLE="$folder/bin/pkg-config" -DPROTOC_C="$folder/bin/protoc-c")
fi

python=${PYTHON:-python3}
{ read -r torch; read -r torch_cmake; read -r version; read -r abi; } < <("$python" -c '
import os, torch
print(os.path.dirname(torch.__file__)); print(torch.utils.cmake_prefix_path); print(torch.__version__.split("+")[0]); print(int(torch.compiled_with_cxx11_abi()))')
[ -n "${torch:-}" ] || { echo "build.sh: $python finds no torch" >&2; exit 1; }

# The CUDA libraries that a wheel of PyTorch brings are in packages of their own, beside it.
libraries=$torch/lib
for directory in "$torch"/../nvidia/*/lib "$torch"/../nvidia/*/lib64; do [ -d "$directory" ] && libraries+=:$directory; done
export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
echo "export LD_LIBRARY_PATH=\"$libraries\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}\"" > "$build/environment"

# PyTorch's CMake package wants all of the CUDA toolkit, down to its compiler, though nothing here is compiled for the GPU.
# Where it finds something missing, this one says the same of the libraries alone.
write_own_package() {
  mkdir -p "$build/own-torch"
  local files="" name
  for name in torch torch_cpu torch_cuda c10 c10_cuda; do [ -f "$torch/lib/lib$name.so" ] && files+="$torch/lib/lib$name.so,"; done
  cat > "$build/own-torch/TorchConfig.cmake" <<CMAKE
set(TORCH_INSTALL_PREFIX "$torch")
set(Torch_VERSION "$version")
set(TORCH_CXX_FLAGS "-D_GLIBCXX_USE_CXX11_ABI=$abi")
set(TORCH_INCLUDE_DIRS "$torch/include" "$torch/include/torch/csrc/api/include")
# --no-as-needed: libtorch_cuda registers itself when it is loaded, no symbol of it is called.
set(TORCH_LIBRARIES "-Wl,--push-state,--no-as-needed,${files}--pop-state,-rpath,$torch/lib,--allow-shlib-undefined")
set(Torch_FOUND TRUE)
CMAKE
}

configure() {  # configure KIND [OPTION]
  echo "--- configure: $1 CMake package of torch $version in $torch"
  timeout 120 cmake -S "$repository" -B "$build" "${options[@]}" -DCMAKE_PREFIX_PATH="$folder;$torch_cmake" "${@:2}" \
    > "$build/configure.log" 2>&1 && grep -E 'LibTorch|CXX compiler identification' "$build/configure.log"
}
compile() {  # 124: out of time, and no other package would help
  timeout "${LIMIT:-300}" cmake --build "$build" -j "$jobs" --target qat qat-train fakequant_test train_test -- -k 0 > "$build/build.log" 2>&1
}
complain() { echo "$1 failed after $((SECONDS - started)) s:"; grep -nE 'error:|FAILED:|undefined reference|CMake Error|cannot find' "$2" | cut -c1-300 | head -"$3"; }

done_with=""
if [ "${TORCH:-}" != own ]; then
  if ! configure "PyTorch's"; then
    complain configure "$build/configure.log" 12
    rm -rf "$build/CMakeCache.txt" "$build/CMakeFiles"
  else
    compile
    status=$?
    [ $status != 124 ] || { complain "build (out of time)" "$build/build.log" 12; tail -n 1 "$build/build.log"; exit 1; }
    if [ $status = 0 ]; then done_with="PyTorch's package"; else complain build "$build/build.log" 12; fi
  fi
fi
if [ -z "$done_with" ]; then
  write_own_package
  configure "own" -DTorch_DIR="$build/own-torch" || { complain configure "$build/configure.log" 20; tail -5 "$build/configure.log"; exit 1; }
  compile || { complain build "$build/build.log" 30; exit 1; }
  done_with="own package"
fi
warnings=$(grep -c 'warning:' "$build/build.log")
echo "built in $((SECONDS - started)) s with $jobs jobs, $done_with, $warnings warnings: $build/qat, $build/qat-train"
