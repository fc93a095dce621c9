#!/usr/bin/env bash
# Boots the systemd of a root file system, as a container with this machine's network: `container.sh ROOT FOLDER`.
# FOLDER is there under the same name; FOLDER/init gets the number of its first process, for nsenter. SIGTERM shuts it
# down. Needs root.
set -euo pipefail

# The first process of the new namespaces: mounts what systemd wants to find, and becomes it.
if [ "$1" = --inside ]; then
    root=$2 folder=$3
    mount --make-rprivate /
    mount --bind "$root" "$root"
    mkdir -p "$root/.outside"
    cd "$root"
    mount -t proc proc proc
    mount -t sysfs -o ro,nosuid,nodev,noexec sysfs sys
    mount -t cgroup2 cgroup2 sys/fs/cgroup
    mount -t tmpfs -o mode=755 tmpfs run
    mount -t tmpfs -o mode=1777 tmpfs tmp
    mount -t tmpfs -o mode=755 tmpfs dev
    for node in null zero full random urandom tty; do
        touch "dev/$node"
        mount --bind "/dev/$node" "dev/$node"
    done
    mkdir dev/pts dev/shm
    mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
    mount -t tmpfs -o mode=1777 tmpfs dev/shm
    ln -s pts/ptmx dev/ptmx
    ln -s /proc/self/fd dev/fd
    mkdir -p "$root$folder"
    mount --bind "$folder" "$root$folder"
    pivot_root . .outside
    # shellcheck disable=SC2093 # nothing comes after it
    exec /usr/bin/env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin /bin/sh -c \
        'umount -l /.outside; rmdir /.outside; exec /sbin/init' </dev/null
fi

root=$(realpath "$1") folder=$(realpath "$2")
cgroups=$(awk '$3 == "cgroup2" {print $2; exit}' /proc/mounts)
[ -n "$cgroups" ] || {
    echo "container: no cgroup2 is mounted here" >&2
    exit 75
}
group=$cgroups/fwupdated-test-$$
# Also what was left by one that was killed.
cleanup() {
    rm -f "$folder/init"
    find "$cgroups"/fwupdated-test-* -depth -type d -exec rmdir {} + 2>/dev/null || true
}
cleanup
mkdir "$group"
trap cleanup EXIT

(
    echo "$BASHPID" >"$group/cgroup.procs"
    # Whoever kills this script ends the container.
    exec setpriv --pdeathsig KILL unshare --fork --kill-child --pid --mount --uts --ipc --cgroup "$0" --inside "$root" "$folder"
) &
outer=$!
init=
until [ -n "$init" ]; do
    sleep 0.05
    init=$(cat "/proc/$outer/task/$outer/children") || exit 1
done
echo "$init" >"$folder/init"

# systemd(1): SIGRTMIN+4 is a clean poweroff. Before the first process is systemd, it does not listen: again, then.
stop() {
    while kill -s RTMIN+4 "${init// /}" 2>/dev/null; do
        for _ in $(seq 100); do
            kill -0 "$outer" 2>/dev/null || break 2
            sleep 0.1
        done
    done
    stopped=yes
}
stopped=
trap stop TERM
# A signal interrupts the first wait.
wait "$outer" || [ -n "$stopped" ] || exit 1
