//! The configuration as the program uses it: if a value of these types exists, every rule held.
//!
//! Every option is documented in `docs/reference/configuration.md`.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::update::{policy::Rules, slot::Slot};

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `[hub]`
    pub hub: HubConfig,
    /// `[provisioning]`; `None` without an id scope.
    pub provisioning: Option<ProvisioningConfig>,
    /// `[slots]`; `None` until the slots are configured.
    pub slots: Option<SlotsConfig>,
    /// `[bootloader]`
    pub bootloader: BootloaderConfig,
    /// `[fetch]`
    pub fetch: FetchConfig,
    /// `[trust]`
    pub trust: TrustConfig,
    /// `[policy]`
    pub policy: PolicyConfig,
    /// `[health]`
    pub health: HealthConfig,
    /// `[hooks]`
    pub hooks: HooksConfig,
    /// `[carry_over]`
    pub carry_over: CarryOverConfig,
    /// `[report]`
    pub report: ReportConfig,
    /// `[state]`
    pub state: StateConfig,
    /// `[control]`
    pub control: ControlConfig,
    /// `[metrics]`
    pub metrics: MetricsConfig,
}

/// `[hub]`: how the device reaches IoT Hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubConfig {
    /// File with the device connection string. `None`, or a file that does not exist: the daemon runs
    /// without a hub and says so. `$CREDENTIALS_DIRECTORY/connection_string` is tried first.
    /// Default `/etc/fwupdated/connection-string`.
    pub connection_string_file: Option<PathBuf>,
    /// The device's certificate (PEM, the leaf first, then its chain), for `x509=true` and provisioning.
    /// `$CREDENTIALS_DIRECTORY/device_certificate` is tried first. There is a key file too, or neither.
    pub certificate_file: Option<PathBuf>,
    /// The certificate's private key (PEM). `$CREDENTIALS_DIRECTORY/device_key` is tried first.
    pub private_key_file: Option<PathBuf>,
    /// CA certificates (PEM) to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Host to connect to instead of the hub itself (TCP, SNI and certificate name).
    pub gateway_host: Option<String>,
    /// What carries MQTT. Default [`HubTransport::Mqtt`].
    pub transport: HubTransport,
    /// Port of MQTT over TLS. Default 8883.
    pub mqtt_port: u16,
    /// Port of MQTT over WebSocket, of the hub and of the provisioning service. Default 443.
    pub websocket_port: u16,
    /// The HTTP proxy that leads outside, for hub and provisioning service.
    pub proxy: Option<ProxyConfig>,
    /// Keep-alive, 10 s to 230 s. Default 3 min.
    pub keep_alive: Duration,
    /// Life of a SAS token. Default 1 h.
    pub token_lifetime: Duration,
    /// Longest pause between two attempts to connect. Default 5 min.
    pub reconnect_max: Duration,
    /// Names under which the method `firmwareUpdate` is answered. Default `firmwareUpdate`,
    /// `InitiateFirmwareUpdate`.
    pub method_names: Vec<String>,
    /// Whether the method `reboot` is answered. Default no.
    pub allow_reboot_method: bool,
}

/// What carries MQTT to the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HubTransport {
    /// MQTT over TLS, port 8883.
    Mqtt,
    /// MQTT over WebSocket over TLS, port 443.
    Websocket,
    /// The first of them that reaches the hub.
    Auto,
}

/// `hub.proxy`: an HTTP proxy that takes CONNECT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyConfig {
    /// Its host name or address, without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// `hub.proxy_authorization_file`: file with `user:password`.
    pub authorization_file: Option<PathBuf>,
}

/// `[provisioning]`: how the Device Provisioning Service is asked for the device's hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProvisioningConfig {
    /// The service's id scope.
    pub id_scope: String,
    /// The device's name there. `None`: the certificate's common name.
    pub registration_id: Option<String>,
    /// File with the device's own symmetric key (base64). `$CREDENTIALS_DIRECTORY/provisioning_key` is
    /// tried first. `None` and no credential: the certificate of `[hub]`.
    pub symmetric_key_file: Option<PathBuf>,
    /// File with JSON that is sent along, for a custom allocation.
    pub payload_file: Option<PathBuf>,
    /// The service. Default `global.azure-devices-provisioning.net`.
    pub host: String,
    /// Its port of MQTT over TLS. Default 8883.
    pub mqtt_port: u16,
}

/// `[slots.a]`, `[slots.b]`: the partitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotsConfig {
    /// `slots.a.rootfs`: a path, `PARTUUID=...` or `PARTLABEL=...`.
    pub a: String,
    /// `slots.b.rootfs`.
    pub b: String,
    /// `slots.a.boot` and `slots.b.boot`, where each slot has its own partition with the boot files.
    pub boot: Option<[String; 2]>,
}

impl SlotsConfig {
    /// The root-file-system partition of `slot`, as configured.
    #[must_use]
    pub fn rootfs(&self, slot: Slot) -> &str {
        match slot {
            Slot::A => &self.a,
            Slot::B => &self.b,
        }
    }
}

/// Which bootloader decides the slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BootloaderKind {
    /// U-Boot; the booted slot is found by the device number of `/`.
    Uboot,
    /// The Raspberry Pi's own firmware, by `autoboot.txt`; the booted slot is found by the device number of `/`.
    Tryboot,
    /// A U-Boot environment in a regular file, for demo and tests: the booted slot comes from
    /// `bootloader.booted_file`, which the stand-in for a boot writes.
    File,
}

/// Whose variables hold the decision in U-Boot's environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BootVariables {
    /// Ours, as `packaging/uboot/boot.cmd` reads them.
    Fwupdated,
    /// RAUC's: `BOOT_ORDER`, `BOOT_A_LEFT`, `BOOT_B_LEFT`.
    Rauc,
    /// Mender's: `mender_boot_part`, `upgrade_available`, `bootcount`.
    Mender,
}

/// `[bootloader]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootloaderConfig {
    /// Which one.
    pub kind: BootloaderKind,
    /// `fw_env.config`: where the environment is. Default `/etc/fw_env.config`.
    pub env_config: PathBuf,
    /// Lock shared with `fw_printenv`. Default `/var/lock/fw_printenv.lock`.
    pub lock_file: PathBuf,
    /// Whose variables. Default ours.
    pub variables: BootVariables,
    /// Partition numbers of the slots a and b, for Mender's variables. Default 2 and 3.
    pub partitions: [u32; 2],
    /// A file on the boot partition that names the confirmed slot too. Default none.
    pub mark_file: Option<PathBuf>,
    /// Boots that a trial gets. Default 3; with tryboot 1, and no other.
    pub tries: u8,
    /// With tryboot: the file that the firmware reads. Default `/bootfs/autoboot.txt`.
    pub autoboot: PathBuf,
    /// With tryboot: where the firmware says what it booted. Default `/proc/device-tree`; elsewhere for a stand-in.
    pub device_tree: PathBuf,
    /// Only for a stand-in: a file of two lines, `slot=a` and `boot_id=...`.
    pub booted_file: Option<PathBuf>,
    /// Command (and arguments) that reboots, instead of logind. Only for a stand-in.
    pub reboot_command: Option<Vec<String>>,
}

impl BootloaderConfig {
    /// Whether this is a stand-in for a board, in demo and tests: the real ones have no [`Self::booted_file`].
    #[must_use]
    pub fn is_stand_in(&self) -> bool {
        match self.kind {
            BootloaderKind::Uboot => false,
            BootloaderKind::Tryboot => self.booted_file.is_some(),
            BootloaderKind::File => true,
        }
    }
}

/// `[fetch]`: the download.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchConfig {
    /// CA certificates (PEM) to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Hosts that may be asked over plain http. Default none.
    pub insecure_hosts: Vec<String>,
    /// Until a connection stands. Default 30 s.
    pub connect_timeout: Duration,
    /// Longest silence within a body. Default 60 s.
    pub read_timeout: Duration,
    /// How long to go on retrying without progress. Default 1 h.
    pub give_up_after: Duration,
    /// Longest pause between two attempts. Default 1 min.
    pub retry_max: Duration,
    /// Redirects followed. Default 5.
    pub max_redirects: u8,
    /// File whose single line is sent as the `Authorization` header, to the image's host only.
    pub authorization_file: Option<PathBuf>,
    /// Hosts, with or without `:port`, that are sent that header. Not empty when there is a file.
    pub authorization_hosts: Vec<String>,
    /// Requests in flight at once, 1 to 16. Default 4.
    pub connections: usize,
    /// Bytes of bodies a second, of all downloads together. Default `None`: as fast as it goes.
    pub rate_limit: Option<u64>,
    /// The way outside. Default [`FetchProxy::Environment`].
    pub proxy: FetchProxy,
    /// The certificate shown to servers that ask for one. Default none.
    pub client_certificate: Option<ClientCertificateConfig>,
}

/// How downloads leave the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FetchProxy {
    /// As the variables `https_proxy`, `http_proxy`, `all_proxy` and `no_proxy` say.
    Environment,
    /// Directly, whatever the variables say.
    Direct,
    /// Through this one, whatever the variables say.
    Through(ProxyConfig),
}

/// What the device shows to a server that asks who it is (mutual TLS).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificateConfig {
    /// The certificate (PEM, the leaf first, then its chain).
    pub certificate_file: PathBuf,
    /// Its private key (PEM).
    pub key_file: PathBuf,
    /// Hosts, with or without `:port`, that may see it. Not empty.
    pub hosts: Vec<String>,
}

/// `[trust]`: who may sign an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustConfig {
    /// Folders with `*.pub` keys. Default `/usr/lib/fwupdated/keys.d`, `/etc/fwupdated/keys.d`.
    pub key_dirs: Vec<PathBuf>,
    /// Folders with `*.pub` keys that are no longer trusted. Default `/etc/fwupdated/revoked.d`.
    pub revoked_dirs: Vec<PathBuf>,
    /// Different keys that must have signed. Default 1.
    pub threshold: usize,
    /// What an image without a manifest is trusted by. Default [`PlainTrust::Digest`].
    pub plain: PlainTrust,
    /// `unsigned = "allow"`: images without a valid signature install. For development, and never together with
    /// [`PlainTrust::Signed`].
    pub allow_unsigned: bool,
    /// `downgrade = "allow"`: an older version may replace a newer one.
    pub allow_downgrade: bool,
    /// Names of this hardware, any of which an image must list. Empty: taken from the device tree
    /// (`/proc/device-tree/compatible`).
    pub compatible: Vec<String>,
}

/// What an image without a manifest is trusted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PlainTrust {
    /// The digest of the file in the request, or signatures beside the file: whoever may call vouches for it.
    Digest,
    /// Signatures beside the file, and nothing else. A digest in the request is checked as well.
    Signed,
}

/// `[policy]`: when an accepted update may go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyConfig {
    /// What the decision is made by.
    pub rules: Rules,
    /// Folder of executables asked before the download: exit 0 go, 75 ask again later, else refuse.
    /// Default `/etc/fwupdated/policy.d`.
    pub hook_dir: PathBuf,
    /// How often hooks that said 75 are asked again. Default 60 s.
    pub hook_interval: Duration,
    /// How long users who are logged in are warned before the reboot. Default 1 min, with `file` none.
    pub reboot_notice: Duration,
    /// How long programs that inhibit the reboot are waited for; zero: they are not asked for. Default 6 h, with
    /// `file` zero.
    pub max_inhibit: Duration,
}

/// `[health]`: what a trial boot must show before it is confirmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthConfig {
    /// Time for everything below, from the start of the boot. Default 10 min.
    pub deadline: Duration,
    /// systemd units that must be active. Default `boot-complete.target` with U-Boot, none with `file`.
    pub units: Vec<String>,
    /// Whether no unit may have failed that had not failed before the update. Default yes with U-Boot, no with
    /// `file`.
    pub newly_failed_units: bool,
    /// Folder of executables that must all exit 0. Default `/etc/fwupdated/health.d`.
    pub hook_dir: PathBuf,
    /// Longest run of one executable. Default 60 s.
    pub hook_timeout: Duration,
    /// Pause between two rounds of checks. Default 5 s.
    pub interval: Duration,
    /// `hub = true`: a hub connection must stand, if there was one before the update. Default no.
    pub require_hub: bool,
}

/// `[hooks]`: the operator's programs at moments of an update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HooksConfig {
    /// Folder with a folder of executables for each moment. Default `/etc/fwupdated/hooks.d`.
    pub dir: PathBuf,
    /// Longest run of one executable. Default 60 s.
    pub timeout: Duration,
}

/// `[carry_over]`: what an update takes along.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CarryOverConfig {
    /// Paths from `/`, where `*` and `?` stand for characters of one name. Default none.
    pub paths: Vec<String>,
}

impl CarryOverConfig {
    /// Whether `folder` is carried over with all in it. A path with `*` or `?` counts for nothing here.
    #[must_use]
    pub fn covers(&self, folder: &Path) -> bool {
        self.paths.iter().any(|path| folder.starts_with(path))
    }
}

/// `[report]`: the pace of twin patches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportConfig {
    /// Shortest time between two patches for a change of stage. Default 1 s.
    pub stage_interval: Duration,
    /// Shortest time between two patches for progress. Default 5 s.
    pub progress_interval: Duration,
    /// How long to wait for the answer to a patch. Default 30 s.
    pub answer_timeout: Duration,
    /// Longest random pause before the first patch of a connection. Default 3 s.
    pub reconnect_jitter: Duration,
}

/// `[state]`: what survives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateConfig {
    /// Default `/var/lib/fwupdated`.
    pub directory: PathBuf,
}

/// `[control]`: the local interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlConfig {
    /// Socket that `fwupdatectl` talks to. Default `/run/fwupdated/control`.
    pub socket: PathBuf,
    /// Whether the same is offered on the system bus. Default true.
    pub bus: bool,
    /// File with `VERSION_ID` or `IMAGE_VERSION` of the running system. Default `/etc/os-release`.
    pub os_release: PathBuf,
}

/// `[metrics]`: what Prometheus sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricsConfig {
    /// File for node_exporter's textfile collector; its name ends with `.prom`. Default none.
    pub textfile: Option<PathBuf>,
    /// Shortest time between two writes of it. Default 15 s.
    pub interval: Duration,
}
