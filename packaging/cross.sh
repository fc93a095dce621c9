#!/usr/bin/env bash
# Runs cargo for another architecture: `packaging/cross.sh arm64|armhf COMMAND...`; `... triple` prints Rust's name of it.
#
# With a toolchain that has the target's standard library (`rustup target add`) only the linker is set. Without it, one is
# put together out of Debian's packages: `rustc-web` and its standard library for each architecture are of one version and
# work from any folder, here target/cross; nothing is installed. The C compilers are Debian's gcc-aarch64-linux-gnu and
# gcc-arm-linux-gnueabihf (tests/setup.sh --cross). armhf means ARMv7 here: Raspberry Pi 2 and later.
set -euo pipefail

fail() {
    echo "cross: $*" >&2
    exit 1
}
architecture=${1:?usage: cross.sh arm64|armhf COMMAND...}
shift
case $architecture in
arm64) triple=aarch64-unknown-linux-gnu gcc=aarch64-linux-gnu-gcc ;;
armhf) triple=armv7-unknown-linux-gnueabihf gcc=arm-linux-gnueabihf-gcc ;;
*) fail "$architecture is not arm64 or armhf" ;;
esac
if [ "${1:-}" = triple ]; then
    echo "$triple"
    exit
fi
command -v "$gcc" >/dev/null || fail "$gcc is missing; tests/setup.sh --cross installs it"
variable=${triple^^}
export "CARGO_TARGET_${variable//-/_}_LINKER=$gcc"

if [ -d "$(rustc --print sysroot)/lib/rustlib/$triple/lib" ]; then
    exec "$@"
fi

folder=$(cd "$(dirname "$0")/.." && pwd)/target/cross
mkdir -p "$folder"
exec 9>"$folder/lock"
flock 9

# fetch INTO APT_OPTION... -- PACKAGE...: unpacks packages, whose digests apt checks.
fetch() {
    local into=$1 options=()
    shift
    while [ "$1" != -- ]; do
        options+=("$1")
        shift
    done
    shift
    rm -rf "$folder/download"
    mkdir -p "$folder/download"
    (cd "$folder/download" && apt-get -qq -o APT::Sandbox::User=root "${options[@]}" download "$@")
    for package in "$folder/download"/*.deb; do dpkg-deb -x "$package" "$into"; done
}

# The compiler, for this machine.
if [ ! -e "$folder/rust.version" ]; then
    echo "cross: Rust of Debian (fetches some 150 MB)" >&2
    depends() { apt-cache depends "$1" | awk '$1 == "Depends:" {print $2}'; }
    names=(rustc-web libstd-rust-web-dev)
    names+=("$(depends libstd-rust-web-dev | grep '^libstd-rust-web-[0-9]')") ||
        fail "apt knows no rustc-web; it is in Debian 12 (security) and 13. Was apt-get update run?"
    names+=("$(depends "${names[2]}" | grep '^libllvm')")
    rm -rf "$folder/rust"
    fetch "$folder/rust" -- "${names[@]}"
    apt-cache show --no-all-versions rustc-web | sed -n 's/^Version: //p' >"$folder/rust.version"
fi
version=$(cat "$folder/rust.version")

# The standard library of the target, of the same upstream version, from the first suite that has it. With an apt of its
# own, for this machine's knows no other architecture.
if [ ! -e "$folder/rust/usr/lib/rustlib/$triple" ]; then
    echo "cross: Rust's standard library for $architecture (fetches some 40 MB)" >&2
    apt=$folder/apt-$architecture
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
    keys=/usr/share/keyrings/debian-archive-keyring.gpg
    {
        echo "deb [signed-by=$keys] http://deb.debian.org/debian-security bookworm-security main"
        echo "deb [signed-by=$keys] http://deb.debian.org/debian trixie main"
        echo "deb [signed-by=$keys] http://deb.debian.org/debian-security trixie-security main"
    } >"$apt/sources.list"
    touch "$apt/status"
    options=(-o "APT::Architecture=$architecture" -o "APT::Architectures=$architecture" -o "Dir::Etc::SourceList=$apt/sources.list"
        -o Dir::Etc::SourceParts=/dev/null -o "Dir::State::Lists=$apt/lists" -o "Dir::State::Status=$apt/status"
        -o "Dir::Cache=$apt/cache")
    # A suite whose index of this architecture is broken must not hide the others.
    apt-get -qq -o APT::Sandbox::User=root "${options[@]}" update >"$apt/update.log" 2>&1 || true
    found=$(apt-cache "${options[@]}" madison libstd-rust-web-dev | awk '{print $3}' | grep "^${version%%+*}" | head -n 1) ||
        fail "no libstd-rust-web-dev ${version%%+*} for $architecture in Debian; the log is $apt/update.log"
    fetch "$folder/rust" "${options[@]}" -- "libstd-rust-web-dev=$found"
fi

# The compiler finds its own libraries, and nothing else does.
cat >"$folder/rustc" <<END
#!/bin/sh
LD_LIBRARY_PATH="$folder/rust/usr/lib/$(gcc -print-multiarch)" exec "$folder/rust/usr/bin/rustc" "\$@"
END
chmod 755 "$folder/rustc"
export RUSTC=$folder/rustc
exec 9>&-
exec "$@"
