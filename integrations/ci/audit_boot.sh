#!/bin/sh
# audit_boot.sh KERNEL DIR: boot a bzImage with five levels and with four, and audit the page tables of each.
# DIR gets la57.sarif, la48.sarif, JUnit XML, the text and the console of both.
#
# FIVEFOLD=fivefold    the command          POLICY=FILE       exceptions, as --write-policy makes them
# FAIL_ON=warning      error, warning, note URI=PATH          the file that alerts are shown at
# TIMEOUT=300          seconds for a boot   QEMU=qemu-system-x86_64
#
# Ends with 0 where there is nothing to say, 1 for findings, 2 where a kernel did not boot or could not be looked at.
set -eu
[ $# = 2 ] || { echo "expected: audit_boot.sh KERNEL DIR" >&2; exit 2; }
kernel=$1 out=$2
fivefold=${FIVEFOLD:-fivefold}
qemu=${QEMU:-qemu-system-x86_64}
refuse() {
    echo "audit_boot.sh: $1" >&2
    exit 2
}
[ -f "$kernel" ] || refuse "$kernel is no file"
[ -z "${POLICY:-}" ] || [ -f "$POLICY" ] || refuse "POLICY: $POLICY is no file"
case ${TIMEOUT:-300} in *[!0-9]*) refuse "TIMEOUT: $TIMEOUT is no number of seconds" ;; esac
for program in "$fivefold" "$qemu"; do
    command -v "$program" > /dev/null || refuse "there is no $program; install.sh installs it"
done
mkdir -p "$out" || exit 2
place=$(mktemp -d) || exit 2
pid=
trap '[ -z "$pid" ] || kill "$pid" 2> /dev/null || :; rm -rf "$place"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

"$fivefold" matrix "$kernel" --preset quick --dry-run --initramfs "$place/init.cpio" > "$place/cells" || {
    cat "$place/cells" >&2
    exit 2
}
set --
[ -z "${POLICY:-}" ] || set -- "$@" --policy "$POLICY"

doubled() { # a path for QEMU, to which a comma ends an option
    printf '%s' "$1" | sed 's/,/,,/g'
}

booted() { # the init says "end" when it begins to wait
    waited=0
    until grep -aq '^f5 [0-9]* end ' "$out/$1.log"; do
        kill -0 "$pid" 2> /dev/null || return 1
        [ "$waited" -lt "${TIMEOUT:-300}" ] || return 1
        waited=$((waited + 1))
        sleep 1
    done
}

audit() { # mode, format, file, further options
    mode=$1 format=$2 file=$3
    shift 3
    status=0
    "$fivefold" audit "qmp:$place/$mode.sock" --all-roots --format "$format" --fail-on "${FAIL_ON:-warning}" "$@" > "$file" || status=$?
    [ "$status" -le "$worst" ] || worst=$status
}

worst=0
for mode in la57 la48; do
    cpu=max
    [ "$mode" = la57 ] || cpu=max,la57=off
    : > "$out/$mode.log"
    "$qemu" -nodefaults -no-user-config -display none -accel tcg -M q35 -cpu "$cpu" -m 512M \
        -kernel "$kernel" -initrd "$place/init.cpio" -append "console=ttyS0 no_timer_check panic=-1" -no-reboot \
        -chardev "file,id=console,path=$(doubled "$out/$mode.log")" -serial chardev:console \
        -qmp "unix:$(doubled "$place/$mode.sock"),server=on,wait=off" < /dev/null > /dev/null &
    pid=$!
    if booted "$mode"; then
        echo "== $mode"
        audit "$mode" sarif "$out/$mode.sarif" ${URI:+--sarif-uri "$URI"} "$@"
        audit "$mode" junit "$out/$mode.xml" "$@"
        audit "$mode" text "$out/$mode.txt" "$@"
        cat "$out/$mode.txt"
    else
        echo "$mode: the kernel's init did not come to its end; the last lines of $out/$mode.log:" >&2
        tail -n 20 "$out/$mode.log" >&2
        worst=2
    fi
    kill "$pid" 2> /dev/null || :
    wait "$pid" 2> /dev/null || :
    pid=
done
exit "$worst"
