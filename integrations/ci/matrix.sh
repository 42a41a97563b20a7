#!/bin/sh
# matrix.sh KERNEL DIR: does the kernel keep its promise of four and five levels? DIR gets matrix.xml (JUnit), matrix.html,
# and what is left of failures. FIVEFOLD and PRESET (quick, default, full) may be set. Ends as `fivefold matrix` does.
set -eu
[ $# = 2 ] || { echo "expected: matrix.sh KERNEL DIR" >&2; exit 2; }
fivefold=${FIVEFOLD:-fivefold}
command -v "$fivefold" > /dev/null || { echo "matrix.sh: there is no $fivefold; install.sh installs it" >&2; exit 2; }
mkdir -p "$2" || exit 2
exec "$fivefold" matrix "$1" --preset "${PRESET:-quick}" --junit "$2/matrix.xml" --html "$2/matrix.html" --keep "$2/failures"
