//! The jobs behind their lock: each change becomes durable and wakes the engine.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::Notify;

use super::job::Job;
use super::journal::Journal;
use super::schedule::Jobs;
use crate::hub::Hub;
use crate::query::in_pieces;

/// Rows of `devices.jobs` read in one go.
const PIECE: usize = 256;

/// All jobs. Its lock is taken alone or before the hub's, never while the hub's is held.
pub(crate) struct JobBoard {
    jobs: Mutex<Jobs>,
    journal: Option<Journal>,
    /// The most jobs that may be active.
    pub(crate) limit: usize,
    pub(super) wake: Notify,
}

impl JobBoard {
    pub(crate) fn new(limit: usize, kept: Option<(Journal, Vec<Job>)>) -> Self {
        let (journal, jobs) = match kept {
            Some((journal, jobs)) => (Some(journal), jobs),
            None => (None, Vec::new()),
        };
        Self {
            jobs: Mutex::new(Jobs::restored(jobs, Timestamp::now())),
            journal,
            limit,
            wake: Notify::new(),
        }
    }

    pub(super) fn read(&self) -> MutexGuard<'_, Jobs> {
        // A panic elsewhere leaves no half-made change that later steps could not go on from.
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes something, makes it durable, and lets the engine look.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Jobs, Timestamp) -> T) -> T {
        let result = self.step(change);
        self.wake.notify_one();
        result
    }

    /// Like [`JobBoard::change`], for the engine itself.
    pub(super) fn step<T>(&self, change: impl FnOnce(&mut Jobs, Timestamp) -> T) -> T {
        let mut jobs = self.read();
        let result = change(&mut jobs, Timestamp::now());
        let changes = jobs.take_changes();
        if let Some(journal) = &self.journal {
            journal.write(&jobs, &changes);
        }
        result
    }
}

impl Hub {
    /// The rows of `devices.jobs` after this key, in the order of their keys.
    pub(crate) fn device_jobs_after(&self, key: &str) -> impl Iterator<Item = (String, Value)> {
        in_pieces(key, |after| {
            // The separator sorts before every character of an id.
            let (job, device) = after.split_once('\n').unwrap_or((after, ""));
            let jobs = self.jobs.read();
            let mut rows = VecDeque::new();
            for of in jobs.starting_at(job) {
                let after = if of.id() == job { device } else { "" };
                let left = PIECE - rows.len();
                let documents = of.device_documents(after).take(left);
                rows.extend(documents.map(|(id, row)| (format!("{}\n{id}", of.id()), row)));
                if rows.len() == PIECE {
                    break;
                }
            }
            rows
        })
    }

    /// The jobs that `wanted` picks, oldest first, each with a key of that order.
    pub(super) fn job_documents(&self, wanted: impl Fn(&Job) -> bool) -> Vec<(String, Value)> {
        let jobs = self.jobs.read();
        let mut found: Vec<_> = jobs
            .all()
            .filter(|job| wanted(job))
            .map(|job| {
                (
                    format!("{:.9} {}", job.head.created, job.id()),
                    job.document(),
                )
            })
            .collect();
        found.sort_by(|(left, _), (right, _)| left.cmp(right));
        found
    }
}
