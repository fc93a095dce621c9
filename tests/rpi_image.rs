//! The image maker for the Raspberry Pi (`packaging/rpi/make-image.sh`) over stand-ins for a stock image and a tar file:
//! partitions, boot files, environment, fstab, configuration. The boot script of the U-Boot image is run by the real
//! U-Boot of Debian's package `u-boot-rpi` in QEMU's Raspberry Pi 3; without QEMU or that package this says `SKIPPED`.

#[path = "support/skip.rs"]
mod skip;

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use fwupdated::{
    platform::tryboot::{
        TrybootBootloader,
        autoboot::{Autoboot, LENGTH},
    },
    update::{ports::Bootloader, slot::Slot},
};
use tempfile::TempDir;

const SECTOR: u64 = 512;
const MIB: u64 = 1 << 20;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs a shell script in `dir`; its standard output.
fn shell(dir: &Path, script: &str) -> Result<String, String> {
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", script])
        .current_dir(dir)
        .env(
            "PATH",
            format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap()),
        )
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    Err(format!(
        "{script}: {}{}",
        text(&output.stdout),
        text(&output.stderr)
    ))
}

/// A stand-in for a stock image (MBR: FAT with boot files, ext4 with a root file system), the same as a tar file, and a
/// stand-in for fwupdated's package.
const STOCK: &str = r#"
mkdir -p boot root/etc/init.d root/etc/systemd/system root/boot root/usr/lib root/data root/var/lib/dpkg/{info,updates}
: >root/var/lib/dpkg/status
echo ID=raspbian >root/etc/os-release
echo stale >root/etc/init.d/resize2fs_once
ln -s os-release root/etc/a-link
chown 1234:2345 root/etc/os-release
echo 'console=serial0,115200 console=tty1 root=PARTUUID=12345678-02 rootfstype=ext4 fsck.repair=yes rootwait quiet init=/usr/lib/raspberrypi-sys-mods/firstboot' >boot/cmdline.txt
printf 'dtparam=audio=on\nauto_initramfs=1\n[cm4]\notg_mode=1\n[all]\n' >boot/config.txt
for name in start4.elf fixup4.dat bcm2711-rpi-4-b.dtb; do echo $name >boot/$name; done
echo kernel | gzip >boot/kernel8.img
echo initramfs >boot/initramfs8
truncate -s 40M boot.img
mkfs.vfat boot.img >/dev/null
mcopy -s -i boot.img boot/* ::/
truncate -s 40M root.img
mkfs.ext4 -q -F -d root root.img
truncate -s 90M stock.img
printf 'label: dos\nstart=8192,size=81920,type=c\nstart=90112,size=81920,type=83\n' | sfdisk --quiet stock.img
dd if=boot.img of=stock.img bs=512 seek=8192 conv=notrunc status=none
dd if=root.img of=stock.img bs=512 seek=90112 conv=notrunc status=none
rm boot.img root.img
cp -a boot root/boot/firmware
tar -C root --numeric-owner --xattrs -cJf root.tar.xz .
mkdir -p deb/DEBIAN deb/usr/bin
printf 'Package: fwupdated\nVersion: 0.1.0\nArchitecture: all\nMaintainer: nobody <nobody@example.com>\nDescription: stand-in\n' >deb/DEBIAN/control
echo program >deb/usr/bin/fwupdated
dpkg-deb --root-owner-group -b deb fwupdated.deb >/dev/null
echo 'untrusted comment: a key' >operator.pub
printf '[policy]\nrandom_delay = "1h"\n' >site.toml
"#;

struct Made {
    dir: TempDir,
    image: PathBuf,
    /// Names, first sectors and sizes in sectors of the partitions, in order.
    parts: Vec<(String, u64, u64)>,
}

impl Made {
    /// From `--stock stock.img` or `--rootfs root.tar.xz`. `None`, after saying why, without the right to mount.
    fn from(source: &str, arguments: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            skip::skipped("no image is made without root");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        shell(dir.path(), STOCK).unwrap();
        let script = root().join("packaging/rpi/make-image.sh");
        let options = "--deb fwupdated.deb --output made.img --key operator.pub --config site.toml --boot-size 40 \
                       --rootfs-size 40";
        let made = shell(
            dir.path(),
            &format!("{} {source} {options} {arguments}", script.display()),
        );
        if let Err(error) = made {
            // Containers without loop devices can hold no root.
            if error.contains("losetup") {
                skip::skipped(format_args!("no loop device ({error})"));
                return None;
            }
            panic!("{error}");
        }
        let image = dir.path().join("made.img");
        let table = shell(dir.path(), "sfdisk -J made.img").unwrap();
        let table: serde_json::Value = serde_json::from_str(&table).unwrap();
        assert_eq!(table["partitiontable"]["label"], "gpt");
        let parts = table["partitiontable"]["partitions"]
            .as_array()
            .unwrap()
            .iter();
        let parts = parts.map(|part| {
            let number = |name: &str| part[name].as_u64().unwrap();
            (
                part["name"].as_str().unwrap().to_owned(),
                number("start"),
                number("size"),
            )
        });
        let parts = parts.collect();
        Some(Self { dir, image, parts })
    }

    fn names(&self) -> Vec<&str> {
        self.parts.iter().map(|(name, ..)| name.as_str()).collect()
    }

    fn start(&self, name: &str) -> u64 {
        self.parts
            .iter()
            .find(|(found, ..)| found == name)
            .unwrap()
            .1
            * SECTOR
    }

    /// A partition, in a file of its own.
    fn part(&self, name: &str) -> PathBuf {
        let (_, start, size) = self.parts.iter().find(|(found, ..)| found == name).unwrap();
        let mut image = File::open(&self.image).unwrap();
        image.seek(SeekFrom::Start(start * SECTOR)).unwrap();
        let path = self.dir.path().join(format!("{name}.part"));
        let mut part = File::create(&path).unwrap();
        std::io::copy(&mut image.take(size * SECTOR), &mut part).unwrap();
        path
    }

    /// A file of a FAT partition.
    fn boot_file(&self, part: &str, name: &str) -> String {
        let script = format!("mtype -i {} ::{name}", self.part(part).display());
        shell(self.dir.path(), &script).unwrap()
    }

    /// A file of a root file system.
    fn root_file(&self, part: &str, name: &str) -> String {
        let script = format!(
            "debugfs -R 'cat {name}' {} 2>/dev/null",
            self.part(part).display()
        );
        shell(self.dir.path(), &script).unwrap()
    }

    fn assert_slots(&self) {
        let digest =
            |name: &str| fwupdated::update::digest::Sha256::of(&fs::read(self.part(name)).unwrap());
        assert_eq!(
            digest("rootfs-a"),
            digest("rootfs-b"),
            "both slots are the same"
        );
        let check = format!("e2fsck -fn {}", self.part("rootfs-a").display());
        shell(self.dir.path(), &check).unwrap();
        shell(
            self.dir.path(),
            &format!("e2fsck -fn {}", self.part("data").display()),
        )
        .unwrap();
        assert_eq!(
            self.root_file("rootfs-a", "/usr/bin/fwupdated"),
            "program\n"
        );
        assert!(
            self.root_file("rootfs-a", "/var/lib/dpkg/status")
                .contains("Package: fwupdated\n")
        );
        assert!(
            self.root_file("rootfs-a", "/etc/fwupdated/keys.d/operator.pub")
                .contains("a key")
        );
        let stat = format!(
            "debugfs -R 'stat /etc/os-release' {} 2>/dev/null",
            self.part("rootfs-a").display()
        );
        let stat = shell(self.dir.path(), &stat).unwrap();
        assert!(stat.contains("User:  1234   Group:  2345"), "{stat}");
        // What would grow the root file system over the other slot is gone.
        assert_eq!(self.root_file("rootfs-a", "/etc/init.d/resize2fs_once"), "");
        let fstab = self.root_file("rootfs-a", "/etc/fstab");
        assert!(fstab.contains("PARTLABEL=data  /data  ext4"), "{fstab}");
        let waits = "/etc/systemd/system/fwupdated.service.d/50-image.conf";
        let waits = self.root_file("rootfs-a", waits);
        assert!(waits.contains("RequiresMountsFor=/data\n"), "{waits}");
        assert!(
            !fstab.contains("UUID="),
            "ids of file systems are the same in both slots: {fstab}"
        );
        let last = self.names().pop().unwrap();
        assert_eq!(last, "data", "what grows is last");
        // As the daemon reads it: the made file and the operator's.
        let config = self.dir.path().join("fwupdated.toml");
        let text = ["50-image.toml", "60-site.toml"]
            .map(|name| self.root_file("rootfs-a", &format!("/etc/fwupdated/conf.d/{name}")))
            .concat();
        fs::write(&config, text).unwrap();
        let checked = Command::new(env!("CARGO_BIN_EXE_fwupdated"))
            .arg("--check")
            .arg("--config")
            .arg(&config)
            .output()
            .unwrap();
        assert!(
            checked.status.success(),
            "{}",
            String::from_utf8_lossy(&checked.stderr)
        );
        for (name, start, _) in &self.parts {
            assert_eq!(
                start * SECTOR % (4 * MIB),
                0,
                "{name} begins on a border of 4 MiB"
            );
        }
    }
}

#[test]
fn an_image_for_tryboot_has_slots_that_the_firmware_can_try_and_fwupdated_can_switch() {
    let Some(made) = Made::from("--stock stock.img", "--boot tryboot") else {
        return;
    };
    assert_eq!(
        made.names(),
        [
            "bootconfig",
            "boot-a",
            "boot-b",
            "rootfs-a",
            "rootfs-b",
            "data"
        ]
    );
    made.assert_slots();
    let text = made.boot_file("bootconfig", "autoboot.txt");
    assert_eq!(text.len(), LENGTH);
    assert_eq!(
        Autoboot::parse(text.as_bytes()).unwrap(),
        Autoboot::new(2, 3)
    );
    assert_eq!(
        Autoboot::new(2, 3).render().unwrap(),
        text.as_bytes(),
        "as fwupdated writes it"
    );
    for slot in Slot::ALL {
        let line = made.boot_file("boot-a", &format!("cmdline-{slot}.txt"));
        let words: Vec<_> = line.split_whitespace().collect();
        let root = format!("root=PARTLABEL=rootfs-{slot}");
        assert_eq!(
            words
                .iter()
                .filter(|word| word.starts_with("root="))
                .collect::<Vec<_>>(),
            [&root]
        );
        let own = format!("fwupdated.slot={slot}");
        assert!(
            words.contains(&own.as_str())
                && words.contains(&"console=tty1")
                && words.contains(&"gpt")
                && words.contains(&"fsck.repair=yes"),
            "{line}"
        );
        assert!(
            !line.contains("firstboot") && line.lines().count() == 1,
            "{line}"
        );
    }
    let config = made.boot_file("boot-b", "config.txt");
    assert!(
        config.contains("[boot_partition=3]\ncmdline=cmdline-b.txt\n")
            && config.contains("otg_mode=1")
    );
    let fstab = made.root_file("rootfs-b", "/etc/fstab");
    assert!(
        fstab.contains("PARTLABEL=bootconfig  /bootfs  vfat"),
        "{fstab}"
    );
    // The daemon's own check of the boot partition, and its first change of the firmware's file.
    let tree = made.dir.path().join("tree");
    let cells = tree.join("chosen/bootloader");
    fs::create_dir_all(&cells).unwrap();
    let told = |partition: u32, tryboot: u32| {
        fs::write(cells.join("partition"), partition.to_be_bytes()).unwrap();
        fs::write(cells.join("tryboot"), tryboot.to_be_bytes()).unwrap();
    };
    told(2, 0);
    let file = made.dir.path().join("autoboot.txt");
    fs::write(&file, &text).unwrap();
    let boot = [made.part("boot-a"), made.part("boot-b")];
    let mut bootloader = TrybootBootloader::open(&file, &tree, boot, true).unwrap();
    bootloader.arm_trial(Slot::B, 1, "first").unwrap();
    told(3, 1);
    bootloader.mark_good(Slot::B).unwrap();
    let switched = fs::read(&file).unwrap();
    assert_eq!(
        (switched.len(), Autoboot::parse(&switched)),
        (LENGTH, Some(Autoboot::new(3, 2)))
    );
}

#[test]
fn a_tar_file_gives_the_same_image_as_the_stock_image_with_the_same_files() {
    let sources = ["--stock stock.img", "--rootfs root.tar.xz"];
    let [Some(stock), Some(tar)] = sources.map(|source| Made::from(source, "--boot tryboot"))
    else {
        return;
    };
    assert_eq!(tar.names(), stock.names());
    tar.assert_slots();
    // By names, owners, modes, sizes and contents.
    let files = |made: &Made, part: &str| {
        let part = made.part(part);
        let script = format!(
            "mkdir tree; debugfs -R 'rdump / tree' {} 2>/dev/null
             cd tree; find . ! -path './lost+found' ! -path './boot/firmware' -printf '%p %U:%G %m %l\\n' | sort
             find . -type f -exec sha256sum {{}} + | sort",
            part.display()
        );
        shell(made.dir.path(), &script).unwrap()
    };
    let listed = files(&tar, "rootfs-a");
    assert!(listed.contains("./etc/os-release 1234:2345"), "{listed}");
    assert_eq!(listed, files(&stock, "rootfs-a"));
    for name in ["config.txt", "cmdline-b.txt", "kernel8.img"] {
        let digest = |made: &Made| {
            let part = made.part("boot-b");
            let script = format!("mtype -i {} ::{name} | sha256sum", part.display());
            shell(made.dir.path(), &script).unwrap()
        };
        assert_eq!(digest(&tar), digest(&stock), "{name}");
    }
}

/// Debian's U-Boot for the Raspberry Pi; `None`, after saying why, where it cannot be had.
fn u_boot(dir: &Path) -> Option<PathBuf> {
    let script = "mkdir -p lists/partial cache/archives/partial
        apt=\"apt-get -qq -o Dir::State::lists=$PWD/lists -o Dir::Cache=$PWD/cache -o APT::Architecture=arm64\"
        apt=\"$apt -o Dir::State::status=/dev/null -o APT::Sandbox::User=root\"
        $apt update && $apt download u-boot-rpi:arm64 && dpkg-deb -x u-boot-rpi_*.deb u-boot";
    match shell(dir, script) {
        Ok(_) => Some(dir.join("u-boot/usr/lib/u-boot/rpi_arm64/u-boot.bin")),
        Err(error) => {
            skip::skipped(format_args!("no u-boot-rpi ({error})"));
            None
        }
    }
}

#[test]
fn an_image_for_u_boot_has_an_environment_that_the_real_u_boot_reads_counts_in_and_keeps() {
    let place = tempfile::tempdir().unwrap();
    let Some(u_boot) = u_boot(place.path()) else {
        return;
    };
    let options = format!("--boot uboot --u-boot {}", u_boot.display());
    let Some(made) = Made::from("--stock stock.img", &options) else {
        return;
    };
    assert_eq!(
        made.names(),
        ["boot", "env-1", "env-2", "rootfs-a", "rootfs-b", "data"]
    );
    made.assert_slots();
    let config = made.boot_file("boot", "config.txt");
    assert!(
        config.ends_with("kernel=u-boot.bin\n") && !config.contains("auto_initramfs"),
        "{config}"
    );
    let line = made.boot_file("boot", "cmdline.txt");
    assert!(
        !line.contains("root=") && line.contains("console=tty1") && line.contains(" gpt"),
        "{line}"
    );
    assert_eq!(
        made.root_file("rootfs-a", "/boot/vmlinuz"),
        "kernel\n",
        "unpacked"
    );
    assert_eq!(
        made.root_file("rootfs-a", "/boot/initrd.img"),
        "initramfs\n"
    );
    let places = made.root_file("rootfs-a", "/etc/fw_env.config");
    let copies: Vec<_> = places
        .lines()
        .filter(|line| line.starts_with("/dev/disk/by-partlabel/env-"))
        .collect();
    assert_eq!(copies.len(), 2, "{places}");
    let places: String = ["env-1", "env-2"]
        .map(|name| format!("{} {:#x} 0x4000\n", made.image.display(), made.start(name)))
        .concat();
    fs::write(made.dir.path().join("fw_env.config"), places).unwrap();
    let printed = || {
        let text = shell(made.dir.path(), "fw_printenv -c fw_env.config").unwrap();
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines.join(" ")
    };
    assert_eq!(printed(), "fwupdated_slot=a");

    if shell(made.dir.path(), "command -v qemu-system-aarch64 dtc").is_err() {
        skip::skipped(
            "no qemu-system-aarch64 (package qemu-system-arm) or dtc (device-tree-compiler)",
        );
        return;
    }
    // QEMU's cards are powers of two.
    File::options()
        .write(true)
        .open(&made.image)
        .unwrap()
        .set_len(512 * MIB)
        .unwrap();
    let tree = root().join("tests/rpi/raspi3b.dts");
    shell(
        made.dir.path(),
        &format!("dtc -q -O dtb -o board.dtb {}", tree.display()),
    )
    .unwrap();
    // The kernel is none, so that U-Boot resets, which ends QEMU.
    let boot = || {
        let script = format!(
            "timeout 300 qemu-system-aarch64 -M raspi3b -accel tcg -kernel {} -dtb board.dtb -drive \
             file=made.img,if=sd,format=raw -display none -monitor none -serial null -serial stdio -no-reboot",
            u_boot.display()
        );
        let said = shell(made.dir.path(), &script).unwrap();
        let ours = said
            .lines()
            .filter_map(|line| line.trim().strip_prefix("fwupdated: "));
        let ours: Vec<_> = ours.map(str::to_owned).collect();
        assert!(!ours.is_empty(), "{said}");
        ours
    };
    shell(
        made.dir.path(),
        "printf 'fwupdated_trial=b\nfwupdated_tries=2\nfwupdated_job=u1\n' | fw_setenv -c fw_env.config -s -",
    )
    .unwrap();
    for left in [1, 0] {
        let said = boot();
        assert_eq!(
            said[0],
            format!("trial boot of slot b, {left} more after this one"),
            "{said:?}"
        );
        assert_eq!(said[1], "environment saved");
        assert!(
            said[2].starts_with("slot b, root file system rootfs-b"),
            "{said:?}"
        );
        let expected =
            format!("fwupdated_job=u1 fwupdated_slot=a fwupdated_trial=b fwupdated_tries={left}");
        assert_eq!(printed(), expected);
    }
    let said = boot();
    assert_eq!(
        said[0], "the trial is over, slot a is the confirmed slot",
        "{said:?}"
    );
    assert_eq!(printed(), "fwupdated_slot=a");
    let before = fs::read(made.part("env-1")).unwrap();
    assert!(
        boot()[0].starts_with("slot a, "),
        "the confirmed slot counts nothing"
    );
    assert_eq!(fs::read(made.part("env-1")).unwrap(), before);
    // The newer copy is torn, as by a power cut while it was written: the older one counts.
    shell(
        made.dir.path(),
        "fw_setenv -c fw_env.config fwupdated_slot b",
    )
    .unwrap();
    let newest = ["env-1", "env-2"]
        .into_iter()
        .find(|name| {
            fs::read(made.part(name))
                .unwrap()
                .windows(16)
                .any(|text| text == b"fwupdated_slot=b")
        })
        .unwrap();
    let mut image = File::options().write(true).open(&made.image).unwrap();
    image
        .seek(SeekFrom::Start(made.start(newest) + 512))
        .unwrap();
    image.write_all(&[0x55; 512]).unwrap();
    assert!(boot()[0].starts_with("slot a, "));
    // The counting byte goes from 255 on to 0: the second copy is the newer one.
    let copy = |count: u8, text: &[u8]| {
        let mut data = text.to_vec();
        data.resize(0x4000 - 5, 0);
        [&crc32fast::hash(&data).to_le_bytes()[..], &[count], &data].concat()
    };
    for (name, bytes) in [
        ("env-1", copy(255, b"fwupdated_slot=a\0\0")),
        (
            "env-2",
            copy(
                0,
                b"fwupdated_slot=b\0fwupdated_trial=a\0fwupdated_tries=1\0\0",
            ),
        ),
    ] {
        image.seek(SeekFrom::Start(made.start(name))).unwrap();
        image.write_all(&bytes).unwrap();
    }
    assert_eq!(boot()[0], "trial boot of slot a, 0 more after this one");
    assert_eq!(
        printed(),
        "fwupdated_slot=b fwupdated_trial=a fwupdated_tries=0"
    );
    // Both copies lost: the mark beside the boot files, which the image has fwupdated write, names the confirmed slot.
    let settings = made.root_file("rootfs-a", "/etc/fwupdated/conf.d/50-image.toml");
    assert!(
        settings.contains("mark_file = \"/boot/firmware/fwupdated.slot\""),
        "{settings}"
    );
    for name in ["env-1", "env-2"] {
        image.seek(SeekFrom::Start(made.start(name) + 512)).unwrap();
        image.write_all(&[0x55; 512]).unwrap();
    }
    let put = format!(
        "printf 'fwupdated_mark=b\\n' >fwupdated.slot && mcopy -i made.img@@{} fwupdated.slot ::/",
        made.start("boot")
    );
    shell(made.dir.path(), &put).unwrap();
    let said = boot();
    assert!(
        said.iter().any(|line| line.starts_with("slot b, ")),
        "{said:?}"
    );
    assert_eq!(printed(), "fwupdated_slot=b");
}
