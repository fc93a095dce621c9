//! When an update starts and when the device reboots, with the real programs: approval, deferral and its limit, windows,
//! a reboot by hand, users and programs that mind it; killed, and without power, in each wait.

mod support;

#[path = "policy/examples.rs"]
mod examples;

use std::{
    fs,
    io::{Seek as _, Write as _},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Output,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use fwupdated::update::slot::Slot;
use jiff::{Timestamp, tz::TimeZone};
use serde_json::{Value, json};
use support::{
    bus::Bus,
    rig::{DEVICE, Device, Image, Rig, fwupdatectl, noise},
};

/// A device with a policy, whose keys come from the environment; not booted.
fn device(rig: &Rig, dir: &Path, policy: &[(&str, &str)]) -> Device {
    let mut device = Device::new(rig, &dir.join("device"), 4 << 20, "1.0.0", "");
    set_policy(&mut device, policy);
    device
}

fn set_policy(device: &mut Device, policy: &[(&str, &str)]) {
    let variables = policy
        .iter()
        .map(|(key, value)| format!("FWUPDATED_POLICY__{key}={value}"));
    device.launcher = ["env".to_owned()].into_iter().chain(variables).collect();
}

fn image(rig: &Rig) -> Image {
    rig.build("2.0.0", noise(1 << 20, 7), &[])
}

/// Starts an update to `image`; returns its id.
async fn start(rig: &Rig, image: &Image) -> String {
    let payload = json!({"fwPackageUri": rig.serve(image), "updateId": "u1"});
    let (status, body) = rig.invoke(payload).await;
    assert_eq!(status, 200, "{body}");
    "u1".to_owned()
}

/// A device with an update that is verified and waits for someone to allow the reboot; and the update's id.
async fn holding(rig: &Rig, dir: &Path) -> (Device, String) {
    let mut device = device(rig, dir, &[("REBOOT", "manual")]);
    device.boot();
    device.until_connected(rig).await;
    let id = start(rig, &image(rig)).await;
    until_told(rig, &mut device, "verified; waiting for someone").await;
    (device, id)
}

/// What the back end reads of what is waited for.
fn told(rig: &Rig) -> String {
    let twin = rig.emulator.twin(DEVICE);
    let text = &twin["properties"]["reported"]["firmware"]["fwUpdateSubstatus"];
    text.as_str().unwrap_or_default().to_owned()
}

/// Lives on until the twin says that `what` is waited for.
async fn until_told(rig: &Rig, device: &mut Device, what: &str) {
    device
        .until(what, |_| told(rig).contains(what).then_some(()))
        .await;
}

fn local(device: &Device, arguments: &[&str]) -> Output {
    let mut command = fwupdatectl();
    command
        .args(arguments)
        .arg("--socket")
        .arg(device.dir.join("control"));
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let output = command.output().unwrap();
        // What the twin says may be from before the restart of a daemon that does not listen yet.
        let listens = !String::from_utf8_lossy(&output.stderr).contains("[control-no-daemon]");
        if listens || Instant::now() > until {
            return output;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs a command that is granted; gives its words.
#[track_caller]
fn granted(device: &Device, arguments: &[&str]) -> String {
    let output = local(device, arguments);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    said
}

/// Runs a command that is refused with `code`.
#[track_caller]
fn refused(device: &Device, arguments: &[&str], code: &str) {
    let output = local(device, arguments);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(4), "{arguments:?}: {said}");
    assert!(said.contains(&format!("[{code}]")), "{arguments:?}: {said}");
}

/// Nothing of the update is in the way of the old slot.
#[track_caller]
fn assert_unarmed(device: &Device) {
    assert_eq!(device.variable("fwupdated_trial"), None, "{}", device.log());
    assert_eq!(device.variable("fwupdated_slot").as_deref(), Some("a"));
    assert_eq!(device.running(), Slot::A);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_that_needs_approval_waits_for_it_over_kills_and_says_so_in_the_twin() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut device = device(&rig, dir.path(), &[("APPROVAL", "required")]);
    device.boot();
    device.until_connected(&rig).await;
    refused(&device, &["approve"], "nothing-waits");
    refused(&device, &["defer", "1h"], "nothing-waits");
    let image = image(&rig);
    let id = start(&rig, &image).await;
    until_told(&rig, &mut device, "waiting for approval").await;
    for _ in 0..2 {
        device.kill();
        assert_eq!(device.state(), "waiting");
        device.boot();
        until_told(&rig, &mut device, "waiting for approval").await;
        device.until_connected(&rig).await;
    }
    assert_eq!(rig.section()["status"], "waiting");
    assert_eq!(rig.server.requests().len(), 0, "nothing is fetched before");
    refused(&device, &["approve", "another"], "other-update");
    refused(&device, &["defer", "1h", "--id", "another"], "other-update");
    assert!(granted(&device, &["approve", &id]).contains("update u1: approved"));
    let section = device.until_final(&rig, &id).await;
    device.assert_complete(&section);

    // By the back end, whatever the payload.
    let second = rig.build("3.0.0", noise(1 << 20, 8), &[]);
    let (status, body) = rig
        .invoke(json!({"fwPackageUri": rig.serve(&second), "updateId": "u2"}))
        .await;
    assert_eq!(status, 200, "{body}");
    until_told(&rig, &mut device, "waiting for approval").await;
    let (status, body) = rig.method("firmwareUpdateApprove", Value::Null).await;
    assert_eq!(
        (status, &body["message"]),
        (200, &json!("update u2: approved"))
    );
    let section = device.until_final(&rig, "u2").await;
    assert_eq!(section["status"], "applyComplete", "{section:#}");
    let (status, body) = rig.method("firmwareUpdateApprove", json!({})).await;
    assert_eq!((status, &body["code"]), (409, &json!("nothing-waits")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reboot_by_hand_waits_unarmed_over_kills_and_power_cuts_and_keeps_the_image() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let (mut device, id) = holding(&rig, dir.path()).await;
    rig.server.clear_requests();
    for power_cut in [false, true] {
        device.kill();
        assert_eq!(device.state(), "holding");
        assert_unarmed(&device);
        if power_cut {
            device.boot();
        } else {
            device.start();
        }
        device.until_connected(&rig).await;
        until_told(&rig, &mut device, "verified; waiting for someone").await;
        assert_unarmed(&device);
        assert!(!device.reboot_is_asked());
    }
    assert_eq!(rig.section()["status"], "downloadComplete");
    let status: Value = serde_json::from_str(&granted(&device, &["status", "--json"])).unwrap();
    assert_eq!(status["slots"]["b"]["state"], "verified", "{status:#}");

    // What is put off stays so over a restart, and an approval takes it back.
    assert!(granted(&device, &["defer", "1d"]).contains("put off until"));
    until_told(&rig, &mut device, "put off until").await;
    device.kill();
    device.start();
    device.until_connected(&rig).await;
    until_told(&rig, &mut device, "put off until").await;
    assert!(granted(&device, &["approve"]).contains("approved"));
    let section = device.until_final(&rig, &id).await;
    device.assert_complete(&section);
    assert_eq!(
        rig.server.requests().len(),
        0,
        "the image was not fetched again"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_was_written_to_while_the_reboot_waited_is_not_armed() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let (mut device, id) = holding(&rig, dir.path()).await;
    let mut slot = fs::File::options()
        .write(true)
        .open(device.slot_file(Slot::B))
        .unwrap();
    slot.seek(std::io::SeekFrom::Start(70_000)).unwrap();
    slot.write_all(b"someone else's").unwrap();
    drop(slot);
    // The reboot that the hub may ask for is the one that is waited for; here it is switched off.
    let (status, _) = rig.method("reboot", Value::Null).await;
    assert_eq!(status, 403);
    granted(&device, &["approve"]);
    let section = device.until_final(&rig, &id).await;
    assert_eq!(section["status"], "downloadfailed", "{section:#}");
    assert_unarmed(&device);
    assert!(!device.reboot_is_asked());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deferral_ends_at_its_limit_and_the_update_goes_on_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut device = device(&rig, dir.path(), &[("MAX_DEFERRAL", "8s")]);
    let hook = device.dir.join("policy.d/10-later");
    fs::create_dir(hook.parent().unwrap()).unwrap();
    fs::set_permissions(hook.parent().unwrap(), PermissionsExt::from_mode(0o755)).unwrap();
    fs::write(&hook, "#!/bin/sh\necho on battery\nexit 75\n").unwrap();
    fs::set_permissions(&hook, PermissionsExt::from_mode(0o755)).unwrap();
    device.boot();
    device.until_connected(&rig).await;
    let image = image(&rig);
    let id = start(&rig, &image).await;
    until_told(&rig, &mut device, "on battery").await;
    // A day is asked for; what is left of the limit is given.
    granted(&device, &["defer", "1d"]);
    fs::remove_file(&hook).unwrap();
    device.kill();
    let saved: Value =
        serde_json::from_slice(&fs::read(device.dir.join("state/state.json")).unwrap()).unwrap();
    let job = &saved["machine"];
    let time = |value: &Value| value.as_str().unwrap().parse::<Timestamp>().unwrap();
    let given =
        time(&job["consent"]["deferredUntil"]).duration_since(time(&job["times"]["waiting"]));
    assert_eq!(given.as_secs(), 8, "{job:#}");
    device.start();
    let section = device.until_final(&rig, &id).await;
    device.assert_complete(&section);
    let started = section["startedDownloadingTime"]
        .as_str()
        .unwrap()
        .parse::<Timestamp>()
        .unwrap();
    assert!(
        time(&job["consent"]["deferredUntil"]) <= started,
        "{section:#}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_waits_for_a_window_and_goes_on_by_new_rules_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    // Half a day away, whenever this runs.
    let hour = (Timestamp::now().to_zoned_datetime(TimeZone::UTC).hour() + 12) % 24;
    let window = format!("[\"{hour:02}:00-{hour:02}:30\"]");
    let closed = |start| {
        [
            ("WINDOWS", window.as_str()),
            ("TIME_ZONE", "UTC"),
            ("START", start),
        ]
    };
    let mut device = device(&rig, dir.path(), &closed("window"));
    device.boot();
    device.until_connected(&rig).await;
    let image = image(&rig);
    let id = start(&rig, &image).await;
    let waited_for = format!("{hour:02}:00 UTC");
    until_told(&rig, &mut device, &waited_for).await;
    assert_eq!(device.state(), "waiting");
    device.kill();
    // From now on a download may happen at any time, and the reboot waits.
    set_policy(&mut device, &closed("now"));
    device.start();
    device
        .until("the reboot's wait", |device| {
            (device.state() == "holding").then_some(())
        })
        .await;
    device.until_connected(&rig).await;
    until_told(&rig, &mut device, &waited_for).await;
    assert_unarmed(&device);
    device.kill();
    set_policy(&mut device, &[("WINDOWS", "[\"00:00-24:00\"]")]);
    device.start();
    let section = device.until_final(&rig, &id).await;
    device.assert_complete(&section);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_forced_waits_for_no_policy() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let policy = [
        ("APPROVAL", "required"),
        ("REBOOT", "manual"),
        ("RANDOM_DELAY", "1h"),
    ];
    let mut device = device(&rig, dir.path(), &policy);
    device.boot();
    device.until_connected(&rig).await;
    let image = image(&rig);
    let payload = json!({"fwPackageUri": rig.serve(&image), "updateId": "u1", "force": true});
    assert_eq!(rig.invoke(payload).await.0, 200);
    let section = device.until_final(&rig, "u1").await;
    device.assert_complete(&section);
}

/// logind, as far as it is asked here.
#[derive(Clone, Default)]
struct Logind(Arc<Mutex<Seen>>);

/// What it knows and was told.
#[derive(Default)]
struct Seen {
    inhibitors: Vec<(&'static str, &'static str)>,
    is_user_there: bool,
    scheduled: u64,
    told: Vec<String>,
}

type ListedSession = (String, u32, String, String, zbus::OwnedObjectPath);

#[zbus::interface(name = "org.freedesktop.login1.Manager")]
impl Logind {
    fn list_sessions(&self) -> Vec<ListedSession> {
        let session = || {
            let path = "/org/freedesktop/login1/session/_31".try_into().unwrap();
            (
                "1".to_owned(),
                1000,
                "carol".to_owned(),
                String::new(),
                path,
            )
        };
        self.0
            .lock()
            .unwrap()
            .is_user_there
            .then(session)
            .into_iter()
            .collect()
    }

    fn list_inhibitors(&self) -> Vec<(String, String, String, String, u32, u32)> {
        let own = |(who, why): &(&str, &str)| {
            (
                "shutdown".to_owned(),
                (*who).to_owned(),
                (*why).to_owned(),
                "block".to_owned(),
                0,
                1,
            )
        };
        self.0.lock().unwrap().inhibitors.iter().map(own).collect()
    }

    fn set_wall_message(&self, message: &str, _enable: bool) {
        self.0.lock().unwrap().told.push(message.to_owned());
    }

    fn schedule_shutdown(&self, kind: &str, at: u64) {
        let mut seen = self.0.lock().unwrap();
        seen.told.push(kind.to_owned());
        seen.scheduled = at;
    }

    fn cancel_scheduled_shutdown(&self) -> bool {
        let mut seen = self.0.lock().unwrap();
        seen.told.push("cancelled".to_owned());
        seen.scheduled = 0;
        true
    }

    #[zbus(property)]
    fn scheduled_shutdown(&self) -> (String, u64) {
        ("reboot".to_owned(), self.0.lock().unwrap().scheduled)
    }
}

struct Session;

#[zbus::interface(name = "org.freedesktop.login1.Session")]
impl Session {
    #[zbus(property)]
    fn class(&self) -> &'static str {
        "user"
    }

    #[zbus(property)]
    fn state(&self) -> &'static str {
        "active"
    }
}

/// A logind on a bus of its own, which `device` asks from now on.
async fn with_logind(device: &mut Device, bus: &Bus) -> (Logind, zbus::Connection) {
    let logind = Logind::default();
    let path = "/org/freedesktop/login1";
    let connection = bus
        .serve("org.freedesktop.login1", path, logind.clone())
        .await;
    let session = format!("{path}/session/_31");
    connection
        .object_server()
        .at(session, Session)
        .await
        .unwrap();
    device
        .launcher
        .push(format!("DBUS_SYSTEM_BUS_ADDRESS={}", bus.address));
    (logind, connection)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_inhibits_the_reboot_is_waited_for_by_name_and_only_so_long() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let bus = Bus::start(dir.path());
    let mut device = device(&rig, dir.path(), &[("MAX_INHIBIT", "1h")]);
    let (logind, _connection) = with_logind(&mut device, &bus).await;
    let inhibit = |by: &[(&'static str, &'static str)]| {
        logind.0.lock().unwrap().inhibitors = by.to_vec();
    };
    inhibit(&[("recorder", "a recording runs")]);
    device.boot();
    device.until_connected(&rig).await;
    let image = image(&rig);
    let id = start(&rig, &image).await;
    until_told(&rig, &mut device, "waiting for recorder (a recording runs)").await;
    device.kill();
    assert_eq!(device.state(), "holding");
    assert_unarmed(&device);
    device.start();
    device.until_connected(&rig).await;
    until_told(&rig, &mut device, "waiting for recorder (a recording runs)").await;
    inhibit(&[]);
    let section = device.until_final(&rig, &id).await;
    device.assert_complete(&section);

    // A lock that nobody gives back, even for an update that is forced.
    inhibit(&[("forgotten", "for ever")]);
    set_policy(&mut device, &[("MAX_INHIBIT", "3s")]);
    device
        .launcher
        .push(format!("DBUS_SYSTEM_BUS_ADDRESS={}", bus.address));
    device.stop();
    device.start();
    device.until_connected(&rig).await;
    let second = rig.build("3.0.0", noise(1 << 20, 8), &[]);
    let payload = json!({"fwPackageUri": rig.serve(&second), "updateId": "u2", "force": true});
    assert_eq!(rig.invoke(payload).await.0, 200);
    until_told(&rig, &mut device, "waiting for forgotten (for ever)").await;
    let section = device.until_final(&rig, "u2").await;
    assert_eq!(
        section["status"],
        "applyComplete",
        "{section:#}\n{}",
        device.log()
    );
    assert!(
        device
            .log()
            .contains("rebooting although forgotten (for ever) inhibits it")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn users_are_warned_before_the_reboot_and_can_put_it_off_until_then() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let bus = Bus::start(dir.path());
    let mut device = device(&rig, dir.path(), &[("REBOOT_NOTICE", "15m")]);
    let (logind, _connection) = with_logind(&mut device, &bus).await;
    logind.0.lock().unwrap().is_user_there = true;
    device.boot();
    device.until_connected(&rig).await;
    let image = image(&rig);
    let id = start(&rig, &image).await;
    until_told(
        &rig,
        &mut device,
        "after a warning of the users who are logged in (1)",
    )
    .await;
    assert_unarmed(&device);
    {
        let seen = logind.0.lock().unwrap();
        assert!(
            seen.told[0].contains("2.0.0") && seen.told[0].contains("fwupdatectl defer"),
            "{:?}",
            seen.told
        );
        assert_eq!(
            seen.told[1..],
            ["dry-reboot"],
            "nothing that would reboot by itself"
        );
        let minutes = (i64::try_from(seen.scheduled).unwrap() - Timestamp::now().as_microsecond())
            / 60_000_000;
        assert!((10..15).contains(&minutes), "{minutes}");
    }
    granted(&device, &["defer", "1h"]);
    until_told(&rig, &mut device, "put off until").await;
    assert_eq!(logind.0.lock().unwrap().told.last().unwrap(), "cancelled");
    assert_unarmed(&device);
    // Nobody is there any more, so nobody is waited for.
    logind.0.lock().unwrap().is_user_there = false;
    granted(&device, &["approve", "--now"]);
    let section = device.until_final(&rig, &id).await;
    device.assert_complete(&section);
}

#[tokio::test(flavor = "multi_thread")]
async fn going_back_waits_for_nothing_but_is_refused_while_a_program_inhibits_the_reboot_and_users_hear_of_it()
 {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let bus = Bus::start(dir.path());
    let policy = [
        ("APPROVAL", "required"),
        ("REBOOT", "manual"),
        ("REBOOT_NOTICE", "15m"),
        ("MAX_INHIBIT", "1h"),
    ];
    let mut device = device(&rig, dir.path(), &policy);
    let (logind, _connection) = with_logind(&mut device, &bus).await;
    device.boot();
    device.until_connected(&rig).await;
    let image = image(&rig);
    let payload = json!({"fwPackageUri": rig.serve(&image), "updateId": "u1", "force": true});
    assert_eq!(rig.invoke(payload).await.0, 200);
    let section = device.until_final(&rig, "u1").await;
    device.assert_complete(&section);

    {
        let mut seen = logind.0.lock().unwrap();
        seen.is_user_there = true;
        seen.inhibitors = vec![("recorder", "a recording runs")];
    }
    let go_back = |device: &Device| {
        let said = granted(device, &["rollback"]);
        said.trim().rsplit_once("update ").unwrap().1.to_owned()
    };
    let id = go_back(&device);
    let section = device.until_final(&rig, &id).await;
    assert_eq!(section["status"], "applyFailed", "{section:#}");
    assert_eq!(section["error"]["code"], "reboot-inhibited");
    let said = section["error"].to_string();
    assert!(said.contains("recorder (a recording runs)"), "{said}");
    assert_eq!(device.running(), Slot::B);
    assert_eq!(device.variable("fwupdated_trial"), None, "{}", device.log());
    assert!(
        logind.0.lock().unwrap().told.is_empty(),
        "nobody is warned in vain"
    );

    logind.0.lock().unwrap().inhibitors.clear();
    let id = go_back(&device);
    let section = device.until_final(&rig, &id).await;
    assert_eq!(section["status"], "applyComplete", "{section:#}");
    assert_eq!(device.running(), Slot::A);
    let told = logind.0.lock().unwrap().told.clone();
    assert!(told[0].contains("goes back to 1.0.0"), "{told:?}");
    assert_eq!(
        told[1..],
        ["dry-reboot"],
        "nothing that would reboot by itself"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_can_be_cancelled_and_leaves_the_old_slot_alone() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut device = device(
        &rig,
        dir.path(),
        &[("APPROVAL", "required"), ("REBOOT", "manual")],
    );
    device.boot();
    device.until_connected(&rig).await;
    let image = image(&rig);
    for reboot_waits in [false, true] {
        let id = start(&rig, &image).await;
        until_told(&rig, &mut device, "waiting for approval").await;
        if reboot_waits {
            granted(&device, &["approve"]);
            until_told(&rig, &mut device, "verified; waiting for someone").await;
        }
        granted(&device, &["cancel"]);
        let section = device.until_final(&rig, &id).await;
        assert_eq!(section["error"]["code"], "cancelled", "{section:#}");
        assert_unarmed(&device);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
