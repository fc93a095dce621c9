//! Images that are not to be installed: untrusted, damaged, not for this device, no images at all.

use std::fs;

use serde_json::{Value, json};

use crate::{
    scene::{Expected, SLOT, Scene, at_header, hub_invoke, in_slot},
    support::rig::{Rig, fwupdatectl, noise, run},
};

/// A key of its own; the public half is `NAME.pub` beside it.
fn keygen(rig: &Rig, name: &str) -> String {
    let key = rig.dir.join(name);
    let mut command = fwupdatectl();
    run(command
        .args(["image", "keygen", "--no-password", "--output"])
        .arg(&key));
    key.to_str().unwrap().to_owned()
}

/// Where the parts of an image's file begin.
struct Parts {
    manifest: usize,
    index: usize,
    chunks: usize,
}

impl Parts {
    fn of(file: &[u8]) -> Self {
        let length = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap()) as usize;
        let index = 8 + length(4);
        Self {
            manifest: 8 + 20,
            index,
            chunks: index + 8 + length(index + 4),
        }
    }
}

fn flipped(file: &[u8], at: usize) -> Vec<u8> {
    let mut file = file.to_vec();
    file[at] ^= 0x10;
    file
}

/// Bytes of the first chunk in each other's place. Noise does not compress, so it decodes all the same.
fn swapped(file: &[u8], chunks: usize) -> Vec<u8> {
    let mut file = file.to_vec();
    let (first, rest) = file[chunks + 100..].split_at_mut(64);
    first.swap_with_slice(&mut rest[..64]);
    file
}

fn replaced(file: &[u8], from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let at = file
        .windows(from.len())
        .position(|part| part == from.as_bytes());
    let at = at.unwrap_or_else(|| panic!("no {from} in the image"));
    let mut file = file.to_vec();
    file[at..at + to.len()].copy_from_slice(to.as_bytes());
    file
}

fn payload(uri: &str) -> Value {
    json!({ "fwPackageUri": uri })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_nobody_trusted_signed_is_refused_and_touches_nothing() {
    let mut scene = Scene::new(|_| String::new()).await;
    let (rig, keys) = (&scene.rig, scene.device.dir.join("keys.d"));
    let revoked = scene.device.dir.join("revoked.d");
    fs::create_dir_all(&revoked).unwrap();
    let stranger = keygen(rig, "stranger.key");
    let retired = keygen(rig, "retired.key");
    fs::copy(format!("{retired}.pub"), keys.join("retired.pub")).unwrap();
    fs::copy(format!("{retired}.pub"), revoked.join("retired.pub")).unwrap();
    let built = |version: &str, more: &[&str]| {
        let image = rig.build(version, noise(1 << 20, 3), more);
        fs::read(image.file).unwrap()
    };
    let good = built("1.1.0", &[]);
    let raw = noise(1 << 20, 3);
    let manifest_end = Parts::of(&good).index;
    // The image without the signatures block: the lengths around it corrected.
    let unsigned = {
        let length = |at: usize| u32::from_le_bytes(good[at..at + 4].try_into().unwrap());
        let (manifest, frame) = (length(20), length(4) - length(24));
        let mut file = good.clone();
        file[4..8].copy_from_slice(&frame.to_le_bytes());
        file[24..28].fill(0);
        file.drain(28 + manifest as usize..manifest_end);
        file
    };
    let cases: Vec<(&str, Vec<u8>, Expected<'_>)> = vec![
        (
            "unsigned",
            unsigned,
            at_header("image-unsigned", "fwupdatectl image sign"),
        ),
        (
            "wrong-key",
            built("1.1.1", &["--key", &stranger]),
            at_header("signature-wrong-key", "sign it with one of them"),
        ),
        (
            "revoked-key",
            built("1.1.2", &["--key", &retired]),
            at_header("signature-revoked-key", "sign it with another key"),
        ),
        (
            "tampered-version",
            replaced(&good, "\"1.1.0\"", "\"9.1.0\""),
            at_header("signature-bad", "changed after signing"),
        ),
        (
            "tampered-board",
            replaced(&good, "demo-board", "evil-board"),
            at_header("signature-bad", "changed after signing"),
        ),
        (
            "damaged-signature",
            {
                // Another character of base64 in the last of the signature's four lines.
                let mut file = good.clone();
                let at = manifest_end - 40;
                file[at] = if file[at] == b'A' { b'B' } else { b'A' };
                file
            },
            at_header("signature-bad", "changed after signing"),
        ),
        (
            "plain-unsigned",
            raw.clone(),
            at_header("image-unsigned", "give fwPackageSha256"),
        ),
        (
            "plain-bad-signature-file",
            raw.clone(),
            at_header("signature-file-syntax", "minisign -S"),
        ),
        (
            "plain-signed-by-a-stranger",
            raw.clone(),
            at_header("signature-wrong-key", "sign it with one of them"),
        ),
    ];
    let detached = |key: &str| {
        let file = rig.dir.join("plain.img");
        fs::write(&file, &raw).unwrap();
        let mut minisign = std::process::Command::new("minisign");
        run(minisign.args(["-S", "-s", key, "-m"]).arg(&file));
        fs::read(rig.dir.join("plain.img.minisig")).unwrap()
    };
    scene.put(
        "plain-bad-signature-file.minisig",
        b"<html>nothing here</html>".as_slice(),
    );
    scene.put("plain-signed-by-a-stranger.minisig", detached(&stranger));
    for (case, file, expected) in cases {
        let uri = scene.put(case, file);
        scene.fails(case, payload(&uri), expected).await;
    }
    // With a revocation that cannot be read nothing is trusted.
    fs::write(revoked.join("torn.pub"), "RWQ").unwrap();
    let uri = scene.put("good", good);
    let expected = at_header("trust-revocation-unreadable", "repair or remove the file");
    scene
        .fails("torn-revocation", payload(&uri), expected)
        .await;
    // And with no key at all.
    fs::remove_dir_all(&keys).unwrap();
    fs::remove_file(revoked.join("torn.pub")).unwrap();
    let expected = at_header("trust-no-keys", "put the public key");
    scene.fails("no-keys", payload(&uri), expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_image_is_refused_and_never_becomes_a_slot_that_boots() {
    let mut scene = Scene::new(|_| String::new()).await;
    let good = fs::read(scene.image("1.1.0").file).unwrap();
    let Parts {
        manifest,
        index,
        chunks,
    } = Parts::of(&good);
    let middle = chunks + (good.len() - chunks) / 2;
    let cut = |length: usize| good[..length].to_vec();
    let cases = [
        (
            // The length in the head of its first block, which follows the frame's head of ten bytes.
            "corrupt-block-head",
            flipped(&good, chunks + 11),
            in_slot("image-chunk-decode", "fetch it again"),
        ),
        (
            "corrupt-chunk",
            flipped(&good, middle),
            in_slot("image-chunk-digest", "fetch it again"),
        ),
        (
            "swapped-bytes",
            swapped(&good, chunks),
            in_slot("image-chunk-digest", "fetch it again"),
        ),
        (
            "corrupt-index",
            flipped(&good, index + 100),
            at_header("image-index-digest", "fetch it again"),
        ),
        (
            "corrupt-index-head",
            flipped(&good, index),
            at_header("image-malformed", "fetch or build"),
        ),
        (
            "format-version",
            flipped(&good, 16),
            at_header("image-format-version", "update fwupdated"),
        ),
        (
            "huge-manifest",
            flipped(&good, 23),
            at_header("image-limit-exceeded", "damaged or hostile"),
        ),
        (
            "cut-in-head",
            cut(17),
            at_header("image-truncated", "fetch it again"),
        ),
        (
            "cut-in-manifest",
            cut(manifest + 50),
            at_header("image-truncated", "fetch it again"),
        ),
        (
            "cut-in-index",
            cut(index + 100),
            at_header("image-truncated", "fetch it again"),
        ),
        (
            "cut-after-index",
            cut(chunks),
            at_header("image-truncated", "upload it again"),
        ),
        (
            "cut-in-frame",
            cut(middle),
            at_header("image-truncated", "upload it again"),
        ),
        (
            "cut-last-byte",
            cut(good.len() - 1),
            at_header("image-truncated", "upload it again"),
        ),
    ];
    for (case, file, expected) in cases {
        let uri = scene.put(case, file);
        scene.fails(case, payload(&uri), expected).await;
    }
    // The same where the server does not say how long the file is: found out at the end of what comes.
    let uri = scene.put("cut-untold-length", cut(middle));
    let path = "/cut-untold-length";
    scene
        .rig
        .server
        .describe(path, |file| (file.length, file.ranges) = (false, false));
    let expected = in_slot("image-truncated", "upload it again");
    scene
        .fails("cut-untold-length", payload(&uri), expected)
        .await;

    // None of it did any harm: the good one installs.
    let uri = scene.put("good", good);
    let (status, body) = scene.rig.invoke(payload(&uri)).await;
    assert_eq!(status, 200, "{body}");
    let id = body["updateId"].as_str().unwrap().to_owned();
    let section = scene.device.until_final(&scene.rig, &id).await;
    assert_eq!(section["status"], "applyComplete", "{section:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_image_is_refused_in_words_that_say_what_came() {
    let mut scene = Scene::new(|_| String::new()).await;
    let digest = "0123456789abcdef".repeat(4);
    let html = "<!DOCTYPE html><html><body>Sign in to continue</body></html>";
    let noise_of = |size: usize| noise(size, 11);
    let with_digest = |uri: &str| json!({"fwPackageUri": uri, "fwPackageSha256": digest});
    let zip = [b"PK\x03\x04".as_slice(), &noise_of(5000)].concat();
    for (case, file, expected) in [
        (
            "random-bytes",
            noise_of(100_000),
            at_header("image-unsigned", "give fwPackageSha256"),
        ),
        ("html", html.into(), at_header("plain-text", "HTML")),
        (
            "json",
            br#"{"error":"gone"}"#.to_vec(),
            at_header("plain-text", "JSON"),
        ),
        ("zip", zip, at_header("plain-format-unsupported", "zip")),
        ("empty", Vec::new(), at_header("plain-empty", "empty")),
        (
            "one-byte",
            vec![0],
            at_header("image-unsigned", "give fwPackageSha256"),
        ),
    ] {
        let uri = scene.put(case, file);
        scene.fails(case, payload(&uri), expected).await;
    }
    // With a digest they are no better.
    for (case, file, expected) in [
        ("html-digest", html.into(), at_header("plain-text", "HTML")),
        (
            "empty-digest",
            Vec::new(),
            at_header("plain-empty", "empty"),
        ),
        (
            "random-digest",
            noise_of(1 << 20),
            in_slot("digest-mismatch", "the request names"),
        ),
        (
            "odd-digest",
            noise_of((1 << 20) + 17),
            at_header("plain-not-sectors", "512"),
        ),
    ] {
        let uri = scene.put(case, file);
        scene.fails(case, with_digest(&uri), expected).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_not_for_this_device_or_request_is_refused() {
    let mut scene = Scene::new(|_| String::new()).await;
    let rig = &scene.rig;
    let large = usize::try_from(SLOT).unwrap() + 512;
    let other_board = {
        let (raw, file) = (rig.dir.join("other.img"), rig.dir.join("other.img.zst"));
        fs::write(&raw, noise(1 << 20, 3)).unwrap();
        let mut command = fwupdatectl();
        command.args([
            "image",
            "build",
            "--version",
            "1.1.0",
            "--compatible",
            "other-board",
        ]);
        command.args(["--compatible", "another-board", "--level", "1"]);
        command.arg("--rootfs").arg(raw).arg("--output").arg(&file);
        run(command.arg("--key").arg(&rig.key));
        fs::read(file).unwrap()
    };
    let built = |version: &str, raw: Vec<u8>, more: &[&str]| {
        fs::read(rig.build(version, raw, more).file).unwrap()
    };
    let (old, oversized) = (
        built("0.9.9", noise(1 << 20, 3), &[]),
        built("1.9.0", noise(large, 3), &[]),
    );
    let good = fs::read(scene.image("1.1.0").file).unwrap();
    let uris = [
        ("other-board", other_board),
        ("downgrade", old),
        ("oversized", oversized),
        ("oversized-plain", noise(large, 3)),
        ("good", good),
    ]
    .map(|(name, file)| scene.put(name, file));
    let digest = "0123456789abcdef".repeat(4);
    let [other_board, old, oversized, plain, good] = uris;
    for (case, request, expected) in [
        (
            "other-board",
            payload(&other_board),
            at_header("image-incompatible", "correct trust.compatible"),
        ),
        (
            "downgrade",
            payload(&old),
            at_header("version-downgrade", "trust.downgrade"),
        ),
        // `force` skips waits, never checks.
        (
            "forced-downgrade",
            json!({"fwPackageUri": old, "force": true}),
            at_header("version-downgrade", "trust.downgrade"),
        ),
        (
            "oversized",
            payload(&oversized),
            at_header("image-too-large", "grow the partition"),
        ),
        (
            "oversized-plain",
            json!({"fwPackageUri": plain, "fwPackageSha256": digest}),
            at_header("image-too-large", "grow the partition"),
        ),
        (
            "wrong-version",
            json!({"fwPackageUri": good, "fwVersion": "1.2.0"}),
            at_header("version-mismatch", "correct one of them"),
        ),
        (
            "wrong-digest",
            json!({"fwPackageUri": good, "fwPackageSha256": digest}),
            in_slot("digest-mismatch", "the request names"),
        ),
    ] {
        scene.fails(case, request, expected).await;
    }
    // The operator who watches sees the end of it, on both sides.
    let watched = scene.hub(&hub_invoke(&other_board, &["--watch"]));
    assert_eq!(watched.0, 1, "{watched:?}");
    assert!(watched.1.contains("image-incompatible"), "{watched:?}");
    let local = scene.ctl(&["install", &old, "--watch"]);
    assert_eq!(local.0, 1, "{local:?}");
    assert!(local.1.contains("[version-downgrade]"), "{local:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_security_epoch_that_was_confirmed_never_goes_down() {
    let mut scene = Scene::new(|_| String::new()).await;
    let high = scene
        .rig
        .build("1.1.0", noise(1 << 20, 3), &["--security-epoch", "3"]);
    let uri = scene.rig.serve(&high);
    let (status, body) = scene.rig.invoke(payload(&uri)).await;
    assert_eq!(status, 200, "{body}");
    let id = body["updateId"].as_str().unwrap().to_owned();
    let section = scene.device.until_final(&scene.rig, &id).await;
    assert_eq!(section["status"], "applyComplete", "{section:#}");
    // A newer version, but from before the fix that raised the epoch.
    let low = scene
        .rig
        .build("1.2.0", noise(1 << 20, 4), &["--security-epoch", "2"]);
    let uri = scene.rig.serve(&low);
    let expected = at_header("security-epoch", "--security-epoch 3");
    scene.fails("lower-epoch", payload(&uri), expected).await;
}
