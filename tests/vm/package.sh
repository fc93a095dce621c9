#!/usr/bin/env bash
# The Debian package in a clean root, without systemd running: `tests/vm/package.sh FWUPDATED_DEB`, after build.sh.
# Install, upgrade, the operator's choices kept, removal, purge.
set -euo pipefail

deb=$(realpath "$1")
cd "$(dirname "$0")/../../target/vm"
root=$(mktemp -d "$PWD/package.XXXXXX")
trap 'rm -rf "$root"' EXIT
tar -C "$root" -xf debian.tar
cp "$deb" "$root/fwupdated.deb"

fail() {
    echo "package: $*" >&2
    exit 1
}
in_root() { chroot "$root" "$@" >"$root/log" 2>&1 || { cat "$root/log" >&2; fail "$* failed"; }; }
there() { [ -e "$root$1" ] || [ -L "$root$1" ] || fail "$1 is missing after $what"; }
gone() { if [ -e "$root$1" ] || [ -L "$root$1" ]; then fail "$1 is still there after $what"; fi; }

wants=/etc/systemd/system/multi-user.target.wants/fwupdated.service
timer=/etc/systemd/system/sysinit.target.wants/fwupdated-trial.timer

what=installation
in_root dpkg --install /fwupdated.deb
there "$wants"
there "$timer"
for folder in conf.d keys.d revoked.d policy.d health.d; do there "/etc/fwupdated/$folder"; done
grep -q '^fwupdated:' "$root/etc/group" || fail "no group"
# Both programs run in there: their libraries are what the package depends on.
in_root fwupdated --version
in_root fwupdatectl --version
in_root fwupdatectl config check

what=upgrade
echo '# mine' >>"$root/etc/fwupdated/fwupdated.toml"
mkdir -p "$root/var/lib/fwupdated"
touch "$root/var/lib/fwupdated/state.json"
in_root systemctl disable fwupdated-trial.timer
in_root dpkg --install --force-confold /fwupdated.deb
grep -q '# mine' "$root/etc/fwupdated/fwupdated.toml" || fail "the operator's configuration was overwritten"
there "$wants"
gone "$timer"
there /var/lib/fwupdated/state.json

what=removal
in_root dpkg --remove fwupdated
gone /usr/bin/fwupdated
gone /usr/lib/systemd/system.conf.d/10-fwupdated.conf
there /var/lib/fwupdated/state.json
there /etc/fwupdated/fwupdated.toml

what=purge
in_root dpkg --purge fwupdated
gone /var/lib/fwupdated
gone /etc/fwupdated/fwupdated.toml
gone "$wants"
echo "package: installed, upgraded, removed and purged"
