//! The local interface on the system bus, under the name `org.fwupdated1`.
//!
//! Nothing waits for the bus: where there is none (early in the boot, in a container, in the demo) the daemon says so
//! once, and looks again after pauses that grow to five minutes. So it does when the bus goes away.

use std::time::Duration;

use tracing::{debug, info};
use zbus::connection::Builder;

use super::manager::{Manager, tell_changes};
use crate::{
    daemon::control_names::{NAME, PATH},
    update::failure::chain,
};

/// Pause before the bus is looked for again; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(5 * 60);
/// Longest wait for polkit, which may ask a person for a password.
const ANSWER_LIMIT: Duration = Duration::from_secs(150);

/// Serves `manager` as long as the process lives and there is a bus.
pub(super) async fn serve(manager: Manager) {
    let mut pause = FIRST_PAUSE;
    let mut said = false;
    loop {
        match connect(&manager).await {
            Ok(connection) => {
                info!("local interface on the system bus: {NAME}");
                (pause, said) = (FIRST_PAUSE, false);
                let ended = tell_changes(&connection, manager.published()).await;
                info!("the system bus went away; looking for it again");
                if let Err(error) = ended {
                    debug!("{}", chain(&error));
                }
            }
            Err(error) if said => debug!("no system bus: {}", chain(&error)),
            Err(error) => {
                info!(
                    "not on the system bus, the control socket is unaffected: {}",
                    chain(&error)
                );
                said = true;
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn connect(manager: &Manager) -> zbus::Result<zbus::Connection> {
    Builder::system()
        .method_timeout(ANSWER_LIMIT)
        .allow_name_replacements(false)
        .replace_existing_names(false)
        .serve_at(PATH, manager.clone())
        .name(NAME)
        .build()
        .await
}
