#!/bin/sh
# libvirt_daemon.sh FOLDER: a libvirtd of its own, in a mount namespace of its own (unshare -m), with its sockets in FOLDER.
# Nothing of the machine's libvirt is seen or touched; KVM is hidden, so that libvirt and QEMU agree that there is none.
set -e
folder=$1
for place in /run/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt /etc/libvirt; do
    mkdir -p "$place"
    mount -t tmpfs none "$place"
done
cp "$folder/qemu.conf" /etc/libvirt/
if [ -e /dev/kvm ]; then mount --bind "$folder/no-kvm" /dev/kvm; fi
exec /usr/sbin/libvirtd -f "$folder/libvirtd.conf" -p "$folder/pid"
