#!/usr/bin/env bash
# Tests the Debian packages: `tests/packaging/run.sh [--whole]`. Without root or mmdebstrap it says SKIPPED and why;
# PACKAGE_TEST=required makes that a failure.
#
#   always    lintian; the packages' life in clean roots of Debian 12 and 13; in a container with systemd, the system bus
#             and polkit: who may what, and an upgrade in the middle of an update. With development builds, which take no
#             time here.
#   --whole   the same with release builds for all architectures (make deb ARCH=all), piuparts, and an update by the arm64
#             package, run by QEMU.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$PATH:/usr/sbin:/sbin"

skip() {
    echo "SKIPPED: the packages in clean roots: $*"
    [ "${PACKAGE_TEST:-optional}" != required ] || exit 1
    exit 0
}
[ "$(id -u)" -eq 0 ] || skip "they need root (root file systems, namespaces)"
for tool in mmdebstrap lintian nsenter setpriv; do
    command -v "$tool" >/dev/null || skip "$tool is missing; tests/setup.sh installs it"
done
cargo deb --version >/dev/null 2>&1 || skip "cargo-deb is missing; tests/setup.sh installs it"

# What is built on Debian 13 may need its C library.
suites="bookworm trixie"
if grep -q '^VERSION_CODENAME=trixie' /etc/os-release; then
    echo "SKIPPED: the packages in Debian 12: they were built here, on Debian 13"
    suites=trixie
fi
own=$(dpkg --print-architecture)
place=target/packaging
debs=$place/debs
rm -rf "$debs"
mkdir -p "$debs/old" "$place/roots"
profile=(--profile dev --strip --fast)
if [ "${1:-}" = --whole ]; then
    packaging/build-deb.sh all
    profile=()
    # Out of cargo-deb's way, which removes a package from there when it makes another version of it.
    rm -rf "$place/built"
    mkdir "$place/built"
    cp target/debian/*.deb "$place/built/"
    cp "$place"/built/*_"$own".deb "$debs/"
    lintian_of=("$place"/built/*.deb)
else
    cargo build --quiet --locked --workspace --bins --example package-files
    target/debug/examples/package-files target/package-files
    for package in fwupdated "fwupdated --variant tools" iothub-emulator; do
        # shellcheck disable=SC2086 # a package and its options
        cargo deb --quiet --locked --no-build "${profile[@]}" --output "$debs/" --package $package
    done
    lintian_of=("$debs"/*.deb)
fi
# Versions that come before and after any that there is.
older() { cargo deb --quiet --locked --no-build "${profile[@]}" --output "$1" --package fwupdated --deb-version "$2"; }
older "$debs/old/" 0.0.1-1

echo "packages: lintian"
lintian --allow-root --fail-on error,warning --tag-display-limit 0 "${lintian_of[@]}"
stat --format='%s %n' "${lintian_of[@]}" | awk '{printf "packages: %5.1f MB %s\n", $1 / 1e6, $2}'

clean_root() { # clean_root SUITE ARCHITECTURE: the archive is $place/roots/SUITE-ARCHITECTURE.tar
    local code=0
    tests/packaging/root.sh "$1" "$2" "$place/roots/$1-$2.tar" || code=$?
    [ "$code" -ne 75 ] || skip "Debian's packages cannot be had here"
    [ "$code" -eq 0 ] || exit "$code"
}
for suite in $suites; do
    clean_root "$suite" "$own"
    tests/packaging/cycle.sh "$place/roots/$suite-$own.tar" "$debs"
done

root=$(mktemp -d "$place/container.XXXXXX")
trap 'rm -rf "$root"' EXIT
containers=${suites##* }
[ "${1:-}" != --whole ] || containers=$suites
for suite in $containers; do
    echo "packages: $suite in a container"
    rm -rf "$root"
    mkdir "$root"
    tar -C "$root" -xf "$place/roots/$suite-$own.tar"
    cp "$debs"/old/*.deb "$root/old.deb"
    chroot "$root" dpkg --install /old.deb >"$place/container.log" 2>&1
    mkdir -p "$root/var/log/journal"
    echo 0123456789abcdef0123456789abcdef >"$root/etc/machine-id"
    echo fwupdated-test >"$root/etc/hostname"
    echo 127.0.0.1 localhost fwupdated-test >"$root/etc/hosts"
    systemctl --root="$root" --quiet mask console-getty.service getty.target systemd-networkd.service \
        systemd-resolved.service systemd-timesyncd.service
    cargo test --quiet --workspace --locked --test packages -- container "$root" "$(ls "$debs"/fwupdated_*.deb)"
done
rm -rf "$root"

[ "${1:-}" = --whole ] || exit 0

echo "packages: piuparts"
for suite in $suites; do
    gzip -c "$place/roots/$suite-$own.tar" >"$place/roots/$suite-$own.tar.gz"
    for deb in "$debs"/*.deb; do
        log=$place/piuparts-$suite-$(basename "$deb" .deb).log
        piuparts --distribution "$suite" --basetgz "$place/roots/$suite-$own.tar.gz" --keep-sources-list --no-eatmydata \
            --skip-minimize --warn-on-others "$deb" >"$log" 2>&1 || {
            tail -n 40 "$log" >&2
            exit 1
        }
        echo "packages: piuparts: $suite: $(basename "$deb"): passed"
    done
done

clean_root bookworm arm64
mkdir "$root"
tar -C "$root" -xf "$place/roots/bookworm-arm64.tar"
dpkg-deb -x "$(ls "$place"/built/fwupdated_*_arm64.deb)" "$root"
cargo test --quiet --workspace --locked --test packages -- foreign "$(command -v qemu-aarch64-static)" "$PWD/$root"
