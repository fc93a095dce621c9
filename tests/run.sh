#!/usr/bin/env bash
# Every check of the project, in the order in which they fail fastest. `--lint`: only those that run no test.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/sbin:/sbin"

step() { printf '\n== %s\n' "$*"; }

step "cargo fmt --check"
cargo fmt --all --check

step "shellcheck"
git ls-files -z '*.sh' .ci/run packaging/practice/practice-board 'packaging/policy.d/*' | xargs -0 shellcheck

step "cargo clippy --all-targets -- -D warnings"
cargo clippy --workspace --all-targets --locked -- -D warnings

step "cargo doc"
RUSTDOCFLAGS="-D warnings" cargo doc --quiet --workspace --no-deps --locked

step "cargo deny check"
if ! cargo deny check bans licenses sources; then
    exit 1
fi
if cargo deny check advisories >target/advisories.log 2>&1; then
    echo "advisories ok"
elif grep -qE 'failed to (fetch|clone)|unable to fetch|An IO error occurred|error decoding|connect' target/advisories.log; then
    echo "SKIPPED: the advisories check, because the advisory database cannot be reached from this machine:"
    tail -n 5 target/advisories.log
else
    cat target/advisories.log
    exit 1
fi

[ "${1:-}" = --lint ] && exit 0

# Azure's SDKs come from the package indexes of Python and Node.js. SDK_INTEROP=optional lets their tests be skipped
# without them.
export SDK_INTEROP="${SDK_INTEROP:-required}"
# The emulator's page is shown in Chromium. PAGE_TEST=optional lets that be skipped without it.
export PAGE_TEST="${PAGE_TEST:-required}"

step "U-Boot's sandbox build, for the boot script"
if tests/uboot/sandbox.sh; then
    export UBOOT_SANDBOX="${UBOOT_SANDBOX:-required}"
elif [ $? -eq 75 ]; then
    echo "SKIPPED: the boot script in a real U-Boot, because the source of U-Boot cannot be had here (see above)"
else
    exit 1
fi

step "promtool, for the metrics"
if tests/promtool.sh; then
    export PROMTOOL="${PROMTOOL:-required}"
elif [ $? -eq 75 ]; then
    echo "SKIPPED: the metrics by Prometheus' own checker, because it cannot be had here (see above)"
else
    exit 1
fi

step "make demo"
if ! make --no-print-directory demo >target/demo.log 2>&1; then
    cat target/demo.log
    exit 1
fi
grep -E '^[0-9]\.|=>|^The demo took' target/demo.log

# Without root or mmdebstrap it says that it is skipped; PACKAGE_TEST=required makes that a failure.
step "Debian packages"
tests/packaging/run.sh

# Without root, QEMU or Debian's packages it says that it is skipped; VM_TEST=required makes that a failure.
step "virtual machine, short form"
tests/vm/run.sh

step "cargo test"
cargo test --workspace --locked --no-fail-fast
