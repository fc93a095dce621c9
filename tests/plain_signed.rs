//! With `trust.plain = "signed"` no digest installs a plain image, whichever way it comes in and whoever asks. With the
//! real programs.

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use fwupdated::update::{digest::Sha256, slot::Slot};
use serde_json::{Value, json};
use support::rig::{COMPATIBLE, DEVICE, Device, Rig, fwupdatectl, make_key, noise, run};

const MIB: usize = 1 << 20;
/// Size of a slot, bytes.
const SLOT: usize = 4 * MIB;
/// The one code of all these refusals.
const REFUSED: &str = "plain-signature-required";
/// More than is read of an image to tell its kind, much less than an image has.
const HEADER: u64 = 128 << 10;

struct Scene {
    device: Device,
    rig: Rig,
    raw: Vec<u8>,
}

impl Scene {
    /// The raw image as `name`, made out of it by a line of shell.
    fn made(&self, name: &str, script: &str) -> PathBuf {
        let file = self.rig.dir.join(name);
        let mut shell = Command::new("sh");
        shell.args(["-c", script, "sh"]).arg(&file);
        run(shell.current_dir(&self.rig.dir));
        file
    }

    fn sign(&self, file: &Path, key: &Path) {
        let mut sign = fwupdatectl();
        sign.args(["image", "sign"]).arg(file).arg("--key").arg(key);
        run(&mut sign);
        self.rig
            .serve_file(&PathBuf::from(format!("{}.minisig", file.display())));
    }

    /// Runs the update that the method asks for to its end; returns its section.
    async fn ended(&mut self, id: &str, mut payload: Value) -> Value {
        payload["updateId"] = json!(id);
        self.rig.server.clear_requests();
        let (status, body) = self.rig.invoke(payload).await;
        assert_eq!(status, 200, "{id}: {body}");
        self.device.until_final(&self.rig, id).await
    }

    /// It ended with `code`, soon, and the slot was not touched.
    fn assert_refused(&self, case: &str, section: &Value, code: &str) {
        assert_eq!(section["status"], "downloadfailed", "{case}: {section:#}");
        assert_eq!(section["error"]["code"], code, "{case}: {section:#}");
        let slot = fs::read(self.device.slot_file(Slot::B)).unwrap();
        assert!(slot.iter().all(|byte| *byte == 0), "{case}: it was written");
        let asked = self.rig.server.bytes_sent();
        assert!(asked <= HEADER, "{case}: {asked} bytes were downloaded");
        assert_eq!(self.device.variable("fwupdated_trial"), None, "{case}");
        assert_eq!(self.device.boots, 1, "{case}: it was rebooted");
    }
}

fn digest(file: &Path) -> String {
    Sha256::of(&fs::read(file).unwrap()).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn where_plain_images_must_be_signed_no_way_leads_around_it() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let folder = dir.path().join("device");
    let mut device = Device::new(&rig, &folder, SLOT as u64, "1.0.0", "");
    device.launcher = ["env", "FWUPDATED_TRUST__PLAIN=signed"]
        .map(str::to_owned)
        .into();
    device.boot();
    device.until_connected(&rig).await;
    let raw = noise(2 * MIB, 5);
    let mut scene = Scene { device, rig, raw };
    fs::write(scene.rig.dir.join("system"), &scene.raw).unwrap();

    // By the method, forced, with the right digest: whatever the image is packed in.
    let image = scene.made("plain.img", "cat system > $1");
    for file in [
        image.clone(),
        scene.made("plain.img.gz", "gzip -c system > $1"),
        scene.made("plain.img.zst", "zstd -q -c system > $1"),
        scene.made("update.tar.zst", "tar -I zstd -h -cf $1 -- system"),
    ] {
        let uri = scene.rig.serve_file(&file);
        let id = file.file_name().unwrap().to_str().unwrap();
        let payload = json!({
            "fwPackageUri": uri, "fwPackageSha256": digest(&file), "fwVersion": "9.0.0", "force": true,
        });
        let section = scene.ended(id, payload).await;
        scene.assert_refused(id, &section, REFUSED);
        let message = section["error"]["message"].as_str().unwrap();
        for needed in [&uri, "trust.plain", "fwupdatectl image sign"] {
            assert!(message.contains(needed), "{message}");
        }
    }
    let uri = scene.rig.server.url("/plain.img");

    // By the twin.
    scene.rig.server.clear_requests();
    let firmware = json!({
        "fwVersion": "9.1.0", "fwPackageURI": uri, "fwPackageCheckValue": digest(&image),
    });
    let desired = json!({ "firmware": firmware });
    scene.rig.emulator.patch_desired(DEVICE, &desired).unwrap();
    let rig = &scene.rig;
    let failed = |_: &mut Device| {
        let section = rig.section();
        (section["fwVersion"] == "9.1.0" && section["error"].is_object()).then_some(section)
    };
    let section = scene.device.until("the twin's update", failed).await;
    scene.assert_refused("twin", &section, REFUSED);

    // On the device, by its root, from a file of its own.
    for (id, what) in [("local-file", image.to_str().unwrap()), ("local-uri", &uri)] {
        scene.rig.server.clear_requests();
        let mut install = fwupdatectl();
        install.args(["install", what, "--force", "--id", id]);
        install.args(["--sha256", &digest(&image), "--socket"]);
        run(install.arg(scene.device.dir.join("control")));
        let section = scene.device.until_final(&scene.rig, id).await;
        scene.assert_refused(id, &section, REFUSED);
    }

    // Nothing at all vouches for these: as ever.
    let unsigned = scene.rig.dir.join("unsigned.img.zst");
    let mut build = fwupdatectl();
    build.args(["image", "build", "--version", "9.2.0", "--compatible"]);
    build.args([COMPATIBLE, "--rootfs"]).arg(&image);
    run(build.arg("--output").arg(&unsigned));
    let payload = json!({"fwPackageUri": scene.rig.serve_file(&unsigned), "fwPackageSha256": digest(&unsigned)});
    let section = scene.ended("unsigned", payload).await;
    scene.assert_refused("unsigned", &section, "image-unsigned");
    let section = scene.ended("bare", json!({"fwPackageUri": uri})).await;
    scene.assert_refused("bare", &section, REFUSED);

    // A stranger's signature beside it.
    let strange = scene.rig.dir.join("stranger");
    fs::create_dir(&strange).unwrap();
    scene.sign(&image, &make_key(&strange));
    let payload = json!({"fwPackageUri": uri, "fwPackageSha256": digest(&image)});
    let section = scene.ended("stranger", payload.clone()).await;
    scene.assert_refused("stranger", &section, "signature-wrong-key");

    // Signed by a trusted key: the digest counts too, but never alone.
    fs::remove_file(scene.rig.dir.join("plain.img.minisig")).unwrap();
    scene.sign(&image, &scene.rig.key.clone());
    let wrong = Sha256::of(b"another file").to_string();
    let wrong = json!({"fwPackageUri": uri, "fwPackageSha256": wrong});
    let section = scene.ended("wrong-digest", wrong).await;
    assert_eq!(section["error"]["code"], "digest-mismatch", "{section:#}");
    let head = &fs::read(scene.device.slot_file(Slot::B)).unwrap()[..4096];
    assert!(head.iter().all(|byte| *byte == 0), "the slot may mount");
    let section = scene.ended("signed", payload).await;
    scene.device.assert_complete(&section);
    assert!(scene.device.holds(Slot::B, &scene.raw));
}
