#!/usr/bin/env bash
# Installs what demo (`--demo`), the Debian packages (`--deb`; for other architectures `--cross`), their whole test
# (`--packages`), the virtual machine (`--vm`), the Raspberry Pi image in QEMU (`--rpi`) or tests (`--tests`, the default:
# all that `make test` needs) need on a bare Debian 12 or 13 with Rust: Debian packages, and tools from crates.io. Says what
# it installs; does nothing when all is there.
set -euo pipefail

what=${1:---tests}
packages=()
need() { # need COMMAND PACKAGE: COMMAND may also be an absolute path
    command -v "$1" >/dev/null || [ -e "$1" ] || packages+=("$2")
}
export PATH="$PATH:/usr/sbin:/sbin"
need cc gcc
need make make
need pkg-config pkg-config
need mkfs.ext4 e2fsprogs
need debugfs e2fsprogs
if [ "$what" != --demo ]; then
    need dpkg-shlibdeps dpkg-dev
    need strip binutils
fi
if [ "$what" = --cross ] || [ "$what" = --packages ] || [ "$what" = --rpi ]; then
    need aarch64-linux-gnu-gcc gcc-aarch64-linux-gnu
    need /usr/aarch64-linux-gnu/include/stdio.h libc6-dev-arm64-cross
    need arm-linux-gnueabihf-gcc gcc-arm-linux-gnueabihf
    need /usr/arm-linux-gnueabihf/include/stdio.h libc6-dev-armhf-cross
fi
if [ "$what" = --packages ] || [ "$what" = --tests ]; then
    need lintian lintian
    need mmdebstrap mmdebstrap
    need nsenter util-linux
    need setpriv util-linux
fi
if [ "$what" = --packages ]; then
    need piuparts piuparts
    need qemu-aarch64-static qemu-user-static
fi
if [ "$what" = --vm ] || [ "$what" = --rpi ] || [ "$what" = --tests ]; then
    need mmdebstrap mmdebstrap
    need mkimage u-boot-tools
    need sfdisk fdisk
    need mkfs.vfat dosfstools
    need mcopy mtools
    need depmod kmod
    need cpio cpio
    need ip iproute2
    need setpriv util-linux
fi
if [ "$what" = --rpi ]; then
    need qemu-system-aarch64 qemu-system-arm
    need qemu-aarch64-static qemu-user-static
    need arch-test arch-test
    need fdtput device-tree-compiler
fi
if [ "$what" = --vm ] || [ "$what" = --tests ]; then
    need qemu-system-x86_64 qemu-system-x86
    # tests/uboot/build.sh builds U-Boot.
    need bison bison
    need flex flex
    need swig swig
    need bc bc
    need bzip2 bzip2
    need iasl acpica-tools
    need /usr/include/openssl/evp.h libssl-dev
    need /usr/include/gnutls/gnutls.h libgnutls28-dev
    need python3 python3
    python3 -c 'import elftools' 2>/dev/null || packages+=(python3-pyelftools)
    python3 -c 'import setuptools' 2>/dev/null || packages+=(python3-setuptools)
    [ -n "$(find /usr/include -name Python.h -print -quit)" ] || packages+=(python3-dev)
fi
if [ "$what" = --tests ]; then
    need fw_printenv libubootenv-tool
    need mkenvimage u-boot-tools
    need minisign minisign
    need zstd zstd
    need xz xz-utils
    need bzip2 bzip2
    need openssl openssl
    need losetup mount
    need strace strace
    need mkfs.vfat dosfstools
    need sfdisk fdisk
    need img2simg android-sdk-libsparse-utils
    need mcopy mtools
    need qemu-system-aarch64 qemu-system-arm
    need dtc device-tree-compiler
    need tar tar
    need dbus-daemon dbus
    need systemd-analyze systemd
    need busctl systemd
    need python3 python3
    python3 -c 'import ensurepip, venv' 2>/dev/null || packages+=(python3-venv)
    need node nodejs
    need npm npm
    need git git
    need curl curl
    need xxd xxd
    need unshare util-linux
    need ip iproute2
    need mke2fs e2fsprogs
    need jq jq
    need chromium chromium
    need shellcheck shellcheck
fi

command -v cargo >/dev/null || {
    echo "setup: cargo is missing; install Rust 1.95 or newer from https://rustup.rs" >&2
    exit 1
}

if [ ${#packages[@]} -gt 0 ]; then
    sudo=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || {
            echo "setup: these Debian packages are missing and neither root nor sudo is at hand: ${packages[*]}" >&2
            exit 1
        }
        sudo=(sudo)
    fi
    echo "setup: installing Debian packages: ${packages[*]}"
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -qq
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi

if [ "$what" = --tests ] && ! cargo deny --version >/dev/null 2>&1; then
    echo "setup: installing cargo-deny from crates.io (checks licences and sources of dependencies)"
    cargo install --locked --quiet cargo-deny
fi
if [ "$what" != --demo ] && ! cargo deb --version >/dev/null 2>&1; then
    echo "setup: installing cargo-deb from crates.io (makes the Debian package)"
    cargo install --locked --quiet cargo-deb
fi
