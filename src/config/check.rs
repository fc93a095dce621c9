//! Merged -> valid: ranges, forms and what keys mean to each other.

use std::{
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    error::{ConfigError, Place},
    layer::Layer,
    raw::{
        BOOT_COMPLETE, DEVICE_TREE, Permission, RawBootloader, RawConfig, RawDuration, RawSlots,
        RawTrust, TRIES,
    },
    valid::*,
};

mod fetch;
mod hub;
mod policy;

/// A rule that a key breaks. The layers know where the key stands.
#[derive(Debug)]
pub(super) struct Wrong {
    key: String,
    message: String,
}

type Checked<T> = Result<T, Wrong>;

impl Wrong {
    fn new(key: &str, message: impl AsRef<str>) -> Self {
        Self {
            key: key.to_owned(),
            message: format!("{key} {}", message.as_ref()),
        }
    }

    /// The error, at the place that gave the key its value: the last layer's that has it.
    pub(super) fn located(self, layers: &[Layer]) -> ConfigError {
        let place = layers
            .iter()
            .rev()
            .find_map(|layer| layer.place_of(&self.key));
        // Absent everywhere means that something is missing: any file will do to add it.
        let place = place.unwrap_or_else(|| Place {
            name: layers
                .iter()
                .rev()
                .find(|layer| layer.has_lines)
                .map_or("configuration", |layer| &layer.name)
                .to_owned(),
            position: None,
        });
        ConfigError::Value {
            place,
            message: self.message,
        }
    }
}

pub(super) fn valid(raw: &RawConfig) -> Checked<Config> {
    let RawConfig {
        hub,
        provisioning,
        slots,
        bootloader,
        fetch,
        trust,
        policy,
        health,
        hooks,
        carry_over,
        report,
        state,
        control,
        metrics,
    } = raw;
    Ok(Config {
        hub: self::hub::hub(hub)?,
        provisioning: self::hub::provisioning(hub, provisioning)?,
        slots: self::slots(slots, bootloader.kind)?,
        bootloader: self::bootloader(bootloader)?,
        fetch: self::fetch::fetch(fetch)?,
        trust: self::trust(trust)?,
        policy: self::policy::policy(policy, bootloader)?,
        health: HealthConfig {
            deadline: duration("health.deadline", health.deadline, secs(1)..=DAY)?,
            units: units(health.units.as_deref(), bootloader.kind)?,
            newly_failed_units: health
                .newly_failed_units
                .unwrap_or(bootloader.kind != BootloaderKind::File),
            hook_dir: needed_path("health.hook_dir", &health.hook_dir)?,
            hook_timeout: duration("health.hook_timeout", health.hook_timeout, secs(1)..=HOUR)?,
            interval: duration("health.interval", health.interval, TENTH..=MINUTE * 5)?,
            require_hub: health.hub,
        },
        hooks: HooksConfig {
            dir: needed_path("hooks.dir", &hooks.dir)?,
            timeout: duration("hooks.timeout", hooks.timeout, secs(1)..=HOUR)?,
        },
        carry_over: CarryOverConfig {
            paths: carry_over_paths(&carry_over.paths)?,
        },
        report: ReportConfig {
            stage_interval: duration(
                "report.stage_interval",
                report.stage_interval,
                Duration::ZERO..=HOUR,
            )?,
            progress_interval: duration(
                "report.progress_interval",
                report.progress_interval,
                TENTH..=HOUR,
            )?,
            answer_timeout: duration(
                "report.answer_timeout",
                report.answer_timeout,
                secs(1)..=MINUTE * 10,
            )?,
            reconnect_jitter: duration(
                "report.reconnect_jitter",
                report.reconnect_jitter,
                Duration::ZERO..=MINUTE * 5,
            )?,
        },
        state: StateConfig {
            directory: needed_path("state.directory", &state.directory)?,
        },
        control: ControlConfig {
            socket: needed_path("control.socket", &control.socket)?,
            bus: control.bus,
            os_release: needed_path("control.os_release", &control.os_release)?,
        },
        metrics: MetricsConfig {
            textfile: textfile(&metrics.textfile)?,
            interval: duration("metrics.interval", metrics.interval, secs(1)..=HOUR)?,
        },
    })
}

const TENTH: Duration = Duration::from_millis(100);
const MINUTE: Duration = secs(60);
const HOUR: Duration = secs(3600);
const DAY: Duration = secs(24 * 3600);

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn duration(key: &str, value: RawDuration, allowed: RangeInclusive<Duration>) -> Checked<Duration> {
    if allowed.contains(&value.0) {
        return Ok(value.0);
    }
    let (from, to) = (RawDuration(*allowed.start()), RawDuration(*allowed.end()));
    Err(Wrong::new(
        key,
        format!("is {value}; allowed is {from} to {to}"),
    ))
}

fn number<N: PartialOrd + std::fmt::Display>(
    key: &str,
    value: N,
    allowed: RangeInclusive<N>,
) -> Checked<N> {
    if allowed.contains(&value) {
        return Ok(value);
    }
    Err(Wrong::new(
        key,
        format!(
            "is {value}; allowed is {} to {}",
            allowed.start(),
            allowed.end()
        ),
    ))
}

/// The daemon's working directory is nothing that the writer of a configuration knows.
fn path(key: &str, value: &str) -> Checked<Option<PathBuf>> {
    match Path::new(value) {
        _ if value.is_empty() => Ok(None),
        path if path.is_absolute() => Ok(Some(path.to_owned())),
        _ => Err(Wrong::new(
            key,
            format!("is `{value}`; give the whole path, from `/`"),
        )),
    }
}

/// The collector passes over files with other names.
fn textfile(file: &str) -> Checked<Option<PathBuf>> {
    const KEY: &str = "metrics.textfile";
    match path(KEY, file)? {
        Some(file) if file.extension().is_none_or(|end| end != "prom") => Err(Wrong::new(
            KEY,
            format!(
                "is `{}`; node_exporter reads files whose names end with `.prom` alone",
                file.display()
            ),
        )),
        other => Ok(other),
    }
}

fn trust(raw: &RawTrust) -> Checked<TrustConfig> {
    // Whoever asks for signatures must not get images that nobody signed.
    if raw.plain == PlainTrust::Signed && raw.unsigned == Permission::Allow {
        return Err(Wrong::new(
            "trust.unsigned",
            "is \"allow\" while trust.plain = \"signed\"; an image that nobody signed would install all the same, so \
             take one of them out",
        ));
    }
    Ok(TrustConfig {
        key_dirs: paths("trust.key_dirs", &raw.key_dirs)?,
        revoked_dirs: paths("trust.revoked_dirs", &raw.revoked_dirs)?,
        threshold: usize::from(number("trust.threshold", raw.threshold, 1..=16)?),
        plain: raw.plain,
        allow_unsigned: raw.unsigned == Permission::Allow,
        allow_downgrade: raw.downgrade == Permission::Allow,
        compatible: filled("trust.compatible", &raw.compatible)?,
    })
}

fn needed_path(key: &str, value: &str) -> Checked<PathBuf> {
    path(key, value)?.ok_or_else(|| Wrong::new(key, "is empty; give a path"))
}

fn paths(key: &str, values: &[String]) -> Checked<Vec<PathBuf>> {
    values.iter().map(|value| needed_path(key, value)).collect()
}

fn filled(key: &str, values: &[String]) -> Checked<Vec<String>> {
    match values.iter().any(|value| value.trim().is_empty()) {
        true => Err(Wrong::new(
            key,
            "has an empty text in its list; take it out",
        )),
        false => Ok(values.to_vec()),
    }
}

/// Whole paths, without detours: what they name in one root must be what they name in the other.
fn carry_over_paths(paths: &[String]) -> Checked<Vec<String>> {
    const KEY: &str = "carry_over.paths";
    for path in paths {
        let names: Vec<_> = path.split('/').filter(|name| !name.is_empty()).collect();
        let says = match names.as_slice() {
            _ if !path.starts_with('/') => "give the whole path, from `/`",
            [] => "the whole root file system cannot be carried over",
            names if names.iter().any(|name| [".", ".."].contains(name)) => {
                "write it without `.` and `..`"
            }
            _ => continue,
        };
        return Err(Wrong::new(KEY, format!("has `{path}`; {says}")));
    }
    Ok(paths.to_vec())
}

/// A host name or address alone: the port is a key of its own, and what compares hosts sees no port.
fn host<'a>(key: &str, value: &'a str) -> Checked<&'a str> {
    let port = value
        .rsplit_once(':')
        .is_some_and(|(name, _)| !name.contains(':'));
    if port || value.contains(['/', '@', '?', ' ']) {
        return Err(Wrong::new(
            key,
            format!("has `{value}`; give a host name alone, without scheme, port or path"),
        ));
    }
    Ok(value)
}

fn units(units: Option<&[String]>, kind: BootloaderKind) -> Checked<Vec<String>> {
    const KEY: &str = "health.units";
    let Some(units) = units else {
        return Ok(match kind {
            BootloaderKind::Uboot | BootloaderKind::Tryboot => vec![BOOT_COMPLETE.to_owned()],
            BootloaderKind::File => Vec::new(),
        });
    };
    match units
        .iter()
        .find(|unit| !unit.contains('.') || unit.contains(['/', ' ']))
    {
        Some(unit) => Err(Wrong::new(
            KEY,
            format!("has `{unit}`; give a systemd unit with its suffix, such as `my-app.service`"),
        )),
        None => Ok(units.to_vec()),
    }
}

fn slots(slots: &RawSlots, kind: BootloaderKind) -> Checked<Option<SlotsConfig>> {
    const ROOTFS: [&str; 2] = ["slots.a.rootfs", "slots.b.rootfs"];
    const BOOT: [&str; 2] = ["slots.a.boot", "slots.b.boot"];
    let rootfs = both_slots(ROOTFS, [&slots.a.rootfs, &slots.b.rootfs])?;
    let boot = both_slots(BOOT, [&slots.a.boot, &slots.b.boot])?;
    let [a, b] = match (rootfs, &boot) {
        (Some(rootfs), _) => rootfs,
        (None, None) => return Ok(None),
        (None, Some(_)) => {
            return Err(Wrong::new(
                ROOTFS[0],
                "is missing while slots.a.boot is there; a slot is a root file system, with its own boot partition or \
                 without",
            ));
        }
    };
    if kind == BootloaderKind::Tryboot && boot.is_none() {
        return Err(Wrong::new(
            BOOT[0],
            "is missing; with bootloader.kind = \"tryboot\" the firmware boots a partition with boot files for each slot",
        ));
    }
    let [boot_a, boot_b] = boot.clone().unwrap_or_default();
    let named = [
        (ROOTFS[0], &a),
        (ROOTFS[1], &b),
        (BOOT[0], &boot_a),
        (BOOT[1], &boot_b),
    ];
    for (number, (key, device)) in named.iter().enumerate() {
        let same = named[..number].iter().find(|(_, other)| other == device);
        if let Some((other, _)) = same.filter(|_| !device.is_empty()) {
            return Err(Wrong::new(
                key,
                format!("is the same partition as {other} ({device}); give each slot its own"),
            ));
        }
    }
    Ok(Some(SlotsConfig { a, b, boot }))
}

/// The partitions that the two `keys` name, or none.
fn both_slots(keys: [&'static str; 2], devices: [&String; 2]) -> Checked<Option<[String; 2]>> {
    match devices.map(|device| device.is_empty()) {
        [true, true] => return Ok(None),
        [false, false] => {}
        [a_missing, _] => {
            let [a, b] = keys;
            let (missing, there) = if a_missing { (a, b) } else { (b, a) };
            return Err(Wrong::new(
                missing,
                format!("is missing while {there} is there; name both slots"),
            ));
        }
    }
    for (key, device) in keys.into_iter().zip(devices) {
        let named = ["PARTUUID=", "PARTLABEL="].iter().any(|form| {
            device
                .strip_prefix(form)
                .is_some_and(|name| !name.is_empty())
        });
        if !named && !Path::new(device).is_absolute() {
            return Err(Wrong::new(
                key,
                format!(
                    "is `{device}`; give a path such as `/dev/mmcblk0p2`, `PARTUUID=...` or `PARTLABEL=...`"
                ),
            ));
        }
    }
    Ok(Some(devices.map(Clone::clone)))
}

/// Whether what reboots is not the machine that the daemon runs on.
fn is_stand_in(raw: &RawBootloader) -> bool {
    match raw.kind {
        BootloaderKind::Uboot => false,
        BootloaderKind::Tryboot => Path::new(&raw.device_tree) != Path::new(DEVICE_TREE),
        BootloaderKind::File => true,
    }
}

fn bootloader(raw: &RawBootloader) -> Checked<BootloaderConfig> {
    const BOOTED_FILE: &str = "bootloader.booted_file";
    const REBOOT_COMMAND: &str = "bootloader.reboot_command";
    let booted_file = path(BOOTED_FILE, &raw.booted_file)?;
    let reboot_command = Some(&raw.reboot_command).filter(|command| !command.is_empty());
    if reboot_command.is_some_and(|command| command[0].is_empty()) {
        return Err(Wrong::new(
            REBOOT_COMMAND,
            "begins with an empty text; begin with the program",
        ));
    }
    let device_tree = needed_path("bootloader.device_tree", &raw.device_tree)?;
    let stand_in = is_stand_in(raw);
    match (&booted_file, stand_in) {
        (Some(_), false) => {
            return Err(Wrong::new(
                BOOTED_FILE,
                "is only for bootloader.kind = \"file\"; take it out",
            ));
        }
        (None, true) => {
            return Err(Wrong::new(
                BOOTED_FILE,
                match raw.kind {
                    BootloaderKind::Tryboot => {
                        "is missing; a bootloader.device_tree of one's own is for a stand-in, which needs it"
                    }
                    _ => "is missing; bootloader.kind = \"file\" needs it",
                },
            ));
        }
        _ => {}
    }
    let [a, b] = raw.partitions;
    if a == b || a == 0 || b == 0 {
        return Err(Wrong::new(
            "bootloader.partitions",
            format!("is [{a}, {b}]; it must be two different partition numbers, slot a's first"),
        ));
    }
    let mark_file = path("bootloader.mark_file", &raw.mark_file)?;
    if mark_file.is_some() && raw.variables != BootVariables::Fwupdated {
        return Err(Wrong::new(
            "bootloader.mark_file",
            "is only for bootloader.variables = \"fwupdated\", whose boot script reads it; take it out",
        ));
    }
    if reboot_command.is_some() && !stand_in {
        return Err(Wrong::new(
            REBOOT_COMMAND,
            "is only for bootloader.kind = \"file\"; take it out",
        ));
    }
    let tries = match (raw.kind, raw.tries) {
        (BootloaderKind::Tryboot, None | Some(1)) => 1,
        (BootloaderKind::Tryboot, Some(tries)) => {
            return Err(Wrong::new(
                "bootloader.tries",
                format!(
                    "is {tries}; the Raspberry Pi's firmware tries a slot once (bootloader.kind = \"tryboot\"), so set 1 \
                     or take it out"
                ),
            ));
        }
        (_, tries) => number("bootloader.tries", tries.unwrap_or(TRIES), 1..=9)?,
    };
    Ok(BootloaderConfig {
        kind: raw.kind,
        variables: raw.variables,
        partitions: raw.partitions,
        mark_file,
        env_config: needed_path("bootloader.env_config", &raw.env_config)?,
        lock_file: needed_path("bootloader.lock_file", &raw.lock_file)?,
        tries,
        autoboot: needed_path("bootloader.autoboot", &raw.autoboot)?,
        device_tree,
        booted_file,
        reboot_command: reboot_command.cloned(),
    })
}
