//! Which job starts, runs and ends when, over simulated time.

use serde_json::{Value, json};

use super::*;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + seconds).unwrap()
}

fn request(id: &str, more: Value) -> Request {
    let mut body = json!({ "type": "scheduleDeviceMethod", "queryCondition": "tags.a = 1",
        "cloudToDeviceMethod": { "methodName": "m" }, "maxExecutionTimeInSeconds": 60 });
    if let (Value::Object(body), Value::Object(more)) = (&mut body, more) {
        body.extend(more);
    }
    Request::parse(id, &body).unwrap()
}

fn select(job: &str) -> Action {
    Action::Select {
        job: job.into(),
        condition: "tags.a = 1".into(),
    }
}

fn ids(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("d{n:04}")).collect()
}

/// The devices to be dealt with, and whether anything is to be stopped.
fn operated(actions: &[Action], job: &str) -> Vec<String> {
    let of_job = |action: &Action| match action {
        Action::Operate {
            job: of, device, ..
        } if of == job => Some(device.clone()),
        _ => None,
    };
    actions.iter().filter_map(of_job).collect()
}

fn status(jobs: &Jobs, id: &str) -> Status {
    jobs.get(id).unwrap().head.status
}

fn statistics(jobs: &Jobs, id: &str) -> Value {
    jobs.get(id).unwrap().document()["deviceJobStatistics"].clone()
}

#[test]
fn a_job_selects_its_devices_deals_with_each_and_is_completed() {
    let mut jobs = Jobs::default();
    let job = jobs.create(request("j", json!({})), 9, at(0)).unwrap();
    assert_eq!(job.document()["status"], "queued");
    assert_eq!(jobs.step(at(0)), [select("j")]);
    assert_eq!(jobs.step(at(0)), [], "once");
    jobs.selected("j", ids(2), at(1));
    assert_eq!(operated(&jobs.step(at(1)), "j"), ids(2));
    assert_eq!(status(&jobs, "j"), Status::Running);
    jobs.finished(
        "j",
        "d0000",
        Ok(Some(json!({ "status": 500, "payload": null }))),
        at(2),
    );
    let error = HubError::new(Kind::DeviceNotOnline, "offline");
    jobs.finished("j", "d0001", Err((&error).into()), at(3));
    assert_eq!(jobs.step(at(3)), [Action::Stop { job: "j".into() }]);
    assert_eq!(
        status(&jobs, "j"),
        Status::Completed,
        "although a device failed"
    );
    assert_eq!(
        statistics(&jobs, "j"),
        json!({ "deviceCount": 2, "failedCount": 1, "succeededCount": 1, "runningCount": 0, "pendingCount": 0 })
    );
    let documents: Vec<_> = jobs.get("j").unwrap().device_documents("").collect();
    assert_eq!(
        documents[0].1["outcome"]["deviceMethodResponse"]["status"],
        500
    );
    assert_eq!(documents[1].1["error"]["code"], "DeviceNotOnline");
    assert_eq!(jobs.next_wake(), None);
}

#[test]
fn a_job_without_devices_is_completed_at_once() {
    let mut jobs = Jobs::default();
    jobs.create(request("j", json!({})), 9, at(0)).unwrap();
    jobs.step(at(0));
    jobs.selected("j", Vec::new(), at(0));
    jobs.step(at(0));
    assert_eq!(status(&jobs, "j"), Status::Completed);
}

#[test]
fn a_job_for_later_waits_for_its_time() {
    let mut jobs = Jobs::default();
    let later = json!({ "startTime": at(100).to_string() });
    let job = jobs.create(request("j", later), 9, at(0)).unwrap();
    assert_eq!(job.document()["status"], "scheduled");
    assert_eq!(jobs.step(at(99)), []);
    assert_eq!(jobs.next_wake(), Some(at(100)));
    assert_eq!(jobs.step(at(100)), [select("j")]);
    assert_eq!(
        jobs.next_wake(),
        Some(at(160)),
        "its time counts from the start"
    );
}

#[test]
fn when_its_time_is_over_what_was_not_reached_has_failed() {
    let mut jobs = Jobs::default();
    jobs.create(request("j", json!({})), 9, at(0)).unwrap();
    jobs.step(at(0));
    jobs.selected("j", ids(OPERATIONS + 5), at(0));
    jobs.step(at(1));
    jobs.finished("j", "d0000", Ok(None), at(2));
    assert_eq!(jobs.step(at(60)), [Action::Stop { job: "j".into() }]);
    assert_eq!(status(&jobs, "j"), Status::Completed);
    assert_eq!(
        statistics(&jobs, "j"),
        json!({ "deviceCount": 105, "failedCount": 104, "succeededCount": 1, "runningCount": 0, "pendingCount": 0 })
    );
    let late = jobs.device("j", "d0001").unwrap().clone();
    assert_eq!(late.error.as_ref().unwrap().code, "RequestTimedOut");
    jobs.finished("j", "d0001", Ok(None), at(61));
    assert_eq!(
        jobs.device("j", "d0001"),
        Some(&late),
        "a late result is ignored"
    );
}

#[test]
fn a_job_whose_time_passed_while_the_hub_was_away_has_failed() {
    let mut jobs = Jobs::default();
    let later = json!({ "startTime": at(100).to_string() });
    jobs.create(request("j", later), 9, at(0)).unwrap();
    jobs.step(at(160));
    assert_eq!(status(&jobs, "j"), Status::Failed);
    let document = jobs.get("j").unwrap().document();
    let reason = document["failureReason"].as_str().unwrap();
    assert!(reason.starts_with("JobRunPreconditionFailed"), "{reason}");
}

#[test]
fn cancelling_ends_a_job_and_cancels_what_was_not_dealt_with() {
    let mut jobs = Jobs::default();
    jobs.create(request("j", json!({})), 9, at(0)).unwrap();
    jobs.step(at(0));
    jobs.selected("j", ids(3), at(0));
    jobs.step(at(0));
    jobs.finished("j", "d0000", Ok(None), at(1));
    let document = jobs.cancel("j", at(2)).unwrap().document();
    assert_eq!(document["status"], "cancelled");
    assert_eq!(jobs.step(at(2)), [Action::Stop { job: "j".into() }]);
    let of = |device: &str| jobs.device("j", device).unwrap().status;
    assert_eq!(
        (of("d0000"), of("d0002")),
        (DeviceStatus::Completed, DeviceStatus::Canceled)
    );
    let refused = jobs.cancel("j", at(3)).unwrap_err();
    assert_eq!(refused.kind().status(), 400);
    assert_eq!(
        jobs.cancel("none", at(3)).unwrap_err().kind().number(),
        404_002
    );
}

#[test]
fn a_cancelled_job_takes_no_devices_that_are_selected_late() {
    let mut jobs = Jobs::default();
    jobs.create(request("j", json!({})), 9, at(0)).unwrap();
    jobs.step(at(0));
    jobs.cancel("j", at(0)).unwrap();
    jobs.selected("j", ids(3), at(1));
    assert_eq!(operated(&jobs.step(at(1)), "j"), [""; 0]);
}

#[test]
fn few_devices_are_dealt_with_at_once_and_jobs_take_turns() {
    let mut jobs = Jobs::default();
    for id in ["large", "small"] {
        jobs.create(request(id, json!({})), 9, at(0)).unwrap();
    }
    jobs.step(at(0));
    jobs.selected("large", ids(10_000), at(0));
    jobs.selected("small", ids(3), at(0));
    let actions = jobs.step(at(0));
    assert_eq!(operated(&actions, "small"), ids(3));
    assert_eq!(operated(&actions, "large").len(), OPERATIONS - 3);
    jobs.finished("small", "d0001", Ok(None), at(1));
    assert_eq!(operated(&jobs.step(at(1)), "large").len(), 1);
}

#[test]
fn a_job_id_is_used_once_and_active_jobs_are_limited() {
    let mut jobs = Jobs::default();
    jobs.create(request("a", json!({})), 2, at(0)).unwrap();
    let again = jobs.create(request("a", json!({})), 2, at(0)).unwrap_err();
    assert_eq!(again.kind().number(), 409_104);
    jobs.create(request("b", json!({})), 2, at(0)).unwrap();
    let full = jobs.create(request("c", json!({})), 2, at(0)).unwrap_err();
    assert_eq!(full.kind().number(), 429_004);
    jobs.cancel("a", at(0)).unwrap();
    jobs.create(request("c", json!({})), 2, at(0)).unwrap();
}

#[test]
fn ended_jobs_are_forgotten_after_a_month() {
    let mut jobs = Jobs::default();
    let month = 30 * 24 * 3600;
    jobs.create(request("a", json!({})), 9, at(0)).unwrap();
    jobs.cancel("a", at(0)).unwrap();
    jobs.create(request("b", json!({})), 9, at(month)).unwrap();
    assert!(jobs.get("a").is_ok());
    jobs.take_changes();
    jobs.create(request("c", json!({})), 9, at(month + 1))
        .unwrap();
    assert!(jobs.get("a").is_err());
    assert!(jobs.take_changes().removed.contains("a"));
}

#[test]
fn every_change_is_noted_for_the_journal() {
    let mut jobs = Jobs::default();
    jobs.create(request("j", json!({})), 9, at(0)).unwrap();
    jobs.step(at(0));
    jobs.selected("j", ids(2), at(0));
    assert_eq!(jobs.take_changes().devices.len(), 2);
    jobs.step(at(0));
    assert_eq!(jobs.take_changes().devices.len(), 2);
    jobs.finished("j", "d0000", Ok(None), at(0));
    assert_eq!(jobs.take_changes().devices.len(), 1);
    jobs.cancel("j", at(0)).unwrap();
    let changes = jobs.take_changes();
    assert_eq!((changes.heads.len(), changes.devices.len()), (1, 1));
    assert_eq!(jobs.take_changes(), Changes::default());
}
