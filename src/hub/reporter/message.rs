//! What goes into the reporter and what comes out of it.

use std::time::Duration;

use serde_json::Value;

use crate::config::ReportConfig;

/// The pace of patches.
#[derive(Debug, Clone)]
pub struct Pace {
    /// Shortest time between two patches for a change of stage.
    pub stage_interval: Duration,
    /// Shortest time between two patches for progress.
    pub progress_interval: Duration,
    /// How long to wait for the answer to a patch.
    pub answer_timeout: Duration,
    /// Longest random pause after a connect, so that a fleet does not report in step.
    pub reconnect_jitter: Duration,
}

impl From<&ReportConfig> for Pace {
    fn from(config: &ReportConfig) -> Self {
        Self {
            stage_interval: config.stage_interval,
            progress_interval: config.progress_interval,
            answer_timeout: config.answer_timeout,
            reconnect_jitter: config.reconnect_jitter,
        }
    }
}

/// What a new document differs in from the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// A stage, a result: soon.
    Stage,
    /// Only counts: when there is time.
    Progress,
}

/// What the reported section shall be.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// The document, as [`crate::hub::twin::reported`] makes it.
    pub document: Value,
    /// What changed.
    pub change: Change,
    /// The caller's name for this run of the update, if the document says that it is finished.
    pub terminal: Option<String>,
}

/// A patch to send.
#[derive(Debug, Clone, PartialEq)]
pub struct Patch {
    /// Its request id, by which the answer comes back.
    pub rid: String,
    /// The patch.
    pub body: Value,
}

/// What the caller must know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The hub has the last word of this update: it can leave the persisted outbox. Comes in the order
    /// of the outbox, and again after a restart that forgot it.
    Delivered {
        /// The update.
        update_id: String,
    },
    /// The hub refused a patch for good (400, 403, ...). It is tried again when the stage changes, after the
    /// next connect, and after an hour.
    Rejected {
        /// The hub's answer.
        status: u16,
        /// The update whose last word it was, if it was one.
        update_id: Option<String>,
    },
    /// The last word of this update was refused and a newer update has taken its place: it will never
    /// arrive and can leave the persisted outbox.
    GivenUp {
        /// The update.
        update_id: String,
    },
}
