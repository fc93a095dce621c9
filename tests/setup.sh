#!/usr/bin/env bash
# Installs what demo (`--demo`) or tests (`--tests`, the default) need on a bare Debian 12 or 13 with Rust: Debian
# packages, and for the tests also cargo-deny from crates.io. Says what it installs; does nothing when all is there.
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
if [ "$what" = --tests ]; then
    need fw_printenv libubootenv-tool
    need mkenvimage u-boot-tools
    # tests/uboot/build.sh builds U-Boot.
    need bison bison
    need sfdisk fdisk
    need flex flex
    need swig swig
    need bc bc
    need iasl acpica-tools
    need /usr/include/openssl/evp.h libssl-dev
    need /usr/include/gnutls/gnutls.h libgnutls28-dev
    need minisign minisign
    need zstd zstd
    need xz xz-utils
    need bzip2 bzip2
    need openssl openssl
    need losetup mount
    need strace strace
    need dbus-daemon dbus
    need systemd-analyze systemd
    need python3 python3
    python3 -c 'import elftools' 2>/dev/null || packages+=(python3-pyelftools)
    python3 -c 'import setuptools' 2>/dev/null || packages+=(python3-setuptools)
    [ -n "$(find /usr/include -name Python.h -print -quit)" ] || packages+=(python3-dev)
    python3 -c 'import ensurepip, venv' 2>/dev/null || packages+=(python3-venv)
    need node nodejs
    need npm npm
    need git git
    need curl curl
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
