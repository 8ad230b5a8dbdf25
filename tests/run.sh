#!/usr/bin/env bash
# Installs what is missing, builds everything and runs the tests. At most 20 minutes on 2 cores from an empty build folder.
# The last lines say what ran, what was skipped and why. Arguments go to ctest (-R NAME and the like).
set -euo pipefail
cd "$(dirname "$0")/.."
build=${QAT_BUILD:-build}
cmake/build.sh --tests ${QAT_CMAKE_OPTIONS:-}
status=0
ctest --test-dir "$build" --output-on-failure --no-tests=error -j "$(nproc)" "$@" >"$build/tests.log" 2>&1 || status=$?
# Failures in full, passes as a count.
if [ $status != 0 ]; then grep -A6 'Failed\|\*\*\*[^S]\|error\|Failure' "$build/tests.log" | head -n 200 || true; fi
grep -E '^[0-9]+% tests passed|^Total Test time' "$build/tests.log" || tail -n 20 "$build/tests.log"
passed=$(grep -cE '^ *[0-9]+/[0-9]+ Test .* Passed ' "$build/tests.log" || true)
failed=$(grep -cE '^ *[0-9]+/[0-9]+ Test .*\*\*\*(Failed|Timeout|Exception|Not Run)' "$build/tests.log" || true)
skipped=$(grep -cE '^ *[0-9]+/[0-9]+ Test .*\*\*\*Skipped' "$build/tests.log" || true)
if [ "$skipped" != 0 ]; then
  echo "Skipped, by reason:"
  # Reasons are the lines that tests print when they skip: "SKIP: ..." of scripts and GoogleTest's message line.
  grep -hE '^(SKIP: |needs )' "$build/Testing/Temporary/LastTest.log" | sort | uniq -c | sort -rn | sed 's/^/  /'
fi
echo "$passed passed, $failed failed, $skipped skipped" | tee "$build/tests.summary"
exit $status
