#!/usr/bin/env bash
# Makes an A/B image for a Raspberry Pi out of a stock Raspberry Pi OS image, or of a root file system in a tar file:
# partitions, boot files, first environment, fstab, configuration, fwupdated itself. Nothing is left to do by hand but to
# write it to a card. How, and what was tried on hardware: docs/how-to/make-a-raspberry-pi-image.md.
#
#   packaging/rpi/make-image.sh --stock FILE.img[.xz] --boot uboot|tryboot --deb FILE.deb --output FILE.img [options]
#
# Guarantees: the inputs are not changed; the output appears under its name only when it is whole; both slots are the same,
# byte for byte; nothing in the image names a disk by number.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin" LC_ALL=C
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

usage() {
    cat <<'TEXT'
make-image.sh: makes an A/B image for a Raspberry Pi. Run it as root on Debian.

One of:
  --stock FILE         a stock image: partition 1 boot files (FAT), partition 2 root file system; .img or .img.xz
  --rootfs FILE        a root file system as a tar file, with the boot files in /boot/firmware
Needed:
  --boot uboot|tryboot who chooses the slot: U-Boot, or the Raspberry Pi's own firmware
  --deb FILE           a Debian package to install, fwupdated's first; may be given several times
  --output FILE        the image
Options:
  --rootfs-size MIB    of each root file system [twice what is in it]
  --boot-size MIB      of each partition with boot files [256]
  --key FILE.pub       a key whose signatures the device trusts; may be given several times
  --config FILE        more settings, as /etc/fwupdated/conf.d/60-FILE; may be given several times
  --u-boot FILE        u-boot.bin [of Debian's package u-boot-rpi, which is downloaded]
TEXT
}

fail() {
    echo "make-image: $*" >&2
    exit 1
}

stock='' rootfs='' boot='' output='' uboot='' rootfs_size='' boot_size=256
debs=() keys=() configs=()
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage && exit 0 ;;
        --stock | --rootfs | --boot | --deb | --output | --rootfs-size | --boot-size | --key | --config | --u-boot)
            [ $# -ge 2 ] || fail "$1 needs a value; see --help"
            ;;&
        --stock) stock=$2 ;;
        --rootfs) rootfs=$2 ;;
        --boot) boot=$2 ;;
        --deb) debs+=("$2") ;;
        --output) output=$2 ;;
        --rootfs-size) rootfs_size=$2 ;;
        --boot-size) boot_size=$2 ;;
        --key) keys+=("$2") ;;
        --config) configs+=("$2") ;;
        --u-boot) uboot=$2 ;;
        *) fail "unknown option $1; see --help" ;;
    esac
    shift 2
done

[ "$(id -u)" = 0 ] || fail "must run as root: it mounts the stock image and keeps the owners of files"
case ${stock:+stock}${rootfs:+rootfs} in
    stock | rootfs) ;;
    *) fail "give --stock or --rootfs, one of them; see --help" ;;
esac
[ "$boot" = uboot ] || [ "$boot" = tryboot ] || fail "--boot must be uboot or tryboot"
[ ${#debs[@]} -gt 0 ] || fail "give fwupdated's package with --deb"
[ -n "$output" ] || fail "give --output"
for number in $rootfs_size $boot_size; do
    [[ $number =~ ^[1-9][0-9]*$ ]] || fail "sizes are whole MiB, not $number"
done
for file in $stock $rootfs $uboot "${debs[@]}" "${keys[@]}" "${configs[@]}"; do
    [ -f "$file" ] || fail "$file does not exist"
done
need() { command -v "$1" >/dev/null || fail "$1 is missing; install the package $2"; }
need sfdisk fdisk
need mkfs.vfat dosfstools
need mcopy mtools
need mkfs.ext4 e2fsprogs
need dpkg dpkg
[ "$boot" = tryboot ] || need mkimage u-boot-tools
[ "$boot" = tryboot ] || need mkenvimage u-boot-tools
[[ $stock$rootfs != *.xz ]] || need xz xz-utils
[[ $rootfs != *.zst ]] || need zstd zstd

# Beside the output, which has room for what is as large.
work=$(realpath "$(mktemp -d "$(dirname "$output")/.make-image.XXXXXX")")
device=''
clean() {
    ! mountpoint -q "$work/mnt" || umount "$work/mnt"
    [ -z "$device" ] || losetup -d "$device"
    rm -rf "$work"
}
trap clean EXIT
tree=$work/root
files=$work/boot
mkdir "$work/mnt" "$tree" "$files"

# --- what is in the stock image ---------------------------------------------------------------------------------------

partition() { # partition IMAGE NUMBER: its first sector, and how many there are
    partx -g -r -o START,SECTORS -n "$2" "$1" 2>/dev/null | grep . ||
        fail "$stock has no partition $2; it is no stock image of Raspberry Pi OS"
}

if [ -n "$stock" ]; then
    image=$stock
    if [[ $stock == *.xz ]]; then
        image=$work/stock.img
        xz -dc "$stock" >"$image"
    fi
    # The FAT partition without mounting it; the other one mounted, for its owners and attributes.
    read -r start sectors < <(partition "$image" 1)
    mcopy -s -n -Q -m -i "$image@@$((start * 512))" '::/*' "$files/" || fail "partition 1 of $stock holds no FAT file system"
    read -r start sectors < <(partition "$image" 2)
    device=$(losetup -f -r --show -o $((start * 512)) --sizelimit $((sectors * 512)) "$image")
    mount -o ro "$device" "$work/mnt" || fail "partition 2 of $stock cannot be mounted"
    cp -a "$work/mnt/." "$tree/"
    umount "$work/mnt"
    losetup -d "$device"
    device=''
    rm -f "$work/stock.img"
else
    tar -x --numeric-owner --xattrs -f "$rootfs" -C "$tree"
    [ -d "$tree/boot/firmware" ] || fail "$rootfs has no /boot/firmware with the boot files"
    cp -a "$tree/boot/firmware/." "$files/"
    rm -rf "$tree/boot/firmware"
    mkdir "$tree/boot/firmware"
fi
[ -f "$files/config.txt" ] || fail "there is no config.txt among the boot files"
[ -d "$tree/etc" ] || fail "there is no /etc in the root file system"

# --- the root file system, the same for both slots --------------------------------------------------------------------

# Packages: their scripts run in the new root, which takes qemu-user-static where its processor is another one.
dpkg --root="$tree" --force-architecture --install "${debs[@]}" >"$work/dpkg.log" 2>&1 || {
    cat "$work/dpkg.log" >&2
    fail "the packages cannot be installed; for another architecture than this machine's install qemu-user-static, and a \
package that is missing goes before with one more --deb"
}
install -d -m 0755 "$tree/etc/fwupdated/conf.d" "$tree/etc/fwupdated/keys.d" "$tree/data" "$tree/etc/systemd/system"
for key in "${keys[@]}"; do install -m 0644 "$key" "$tree/etc/fwupdated/keys.d/"; done
for config in "${configs[@]}"; do install -m 0644 "$config" "$tree/etc/fwupdated/conf.d/60-$(basename "$config")"; done

settings() {
    cat <<'TEXT'
# Made by make-image.sh: the partitions of this image.
[slots.a]
rootfs = "PARTLABEL=rootfs-a"
TEXT
    [ "$boot" = uboot ] || echo 'boot = "PARTLABEL=boot-a"'
    cat <<'TEXT'

[slots.b]
rootfs = "PARTLABEL=rootfs-b"
TEXT
    [ "$boot" = uboot ] || echo 'boot = "PARTLABEL=boot-b"'
    echo
    echo '[bootloader]'
    echo "kind = \"$boot\""
    # The second mark of the confirmed slot, where the boot script looks for it when both copies of the environment are lost.
    [ "$boot" != uboot ] || echo 'mark_file = "/boot/firmware/fwupdated.slot"'
    cat <<'TEXT'

# What must outlive an update is on the partition that both slots share.
[hub]
connection_string_file = "/data/fwupdated/connection-string"

[state]
directory = "/data/fwupdated/state"
TEXT
}
settings >"$tree/etc/fwupdated/conf.d/50-image.toml"

# The root file system is named on the kernel's command line; what is here only tells how to mount it. A boot that lacks
# another one goes on (nofail), so that somebody can look; but a card that is slow is waited for.
fstab() {
    echo '/dev/root       /      ext4  defaults,noatime  0  0'
    echo 'PARTLABEL=data  /data  ext4  defaults,noatime,nofail,x-systemd.device-timeout=10min  0  2'
    if [ "$boot" = uboot ]; then
        echo 'PARTLABEL=boot  /boot/firmware  vfat  defaults,noatime,nofail  0  2'
    else
        echo 'PARTLABEL=bootconfig  /bootfs  vfat  defaults,noatime,nofail,umask=0077  0  2'
    fi
}
fstab >"$tree/etc/fstab"
[ "$boot" = uboot ] || install -d -m 0755 "$tree/bootfs"
# With nofail nothing else has the daemon wait for them: it would find neither its identity nor its state.
install -d -m 0755 "$tree/etc/systemd/system/fwupdated.service.d"
mounted=bootfs
[ "$boot" = tryboot ] || mounted='boot-firmware'
printf '[Unit]\nRequiresMountsFor=/data\nAfter=%s.mount\n' "$mounted" >"$tree/etc/systemd/system/fwupdated.service.d/50-image.conf"
# Raspberry Pi OS grows the root file system at its first boot, which would grow over the other slot.
rm -f "$tree/etc/init.d/resize2fs_once" "$tree"/etc/rc?.d/S??resize2fs_once
rm -f "$tree/etc/systemd/system/multi-user.target.wants/rpi-resize.service"

install -D -m 0755 "$here/grow-data" "$tree/usr/lib/fwupdated/grow-data"
install -D -m 0644 "$here/fwupdated-grow-data.service" "$tree/usr/lib/systemd/system/fwupdated-grow-data.service"
install -d -m 0755 "$tree/etc/systemd/system/multi-user.target.wants"
ln -sf /usr/lib/systemd/system/fwupdated-grow-data.service \
    "$tree/etc/systemd/system/multi-user.target.wants/fwupdated-grow-data.service"
# A kernel or service manager that hangs is restarted; the Raspberry Pi's watchdog knows 15 s at most.
install -d -m 0755 "$tree/etc/systemd/system.conf.d"
printf '[Manager]\nRuntimeWatchdogSec=14s\n' >"$tree/etc/systemd/system.conf.d/50-fwupdated-watchdog.conf"

# --- boot files -------------------------------------------------------------------------------------------------------

# The kernel's command line as the stock image has it, without what names the root file system or resizes it.
line=$(tr -d '\n' <"$files/cmdline.txt" 2>/dev/null | tr ' ' '\n' | grep -Ev '^(root=|rootfstype=|fsck\.repair=|init=.*(init_resize|firstboot)|resize$|quiet$|panic=|ro$|rw$|rootwait$|gpt$)' | tr '\n' ' ') || true
# With the first copy of the partition table spoiled, the kernel takes the second one; and nobody is there to be asked how
# the file system of `data` is to be repaired.
line="${line}gpt fsck.repair=yes "

if [ "$boot" = uboot ]; then
    if [ -z "$uboot" ]; then
        need apt-get apt
        (
            cd "$work"
            mkdir -p lists/partial cache/archives/partial
            # Of a machine of any architecture, without a change to its own lists.
            apt=(apt-get -qq -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache" -o APT::Architecture=arm64
                -o Dir::State::status=/dev/null -o APT::Sandbox::User=root)
            "${apt[@]}" update && "${apt[@]}" download u-boot-rpi:arm64
            dpkg-deb -x u-boot-rpi_*.deb u-boot
        ) || fail "Debian's package u-boot-rpi cannot be downloaded; give u-boot.bin with --u-boot"
        uboot=$work/u-boot/usr/lib/u-boot/rpi_arm64/u-boot.bin
    fi
    # U-Boot loads the kernel from the slot, so that an update brings its own. What is compressed, it cannot start here.
    kernel=''
    for name in kernel8.img kernel_2712.img; do
        if [ -z "$kernel" ] && [ -f "$files/$name" ]; then kernel=$files/$name; fi
    done
    if [ -n "$kernel" ]; then
        rm -f "$tree/boot/vmlinuz"
        if gzip -t "$kernel" 2>/dev/null; then gzip -dc "$kernel" >"$tree/boot/vmlinuz"; else cp "$kernel" "$tree/boot/vmlinuz"; fi
    fi
    [ -e "$tree/boot/vmlinuz" ] || fail "there is no 64-bit kernel: neither kernel8.img among the boot files nor /boot/vmlinuz"
    initrd=none
    if [ -f "$files/initramfs8" ]; then
        rm -f "$tree/boot/initrd.img"
        cp "$files/initramfs8" "$tree/boot/initrd.img"
    fi
    if [ -e "$tree/boot/initrd.img" ]; then initrd=/boot/initrd.img; fi
    cp "$uboot" "$files/u-boot.bin"
    # Our own environment, on partitions of its own, with whatever U-Boot this is: the two lines that differ from
    # packaging/uboot/boot.cmd are how it is read and written.
    {
        cat "$here/environment.cmd"
        sed -e 's/^    if saveenv; then$/    if run fwup_saveenv; then/' -e "s#^fwup_initrd=.*#fwup_initrd=$initrd#" \
            -e "s#^fwup_disk=0\$#fwup_disk=\${fwup_mmc}#" "$here/../uboot/boot.cmd"
    } >"$work/boot.cmd"
    # Expanded by U-Boot.
    # shellcheck disable=SC2016
    for changed in '    if run fwup_saveenv; then' "fwup_initrd=$initrd" 'fwup_disk=${fwup_mmc}' 'fwup_mark_part=boot' 'fwup_mark=/fwupdated.slot'; do
        grep -qxF -- "$changed" "$work/boot.cmd" || fail "packaging/uboot/boot.cmd has no longer the line that becomes: $changed"
    done
    mkimage -A arm64 -T script -n fwupdated -d "$work/boot.cmd" "$files/boot.scr" >/dev/null
    printf '%s\n' "$line" >"$files/cmdline.txt"
    {
        grep -Ev '^(kernel|initramfs|auto_initramfs)[ =]' "$files/config.txt" || true
        printf '\n[all]\n# fwupdated: U-Boot chooses the slot. An open serial line must not stop it: enable_uart gives it its clock.\n'
        printf 'arm_64bit=1\nenable_uart=1\nkernel=u-boot.bin\n'
    } >"$work/config.txt"
    mv "$work/config.txt" "$files/config.txt"
    cat >"$tree/etc/fw_env.config" <<'TEXT'
# Device, offset, size: one line a copy.
/dev/disk/by-partlabel/env-1  0x0  0x4000
/dev/disk/by-partlabel/env-2  0x0  0x4000
TEXT
    echo fwupdated_slot=a >"$work/env.txt"
    mkenvimage -r -s 0x4000 -o "$work/env.img" "$work/env.txt"
else
    # The same files for both slots: the firmware takes the command line of the partition that it boots.
    for slot in a b; do
        echo "${line}root=PARTLABEL=rootfs-$slot rootfstype=ext4 rootwait ro panic=10 fwupdated.slot=$slot" >"$files/cmdline-$slot.txt"
    done
    rm -f "$files/cmdline.txt"
    {
        printf '# fwupdated: the slot of this boot. Needs a bootloader of March 2025 or later.\n'
        printf '[boot_partition=2]\ncmdline=cmdline-a.txt\n[boot_partition=3]\ncmdline=cmdline-b.txt\n[all]\n\n'
        cat "$files/config.txt"
    } >"$work/config.txt"
    mv "$work/config.txt" "$files/config.txt"
    # As fwupdated writes it: one length for ever, so that a change is one sector.
    {
        printf '[all]\ntryboot_a_b=1\nboot_partition=2\n[tryboot]\nboot_partition=3\n'
        yes '' | head -c 480
    } | head -c 480 >"$work/autoboot.txt" || true
fi

# --- partitions -------------------------------------------------------------------------------------------------------

fat() { # fat FILE MIB LABEL FILES...
    truncate -s "$2M" "$1"
    mkfs.vfat -n "$3" "$1" >/dev/null
    mcopy -s -Q -i "$1" "${@:4}" ::/ || fail "the boot files do not fit into $2 MiB; see --boot-size"
}
ext4() { # ext4 FILE MIB LABEL FOLDER
    truncate -s "$2M" "$1"
    mkfs.ext4 -q -F -L "$3" -d "$4" "$1" || fail "$4 does not fit into $2 MiB; see --rootfs-size"
}

if [ -z "$rootfs_size" ]; then
    used=$(du -s --apparent-size -B 1M "$tree" | cut -f 1)
    rootfs_size=$((2 * used + 128))
fi
ext4 "$work/rootfs.img" "$rootfs_size" rootfs "$tree"
mkdir -p "$work/data/fwupdated/state"
chmod 0700 "$work/data/fwupdated" "$work/data/fwupdated/state"
ext4 "$work/data.img" 64 data "$work/data"
shopt -s dotglob
if [ "$boot" = uboot ]; then
    fat "$work/boot.img" "$boot_size" BOOT "$files"/*
    parts=("boot:$work/boot.img" "env-1:$work/env.img" "env-2:$work/env.img")
else
    fat "$work/bootconfig.img" 32 BOOTCONFIG "$work/autoboot.txt"
    fat "$work/boot.img" "$boot_size" BOOT "$files"/*
    parts=("bootconfig:$work/bootconfig.img" "boot-a:$work/boot.img" "boot-b:$work/boot.img")
fi
# The data partition comes last, so that it can grow.
parts+=("rootfs-a:$work/rootfs.img" "rootfs-b:$work/rootfs.img" "data:$work/data.img")

# In MiB, each on a border of 4, which suits the erase blocks of cards.
at=4
table='label: gpt'$'\n'
starts=()
for part in "${parts[@]}"; do
    mib=$((($(stat -c %s "${part#*:}") + 1048575) / 1048576))
    # A FAT partition is of the type that the Raspberry Pi's own tool gives it.
    case ${part%%:*} in boot*) type=EBD0A0A2-B9E5-4433-87C0-68B6B72699C7 ;; *) type=linux ;; esac
    table+="start=${at}MiB, size=${mib}MiB, type=$type, name=${part%%:*}"$'\n'
    starts+=("$at")
    at=$(((at + mib + 3) / 4 * 4))
done
truncate -s "$((at + 4))M" "$work/image"
sfdisk --quiet "$work/image" <<<"$table"
for number in "${!parts[@]}"; do
    dd if="${parts[$number]#*:}" of="$work/image" bs=1M seek="${starts[$number]}" conv=notrunc,sparse status=none
done
sync "$work/image"
mv "$work/image" "$output"
echo "make-image: $output: $((at + 4)) MiB, $boot, slots of $rootfs_size MiB; write it to a card with: dd if=$output of=/dev/... bs=4M conv=fsync"
