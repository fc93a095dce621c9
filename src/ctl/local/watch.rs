//! Following an update over the control socket until it has ended, across restarts of the daemon.

use std::time::Duration;

use futures_util::StreamExt as _;
use serde_json::json;
use tokio::time::{Instant, sleep, timeout_at};

use super::{
    client::{Client, DaemonAt},
    error::LocalError,
    show,
};
use crate::{
    ctl::{exit, output, progress::Display},
    update::status::{Stage, Status, UpdateReport},
};

/// Pause between two attempts to find the daemon again.
const RECONNECT_PAUSE: Duration = Duration::from_millis(500);

/// Far enough to mean "no deadline" and still be a time.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Shows each change of the update `id` (`None`: the one there is) until it has ended. Returns the exit
/// code for its end.
pub(super) async fn watch(
    at: &DaemonAt,
    id: Option<String>,
    json: bool,
    timeout: Option<Duration>,
) -> Result<u8, LocalError> {
    let deadline = Instant::now() + timeout.unwrap_or(FOREVER);
    let mut follower = Follower {
        id,
        waiting_for_first: true,
    };
    let mut display = Display::new();
    // Without a daemon at the start there is nothing to watch; one that goes away may be restarting.
    let mut client = Client::connect(at).await?;
    loop {
        let mut changes = client.changes().await;
        loop {
            let Ok(change) = timeout_at(deadline, changes.next()).await else {
                return Ok(out_of_time(&display));
            };
            match change {
                Some(Ok(status)) => {
                    match follower.see(&status) {
                        Seen::Nothing => {}
                        Seen::NoUpdate => {
                            display.line("No update so far.");
                            return Ok(exit::OK);
                        }
                        Seen::Update(update) => {
                            show_change(&mut display, update, json);
                            if let Some(code) = end(update) {
                                return Ok(code);
                            }
                        }
                        Seen::Superseded(by) => {
                            display.note(format!("another update ({}) took over; how the one watched ended is not known", output::clean(&by)));
                            return Ok(exit::UNDECIDED);
                        }
                    }
                }
                Some(Err(error @ LocalError::Answer { .. })) => return Err(error),
                Some(Err(_)) | None => break,
            }
        }
        drop(changes);
        display.note("the daemon went away (it restarts, or the device reboots); waiting for it");
        client = loop {
            if Instant::now() >= deadline {
                return Ok(out_of_time(&display));
            }
            match Client::connect(at).await {
                Ok(client) => break client,
                // Also without permission: the socket is there before the name on the bus, which let us in before.
                Err(_) => sleep(RECONNECT_PAUSE).await,
            }
        };
    }
}

fn out_of_time(display: &Display) -> u8 {
    display.note("stopped waiting; the update goes on");
    exit::UNDECIDED
}

fn show_change(display: &mut Display, update: &UpdateReport, json: bool) {
    if json {
        let document = json!({"time": show::now(), "update": update});
        display.line(document.to_string());
    } else {
        display.show(show::view(update));
    }
}

fn end(update: &UpdateReport) -> Option<u8> {
    match update.stage {
        Stage::ApplyComplete => Some(exit::OK),
        Stage::DownloadFailed | Stage::ApplyFailed => Some(exit::FAILED),
        _ => None,
    }
}

/// Which of the statuses that pass by belong to the update that is watched.
struct Follower {
    id: Option<String>,
    waiting_for_first: bool,
}

#[derive(Debug, PartialEq)]
enum Seen<'a> {
    Nothing,
    NoUpdate,
    Update(&'a UpdateReport),
    Superseded(String),
}

impl Follower {
    fn see<'a>(&mut self, status: &'a Status) -> Seen<'a> {
        match (&status.update, &self.id) {
            (None, None) => Seen::NoUpdate,
            (None, Some(_)) => Seen::Nothing,
            (Some(update), Some(id)) if update.id != *id => {
                // The status may lag behind the answer that named the update.
                if self.waiting_for_first {
                    Seen::Nothing
                } else {
                    Seen::Superseded(update.id.clone())
                }
            }
            (Some(update), _) => {
                self.id = Some(update.id.clone());
                self.waiting_for_first = false;
                Seen::Update(update)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(id: Option<&str>) -> Status {
        let update = id.map(|id| {
            json!({"id": id, "origin": "local", "uri": "", "target": "a", "version": null, "fromVersion": null,
                "stage": "waiting", "detail": null, "progress": {}, "times": {}, "error": null})
        });
        serde_json::from_value(json!({"daemonVersion": "", "firmwareVersion": null, "bootedSlot": null, "slots": {},
            "bootloader": "", "unsignedAllowed": false, "hub": {}, "update": update, "lastSuccess": null, "problem": null}))
        .unwrap()
    }

    #[test]
    fn an_older_update_is_passed_over_until_the_one_asked_for_shows() {
        let mut follower = Follower {
            id: Some("new".to_owned()),
            waiting_for_first: true,
        };
        assert_eq!(follower.see(&status(None)), Seen::Nothing);
        assert_eq!(follower.see(&status(Some("old"))), Seen::Nothing);
        assert!(matches!(
            follower.see(&status(Some("new"))),
            Seen::Update(_)
        ));
        assert_eq!(
            follower.see(&status(Some("third"))),
            Seen::Superseded("third".to_owned())
        );
    }

    #[test]
    fn without_an_id_the_update_there_is_counts() {
        let mut follower = Follower {
            id: None,
            waiting_for_first: true,
        };
        assert_eq!(follower.see(&status(None)), Seen::NoUpdate);
        assert!(matches!(follower.see(&status(Some("x"))), Seen::Update(_)));
        assert_eq!(
            follower.see(&status(Some("y"))),
            Seen::Superseded("y".to_owned())
        );
    }
}
