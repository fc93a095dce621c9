//! The local interface: D-Bus, peer to peer on the Unix socket `control.socket` and, where there is one, on the system
//! bus. Both serve the same object (`manager`; names in [`super::control_names`]).
//!
//! Who may use the socket is the file system's business: it belongs to root and the group that the package makes,
//! nobody else can open it. On the bus anyone may read, and who may act is decided call by call (`access`).

mod access;
mod bus;
mod manager;

use std::{
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
};

use tokio::{net::UnixListener, sync::watch};
use tracing::{debug, info, warn};
use zbus::connection;

pub use self::manager::Manager;
use self::{access::Access, manager::tell_changes};
use super::{control_names::PATH, updater::Published};
use crate::{
    config::ControlConfig,
    update::failure::{Class, Failure},
};

/// Read and written by its owner and its group only.
const SOCKET_MODE: u32 = 0o660;

/// Serves the socket, and the bus if that is wanted, until the process ends.
///
/// # Errors
/// The socket cannot be made; the daemon runs on without it.
pub async fn serve(config: &ControlConfig, manager: Manager) -> Result<(), Failure> {
    if config.bus {
        tokio::spawn(bus::serve(manager.with(Access::AsTheBusSays)));
    }
    serve_socket(&config.socket, &manager.with(Access::Granted)).await
}

async fn serve_socket(socket: &Path, manager: &Manager) -> Result<(), Failure> {
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
        let (guid, manager) = (guid.clone(), manager.clone());
        tokio::spawn(async move {
            let published = manager.published();
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
    published: watch::Receiver<Published>,
) -> zbus::Result<()> {
    let stream = stream.into_std()?;
    let connection = connection::Builder::unix_stream(stream)
        .server(guid)
        .p2p()
        .serve_at(PATH, manager)
        .build()
        .await?;
    tell_changes(&connection, published).await
}

/// Removes the socket at a clean stop.
pub struct SocketGuard(pub PathBuf);

impl Drop for SocketGuard {
    fn drop(&mut self) {
        // Nothing depends on it: the next start removes a leftover.
        let _ = std::fs::remove_file(&self.0);
    }
}
