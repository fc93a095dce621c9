//! Commands for the operator of a fleet: they speak to IoT Hub's service REST API with a service
//! connection string, from any machine.
//!
//! - [`connection`]: the connection string and the access tokens made from it.
//! - [`client`]: the calls; [`fault`]: what the hub's refusals mean.
//! - [`progress`]: a twin's `iothubDM.firmwareUpdate` as the state of one update. Pure.
//! - `invoke`, `twin`, `query`: the commands.

pub mod client;
pub mod connection;
pub mod fault;
pub mod progress;

mod invoke;
mod query;
mod twin;

use std::path::PathBuf;

use clap::{Args, Subcommand};

use self::{client::HubClient, connection::ConnectionString, fault::HubError};
use super::failed;

/// Holds the service connection string when no flag names one.
pub const CONNECTION_STRING_VARIABLE: &str = "FWUPDATED_HUB_CONNECTION_STRING";

/// `fwupdatectl hub`
#[derive(Debug, Args)]
pub struct HubArgs {
    /// File with the service connection string
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        conflicts_with = "connection_string",
        help_heading = "Hub options"
    )]
    connection_string_file: Option<PathBuf>,
    /// The service connection string itself (other users of this machine can see it; better in a file or
    /// in the environment variable FWUPDATED_HUB_CONNECTION_STRING)
    #[arg(
        long,
        global = true,
        value_name = "STRING",
        help_heading = "Hub options"
    )]
    connection_string: Option<Secret>,
    /// CA certificates (PEM) to trust instead of the system's, as for an emulator
    #[arg(long, global = true, value_name = "FILE", help_heading = "Hub options")]
    ca_file: Option<PathBuf>,
    #[command(subcommand)]
    command: HubCommand,
}

#[derive(Debug, Subcommand)]
enum HubCommand {
    /// Start an update on a device by the direct method firmwareUpdate
    Invoke(Box<invoke::InvokeArgs>),
    /// Show a device's twin
    Twin(twin::TwinArgs),
    /// List devices: which update, which version, when last updated
    List(query::ListArgs),
    /// Run a query, such as "SELECT deviceId FROM devices"; one JSON row per line
    Query(query::QueryArgs),
}

/// Carries the command out. Returns the exit code.
pub async fn run(arguments: HubArgs) -> u8 {
    match try_run(arguments).await {
        Ok(code) => code,
        Err(error) => failed(&error, error.exit_code()),
    }
}

async fn try_run(arguments: HubArgs) -> Result<u8, HubError> {
    let HubArgs {
        connection_string_file,
        connection_string,
        ca_file,
        command,
    } = arguments;
    let connection = match (connection_string, connection_string_file) {
        (Some(Secret(text)), _) => text.parse()?,
        (None, Some(file)) => ConnectionString::from_file(&file)?,
        (None, None) => match std::env::var(CONNECTION_STRING_VARIABLE) {
            Ok(text) if !text.trim().is_empty() => text.parse()?,
            _ => return Err(HubError::NoConnectionString),
        },
    };
    let client = HubClient::new(connection, ca_file.as_deref())?;
    match command {
        HubCommand::Invoke(arguments) => invoke::run(&client, *arguments).await,
        HubCommand::Twin(arguments) => twin::run(&client, arguments).await,
        HubCommand::List(arguments) => query::list(&client, arguments).await,
        HubCommand::Query(arguments) => query::query(&client, arguments).await,
    }
}

/// A text that no error repeats and no `Debug` shows.
#[derive(Clone)]
struct Secret(String);

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(...)")
    }
}

/// A device id: what IoT Hub allows, and nothing that means something else in a URL's path.
fn device_id(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-.%_*?!(),:=@$'+#".contains(c);
    if (1..=128).contains(&text.len()) && text.chars().all(allowed) && !matches!(text, "." | "..") {
        Ok(text.to_owned())
    } else {
        Err("a device id has 1 to 128 letters, digits and characters of -.%_*?!(),:=@$'".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_id_cannot_leave_its_place_in_the_path() {
        assert_eq!(device_id("pi-01%2e").as_deref(), Ok("pi-01%2e"));
        for wrong in ["", ".", "..", "a/b", "a b", "é", &"a".repeat(129)] {
            assert!(device_id(wrong).is_err(), "{wrong}");
        }
    }
}
