//! Jobs in the state directory: one file for each, one line for each change, the newest line wins.
//!
//! A file is only appended to, so that a job with ten thousand devices costs a line for each step and not a
//! file. What a killed hub wrote by half is at the end, is not used, and is gone after the next start.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tracing::error;

use super::job::{DeviceJob, Head, Job};
use super::schedule::{Changes, Jobs};
use crate::percent;
use crate::start_error::StartError;
use crate::store::write_atomically;

/// The folder of the jobs.
pub(crate) struct Journal {
    directory: PathBuf,
}

/// A line.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Line {
    Job(Head),
    Device(String, DeviceJob),
}

impl Journal {
    /// Opens the folder in the state directory, makes it if it is missing, and reads what is there.
    pub(crate) fn open(state: &Path) -> Result<(Self, Vec<Job>), StartError> {
        let directory = state.join("jobs");
        fs::create_dir_all(&directory).map_err(|source| StartError::state(&directory, source))?;
        let mut jobs = Vec::new();
        let entries =
            fs::read_dir(&directory).map_err(|source| StartError::state(&directory, source))?;
        for entry in entries {
            let path = entry
                .map_err(|source| StartError::state(&directory, source))?
                .path();
            if path
                .extension()
                .is_none_or(|extension| extension != "jsonl")
            {
                continue;
            }
            let failed = |source| StartError::state(&path, source);
            match read(&path)? {
                Some(job) => {
                    let text = lines(&job.head, job.devices.iter()).map_err(failed)?;
                    write_atomically(&path, &text, 0o600).map_err(failed)?;
                    jobs.push(job);
                }
                // Nobody was told of that job; its id is free again.
                None => fs::remove_file(&path).map_err(failed)?,
            }
        }
        Ok((Self { directory }, jobs))
    }

    /// Writes what has changed. A failure is logged: the hub goes on from memory.
    pub(super) fn write(&self, jobs: &Jobs, changes: &Changes) {
        let mut text: BTreeMap<&str, io::Result<Vec<u8>>> = BTreeMap::new();
        for id in &changes.heads {
            if let Some(head) = jobs.head(id) {
                text.insert(id, lines(head, std::iter::empty()));
            }
        }
        for (id, device) in &changes.devices {
            let Some(record) = jobs.device(id, device) else {
                continue;
            };
            let line = line(&Line::Device(device.clone(), record.clone()));
            let text = text.entry(id).or_insert_with(|| Ok(Vec::new()));
            if let Ok(text) = text {
                text.extend(line.unwrap_or_default());
            }
        }
        for (id, text) in text {
            let path = self.file(id);
            if let Err(error) = text.and_then(|text| append(&path, &text)) {
                error!(
                    "cannot save {}: {error}; what the job does from now on is lost at the next start",
                    path.display()
                );
            }
        }
        for id in &changes.removed {
            let path = self.file(id);
            if let Err(error) = fs::remove_file(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                error!("cannot remove {}: {error}", path.display());
            }
        }
    }

    fn file(&self, id: &str) -> PathBuf {
        self.directory
            .join(format!("{}.jsonl", percent::encode(id)))
    }
}

/// A job from its file; `None` when not even its first line was written whole.
fn read(path: &Path) -> Result<Option<Job>, StartError> {
    let text = fs::read(path).map_err(|source| StartError::state(path, source))?;
    let mut head = None;
    let mut devices = BTreeMap::new();
    let whole = text.iter().rposition(|byte| *byte == b'\n').unwrap_or(0);
    for text in text[..whole].split(|byte| *byte == b'\n') {
        if text.is_empty() {
            continue;
        }
        let line = serde_json::from_slice(text).map_err(|source| StartError::BadState {
            path: path.to_owned(),
            source,
        })?;
        match line {
            Line::Job(newer) => head = Some(newer),
            Line::Device(id, record) => {
                devices.insert(id, record);
            }
        }
    }
    Ok(head.map(|head| Job::from_parts(head, devices)))
}

fn lines<'a>(
    head: &Head,
    devices: impl Iterator<Item = (&'a String, &'a DeviceJob)>,
) -> io::Result<Vec<u8>> {
    let mut text = line(&Line::Job(head.clone()))?;
    for (id, record) in devices {
        text.extend(line(&Line::Device(id.clone(), record.clone()))?);
    }
    Ok(text)
}

fn line(line: &Line) -> io::Result<Vec<u8>> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    Ok(text)
}

fn append(path: &Path, text: &[u8]) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    fs::OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)?
        .write_all(text)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use serde_json::json;

    use super::super::job::{DeviceStatus, Status};
    use super::super::request::Request;
    use super::super::schedule::Action;
    use super::*;

    fn request(id: &str, kind: &str) -> Request {
        let body = json!({ "type": kind, "queryCondition": "*",
            "cloudToDeviceMethod": { "methodName": "m" }, "updateTwin": { "tags": {} } });
        Request::parse(id, &body).unwrap()
    }

    fn running(jobs: &mut Jobs, id: &str, kind: &str, now: Timestamp) {
        jobs.create(request(id, kind), 9, now).unwrap();
        jobs.step(now);
        jobs.selected(id, vec!["a".into(), "b".into()], now);
        jobs.step(now);
        jobs.finished(id, "a", Ok(None), now);
    }

    #[test]
    fn a_restart_goes_on_where_the_hub_stopped_and_calls_no_method_twice() {
        let state = tempfile::tempdir().unwrap();
        let (journal, kept) = Journal::open(state.path()).unwrap();
        assert!(kept.is_empty());
        let now = Timestamp::now();
        let mut jobs = Jobs::default();
        running(&mut jobs, "method", "scheduleDeviceMethod", now);
        running(&mut jobs, "..", "scheduleUpdateTwin", now);
        let changes = jobs.take_changes();
        journal.write(&jobs, &changes);

        let (_, kept) = Journal::open(state.path()).unwrap();
        let mut again = Jobs::restored(kept, now);
        let status =
            |jobs: &Jobs, job: &str, device: &str| jobs.device(job, device).unwrap().status;
        assert_eq!(status(&again, "method", "a"), DeviceStatus::Completed);
        assert_eq!(status(&again, "method", "b"), DeviceStatus::Failed);
        assert_eq!(status(&again, "..", "a"), DeviceStatus::Completed);
        assert_eq!(status(&again, "..", "b"), DeviceStatus::Pending);
        let actions = again.step(now);
        let stop = Action::Stop {
            job: "method".into(),
        };
        assert!(actions.contains(&stop), "{actions:?}");
        assert_eq!(again.head("method").unwrap().status, Status::Completed);
        assert_eq!(status(&again, "..", "b"), DeviceStatus::Running);
    }

    #[test]
    fn a_line_written_by_half_is_not_used_and_does_not_spoil_the_next() {
        let state = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(state.path()).unwrap();
        let now = Timestamp::now();
        let mut jobs = Jobs::default();
        running(&mut jobs, "j", "scheduleUpdateTwin", now);
        let changes = jobs.take_changes();
        journal.write(&jobs, &changes);
        append(&journal.file("j"), b"{\"device\":[\"a\",{\"stat").unwrap();
        append(&journal.file("never written whole"), b"{").unwrap();

        let (journal, kept) = Journal::open(state.path()).unwrap();
        assert_eq!(kept.len(), 1);
        assert!(!journal.file("never written whole").exists());
        assert_eq!(kept[0].devices["a"].status, DeviceStatus::Completed);
        jobs.cancel("j", now).unwrap();
        let changes = jobs.take_changes();
        journal.write(&jobs, &changes);
        let (_, kept) = Journal::open(state.path()).unwrap();
        assert_eq!(kept[0].head.status, Status::Cancelled);
        assert_eq!(kept[0].devices["b"].status, DeviceStatus::Canceled);
    }

    #[test]
    fn a_broken_file_is_named() {
        let state = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(state.path()).unwrap();
        append(&journal.file("j"), b"no JSON\n").unwrap();
        let error = Journal::open(state.path()).err().unwrap();
        assert!(error.to_string().contains("j.jsonl"), "{error}");
    }
}
