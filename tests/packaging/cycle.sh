#!/usr/bin/env bash
# The packages' life in a clean root file system, without systemd running, as in a chroot that makes an image:
# `cycle.sh ARCHIVE FOLDER`. FOLDER has the packages, and in `old/` an older fwupdated. Installation, upgrade, downgrade,
# reinstallation, removal, purge; the operator's choices are kept, and a purge leaves nothing but what is the operator's.
set -euo pipefail

archive=$(realpath "$1") folder=$(realpath "$2")
root=$(mktemp -d "$folder/root.XXXXXX")
trap 'rm -rf "$root"' EXIT
tar -C "$root" -xf "$archive"
mkdir "$root/packages"
cp "$folder"/*.deb "$root/packages/"
cp "$folder"/old/fwupdated_*.deb "$root/packages/old.deb"

fail() {
    echo "packages: $(basename "$archive" .tar): $*" >&2
    exit 1
}
in_root() { DEBIAN_FRONTEND=noninteractive chroot "$root" "$@" >"$root/log" 2>&1 || { cat "$root/log" >&2; fail "$* failed"; }; }
apt() { in_root apt-get -qq -y -o Dpkg::Options::=--force-confold "$@"; }
there() { [ -e "$root$1" ] || [ -L "$root$1" ] || fail "$1 is missing after $what"; }
gone() { if [ -e "$root$1" ] || [ -L "$root$1" ]; then fail "$1 is still there after $what"; fi; }
# shellcheck disable=SC2016 # dpkg's own placeholder
version() { chroot "$root" dpkg-query --show --showformat '${Version}' "$1"; }
# Every file and folder, but for those of dpkg and apt themselves, logs and the user database.
files() {
    (cd "$root" && find . -xdev \( -path ./packages -o -path ./proc -o -path ./sys -o -path ./dev -o -path ./run \
        -o -path ./tmp -o -path ./var/lib/dpkg -o -path ./var/lib/apt -o -path ./var/log -o -path ./var/cache \
        -o -path ./etc/group -o -path ./etc/group- -o -path ./etc/gshadow -o -path ./etc/gshadow- \
        -o -path ./etc/passwd- -o -path ./etc/shadow- -o -path ./etc/.pwd.lock -o -path ./log \
        -o -path ./var/lib/systemd/catalog/database \) -prune -o -print | sort)
}
new=$(basename "$(ls "$root"/packages/fwupdated_*.deb)")

wants=/etc/systemd/system/multi-user.target.wants/fwupdated.service
timer=/etc/systemd/system/sysinit.target.wants/fwupdated-trial.timer
clean=$(files)

what=installation
apt install /packages/old.deb
there "$wants"
there "$timer"
for name in conf.d keys.d revoked.d policy.d health.d hooks.d; do there "/etc/fwupdated/$name"; done
for page in man8/fwupdated.8 man5/fwupdated.toml.5 man1/fwupdatectl.1 man1/fwupdatectl-status.1; do there "/usr/share/man/$page.gz"; done
grep -q '^fwupdated:' "$root/etc/group" || fail "no group"
# Both programs run in there: their libraries are what the package depends on.
in_root fwupdated --version
in_root fwupdatectl --version
in_root fwupdatectl config check
# This systemd understands the units, and the sandbox is as tight as tests/units.rs asks of the one out here.
in_root systemd-analyze verify --man=no fwupdated.service fwupdated-trial.timer fwupdated-tryboot-trial.timer
! grep fwupdated "$root/log" || fail "systemd has something to say against the units"
in_root systemd-analyze security --offline=true --no-pager --threshold=37 /usr/lib/systemd/system/fwupdated.service
tail -n 1 "$root/log" | tr -cd '[:print:]\n' | sed 's/^[^A-Za-z]*/packages: /'

what=upgrade
echo '# mine' >>"$root/etc/fwupdated/fwupdated.toml"
echo key >"$root/etc/fwupdated/keys.d/mine.pub"
mkdir -p "$root/var/lib/fwupdated"
touch "$root/var/lib/fwupdated/state.json"
in_root systemctl disable fwupdated-trial.timer
kept() {
    grep -q '# mine' "$root/etc/fwupdated/fwupdated.toml" || fail "$what overwrote the operator's configuration"
    there "$wants"
    gone "$timer"
    there /var/lib/fwupdated/state.json
    there /etc/fwupdated/keys.d/mine.pub
}
older=$(version fwupdated)
apt install "/packages/$new"
[ "$(version fwupdated)" != "$older" ] || fail "it is still $older"
kept
what=downgrade
apt install --allow-downgrades /packages/old.deb
[ "$(version fwupdated)" = "$older" ] || fail "it is not $older"
kept
what=reinstallation
apt install --allow-downgrades "/packages/$new"
apt install --reinstall "/packages/$new"
kept

what=removal
apt remove fwupdated
gone /usr/bin/fwupdated
gone /usr/lib/systemd/system.conf.d/10-fwupdated.conf
there /var/lib/fwupdated/state.json
there /etc/fwupdated/fwupdated.toml
what="installation after a removal"
apt install "/packages/$new"
kept

what=purge
# As on a board whose state lies on the partition that both slots share.
mkdir "$root/data"
mv "$root/var/lib/fwupdated" "$root/data/"
ln -s /data/fwupdated "$root/var/lib/fwupdated"
apt purge fwupdated
gone /data/fwupdated/state.json
gone /etc/fwupdated/fwupdated.toml
gone "$wants"
there /etc/fwupdated/keys.d/mine.pub
rm -r "$root/etc/fwupdated" "$root/data" "$root/var/lib/fwupdated"
left() {
    local found
    found=$(diff <(echo "$clean") <(files)) || fail "$what leaves a difference:"$'\n'"$found"
}
left

what="installation and purge"
apt install "/packages/$new"
apt purge fwupdated
left
for package in fwupdated-tools iothub-emulator; do
    what="installation of $package"
    apt install "/packages/$(basename "$(ls "$root/packages/${package}"_*.deb)")"
    in_root "${package/fwupdated-tools/fwupdatectl}" --version
done
# One of them has fwupdatectl, never both.
apt install "/packages/$new"
[ "$(version fwupdated-tools 2>/dev/null)" = "" ] || fail "fwupdated-tools is there beside fwupdated"
what="purge of all"
apt purge fwupdated fwupdated-tools iothub-emulator
left
echo "packages: $(basename "$archive" .tar): installed, upgraded, downgraded, installed again, removed, purged"
