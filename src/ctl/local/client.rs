//! The daemon, seen from a client: over its control socket or, for whom that is closed, over the system bus.

use std::{
    io,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::{Stream, StreamExt as _};

use super::error::LocalError;
use crate::{
    daemon::control_names::{Answer, InstallRequest, NAME, PATH, SlotInfo},
    update::status::{Status, UpdateReport},
};

/// The daemon answers a call within 1 s; longer than this and it hangs.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// On the bus polkit may ask a person first.
const BUS_TIMEOUT: Duration = Duration::from_secs(120);

/// The daemon's interface; see `docs/reference/d-bus.md`.
#[zbus::proxy(interface = "org.fwupdated1.Manager", assume_defaults = false)]
trait Manager {
    /// The JSON of [`Status`].
    #[zbus(property)]
    fn status(&self) -> zbus::Result<String>;

    /// An [`InstallRequest`] in, an [`Answer`] out.
    #[zbus(allow_interactive_auth)]
    fn install(&self, request: &str) -> zbus::Result<String>;

    /// The same without an address, for an open file.
    #[zbus(allow_interactive_auth)]
    fn install_file(
        &self,
        path: &str,
        file: zbus::Fd<'_>,
        signature: &[u8],
        request: &str,
    ) -> zbus::Result<String>;

    /// An [`Answer`] out.
    #[zbus(allow_interactive_auth)]
    fn cancel(&self) -> zbus::Result<String>;

    /// An [`Answer`] out.
    #[zbus(allow_interactive_auth)]
    fn approve(&self, update_id: &str, now: bool) -> zbus::Result<String>;

    /// An [`Answer`] out.
    #[zbus(allow_interactive_auth)]
    fn defer(&self, update_id: &str, seconds: u64) -> zbus::Result<String>;

    /// An [`Answer`] out.
    #[zbus(allow_interactive_auth)]
    fn rollback(&self) -> zbus::Result<String>;

    /// An [`Answer`] out.
    #[zbus(allow_interactive_auth)]
    fn mark_good(&self) -> zbus::Result<String>;

    /// A slot's name in, an [`Answer`] out.
    #[zbus(allow_interactive_auth)]
    fn mark_bad(&self, slot: &str) -> zbus::Result<String>;

    /// A list of [`SlotInfo`].
    fn slots(&self) -> zbus::Result<String>;

    /// A list of [`UpdateReport`].
    fn history(&self, count: u32) -> zbus::Result<String>;
}

/// Where the daemon is to be found.
#[derive(Debug, Clone)]
pub(crate) struct DaemonAt {
    /// Its control socket.
    pub(crate) socket: PathBuf,
    /// Whether the system bus is tried when the socket is closed to this user.
    pub(crate) bus: bool,
}

/// A connection to the daemon.
pub(super) struct Client {
    proxy: ManagerProxy<'static>,
    at: String,
}

impl Client {
    pub(super) async fn connect(at: &DaemonAt) -> Result<Self, LocalError> {
        let socket = at.socket.clone();
        match UnixStream::connect(&socket) {
            Ok(stream) => {
                let builder = zbus::connection::Builder::unix_stream(stream).p2p();
                let proxy = proxy(builder.method_timeout(ANSWER_TIMEOUT)).await;
                let at = socket.display().to_string();
                match proxy {
                    Ok(proxy) => Ok(Self { proxy, at }),
                    Err(error) => Err(LocalError::no_answer(&at, error)),
                }
            }
            Err(source) if source.kind() == io::ErrorKind::PermissionDenied => {
                match on_the_bus(at).await {
                    Some(found) => found,
                    None => Err(LocalError::Permission { socket, source }),
                }
            }
            Err(source) => Err(LocalError::NoDaemon { socket, source }),
        }
    }

    pub(super) async fn status(&self) -> Result<Status, LocalError> {
        self.read(self.proxy.status().await)
    }

    pub(super) async fn install(&self, request: &InstallRequest) -> Result<Answer, LocalError> {
        let request = document(request)?.to_string();
        self.read(self.proxy.install(&request).await)
    }

    /// Starts an update from `file`, which was opened at the absolute `path` (the address in `request` does not count).
    pub(super) async fn install_file(
        &self,
        path: &Path,
        file: &OwnedFd,
        signature: &[u8],
        request: &InstallRequest,
    ) -> Result<Answer, LocalError> {
        let mut request = document(request)?;
        if let Some(members) = request.as_object_mut() {
            members.remove("fwPackageUri");
        }
        let (path, request) = (path.to_string_lossy(), request.to_string());
        let answer = self
            .proxy
            .install_file(&path, zbus::Fd::from(file), signature, &request);
        self.read(answer.await)
    }

    pub(super) async fn cancel(&self) -> Result<Answer, LocalError> {
        self.read(self.proxy.cancel().await)
    }

    pub(super) async fn approve(&self, id: Option<&str>, now: bool) -> Result<Answer, LocalError> {
        self.read(self.proxy.approve(id.unwrap_or_default(), now).await)
    }

    pub(super) async fn defer(&self, id: Option<&str>, by: Duration) -> Result<Answer, LocalError> {
        let id = id.unwrap_or_default();
        self.read(self.proxy.defer(id, by.as_secs()).await)
    }

    pub(super) async fn rollback(&self) -> Result<Answer, LocalError> {
        self.read(self.proxy.rollback().await)
    }

    pub(super) async fn mark_good(&self) -> Result<Answer, LocalError> {
        self.read(self.proxy.mark_good().await)
    }

    pub(super) async fn mark_bad(&self, slot: &str) -> Result<Answer, LocalError> {
        self.read(self.proxy.mark_bad(slot).await)
    }

    pub(super) async fn slots(&self) -> Result<Vec<SlotInfo>, LocalError> {
        self.read(self.proxy.slots().await)
    }

    pub(super) async fn history(&self, count: u32) -> Result<Vec<UpdateReport>, LocalError> {
        self.read(self.proxy.history(count).await)
    }

    /// The present status, then each change. Ends when the daemon goes away.
    pub(super) async fn changes(&self) -> impl Stream<Item = Result<Status, LocalError>> + Unpin {
        let at = self.at.clone();
        let connection = self.proxy.inner().connection().clone();
        let owners = match connection.is_bus() {
            true => self.proxy.inner().receive_owner_changed().await.ok(),
            false => None,
        };
        // The stream of a property ends neither with its connection nor with the daemon by itself.
        let gone = async move {
            match owners {
                None => connection.closed().await,
                Some(mut owners) => while let Some(Some(_)) = owners.next().await {},
            }
        };
        let changes = self.proxy.receive_status_changed().await;
        let changes = changes.then(move |change| {
            let at = at.clone();
            async move {
                let text = change.get().await;
                read(text.map_err(|error| LocalError::no_answer(&at, error))?)
            }
        });
        Box::pin(changes.take_until(Box::pin(gone)))
    }

    fn read<T: serde::de::DeserializeOwned>(
        &self,
        answer: zbus::Result<String>,
    ) -> Result<T, LocalError> {
        read(answer.map_err(|error| LocalError::no_answer(&self.at, error))?)
    }
}

/// The daemon on the system bus; `None` when there is no such way.
async fn on_the_bus(at: &DaemonAt) -> Option<Result<Client, LocalError>> {
    if !at.bus {
        return None;
    }
    let proxy = proxy(zbus::connection::Builder::system().method_timeout(BUS_TIMEOUT)).await;
    let proxy = proxy.ok()?;
    let bus = zbus::fdo::DBusProxy::new(proxy.inner().connection())
        .await
        .ok()?;
    let name = zbus::names::BusName::try_from(NAME).expect("a constant name");
    let at = format!("{NAME} on the system bus");
    // Not there: it does not run, or keeps off the bus.
    bus.name_has_owner(name)
        .await
        .ok()?
        .then_some(Ok(Client { proxy, at }))
}

async fn proxy(builder: zbus::connection::Builder<'_>) -> zbus::Result<ManagerProxy<'static>> {
    let connect = async {
        let connection = builder.build().await?;
        ManagerProxy::builder(&connection)
            .destination(NAME)
            .path(PATH)
            .build()
            .await
    };
    // The handshake has no timeout of its own.
    tokio::time::timeout(ANSWER_TIMEOUT, connect)
        .await
        .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
}

fn document(request: &InstallRequest) -> Result<serde_json::Value, LocalError> {
    serde_json::to_value(request).map_err(|source| LocalError::Answer { source })
}

fn read<T: serde::de::DeserializeOwned>(text: String) -> Result<T, LocalError> {
    serde_json::from_str(&text).map_err(|source| LocalError::Answer { source })
}
