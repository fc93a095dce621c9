# shellcheck shell=bash
# What each page's script begins with; see reader.rs.
set -o pipefail
exec 2>&1
cd ~ || exit
declare -A running=()
# What goes on prints into files of its own: a line that two programs print together would be nobody's.
printed=$(mktemp -d)
trap 'cat "$printed"/*' EXIT

# The reader is root.
sudo() { "$@"; }

# `typed PAGE:LINE`: a command is typed.
typed() { printf '\n\036%s\n' "$1"; }

# `ended STATUS yes|no`: it has ended, and was to end well or not.
ended() {
    printf '\n\036%s\n' "$1"
    if [ "$2" = yes ]; then [ "$1" -eq 0 ]; else [ "$1" -ne 0 ]; fi || exit 1
}

# `terminal PROGRAM`: the file that what the program prints goes to.
terminal() { printf %s "$printed/${1//\//_}"; }

# `stop PROGRAM`: Ctrl-C in the terminal that the program has.
stop() {
    [ -n "${running[$1]:-}" ] || return 0
    kill "${running[$1]}" || true
    wait "${running[$1]}" || true
    unset "running[$1]"
}

# Repeats a command until it ends well.
wait_for() { until "$@" >/dev/null 2>&1; do sleep 0.1; done; }

# `status_is JQ-EXPRESSION`: of the daemon whose socket is device/control.
status_is() { fwupdatectl --socket device/control status --json | jq -e "(.status // .) | $1"; }

# `read_page PAGE`: types that page's commands first.
read_page() {
    # shellcheck disable=SC1090 # made by reader.rs
    . "$PAGES/$1"
    set -e
}

# The device of the first tutorial, with an update that waits for someone's approval.
an_update_waits() {
    read_page docs/tutorial/first-update.md
    export FWUPDATED_CONTROL__SOCKET=$PWD/device/control
    printf '[policy]\napproval = "required"\nreboot = "manual"\n' >>device/conf.d/10-board.toml
    touch device/reboot-requested
    wait_for test ! -e device/reboot-requested
    wait_for status_is .hub.connected
    fwupdatectl image build --rootfs rootfs.img --version 1.2.0 --compatible practice-board --key release.key \
        --output images/1.2.0.img.zst
    fwupdatectl install http://localhost:8000/1.2.0.img.zst
    wait_for status_is '(.update.detail // "") | startswith("waiting for approval")'
}
