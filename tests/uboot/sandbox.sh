#!/usr/bin/env bash
# Builds U-Boot as a program of this machine, for tests/boot_script.rs: target/uboot/sandbox/u-boot. Exit status 75: its
# source cannot be had here. Left out is what no boot script uses and what needs more packages or time to build.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
exec "$here/build.sh" sandbox "$here/../../target/uboot/sandbox" \
    LEGACY_IMAGE_FORMAT=y -EFI_LOADER -UNIT_TEST -UPL -CMD_UPL -LTO
