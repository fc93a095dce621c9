#!/usr/bin/env bash
# Builds the Debian packages into target/debian: `packaging/build-deb.sh [amd64|arm64|armhf|all]`, by default for this
# machine's architecture. `fwupdated` (a device), `fwupdated-tools` (fwupdatectl alone) and `iothub-emulator`.
#
# They run on Debian 12 and later: the newest symbol that they may need of the C library is that of Debian 12, and what
# was built against a newer one is refused here. So build on Debian 12, or in a container of it.
set -euo pipefail
cd "$(dirname "$0")/.."

GLIBC=$(sed -n 's/^depends = "libc6 (>= \([0-9.]*\)).*/\1/p' Cargo.toml | head -n 1)
own=$(dpkg --print-architecture)
case ${1:-$own} in
all) architectures=(amd64 arm64 armhf) ;;
amd64 | arm64 | armhf) architectures=("${1:-$own}") ;;
*)
    echo "usage: $0 [amd64|arm64|armhf|all]" >&2
    exit 64
    ;;
esac

# With the time of the last commit, so that the same source gives the same packages.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH
cargo build --quiet --locked --workspace --example package-files
target/debug/examples/package-files target/package-files

# The newest version of the C library whose symbols a program asks for.
needs() {
    readelf --version-info --wide "$1" | grep -o 'GLIBC_[0-9.]*' | sed 's/GLIBC_//' | sort -Vu | tail -n 1
}

for architecture in "${architectures[@]}"; do
    folder=target/release options=()
    rm -f target/debian/*_"$architecture".deb
    build=(cargo build --release --locked --package fwupdated --package iothub-emulator --bins)
    if [ "$architecture" = "$own" ]; then
        "${build[@]}"
    else
        triple=$(packaging/cross.sh "$architecture" triple)
        folder=target/$triple/release options=(--target "$triple")
        packaging/cross.sh "$architecture" "${build[@]}" --target "$triple"
    fi
    for program in fwupdated fwupdatectl iothub-emulator; do
        needed=$(needs "$folder/$program")
        if [ "$(printf '%s\n' "$needed" "$GLIBC" | sort -V | tail -n 1)" != "$GLIBC" ]; then
            echo "$0: $program was linked with the C library $needed; the packages are for Debian 12 ($GLIBC)." \
                "Build on Debian 12, or in a container of it" >&2
            exit 1
        fi
    done
    for package in fwupdated "fwupdated --variant tools" iothub-emulator; do
        # shellcheck disable=SC2086 # a package and its options
        cargo deb --quiet --locked --no-build "${options[@]}" --output target/debian/ --package $package
    done
done
ls -l target/debian/*.deb
