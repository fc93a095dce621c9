//! The daemon's control socket, seen from a client.

use std::{
    io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::{Stream, StreamExt as _};

use crate::{
    ctl::exit,
    daemon::control_names::{Answer, InstallRequest, NAME, PATH},
    update::{
        failure::{Class, Coded},
        status::Status,
        uri::UriError,
    },
};

/// The daemon answers a call within 1 s; longer than this and it hangs.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// The daemon's interface; see [`crate::daemon::control_names`].
#[zbus::proxy(interface = "org.fwupdated1.Manager", assume_defaults = false)]
trait Manager {
    /// The JSON of [`Status`].
    #[zbus(property)]
    fn status(&self) -> zbus::Result<String>;

    /// An [`InstallRequest`] in, an [`Answer`] out.
    fn install(&self, request: &str) -> zbus::Result<String>;

    /// An [`Answer`] out.
    fn cancel(&self) -> zbus::Result<String>;

    /// An [`Answer`] out.
    fn approve(&self, update_id: &str, now: bool) -> zbus::Result<String>;

    /// An [`Answer`] out.
    fn defer(&self, update_id: &str, seconds: u64) -> zbus::Result<String>;
}

/// Why the daemon could not be asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum LocalError {
    /// The image's address.
    #[error(transparent)]
    Uri(#[from] UriError),
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
    /// The socket is not for this user.
    #[error("no permission to talk to the daemon at {}; be root or in the group fwupdated", socket.display())]
    Permission {
        /// The socket.
        socket: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// The connection broke, or the daemon did not answer in time.
    #[error("the daemon at {} gave no answer; see `journalctl -u fwupdated`", socket.display())]
    NoAnswer {
        /// The socket.
        socket: PathBuf,
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
            Self::NoDaemon { .. } => "control-no-daemon",
            Self::Permission { .. } => "control-permission",
            Self::NoAnswer { .. } => "control-no-answer",
            Self::Answer { .. } => "control-answer",
            Self::StateFile { .. } => "control-state-file",
            Self::StateFormat { .. } => "control-state-format",
        }
    }

    fn class(&self) -> Class {
        match self {
            Self::NoDaemon { .. } | Self::NoAnswer { .. } => Class::Retry,
            Self::Uri(_)
            | Self::Permission { .. }
            | Self::Answer { .. }
            | Self::StateFile { .. }
            | Self::StateFormat { .. } => Class::Final,
        }
    }
}

impl LocalError {
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Self::Uri(_) => exit::USAGE,
            Self::Permission { .. } => exit::REFUSED,
            _ => exit::UNREACHABLE,
        }
    }
}

/// A connection to the daemon.
pub(super) struct Client {
    proxy: ManagerProxy<'static>,
    socket: PathBuf,
}

impl Client {
    pub(super) async fn connect(socket: &Path) -> Result<Self, LocalError> {
        let stream = UnixStream::connect(socket).map_err(|source| match source.kind() {
            io::ErrorKind::PermissionDenied => LocalError::Permission {
                socket: socket.to_owned(),
                source,
            },
            _ => LocalError::NoDaemon {
                socket: socket.to_owned(),
                source,
            },
        })?;
        let connect = async {
            let connection = zbus::connection::Builder::unix_stream(stream)
                .p2p()
                .method_timeout(ANSWER_TIMEOUT)
                .build()
                .await?;
            ManagerProxy::builder(&connection)
                .destination(NAME)
                .path(PATH)
                .build()
                .await
        };
        // The handshake has no timeout of its own.
        let proxy = tokio::time::timeout(ANSWER_TIMEOUT, connect)
            .await
            .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
            .map_err(|error| no_answer(socket, error))?;
        Ok(Self {
            proxy,
            socket: socket.to_owned(),
        })
    }

    pub(super) async fn status(&self) -> Result<Status, LocalError> {
        read(
            self.proxy
                .status()
                .await
                .map_err(|error| self.no_answer(error))?,
        )
    }

    pub(super) async fn install(&self, request: &InstallRequest) -> Result<Answer, LocalError> {
        let request =
            serde_json::to_string(request).map_err(|source| LocalError::Answer { source })?;
        read(
            self.proxy
                .install(&request)
                .await
                .map_err(|error| self.no_answer(error))?,
        )
    }

    pub(super) async fn cancel(&self) -> Result<Answer, LocalError> {
        read(
            self.proxy
                .cancel()
                .await
                .map_err(|error| self.no_answer(error))?,
        )
    }

    pub(super) async fn approve(&self, id: Option<&str>, now: bool) -> Result<Answer, LocalError> {
        read(
            self.proxy
                .approve(id.unwrap_or_default(), now)
                .await
                .map_err(|error| self.no_answer(error))?,
        )
    }

    pub(super) async fn defer(&self, id: Option<&str>, by: Duration) -> Result<Answer, LocalError> {
        read(
            self.proxy
                .defer(id.unwrap_or_default(), by.as_secs())
                .await
                .map_err(|error| self.no_answer(error))?,
        )
    }

    /// The present status, then each change. Ends with the connection.
    pub(super) async fn changes(&self) -> impl Stream<Item = Result<Status, LocalError>> + Unpin {
        let socket = self.socket.clone();
        let connection = self.proxy.inner().connection().clone();
        let changes = self.proxy.receive_status_changed().await;
        let changes = changes.then(move |change| {
            let socket = socket.clone();
            async move {
                read(
                    change
                        .get()
                        .await
                        .map_err(|error| no_answer(&socket, error))?,
                )
            }
        });
        // The stream of a property does not end with its connection by itself.
        Box::pin(changes.take_until(async move { connection.closed().await }))
    }

    fn no_answer(&self, error: zbus::Error) -> LocalError {
        no_answer(&self.socket, error)
    }
}

fn no_answer(socket: &Path, error: zbus::Error) -> LocalError {
    LocalError::NoAnswer {
        socket: socket.to_owned(),
        source: Box::new(error),
    }
}

fn read<T: serde::de::DeserializeOwned>(text: String) -> Result<T, LocalError> {
    serde_json::from_str(&text).map_err(|source| LocalError::Answer { source })
}
