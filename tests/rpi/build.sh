#!/usr/bin/env bash
# Builds what tests/rpi_board.rs starts, into target/rpi: `tests/rpi/build.sh`
#
#   root.tar      a root file system as make-image.sh takes it: Debian for arm64 with systemd, Debian's kernel and a small
#                 initial RAM disk among the boot files, and the means by which the test looks inside
#   u-boot.bin    Debian's, for 64-bit boards
#
# Cached by the hash of what it is made from. The packages' scripts are arm64's, run by QEMU: needs root, what tests/setup.sh
# --rpi installs, and binfmt_misc, where it enters QEMU unless that was done. Exit status 75: something of this cannot be had
# here, it says what.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin" LC_ALL=C
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=tests/vm/kernel.sh
. "$here/../vm/kernel.sh"
out=$here/../../target/rpi
mkdir -p "$out"
out=$(cd "$out" && pwd)

suite=bookworm
packages=systemd-sysv,udev,dbus,kmod,ca-certificates,libubootenv-tool,fdisk,e2fsprogs,libgcc-s1
inputs=$(cat "$0" "$here"/guest/* "$here"/../vm/kernel.sh "$here"/../vm/guest/{initramfs-init,look*,hosts,network} | sha256sum)
[ "$(cat "$out/root.tar.inputs" 2>/dev/null)" != "$inputs" ] || exit 0
work=$(mktemp -d "$out/work.XXXXXX")
trap 'rm -rf "$work"' EXIT

lacks() {
    echo "rpi: $*" >&2
    exit 75
}
entry=/proc/sys/fs/binfmt_misc
if [ "$(uname -m)" != aarch64 ] && [ ! -e $entry/qemu-aarch64 ]; then
    [ -e $entry/register ] || mount -t binfmt_misc binfmt_misc $entry 2>/dev/null || lacks "no binfmt_misc"
    tr -d '\n' </usr/lib/binfmt.d/qemu-aarch64.conf >$entry/register || lacks "qemu-aarch64 cannot be entered in binfmt_misc"
fi

### The kernel ########################################################################################################

cd "$work"
# Of a machine of any architecture, without a change to its own lists.
mkdir -p lists/partial cache/archives/partial tree/boot/firmware
options=(-qq -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache" -o APT::Architecture=arm64
    -o Dir::State::status=/dev/null -o APT::Sandbox::User=root)
echo "rpi: the kernel (fetches 60 MB)" >&2
apt-get "${options[@]}" update || lacks "Debian's lists for arm64 cannot be had here"
name=$(apt-cache "${options[@]}" depends linux-image-arm64 | awk '$1 == "Depends:" && $2 ~ /^linux-image-/ {print $2; exit}')
apt-get "${options[@]}" download "$name:arm64" busybox-static:arm64 u-boot-rpi:arm64 || lacks "Debian's kernel for arm64 cannot be had here"
dpkg-deb -x linux-image-*.deb linux
dpkg-deb -x busybox-static*.deb busybox
dpkg-deb -x u-boot-rpi*.deb u-boot
cp u-boot/usr/lib/u-boot/rpi_arm64/u-boot.bin "$out/"
# The watchdog's driver is what restarts a Raspberry Pi; it is built into its own kernel.
ram_disk tree/boot/firmware/initramfs8 "$here/../vm/guest/initramfs-init" bcm2835_wdt bcm2835 crc32c_generic ext4
kernel_modules tree/usr/lib dwc2 phy_generic cdc_ether rndis_host vfat nls_cp437 nls_ascii bcm2835_rng raspberrypi_cpufreq
cp linux/boot/vmlinuz-* tree/boot/firmware/kernel8.img
cp linux/usr/lib/linux-image-*/broadcom/bcm2837-rpi-3-b.dtb tree/boot/firmware/
cp "$here/guest/config.txt" "$here/guest/cmdline.txt" tree/boot/firmware/

### Debian ############################################################################################################

install -D -m 644 "$here/../vm/guest/hosts" tree/etc/hosts
install -D -m 644 "$here/../vm/guest/network" tree/etc/systemd/network/board.network
install -D -m 644 "$here/guest/watchdog.conf" tree/etc/systemd/system.conf.d/90-emulated.conf
install -D -m 644 -t tree/etc/systemd/system "$here"/../vm/guest/look.socket "$here"/../vm/guest/look@.service
echo "rpi: Debian $suite for arm64 (fetches 50 MB; its scripts take minutes)" >&2
mmdebstrap --quiet --architectures=arm64 --variant=essential --include="$packages" \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/zoneinfo/*' \
    --dpkgopt='path-exclude=/usr/lib/*/gconv/*' \
    "$suite" debian.tar || lacks "Debian for arm64 cannot be had here"
mkdir root
tar -C root -xf debian.tar
tar -C tree -cf - . | tar -C root --keep-directory-symlink --no-overwrite-dir -xf -
echo board >root/etc/hostname
echo IMAGE_VERSION=1.0.0 >>root/etc/os-release
systemctl --root=root --quiet enable systemd-networkd.service look.socket
# Nothing to do here, and each costs seconds under emulation.
systemctl --root=root --quiet mask getty.target serial-getty@ttyS1.service systemd-networkd-wait-online.service \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer
rm -rf root/var/cache/apt/* root/var/lib/apt/lists/* root/usr/lib/udev/hwdb*
tar -C root --numeric-owner -cf "$out/root.tar" .
echo "$inputs" >"$out/root.tar.inputs"
