#!/usr/bin/env bash
# Pictures of the top of a report of `qat compare`, in light and dark: PREFIX.png and PREFIX-dark.png. Needs Debian's chromium and python3-pil.
# usage: recipes/report_picture.sh report/report.html PREFIX [WIDTH (1100) HEIGHT (1660)]
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,3p' "$0" >&2; exit 2; }
page=$(realpath "$1") prefix=$2 width=${3:-1100} height=${4:-1660}
for program in chromium /usr/bin/python3; do
  command -v $program >/dev/null || { echo "no $program: apt install chromium python3-pil" >&2; exit 1; }
done
shoot() {  # OUT FLAG...
  local out=$1
  shift
  # the window is taller than the picture: headless windows give some of their height to a bar that is not drawn
  # --no-sandbox: for root, in a container; the page is our own and runs no script
  chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size="$width,$((height + 200))" "$@" \
    --screenshot="$out.part.png" "file://$page" 2>"$out.log" || { cat "$out.log" >&2; exit 1; }
  rm "$out.log"
  /usr/bin/python3 -c '
import sys
from PIL import Image
part, out, width, height = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
Image.open(part).convert("RGB").crop((0, 0, width, height)).save(out, optimize=True)' "$out.part.png" "$out" "$width" "$height"
  rm "$out.part.png"
  echo "$out"
}
shoot "$prefix.png"
# preferredColorScheme 0: dark
shoot "$prefix-dark.png" --blink-settings=preferredColorScheme=0
