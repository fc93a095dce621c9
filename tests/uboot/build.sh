#!/usr/bin/env bash
# Builds U-Boot from the source package of Debian, for tests: `tests/uboot/build.sh TARGET OUTPUT [CONFIG]...`
#
# TARGET is the name of one of U-Boot's defconfigs (`sandbox`: a program of this machine; `qemu-x86_64`: the firmware of
# a virtual machine). OUTPUT is a folder that gets `u-boot`, `u-boot.rom` or `u-boot.bin` where the target has them,
# `u-boot-initial-env`, `config` and `mkimage`. CONFIG are lines for the configuration: `CMD_SETEXPR=y`,
# `ENV_SIZE=0x4000`, `BOOTCOMMAND="run x"`; `-ENV_IS_NOWHERE` takes an option away. An option that U-Boot does not
# take over ends the build: a misspelt one would make a test say less than it seems to.
#
# Nothing is built again as long as OUTPUT comes from the same source, configuration and script. The source is
# verified by apt: its digest stands in the signed index. Needs bison, flex, gcc, make, openssl's and Python's headers,
# swig and pyelftools, and iasl for x86: tests/setup.sh installs them. Exit status 75: the source cannot be had here.
set -euo pipefail

readonly SUITE=trixie VERSION=2025.01

[ $# -ge 2 ] || {
    echo "usage: $0 TARGET OUTPUT [CONFIG]..." >&2
    exit 64
}
here=$(cd "$(dirname "$0")" && pwd)
target=$1 output=$2
shift 2
cache=$here/../../target/uboot
mkdir -p "$cache" "$output"
output=$(cd "$output" && pwd)

# Two tests may ask at once; the second finds what the first made.
exec 9>"$cache/lock"
flock 9

inputs=$({
    cat "$0"
    printf '%s\n' "$target" "$@"
    gcc -dumpfullversion
} | sha256sum)
[ "$(cat "$output/inputs" 2>/dev/null)" != "$inputs" ] || exit 0
rm -f "$output/inputs"

# The source, from the mirror that this machine's apt has for Debian, with folders of its own: the machine's apt stays
# as it is.
source=$cache/u-boot_$VERSION.orig.tar.bz2
if [ ! -e "$source" ]; then
    # shellcheck disable=SC2016 # apt's own placeholder
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Origin: Debian' 'Created-By: Packages' 2>/dev/null |
        grep -v security | head -n 1) || true
    [ -n "$mirror" ] || {
        echo "$0: no Debian mirror in apt's sources (apt-get update was never run?)" >&2
        exit 75
    }
    apt=$cache/apt
    mkdir -p "$apt/sources" "$apt/lists/partial" "$apt/cache"
    echo "deb-src $mirror $SUITE main" >"$apt/sources/debian.list"
    options=(-qq -o "Dir::Etc::SourceList=/dev/null" -o "Dir::Etc::SourceParts=$apt/sources"
        -o "Dir::State::Lists=$apt/lists" -o "Dir::Cache=$apt/cache" -o "APT::Sandbox::User=root")
    (
        cd "$cache"
        apt-get "${options[@]}" update
        # Upstream's archive alone: Debian's patches are for its own packages.
        apt-get "${options[@]}" source --download-only --tar-only u-boot
    ) >&2 || true
    rm -rf "$apt"
    [ -e "$source" ] || {
        echo "$0: the source of U-Boot $VERSION ($SUITE) cannot be fetched from $mirror" >&2
        exit 75
    }
fi

work=$(mktemp -d "$cache/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
tar -xf "$source" -C "$work" --strip-components=1
log=$output/build.log
{
    cd "$work"
    # Without a window: no SDL.
    export NO_SDL=1
    make -s "${target}_defconfig"
    for line; do
        case $line in
            -*) echo "# CONFIG_${line#-} is not set" ;;
            *) echo "CONFIG_$line" ;;
        esac
    done >.wanted
    # The last value of an option wins.
    cat .wanted >>.config
    make -s olddefconfig
} >"$log" 2>&1 || {
    cat "$log" >&2
    exit 1
}
while read -r line; do
    case $line in
        '#'*) name=${line#\# } && ! grep -q "^${name%% *}=" .config ;;
        *) grep -qxF "$line" .config ;;
    esac || {
        echo "$0: U-Boot does not take over: $line ($(grep -F "${line%%=*}" .config || echo absent))" >&2
        exit 1
    }
done <.wanted
if ! { make -s -j"$(nproc)" && make -s u-boot-initial-env; } >>"$log" 2>&1; then
    tail -n 50 "$log" >&2
    exit 1
fi
for file in u-boot u-boot.rom u-boot.bin u-boot-initial-env; do
    [ ! -e "$file" ] || cp "$file" "$output/"
done
cp .config "$output/config"
cp tools/mkimage "$output/"
echo "$inputs" >"$output/inputs"
