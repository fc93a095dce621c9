#!/usr/bin/env bash
# Makes a clean Debian root file system as a tar archive, once: `root.sh SUITE ARCHITECTURE ARCHIVE`. It has apt, systemd and
# what our packages depend on or suggest; of a foreign architecture only unpacked, since its programs may not run here. Exit
# status 75: Debian's packages cannot be had.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin" LC_ALL=C

suite=$1 architecture=$2 archive=$3
packages=ca-certificates,libubootenv-tool,libgcc-s1
options=(--variant=extract)
if [ "$architecture" = "$(dpkg --print-architecture)" ]; then
    packages+=,systemd-sysv,dbus,polkitd
    options=(--variant=apt)
fi
inputs=$(sha256sum <"$0")
[ "$(cat "$archive.inputs" 2>/dev/null)" = "$inputs" ] && [ -e "$archive" ] && exit
echo "packages: a clean $suite for $architecture (fetches some 60 MB)"
rm -f "$archive"
mmdebstrap --quiet "${options[@]}" --architectures="$architecture" --include="$packages" \
    --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/zoneinfo/*' "$suite" "$archive" || exit 75
echo "$inputs" >"$archive.inputs"
