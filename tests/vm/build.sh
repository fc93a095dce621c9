#!/usr/bin/env bash
# Builds what the virtual machine is made of, into target/vm: `tests/vm/build.sh FWUPDATED_DEB`
#
#   uboot/        U-Boot for QEMU's x86-64 `pc`, its environment in two copies on the SD card
#   boot.img      the partition `boot`: packaging/uboot/boot.cmd, its part "This board" filled in, compiled
#   root.img      the root file system of version 1.0.0: Debian, our package, kernel and initial RAM disk
#
# Everything is cached by the hash of what it is made from. Needs root, and what tests/setup.sh --vm installs. Exit
# status 75: the packages or the source of U-Boot cannot be had here.
# shellcheck disable=SC2016 # what U-Boot is to expand stands in quotes
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin" LC_ALL=C

deb=$(realpath "$1")
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=tests/vm/kernel.sh
. "$here/kernel.sh"
rpi=$here/../../packaging/rpi
out=$here/../../target/vm
mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$(mktemp -d "$out/work.XXXXXX")
trap 'rm -rf "$work"' EXIT

# The suite of this machine, whose C library the package was built for.
suite=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
packages=systemd-sysv,udev,dbus,kmod,ca-certificates,libubootenv-tool,fdisk,e2fsprogs

# fresh NAME INPUT...: whether NAME was made from just these texts and this script's functions.
fresh() {
    local name=$1
    shift
    stamp=$(printf '%s\n' "$@" | sha256sum)
    [ "$(cat "$out/$name.inputs" 2>/dev/null)" = "$stamp" ]
}
made() { echo "$stamp" >"$out/$1.inputs"; }

step() { echo "vm: $*" >&2; }

### U-Boot ############################################################################################################

uboot() {
    "$here/../uboot/build.sh" qemu-x86_64 "$out/uboot" \
        MMC=y CMD_MMC=y MMC_SDHCI=y MMC_SDHCI_ADMA=y MMC_PCI=y \
        ENV_IS_IN_MMC=y -ENV_IS_NOWHERE ENV_SIZE=0x4000 SYS_REDUNDAND_ENVIRONMENT=y \
        ENV_OFFSET=0x100000 ENV_OFFSET_REDUND=0x200000 \
        CMD_PART=y CMD_SETEXPR=y LEGACY_IMAGE_FORMAT=y BOOTDELAY=-2 -USE_BOOTARGS USE_BOOTCOMMAND=y \
        'BOOTCOMMAND="part number mmc 0 boot bootpart; load mmc 0:${bootpart} ${scriptaddr} boot.scr; source ${scriptaddr}; sleep 5; reset"'
}

# zboot wants other arguments than booti: the script's own are not used by `run` as long as its variable succeeds.
boot_script() {
    sed -e 's/^fwup_start=.*/setenv start_x86 zboot \\${kernel_addr_r} 0 \\${ramdisk_addr_r} \\${filesize}\nfwup_start="run start_x86"/' \
        -e 's/^fwup_args=.*/fwup_args="ro rootwait panic=3 console=ttyS0 disable_mtrr_trim quiet"/' \
        "$here/../../packaging/uboot/boot.cmd"
}

boot() {
    local script
    script=$(boot_script)
    fresh boot "$script" && return
    step "the boot partition"
    boot_script >"$work/boot.cmd"
    mkimage -A x86 -T script -d "$work/boot.cmd" "$work/boot.scr" >/dev/null
    rm -f "$out/boot.img"
    mkfs.vfat -n BOOT -C "$out/boot.img" 12288 >/dev/null
    mcopy -i "$out/boot.img" "$work/boot.scr" ::/
    made boot
}

### Debian ############################################################################################################

# A tree with systemd and what our package needs, and nothing that the VM does not use.
debian() {
    fresh debian "$suite $packages $(declare -f debian)" && return
    step "Debian $suite (fetches some 50 MB)"
    rm -f "$out/debian.tar"
    mmdebstrap --quiet --variant=essential --include="$packages" \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/zoneinfo/*' \
        --dpkgopt='path-exclude=/usr/lib/*/gconv/*' \
        "$suite" "$out/debian.tar" || return 75
    made debian
}

# Kernel, initial RAM disk and the few modules that the VM has hardware for: kernel.tar, to lay over the tree.
kernel() {
    fresh kernel "$suite $(cat "$here/kernel.sh" "$here/guest/initramfs-init") $(declare -f kernel)" && return
    step "the kernel (fetches 70 MB)"
    mkdir "$work/kernel"
    (
        cd "$work/kernel"
        name=$(apt-cache depends linux-image-amd64 | awk '$1 == "Depends:" && $2 ~ /^linux-image-/ {print $2; exit}')
        apt-get -qq -o APT::Sandbox::User=root download "$name" busybox-static || exit 75
        dpkg-deb -x linux-image-*.deb linux
        dpkg-deb -x busybox-static*.deb busybox
        mkdir -p tree/boot
        # The watchdog first, as it is built into a board's kernel: systemd looks for it when it starts.
        ram_disk tree/boot/initrd.img "$here/guest/initramfs-init" i6300esb sdhci-pci mmc_block crc32c_generic ext4
        kernel_modules tree/usr/lib virtio_pci virtio_net vfat nls_cp437 nls_ascii
        cp linux/boot/vmlinuz-* tree/boot/vmlinuz
        tar -C tree -cf "$out/kernel.tar" .
    )
    made kernel
}

root() {
    fresh root "$(cat "$deb" "$here"/guest/* "$rpi"/*grow-data* "$out/debian.inputs" "$out/kernel.inputs" | sha256sum) $(declare -f root)" && return
    step "the root file system"
    local tree=$work/root
    mkdir "$tree"
    tar -C "$tree" -xf "$out/debian.tar"
    tar -C "$tree" --keep-directory-symlink -xf "$out/kernel.tar"
    cp "$deb" "$tree/fwupdated.deb"
    # The package's own scripts enable the units: nothing is started, since no systemd runs in there.
    chroot "$tree" dpkg --install /fwupdated.deb >&2
    rm "$tree/fwupdated.deb"
    install -m 644 "$here/guest/fstab" "$here/guest/hosts" "$here/guest/fw_env.config" "$tree/etc/"
    install -D -m 644 "$here/guest/network" "$tree/etc/systemd/network/vm.network"
    install -D -m 644 "$here/guest/journald.conf" "$tree/etc/systemd/journald.conf.d/vm.conf"
    install -m 644 "$here/guest/look.socket" "$here/guest/look@.service" "$tree/etc/systemd/system/"
    install -D -m 644 "$here/guest/trial-timer.conf" "$tree/etc/systemd/system/fwupdated-trial.timer.d/vm.conf"
    install -D -m 644 "$here/guest/trial-service.conf" "$tree/etc/systemd/system/fwupdated-trial.service.d/vm.conf"
    install -D -t "$tree/usr/lib/fwupdated" "$rpi/grow-data"
    install -m 644 "$rpi/fwupdated-grow-data.service" "$tree/etc/systemd/system/"
    install -D -m 644 "$here/guest/fwupdated.toml" "$tree/etc/fwupdated/conf.d/image.toml"
    ln -s /data/site.toml "$tree/etc/fwupdated/conf.d/site.toml"
    mkdir -p "$tree/data" "$tree/boot/firmware" "$tree/etc/systemd/system/multi-user.target.wants"
    echo fwupdated-vm >"$tree/etc/hostname"
    echo 0123456789abcdef0123456789abcdef >"$tree/etc/machine-id"
    echo IMAGE_VERSION=1.0.0 >>"$tree/etc/os-release"
    # Loaded by udev on real boards; the VM's kernel line is the same for every board.
    echo virtio_net >"$tree/etc/modules-load.d/vm.conf"
    systemctl --root="$tree" --quiet enable systemd-networkd.service look.socket fwupdated-grow-data.service
    # Nothing to do in a VM, and each costs seconds under emulation.
    systemctl --root="$tree" --quiet mask getty.target serial-getty@ttyS0.service systemd-networkd-wait-online.service \
        systemd-update-utmp.service systemd-random-seed.service systemd-timesyncd.service apt-daily.timer \
        apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer
    # Done with dpkg, so with Perl too; the hardware database names devices that the VM does not have.
    rm -rf "$tree"/var/cache/* "$tree"/var/lib/{apt,dpkg} "$tree"/usr/lib/*/perl* "$tree"/usr/share/perl* "$tree"/usr/bin/perl* \
        "$tree"/usr/lib/udev/hwdb*
    rm -f "$out/root.img"
    mke2fs -q -t ext4 -b 4096 -O ^has_journal,^metadata_csum,^64bit -m 0 -d "$tree" "$out/root.img" 160M
    made root
}

uboot
boot
debian
kernel
root
