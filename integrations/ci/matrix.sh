#!/bin/sh
# matrix.sh KERNEL DIR: does the kernel keep its promise of four and five levels? DIR gets matrix.xml (JUnit), matrix.html,
# and what is left of failures. FIVEFOLD and PRESET (quick, default, full) may be set. Ends as `fivefold matrix` does.
set -eu
[ $# = 2 ] || { echo "expected: matrix.sh KERNEL DIR" >&2; exit 2; }
mkdir -p "$2"
exec "${FIVEFOLD:-fivefold}" matrix "$1" --preset "${PRESET:-quick}" --junit "$2/matrix.xml" --html "$2/matrix.html" --keep "$2/failures"
