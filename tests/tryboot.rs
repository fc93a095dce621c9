//! The Raspberry Pi's firmware as bootloader: `autoboot.txt` on real FAT file systems, with every way in which a power
//! cut can leave a change; random updates and power cuts against a model of the firmware; and the real daemon, rebooted
//! by a stand-in for the firmware.
//!
//! Needs root and loop devices for the real file systems; without them those tests say `SKIPPED`.

mod support;

use std::{
    fs::{self, File},
    io::{self, Cursor, Read, Write},
    path::{Path, PathBuf},
    process::Command,
};

use fwupdated::{
    platform::tryboot::{
        TrybootBootloader,
        autoboot::{Autoboot, LENGTH, Note, boot_partition},
    },
    update::{digest::Sha256, failure::Coded, ports::Bootloader, slot::Slot},
};
use proptest::prelude::*;
use serde_json::{Value, json};
use support::{
    rig::{Device, Image, Rig, fwupdatectl, noise},
    skip,
};
use tempfile::TempDir;

const MIB: usize = 1 << 20;
const VENDOR: &str = "[all]\ntryboot_a_b=1\nboot_partition=2\n[tryboot]\nboot_partition=3\n";

/// A boot partition of 1 MiB that serves both slots, as the Raspberry Pi documentation has it. `mark` makes it differ.
fn boot_partition_image(mark: &str) -> Vec<u8> {
    let mut bytes = vec![0; MIB];
    fatfs::format_volume(Cursor::new(&mut bytes), fatfs::FormatVolumeOptions::new()).unwrap();
    let fat = fatfs::FileSystem::new(Cursor::new(&mut bytes), fatfs::FsOptions::new()).unwrap();
    let config = "[boot_partition=2]\ncmdline=cmdline-a.txt\n[boot_partition=3]\ncmdline=cmdline-b.txt\n[all]\n";
    for (name, text) in [
        ("config.txt", config),
        ("kernel8.img", mark),
        ("cmdline-a.txt", "root=/dev/mmcblk0p5"),
        ("cmdline-b.txt", "root=/dev/mmcblk0p6"),
    ] {
        let mut file = fat.root_dir().create_file(name).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }
    fat.unmount().unwrap();
    bytes
}

/// What the firmware tells about a boot.
fn cells(tree: &Path, partition: u8, tryboot: bool) {
    let cells = tree.join("chosen/bootloader");
    fs::create_dir_all(&cells).unwrap();
    fs::write(cells.join("partition"), u32::from(partition).to_be_bytes()).unwrap();
    fs::write(cells.join("tryboot"), u32::from(tryboot).to_be_bytes()).unwrap();
}

fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} {arguments:?}: {said}"))
}

/// A disk as the Raspberry Pi's own image tool lays it out: bootconfig, boot_a, boot_b. The first is mounted.
struct Disk {
    dir: TempDir,
    device: String,
}

/// Where its partitions begin, and how long they are, in sectors.
const STARTS: [u64; 3] = [2048, 2048 + 8192, 2048 + 2 * 8192];
const SECTORS: u64 = 8192;

impl Disk {
    /// `None`, after saying why, where loop devices cannot be had.
    fn new() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("disk.img");
        File::create(&image)
            .unwrap()
            .set_len(16 * MIB as u64)
            .unwrap();
        let made = || -> Result<String, String> {
            let path = image.to_str().unwrap();
            let lines: String = STARTS
                .map(|at| format!("start={at}, size={SECTORS}, type=uefi\n"))
                .concat();
            let table = dir.path().join("table");
            fs::write(&table, format!("label: gpt\n{lines}")).unwrap();
            let script = format!("sfdisk --quiet {path} < {}", table.display());
            run("sh", &["-c", &script])?;
            let device = run("losetup", &["-f", "--show", path])?;
            // Also where the kernel does not look for partitions by itself.
            run("partx", &["-a", &device]).map(|_| device)
        };
        let device = match made() {
            Ok(device) => device,
            Err(error) => {
                skip::skipped(format_args!("no disk of our own ({error})"));
                return None;
            }
        };
        let disk = Self { dir, device };
        let prepared = || -> Result<(), String> {
            run(
                "mkfs.vfat",
                &[
                    "-F",
                    "16",
                    "-s",
                    "1",
                    "-n",
                    "BOOTCONFIG",
                    disk.part(1).to_str().unwrap(),
                ],
            )?;
            for number in [2, 3] {
                let mut part = File::options()
                    .write(true)
                    .open(disk.part(number))
                    .map_err(|e| e.to_string())?;
                part.write_all(&boot_partition_image("kernel"))
                    .map_err(|e| e.to_string())?;
            }
            fs::create_dir(disk.mounted()).unwrap();
            run(
                "mount",
                &[
                    "-t",
                    "vfat",
                    disk.part(1).to_str().unwrap(),
                    disk.mounted().to_str().unwrap(),
                ],
            )?;
            Ok(())
        };
        if let Err(error) = prepared() {
            skip::skipped(format_args!(
                "no FAT file system of our own, see tests/rpi/fat-in-vm.sh ({error})"
            ));
            return None;
        }
        Some(disk)
    }

    fn part(&self, number: u8) -> PathBuf {
        format!("{}p{number}", self.device).into()
    }

    fn mounted(&self) -> PathBuf {
        self.dir.path().join("bootfs")
    }

    fn file(&self) -> PathBuf {
        self.mounted().join("autoboot.txt")
    }

    fn open(&self) -> Result<TrybootBootloader, fwupdated::platform::tryboot::TrybootError> {
        let boot = [self.part(2), self.part(3)];
        TrybootBootloader::open(&self.file(), self.dir.path(), boot, false)
    }

    /// The first partition as the medium holds it.
    fn bytes(&self) -> Vec<u8> {
        run("sync", &["-f", self.mounted().to_str().unwrap()]).unwrap();
        let whole = fs::read(self.dir.path().join("disk.img")).unwrap();
        let start = usize::try_from(STARTS[0]).unwrap() * 512;
        whole[start..][..usize::try_from(SECTORS).unwrap() * 512].to_vec()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = run("umount", &[self.mounted().to_str().unwrap()]);
        let _ = run("partx", &["-d", &self.device]);
        let _ = run("losetup", &["-d", &self.device]);
    }
}

/// The decision and the note in the bytes of a FAT file system, as firmware and daemon would read them.
fn decision_in(mut bytes: Vec<u8>) -> io::Result<(Autoboot, Option<Note>)> {
    let fat = fatfs::FileSystem::new(Cursor::new(&mut bytes), fatfs::FsOptions::new())?;
    let read = |name| -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        fat.root_dir().open_file(name)?.read_to_end(&mut content)?;
        Ok(content)
    };
    let decision = Autoboot::parse(&read("autoboot.txt")?).ok_or(io::ErrorKind::InvalidData)?;
    Ok((
        decision,
        Note::parse(&read("fwupdated.txt").unwrap_or_default()),
    ))
}

/// Every subset of the sectors that `change` writes, on top of what was there before: what a power cut may leave of
/// writes that the medium reorders. Gives how many there were.
fn every_remainder(disk: &Disk, what: &str, change: impl FnOnce()) -> usize {
    let before = disk.bytes();
    let old = decision_in(before.clone()).unwrap();
    change();
    let after = disk.bytes();
    let new = decision_in(after.clone()).unwrap();
    assert_ne!(old, new, "{what}");
    let sectors = before.len() / 512;
    let changed: Vec<_> = (0..sectors)
        .filter(|number| before[number * 512..][..512] != after[number * 512..][..512])
        .collect();
    assert!(
        changed.len() <= 12,
        "{what} writes {} sectors",
        changed.len()
    );
    for subset in 0_u32..1 << changed.len() {
        let mut left = before.clone();
        for (bit, number) in changed.iter().enumerate() {
            if subset >> bit & 1 == 1 {
                let at = number * 512;
                left[at..at + 512].copy_from_slice(&after[at..at + 512]);
            }
        }
        let found =
            decision_in(left).unwrap_or_else(|error| panic!("{what}, sectors {subset:b}: {error}"));
        assert!(
            found.0 == old.0 || found.0 == new.0,
            "{what}, sectors {subset:b}: {found:?}"
        );
        assert!(
            found.1 == old.1 || found.1 == new.1,
            "{what}, sectors {subset:b}: {found:?}"
        );
    }
    1 << changed.len()
}

#[test]
fn whatever_a_power_cut_leaves_of_a_change_is_the_old_or_the_new_decision() {
    let Some(disk) = Disk::new() else { return };
    cells(disk.dir.path(), 2, false);
    // As the vendor's tool writes it: shorter than ours.
    fs::write(disk.file(), VENDOR).unwrap();
    let mut bootloader = disk.open().unwrap();
    let mut states = 0;
    for round in 0..3 {
        let (confirmed, target) = if round % 2 == 0 {
            (2, Slot::B)
        } else {
            (3, Slot::A)
        };
        cells(disk.dir.path(), confirmed, false);
        bootloader.mark_bad(target).unwrap();
        states += every_remainder(&disk, "arm", || {
            bootloader
                .arm_trial(target, 1, &format!("u{round}"))
                .unwrap()
        });
        states += every_remainder(&disk, "start", || {
            bootloader.start_trial().unwrap();
        });
        cells(disk.dir.path(), confirmed, false);
        states += every_remainder(&disk, "disable", || bootloader.mark_bad(target).unwrap());
        cells(disk.dir.path(), 5 - confirmed, true);
        states += every_remainder(&disk, "confirm", || bootloader.mark_good(target).unwrap());
        assert_eq!(bootloader.state().unwrap().confirmed, target);
    }
    assert_eq!(fs::read(disk.file()).unwrap().len(), LENGTH);
    println!("12 decisions on a FAT file system, {states} remainders, each the old or the new one");
}

#[test]
fn a_partition_that_is_not_mounted_is_not_taken_for_autoboot_txt() {
    let Some(disk) = Disk::new() else { return };
    cells(disk.dir.path(), 2, false);
    fs::write(disk.file(), VENDOR).unwrap();
    let mut bootloader = disk.open().unwrap();
    run("umount", &[disk.mounted().to_str().unwrap()]).unwrap();
    assert_eq!(disk.open().unwrap_err().code(), "autoboot-elsewhere");
    let failure = bootloader.arm_trial(Slot::B, 1, "u").unwrap_err();
    assert_eq!(failure.code, "autoboot-elsewhere");
    assert_eq!(fs::read_dir(disk.mounted()).unwrap().count(), 0);
}

#[test]
fn a_partition_that_is_mounted_read_only_is_said_and_changes_nothing() {
    let Some(disk) = Disk::new() else { return };
    cells(disk.dir.path(), 2, false);
    fs::write(disk.file(), VENDOR).unwrap();
    let mut bootloader = disk.open().unwrap();
    run(
        "mount",
        &["-o", "remount,ro", disk.mounted().to_str().unwrap()],
    )
    .unwrap();
    let failure = bootloader.arm_trial(Slot::B, 1, "u").unwrap_err();
    assert_eq!(failure.code, "autoboot-write-failed");
    assert!(failure.message.contains("writable"), "{failure}");
    assert_eq!(fs::read_to_string(disk.file()).unwrap(), VENDOR);
}

/// Asks the condition of `fwupdated-tryboot-trial.service` as systemd would: whether the device is to be rebooted, and
/// what it told systemctl.
fn last_resort(autoboot: Option<&str>, partition: u8, tryboot: bool) -> (bool, String) {
    let dir = tempfile::tempdir().unwrap();
    cells(dir.path(), partition, tryboot);
    let file = dir.path().join("autoboot.txt");
    if let Some(text) = autoboot {
        fs::write(&file, text).unwrap();
    }
    let unit = include_str!("../systemd/fwupdated-tryboot-trial.service").replace("\\\n", " ");
    let command = unit
        .lines()
        .find_map(|line| line.strip_prefix("ExecCondition=/bin/sh -c '"))
        .unwrap();
    let command = command.strip_suffix('\'').unwrap().replace("$$", "$");
    let systemctl = dir.path().join("systemctl");
    fs::write(&systemctl, "#!/bin/sh\necho \"$*\"\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&systemctl, mode).unwrap();
    let path = format!(
        "{}:{}",
        dir.path().display(),
        std::env::var("PATH").unwrap()
    );
    let output = Command::new("/bin/sh")
        .args(["-c", &command])
        .env("PATH", path)
        .env("AUTOBOOT", &file)
        .env("CELLS", dir.path().join("chosen/bootloader"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.success(), said)
}

#[test]
fn the_last_resort_reboots_a_trial_that_is_not_confirmed_and_nothing_else() {
    let (a, b) = (Autoboot::new(2, 3), Autoboot::new(3, 2));
    let text = |decision: &Autoboot| String::from_utf8(decision.render().unwrap()).unwrap();
    let stop = "--no-block stop fwupdated-tryboot-trial.timer\n".to_owned();
    let reboot = (true, String::new());
    assert_eq!(last_resort(Some(&text(&a)), 3, true), reboot);
    assert_eq!(last_resort(None, 3, true), reboot);
    assert_eq!(
        last_resort(Some(&text(&b)), 3, true),
        (false, stop.clone()),
        "confirmed meanwhile"
    );
    assert_eq!(
        last_resort(Some(&text(&a)), 2, false),
        (false, stop.clone()),
        "no trial"
    );
    assert_eq!(
        last_resort(Some(&text(&a)), 3, false),
        (false, stop),
        "no trial, whatever else is odd"
    );
}

/// A board whose power can go at any moment. The firmware here is written from its documentation.
struct World {
    dir: TempDir,
    /// Which slots are complete and verified.
    whole: [bool; 2],
    /// Which were confirmed at some time and not written since.
    proved: [bool; 2],
    running: Slot,
    bootloader: Option<TrybootBootloader>,
    choices: std::vec::IntoIter<u8>,
    /// Boots by the flag since a trial was last armed.
    tries: u32,
}

/// The power is gone.
struct Cut;

fn index(slot: Slot) -> usize {
    usize::from(slot == Slot::B)
}

impl World {
    fn new(choices: Vec<u8>) -> Self {
        // In memory where that can be had: what is synced here thousands of times is no real medium anyway.
        let dir = tempfile::tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir())
            .unwrap();
        for slot in Slot::ALL {
            fs::write(dir.path().join(slot.name()), boot_partition_image("k")).unwrap();
        }
        fs::write(dir.path().join("autoboot.txt"), VENDOR).unwrap();
        let mut world = Self {
            dir,
            whole: [true; 2],
            proved: [true, false],
            running: Slot::A,
            bootloader: None,
            choices: choices.into_iter(),
            tries: 0,
        };
        world.power_on(false);
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn choose(&mut self, of: u8) -> u8 {
        self.choices.next().unwrap_or(0) % of
    }

    /// The firmware, then the daemon's look at what it finds.
    fn power_on(&mut self, flag: bool) {
        let text = fs::read(self.path("autoboot.txt")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        // Without a usable file: the first partition that boots, as with PARTITION_WALK=1.
        let walk = if self.whole[0] { 2 } else { 3 };
        let partition = boot_partition(&text, flag).unwrap_or(walk);
        self.tries += u32::from(flag);
        cells(self.dir.path(), partition, flag);
        self.running = if partition == 2 { Slot::A } else { Slot::B };
        assert!(
            self.whole[index(self.running)],
            "slot {} is not whole: {text}",
            self.running
        );
        assert!(
            flag || self.proved[index(self.running)],
            "slot {} was never confirmed: {text}",
            self.running
        );
        assert!(self.tries <= 1, "a second boot of a trial: {text}");
        let boot = Slot::ALL.map(|slot| self.path(slot.name()));
        let opened =
            TrybootBootloader::open(&self.path("autoboot.txt"), self.dir.path(), boot, true);
        // Lost within a trial: nothing is guessed, and the next boot is an ordinary one.
        self.bootloader = opened.ok();
    }

    /// One decision, which the power may interrupt: before, between the file and its copy, or with the sector lost that
    /// was being written.
    fn decide(&mut self, change: impl FnOnce(&mut TrybootBootloader)) -> Result<(), Cut> {
        let names = ["autoboot.txt", "autoboot.bak", "fwupdated.txt"];
        let read = |world: &Self| names.map(|name| fs::read(world.path(name)).unwrap_or_default());
        let before = read(self);
        let cut = self.choose(8);
        if cut == 1 {
            return Err(Cut);
        }
        change(self.bootloader.as_mut().expect("looked at before"));
        if !(2..=5).contains(&cut) {
            return Ok(());
        }
        // Only the first so many of the files that change, in their order, got to the medium; the last one damaged.
        let after = read(self);
        let changed: Vec<_> = (0..names.len())
            .filter(|n| before[*n] != after[*n])
            .collect();
        let arrived = usize::from(self.choose(4)).min(changed.len());
        for (order, number) in changed.into_iter().enumerate() {
            let lost = cut == 2 && order + 1 == arrived;
            let content = if lost {
                b"\xff\xff"
            } else if order < arrived {
                &after[number][..]
            } else {
                &before[number]
            };
            fs::write(self.path(names[number]), content).unwrap();
        }
        Err(Cut)
    }

    /// From the running, confirmed slot: an update up to the reboot.
    fn update(&mut self) -> Result<(), Cut> {
        let target = self.running.other();
        self.decide(|bootloader| bootloader.mark_bad(target).unwrap())?;
        (self.whole[index(target)], self.proved[index(target)]) = (false, false);
        if self.choose(6) == 1 {
            return Err(Cut);
        }
        self.whole[index(target)] = true;
        self.tries = 0;
        self.arm_and_start(target)
    }

    fn arm_and_start(&mut self, target: Slot) -> Result<(), Cut> {
        self.decide(|bootloader| bootloader.arm_trial(target, 1, "u").unwrap())?;
        self.start()
    }

    fn start(&mut self) -> Result<(), Cut> {
        self.decide(|bootloader| assert_eq!(bootloader.start_trial().unwrap(), Some("0 tryboot")))?;
        if self.choose(6) == 1 {
            return Err(Cut);
        }
        self.power_on(true);
        Ok(())
    }

    /// One boot's life.
    fn live(&mut self) -> Result<(), Cut> {
        let Some(bootloader) = &self.bootloader else {
            return Err(Cut);
        };
        let state = bootloader.state().unwrap();
        let on_trial = state
            .trial
            .as_ref()
            .is_some_and(|trial| trial.slot == self.running);
        if on_trial {
            let slot = self.running;
            if self.choose(2) == 0 {
                // Proved as soon as the decision may be on the medium.
                self.proved[index(slot)] = true;
                self.decide(|bootloader| bootloader.mark_good(slot).unwrap())?;
                self.tries = 0;
            } else {
                self.decide(|bootloader| bootloader.mark_bad(slot).unwrap())?;
                self.power_on(false);
            }
            return Ok(());
        }
        if state.confirmed != self.running {
            // The way back to the confirmed slot is an ordinary reboot.
            return Err(Cut);
        }
        match state.trial {
            Some(trial)
                if self
                    .bootloader
                    .as_ref()
                    .unwrap()
                    .trial_not_started()
                    .unwrap() =>
            {
                // The daemon reads the slot back first.
                if self.whole[index(trial.slot)] {
                    self.arm_and_start(trial.slot)
                } else {
                    self.decide(|bootloader| bootloader.mark_bad(trial.slot).unwrap())
                }
            }
            Some(trial) => self.decide(|bootloader| bootloader.mark_bad(trial.slot).unwrap()),
            None => self.update(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn whenever_the_power_goes_the_firmware_boots_the_confirmed_slot_or_the_armed_one_once(
        choices in proptest::collection::vec(any::<u8>(), 0..120),
    ) {
        let mut world = World::new(choices);
        while world.choices.len() > 0 {
            let left = world.choices.len();
            if world.live().is_err() {
                world.power_on(false);
            }
            if world.choices.len() == left {
                world.choices.next();
            }
        }
    }
}

struct Scene {
    rig: Rig,
    device: Device,
    _dir: TempDir,
}

/// A connected device with slots of 4 MiB, each with a boot partition, that the firmware boots.
async fn scene(settings: &str) -> Scene {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut device = Device::new(
        &rig,
        &dir.path().join("device"),
        4 * MIB as u64,
        "1.0.0",
        settings,
    );
    device.use_tryboot(&rig, &boot_partition_image("one"), settings);
    device.boot();
    device.until_connected(&rig).await;
    Scene {
        rig,
        device,
        _dir: dir,
    }
}

impl Scene {
    fn image(&self, version: &str, boot: &[u8]) -> Image {
        let file = self.rig.dir.join(format!("boot-{version}.img"));
        fs::write(&file, boot).unwrap();
        self.rig.build(
            version,
            noise(2 * MIB, 7),
            &["--boot", file.to_str().unwrap()],
        )
    }

    async fn start(&self, image: &Image) -> String {
        let uri = self.rig.serve(image);
        let (status, body) = self.rig.invoke(json!({ "fwPackageUri": uri })).await;
        assert_eq!(status, 200, "{body}");
        body["updateId"].as_str().unwrap().to_owned()
    }

    fn decision(&self) -> Autoboot {
        Autoboot::parse(&fs::read(self.device.autoboot()).unwrap()).unwrap()
    }

    fn note(&self) -> Option<Note> {
        Note::parse(&fs::read(self.device.dir.join("fwupdated.txt")).unwrap_or_default())
    }

    /// The update failed with `code`, and slot a is as good as it was.
    fn assert_back(&self, section: &Value, code: &str) {
        let log = self.device.log();
        assert_eq!(section["status"], "applyFailed", "{section:#}\n{log}");
        assert_eq!(section["error"]["code"], code, "{section:#}\n{log}");
        assert_eq!(self.device.running(), Slot::A);
        assert_eq!(self.decision(), Autoboot::new(2, 3));
        assert_eq!(self.note(), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_is_tried_by_the_firmware_and_confirmed_in_autoboot_txt_and_so_is_the_next() {
    let mut scene = scene("").await;
    for (version, target, boots, decision) in [
        ("1.1.0", Slot::B, 2, Autoboot::new(3, 2)),
        ("1.2.0", Slot::A, 3, Autoboot::new(2, 3)),
    ] {
        let boot = boot_partition_image(version);
        let image = scene.image(version, &boot);
        scene.device.update(&scene.rig, &image).await;
        assert_eq!(scene.device.running(), target);
        assert_eq!(scene.device.boots, boots);
        assert!(scene.device.holds(target, &image.raw));
        assert_eq!(fs::read(scene.device.boot_file(target)).unwrap(), boot);
        assert_eq!(scene.decision(), decision);
    }
    let twin = scene.rig.emulator.twin(support::rig::DEVICE);
    assert_eq!(
        twin["properties"]["reported"]["fwupdated"]["bootloader"],
        "tryboot"
    );
    // The doctor goes by the same file, and looks for no environment.
    let mut doctor = fwupdatectl();
    doctor.arg("--config").arg(scene.device.config());
    let output = doctor.args(["doctor", "--json"]).output().unwrap();
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    let about = |topic: &str| {
        let found = document["findings"].as_array().unwrap();
        found.iter().find(|it| it["topic"] == topic).cloned()
    };
    let boot = about("boot").expect("what the bootloader will do is said");
    assert_eq!(boot["level"], "ok", "{document:#}");
    assert!(
        boot["text"].as_str().unwrap().contains("slot a runs"),
        "{boot}"
    );
    assert_eq!(about("environment"), None, "{document:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_update_archive_of_the_vendor_s_image_tool_installs_both_partitions() {
    let mut scene = scene("").await;
    let folder = scene.rig.dir.join("archive");
    fs::create_dir(&folder).unwrap();
    let (boot, system) = (boot_partition_image("vendor"), noise(3 * MIB, 9));
    // As rpi-image-gen packs them: android sparse images, and `tar -I zstd -h -cf update.tar.zst -- *`.
    for (name, raw) in [("boot", &boot), ("system", &system)] {
        let plain = scene.rig.dir.join(name);
        fs::write(&plain, raw).unwrap();
        if let Err(error) = run(
            "img2simg",
            &[plain.to_str().unwrap(), folder.join(name).to_str().unwrap()],
        ) {
            skip::skipped(format_args!("no sparse images ({error})"));
            return;
        }
    }
    let file = scene.rig.dir.join("update.tar.zst");
    let script = format!(
        "cd {} && tar -I zstd -h -cf {} -- *",
        folder.display(),
        file.display()
    );
    run("sh", &["-c", &script]).unwrap();
    let bytes = fs::read(&file).unwrap();
    let digest = Sha256::of(&bytes).to_string();
    scene.rig.server.put("/update.tar.zst", bytes);
    let uri = scene.rig.server.url("/update.tar.zst");
    // Without digest and signature nothing vouches for it.
    let (_, body) = scene
        .rig
        .invoke(json!({ "fwPackageUri": &uri, "updateId": "bare" }))
        .await;
    let section = scene.device.until_final(&scene.rig, "bare").await;
    assert_eq!(
        section["error"]["code"], "image-unsigned",
        "{body} {section:#}"
    );
    let (status, body) = scene
        .rig
        .invoke(json!({ "fwPackageUri": &uri, "fwPackageSha256": digest, "updateId": "whole" }))
        .await;
    assert_eq!(status, 200, "{body}");
    let section = scene.device.until_final(&scene.rig, "whole").await;
    assert_eq!(
        section["status"],
        "applyComplete",
        "{section:#}\n{}",
        scene.device.log()
    );
    assert_eq!(scene.device.running(), Slot::B);
    assert!(scene.device.holds(Slot::B, &system));
    assert_eq!(fs::read(scene.device.boot_file(Slot::B)).unwrap(), boot);
    assert_eq!(scene.decision(), Autoboot::new(3, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unhealthy_trial_goes_back_by_an_ordinary_reboot() {
    let mut scene = scene("").await;
    scene.device.add_health_check(
        "no",
        &format!("! grep -q slot=b {}/booted", scene.device.dir.display()),
    );
    let image = scene.image("1.1.0", &boot_partition_image("two"));
    let id = scene.start(&image).await;
    let section = scene.device.until_final(&scene.rig, &id).await;
    scene.assert_back(&section, "health-check-failed");
    assert_eq!(scene.device.boots, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_does_not_come_up_is_tried_once_and_told() {
    let mut scene = scene("").await;
    let image = scene.image("1.1.0", &boot_partition_image("two"));
    let id = scene.start(&image).await;
    scene.device.stop_before_the_reboot().await;
    // The trial boot hangs, and a watchdog or a person cuts the power: the flag is gone.
    fs::remove_file(scene.device.dir.join("reboot-requested")).unwrap();
    scene.device.boot();
    let section = scene.device.until_final(&scene.rig, &id).await;
    scene.assert_back(&section, "trial-boot-failed");
    assert_eq!(scene.device.boots, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_between_arming_and_the_reboot_costs_nothing_but_time() {
    let mut scene = scene("").await;
    let image = scene.image("1.1.0", &boot_partition_image("two"));
    let id = scene.start(&image).await;
    scene.device.stop_before_the_reboot().await;
    // As if the power had gone before the reboot was asked for: the note says so, and /run is empty.
    let note = scene.note().unwrap();
    assert!(
        note.started && note.job == format!("{id} 1.1.0"),
        "{note:?}"
    );
    let armed = Note {
        started: false,
        ..note
    };
    fs::write(
        scene.device.dir.join("fwupdated.txt"),
        Note::render(Some(&armed)),
    )
    .unwrap();
    fs::remove_file(scene.device.dir.join("reboot-requested")).unwrap();
    scene.device.boot();
    assert_eq!(scene.device.running(), Slot::A);
    let section = scene.device.until_final(&scene.rig, &id).await;
    assert_eq!(
        section["status"],
        "applyComplete",
        "{section:#}\n{}",
        scene.device.log()
    );
    assert_eq!(scene.device.running(), Slot::B);
    assert_eq!(scene.device.boots, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_whose_boot_partition_would_hang_the_firmware_is_not_tried() {
    let mut scene = scene("").await;
    let mut boot = boot_partition_image("two");
    // The name of the kernel's directory entry.
    let at = boot
        .windows(11)
        .position(|name| name == b"KERNEL8 IMG")
        .unwrap();
    boot[at..at + 7].copy_from_slice(b"NOTHING");
    let image = scene.image("1.1.0", &boot);
    let id = scene.start(&image).await;
    let section = scene.device.until_final(&scene.rig, &id).await;
    scene.assert_back(&section, "tryboot-boot-files");
    assert_eq!(scene.device.boots, 1);
}
