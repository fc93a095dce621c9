# shellcheck shell=bash
# What the emulated machines take of a Debian kernel: `. kernel.sh`, in a folder where `linux` and `busybox` are the unpacked
# packages. tests/vm/build.sh and tests/rpi/build.sh do.

# kernel_modules FOLDER MODULE...: these and what they need, into FOLDER/modules. $version is the kernel's.
kernel_modules() {
    local folder=$1 modules
    shift
    if [ ! -d find ]; then
        # Merged /usr or not: the modules lie in one of the two.
        modules=$(find linux -path '*lib/modules/*' -prune -type d)
        version=${modules##*/}
        mkdir -p find/lib/modules
        cp -a "$modules" find/lib/modules/
        depmod -b find "$version"
    fi
    mkdir -p "$folder/modules/$version"
    for module; do
        modprobe -d find -S "$version" --show-depends "$module" | awk '$1 == "insmod" {print $2}'
    done | sort -u | while read -r file; do
        install -D -m 644 "$file" "$folder/modules/$version/${file#*"$version"/}"
    done
    cp find/lib/modules/"$version"/modules.{order,builtin,builtin.modinfo} "$folder/modules/$version/"
    depmod -b "${folder%/lib}" "$version"
}

# ram_disk FILE INIT MODULE...: an initial RAM disk with busybox, the script INIT as its first process, and in /modules the
# names of the modules, for INIT to load.
ram_disk() {
    local file=$1 init=$2
    shift 2
    mkdir -p ram/{bin,proc,sys,dev,root}
    kernel_modules ram/lib "$@"
    echo "$@" >ram/modules
    cp busybox/bin/busybox ram/bin/
    for applet in sh mount umount modprobe cat grep sleep switch_root; do ln -s busybox "ram/bin/$applet"; done
    ln -s bin ram/sbin
    install -m 755 "$init" ram/init
    (cd ram && find . | cpio --quiet -o -H newc -R 0:0 | gzip -1) >"$file"
}
