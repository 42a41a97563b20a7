#!/bin/sh
# install.sh VENV: QEMU from the distribution, and this Fivefold with what boots into the virtual environment VENV.
# For Debian 12 and newer, Ubuntu 24.04 and newer; as root, or with sudo. Prints the path of the command.
set -eu
venv=${1:?expected: install.sh VENV}
source=$(cd "$(dirname "$0")/../.." && pwd)

missing=
command -v qemu-system-x86_64 > /dev/null || missing="$missing qemu-system-x86"
python3 -c 'import venv, ensurepip' 2> /dev/null || missing="$missing python3-venv"
if [ -n "$missing" ]; then
    sudo=
    [ "$(id -u)" = 0 ] || sudo=sudo
    $sudo apt-get update -qq >&2
    # shellcheck disable=SC2086 # one word a package
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >&2
fi
[ -x "$venv/bin/python" ] || python3 -m venv "$venv" >&2 || exit 2
"$venv/bin/pip" install -q "${source}[boot]" >&2 || exit 2
echo "$venv/bin/fivefold"
