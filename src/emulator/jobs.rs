//! Jobs (`/jobs/v2`): a direct method or a twin update for every device that meets a condition.
//!
//! [`request`] reads what is asked for. [`schedule`] decides, as pure code with the time passed in, which
//! job starts, what runs next and what ends; [`engine`] carries that out. [`journal`] keeps it in the state
//! directory, a line for each change, so that a restart goes on where the hub stopped:
//!
//! - A device that was not reached yet is reached after the restart.
//! - A twin update that was under way is done again, which changes nothing if it was done.
//! - A method that was under way counts as failed: the device may have acted on it, and is not asked twice.

mod board;
pub(crate) mod engine;
mod job;
mod journal;
mod request;
pub(crate) mod routes;
mod schedule;

pub(crate) use board::JobBoard;
pub(crate) use journal::Journal;
