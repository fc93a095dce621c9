//! What acts on many devices at once: jobs, and automatic configurations.

use std::{sync::Arc, time::Duration};

use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{
    hub::Hub,
    scene::{IMAGE, Scene, Setup, reported, section},
};

/// A configuration is looked at every five minutes or so.
const CONFIGURATION: Duration = Duration::from_secs(20 * 60);

pub(crate) async fn a_job_drives_an_update(hub: Arc<Hub>) {
    let mut scene = Scene::connected(&hub, Setup::default()).await;
    let condition = format!("deviceId IN ['{}']", scene.id);
    hub.until_indexed(&scene.id, &condition).await;
    let name = hub.new_name();
    let job = json!({
        "jobId": name, "type": "scheduleDeviceMethod", "queryCondition": condition,
        "cloudToDeviceMethod": {
            "methodName": "firmwareUpdate", "payload": {"fwPackageUri": scene.url(IMAGE)},
            "responseTimeoutInSeconds": 30, "connectTimeoutInSeconds": 10,
        },
        "maxExecutionTimeInSeconds": 300,
    });
    let path = format!("/jobs/v2/{name}");
    let reply = hub.service.call(Method::PUT, &path, &[], Some(&job)).await;
    reply.expect("creating a job");
    let began = Instant::now();
    let job = loop {
        let job = hub.service.call(Method::GET, &path, &[], None).await;
        let job = job.expect("reading a job");
        if job["status"] == "completed" {
            break job;
        }
        assert!(began.elapsed() < 2 * hub.pace.patience, "{job:#}");
        sleep(hub.pace.ask).await;
    };
    let took = began.elapsed().as_secs();
    hub.notes.note(
        "a job for one device is completed after",
        format_args!("{took} s"),
    );
    assert_eq!(job["deviceJobStatistics"]["succeededCount"], 1, "{job:#}");
    let query = format!("SELECT * FROM devices.jobs WHERE devices.jobs.jobId = '{name}'");
    let rows = loop {
        let rows = hub.service.query(&query).await.expect("a query of jobs");
        if rows[0]["status"] == "completed" {
            break rows;
        }
        assert!(began.elapsed() < 2 * hub.pace.patience, "{rows:#}");
        sleep(hub.pace.ask).await;
    };
    let answer = &rows[0]["outcome"]["deviceMethodResponse"];
    assert_eq!(answer["status"], 200, "{rows:#}");
    let id = answer["payload"]["updateId"]
        .as_str()
        .expect("an update id");
    let end = scene.until_end(id).await;
    scene.assert_complete(&end);
}

pub(crate) async fn a_configuration_drives_an_update(hub: Arc<Hub>) {
    let mut scene = Scene::connected(&hub, Setup::default()).await;
    let name = hub.new_name();
    let tags = json!({"tags": {"conformance": name}});
    hub.service.patch_twin(&scene.id, &tags).await;
    let condition = format!("tags.conformance='{name}'");
    hub.until_indexed(&scene.id, &condition).await;
    let firmware = json!({"fwVersion": "1.1.0", "fwPackageURI": scene.url(IMAGE)});
    let configuration = json!({
        "id": name, "schemaVersion": "1.0", "labels": {}, "targetCondition": condition, "priority": 20,
        "content": {"deviceContent": {"properties.desired.firmware": firmware}},
        "metrics": {"queries": {"current": "SELECT deviceId FROM devices WHERE properties.reported.firmware.fwUpdateStatus = 'current'"}},
    });
    let path = format!("/configurations/{name}");
    hub.will_delete(&path);
    let made = hub
        .service
        .call(Method::PUT, &path, &[], Some(&configuration))
        .await;
    made.expect("creating a configuration");
    let began = Instant::now();
    loop {
        scene.device.follow_reboot();
        let twin = scene.twin().await;
        if section(&twin)["status"] == "applyComplete" {
            assert_eq!(reported(&twin)["firmware"]["currentFwVersion"], "1.1.0");
            break;
        }
        assert!(began.elapsed() < CONFIGURATION, "{twin:#}");
        sleep(hub.pace.poll).await;
    }
    let took = began.elapsed().as_secs();
    hub.notes.note(
        "a configuration has updated a device after",
        format_args!("{took} s"),
    );
    let seen: Value = hub.service.call(Method::GET, &path, &[], None).await.body;
    hub.notes.note(
        "metrics of a configuration right after that",
        &seen["systemMetrics"]["results"],
    );
    hub.delete_now(&path);
}
