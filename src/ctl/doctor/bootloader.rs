//! What the bootloader will do, whether it agrees with what runs, and how safe its memory is.

use std::{fs, io, os::unix::fs::FileTypeExt, path::Path};

use nix::sys::statfs::{MSDOS_SUPER_MAGIC, statfs};

use super::finding::Finding;
use crate::{
    config::{BootVariables, BootloaderKind, Config},
    platform::{
        slots::Slots,
        tryboot::TrybootBootloader,
        uboot_env::{CopyState, EnvError, EnvLocation, UbootBootloader, inspect},
    },
    update::{
        failure::Failure,
        machine::State,
        ports::{BootState, Bootloader as _},
        slot::Slot,
    },
};

const ENVIRONMENT: &str = "environment";
const BOOT: &str = "boot";
const SCRIPT: &str = "boot script";

/// The version of `packaging/uboot/boot.cmd`: it tells it on the kernel command line.
pub(super) const SCRIPT_VERSION: u32 = 1;

/// What was seen.
pub(super) struct Facts {
    /// The copies of the environment; `Err` when their places are not known, `None` where the bootloader has none.
    copies: Option<Result<Vec<Copy>, Failure>>,
    /// The bootloader's decision; `None` when no copy could be read.
    state: Option<Result<BootState, Failure>>,
    booted: Option<Slot>,
    /// What the daemon is at; `None` when that could not be read.
    machine: Option<State>,
    /// `/proc/cmdline`, where a boot script of ours wrote it.
    command_line: Option<String>,
}

struct Copy {
    /// Where, in words.
    place: String,
    medium: Medium,
    state: CopyState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Medium {
    Raw,
    Mtd,
    Fat,
    File,
}

impl Medium {
    fn of(path: &Path) -> Self {
        let kind = fs::metadata(path).map(|meta| meta.file_type());
        match kind {
            Ok(kind) if kind.is_block_device() => Self::Raw,
            Ok(kind) if kind.is_char_device() => Self::Mtd,
            _ if statfs(path).is_ok_and(|it| it.filesystem_type() == MSDOS_SUPER_MAGIC) => {
                Self::Fat
            }
            _ => Self::File,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Mtd => "MTD",
            Self::Fat => "file on FAT",
            Self::File => "file",
        }
    }
}

pub(super) fn gather(config: &Config, booted: Option<Slot>, machine: Option<State>) -> Facts {
    let state_directory = &config.state.directory;
    if config.bootloader.kind == BootloaderKind::Tryboot {
        return Facts {
            copies: None,
            state: tryboot(config),
            booted,
            machine,
            command_line: None,
        };
    }
    let config = &config.bootloader;
    let copies = EnvLocation::read(&config.env_config).map(|location| {
        let copies = inspect(&location).into_iter().map(|copy| Copy {
            place: format!("{} at {:#x}", copy.device.display(), copy.offset),
            medium: Medium::of(&copy.device),
            state: copy.state,
        });
        copies.collect::<Vec<_>>()
    });
    let copies = copies.map_err(|error| Failure::from(&EnvError::from(error)));
    let is_good = |copy: &Copy| matches!(copy.state, CopyState::Good);
    let readable = copies
        .as_ref()
        .is_ok_and(|copies| copies.iter().any(is_good));
    // Only then: reading takes the lock, which nobody should make for nothing.
    let state = readable.then(|| UbootBootloader::configured(config, state_directory).state());
    let command_line = match config.kind {
        BootloaderKind::Uboot if config.variables == BootVariables::Fwupdated => {
            fs::read_to_string("/proc/cmdline").ok()
        }
        _ => None,
    };
    Facts {
        copies: Some(copies),
        state,
        booted,
        machine,
        command_line,
    }
}

/// What the Raspberry Pi's firmware will do, as its file says; `None` without slots, which is said elsewhere.
fn tryboot(config: &Config) -> Option<Result<BootState, Failure>> {
    let slots = Slots::open(config.slots.as_ref()?, &config.bootloader).ok()?;
    let boot = match slots.boot() {
        Ok(boot) => boot?,
        Err(error) => return Some(Err(Failure::from(&error))),
    };
    let (file, tree) = (&config.bootloader.autoboot, &config.bootloader.device_tree);
    let stand_in = config.bootloader.is_stand_in();
    let opened = TrybootBootloader::look_only(file, tree, boot, stand_in);
    let opened = opened.map_err(|error| Failure::from(&error));
    Some(opened.and_then(|bootloader| bootloader.state()))
}

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = match &facts.copies {
        Some(Ok(copies)) => environment(copies),
        Some(Err(failure)) => vec![Finding::failure(ENVIRONMENT, failure)],
        None => Vec::new(),
    };
    match (&facts.state, facts.booted) {
        (Some(Err(failure)), _) => findings.push(Finding::failure(BOOT, failure)),
        (Some(Ok(state)), Some(booted)) => {
            findings.push(agreement(state, booted, facts.machine.as_ref()));
        }
        (Some(Ok(state)), None) => findings.push(Finding::unknown(
            BOOT,
            format!(
                "slot {} is confirmed; which one runs is not known",
                state.confirmed
            ),
        )),
        (None, _) => findings.push(Finding::unknown(
            BOOT,
            "what the bootloader will do is not known, as what it goes by cannot be read",
        )),
    }
    findings.extend(facts.command_line.as_deref().map(script));
    findings
}

fn environment(copies: &[Copy]) -> Vec<Finding> {
    let denied = |copy: &Copy| matches!(&copy.state, CopyState::Unreadable(error) if error.kind() == io::ErrorKind::PermissionDenied);
    if copies.iter().any(denied) {
        return vec![Finding::forbidden(
            ENVIRONMENT,
            "the bootloader's environment",
        )];
    }
    let good = copies
        .iter()
        .filter(|copy| matches!(copy.state, CopyState::Good));
    let good = good.count();
    let mut findings = Vec::new();
    for copy in copies {
        let place = &copy.place;
        let what = match &copy.state {
            CopyState::Good => continue,
            CopyState::Damaged => "has a wrong CRC".to_owned(),
            CopyState::Unreadable(error) => format!("cannot be read: {error}"),
        };
        let text = format!("the copy on {place} {what}");
        findings.push(match good {
            0 => Finding::error(
                ENVIRONMENT,
                text,
                "compare fw_env.config with how U-Boot was built; if they agree, write it anew from U-Boot (saveenv)",
            ),
            _ => Finding::warning(
                ENVIRONMENT,
                format!("{text}; the other copy is in force"),
                "the next change writes it anew; if it is damaged again, the medium is failing",
            ),
        });
    }
    let places: Vec<_> = copies
        .iter()
        .map(|copy| format!("{} ({})", copy.place, copy.medium.word()))
        .collect();
    let places = places.join(" and ");
    if let [only] = copies
        && good == 1
    {
        let weak = if only.medium == Medium::Fat {
            ", on a file system that a power cut can damage"
        } else {
            ""
        };
        findings.push(Finding::warning(
            ENVIRONMENT,
            format!("one copy only, {places}{weak}: a power cut while it is written loses it"),
            "build U-Boot with CONFIG_SYS_REDUNDAND_ENVIRONMENT in two raw places, and name both in fw_env.config",
        ));
    } else if good == copies.len() {
        findings.push(Finding::ok(
            ENVIRONMENT,
            format!("two copies, both whole: {places}"),
        ));
    }
    findings
}

/// Bootloader, kernel and state file tell one story, or do not.
fn agreement(boot: &BootState, booted: Slot, machine: Option<&State>) -> Finding {
    let confirmed = boot.confirmed;
    let job = machine.and_then(State::job);
    let is_target = job.is_some_and(|job| job.target == booted);
    let armed = matches!(
        machine,
        Some(
            State::Arming(_)
                | State::CarryingOver(_)
                | State::Returning(_)
                | State::Rebooting { .. }
                | State::RollingBack { .. }
                | State::Abandoning { .. }
        )
    );
    match &boot.trial {
        Some(trial) if trial.slot == booted => Finding::ok(
            BOOT,
            format!(
                "slot {booted} runs on trial, {} more boots if it is not confirmed; slot {confirmed} is confirmed",
                trial.tries_left
            ),
        ),
        _ if confirmed != booted => Finding::error(
            BOOT,
            format!(
                "slot {booted} runs, but slot {confirmed} is the confirmed one and no trial explains it"
            ),
            format!(
                "reboot; or if slot {booted} is the one to keep, name it to the bootloader: `fw_setenv fwupdated_slot {booted}` with \
                 U-Boot, autoboot.txt with the Raspberry Pi's firmware"
            ),
        ),
        // Nothing under way as far as is known, or nothing armed yet.
        Some(trial) if machine.is_some() && !armed => Finding::warning(
            BOOT,
            format!(
                "a trial of slot {} is pending that no update explains",
                trial.slot
            ),
            "restart fwupdated, which ends it",
        ),
        Some(trial) => Finding::ok(
            BOOT,
            format!(
                "slot {booted} runs and is confirmed; the next boot tries slot {}",
                trial.slot
            ),
        ),
        None if is_target && !matches!(machine, Some(State::Trial(_) | State::Confirming(_))) => {
            Finding::warning(
                BOOT,
                format!(
                    "slot {booted} runs and is confirmed, although the update under way was about to replace it"
                ),
                "start fwupdated, which reports the update as failed",
            )
        }
        None => Finding::ok(BOOT, format!("slot {booted} runs and is the confirmed one")),
    }
}

/// The boot script, by what it put on the kernel command line.
fn script(command_line: &str) -> Finding {
    let word = |name: &str| {
        let mut words = command_line.split_whitespace();
        words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    };
    let advice = "install packaging/uboot/boot.cmd of this version as boot.scr (docs/how-to/prepare-a-board.md)";
    if word("fwupdated.slot").is_none() {
        return Finding::warning(
            SCRIPT,
            "the kernel was not started by fwupdated's boot script",
            "nothing, if another script keeps to the same rules; else install packaging/uboot/boot.cmd as boot.scr",
        );
    }
    match word("fwupdated.script").map(str::parse::<u32>) {
        Some(Ok(version)) if version >= SCRIPT_VERSION => {
            Finding::ok(SCRIPT, format!("version {version} started the kernel"))
        }
        Some(Ok(version)) => Finding::warning(
            SCRIPT,
            format!(
                "version {version} started the kernel; this fwupdated brings version {SCRIPT_VERSION}"
            ),
            advice,
        ),
        Some(Err(_)) | None => Finding::warning(
            SCRIPT,
            format!(
                "a version older than 1 started the kernel; this fwupdated brings version {SCRIPT_VERSION}"
            ),
            advice,
        ),
    }
}

#[cfg(test)]
mod tests;
