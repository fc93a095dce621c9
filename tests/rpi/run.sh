#!/usr/bin/env bash
# Starts an image of packaging/rpi/make-image.sh in QEMU's Raspberry Pi 3: `tests/rpi/run.sh`. What is done there:
# tests/rpi_board.rs. Builds the arm64 package and a root file system first. Without root or a tool it says SKIPPED and why;
# RPI_TEST=required makes that a failure.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$PATH:/usr/sbin:/sbin"

skip() {
    echo "SKIPPED: the Raspberry Pi image in QEMU: $*"
    [ "${RPI_TEST:-optional}" != required ] || exit 1
    exit 0
}
[ "$(id -u)" -eq 0 ] || skip "it needs root (file systems, a network namespace of its own)"
for tool in qemu-system-aarch64 qemu-aarch64-static mmdebstrap arch-test fdtput mkimage mkfs.ext4 debugfs sfdisk mkfs.vfat mcopy depmod cpio setpriv; do
    command -v "$tool" >/dev/null || skip "$tool is missing; tests/setup.sh --rpi installs it"
done
unshare --net true 2>/dev/null || skip "no network namespace can be made here"
code=0
tests/rpi/build.sh || code=$?
[ "$code" -ne 75 ] || skip "see above"
[ "$code" -eq 0 ] || exit "$code"
packaging/build-deb.sh arm64
cargo test --quiet --workspace --locked --no-run --test rpi_board
# A network namespace is what confines guest and servers: QEMU's user network would let the guest out.
deb=$(ls "$PWD"/target/debian/fwupdated_*_arm64.deb)
exec unshare --net sh -c 'ip link set lo up && exec cargo test --quiet --workspace --locked --offline --test rpi_board -- "$@"' \
    rpi_board "$PWD/target/rpi" "$deb"
