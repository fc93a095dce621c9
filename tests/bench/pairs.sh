#!/usr/bin/env bash
# Makes the images that `make bench-install` measures with: two releases of one real system, as raw ext4 and as squashfs.
#
#   v1.img   the older release: Debian 12 without its security updates, with a product of 6 MB
#   v2r.img  the newer release, rebuilt from nothing: security updates in, 3 % of the product changed
#   v2i.img  the newer release, made by `apt-get dist-upgrade` inside a copy of v1.img
#   v1.squashfs, v2.squashfs  the same two trees as squashfs (zstd)
#
# Usage: tests/bench/pairs.sh [FOLDER]       (default: target/pairs; as root; about 8 GB of space, 10 minutes)
#
# What exists already is kept, so a second run takes seconds; remove a file to have it made again. The mirrors are those
# of this machine's apt; MIRROR and SECURITY_MIRROR override them. SIZE (MiB, default 1536) is the size of the file systems.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin" LC_ALL=C DEBIAN_FRONTEND=noninteractive

folder=$(realpath -m "${1:-target/pairs}")
size=${SIZE:-1536}
# One moment, UUID and hash seed for all of them: a builder of reproducible images fixes these.
epoch=1735689600
export SOURCE_DATE_EPOCH=$epoch
uuid=6d1f2c0a-91c4-4f0e-8f5b-2d9a1f7be001
seed=6d1f2c0a-91c4-4f0e-8f5b-2d9a1f7be002

# What a device with containers, a web server and media has aboard.
packages=linux-image-amd64,systemd-sysv,udev,dbus,network-manager,openssh-server,iproute2,iputils-ping,nftables,curl
packages+=,ca-certificates,chrony,python3,python3-requests,python3-yaml,nodejs,ffmpeg,nginx,docker.io,zstd,less,nano,sudo

say() { printf '%s %s\n' "$(date +%T)" "$*" >&2; }
die() {
    printf 'pairs.sh: %s\n' "$*" >&2
    exit 1
}

[ "$(id -u)" = 0 ] || die "must run as root: it makes file systems whose files belong to root and mounts one"
missing=()
for tool in mmdebstrap mke2fs debugfs mksquashfs losetup openssl; do
    command -v "$tool" >/dev/null || missing+=("$tool")
done
[ ${#missing[@]} = 0 ] || die "not installed: ${missing[*]}; run: apt-get install mmdebstrap e2fsprogs squashfs-tools mount openssl"

# The address from which this machine's apt takes a release ($1: its codename).
mirror_of() {
    # Expanded by apt, not by this shell.
    # shellcheck disable=SC2016
    apt-get indextargets --format '$(CODENAME) $(REPO_URI)' 'Created-By: Packages' 'Component: main' |
        awk -v codename="$1" '$1 == codename { print $2; exit }'
}
mirror=${MIRROR:-$(mirror_of bookworm)}
security=${SECURITY_MIRROR:-$(mirror_of bookworm-security)}
[ -n "$mirror" ] || die "apt knows no mirror of bookworm; set MIRROR to the address of one"
[ -n "$security" ] || die "apt knows no mirror of bookworm-security; set SECURITY_MIRROR to the address of one"

work="$folder/cache"
mkdir -p "$folder" "$work"

# The sources of a release ($1: v1 or v2), in apt's one-line format.
sources() {
    echo "deb $mirror bookworm main"
    if [ "$1" = v2 ]; then
        echo "deb $mirror bookworm-updates main"
        echo "deb $security bookworm-security main"
    fi
}

# The product: 6 MB in the folder $1, for release $2. v2 has 48 places of 3850 bytes (3 %) changed, and one line more.
product() {
    local place
    rm -rf "$1"
    mkdir -p "$1"
    noise 4441554 01 0 >"$1/product.bin"
    if [ "$2" = v2 ]; then
        for place in $(seq 0 47); do
            noise 2850 02 "$place" |
                dd of="$1/product.bin" bs=4k seek=$((place * 120001 + 777)) oflag=seek_bytes conv=notrunc status=none
        done
        sed -i '40000a a line that moves all that follows' "$1/product.bin"
    fi
    echo "version $2" >"$1/version"
    find "$1" -exec touch -d "@$SOURCE_DATE_EPOCH" {} +
}

# Text that compresses like a program: of $1 bytes, determined by the key $2 and the number $3.
noise() {
    head -c "$1" /dev/zero | openssl enc -aes-128-ctr -nosalt -K "$2" -iv "$(printf '%02x' "$3")" 2>/dev/null | base64 -w 76
}

# The tree of a release ($1: v1 or v2).
tree() {
    local to="$work/tree-$1" lists
    [ -e "$to.done" ] && return
    say "installing the packages of $1"
    rm -rf "$to" "$work/$1.tar"
    lists="$work/sources-$1.list"
    sources "$1" >"$lists"
    # The machine's identity and secrets are made at the first start, so a release holds none.
    # shellcheck disable=SC2016
    mmdebstrap --quiet --mode=root --variant=important --include="$packages" \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        --dpkgopt='path-exclude=/usr/lib/x86_64-linux-gnu/dri/*' --dpkgopt='path-exclude=/usr/lib/x86_64-linux-gnu/libLLVM*' \
        --dpkgopt='path-exclude=/lib/modules/*/kernel/drivers/gpu/*' \
        --dpkgopt='path-exclude=/lib/modules/*/kernel/drivers/media/*' \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
        --customize-hook='rm -f "$1"/etc/ssh/ssh_host_* "$1"/etc/machine-id "$1"/var/lib/dbus/machine-id' \
        --customize-hook='rm -rf "$1"/var/log/* "$1"/var/cache/ldconfig "$1"/etc/hostname "$1"/etc/resolv.conf' \
        bookworm "$work/$1.tar" - <"$lists" 2>"$work/$1.log" ||
        die "mmdebstrap failed for $1; its last words: $(tail -n 5 "$work/$1.log")"
    mkdir "$to"
    tar -C "$to" --numeric-owner --xattrs -xpf "$work/$1.tar"
    rm "$work/$1.tar"
    product "$to/opt/product" "$1"
    touch "$to.done"
}

# An ext4 of the tree $1, as the file $2.
ext4() {
    local loop mount="$work/mount-$1"
    [ -e "$2" ] && return
    say "making $2"
    rm -f "$2.new"
    E2FSPROGS_FAKE_TIME=$SOURCE_DATE_EPOCH mke2fs -q -t ext4 -m 0 -L rootfs -U "$uuid" -E "hash_seed=$seed,lazy_itable_init=0" \
        -d "$work/tree-$1" "$2.new" "${size}M"
    # mke2fs takes the time of the last change of an inode from this machine: that would differ in every build.
    mkdir -p "$mount"
    loop=$(losetup --show -rf "$2.new")
    mount -t ext4 -o ro,noload "$loop" "$mount"
    find "$mount" -xdev -printf '%i\n' | sort -nu |
        awk -v at="$SOURCE_DATE_EPOCH" '{ print "sif <" $1 "> ctime @" at; print "sif <" $1 "> atime @" at }' >"$work/inodes-$1"
    umount "$mount"
    losetup -d "$loop"
    E2FSPROGS_FAKE_TIME=$SOURCE_DATE_EPOCH debugfs -w -f "$work/inodes-$1" "$2.new" >/dev/null 2>&1
    e2fsck -fn "$2.new" >/dev/null 2>&1 || die "the file system made for $1 has faults: run e2fsck -fn $2.new"
    mv "$2.new" "$2"
}

# v2 made inside a copy of v1, as a device that runs apt would.
in_place() {
    local to="$folder/v2i.img" mount="$work/mount-v2i" loop="" old
    [ -e "$to" ] && return
    say "making $to: dist-upgrade in a copy of v1.img"
    cp --sparse=always "$folder/v1.img" "$to.new"
    mkdir -p "$mount" "$work/archives/partial" "$work/lists/partial"
    loop=$(losetup --show -f "$to.new")
    # shellcheck disable=SC2064
    trap "umount -R '$mount' 2>/dev/null || true; losetup -d '$loop' 2>/dev/null || true" EXIT
    mount -t ext4 "$loop" "$mount"
    mount --bind /dev "$mount/dev"
    mount -t proc proc "$mount/proc"
    mount -t sysfs sysfs "$mount/sys"
    mount -t tmpfs tmpfs "$mount/run"
    # An initramfs is put together there: room that only a build needs.
    mount -t tmpfs tmpfs "$mount/tmp"
    mount -t tmpfs tmpfs "$mount/var/tmp"
    mount --bind "$work/archives" "$mount/var/cache/apt/archives"
    mount --bind "$work/lists" "$mount/var/lib/apt/lists"
    sources v2 >"$mount/etc/apt/sources.list"
    mkdir -p "$mount/run/resolved"
    cp -L /etc/resolv.conf "$mount/etc/resolv.conf"
    printf '#!/bin/sh\nexit 101\n' >"$mount/usr/sbin/policy-rc.d"
    chmod +x "$mount/usr/sbin/policy-rc.d"
    old=$(basename "$(ls -d "$mount"/lib/modules/*)")
    {
        chroot "$mount" apt-get -q update &&
            # The old kernel makes room for the new one: two do not fit beside each other.
            { [ "${KEEP_KERNEL:-}" ] || chroot "$mount" dpkg --force-depends --purge "linux-image-$old"; } &&
            chroot "$mount" apt-get -q -y -f dist-upgrade
    } >"$work/v2i.log" 2>&1 || die "apt-get failed in the copy of v1; its last words: $(tail -n 5 "$work/v2i.log")"
    product "$mount/opt/product" v2
    rm -f "$mount/usr/sbin/policy-rc.d" "$mount/etc/resolv.conf"
    rm -rf "$mount"/var/log/* "$mount"/var/cache/apt/*.bin
    umount -R "$mount"
    losetup -d "$loop"
    trap - EXIT
    mv "$to.new" "$to"
}

# The same trees as squashfs. mksquashfs refuses SOURCE_DATE_EPOCH beside the options that say the same.
squashfs() (
    unset SOURCE_DATE_EPOCH
    [ -e "$2" ] && exit
    say "making $2"
    rm -f "$2.new"
    mksquashfs "$work/tree-$1" "$2.new" -comp zstd -mkfs-time "$epoch" -all-time "$epoch" -quiet -no-progress
    mv "$2.new" "$2"
)

tree v2 &
second=$!
tree v1
ext4 v1 "$folder/v1.img"
wait "$second"
ext4 v2 "$folder/v2r.img"
in_place
squashfs v1 "$folder/v1.squashfs"
squashfs v2 "$folder/v2.squashfs"
say "in $folder: $(cd "$folder" && stat -c '%n %s' ./*.img ./*.squashfs | tr '\n' ';')"
