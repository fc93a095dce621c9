//! The configuration as written: one field per key, with the defaults. Nothing is checked here but
//! types; [`super::Config`] is what the program uses.
//!
//! An empty text or list stands for "not set", so that a later layer can take back what an earlier one
//! set.

use std::{fmt, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::valid::{BootVariables, BootloaderKind, HubTransport, PlainTrust};
use crate::update::{
    policy::{Approval, Reboot, Start},
    window::Window,
};

/// A duration as written: `"30s"`, `"5m"`, `"1h30m"`, `"7d"` (days of 24 hours).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawDuration(pub Duration);

impl RawDuration {
    const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }
}

impl fmt::Display for RawDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::SignedDuration::try_from(self.0) {
            Ok(duration) => write!(f, "{duration:#}"),
            Err(_) => write!(f, "{}s", self.0.as_secs()),
        }
    }
}

impl std::str::FromStr for RawDuration {
    type Err = NotADuration;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.trim()
            .parse::<jiff::Span>()
            .and_then(|span| span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()))
            .ok()
            .and_then(|duration| Duration::try_from(duration).ok())
            .map(Self)
            .ok_or_else(|| NotADuration(text.to_owned()))
    }
}

/// The text was not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a duration; write one such as \"500ms\", \"30s\", \"5m\", \"1h30m\" or \"7d\""
)]
pub struct NotADuration(pub String);

impl Serialize for RawDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RawDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = RawDuration;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as \"30s\", \"5m\" or \"1h\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<RawDuration, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

/// Whether something that is unsafe outside a workshop is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Permission {
    /// Allowed.
    Allow,
    /// Refused.
    Deny,
}

/// Declares a section: its keys, their types and their defaults in one place.
macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($(#[$attribute:meta])* $key:ident: $type:ty = $default:expr,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields, expecting = "a table")]
        #[expect(missing_docs, reason = "the valid configuration documents each key")]
        pub struct $name {
            $($(#[$attribute])* pub $key: $type,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($key: $default,)* }
            }
        }
    };
}

section! {
    /// The whole configuration.
    RawConfig {
        hub: RawHub = RawHub::default(),
        provisioning: RawProvisioning = RawProvisioning::default(),
        slots: RawSlots = RawSlots::default(),
        bootloader: RawBootloader = RawBootloader::default(),
        fetch: RawFetch = RawFetch::default(),
        trust: RawTrust = RawTrust::default(),
        policy: RawPolicy = RawPolicy::default(),
        health: RawHealth = RawHealth::default(),
        hooks: RawHooks = RawHooks::default(),
        carry_over: RawCarryOver = RawCarryOver::default(),
        report: RawReport = RawReport::default(),
        state: RawState = RawState::default(),
        control: RawControl = RawControl::default(),
        metrics: RawMetrics = RawMetrics::default(),
    }
}

section! {
    /// `[hub]`
    RawHub {
        connection_string_file: String = "/etc/fwupdated/connection-string".to_owned(),
        certificate_file: String = String::new(),
        private_key_file: String = String::new(),
        ca_file: String = String::new(),
        gateway_host: String = String::new(),
        transport: HubTransport = HubTransport::Mqtt,
        mqtt_port: u16 = 8883,
        websocket_port: u16 = 443,
        proxy: String = String::new(),
        proxy_authorization_file: String = String::new(),
        keep_alive: RawDuration = RawDuration::seconds(180),
        token_lifetime: RawDuration = RawDuration::seconds(3600),
        reconnect_max: RawDuration = RawDuration::seconds(300),
        method_names: Vec<String> = texts(&["firmwareUpdate", "InitiateFirmwareUpdate"]),
        allow_reboot_method: bool = false,
    }
}

section! {
    /// `[provisioning]`
    RawProvisioning {
        id_scope: String = String::new(),
        registration_id: String = String::new(),
        symmetric_key_file: String = String::new(),
        payload_file: String = String::new(),
        host: String = "global.azure-devices-provisioning.net".to_owned(),
        mqtt_port: u16 = 8883,
    }
}

section! {
    /// `[slots]`
    RawSlots {
        a: RawSlot = RawSlot::default(),
        b: RawSlot = RawSlot::default(),
    }
}

section! {
    /// `[slots.a]`, `[slots.b]`
    RawSlot {
        rootfs: String = String::new(),
        boot: String = String::new(),
    }
}

section! {
    /// `[bootloader]`
    RawBootloader {
        kind: BootloaderKind = BootloaderKind::Uboot,
        env_config: String = "/etc/fw_env.config".to_owned(),
        lock_file: String = "/var/lock/fw_printenv.lock".to_owned(),
        variables: BootVariables = BootVariables::Fwupdated,
        partitions: [u32; 2] = [2, 3],
        mark_file: String = String::new(),
        /// `None`: what suits the bootloader.
        #[serde(serialize_with = "tries")]
        tries: Option<u8> = None,
        autoboot: String = "/bootfs/autoboot.txt".to_owned(),
        device_tree: String = DEVICE_TREE.to_owned(),
        booted_file: String = String::new(),
        reboot_command: Vec<String> = Vec::new(),
    }
}

section! {
    /// `[fetch]`
    RawFetch {
        ca_file: String = String::new(),
        insecure_hosts: Vec<String> = Vec::new(),
        connect_timeout: RawDuration = RawDuration::seconds(30),
        read_timeout: RawDuration = RawDuration::seconds(60),
        give_up_after: RawDuration = RawDuration::seconds(3600),
        retry_max: RawDuration = RawDuration::seconds(60),
        max_redirects: u8 = 5,
        authorization_file: String = String::new(),
        authorization_hosts: Vec<String> = Vec::new(),
        connections: u8 = 4,
        rate_limit: String = String::new(),
        proxy: String = String::new(),
        proxy_authorization_file: String = String::new(),
        client_certificate_file: String = String::new(),
        client_key_file: String = String::new(),
        client_certificate_hosts: Vec<String> = Vec::new(),
    }
}

section! {
    /// `[trust]`
    RawTrust {
        key_dirs: Vec<String> = texts(&["/usr/lib/fwupdated/keys.d", "/etc/fwupdated/keys.d"]),
        revoked_dirs: Vec<String> = texts(&["/etc/fwupdated/revoked.d"]),
        threshold: u8 = 1,
        plain: PlainTrust = PlainTrust::Digest,
        unsigned: Permission = Permission::Deny,
        downgrade: Permission = Permission::Deny,
        compatible: Vec<String> = Vec::new(),
    }
}

section! {
    /// `[policy]`
    RawPolicy {
        windows: Vec<Window> = Vec::new(),
        time_zone: String = String::new(),
        start: Start = Start::Window,
        approval: Approval = Approval::None,
        random_delay: RawDuration = RawDuration::seconds(0),
        hook_dir: String = "/etc/fwupdated/policy.d".to_owned(),
        hook_interval: RawDuration = RawDuration::seconds(60),
        reboot: Reboot = Reboot::Window,
        max_deferral: RawDuration = RawDuration::seconds(7 * 24 * 3600),
        /// `None`: what suits the bootloader.
        #[serde(serialize_with = "reboot_notice")]
        reboot_notice: Option<RawDuration> = None,
        /// `None`: what suits the bootloader.
        #[serde(serialize_with = "max_inhibit")]
        max_inhibit: Option<RawDuration> = None,
    }
}

section! {
    /// `[health]`
    RawHealth {
        deadline: RawDuration = RawDuration::seconds(600),
        /// `None`: what suits the bootloader.
        #[serde(serialize_with = "units")]
        units: Option<Vec<String>> = None,
        /// `None`: what suits the bootloader.
        #[serde(serialize_with = "is_real")]
        newly_failed_units: Option<bool> = None,
        hook_dir: String = "/etc/fwupdated/health.d".to_owned(),
        hook_timeout: RawDuration = RawDuration::seconds(60),
        interval: RawDuration = RawDuration::seconds(5),
        hub: bool = false,
    }
}

section! {
    /// `[hooks]`
    RawHooks {
        dir: String = "/etc/fwupdated/hooks.d".to_owned(),
        timeout: RawDuration = RawDuration::seconds(60),
    }
}

section! {
    /// `[carry_over]`
    RawCarryOver {
        paths: Vec<String> = Vec::new(),
    }
}

section! {
    /// `[report]`
    RawReport {
        stage_interval: RawDuration = RawDuration::seconds(1),
        progress_interval: RawDuration = RawDuration::seconds(5),
        answer_timeout: RawDuration = RawDuration::seconds(30),
        reconnect_jitter: RawDuration = RawDuration::seconds(3),
    }
}

section! {
    /// `[state]`
    RawState {
        directory: String = "/var/lib/fwupdated".to_owned(),
    }
}

section! {
    /// `[control]`
    RawControl {
        socket: String = "/run/fwupdated/control".to_owned(),
        bus: bool = true,
        os_release: String = "/etc/os-release".to_owned(),
    }
}

section! {
    /// `[metrics]`
    RawMetrics {
        textfile: String = String::new(),
        interval: RawDuration = RawDuration::seconds(15),
    }
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

/// The unit that a U-Boot device's trial boot must reach unless `health.units` says otherwise.
pub(super) const BOOT_COMPLETE: &str = "boot-complete.target";

/// Where the firmware of a real board tells what it booted.
pub(super) const DEVICE_TREE: &str = "/proc/device-tree";
/// Boots of a trial, where the bootloader counts them.
pub(super) const TRIES: u8 = 3;

/// How long users of a real board are warned before it reboots.
pub(super) const REBOOT_NOTICE: RawDuration = RawDuration::seconds(60);
/// How long a program may hold up the reboot of a real board.
pub(super) const MAX_INHIBIT: RawDuration = RawDuration::seconds(6 * 3600);

#[expect(clippy::ref_option, reason = "the signature that serde asks for")]
fn reboot_notice<S: Serializer>(
    time: &Option<RawDuration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    time.unwrap_or(REBOOT_NOTICE).serialize(serializer)
}

#[expect(clippy::ref_option, reason = "the signature that serde asks for")]
fn max_inhibit<S: Serializer>(
    time: &Option<RawDuration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    time.unwrap_or(MAX_INHIBIT).serialize(serializer)
}

#[expect(clippy::ref_option, reason = "the signature that serde asks for")]
fn tries<S: Serializer>(tries: &Option<u8>, serializer: S) -> Result<S::Ok, S::Error> {
    tries.unwrap_or(TRIES).serialize(serializer)
}

/// The same for a switch that is on for real boards.
#[expect(clippy::ref_option, reason = "the signature that serde asks for")]
#[expect(clippy::trivially_copy_pass_by_ref, reason = "the same")]
fn is_real<S: Serializer>(switch: &Option<bool>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bool(switch.unwrap_or(true))
}

/// TOML has no null: the default is shown as it is with the default bootloader.
#[expect(clippy::ref_option, reason = "the signature that serde asks for")]
fn units<S: Serializer>(units: &Option<Vec<String>>, serializer: S) -> Result<S::Ok, S::Error> {
    match units {
        Some(units) => units.serialize(serializer),
        None => [BOOT_COMPLETE].serialize(serializer),
    }
}
