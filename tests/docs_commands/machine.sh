#!/usr/bin/env bash
# A machine for the reader of a page: this one's programs, with the daemon's package as if it were installed, and an
# /etc, /run, /dev, /data, home, network and processes that nobody else has. `machine.sh FOLDER SCRIPT` runs SCRIPT there,
# as root, and ends whatever it leaves running. Whoever asks for a password gets `letmein`. Needs root.
set -euo pipefail
if [ "$1" != --inside ]; then
    # Whoever kills this ends all of it.
    exec unshare --net --pid --mount --ipc --fork --kill-child "$0" --inside "$@"
fi
folder=$(realpath "$2") script=$(realpath "$3") sources=$(realpath "$(dirname "$0")/../..")
root=$folder/root
ip link set lo up
mkdir -p "$root" "$folder/home"
mount -t tmpfs -o mode=755 tmpfs "$root"
cd "$root"
mkdir -p host usr/share dev/shm dev/disk/by-partlabel proc sys run/lock tmp var/lib/fwupdated data home/me
mount --rbind / host
mount --bind "$folder/home" home/me
mount -t proc proc proc
mount --rbind /sys sys
for node in null zero full random urandom tty; do
    touch "dev/$node"
    mount --bind "/dev/$node" "dev/$node"
done
ln -s /proc/self/fd dev/fd
ln -s fd/0 dev/stdin
ln -s ../run ../run/lock var/
# A link for everything that is the reader's no less than anybody's.
share_all() {
    local entry
    for entry in "$1"/*; do
        [ -e "$root$entry" ] || [ -L "$root$entry" ] || links+=("/host$entry")
    done
    ln -st "$root$1/" "${links[@]}"
    links=()
}
links=()
cp -a /etc etc
install -Dt usr/share/fwupdated "$sources"/packaging/practice/practice-board "$sources"/packaging/uboot/boot.cmd
install -Dt usr/share/doc/fwupdated/examples/policy.d "$sources"/packaging/policy.d/*
rm -rf etc/fwupdated etc/fw_env.config
install -D -m 644 -t etc/dbus-1/system.d "$sources/packaging/dbus/org.fwupdated1.conf"
install -D -m 644 -t etc/fwupdated "$sources/etc/fwupdated/fwupdated.toml"
mkdir etc/fwupdated/{conf,keys,revoked,policy,health,hooks}.d
share_all /usr/share
share_all /usr
share_all ""
exec chroot . /usr/bin/env -i HOME=/home/me LC_ALL=C.UTF-8 PATH="$PATH:/usr/sbin:/sbin" \
    PAGES="/host$folder/pages" bash "/host$script" < <(yes letmein) # 8 bytes a line: no program reads a part of one
