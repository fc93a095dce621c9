//! The local interface: D-Bus, peer to peer, on the Unix socket `control.socket` (names in
//! [`super::control_names`]).
//!
//! Who may talk to it is the file system's business: the socket belongs to root and the group that the
//! package makes, nobody else can open it.

use std::{
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
};

use tokio::{
    net::UnixListener,
    sync::{mpsc, oneshot, watch},
};
use tracing::{debug, info, warn};
use zbus::{connection, fdo, interface};

use super::{
    control_names::PATH,
    logging::answered,
    updater::{Command, Published},
};
use crate::{
    hub::method::{self, Answer, Methods},
    update::{
        failure::{Class, Failure},
        request::{Origin, Request},
    },
};

/// Read and written by its owner and its group only.
const SOCKET_MODE: u32 = 0o660;

/// Serves the socket until the process ends.
///
/// # Errors
/// The socket cannot be made; the daemon runs on without it.
pub async fn serve(
    socket: &Path,
    commands: mpsc::Sender<Command>,
    published: watch::Receiver<Published>,
) -> Result<(), Failure> {
    let failed = |error: std::io::Error| {
        let text = format!(
            "the control socket {} cannot be made: {error}; see control.socket",
            socket.display()
        );
        Failure::new("control-socket", Class::Final, text)
    };
    if let Some(folder) = socket.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    // Left over from a daemon that was killed; the state directory's lock says that none runs now.
    if std::fs::symlink_metadata(socket).is_ok_and(|meta| meta.file_type().is_socket()) {
        std::fs::remove_file(socket).map_err(failed)?;
    }
    let listener = UnixListener::bind(socket).map_err(failed)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(SOCKET_MODE))
        .map_err(failed)?;
    info!("control socket {}", socket.display());
    let guid = zbus::Guid::generate();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!("the control socket accepts nobody: {error}");
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                continue;
            }
        };
        let manager = Manager {
            commands: commands.clone(),
            published: published.clone(),
        };
        let (guid, published) = (guid.clone(), published.clone());
        tokio::spawn(async move {
            if let Err(error) = talk(stream, guid.into(), manager, published).await {
                debug!("a control connection ended: {error}");
            }
        });
    }
}

/// One client, until it hangs up.
async fn talk(
    stream: tokio::net::UnixStream,
    guid: zbus::OwnedGuid,
    manager: Manager,
    mut published: watch::Receiver<Published>,
) -> zbus::Result<()> {
    let stream = stream.into_std()?;
    let connection = connection::Builder::unix_stream(stream)
        .server(guid)
        .p2p()
        .serve_at(PATH, manager)
        .build()
        .await?;
    let manager = connection
        .object_server()
        .interface::<_, Manager>(PATH)
        .await?;
    loop {
        tokio::select! {
            changed = published.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                manager.get().await.status_changed(manager.signal_emitter()).await?;
            }
            () = hung_up(&connection) => return Ok(()),
        }
    }
}

/// Returns when the peer is gone.
async fn hung_up(connection: &zbus::Connection) {
    use futures_util::StreamExt;
    let mut messages = zbus::MessageStream::from(connection);
    while let Some(Ok(_)) = messages.next().await {}
}

struct Manager {
    commands: mpsc::Sender<Command>,
    published: watch::Receiver<Published>,
}

#[interface(name = "org.fwupdated1.Manager")]
impl Manager {
    /// The JSON of `update::status::Status`.
    #[zbus(property)]
    fn status(&self) -> fdo::Result<String> {
        serde_json::to_string(&self.published.borrow().status)
            .map_err(|e| fdo::Error::Failed(e.to_string()))
    }

    /// Starts an update: the payload of the method `firmwareUpdate` in, `{"status","body"}` out.
    async fn install(&self, request: String) -> fdo::Result<String> {
        let answer = match parse(&request) {
            Ok(request) => {
                let request = crate::update::request::Request {
                    origin: Origin::Local,
                    ..request
                };
                self.ask(|reply| Command::Install { request, reply }).await
            }
            Err(answer) => answer,
        };
        answered("local install", &answer);
        document(&answer)
    }

    /// Cancels the update under way.
    async fn cancel(&self) -> fdo::Result<String> {
        let answer = self.ask(|reply| Command::Cancel { reply }).await;
        answered("local cancel", &answer);
        document(&answer)
    }

    /// Lets the update that waits go on: `update_id` if it is that one, "" for any; with `now` without waiting for anything else.
    async fn approve(&self, update_id: String, now: bool) -> fdo::Result<String> {
        let id = Some(update_id).filter(|id| !id.is_empty());
        let ask = |reply| Command::Approve { id, now, reply };
        let answer = self.ask(ask).await;
        answered("local approve", &answer);
        document(&answer)
    }

    /// Puts the update that waits off for so many seconds, within the policy's limit.
    async fn defer(&self, update_id: String, seconds: u64) -> fdo::Result<String> {
        let id = Some(update_id).filter(|id| !id.is_empty());
        let by = std::time::Duration::from_secs(seconds);
        let answer = self.ask(|reply| Command::Defer { id, by, reply }).await;
        answered("local defer", &answer);
        document(&answer)
    }
}

impl Manager {
    async fn ask(&self, command: impl FnOnce(oneshot::Sender<Answer>) -> Command) -> Answer {
        let (reply, answer) = oneshot::channel();
        let sent = self.commands.send(command(reply)).await;
        match answer.await {
            Ok(answer) if sent.is_ok() => answer,
            _ => Answer::unavailable(&Failure::stopping()),
        }
    }
}

/// The document is the direct method's, under the name that the samples use.
fn parse(document: &str) -> Result<Request, Answer> {
    let name = "firmwareUpdate";
    let methods = Methods {
        update_names: vec![name.to_owned()],
        allow_reboot: false,
    };
    match method::parse(&methods, name, document.as_bytes())? {
        method::Command::Update(request) => Ok(request),
        other => Err(Answer::internal(&format!(
            "an install request was read as {other:?}"
        ))),
    }
}

fn document(answer: &Answer) -> fdo::Result<String> {
    Ok(serde_json::json!({ "status": answer.status, "body": answer.body }).to_string())
}

/// Removes the socket at a clean stop.
pub struct SocketGuard(pub PathBuf);

impl Drop for SocketGuard {
    fn drop(&mut self) {
        // Nothing depends on it: the next start removes a leftover.
        let _ = std::fs::remove_file(&self.0);
    }
}
