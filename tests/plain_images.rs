//! Images without a manifest install too, by digest or by a signature beside them; and so do images from
//! servers that offer little. With the real programs.

mod support;

use std::{fs, path::PathBuf, process::Command};

use fwupdated::update::{digest::Sha256, slot::Slot};
use serde_json::{Value, json};
use support::{
    image_server::{Fault, ImageServer},
    rig::{Device, Rig, fwupdatectl, noise, run},
};
use tempfile::TempDir;

const MIB: usize = 1 << 20;
/// Size of a slot, bytes.
const SLOT: usize = 8 * MIB;

/// How a raw image is packed: the name's end, and the program that packs it.
const KINDS: [(&str, &[&str]); 5] = [
    ("img", &["cat"]),
    ("img.gz", &["gzip", "-c"]),
    ("img.xz", &["xz", "-c"]),
    ("img.bz2", &["bzip2", "-c"]),
    ("img.zst", &["zstd", "-c", "-q"]),
];

struct Scene {
    device: Device,
    rig: Rig,
    dir: TempDir,
}

impl Scene {
    async fn new(settings: impl FnOnce(&Rig) -> String) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let rig = Rig::start(dir.path()).await;
        let place = dir.path().join("device");
        let mut device = Device::new(&rig, &place, SLOT as u64, "1.0.0", &settings(&rig));
        device.boot();
        device.until_connected(&rig).await;
        Self { device, rig, dir }
    }

    /// The file `NAME.END`: `raw`, packed.
    fn packed(&self, name: &str, raw: &[u8], (end, packer): (&str, &[&str])) -> PathBuf {
        let plain = self.dir.path().join("raw");
        fs::write(&plain, raw).unwrap();
        let packed = run(Command::new(packer[0]).args(&packer[1..]).arg(plain)).stdout;
        let file = self.dir.path().join(format!("{name}.{end}"));
        fs::write(&file, packed).unwrap();
        file
    }

    /// Runs the update to its end; returns its section.
    async fn ended(&mut self, case: &str, mut payload: Value) -> Value {
        payload["updateId"] = json!(case);
        let (status, body) = self.rig.invoke(payload).await;
        assert_eq!(status, 200, "{case}: {body}");
        self.device.until_final(&self.rig, case).await
    }

    /// Runs the update, which must end confirmed in the other slot with `raw` in it.
    async fn installs(&mut self, case: &str, payload: Value, raw: &[u8]) {
        let target = self.device.running().other();
        let section = self.ended(case, payload).await;
        assert_eq!(
            section["status"],
            "applyComplete",
            "{case}: {section:#}\n{}",
            self.device.log()
        );
        assert_eq!(self.device.running(), target, "{case}");
        assert!(
            self.device.holds(target, raw),
            "{case}: the slot holds something else"
        );
        let slot = self.device.variable("fwupdated_slot");
        assert_eq!(slot.as_deref(), Some(target.name()), "{case}");
        assert_eq!(self.device.variable("fwupdated_trial"), None, "{case}");
    }

    /// Runs the update, which must fail with `code` and arm nothing.
    async fn fails(&mut self, case: &str, payload: Value, code: &str) {
        let (slot, env, boots) = (
            self.device.running(),
            self.device.env().read().unwrap(),
            self.device.boots,
        );
        let running = fs::read(self.device.slot_file(slot)).unwrap();
        let section = self.ended(case, payload).await;
        assert_eq!(section["status"], "downloadfailed", "{case}: {section:#}");
        assert_eq!(section["error"]["code"], code, "{case}: {section:#}");
        // Both copies may say it by now; what they say is the same.
        let after = self.device.env().read().unwrap();
        assert!(after == env, "{case}: the environment was changed");
        assert_eq!(self.device.boots, boots, "{case}: it was rebooted");
        assert!(
            fs::read(self.device.slot_file(slot)).unwrap() == running,
            "{case}"
        );
        let target = fs::read(self.device.slot_file(slot.other())).unwrap();
        assert!(
            target[..4096].iter().all(|byte| *byte == 0),
            "{case}: the slot may mount"
        );
    }
}

fn digest(file: &PathBuf) -> String {
    Sha256::of(&fs::read(file).unwrap()).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_plain_image_installs_by_digest_and_a_wrong_digest_arms_nothing() {
    let mut scene = Scene::new(|_| String::new()).await;
    for (number, kind) in KINDS.into_iter().enumerate() {
        let raw = noise(3 * MIB, 10 + number as u64);
        let file = scene.packed("digest", &raw, kind);
        let uri = scene.rig.serve_file(&file);
        let wrong = Sha256::of(b"another file").to_string();
        let payload = json!({"fwPackageUri": uri, "fwPackageSha256": wrong});
        scene
            .fails(&format!("wrong-{}", kind.0), payload, "digest-mismatch")
            .await;
        // Upper case and the prefix that some tools write are fine.
        let right = format!("sha256:{}", digest(&file).to_uppercase());
        let version = format!("1.{number}.1");
        let payload = json!({"fwPackageUri": uri, "fwPackageSha256": right, "fwVersion": version});
        scene
            .installs(&format!("right-{}", kind.0), payload, &raw)
            .await;
        assert_eq!(scene.rig.section()["fwVersion"], version);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_plain_image_installs_by_a_signature_beside_it() {
    let mut scene = Scene::new(|_| String::new()).await;
    for (number, kind) in KINDS.into_iter().enumerate() {
        let raw = noise(2 * MIB, 20 + number as u64);
        let file = scene.packed("signed", &raw, kind);
        // By turns with this project's tool and with Debian's.
        if number % 2 == 0 {
            let mut sign = fwupdatectl();
            run(sign
                .args(["image", "sign"])
                .arg(&file)
                .arg("--key")
                .arg(&scene.rig.key));
        } else {
            let mut sign = Command::new("minisign");
            run(sign
                .args(["-S", "-W", "-s"])
                .arg(&scene.rig.key)
                .arg("-m")
                .arg(&file));
        }
        let signature = PathBuf::from(format!("{}.minisig", file.display()));
        scene.rig.serve_file(&signature);
        let uri = scene.rig.serve_file(&file);
        // Of another file: found out at the end, when the slot was written and not armed.
        let mut other = fs::read(&file).unwrap();
        let last = other.len() - 1;
        other[last] ^= 1;
        if kind.0 == "img" {
            let other_uri = uri.replace("signed", "other");
            scene.rig.server.put("/other.img", other);
            scene
                .rig
                .server
                .put("/other.img.minisig", fs::read(&signature).unwrap());
            scene
                .fails("other", json!({"fwPackageUri": other_uri}), "signature-bad")
                .await;
        }
        // A query stays with both.
        let payload = json!({"fwPackageUri": format!("{uri}?sig=x")});
        scene
            .installs(&format!("signed-{}", kind.0), payload, &raw)
            .await;
    }
    let requests = scene.rig.server.requests();
    let asked =
        |request: &&support::image_server::Logged| request.path.ends_with("signed.img.minisig");
    let queries: Vec<_> = requests
        .iter()
        .filter(asked)
        .map(|r| r.query.as_deref())
        .collect();
    assert!(
        !queries.is_empty() && queries.iter().all(|query| *query == Some("sig=x")),
        "{queries:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_image_that_unpacks_beyond_the_slot_is_stopped_there() {
    let mut scene = Scene::new(|_| String::new()).await;
    for kind in &KINDS[1..] {
        let file = scene.packed("bomb", &vec![0; 64 * MIB], *kind);
        assert!(
            fs::metadata(&file).unwrap().len() < MIB as u64,
            "it is small on the way"
        );
        let payload =
            json!({"fwPackageUri": scene.rig.serve_file(&file), "fwPackageSha256": digest(&file)});
        scene
            .fails(&format!("bomb-{}", kind.0), payload, "slot-too-small")
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_breaks_off_again_and_again_goes_on_where_it_was() {
    const EVERY: u64 = 700_000;
    let mut scene = Scene::new(|_| String::new()).await;
    for (number, kind) in KINDS.into_iter().enumerate() {
        let raw = noise(3 * MIB, 50 + number as u64);
        let file = scene.packed("drops", &raw, kind);
        let (uri, sha256) = (scene.rig.serve_file(&file), digest(&file));
        let path = format!("/drops.{}", kind.0);
        scene.rig.server.always(&path, Fault::DropAfter(EVERY));
        scene.rig.server.clear_requests();
        let payload = json!({"fwPackageUri": uri, "fwPackageSha256": sha256});
        scene
            .installs(&format!("drops-{}", kind.0), payload, &raw)
            .await;
        let length = fs::metadata(&file).unwrap().len();
        let requests = scene.rig.server.requests();
        let sent: u64 = requests.iter().map(|request| request.bytes).sum();
        assert!(
            requests.len() as u64 > length / EVERY,
            "{}: it broke off each time",
            kind.0
        );
        // What is sent twice: the beginning that was looked at first, and what a drop lost on the way.
        assert!(
            sent < length + length / 4,
            "{}: {sent} bytes sent for {length}",
            kind.0
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_slot_holds_already_is_not_written_again_however_it_is_packed() {
    let mut scene = Scene::new(|_| String::new()).await;
    let mut raw = noise(3 * MIB, 70);
    for (number, kind) in KINDS.into_iter().chain(KINDS).enumerate() {
        let file = scene.packed(&format!("again-{number}"), &raw, kind);
        let payload =
            json!({"fwPackageUri": scene.rig.serve_file(&file), "fwPackageSha256": digest(&file)});
        scene
            .installs(&format!("again-{number}"), payload, &raw)
            .await;
        let progress = &scene.rig.section()["progress"];
        // The first two fill one slot each; from then on both hold it.
        if number >= 2 {
            assert_eq!(progress["bytesWritten"], 0, "{}: {progress}", kind.0);
        }
        // Holes are gone for certain, not only where there were zeros before.
        if number == 1 {
            let hole = 8 * 4096..9 * 4096;
            assert!(raw[hole.clone()].iter().any(|byte| *byte != 0));
            raw[hole].fill(0);
            raw[2 * MIB..2 * MIB + 200_000].fill(0);
            for slot in ["changed-1", "changed-2"] {
                let file = scene.packed(slot, &raw, KINDS[0]);
                let payload = json!({"fwPackageUri": scene.rig.serve_file(&file), "fwPackageSha256": digest(&file)});
                scene.installs(slot, payload, &raw).await;
                let written = &scene.rig.section()["progress"]["bytesWritten"];
                let written = written.as_u64().unwrap();
                assert!(
                    written > 0 && written < 2 * MIB as u64,
                    "{written} bytes written for a small change"
                );
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_one_after_the_other_are_one_image() {
    let mut scene = Scene::new(|_| String::new()).await;
    let raw = noise(2 * MIB, 80);
    for kind in &KINDS[1..] {
        // As parallel packers (pbzip2, pigz, pixz) write them, and as `cat` joins them; an empty one too.
        let mut joined = Vec::new();
        for part in [&raw[..MIB], &[], &raw[MIB..MIB + 7], &raw[MIB + 7..]] {
            joined.extend(fs::read(scene.packed("part", part, *kind)).unwrap());
        }
        let file = scene.dir.path().join(format!("joined.{}", kind.0));
        fs::write(&file, joined).unwrap();
        let payload =
            json!({"fwPackageUri": scene.rig.serve_file(&file), "fwPackageSha256": digest(&file)});
        scene
            .installs(&format!("joined-{}", kind.0), payload, &raw)
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_packed_image_arms_nothing() {
    let mut scene = Scene::new(|_| String::new()).await;
    let raw = noise(2 * MIB, 31);
    for kind in &KINDS[1..] {
        let file = scene.packed("damaged", &raw, *kind);
        let whole = fs::read(&file).unwrap();
        fs::write(&file, &whole[..whole.len() - 1000]).unwrap();
        // Whoever uploaded half a file and took its digest.
        let payload =
            json!({"fwPackageUri": scene.rig.serve_file(&file), "fwPackageSha256": digest(&file)});
        scene
            .fails(&format!("cut-{}", kind.0), payload, "plain-corrupt")
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_installs_from_any_server_that_gives_its_bytes() {
    let plain_http = ImageServer::start_plain();
    let mut scene = Scene::new(|rig| {
        format!(
            "[fetch]\nca_file = \"{}\"\nread_timeout = \"1s\"\nretry_max = \"200ms\"\ngive_up_after = \"1m\"\n\
             insecure_hosts = [\"127.0.0.1\"]\n",
            rig.server.ca_file().display()
        )
    })
    .await;
    let mut number = 0;
    let mut next = |scene: &Scene, case: &str| {
        number += 1;
        // Many small chunks make an index that takes more than one request.
        let mut raw = noise(2 * MIB, 40 + number);
        raw.resize(SLOT, 0);
        let image = scene
            .rig
            .build(&format!("2.{number}.0"), raw, &["--chunk-size", "4K"]);
        let path = format!("/{case}");
        scene.rig.server.put(&path, image.file.as_path());
        (path.clone(), scene.rig.server.url(&path), image)
    };

    // Always the whole file, whatever part is asked for.
    let (path, uri, image) = next(&scene, "no-ranges");
    scene.rig.server.describe(&path, |file| file.ranges = false);
    scene
        .installs("no-ranges", json!({"fwPackageUri": uri}), &image.raw)
        .await;

    // The same, and nothing said about it: no length, no ETag, no date.
    let (path, uri, image) = next(&scene, "nothing-said");
    scene.rig.server.describe(&path, |file| {
        (file.ranges, file.length, file.etag, file.last_modified) = (false, false, None, None);
    });
    scene
        .installs("nothing-said", json!({"fwPackageUri": uri}), &image.raw)
        .await;

    // Ranges forgotten after the connection broke: it skips what it has.
    let (path, uri, image) = next(&scene, "ranges-forgotten");
    let middle = fs::metadata(&image.file).unwrap().len() / 2;
    scene.rig.server.always(&path, Fault::DropAt(middle));
    let (status, body) = scene
        .rig
        .invoke(json!({"fwPackageUri": uri, "updateId": "ranges-forgotten"}))
        .await;
    assert_eq!(status, 200, "{body}");
    let waits = |device: &mut Device| device.log().contains("trying again in").then_some(());
    scene.device.until("the break", waits).await;
    scene.rig.server.describe(&path, |file| file.ranges = false);
    scene.rig.server.clear_faults();
    let section = scene
        .device
        .until_final(&scene.rig, "ranges-forgotten")
        .await;
    assert_eq!(section["status"], "applyComplete", "{section:#}");
    assert!(scene.device.holds(scene.device.running(), &image.raw));

    // Redirected to another https address, and from a listed http host to one.
    let (_, uri, image) = next(&scene, "moved");
    scene
        .rig
        .server
        .always("/redirect", Fault::Redirect(307, uri));
    let redirect = scene.rig.server.url("/redirect");
    scene
        .installs("redirect", json!({"fwPackageUri": redirect}), &image.raw)
        .await;
    let (_, uri, image) = next(&scene, "moved-from-http");
    plain_http.always("/redirect", Fault::Redirect(302, uri));
    let redirect = plain_http.url_by_address("/redirect");
    scene
        .installs(
            "redirect-from-http",
            json!({"fwPackageUri": redirect}),
            &image.raw,
        )
        .await;

    // From a listed http host itself.
    let (_, _, image) = next(&scene, "plain-http");
    plain_http.put("/image", image.file.as_path());
    let uri = plain_http.url_by_address("/image");
    scene
        .installs("plain-http", json!({"fwPackageUri": uri}), &image.raw)
        .await;

    // Busy for a moment, then broken off a few times.
    let (path, uri, image) = next(&scene, "flaky");
    let busy = Fault::Status(503, &[("retry-after", "0")], "");
    scene.rig.server.faults(
        &path,
        [
            busy.clone(),
            busy,
            Fault::DropAfter(1000),
            Fault::EndAfter(0),
        ],
    );
    scene
        .rig
        .server
        .faults(&path, [Fault::DropAfter(40_000), Fault::DropAfter(70_000)]);
    scene
        .installs("flaky", json!({"fwPackageUri": uri}), &image.raw)
        .await;
    assert_eq!(
        scene.device.running(),
        Slot::B,
        "seven updates, each into the other slot"
    );
}
