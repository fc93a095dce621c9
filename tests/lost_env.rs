//! The day when both copies of the environment are lost: the confirmed slot has a second mark that the boot script
//! reads, and `fwupdatectl restore-env` writes the environment anew, never over a good one.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use fwupdated::{
    config::Config,
    platform::uboot_env::{
        BACKUP, Env, EnvLocation, MARK, UbootBootloader, UbootEnv, boot_decision_with_mark,
    },
    update::{
        ports::Bootloader,
        slot::Slot::{self, A, B},
    },
};
use tempfile::TempDir;

const SIZE: usize = 0x2000;
/// A board's own defaults, as U-Boot's build writes them.
const INITIAL: &str = "bootcmd=run distro_bootcmd\nbootdelay=2\nkernel_addr_r=0x80000\n";

struct Device(TempDir);

impl Device {
    /// Its environment was never written.
    fn blank(variables: &str) -> Self {
        let device = Self(tempfile::tempdir().unwrap());
        let path = |name: &str| device.path(name).display().to_string();
        for folder in ["boot", "state"] {
            fs::create_dir(device.path(folder)).unwrap();
        }
        device.lose();
        let env = path("env");
        fs::write(
            device.path("fw_env.config"),
            format!("{env} 0 {SIZE:#x}\n{env} {SIZE:#x} {SIZE:#x}\n"),
        )
        .unwrap();
        fs::write(device.path("u-boot-initial-env"), INITIAL).unwrap();
        let mark = match variables {
            "fwupdated" => format!("mark_file = '{}'", path("boot/fwupdated.slot")),
            _ => String::new(),
        };
        let text = format!(
            "[bootloader]\nkind = 'file'\nvariables = '{variables}'\nenv_config = '{}'\nlock_file = '{}'\n\
             booted_file = '{}'\n{mark}\n[state]\ndirectory = '{}'\n",
            path("fw_env.config"),
            path("lock"),
            path("booted"),
            path("state")
        );
        fs::write(device.path("fwupdated.toml"), text).unwrap();
        device
    }

    /// Slot a is confirmed.
    fn new() -> Self {
        let device = Self::blank("fwupdated");
        let from = device.path("u-boot-initial-env").display().to_string();
        let (code, said) = device.restore(&["--from", &from, "--slot", "a"]);
        assert_eq!(code, 0, "{said}");
        device.bootloader().running(A).unwrap();
        device
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn bootloader(&self) -> UbootBootloader {
        let config = Config::load(Some(&self.path("fwupdated.toml"))).unwrap();
        UbootBootloader::configured(&config.bootloader, &config.state.directory)
    }

    fn env(&self) -> UbootEnv {
        let location = EnvLocation::read(&self.path("fw_env.config")).unwrap();
        UbootEnv::new(location, &self.path("lock"))
    }

    fn confirmed(&self) -> Slot {
        let state = self.bootloader().state().unwrap();
        assert_eq!(state.trial, None);
        state.confirmed
    }

    fn lose(&self) {
        fs::write(self.path("env"), vec![0x5a; 2 * SIZE]).unwrap();
    }

    fn restore(&self, arguments: &[&str]) -> (i32, String) {
        let output: Output = Command::new(env!("CARGO_BIN_EXE_fwupdatectl"))
            .arg("restore-env")
            .args(arguments)
            .arg("--config")
            .arg(self.path("fwupdated.toml"))
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        (
            output.status.code().unwrap(),
            String::from_utf8(said).unwrap(),
        )
    }

    fn marked(&self) -> Option<Slot> {
        let text = fs::read_to_string(self.path("boot/fwupdated.slot")).ok()?;
        text.strip_prefix(&format!("{MARK}="))?
            .trim_end()
            .parse()
            .ok()
    }

    /// The slot that U-Boot boots with its compiled-in defaults and the mark.
    fn boots_without_env(&self) -> Slot {
        boot_decision_with_mark(&mut Env::default(), self.marked())
    }

    fn update_to(&self, slot: Slot) {
        let mut bootloader = self.bootloader();
        bootloader.mark_bad(slot).unwrap();
        bootloader.arm_trial(slot, 3, "u1").unwrap();
        assert_eq!(self.boots_without_env(), slot.other(), "during the trial");
        bootloader.mark_good(slot).unwrap();
    }
}

#[test]
fn an_environment_lost_after_an_update_leads_to_the_confirmed_slot_and_is_restored_whole() {
    let device = Device::new();
    device
        .env()
        .update(|env| env.set("mine", "kept").unwrap())
        .unwrap();
    for slot in [B, A, B] {
        device.update_to(slot);
        let before: Vec<_> = variables(&device);
        device.lose();
        let failure = device.bootloader().state().unwrap_err();
        assert_eq!(failure.code, "env-no-good-copy");
        assert!(
            failure.message.contains("fwupdatectl restore-env"),
            "{failure}"
        );
        assert_eq!(device.boots_without_env(), slot);
        let (code, said) = device.restore(&[]);
        assert_eq!(code, 0, "{said}");
        assert!(
            said.contains(&format!("slot {slot} is confirmed")),
            "{said}"
        );
        assert_eq!(device.confirmed(), slot);
        assert_eq!(variables(&device), before);
    }
}

fn variables(device: &Device) -> Vec<(String, String)> {
    let env = device.env().read().unwrap();
    let mut all: Vec<_> = env
        .iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    all.sort();
    all
}

#[test]
fn a_trial_is_not_restored_and_its_slot_does_not_become_the_confirmed_one() {
    let device = Device::new();
    device.bootloader().arm_trial(B, 3, "u1").unwrap();
    // The new slot runs, on trial.
    device.bootloader().running(B).unwrap();
    device.lose();
    assert_eq!(device.boots_without_env(), A);
    let (code, said) = device.restore(&[]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(device.confirmed(), A);
}

#[test]
fn a_good_environment_is_never_overwritten_and_half_of_one_is_good() {
    let device = Device::new();
    let mut bytes = fs::read(device.path("env")).unwrap();
    bytes[20] ^= 1;
    fs::write(device.path("env"), &bytes).unwrap();
    for arguments in [&[][..], &["--slot", "b"]] {
        let (code, said) = device.restore(arguments);
        assert_eq!(code, 1);
        assert!(said.contains("[env-exists]"), "{said}");
        assert_eq!(fs::read(device.path("env")).unwrap(), bytes);
    }
}

#[test]
fn what_cannot_be_restored_from_is_named_with_the_remedy_and_nothing_is_written() {
    let device = Device::blank("fwupdated");
    let before = fs::read(device.path("env")).unwrap();
    let refused = |arguments: &[&str], code: i32, said: &str| {
        let (exit, text) = device.restore(arguments);
        assert_eq!(exit, code, "{text}");
        assert!(text.contains(said), "{text}");
        assert_eq!(fs::read(device.path("env")).unwrap(), before);
    };
    refused(&[], 1, "give another file with --from");
    let text = device.path("u-boot-initial-env").display().to_string();
    refused(&["--from", &text], 2, "--slot");
    let torn = device.path("state").join(BACKUP);
    fs::write(&torn, vec![7; SIZE]).unwrap();
    refused(&[], 1, "[env-source]");
    // A saved copy that names no slot.
    fs::write(&torn, INITIAL).unwrap();
    refused(&[], 1, "[bootloader-not-initialised]");
}

#[test]
fn a_slot_that_does_not_run_is_not_confirmed_by_hand() {
    let device = Device::blank("fwupdated");
    let mut slots = String::from("[slots]\n");
    for slot in ["a", "b"] {
        let file = device.path(slot);
        fs::write(&file, vec![0; 4096]).unwrap();
        slots += &format!("{slot}.rootfs = '{}'\n", file.display());
    }
    let config = device.path("fwupdated.toml");
    fs::write(&config, fs::read_to_string(&config).unwrap() + &slots).unwrap();
    fs::write(device.path("booted"), "slot=a\nboot_id=1\n").unwrap();
    let before = fs::read(device.path("env")).unwrap();
    let from = device.path("u-boot-initial-env").display().to_string();
    let (code, said) = device.restore(&["--from", &from, "--slot", "b"]);
    assert_eq!(code, 4, "{said}");
    assert!(said.contains("[env-slot-not-running]"), "{said}");
    assert_eq!(fs::read(device.path("env")).unwrap(), before);
    let (code, said) = device.restore(&["--from", &from, "--slot", "a"]);
    assert_eq!(code, 0, "{said}");
}

#[test]
fn a_board_that_never_had_an_environment_gets_u_boot_s_defaults_and_the_slot() {
    for (variables, expected) in [
        ("fwupdated", "fwupdated_slot=b"),
        ("rauc", "BOOT_ORDER=B"),
        ("mender", "mender_boot_part=3"),
    ] {
        let device = Device::blank(variables);
        let from = device.path("u-boot-initial-env").display().to_string();
        let (code, said) = device.restore(&["--from", &from, "--slot", "b"]);
        assert_eq!(code, 0, "{said}");
        assert_eq!(device.confirmed(), B);
        let text: Vec<_> = self::variables(&device)
            .into_iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        for line in INITIAL.lines().chain([expected]) {
            assert!(text.iter().any(|found| found == line), "{line}: {text:?}");
        }
    }
}

#[test]
fn no_slot_is_written_as_long_as_a_mark_names_it() {
    for name in ["boot/fwupdated.slot", "state/env.backup"] {
        let device = Device::new();
        // Where the new mark is written first: it cannot be.
        let obstacle = device.path(name).with_extension("new");
        fs::create_dir(&obstacle).unwrap();
        device.bootloader().mark_good(B).unwrap();
        let failure = device.bootloader().mark_bad(A).unwrap_err();
        assert_eq!(failure.code, "bootloader-mark-stale");
        assert!(failure.message.contains(name), "{failure}");
        // The next start of the daemon puts it right.
        fs::remove_dir(&obstacle).unwrap();
        device.bootloader().running(B).unwrap();
        device.bootloader().mark_bad(A).unwrap();
        assert_eq!((device.marked(), device.boots_without_env()), (Some(B), B));
    }
}

#[test]
fn a_power_cut_between_the_marks_leaves_only_slots_that_can_boot() {
    // The environment is written first, then the mark, then the saved copy: lose what comes after each.
    let old = Device::new();
    let saved = |device: &Device, name: &str| fs::read(device.path(name)).unwrap();
    let names = ["boot/fwupdated.slot", "state/env.backup"];
    let before = names.map(|name| saved(&old, name));
    for written in 0..=names.len() {
        let device = Device::new();
        device.update_to(B);
        for (name, bytes) in names.iter().zip(&before).skip(written) {
            fs::write(device.path(name), bytes).unwrap();
        }
        device.lose();
        // Slot a is whole, since nothing was written to it after slot b was confirmed.
        let expected = if written > 0 { B } else { A };
        assert_eq!(device.boots_without_env(), expected);
        let (code, said) = device.restore(&[]);
        assert_eq!(code, 0, "{said}");
        let restored = device.confirmed();
        assert_eq!(restored, if written > 1 { B } else { A });
        // Before the other one is written, both marks name this one.
        device.bootloader().mark_bad(restored.other()).unwrap();
        assert_eq!(device.boots_without_env(), restored);
    }
}

#[test]
fn the_saved_environment_is_one_that_the_tools_can_read() {
    let device = Device::new();
    device.update_to(B);
    let file = device.path("state").join(BACKUP);
    assert_eq!(fs::metadata(&file).unwrap().len(), SIZE as u64);
    let text = format!("{} 0 {SIZE:#x}\n", file.display());
    let location = EnvLocation::parse(Path::new("c"), &text).unwrap();
    let env = UbootEnv::new(location, &device.path("lock"))
        .read()
        .unwrap();
    assert_eq!(env.get("fwupdated_slot"), Some("b"));
    assert_eq!(env.get("bootcmd"), Some("run distro_bootcmd"));
}
