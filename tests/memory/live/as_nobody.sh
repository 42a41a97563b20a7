#!/bin/sh
# as_nobody.sh FOLDER PYTHON PACKAGES SOURCES COMMAND...: run it as the user nobody, in a mount namespace of its own (unshare -m).
# An interpreter and packages in folders that only root may enter are bound into FOLDER, as python, packages and sources.
set -e
folder=$1
mount --bind "$2" "$folder/python"
mount --bind "$3" "$folder/packages"
mount --bind "$4" "$folder/sources"
shift 4
cd "$folder"
exec setpriv --reuid=65534 --regid=65534 --clear-groups \
    env -u LIBVIRT_DEFAULT_URI LIBVIRT_AUTOSTART=0 HOME="$folder/home" XDG_RUNTIME_DIR="$folder/run" LD_LIBRARY_PATH="$folder/python/lib" \
    PYTHONPATH="$folder/sources:$folder/packages" PYTHONDONTWRITEBYTECODE=1 "$@"
