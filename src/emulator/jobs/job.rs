//! A job and what it did to each device.

use std::collections::{BTreeMap, VecDeque};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::request::Request;
use crate::hub_error::HubError;

/// What of a job is kept, apart from its devices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Head {
    pub(crate) request: Request,
    pub(crate) created: Timestamp,
    pub(crate) status: Status,
    pub(crate) end: Option<Timestamp>,
    pub(crate) failure: Option<String>,
    /// The devices that met the condition at the start are known.
    pub(crate) selected: bool,
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Status {
    /// About to start.
    Queued,
    /// Starts later.
    Scheduled,
    Running,
    /// Every device was dealt with, well or not.
    Completed,
    /// Never ran.
    Failed,
    Cancelled,
}

/// What a job did to a device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct DeviceJob {
    pub(crate) status: DeviceStatus,
    pub(crate) created: Timestamp,
    pub(crate) updated: Timestamp,
    pub(crate) start: Option<Timestamp>,
    pub(crate) end: Option<Timestamp>,
    /// What the device answered to a method: `{"status":…,"payload":…}`.
    pub(crate) answer: Option<Value>,
    pub(crate) error: Option<Failure>,
}

/// How far a job is with a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum DeviceStatus {
    Pending,
    Running,
    Completed,
    Failed,
    /// With one l, unlike a job.
    Canceled,
}

/// Why a job failed with a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) code: String,
    pub(crate) description: String,
}

/// A job in memory.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Job {
    pub(crate) head: Head,
    pub(crate) devices: BTreeMap<String, DeviceJob>,
    /// The devices that are `Pending`, in order.
    pub(crate) pending: VecDeque<String>,
    /// How many devices are `Running`.
    pub(crate) running: usize,
    /// Somebody is finding the devices that meet the condition.
    pub(crate) selecting: bool,
}

impl Status {
    pub(crate) fn has_ended(self) -> bool {
        match self {
            Self::Queued | Self::Scheduled | Self::Running => false,
            Self::Completed | Self::Failed | Self::Cancelled => true,
        }
    }
}

impl From<&HubError> for Failure {
    fn from(error: &HubError) -> Self {
        Self {
            code: error.kind().name().to_owned(),
            description: error.message().to_owned(),
        }
    }
}

impl DeviceJob {
    pub(crate) fn pending(now: Timestamp) -> Self {
        Self {
            status: DeviceStatus::Pending,
            created: now,
            updated: now,
            start: None,
            end: None,
            answer: None,
            error: None,
        }
    }

    pub(crate) fn end_as(&mut self, status: DeviceStatus, error: Option<Failure>, now: Timestamp) {
        self.status = status;
        self.error = error;
        self.end = Some(now);
        self.updated = now;
    }

    fn document(&self, device: &str, request: &Request) -> Value {
        let mut document = json!({
            "deviceId": device,
            "jobId": request.id,
            "jobType": request.operation.kind(),
            "status": self.status,
            "createdDateTimeUtc": stamp(self.created),
            "lastUpdatedDateTimeUtc": stamp(self.updated),
        });
        let times = [("startTimeUtc", self.start), ("endTimeUtc", self.end)];
        for (name, time) in times {
            if let Some(time) = time {
                document[name] = stamp(time).into();
            }
        }
        if self.status == DeviceStatus::Completed {
            document["outcome"] = json!({ "deviceMethodResponse": self.answer });
        }
        if let Some(error) = &self.error {
            document["error"] = json!(error);
        }
        document
    }
}

impl Job {
    /// A job that just came in.
    pub(crate) fn new(request: Request, now: Timestamp) -> Self {
        let later = request.start.is_some_and(|start| start > now);
        let status = match later {
            true => Status::Scheduled,
            false => Status::Queued,
        };
        Self::from_parts(
            Head {
                request,
                created: now,
                status,
                end: None,
                failure: None,
                selected: false,
            },
            BTreeMap::new(),
        )
    }

    pub(crate) fn from_parts(head: Head, devices: BTreeMap<String, DeviceJob>) -> Self {
        let with = |status: DeviceStatus| {
            let devices = devices.iter();
            devices.filter(move |(_, device)| device.status == status)
        };
        Self {
            pending: with(DeviceStatus::Pending)
                .map(|(id, _)| id.clone())
                .collect(),
            running: with(DeviceStatus::Running).count(),
            selecting: false,
            head,
            devices,
        }
    }

    pub(crate) fn id(&self) -> &str {
        &self.head.request.id
    }

    /// When it starts or started.
    pub(crate) fn start(&self) -> Timestamp {
        let asked = self.head.request.start.unwrap_or(self.head.created);
        asked.max(self.head.created)
    }

    /// When its time is over.
    pub(crate) fn deadline(&self) -> Timestamp {
        let seconds = i64::try_from(self.head.request.max_execution_seconds).unwrap_or(i64::MAX);
        let time = SignedDuration::from_secs(seconds);
        self.start().saturating_add(time).unwrap_or(Timestamp::MAX)
    }

    /// A JobResponse, as the service SDKs read it.
    pub(crate) fn document(&self) -> Value {
        let mut document = self.head.request.operation.document();
        let count = |status| {
            let devices = self.devices.values();
            devices.filter(|device| device.status == status).count()
        };
        let more = json!({
            "jobId": self.id(),
            "queryCondition": self.head.request.condition,
            "createdTime": stamp(self.head.created),
            "startTime": stamp(self.start()),
            "maxExecutionTimeInSeconds": self.head.request.max_execution_seconds,
            "type": self.head.request.operation.kind(),
            "status": self.head.status,
            "deviceJobStatistics": {
                "deviceCount": self.devices.len(),
                "failedCount": count(DeviceStatus::Failed),
                "succeededCount": count(DeviceStatus::Completed),
                "runningCount": count(DeviceStatus::Running),
                "pendingCount": count(DeviceStatus::Pending),
            },
        });
        if let (Value::Object(document), Value::Object(more)) = (&mut document, more) {
            document.extend(more);
        }
        if let Some(end) = self.head.end {
            document["endTime"] = stamp(end).into();
        }
        if let Some(failure) = &self.head.failure {
            document["failureReason"] = failure.clone().into();
        }
        document
    }

    /// What it did to its devices after the one named, as `devices.jobs` shows it.
    pub(crate) fn device_documents<'a>(
        &'a self,
        after: &str,
    ) -> impl Iterator<Item = (&'a str, Value)> {
        let range = (std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded);
        let devices = self.devices.range::<str, _>(range);
        devices.map(|(id, device)| (id.as_str(), device.document(id, &self.head.request)))
    }
}

/// A time as the hub writes it.
fn stamp(time: Timestamp) -> String {
    format!("{time:.7}")
}
