//! `fwupdatectl config init`: a first configuration for this board, and the device's identity.
//!
//! Nothing that is there is overwritten without `--force`, nothing is written that `config check` would refuse, and
//! nothing at all with `--dry-run`. Secrets are read from files or without an echo, go into files of mode 0600, and
//! are never shown.

mod answers;
mod error;
mod files;

use std::{
    io::{self, IsTerminal as _},
    path::{Path, PathBuf},
};

use clap::Args;

use super::{
    super::{
        exit, failed,
        output::{line, note},
    },
    board::{Board, Partitions, variables},
};
use answers::{ask, ask_secret, provisioning_key, secret};
use error::InitError;
use files::{Planned, Text};

use crate::{
    config::{self, BootVariables, BootloaderKind, Config, Layer},
    hub::credentials::{Credentials, Secret},
    platform::{
        slots::{self, Slots},
        uboot_env::{EnvLocation, UbootEnv},
    },
};

/// Where everything lies on a device.
const FOLDER: &str = "/etc/fwupdated";
/// What is written, below that folder.
const BOARD: &str = "conf.d/10-board.toml";
const CONNECTION_STRING: &str = "connection-string";
const PROVISIONING_KEY: &str = "provisioning-key";

/// Options of `config init`.
#[derive(Debug, Args)]
pub(in crate::ctl) struct Init {
    /// Take the device's connection string from this file (`-`: from standard input); it is copied
    #[arg(long, value_name = "FILE", help_heading = "Identity")]
    connection_string_file: Option<PathBuf>,
    /// Be provisioned by the Device Provisioning Service with this id scope
    #[arg(
        long,
        value_name = "SCOPE",
        help_heading = "Identity",
        conflicts_with = "connection_string_file"
    )]
    id_scope: Option<String>,
    /// The device's name in the provisioning service; with a certificate its common name, if this is left out
    #[arg(
        long,
        value_name = "ID",
        help_heading = "Identity",
        requires = "id_scope"
    )]
    registration_id: Option<String>,
    /// Take the device's own key for provisioning from this file (`-`: from standard input); it is copied
    #[arg(
        long,
        value_name = "FILE",
        help_heading = "Identity",
        requires = "registration_id",
        conflicts_with = "certificate_file"
    )]
    symmetric_key_file: Option<PathBuf>,
    /// The hub's host name, for a device that proves by a certificate who it is
    #[arg(
        long,
        value_name = "HOST",
        help_heading = "Identity",
        requires = "device_id",
        requires = "certificate_file",
        conflicts_with_all = ["connection_string_file", "id_scope"]
    )]
    hub: Option<String>,
    /// The device's id at that hub
    #[arg(long, value_name = "ID", help_heading = "Identity", requires = "hub")]
    device_id: Option<String>,
    /// The device's certificate; it stays where it is
    #[arg(
        long,
        value_name = "FILE",
        help_heading = "Identity",
        requires = "private_key_file"
    )]
    certificate_file: Option<PathBuf>,
    /// The certificate's private key; it stays where it is
    #[arg(
        long,
        value_name = "FILE",
        help_heading = "Identity",
        requires = "certificate_file"
    )]
    private_key_file: Option<PathBuf>,
    /// CA certificates to trust for the hub instead of the system's
    #[arg(long, value_name = "FILE", help_heading = "Identity")]
    hub_ca_file: Option<PathBuf>,
    /// Root file system of slot a: a path, PARTUUID=... or PARTLABEL=... [default: found]
    #[arg(
        long,
        value_name = "PARTITION",
        help_heading = "Board",
        requires = "slot_b"
    )]
    slot_a: Option<String>,
    /// Root file system of slot b
    #[arg(
        long,
        value_name = "PARTITION",
        help_heading = "Board",
        requires = "slot_a"
    )]
    slot_b: Option<String>,
    /// Boot partition of slot a, where each slot has its own [default: found, with tryboot]
    #[arg(
        long,
        value_name = "PARTITION",
        help_heading = "Board",
        requires = "boot_b"
    )]
    boot_a: Option<String>,
    /// Boot partition of slot b
    #[arg(
        long,
        value_name = "PARTITION",
        help_heading = "Board",
        requires = "boot_a"
    )]
    boot_b: Option<String>,
    /// What decides the slot [default: found]
    #[arg(long, value_name = "KIND", help_heading = "Board", value_parser = ["uboot", "tryboot"])]
    bootloader: Option<String>,
    /// Where the state is kept; best on a partition that both slots share
    #[arg(long, value_name = "FOLDER", help_heading = "Board")]
    state_directory: Option<PathBuf>,
    /// Write below this folder
    #[arg(long, value_name = "FOLDER", default_value = FOLDER)]
    to: PathBuf,
    /// Ask nothing, also on a terminal: what was not given and not found is an error or left out
    #[arg(long)]
    no_questions: bool,
    /// Replace files that are there
    #[arg(long)]
    force: bool,
    /// Show what would be written, without secrets, and write nothing
    #[arg(long)]
    dry_run: bool,
}

/// How the device will be known to its hub.
enum Identity {
    /// Not yet.
    None,
    /// The text of the connection string.
    ConnectionString(String),
    /// The provisioning service, with the text of a key or by certificate.
    Provisioning {
        id_scope: String,
        registration_id: Option<String>,
        key: Option<String>,
    },
}

impl Init {
    /// Runs the command to its end.
    pub(super) fn run(self) -> u8 {
        match self.make() {
            Ok(code) => code,
            Err(error) => failed(&error, exit::USAGE),
        }
    }

    fn make(&self) -> Result<u8, InitError> {
        let running = slots::root_devices().unwrap_or_default();
        let board = Board {
            root: Path::new("/"),
            running: &running,
        };
        let (kind, autoboot) = self.bootloader(&board)?;
        let partitions = self.partitions(&board, kind)?;
        let identity = self.identity()?;
        let files = self.files(&identity, kind, autoboot.as_deref(), &partitions);
        let there = files.iter().find(|file| file.path.exists());
        if let Some(file) = there.filter(|_| !self.force && !self.dry_run) {
            return Err(InitError::Exists(file.path.clone()));
        }
        let config = self.checked(&files[0])?;
        if self.slot_a.is_none()
            && let Some(slots) = &config.slots
        {
            let slots = Slots::open(slots, &config.bootloader)?;
            note(format!("slot {} runs", slots.booted()?.slot));
        }
        if self.dry_run {
            for file in &files {
                line(format!("# {}", file.path.display()));
                match file.secret {
                    true => line("# (a secret, mode 0600)"),
                    false => line(file.text.trim_end()),
                }
            }
            return Ok(exit::OK);
        }
        for file in &files {
            file.write()?;
            line(format!("wrote {}", file.path.display()));
        }
        if matches!(identity, Identity::None) {
            note(
                "note: the device has no identity for a hub yet; run this again with one and --force",
            );
        }
        line("next: systemctl restart fwupdated; fwupdatectl doctor");
        Ok(exit::OK)
    }

    /// Whether a person is there to be asked.
    fn asks(&self) -> bool {
        !self.no_questions && !self.dry_run && io::stdin().is_terminal()
    }

    fn bootloader(
        &self,
        board: &Board<'_>,
    ) -> Result<(BootloaderKind, Option<PathBuf>), InitError> {
        match self.bootloader.as_deref() {
            Some("tryboot") => Ok((BootloaderKind::Tryboot, board.autoboot())),
            Some(_) => Ok((BootloaderKind::Uboot, None)),
            None => board.bootloader().map_err(InitError::Bootloader),
        }
    }

    fn partitions(&self, board: &Board<'_>, kind: BootloaderKind) -> Result<Partitions, InitError> {
        let both = |a: &Option<String>, b: &Option<String>| Some([a.clone()?, b.clone()?]);
        let mut found = match both(&self.slot_a, &self.slot_b) {
            Some(rootfs) => Partitions {
                rootfs,
                boot: None,
                numbers: [0, 0],
            },
            None => board.partitions().map_err(InitError::Slots)?,
        };
        // Elsewhere they would be written by images that bring one; the operator says so, if that is meant.
        let wanted = kind == BootloaderKind::Tryboot;
        found.boot = both(&self.boot_a, &self.boot_b).or(found.boot.filter(|_| wanted));
        if wanted && found.boot.is_none() {
            return Err(InitError::Boot);
        }
        if self.asks() && self.slot_a.is_none() {
            let [a, b] = &found.rootfs;
            note(format!(
                "found: slot a is {a}, slot b is {b}; images are written to the one that does not run"
            ));
            let answer = ask("Is that right? [Y/n] ")?;
            if !["", "y", "yes"].contains(&answer.to_lowercase().as_str()) {
                return Err(InitError::Slots(
                    "they are others than those found".to_owned(),
                ));
            }
        }
        Ok(found)
    }

    fn identity(&self) -> Result<Identity, InitError> {
        if let Some(file) = &self.connection_string_file {
            return self.connection_string(&secret(file)?, &file.display().to_string());
        }
        if let (Some(hub), Some(device)) = (&self.hub, &self.device_id) {
            let text = format!("HostName={hub};DeviceId={device};x509=true");
            return self.connection_string(&text, "the identity from --hub and --device-id");
        }
        if let Some(id_scope) = &self.id_scope {
            let key = self.symmetric_key_file.as_deref().map(|file| {
                let text = secret(file)?;
                provisioning_key(&text, &file.display().to_string())
            });
            return Ok(Identity::Provisioning {
                id_scope: id_scope.clone(),
                registration_id: self.registration_id.clone(),
                key: key.transpose()?,
            });
        }
        if !self.asks() {
            return Ok(Identity::None);
        }
        note("How does the hub know the device?");
        note("  1  by a connection string");
        note("  2  by the Device Provisioning Service, with a symmetric key");
        note("  3  later, or by a certificate (see --help)");
        match ask("1, 2 or 3: ")?.as_str() {
            "1" => {
                let text = ask_secret("Connection string (not shown): ")?;
                self.connection_string(&text, "the text")
            }
            "2" => Ok(Identity::Provisioning {
                id_scope: ask("Id scope: ")?,
                registration_id: Some(ask("Registration id: ")?),
                key: Some(provisioning_key(
                    &ask_secret("Device's own key (not shown): ")?,
                    "the text",
                )?),
            }),
            _ => Ok(Identity::None),
        }
    }

    fn connection_string(&self, text: &str, what: &str) -> Result<Identity, InitError> {
        let credentials: Credentials =
            text.parse().map_err(|source| InitError::ConnectionString {
                what: what.to_owned(),
                source,
            })?;
        if matches!(credentials.secret(), Secret::Certificate) && self.certificate_file.is_none() {
            return Err(InitError::NoCertificate);
        }
        Ok(Identity::ConnectionString(text.trim().to_owned()))
    }

    /// The configuration first.
    fn files(
        &self,
        identity: &Identity,
        kind: BootloaderKind,
        autoboot: Option<&Path>,
        partitions: &Partitions,
    ) -> Vec<Planned> {
        let mut text = Text::default();
        let mut secrets = Vec::new();
        let mut keep = |name: &str, secret: &str| {
            let path = self.to.join(name);
            secrets.push(Planned {
                path: path.clone(),
                text: format!("{secret}\n"),
                secret: true,
            });
            path
        };
        text.section("hub");
        if let Identity::ConnectionString(string) = identity {
            text.path(
                "connection_string_file",
                Some(&keep(CONNECTION_STRING, string)),
            );
        }
        text.path("certificate_file", self.certificate_file.as_deref());
        text.path("private_key_file", self.private_key_file.as_deref());
        text.path("ca_file", self.hub_ca_file.as_deref());
        if let Identity::Provisioning {
            id_scope,
            registration_id,
            key,
        } = identity
        {
            text.section("provisioning");
            text.text("id_scope", id_scope);
            if let Some(id) = registration_id {
                text.text("registration_id", id);
            }
            if let Some(key) = key {
                text.path("symmetric_key_file", Some(&keep(PROVISIONING_KEY, key)));
            }
        }
        for (number, slot) in ["slots.a", "slots.b"].into_iter().enumerate() {
            text.section(slot);
            text.text("rootfs", &partitions.rootfs[number]);
            if let Some(boot) = &partitions.boot {
                text.text("boot", &boot[number]);
            }
        }
        text.section("bootloader");
        match kind {
            BootloaderKind::Tryboot => {
                text.text("kind", "tryboot");
                text.path("autoboot", autoboot);
            }
            _ => {
                text.text("kind", "uboot");
                match boot_variables() {
                    BootVariables::Fwupdated => {}
                    BootVariables::Rauc => text.text("variables", "rauc"),
                    BootVariables::Mender => {
                        text.text("variables", "mender");
                        let [a, b] = partitions.numbers;
                        if a > 0 && b > 0 {
                            text.value("partitions", vec![i64::from(a), i64::from(b)]);
                        }
                    }
                }
            }
        }
        if let Some(directory) = &self.state_directory {
            text.section("state");
            text.path("directory", Some(directory));
        }
        let board = Planned {
            path: self.to.join(BOARD),
            text: text.finish(),
            secret: false,
        };
        let mut files = vec![board];
        files.append(&mut secrets);
        files
    }

    /// What the configuration will be with `board` in it.
    fn checked(&self, board: &Planned) -> Result<Config, InitError> {
        let new = Layer::file(board.path.display().to_string(), &*board.text);
        let files = if self.to == Path::new(FOLDER) {
            let mut files = config::written(None)?;
            files.retain(|layer| layer.name != new.name);
            let drop_ins = format!("{}/", config::DROP_IN_DIR);
            let after = |layer: &Layer| layer.name.starts_with(&drop_ins) && layer.name > new.name;
            let place = files.iter().position(after).unwrap_or(files.len());
            files.insert(place, new);
            files
        } else {
            vec![new]
        };
        Ok(Config::load_from(&files, config::variables()?)?)
    }
}

/// Whose variables are in U-Boot's environment, if it can be read.
fn boot_variables() -> BootVariables {
    let built_in = Config::built_in().bootloader;
    let location = EnvLocation::read(&built_in.env_config).ok();
    let env =
        location.and_then(|location| UbootEnv::new(location, &built_in.lock_file).read().ok());
    variables(|name| env.as_ref().is_some_and(|env| env.get(name).is_some()))
}
