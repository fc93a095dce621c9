//! U-Boot environments that cannot be read or contradict what runs: nothing is written, the device stays
//! in touch, and goes on by itself once it is mended.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
};

use fwupdated::platform::uboot_env::names;
use serde_json::{Value, json};

use crate::{
    scene::{Scene, problem},
    support::rig::Device,
};

/// One way to break an environment.
struct Breakage {
    name: &'static str,
    apply: fn(&Device),
    code: &'static str,
    advice: &'static str,
}

const BREAKAGES: [Breakage; 9] = [
    Breakage {
        name: "both copies damaged",
        apply: |device| {
            let env = File::options()
                .write(true)
                .open(device.dir.join("uboot.env"))
                .unwrap();
            for copy in [0, 0x4000] {
                env.write_all_at(b"XXXX", copy + 40).unwrap();
            }
        },
        code: "env-no-good-copy",
        advice: "fwupdatectl restore-env",
    },
    Breakage {
        name: "erased",
        apply: |device| fs::write(device.dir.join("uboot.env"), [0xff; 0x8000]).unwrap(),
        code: "env-no-good-copy",
        advice: "fwupdatectl restore-env",
    },
    Breakage {
        name: "missing",
        apply: |device| fs::remove_file(device.dir.join("uboot.env")).unwrap(),
        code: "env-unreadable",
        advice: "check fw_env.config",
    },
    Breakage {
        name: "cut off",
        apply: |device| {
            let env = File::options()
                .write(true)
                .open(device.dir.join("uboot.env"))
                .unwrap();
            env.set_len(0x1000).unwrap();
        },
        code: "env-unreadable",
        advice: "check fw_env.config",
    },
    Breakage {
        name: "no fw_env.config",
        apply: |device| fs::remove_file(device.dir.join("fw_env.config")).unwrap(),
        code: "env-config",
        advice: "where the U-Boot environment lies",
    },
    Breakage {
        name: "garbage in fw_env.config",
        apply: |device| fs::write(device.dir.join("fw_env.config"), "uboot.env here\n").unwrap(),
        code: "env-config",
        advice: "each line is `device offset size",
    },
    Breakage {
        name: "a shifted fw_env.config",
        apply: |device| {
            let env = device.dir.join("uboot.env").display().to_string();
            let text = format!("{env} 0x10 0x3ff0\n{env} 0x4010 0x3ff0\n");
            fs::write(device.dir.join("fw_env.config"), text).unwrap();
        },
        code: "env-no-good-copy",
        advice: "Check fw_env.config against the board's U-Boot",
    },
    Breakage {
        name: "not set up",
        apply: |device| device.env().update(|env| env.remove(names::SLOT)).unwrap(),
        code: "bootloader-not-initialised",
        advice: "fw_setenv fwupdated_slot a",
    },
    Breakage {
        name: "a slot that is none",
        apply: |device| {
            device
                .env()
                .update(|env| env.set(names::SLOT, "left").unwrap())
                .unwrap()
        },
        code: "bootloader-invalid",
        advice: "correct it with fw_setenv",
    },
];

/// The files that make up the environment.
fn files(device: &Device) -> [Option<Vec<u8>>; 2] {
    ["uboot.env", "fw_env.config"].map(|name| fs::read(device.dir.join(name)).ok())
}

fn restore(device: &Device, files: &[Option<Vec<u8>>; 2]) {
    for (name, bytes) in ["uboot.env", "fw_env.config"].into_iter().zip(files) {
        fs::write(device.dir.join(name), bytes.as_ref().unwrap()).unwrap();
    }
}

fn payload() -> Value {
    json!({"fwPackageUri": "https://localhost/x.img"})
}

#[tokio::test(flavor = "multi_thread")]
async fn an_environment_that_cannot_be_used_stops_updates_and_nothing_else() {
    let mut scene = Scene::new(|_| String::new()).await;
    let good = files(&scene.device);
    for Breakage {
        name,
        apply,
        code,
        advice,
    } in BREAKAGES
    {
        // It breaks while the daemon runs.
        apply(&scene.device);
        let broken = files(&scene.device);
        let message = scene.refused(name, payload(), 503, code).await;
        assert!(
            message.contains(advice),
            "{name}: no advice `{advice}` in: {message}"
        );

        // It is broken when the daemon starts.
        let log = scene.restart().await;
        let rig = &scene.rig;
        scene
            .device
            .until(name, |_| (problem(rig)["code"] == code).then_some(()))
            .await;
        scene.assert_logged(name, log, code);
        let status = scene.status();
        assert_eq!(status["problem"]["code"], code, "{name}: {status:#}");
        assert_eq!(
            status["problem"]["message"],
            message.as_str(),
            "{name}: {status:#}"
        );
        let (exit, text, err) = scene.ctl(&["status"]);
        assert_eq!(exit, 0, "{name}: {err}");
        assert!(
            text.contains("Problem ") && text.contains(code),
            "{name}: {text}"
        );
        scene.refused(name, payload(), 503, code).await;
        let (exit, out, err) = scene.ctl(&["install", "https://localhost/x.img"]);
        assert_eq!(exit, 4, "{name}: {out}{err}");
        assert!(err.contains(&format!("[{code}]")), "{name}: {err}");
        let times = scene.device.log()[log..]
            .matches("updates are not possible")
            .count();
        assert_eq!(times, 1, "{name}: the journal is told once");
        assert!(
            files(&scene.device) == broken,
            "{name}: the environment was written"
        );

        // Mended, it works without a restart.
        restore(&scene.device, &good);
        let rig = &scene.rig;
        scene
            .device
            .until(name, |_| problem(rig).is_null().then_some(()))
            .await;
        assert!(scene.status()["problem"].is_null(), "{name}");
    }
    let uri = scene.rig.serve(&scene.image("1.1.0"));
    let (status, body) = scene.rig.invoke(json!(uri)).await;
    assert_eq!(status, 200, "{body}");
    let id = body["updateId"].as_str().unwrap().to_owned();
    let section = scene.device.until_final(&scene.rig, &id).await;
    assert_eq!(section["status"], "applyComplete", "{section:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_environment_that_contradicts_what_runs_is_a_conflict() {
    let scene = Scene::new(|_| String::new()).await;
    let good = files(&scene.device);
    for (name, variable, code, advice) in [
        (
            "someone armed a trial",
            names::TRIAL,
            "trial-pending",
            "reboot the device",
        ),
        (
            "someone confirmed the other slot",
            names::SLOT,
            "boot-disagreement",
            "fw_setenv",
        ),
    ] {
        scene
            .device
            .env()
            .update(|env| env.set(variable, "b").unwrap())
            .unwrap();
        let message = scene.refused(name, payload(), 409, code).await;
        assert!(message.contains(advice), "{name}: {message}");
        restore(&scene.device, &good);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_environment_that_someone_else_holds_is_waited_for_no_longer_than_a_caller_waits() {
    let scene = Scene::new(|_| String::new()).await;
    let lock = File::open(scene.device.dir.join("fw_env.lock")).unwrap();
    lock.lock().unwrap();
    let message = scene.refused("locked", payload(), 503, "env-locked").await;
    assert!(message.contains("fw_env.lock"), "{message}");
    drop(lock);
    let (status, body) = scene.rig.invoke(payload()).await;
    assert_eq!(status, 200, "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_environment_lost_during_an_update_ends_it_in_the_slot_that_runs() {
    let mut scene = Scene::new(|_| String::new()).await;
    let uri = scene.rig.serve(&scene.image("1.1.0"));
    scene.rig.server.throttle(Some(4 << 20));
    let payload = json!({"fwPackageUri": uri, "updateId": "lost"});
    let (status, body) = scene.rig.invoke(payload).await;
    assert_eq!(status, 200, "{body}");
    // More than any header: the slot is being written.
    let (server, half) = (&scene.rig.server, 2 << 20);
    let written = |_: &mut Device| (server.bytes_sent() > half).then_some(());
    scene.device.until("half of the download", written).await;
    let good = files(&scene.device);
    (BREAKAGES[0].apply)(&scene.device);
    let (broken, log) = (files(&scene.device), scene.device.log().len());
    scene.rig.server.throttle(None);
    let section = scene.device.until_final(&scene.rig, "lost").await;
    assert_eq!(section["status"], "applyFailed", "{section:#}");
    assert_eq!(section["error"]["code"], "env-no-good-copy", "{section:#}");
    scene.assert_logged("lost", log, "env-no-good-copy");
    assert!(
        files(&scene.device) == broken,
        "the environment was written"
    );
    assert_eq!(scene.device.boots, 1, "it was not rebooted");
    restore(&scene.device, &good);
    assert_eq!(scene.device.variable(names::TRIAL), None);
}
