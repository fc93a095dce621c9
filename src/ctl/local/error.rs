//! Why a command for this device could not be carried out; how it ends then.

use std::{io, path::PathBuf};

use crate::{
    ctl::exit,
    platform::state_file::StateError,
    update::{
        failure::{Class, Coded},
        uri::UriError,
    },
};

/// Why the daemon could not be asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum LocalError {
    /// The image's address.
    #[error(transparent)]
    Uri(#[from] UriError),
    /// The image's file.
    #[error("{} cannot be opened; name an image's file, or its address with https://", path.display())]
    File {
        /// As it was named.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// Nobody listens on the socket.
    #[error(
        "the daemon does not run: nothing answers at {}; see `systemctl status fwupdated`, or name its socket with --socket",
        socket.display()
    )]
    NoDaemon {
        /// The socket.
        socket: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// The socket is not for this user, and the bus does not help.
    #[error(
        "no permission to talk to the daemon at {}, and it is not on the system bus; be root or in the group fwupdated",
        socket.display()
    )]
    Permission {
        /// The socket.
        socket: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// The daemon, or the bus, does not let this user do that.
    #[error("{0}")]
    Denied(String),
    /// The connection broke, or the daemon did not answer in time.
    #[error("the daemon at {at} gave no answer; see `journalctl -u fwupdated`")]
    NoAnswer {
        /// The socket, or the bus.
        at: String,
        /// What the bus says.
        source: Box<zbus::Error>,
    },
    /// The daemon answered with something else than agreed.
    #[error("cannot read the daemon's answer; are fwupdated and fwupdatectl of the same version?")]
    Answer {
        /// Why.
        source: serde_json::Error,
    },
    /// The state file is there but cannot be read.
    #[error("the daemon does not run, and its state file {} cannot be read", file.display())]
    StateFile {
        /// The file.
        file: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// The history is there but cannot be read.
    #[error(transparent)]
    History(#[from] StateError),
    /// The state file makes no sense.
    #[error("the daemon does not run, and its state file {} is damaged or of another version", file.display())]
    StateFormat {
        /// The file.
        file: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

impl Coded for LocalError {
    fn code(&self) -> &'static str {
        match self {
            Self::Uri(error) => error.code(),
            Self::History(error) => error.code(),
            Self::File { .. } => "local-file-open",
            Self::NoDaemon { .. } => "control-no-daemon",
            Self::Permission { .. } => "control-permission",
            Self::Denied(_) => "control-not-allowed",
            Self::NoAnswer { .. } => "control-no-answer",
            Self::Answer { .. } => "control-answer",
            Self::StateFile { .. } => "control-state-file",
            Self::StateFormat { .. } => "control-state-format",
        }
    }

    fn class(&self) -> Class {
        match self {
            Self::NoDaemon { .. } | Self::NoAnswer { .. } => Class::Retry,
            Self::History(error) => error.class(),
            Self::Uri(_)
            | Self::File { .. }
            | Self::Permission { .. }
            | Self::Denied(_)
            | Self::Answer { .. }
            | Self::StateFile { .. }
            | Self::StateFormat { .. } => Class::Final,
        }
    }
}

impl LocalError {
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Self::Uri(_) | Self::File { .. } => exit::USAGE,
            Self::Permission { .. } | Self::Denied(_) => exit::REFUSED,
            _ => exit::UNREACHABLE,
        }
    }

    /// What the bus says instead of an answer from the daemon `at` some place.
    pub(super) fn no_answer(at: &str, error: zbus::Error) -> Self {
        use zbus::fdo::Error::{AccessDenied, InteractiveAuthorizationRequired};
        let known = match &error {
            zbus::Error::FDO(known) => Some(known.as_ref()),
            _ => None,
        };
        match known {
            Some(AccessDenied(text) | InteractiveAuthorizationRequired(text)) => {
                Self::Denied(text.clone())
            }
            _ => Self::NoAnswer {
                at: at.to_owned(),
                source: Box::new(error),
            },
        }
    }
}
