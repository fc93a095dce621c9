//! `fwupdatectl image` as a person or a build job uses it: real files, real exit codes.

#[path = "support/skip.rs"]
mod skip;

use std::{
    fs,
    io::Write,
    os::unix::fs::{FileExt, PermissionsExt},
    path::Path,
    process::{Command, Output, Stdio},
};

use tempfile::TempDir;

/// A folder with a key pair and a root file system that starts like an ext4: with zeros.
fn workshop() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let raw: Vec<u8> = (0..600_u32 * 1024)
        .map(|n| if n < 2048 { 0 } else { (n / 7) as u8 })
        .collect();
    fs::write(dir.path().join("rootfs.img"), raw).unwrap();
    good(&image(dir.path(), "keygen --output key --no-password"));
    dir
}

fn image(dir: &Path, line: &str) -> Output {
    image_with_input(dir, line, b"")
}

fn image_with_input(dir: &Path, line: &str, input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_fwupdatectl"))
        .arg("image")
        .args(line.split_whitespace())
        .current_dir(dir)
        .env_remove("SOURCE_DATE_EPOCH")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The program may end without reading all of it.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

#[track_caller]
fn good(output: &Output) -> String {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The message of a command that must end with `code`.
#[track_caller]
fn bad(output: &Output, code: i32) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{text}");
    text
}

const BUILD: &str = "build --rootfs rootfs.img --version 1.4.0 --compatible board-a board-b";

#[test]
fn an_image_is_built_signed_exported_and_verified() {
    let dir = workshop();
    let dir = dir.path();
    let text = good(&image(dir, &format!("{BUILD} --key key --output i.zst")));
    assert!(text.contains("firmware 1.4.0") && text.contains("signed by"));
    let text = good(&image(dir, "verify i.zst --key key.pub"));
    assert!(text.contains("good"));

    let bytes = fs::read(dir.join("i.zst")).unwrap();
    good(&image_with_input(dir, "verify - --key key.pub", &bytes));
    let json = good(&image_with_input(dir, "inspect --json -", &bytes));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["manifest"]["compatible"][1], "board-b");
    assert_eq!(json["fileSize"], bytes.len());
    let text = good(&image(dir, "inspect i.zst"));
    assert!(text.contains("board-a, board-b") && text.contains("not checked"));

    let manifest = good(&image(dir, "manifest i.zst"));
    good(&image(dir, "manifest i.zst --output m.json"));
    assert_eq!(fs::read_to_string(dir.join("m.json")).unwrap(), manifest);
    let mode = fs::metadata(dir.join("i.zst"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o444, 0o444, "an image is for everyone to read");
    let left: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with('.'))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_boot_partition_comes_first_and_holes_are_counted_whether_sparse_or_not() {
    let dir = workshop();
    let dir = dir.path();
    let boot: Vec<u8> = (0..200_u32 * 1024).map(|n| (n / 3) as u8).collect();
    fs::write(dir.join("boot.img"), &boot).unwrap();
    // Nearly all of it a hole.
    let rootfs = fs::File::create(dir.join("sparse.img")).unwrap();
    rootfs.set_len(40 << 20).unwrap();
    rootfs.write_all_at(&boot, 38 << 20).unwrap();
    let build = "build --created 2026-01-02T03:04:05Z --version 1 --compatible b --level 1";
    let line = format!("{build} --boot boot.img --rootfs sparse.img --output i.zst");
    good(&image(dir, &line));
    good(&image(dir, "verify i.zst --unsigned"));
    let json = good(&image(dir, "inspect --json i.zst"));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let images = &json["manifest"]["images"];
    assert_eq!(
        (&images[0]["target"], &images[0]["size"]),
        (&"boot".into(), &204_800.into())
    );
    assert_eq!(images[1]["size"], 40_u64 << 20);
    assert!(json["chunks"]["holeBytes"].as_u64().unwrap() > 39 << 20);
    assert!(json["chunks"]["frames"].as_u64() < json["chunks"]["count"].as_u64());
    assert!(json["fileSize"].as_u64().unwrap() < 1 << 20);
    let text = good(&image(dir, "inspect i.zst"));
    assert!(text.contains("boot") && text.contains("holes"), "{text}");

    // The same content without holes in the file gives the same image.
    let rootfs = fs::File::create(dir.join("small.img")).unwrap();
    rootfs.set_len(3 << 20).unwrap();
    rootfs.write_all_at(&boot, 2 << 20).unwrap();
    let full = fs::read(dir.join("small.img")).unwrap();
    fs::write(dir.join("full.img"), full).unwrap();
    for name in ["small", "full"] {
        let line = format!("{build} --rootfs {name}.img --output {name}.zst");
        good(&image(dir, &line));
    }
    let read = |name: &str| fs::read(dir.join(name)).unwrap();
    assert!(read("small.zst") == read("full.zst"));
}

#[test]
fn the_same_source_date_gives_the_same_file() {
    let dir = workshop();
    let dir = dir.path();
    let created = "--created 2026-01-02T03:04:05Z";
    for name in ["one", "two"] {
        good(&image(
            dir,
            &format!("{BUILD} {created} --threads 3 --output {name}"),
        ));
    }
    let read = |name: &str| fs::read(dir.join(name)).unwrap();
    assert!(read("one") == read("two"));
    let by_environment = Command::new(env!("CARGO_BIN_EXE_fwupdatectl"))
        .arg("image")
        .args(BUILD.split_whitespace())
        .args(["--output", "three"])
        .current_dir(dir)
        .env("SOURCE_DATE_EPOCH", "1767323045")
        .output()
        .unwrap();
    good(&by_environment);
    assert!(read("three") == read("one"));
}

#[test]
fn signatures_are_added_later_by_key_and_from_other_tools() {
    let dir = workshop();
    let dir = dir.path();
    good(&image(dir, &format!("{BUILD} --output i.zst")));
    fs::set_permissions(dir.join("i.zst"), fs::Permissions::from_mode(0o640)).unwrap();
    let text = bad(&image(dir, "verify i.zst --key key.pub"), 1);
    assert!(text.contains("[image-unsigned]"), "{text}");
    good(&image(dir, "verify i.zst --unsigned"));

    good(&image(dir, "sign i.zst --key key"));
    good(&image(dir, "verify i.zst --key key.pub"));
    let mode = fs::metadata(dir.join("i.zst"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o640, "signing keeps the mode");

    // Debian's minisign over the exported manifest, with a second key.
    good(&image(dir, "keygen --output second --no-password"));
    good(&image(dir, "manifest i.zst --output m.json"));
    let minisign = Command::new("minisign")
        .args(["-S", "-W", "-s", "second", "-m", "m.json"])
        .current_dir(dir)
        .output();
    let Ok(minisign) = minisign else {
        skip::skipped(format_args!(
            "`minisign` is not installed, its part of the test did not run"
        ));
        return;
    };
    good(&minisign);
    good(&image(dir, "sign i.zst --signature m.json.minisig"));
    let both = "verify i.zst --key key.pub --key second.pub --threshold 2";
    good(&image(dir, both));
    // Once more by the first key replaces its signature.
    let text = good(&image(dir, "sign i.zst --key key"));
    assert!(text.contains("2 signature(s)"), "{text}");
    good(&image(dir, both));
}

#[test]
fn secret_keys_are_private_protected_and_never_overwritten() {
    let dir = workshop();
    let dir = dir.path();
    let mode = fs::metadata(dir.join("key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let text = bad(&image(dir, "keygen --output key --no-password"), 2);
    assert!(text.contains("never overwritten"), "{text}");
    // No terminal to ask on, so the choice must be made.
    let text = bad(&image(dir, "keygen --output other"), 2);
    assert!(text.contains("--no-password"), "{text}");
    assert!(!dir.join("other").exists() && !dir.join("other.pub").exists());

    fs::write(dir.join("password"), "correct horse\n").unwrap();
    fs::write(dir.join("wrong"), "battery\n").unwrap();
    good(&image(dir, "keygen --output safe --password-file password"));
    good(&image(dir, &format!("{BUILD} --output i.zst")));
    let text = bad(&image(dir, "sign i.zst --key safe"), 2);
    assert!(text.contains("--password-file"), "{text}");
    bad(
        &image(dir, "sign i.zst --key safe --password-file wrong"),
        2,
    );
    good(&image(
        dir,
        "sign i.zst --key safe --password-file password",
    ));
    good(&image(dir, "verify i.zst --key safe.pub"));
    // A secret key in the place of a public one is found before it does harm.
    let text = bad(&image(dir, "verify i.zst --key safe"), 2);
    assert!(text.contains("SECRET"), "{text}");
}

#[test]
fn exit_codes_tell_a_bad_image_from_a_bad_command() {
    let dir = workshop();
    let dir = dir.path();
    good(&image(dir, &format!("{BUILD} --key key --output i.zst")));
    good(&image(dir, "keygen --output stranger --no-password"));
    let text = bad(&image(dir, "verify i.zst --key stranger.pub"), 1);
    assert!(
        text.contains("i.zst: ") && text.contains("[signature-wrong-key]"),
        "{text}"
    );

    let whole = fs::read(dir.join("i.zst")).unwrap();
    fs::write(dir.join("cut.zst"), &whole[..whole.len() - 100]).unwrap();
    let text = bad(&image(dir, "verify cut.zst --key key.pub"), 1);
    assert!(text.contains("[image-truncated]"), "{text}");
    let text = bad(&image(dir, "sign cut.zst --key key"), 1);
    assert!(text.contains("[image-truncated]"), "{text}");

    bad(&image(dir, "verify missing.zst --key key.pub"), 2);
    bad(&image(dir, "verify i.zst --key missing.pub"), 2);
    bad(&image(dir, "verify i.zst"), 2);
    bad(&image(dir, "verify i.zst --key key.pub --threshold 2"), 2);
    bad(&image(dir, "verify i.zst --key key.pub --threshold 0"), 2);
    bad(&image(dir, "verify . --unsigned"), 2);
    for command in ["verify --unsigned", "inspect", "manifest"] {
        let text = bad(&image(dir, &format!("{command} key.pub")), 1);
        assert!(text.contains("[plain-text]"), "{command}: {text}");
        let text = bad(&image(dir, &format!("{command} /dev/null")), 1);
        assert!(text.contains("[plain-empty]"), "{command}: {text}");
    }
    let text = bad(&image(dir, "manifest rootfs.img"), 1);
    assert!(text.contains("[image-not-recognised]"), "{text}");
    let text = bad(&image(dir, "sign i.zst --signature key.pub"), 2);
    assert!(text.contains("key.pub is no signature"), "{text}");
    bad(
        &image(
            dir,
            "build --rootfs /dev/null --version 1 --compatible x --output o",
        ),
        2,
    );
    fs::write(dir.join("odd.img"), [1; 1000]).unwrap();
    let text = bad(
        &image(
            dir,
            "build --rootfs odd.img --version 1 --compatible x --output o",
        ),
        2,
    );
    assert!(text.contains("multiple of 512"), "{text}");
    assert!(!dir.join("o").exists(), "a failed build leaves nothing");
}

#[test]
fn a_plain_image_gets_its_signatures_in_a_file_beside_it_that_minisign_takes() {
    let workshop = workshop();
    let dir = workshop.path();
    good(&image(dir, "keygen --output second --no-password"));
    let raw = fs::read(dir.join("rootfs.img")).unwrap();
    let text = good(&image(dir, "sign rootfs.img --key key"));
    assert!(text.contains("rootfs.img.minisig"), "{text}");
    let mut minisign = Command::new("minisign");
    minisign.args(["-V", "-p", "key.pub", "-m", "rootfs.img"]);
    good(&minisign.current_dir(dir).output().unwrap());
    // Several keys: one signature after the other, for a threshold.
    good(&image(dir, "sign rootfs.img --key key --key second"));
    let signatures = fs::read_to_string(dir.join("rootfs.img.minisig")).unwrap();
    assert_eq!(signatures.lines().count(), 8, "{signatures}");
    assert!(fs::read(dir.join("rootfs.img")).unwrap() == raw);
    // A signature made elsewhere has its place already.
    let text = bad(
        &image(dir, "sign rootfs.img --signature rootfs.img.minisig"),
        2,
    );
    assert!(text.contains("into rootfs.img.minisig"), "{text}");
    // What is no image is not signed by mistake.
    fs::write(dir.join("notes.txt"), "no image").unwrap();
    let text = bad(&image(dir, "sign notes.txt --key key"), 1);
    assert!(text.contains("[plain-text]"), "{text}");
}

#[test]
fn a_plain_image_is_verified_by_the_signatures_beside_it_and_by_unpacking_it() {
    let workshop = workshop();
    let dir = workshop.path();
    good(&image(dir, "keygen --output second --no-password"));
    for (packer, name) in [
        ("gzip", "rootfs.img.gz"),
        ("xz", "rootfs.img.xz"),
        ("bzip2", "rootfs.img.bz2"),
        ("zstd", "rootfs.img.zst"),
        ("raw", "rootfs.img"),
    ] {
        if packer != "raw" {
            let mut pack = Command::new(packer);
            good(
                &pack
                    .args(["-k", "rootfs.img"])
                    .current_dir(dir)
                    .output()
                    .unwrap(),
            );
        }
        let text = bad(&image(dir, &format!("verify {name} --key key.pub")), 1);
        assert!(text.contains("[image-unsigned]"), "{text}");
        let text = good(&image(dir, &format!("verify {name} --unsigned")));
        assert!(
            text.contains(&format!("({packer})")) && text.contains("NOT"),
            "{text}"
        );
        let text = good(&image(dir, &format!("inspect {name}")));
        assert!(text.contains("none beside it"), "{text}");

        good(&image(dir, &format!("sign {name} --key key --key second")));
        let both = format!("verify {name} --key key.pub --key second.pub --threshold 2");
        let text = good(&image(dir, &both));
        assert!(text.contains("600.00 KiB, signed by"), "{text}");
        let sum = Command::new("sha256sum")
            .arg(name)
            .current_dir(dir)
            .output();
        let sum = good(&sum.unwrap());
        assert!(text.contains(sum.split(' ').next().unwrap()), "{text}");
        let text = good(&image(dir, &format!("inspect --json {name}")));
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["plain"], packer);
        assert_eq!(json["signatureFile"], format!("{name}.minisig"));

        // Changed, so that neither the signature fits nor, where there is a checksum, the packing.
        let whole = fs::read(dir.join(name)).unwrap();
        let mut other = whole.clone();
        other[whole.len() / 2] ^= 1;
        fs::write(dir.join(name), &other).unwrap();
        let text = bad(&image(dir, &both), 1);
        let expected = match packer {
            "raw" => "[signature-bad]",
            _ => "[plain-corrupt]",
        };
        assert!(text.contains(expected), "{packer}: {text}");
        // By a stranger only.
        fs::write(dir.join(name), &whole).unwrap();
        good(&image(dir, &format!("sign {name} --key second")));
        let text = bad(&image(dir, &format!("verify {name} --key key.pub")), 1);
        assert!(text.contains("[signature-wrong-key]"), "{text}");
    }
    let packed = fs::read(dir.join("rootfs.img.gz")).unwrap();
    good(&image_with_input(dir, "verify - --unsigned", &packed));
    let text = bad(&image_with_input(dir, "verify - --key key.pub", &packed), 2);
    assert!(text.contains("beside"), "{text}");
}
