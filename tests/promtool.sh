#!/usr/bin/env bash
# Fetches promtool, Prometheus' own checker of metrics and alerts, out of Debian's package into target/promtool, without
# installing the server that comes with it. Exit status 75: the package cannot be had here.
set -euo pipefail
place=$(cd "$(dirname "$0")/.." && pwd)/target/promtool
[ ! -x "$place/promtool" ] || exit 0
mkdir -p "$place"
work=$(mktemp -d "$place/fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"
if ! apt-get -qq -o APT::Sandbox::User=root download prometheus; then
    echo "promtool: Debian's package prometheus cannot be fetched (was apt-get update run?)" >&2
    exit 75
fi
dpkg-deb --extract prometheus_*.deb root
mv root/usr/bin/promtool "$place/promtool"
