//! A connected device, and what each case is held against: the bytes of slots and environment, the twin,
//! the journal, the command line.

use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;

use fwupdated::update::slot::Slot;

use crate::support::rig::{DEVICE, Device, Image, Rig, fwupdatectl, noise};

/// Size of a slot, bytes.
pub(crate) const SLOT: u64 = 8 << 20;

/// Hub, image server and a device with slots of [`SLOT`] bytes that runs version 1.0.0 from slot a.
pub(crate) struct Scene {
    pub(crate) device: Device,
    pub(crate) rig: Rig,
    _dir: TempDir,
}

/// The bytes that bad input must not change.
#[derive(PartialEq)]
pub(crate) struct Medium {
    a: Vec<u8>,
    b: Vec<u8>,
    env: Option<Vec<u8>>,
}

/// What a refusal must look like.
#[derive(Clone, Copy)]
pub(crate) struct Expected<'a> {
    /// Its stable code.
    pub(crate) code: &'a str,
    /// Words of the message that say what to do.
    pub(crate) advice: &'a str,
    /// How far it may have got.
    pub(crate) reach: Reach,
}

/// How far an update got before it failed.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Reach {
    /// Refused by its header: both slots are as they were.
    Header,
    /// Found out while it was written: the target slot holds nothing that mounts.
    Slot,
}

/// Refused by the image's header.
pub(crate) fn at_header<'a>(code: &'a str, advice: &'a str) -> Expected<'a> {
    Expected {
        code,
        advice,
        reach: Reach::Header,
    }
}

/// Found out while the slot was written.
pub(crate) fn in_slot<'a>(code: &'a str, advice: &'a str) -> Expected<'a> {
    Expected {
        code,
        advice,
        reach: Reach::Slot,
    }
}

impl Scene {
    /// A device that is connected.
    pub(crate) async fn new(settings: impl FnOnce(&Rig) -> String) -> Self {
        let mut scene = Self::off(settings).await;
        scene.device.boot();
        scene.device.until_connected(&scene.rig).await;
        scene
    }

    /// A device before its first boot.
    pub(crate) async fn off(settings: impl FnOnce(&Rig) -> String) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let rig = Rig::start(dir.path()).await;
        let place = dir.path().join("device");
        let device = Device::new(&rig, &place, SLOT, "1.0.0", &settings(&rig));
        // An older system, which has to stay whole until an image is found to be good.
        let old = noise(usize::try_from(SLOT).unwrap(), 2);
        fs::write(device.slot_file(Slot::B), old).unwrap();
        Self {
            device,
            rig,
            _dir: dir,
        }
    }

    /// Starts the daemon again and waits until it is in touch with the hub; returns where its journal
    /// begins. The hub may take the connection before for the new one, so the journal is asked.
    pub(crate) async fn restart(&mut self) -> usize {
        if self.device.daemon.is_some() {
            self.device.stop();
        }
        let log = self.device.log().len();
        self.device.start();
        let connected = format!("connected to localhost as {DEVICE}");
        let in_touch = |device: &mut Device| device.log()[log..].contains(&connected).then_some(());
        self.device.until("connection", in_touch).await;
        log
    }

    /// Slots and environment as they are now.
    pub(crate) fn medium(&self) -> Medium {
        let slot = |name: &str| fs::read(self.device.dir.join(name)).unwrap_or_default();
        Medium {
            a: slot("slot-a.img"),
            b: slot("slot-b.img"),
            env: fs::read(self.device.dir.join("uboot.env")).ok(),
        }
    }

    /// A file of `bytes` on the image server; returns its address.
    pub(crate) fn put(&self, name: &str, bytes: impl Into<Vec<u8>>) -> String {
        let path = format!("/{name}");
        self.rig.server.put(&path, bytes.into());
        self.rig.server.url(&path)
    }

    /// A signed image of 4 MiB that would install.
    pub(crate) fn image(&self, version: &str) -> Image {
        self.rig.build(version, noise(4 << 20, 7), &[])
    }

    /// `fwupdatectl` for this device: exit code, standard output, standard error.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> (i32, String, String) {
        let mut command = fwupdatectl();
        command
            .args(arguments)
            .arg("--config")
            .arg(self.device.config());
        ended(&mut command)
    }

    /// `fwupdatectl hub ...`, as an operator runs it.
    pub(crate) fn hub(&self, arguments: &[&str]) -> (i32, String, String) {
        ended(&mut self.rig.hub(arguments))
    }

    /// `fwupdatectl status --json`.
    pub(crate) fn status(&self) -> Value {
        let (code, out, err) = self.ctl(&["status", "--json"]);
        assert_eq!(code, 0, "{err}\n{}", self.device.log());
        serde_json::from_str(&out).unwrap()
    }

    /// Calls the method, which must be refused at once; returns the message.
    pub(crate) async fn refused(
        &self,
        case: &str,
        payload: Value,
        status: i64,
        code: &str,
    ) -> String {
        let (medium, log) = (self.medium(), self.device.log().len());
        let (reported, before) = (self.rig.section(), self.status()["update"].clone());
        let (found, body) = self.invoke(payload).await;
        assert_eq!(
            (found, body["code"].as_str()),
            (status, Some(code)),
            "{case}: {body}"
        );
        let message = body["message"].as_str().unwrap_or_default();
        self.assert_logged(case, log, code);
        assert!(self.medium() == medium, "{case}: something was written");
        assert_eq!(
            self.rig.section(),
            reported,
            "{case}: the twin's last update changed"
        );
        assert_eq!(
            self.status()["update"],
            before,
            "{case}: an update was begun"
        );
        message.to_owned()
    }

    /// Calls the method; again when the machine was too busy to answer in time.
    async fn invoke(&self, payload: Value) -> (i64, Value) {
        for _ in 0..20 {
            let (status, body) = self.rig.invoke(payload.clone()).await;
            if !matches!(body["code"].as_str(), Some("storage-slow" | "answer-late")) {
                return (status, body);
            }
        }
        panic!(
            "the daemon never found time to answer\n{}",
            self.device.log()
        );
    }

    /// Calls the method with `payload`; the update must be accepted and then fail as `expected`.
    pub(crate) async fn fails(&mut self, case: &str, mut payload: Value, expected: Expected<'_>) {
        let (medium, log) = (self.medium(), self.device.log().len());
        payload["updateId"] = json!(case);
        let (status, body) = self.invoke(payload).await;
        assert_eq!(status, 200, "{case}: {body}");
        let section = self.device.until_final(&self.rig, case).await;
        assert_eq!(
            section["status"],
            "downloadfailed",
            "{case}: {section:#}\n{}",
            self.device.log()
        );
        let Expected {
            code,
            advice,
            reach,
        } = expected;
        assert_eq!(section["error"]["code"], code, "{case}: {section:#}");
        let message = section["error"]["message"].as_str().unwrap_or_default();
        assert!(
            message.contains(advice),
            "{case}: no advice `{advice}` in: {message}"
        );
        self.assert_logged(case, log, code);
        let update = &self.status()["update"];
        assert_eq!(update["id"], case, "{update:#}");
        assert_eq!(update["error"]["code"], code, "{case}: {update:#}");
        assert_eq!(update["error"]["message"], message, "{case}: {update:#}");
        self.assert_unharmed(case, &medium, reach);
        let words = self.rig.words(case);
        let last = words.last().map(String::as_str);
        assert_eq!(last, Some("downloadfailed"), "{case}: {words:?}");
        assert!(
            !words.iter().any(|word| word.starts_with("appl")),
            "{case}: {words:?}"
        );
        if reach == Reach::Header {
            assert!(
                !words.iter().any(|word| word == "downloading"),
                "{case}: {words:?}"
            );
        }
    }

    fn assert_unharmed(&self, case: &str, before: &Medium, reach: Reach) {
        let now = self.medium();
        assert!(now.env == before.env, "{case}: the environment was written");
        let target = self.device.running().other();
        let [a, b] = [(&now.a, &before.a), (&now.b, &before.b)];
        let (running, target) = if target.name() == "b" { (a, b) } else { (b, a) };
        assert!(
            running.0 == running.1,
            "{case}: the running slot was written"
        );
        match reach {
            Reach::Header => assert!(target.0 == target.1, "{case}: the target slot was written"),
            // A write wipes the head first of all; without one the old system is still whole.
            Reach::Slot => {
                let wiped = target.0[..4096].iter().all(|byte| *byte == 0);
                assert!(
                    wiped || target.0 == target.1,
                    "{case}: the target slot may mount"
                );
            }
        }
    }

    /// The journal since `from` names `code`.
    pub(crate) fn assert_logged(&self, case: &str, from: usize, code: &str) {
        let log = self.device.log();
        assert!(
            log[from..].contains(code),
            "{case}: no {code} in the journal:\n{}",
            &log[from..]
        );
    }
}

fn ended(command: &mut std::process::Command) -> (i32, String, String) {
    let output = command.output().expect("the program starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code().unwrap_or(-1),
        text(&output.stdout),
        text(&output.stderr),
    )
}

/// What keeps the device from updating, as its twin tells it.
pub(crate) fn problem(rig: &Rig) -> Value {
    rig.emulator.twin(DEVICE)["properties"]["reported"]["fwupdated"]["problem"].clone()
}

/// What an operator reads of a call that was refused: `fwupdatectl hub invoke` without and with `--watch`.
pub(crate) fn hub_invoke<'a>(uri: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["invoke", DEVICE, "--uri", uri], more].concat()
}
