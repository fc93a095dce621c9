//! `fwupdatectl config`: says whether the configuration is right, shows what counts, and makes a first one.

mod board;
mod init;

use std::path::{Path, PathBuf};

use clap::Subcommand;

use super::{
    exit, failed,
    output::{line, note},
};
use crate::config::{
    self, Config,
    effective::{Setting, to_toml},
};

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Say whether the configuration is right, and if not, what is wrong and where
    Check {
        /// Check this file instead of the search path
        file: Option<PathBuf>,
    },
    /// Show what counts: each key with its value and where that comes from, as TOML
    Show {
        /// Print one JSON document: {"settings":[{"key","value","origin"}]}
        #[arg(long)]
        json: bool,
    },
    /// Make a first configuration: finds slots and bootloader, asks for the rest or takes it as options
    Init(init::Init),
}

/// Runs `command`; `file` is what `--config` says.
pub(super) fn run(command: ConfigCommand, file: Option<&Path>) -> u8 {
    match command {
        ConfigCommand::Check { file: named } => check(named.as_deref().or(file)),
        ConfigCommand::Show { json } => show(file, json),
        ConfigCommand::Init(init) => init.run(),
    }
}

fn check(file: Option<&Path>) -> u8 {
    let config = match Config::load(file) {
        Ok(config) => config,
        Err(error) => return failed(&error, exit::USAGE),
    };
    if config.slots.is_none() {
        note(
            "note: no slots are configured, so no update can be installed; see [slots.a] and [slots.b], or run `fwupdatectl config init`",
        );
    }
    if config.trust.allow_unsigned {
        note(
            "warning: trust.unsigned = \"allow\" installs images that nobody signed; for development only",
        );
    }
    let identity = config.hub.connection_string_file.as_ref();
    if config.provisioning.is_none() && identity.is_none_or(|file| !file.exists()) {
        note(
            "note: hub.connection_string_file does not exist; the daemon runs without a hub unless a systemd credential brings one",
        );
    }
    line("the configuration is valid");
    exit::OK
}

fn show(file: Option<&Path>, json: bool) -> u8 {
    let settings =
        config::written(file).and_then(|files| config::effective(&files, config::variables()?));
    let settings = match settings {
        Ok(settings) => settings,
        Err(error) => return failed(&error, exit::USAGE),
    };
    if json {
        let shown = |setting: &Setting| {
            let Setting { key, value, origin } = setting;
            serde_json::json!({ "key": key, "value": value, "origin": origin.to_string() })
        };
        let settings: Vec<_> = settings.iter().map(shown).collect();
        line(serde_json::json!({ "settings": settings }).to_string());
    } else {
        line(to_toml(&settings).trim_end());
    }
    exit::OK
}
