//! Jobs: what the service SDKs send, and what they read.

use std::time::Duration;

use iothub_emulator::{DeviceSpec, Options};
use reqwest::Method;
use serde_json::{Value, json};

use crate::rig::{Device, Hub, send, well};

fn method_job(id: &str, condition: &str) -> Value {
    json!({
        "jobId": id,
        "type": "scheduleDeviceMethod",
        "cloudToDeviceMethod": { "methodName": "firmwareUpdate", "payload": { "fwPackageUri": "https://x/y" },
            "responseTimeoutInSeconds": 30, "connectTimeoutInSeconds": 0 },
        "queryCondition": condition,
        "startTime": "2024-01-01T00:00:00.000Z",
        "maxExecutionTimeInSeconds": 300,
    })
}

fn twin_job(id: &str, condition: &str, desired: Value) -> Value {
    json!({ "jobId": id, "type": "scheduleUpdateTwin", "queryCondition": condition,
        "updateTwin": { "etag": "*", "properties": { "desired": desired } } })
}

fn ended(job: &Value) -> bool {
    matches!(
        job["status"].as_str(),
        Some("completed" | "failed" | "cancelled")
    )
}

fn later() -> String {
    (jiff::Timestamp::now() + Duration::from_secs(3600)).to_string()
}

#[tokio::test]
async fn a_method_job_calls_each_device_and_keeps_what_it_answered() {
    let hub = Hub::with(&["a", "b", "c"]).await;
    hub.tag("a", json!({ "site": "lab" })).await;
    hub.tag("b", json!({ "site": "lab" })).await;
    let device = Device::connect(&hub, "a", |_, payload| {
        Some((409, json!({ "got": payload }).to_string()))
    })
    .await;
    let job = hub
        .put("/jobs/v2/j1", method_job("j1", "tags.site = 'lab'"))
        .await
        .ok();
    assert_eq!(job["jobId"], "j1");
    assert_eq!(job["type"], "scheduleDeviceMethod");
    assert_eq!(job["status"], "queued");

    let job = hub.until("/jobs/v2/j1", ended).await;
    assert_eq!(job["status"], "completed");
    assert_eq!(
        job["deviceJobStatistics"],
        json!({ "deviceCount": 2, "failedCount": 1, "succeededCount": 1, "runningCount": 0, "pendingCount": 0 })
    );
    assert_eq!(job["queryCondition"], "tags.site = 'lab'");
    assert_eq!(job["maxExecutionTimeInSeconds"], 300);
    assert_eq!(job["cloudToDeviceMethod"]["methodName"], "firmwareUpdate");
    for time in ["createdTime", "startTime", "endTime"] {
        let time = job[time].as_str().unwrap();
        assert_eq!(time.len(), "2024-01-01T00:00:00.0000000Z".len(), "{time}");
    }
    assert_eq!(
        device.methods(),
        [(
            "firmwareUpdate".to_owned(),
            json!({ "fwPackageUri": "https://x/y" })
        )]
    );

    let rows = hub
        .query("SELECT * FROM devices.jobs WHERE devices.jobs.jobId = 'j1'")
        .await;
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[0]["deviceId"], "a");
    assert_eq!(rows[0]["jobId"], "j1");
    assert_eq!(rows[0]["jobType"], "scheduleDeviceMethod");
    assert_eq!(
        rows[0]["status"], "completed",
        "it answered, whatever the status"
    );
    assert_eq!(
        rows[0]["outcome"],
        json!({ "deviceMethodResponse": { "status": 409, "payload": { "got": { "fwPackageUri": "https://x/y" } } } })
    );
    for time in [
        "startTimeUtc",
        "endTimeUtc",
        "createdDateTimeUtc",
        "lastUpdatedDateTimeUtc",
    ] {
        assert!(rows[0][time].is_string(), "{time}");
    }
    assert_eq!(rows[1]["status"], "failed");
    assert_eq!(rows[1]["error"]["code"], "DeviceNotOnline");
    assert!(rows[1]["error"]["description"].is_string());
    let failed = "SELECT * FROM devices.jobs WHERE devices.jobs.jobId = 'j1' AND devices.jobs.status = 'failed'";
    assert_eq!(hub.query(failed).await.len(), 1);
}

#[tokio::test]
async fn a_twin_job_writes_each_twin_and_the_devices_hear_of_it() {
    let hub = Hub::with(&["a", "b", "c"]).await;
    let device = Device::connect(&hub, "b", well).await;
    let body = twin_job("t", "deviceId IN ['a','b']", json!({ "fw": { "v": 2 } }));
    hub.put("/jobs/v2/t", body).await.ok();
    let job = hub.until("/jobs/v2/t", ended).await;
    assert_eq!(job["deviceJobStatistics"]["succeededCount"], 2);
    assert_eq!(
        job["updateTwin"]["properties"]["desired"],
        json!({ "fw": { "v": 2 } })
    );
    assert_eq!(
        device.pushed(1).await,
        [json!({ "fw": { "v": 2 }, "$version": 2 })]
    );
    assert_eq!(
        hub.emulator.twin("a")["properties"]["desired"]["fw"]["v"],
        2
    );
    assert_eq!(
        hub.emulator.twin("c")["properties"]["desired"]["$version"],
        1
    );
    let rows = hub.query("SELECT * FROM devices.jobs").await;
    assert_eq!(rows[0]["outcome"], json!({ "deviceMethodResponse": null }));
}

#[tokio::test]
async fn a_twin_job_with_an_etag_fails_where_the_twin_has_changed() {
    let hub = Hub::with(&["a", "b"]).await;
    hub.tag("b", json!({ "x": 1 })).await;
    let mut body = twin_job("t", "*", json!({ "v": 1 }));
    body["updateTwin"]["etag"] = "AAAAAAAAAAE=".into();
    hub.put("/jobs/v2/t", body).await.ok();
    let job = hub.until("/jobs/v2/t", ended).await;
    assert_eq!(job["deviceJobStatistics"]["succeededCount"], 1);
    let rows = hub
        .query("SELECT * FROM devices.jobs WHERE status = 'failed'")
        .await;
    assert_eq!(
        (&rows[0]["deviceId"], &rows[0]["error"]["code"]),
        (&json!("b"), &json!("PreconditionFailed"))
    );
}

#[tokio::test]
async fn a_connect_timeout_waits_for_a_device_that_comes() {
    let hub = Hub::with(&["a"]).await;
    let mut body = method_job("j", "deviceId = 'a'");
    body["cloudToDeviceMethod"]["connectTimeoutInSeconds"] = 60.into();
    hub.put("/jobs/v2/j", body).await.ok();
    let job = hub
        .until("/jobs/v2/j", |job| {
            job["deviceJobStatistics"]["runningCount"] == 1
        })
        .await;
    assert_eq!(job["status"], "running");
    let _device = Device::connect(&hub, "a", well).await;
    let job = hub.until("/jobs/v2/j", ended).await;
    assert_eq!(job["deviceJobStatistics"]["succeededCount"], 1);
}

#[tokio::test]
async fn when_its_time_ends_a_device_that_has_not_answered_has_failed() {
    let hub = Hub::with(&["silent"]).await;
    let device = Device::connect(&hub, "silent", |_, _| None).await;
    let mut body = method_job("j", "*");
    body["startTime"] = jiff::Timestamp::now().to_string().into();
    body["maxExecutionTimeInSeconds"] = 1.into();
    hub.put("/jobs/v2/j", body).await.ok();
    let job = hub.until("/jobs/v2/j", ended).await;
    assert_eq!(job["status"], "completed");
    assert_eq!(job["deviceJobStatistics"]["failedCount"], 1);
    assert_eq!(device.methods().len(), 1);
    let rows = hub.query("SELECT * FROM devices.jobs").await;
    assert_eq!(rows[0]["error"]["code"], "RequestTimedOut");
}

#[tokio::test]
async fn a_job_for_later_can_be_cancelled_once() {
    let hub = Hub::with(&["a"]).await;
    let mut body = method_job("j", "*");
    body["startTime"] = later().into();
    let job = hub.put("/jobs/v2/j", body).await.ok();
    assert_eq!(job["status"], "scheduled");
    // The SDKs send an empty body.
    let cancel = || {
        hub.request(Method::POST, "/jobs/v2/j/cancel")
            .header("Content-Length", "0")
    };
    let job = send(cancel()).await.ok();
    assert_eq!(
        (&job["jobId"], &job["status"]),
        (&json!("j"), &json!("cancelled"))
    );
    assert_eq!(send(cancel()).await.error(), (400_003, "InvalidOperation"));
    assert_eq!(hub.get("/jobs/v2/j").await.ok()["status"], "cancelled");
    assert_eq!(hub.query("SELECT * FROM devices.jobs").await.len(), 0);
}

#[tokio::test]
async fn cancelling_a_running_job_gives_up_what_is_under_way() {
    let hub = Hub::with(&["silent"]).await;
    let device = Device::connect(&hub, "silent", |_, _| None).await;
    hub.put("/jobs/v2/j", {
        let mut body = method_job("j", "*");
        body["startTime"] = jiff::Timestamp::now().to_string().into();
        body
    })
    .await
    .ok();
    device.called(1).await;
    let job = send(hub.request(Method::POST, "/jobs/v2/j/cancel"))
        .await
        .ok();
    assert_eq!(job["status"], "cancelled");
    let rows = hub.query("SELECT * FROM devices.jobs").await;
    assert_eq!(rows[0]["status"], "canceled", "with one l");
    assert_eq!(
        hub.get("/jobs/v2/j").await.ok()["deviceJobStatistics"]["runningCount"],
        0
    );
}

#[tokio::test]
async fn refusals_have_their_numbers_and_names() {
    let options = Options {
        max_active_jobs: 1,
        ..Options::default()
    };
    let hub = Hub::start(options.device("a")).await;
    let missing = hub.get("/jobs/v2/none").await;
    assert_eq!(missing.error(), (404_002, "JobNotFound"));
    let missing = send(hub.request(Method::POST, "/jobs/v2/none/cancel")).await;
    assert_eq!(missing.error(), (404_002, "JobNotFound"));
    let whole = hub
        .put("/jobs/v2/j", method_job("j", "SELECT * FROM devices"))
        .await;
    assert_eq!(whole.error(), (400_004, "ArgumentInvalid"));
    assert!(
        whole.message().contains("only the part after WHERE"),
        "{}",
        whole.message()
    );
    let other = hub.put("/jobs/v2/j", method_job("other", "*")).await;
    assert_eq!(other.error().0, 400_004);

    let mut body = method_job("j", "*");
    body["startTime"] = later().into();
    hub.put("/jobs/v2/j", body.clone()).await.ok();
    let again = hub.put("/jobs/v2/j", body).await;
    assert_eq!(again.error(), (409_104, "JobAlreadyExists"));
    let full = hub.put("/jobs/v2/k", method_job("k", "*")).await;
    assert_eq!(
        full.old_error(),
        (429, "ThrottlingMaxActiveJobCountExceeded")
    );
}

#[tokio::test]
async fn the_list_of_jobs_is_filtered_and_paged_by_headers() {
    let hub = Hub::with(&["a"]).await;
    for n in 0..5 {
        let id = format!("t{n}");
        hub.put(
            &format!("/jobs/v2/{id}"),
            twin_job(&id, "*", json!({ "n": n })),
        )
        .await
        .ok();
        hub.until(&format!("/jobs/v2/{id}"), ended).await;
    }
    let mut body = method_job("m", "*");
    body["startTime"] = later().into();
    hub.put("/jobs/v2/m", body).await.ok();

    let page = |path: &str, token: &str| {
        let request = hub
            .request(Method::GET, path)
            .header("x-ms-max-item-count", 2);
        send(if token.is_empty() {
            request
        } else {
            request.header("x-ms-continuation", token)
        })
    };
    let twins = "/jobs/v2/query?jobType=scheduleUpdateTwin&jobStatus=completed";
    let (mut token, mut seen) = (String::new(), Vec::new());
    loop {
        let answer = page(twins, &token).await;
        assert_eq!(answer.header("x-ms-item-type"), "JobResponse");
        token = answer.header("x-ms-continuation").to_owned();
        seen.extend(
            answer
                .ok()
                .as_array()
                .unwrap()
                .iter()
                .map(|job| job["jobId"].clone()),
        );
        if token.is_empty() {
            break;
        }
        let other = page("/jobs/v2/query?jobType=scheduleDeviceMethod", &token).await;
        assert_eq!(other.error().0, 400_004, "a token of another list");
    }
    assert_eq!(seen, ["t0", "t1", "t2", "t3", "t4"]);
    let all = hub.get("/jobs/v2/query").await.ok();
    assert_eq!(all.as_array().unwrap().len(), 6);
    let waiting = hub.get("/jobs/v2/query?jobStatus=scheduled").await.ok();
    assert_eq!(waiting[0]["jobId"], "m");
    assert_eq!(
        hub.get("/jobs/v2/query?jobStatus=ready").await.error().0,
        400_004
    );
}

#[tokio::test]
async fn rows_of_devices_jobs_come_in_pages_across_jobs() {
    let hub = Hub::with(&["a", "b", "c"]).await;
    for id in ["j", "j-2"] {
        hub.put(
            &format!("/jobs/v2/{id}"),
            twin_job(id, "*", json!({ "n": 1 })),
        )
        .await
        .ok();
        hub.until(&format!("/jobs/v2/{id}"), ended).await;
    }
    let (mut token, mut seen) = (String::new(), Vec::new());
    loop {
        let request = hub
            .request(Method::POST, "/devices/query")
            .header("x-ms-max-item-count", 2)
            .header("x-ms-continuation", &token)
            .json(&json!({ "query": "SELECT * FROM devices.jobs" }));
        let answer = send(request).await;
        assert_eq!(answer.header("x-ms-item-type"), "DeviceJob");
        token = answer.header("x-ms-continuation").to_owned();
        for row in answer.ok().as_array().unwrap() {
            seen.push(format!(
                "{} {}",
                row["jobId"].as_str().unwrap(),
                row["deviceId"].as_str().unwrap()
            ));
        }
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, ["j a", "j b", "j c", "j-2 a", "j-2 b", "j-2 c"]);
}

#[tokio::test]
async fn jobs_are_kept_and_go_on_after_a_restart() {
    let state = tempfile::tempdir().unwrap();
    let options = || Options {
        state: Some(state.path().to_owned()),
        ..Options::default()
    };
    let hub = Hub::start(options().device("a").device("silent")).await;
    hub.put("/jobs/v2/done", twin_job("done", "*", json!({ "n": 1 })))
        .await
        .ok();
    hub.until("/jobs/v2/done", ended).await;
    let device = Device::connect(&hub, "silent", |_, _| None).await;
    let mut body = method_job("called", "deviceId = 'silent'");
    body["startTime"] = jiff::Timestamp::now().to_string().into();
    hub.put("/jobs/v2/called", body).await.ok();
    device.called(1).await;
    let mut soon = twin_job("soon", "*", json!({ "n": 2 }));
    soon["startTime"] = (jiff::Timestamp::now() + Duration::from_secs(2))
        .to_string()
        .into();
    hub.put("/jobs/v2/soon", soon).await.ok();
    drop(device);
    hub.emulator.stop().await;

    let hub = Hub::start(options()).await;
    let done = hub.get("/jobs/v2/done").await.ok();
    assert_eq!(done["deviceJobStatistics"]["succeededCount"], 2);
    let called = hub.until("/jobs/v2/called", ended).await;
    assert_eq!(
        called["deviceJobStatistics"]["failedCount"], 1,
        "not called twice"
    );
    let soon = hub.until("/jobs/v2/soon", ended).await;
    assert_eq!(soon["deviceJobStatistics"]["succeededCount"], 2);
    assert_eq!(hub.emulator.twin("a")["properties"]["desired"]["n"], 2);
    let again = hub
        .put("/jobs/v2/done", twin_job("done", "*", json!({})))
        .await;
    assert_eq!(again.error().0, 409_104);
}

#[tokio::test]
async fn a_job_for_ten_thousand_devices_deals_with_each_once() {
    let devices = (0..10_000).map(|n| DeviceSpec {
        id: format!("d{n:05}"),
        key: None,
    });
    let options = Options {
        devices: devices.collect(),
        ..Options::default()
    };
    let hub = Hub::start(options).await;
    hub.put("/jobs/v2/all", twin_job("all", "*", json!({ "v": 1 })))
        .await
        .ok();
    let job = hub.until("/jobs/v2/all", ended).await;
    assert_eq!(job["deviceJobStatistics"]["succeededCount"], 10_000);
    let once = "SELECT COUNT() AS n FROM devices WHERE properties.desired.$version = 2";
    assert_eq!(hub.query(once).await, [json!({ "n": 10_000 })]);
}
