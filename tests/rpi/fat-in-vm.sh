#!/usr/bin/env bash
# Runs those tests of tests/tryboot.rs that mount a FAT file system in a virtual machine, on Debian's kernel: for machines
# whose own kernel has no vfat. The machine has no disk, only the test program and the tools that it calls, in its initial
# RAM disk. Needs qemu-system-x86_64, cpio and kmod; takes two minutes, most of them emulation.
#
#   cargo test --test tryboot --no-run && tests/rpi/fat-in-vm.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export PATH="$PATH:/usr/sbin:/sbin"

program=$(find target/debug/deps -maxdepth 1 -name 'tryboot-*' -executable -type f -printf '%T@ %p\n' | sort -n | tail -n 1 | cut -d ' ' -f 2)
[ -n "$program" ] || { echo "fat-in-vm: first: cargo test --test tryboot --no-run" >&2; exit 1; }
program=$(realpath "$program")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

package=$(apt-cache depends linux-image-amd64 | sed -n 's/.*Depends: \(linux-image-.*\)/\1/p' | head -n 1)
apt-get -qq -o APT::Sandbox::User=root download "$package"
dpkg-deb -x linux-image-*.deb kernel
mkdir -p root/{bin,proc,sys,dev,tmp,modules}
cp "$program" root/program
for tool in bash sh mount umount sync sfdisk losetup partx mkfs.vfat insmod mkdir sleep; do
    cp -L "$(command -v "$tool")" root/bin/
done
for file in root/program root/bin/*; do ldd "$file" 2>/dev/null | grep -o '/[^ ]*' || true; done | sort -u |
    while read -r library; do
        install -D "$library" "root$library"
    done
find kernel/lib/modules \( -name loop.ko\* -o -name fat.ko\* -o -name vfat.ko\* -o -name nls_ascii.ko\* -o -name nls_cp437.ko\* \
    -o -name nls_utf8.ko\* \) -exec cp {} root/modules/ \;
xz -dq root/modules/*.xz 2>/dev/null || true
cat >root/init <<'TEXT'
#!/bin/bash
export PATH=/bin
mount -t proc p /proc && mount -t sysfs s /sys && mount -t devtmpfs d /dev && mount -t tmpfs t /tmp
for module in loop nls_cp437 nls_ascii nls_utf8 fat vfat; do insmod /modules/$module.ko; done
/program --nocapture --test-threads=1 whatever_a_power_cut a_partition_that_is && echo "in the machine: passed"
echo o >/proc/sysrq-trigger
sleep 60
TEXT
chmod +x root/init
(cd root && find . | cpio --quiet -o -H newc) | gzip -1 >initrd.gz
# TCG alone: /dev/kvm may be there and unable to run a kernel.
timeout 600 qemu-system-x86_64 -M pc -accel tcg -cpu max,-la57 -m 1024 -kernel kernel/boot/vmlinuz-* -initrd initrd.gz \
    -append "console=ttyS0 quiet panic=1" -display none -serial stdio -monitor none -no-reboot -nic none </dev/null | tee said
! grep -q SKIPPED said || { echo "fat-in-vm: a test could not run in the machine" >&2; exit 1; }
grep -q "in the machine: passed" said
