#!/usr/bin/env bash
# Runs the virtual machine of tests/vm.rs: `tests/vm/run.sh [--whole]`. Builds the programs, the Debian package and the
# machine's parts first; what is there already is used again. Without root, without QEMU, or where Debian's packages
# cannot be had, it says SKIPPED and why; VM_TEST=required makes that a failure.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$PATH:/usr/sbin:/sbin"

skip() {
    echo "SKIPPED: the virtual machine: $*"
    [ "${VM_TEST:-optional}" != required ] || exit 1
    exit 0
}
[ "$(id -u)" -eq 0 ] || skip "it needs root (file systems, a network namespace of its own)"
[ "$(uname -m)" = x86_64 ] || skip "its machine is x86-64, to run the programs that were built here"
for tool in qemu-system-x86_64 mmdebstrap mkimage mke2fs debugfs sfdisk mkfs.vfat mcopy depmod cpio ip setpriv; do
    command -v "$tool" >/dev/null || skip "$tool is missing; tests/setup.sh installs it"
done
cargo deb --version >/dev/null 2>&1 || skip "cargo-deb is missing; tests/setup.sh installs it"
# A network namespace is what confines guest and servers: QEMU's user network would let the guest out.
unshare --net true 2>/dev/null || skip "no network namespace can be made here"

# Development builds, stripped: a release build would take longer than the machine runs. A little optimised, since
# everything is ten times slower in there; other crates are optimised already, and are not built again. With the whole
# workspace, as tests/run.sh has built them; a test brings the programs with it.
export CARGO_PROFILE_DEV_OPT_LEVEL=1 CARGO_PROFILE_TEST_OPT_LEVEL=1
cargo test --quiet --workspace --locked --no-run --test vm
mkdir -p target/vm
cargo build --quiet --workspace --locked --example package-files
target/debug/examples/package-files target/package-files
cargo deb --quiet --locked --no-build --profile dev --strip --output target/vm/fwupdated.deb
code=0
tests/vm/build.sh target/vm/fwupdated.deb || code=$?
case $code in
0) ;;
75) skip "Debian's packages or the source of U-Boot cannot be had here" ;;
*) exit "$code" ;;
esac
exec unshare --net sh -c 'ip link set lo up && exec cargo test --quiet --workspace --locked --offline --test vm -- "$@"' vm "$@"
