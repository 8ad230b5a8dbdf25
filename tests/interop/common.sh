# Sourced by the checks: where things are, and a way out when the reference programs are not installed (77: skipped).
set -euo pipefail
interop=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$interop/../.." && pwd)
shared=$(realpath -m "${QAT_SHARED:-$repository/../shared}")
build=$(realpath "${QAT_BUILD:-$repository/build}")
qat=$build/qat
references=$build/interop-references  # what references.sh makes

judge() { "$interop/judge" "$@"; }

"$interop/judge" --check 2>/dev/null || { echo "SKIP: reference programs not installed (run tests/interop/setup.sh)"; exit 77; }

# A fresh working directory, removed when the check is done (and kept when it fails, to look at).
work=$build/interop-$(basename "$0" .sh)
rm -rf "$work"
mkdir -p "$work"
trap 'status=$?; [ $status != 0 ] || rm -rf "$work"' EXIT

models() { ls "$references/models"; }

# The type that a model's matrices have: f32, f16 or bf16.
stored_type() {
  case $(sed -n 's/.*"\(torch_\)\{0,1\}dtype": "\([a-z0-9]*\)".*/\2/p' "$references/models/$1/config.json" | head -n 1) in
    float32) echo f32 ;;
    float16) echo f16 ;;
    bfloat16) echo bf16 ;;
    *) echo "$1: config.json has no dtype" >&2; return 1 ;;
  esac
}
