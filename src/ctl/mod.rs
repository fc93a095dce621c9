//! THE CLI `fwupdatectl`: this device ([`local`]), images ([`image`]), the hub's service side ([`hub`]).
//!
//! What a command prints on standard output is for scripts and stays as it is; notes and errors go to
//! standard error. How it ends is one of the codes in [`exit`].

mod config;
mod doctor;
pub mod exit;
pub mod hub;
pub mod image;
pub mod local;

mod output;
mod pace;
mod progress;
mod restore_env;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Parser, Subcommand};

use crate::{
    config::{Config, ConfigError, raw::RawDuration},
    update::{
        failure::{Coded, Failure, chain},
        uri::{PackageUri, UriError},
    },
};

/// Firmware updates: this device, images, and the fleet behind an IoT Hub.
#[derive(Debug, Parser)]
#[command(name = "fwupdatectl", version)]
struct Cli {
    /// Read this configuration file instead of those in /usr/lib, /etc and conf.d
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        help_heading = "General options"
    )]
    config: Option<PathBuf>,
    /// Talk to the daemon over this socket [default: control.socket of the configuration]
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        help_heading = "General options"
    )]
    socket: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Local(local::LocalCommand),
    /// Look at everything an update needs; say what is wrong and what to do. Changes nothing
    Doctor {
        /// Print one JSON document: {"worst","findings":[{"topic","level","text","advice","code"}]}
        #[arg(long)]
        json: bool,
    },
    /// Write a lost U-Boot environment anew, from the copy that the daemon saved
    RestoreEnv(restore_env::RestoreEnv),
    /// Check the configuration, show what counts, make a first one
    Config {
        #[command(subcommand)]
        command: config::ConfigCommand,
    },
    /// Make keys and images, sign, check and show them
    Image {
        #[command(subcommand)]
        command: image::ImageCommand,
    },
    /// Work with the devices of an IoT Hub, from the operator's side
    Hub(Box<hub::HubArgs>),
}

/// The command line as it is defined, for man pages and completions.
#[must_use]
pub fn command() -> clap::Command {
    <Cli as clap::CommandFactory>::command()
}

/// The program: reads its arguments, does what they say, and tells how it ended.
#[must_use]
pub fn main() -> ExitCode {
    let Cli {
        config,
        socket,
        command,
    } = Cli::parse();
    let file = config.as_deref();
    let code = match command {
        Command::Local(command) => match for_this_device(file) {
            Ok(config) => {
                let at = daemon_at(socket, &config);
                on_runtime(local::run(command, &at, &config.state.directory))
            }
            Err(error) => failed(&error, exit::USAGE),
        },
        Command::Doctor { json } => {
            let (config, wrong) = match Config::load(file) {
                Ok(config) => (config, None),
                Err(error) if file.is_some() => return failed(&error, exit::USAGE).into(),
                Err(error) => (Config::built_in(), Some(Failure::from(&error))),
            };
            let at = daemon_at(socket, &config);
            on_runtime(doctor::run(&config, wrong.as_ref(), &at, json))
        }
        Command::RestoreEnv(command) => match for_this_device(file) {
            Ok(config) => restore_env::run(&command, &config),
            Err(error) => failed(&error, exit::USAGE),
        },
        Command::Config { command } => config::run(command, file),
        Command::Image { command } => return image::run(command),
        Command::Hub(arguments) => on_runtime(hub::run(*arguments)),
    };
    ExitCode::from(code)
}

/// Where the daemon is, unless a socket was named: then there alone.
fn daemon_at(socket: Option<PathBuf>, config: &Config) -> local::DaemonAt {
    local::DaemonAt {
        bus: socket.is_none() && config.control.bus,
        socket: socket.unwrap_or_else(|| config.control.socket.clone()),
    }
}

/// One thread is plenty for one connection.
fn on_runtime(work: impl Future<Output = u8>) -> u8 {
    match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime.block_on(work),
        Err(error) => {
            output::note(format!("cannot start: {error}"));
            exit::FAILED
        }
    }
}

/// Says what is wrong, in the one form that all errors have, and passes the exit code on.
fn failed(error: &impl Coded, exit: u8) -> u8 {
    output::note(format!(
        "{} [{}]",
        output::clean(&chain(error)),
        error.code()
    ));
    exit
}

/// The configuration, or the defaults when the device's own is wrong: the moment to look at a device is
/// just when something on it is wrong. A file that was asked for must be right.
fn for_this_device(explicit: Option<&Path>) -> Result<Config, ConfigError> {
    Config::load(explicit).or_else(|error| {
        if explicit.is_some() {
            return Err(error);
        }
        failed(&error, exit::USAGE);
        output::note("going on with the built-in defaults");
        Ok(Config::built_in())
    })
}

/// A duration on the command line, written as in the configuration.
fn duration(text: &str) -> Result<Duration, crate::config::raw::NotADuration> {
    text.parse::<RawDuration>()
        .map(|RawDuration(duration)| duration)
}

/// The address of an image on the command line. Judged by the command, not by the parser of the command
/// line, which would repeat a wrong one with its secrets.
#[derive(Debug, Clone)]
struct UriArgument(Result<PackageUri, UriError>);

impl From<&str> for UriArgument {
    fn from(text: &str) -> Self {
        Self(text.parse())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }
}
