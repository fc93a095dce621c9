//! Which job starts, what runs next, what ends. Pure: the time is passed in, and what is to be done comes
//! out as [`Action`]s.
//!
//! - No more than [`OPERATIONS`] devices are dealt with at once, taken in turn from all running jobs, so that
//!   a large job does not hold up a small one.
//! - A job that has ended changes no more; a result that comes late is ignored.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

use super::job::{DeviceJob, DeviceStatus, Failure, Head, Job, Status};
use super::request::{Operation, Request};
use crate::hub_error::{HubError, Kind};

/// Devices dealt with at once.
const OPERATIONS: usize = 100;
/// How long an ended job is kept.
const HISTORY: SignedDuration = SignedDuration::from_hours(30 * 24);

/// All jobs, by id.
#[derive(Debug, Default)]
pub(crate) struct Jobs {
    jobs: BTreeMap<String, Job>,
    /// What has changed since it was last taken.
    changes: Changes,
    /// Jobs whose operations under way are to be given up.
    to_stop: Vec<String>,
}

/// What is to be made durable.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Changes {
    pub(crate) heads: BTreeSet<String>,
    /// Job and device.
    pub(crate) devices: BTreeSet<(String, String)>,
    pub(crate) removed: BTreeSet<String>,
}

/// What is to be done now.
#[derive(Debug, PartialEq)]
pub(crate) enum Action {
    /// Find the devices that meet the condition, then call [`Jobs::selected`].
    Select { job: String, condition: String },
    /// Deal with a device, then call [`Jobs::finished`].
    Operate {
        job: String,
        device: String,
        operation: Operation,
    },
    /// Give up what is under way of this job.
    Stop { job: String },
}

impl Jobs {
    /// The jobs that were kept. What was under way when the hub stopped is decided here.
    pub(crate) fn restored(jobs: Vec<Job>, now: Timestamp) -> Self {
        let mut restored = Self::default();
        for mut job in jobs {
            for (id, device) in &mut job.devices {
                if device.status != DeviceStatus::Running {
                    continue;
                }
                match job.head.request.operation {
                    Operation::UpdateTwin(_) => *device = DeviceJob::pending(device.created),
                    Operation::Method(_) => {
                        let failure = Failure {
                            code: Kind::GatewayTimeout.name().to_owned(),
                            description: "The hub was restarted while the device had the call."
                                .to_owned(),
                        };
                        device.end_as(DeviceStatus::Failed, Some(failure), now);
                    }
                }
                let key = (job.head.request.id.clone(), id.clone());
                restored.changes.devices.insert(key);
            }
            let job = Job::from_parts(job.head, job.devices);
            restored.jobs.insert(job.id().to_owned(), job);
        }
        restored.forget_old(now);
        restored
    }

    /// Takes a job on, if fewer than `limit` are active.
    pub(crate) fn create(
        &mut self,
        request: Request,
        limit: usize,
        now: Timestamp,
    ) -> Result<&Job, HubError> {
        self.forget_old(now);
        let id = request.id.clone();
        if self.jobs.contains_key(&id) {
            return Err(HubError::new(
                Kind::JobAlreadyExists,
                format!("The job '{id}' exists already."),
            ));
        }
        let active = |job: &&Job| !job.head.status.has_ended();
        if self.jobs.values().filter(active).count() >= limit {
            return Err(HubError::new(
                Kind::ThrottlingMaxActiveJobCountExceeded,
                format!("{limit} jobs are active, which is the limit; wait or cancel one."),
            ));
        }
        self.changes.heads.insert(id.clone());
        Ok(self
            .jobs
            .entry(id)
            .or_insert_with(|| Job::new(request, now)))
    }

    pub(crate) fn get(&self, id: &str) -> Result<&Job, HubError> {
        self.jobs.get(id).ok_or_else(|| no_job(id))
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Job> {
        self.jobs.values()
    }

    /// The jobs from this id on, in the order of their ids.
    pub(crate) fn starting_at(&self, id: &str) -> impl Iterator<Item = &Job> {
        let range = (std::ops::Bound::Included(id), std::ops::Bound::Unbounded);
        self.jobs.range::<str, _>(range).map(|(_, job)| job)
    }

    /// Ends a job that has not ended. Devices that were not dealt with are canceled.
    pub(crate) fn cancel(&mut self, id: &str, now: Timestamp) -> Result<&Job, HubError> {
        let job = self.get(id)?;
        if job.head.status.has_ended() {
            return Err(HubError::new(
                Kind::InvalidOperation,
                format!("The job '{id}' has ended and cannot be cancelled."),
            ));
        }
        self.end(id, Status::Cancelled, None, now, |device| {
            device.end_as(DeviceStatus::Canceled, None, now);
        });
        self.get(id)
    }

    /// Moves every job on as far as it goes at this moment; what is to be done for it.
    pub(crate) fn step(&mut self, now: Timestamp) -> Vec<Action> {
        let mut actions = Vec::new();
        self.end_overdue(now);
        for job in self.jobs.values_mut() {
            let due = match job.head.status {
                Status::Queued | Status::Scheduled => job.start() <= now,
                Status::Running => !job.head.selected && !job.selecting,
                Status::Completed | Status::Failed | Status::Cancelled => false,
            };
            if due {
                job.head.status = Status::Running;
                job.selecting = true;
                self.changes.heads.insert(job.id().to_owned());
                actions.push(Action::Select {
                    job: job.id().to_owned(),
                    condition: job.head.request.condition.clone(),
                });
            }
        }
        self.fill_up(now, &mut actions);
        self.complete(now);
        let stopped = std::mem::take(&mut self.to_stop).into_iter();
        actions.extend(stopped.map(|job| Action::Stop { job }));
        actions
    }

    /// When [`Jobs::step`] has something to do although nothing else happens.
    pub(crate) fn next_wake(&self) -> Option<Timestamp> {
        let wake = |job: &Job| match job.head.status {
            Status::Queued | Status::Scheduled => Some(job.start()),
            Status::Running => Some(job.deadline()),
            Status::Completed | Status::Failed | Status::Cancelled => None,
        };
        self.jobs.values().filter_map(wake).min()
    }

    /// The devices that met the condition of a job.
    pub(crate) fn selected(&mut self, id: &str, devices: Vec<String>, now: Timestamp) {
        let Some(job) = self.running_job(id) else {
            return;
        };
        job.selecting = false;
        job.head.selected = true;
        for device in devices {
            job.pending.push_back(device.clone());
            job.devices.insert(device, DeviceJob::pending(now));
        }
        let keys: Vec<_> = job
            .devices
            .keys()
            .map(|device| (id.to_owned(), device.clone()))
            .collect();
        self.changes.heads.insert(id.to_owned());
        self.changes.devices.extend(keys);
    }

    /// What came of dealing with a device: what it answered to a method, or why it failed.
    pub(crate) fn finished(
        &mut self,
        id: &str,
        device: &str,
        result: Result<Option<serde_json::Value>, Failure>,
        now: Timestamp,
    ) {
        let Some(job) = self.running_job(id) else {
            return;
        };
        let Some(record) = job
            .devices
            .get_mut(device)
            .filter(|record| record.status == DeviceStatus::Running)
        else {
            return;
        };
        job.running -= 1;
        match result {
            Ok(answer) => {
                record.answer = answer;
                record.end_as(DeviceStatus::Completed, None, now);
            }
            Err(failure) => record.end_as(DeviceStatus::Failed, Some(failure), now),
        }
        self.changes
            .devices
            .insert((id.to_owned(), device.to_owned()));
    }

    /// What has changed since the last time.
    pub(crate) fn take_changes(&mut self) -> Changes {
        std::mem::take(&mut self.changes)
    }

    /// A job's parts, to be made durable.
    pub(crate) fn head(&self, id: &str) -> Option<&Head> {
        self.jobs.get(id).map(|job| &job.head)
    }

    pub(crate) fn device(&self, id: &str, device: &str) -> Option<&DeviceJob> {
        self.jobs.get(id)?.devices.get(device)
    }

    fn running_job(&mut self, id: &str) -> Option<&mut Job> {
        let job = self.jobs.get_mut(id)?;
        (job.head.status == Status::Running).then_some(job)
    }

    fn end_overdue(&mut self, now: Timestamp) {
        let overdue: Vec<_> = self
            .jobs
            .values()
            .filter(|job| !job.head.status.has_ended() && job.deadline() <= now)
            .map(|job| (job.id().to_owned(), job.head.status))
            .collect();
        for (id, status) in overdue {
            if status == Status::Running {
                self.end(&id, Status::Completed, None, now, |device| {
                    let failure = Failure {
                        code: Kind::RequestTimedOut.name().to_owned(),
                        description: "The job's maxExecutionTimeInSeconds ended first.".to_owned(),
                    };
                    device.end_as(DeviceStatus::Failed, Some(failure), now);
                });
            } else {
                let reason = "JobRunPreconditionFailed: the job could not start before its \
                              maxExecutionTimeInSeconds ended.";
                self.end(&id, Status::Failed, Some(reason.to_owned()), now, |_| {});
            }
        }
    }

    /// Ends a job, and with `end_device` each of its devices that was not dealt with.
    fn end(
        &mut self,
        id: &str,
        status: Status,
        failure: Option<String>,
        now: Timestamp,
        end_device: impl Fn(&mut DeviceJob),
    ) {
        let Some(job) = self.jobs.get_mut(id) else {
            return;
        };
        job.head.status = status;
        job.head.failure = failure;
        job.head.end = Some(now);
        job.pending.clear();
        job.running = 0;
        for (device, record) in &mut job.devices {
            if matches!(record.status, DeviceStatus::Pending | DeviceStatus::Running) {
                end_device(record);
                self.changes.devices.insert((id.to_owned(), device.clone()));
            }
        }
        self.changes.heads.insert(id.to_owned());
        self.to_stop.push(id.to_owned());
    }

    /// Starts with as many devices as may be under way, one of each job in turn.
    fn fill_up(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        let mut running: usize = self.jobs.values().map(|job| job.running).sum();
        loop {
            let before = running;
            for job in self.jobs.values_mut() {
                if running == OPERATIONS {
                    return;
                }
                let Some(device) = job.pending.pop_front() else {
                    continue;
                };
                let Some(record) = job.devices.get_mut(&device) else {
                    continue;
                };
                record.status = DeviceStatus::Running;
                record.start = Some(now);
                record.updated = now;
                job.running += 1;
                running += 1;
                self.changes
                    .devices
                    .insert((job.head.request.id.clone(), device.clone()));
                actions.push(Action::Operate {
                    job: job.head.request.id.clone(),
                    device,
                    operation: job.head.request.operation.clone(),
                });
            }
            if running == before {
                return;
            }
        }
    }

    fn complete(&mut self, now: Timestamp) {
        let done = |job: &&Job| {
            job.head.status == Status::Running
                && job.head.selected
                && job.pending.is_empty()
                && job.running == 0
        };
        let done: Vec<_> = self
            .jobs
            .values()
            .filter(done)
            .map(|job| job.id().to_owned())
            .collect();
        for id in done {
            self.end(&id, Status::Completed, None, now, |_| {});
        }
    }

    fn forget_old(&mut self, now: Timestamp) {
        let oldest = now.saturating_sub(HISTORY).unwrap_or(Timestamp::MIN);
        let old: Vec<_> = self
            .jobs
            .values()
            .filter(|job| job.head.end.is_some_and(|end| end < oldest))
            .map(|job| job.id().to_owned())
            .collect();
        for id in old {
            self.jobs.remove(&id);
            self.changes.removed.insert(id);
        }
    }
}

fn no_job(id: &str) -> HubError {
    let shown: String = id.chars().take(140).collect();
    HubError::new(Kind::JobNotFound, format!("There is no job '{shown}'."))
}

#[cfg(test)]
mod tests;
