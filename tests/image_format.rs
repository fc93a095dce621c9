//! The image format from outside: what other tools make of our files and we of theirs, and what is
//! left of an image that was cut off, changed or forged.

#[path = "support/skip.rs"]
mod skip;

use std::{
    fs,
    io::{self, Read},
    num::NonZeroUsize,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use fwupdated::{
    image::{
        BuildOptions, ChunkDecoder, DetachedSignatures, Header, ImageError, ImageKind,
        ManifestFrame, Part, Signature, Signatures, SigningKey, TrustError, TrustStore, build,
        check_payload, plain_decoder, sign_again, signing::NewKey,
    },
    update::{digest::Sha256, failure::Coded},
};
use proptest::prelude::*;
use tempfile::TempDir;

// ---- making images ------------------------------------------------------------------------------

/// Bytes like those of a file system: runs of zeros, text-like and random stretches.
fn raw_image(sectors: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut out = Vec::with_capacity(sectors * 512);
    while out.len() < sectors * 512 {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let kind = state >> 62;
        for n in 0..512_u64 {
            out.push(match kind {
                0 => 0,
                1 => b"firmware "[(n % 9) as usize],
                _ => {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(n);
                    (state >> 33) as u8
                }
            });
        }
    }
    out
}

fn options(chunk_size: u32, threads: usize) -> BuildOptions {
    let created = "2026-01-02T03:04:05Z".parse().unwrap();
    BuildOptions {
        chunk_size,
        level: 3,
        security_epoch: 7,
        threads: NonZeroUsize::new(threads).unwrap(),
        ..BuildOptions::new(
            "weather station",
            "1.4.0",
            &["raspberrypi,4-model-b"],
            created,
        )
    }
}

fn parts(raw: &[u8]) -> Vec<Part<&[u8]>> {
    vec![Part {
        target: "rootfs",
        input: raw,
        size: raw.len() as u64,
    }]
}

fn image_with(raw: &[u8], options: &BuildOptions, keys: &[&SigningKey]) -> Vec<u8> {
    let mut frames = Vec::new();
    let built = build(parts(raw), options, &mut frames, &mut |_| ()).unwrap();
    let mut signatures = Signatures::none();
    for key in keys {
        signatures
            .add(key.sign(built.manifest_bytes(), "test").unwrap())
            .unwrap();
    }
    let mut file = Vec::new();
    let len = built
        .assemble(&signatures, &mut frames.as_slice(), &mut file)
        .unwrap();
    assert_eq!(len, file.len() as u64);
    file
}

fn image(raw: &[u8], keys: &[&SigningKey]) -> Vec<u8> {
    image_with(raw, &options(4096, 2), keys)
}

/// A key, ready to sign, and its two files.
fn key() -> (SigningKey, NewKey) {
    let new = SigningKey::generate(None).unwrap();
    (SigningKey::parse(&new.secret, None).unwrap(), new)
}

/// Folders of keys as on a device.
struct Keys {
    dir: TempDir,
}

impl Keys {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["keys.d", "revoked.d"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        Self { dir }
    }

    fn trusting(keys: &[&NewKey]) -> Self {
        let all = Self::new();
        for (n, key) in keys.iter().enumerate() {
            all.put("keys.d", &format!("{n}.pub"), key.public.as_bytes());
        }
        all
    }

    fn put(&self, folder: &str, name: &str, content: &[u8]) {
        fs::write(self.dir.path().join(folder).join(name), content).unwrap();
    }

    fn try_load(&self) -> Result<TrustStore, TrustError> {
        let folder = |name: &str| self.dir.path().join(name);
        TrustStore::load(
            &[folder("missing.d"), folder("keys.d")],
            &[folder("revoked.d"), folder("also-missing.d")],
        )
    }

    fn load(&self) -> TrustStore {
        self.try_load().unwrap()
    }
}

fn store(keys: &[&NewKey]) -> TrustStore {
    Keys::trusting(keys).load()
}

// ---- reading images -----------------------------------------------------------------------------

fn header_of(mut file: &[u8]) -> Result<Header, ImageError> {
    ManifestFrame::read(&mut file)?
        .accept_unsigned()?
        .read_index(&mut file)
}

/// Reads the image as the daemon does and gives what would be written to the slot.
fn install(mut file: &[u8], trust: &TrustStore) -> Result<Vec<u8>, ImageError> {
    let header = ManifestFrame::read(&mut file)?
        .verify(trust, 1)?
        .read_index(&mut file)?;
    let (mut decoder, mut raw, mut slot) = (ChunkDecoder::new(), Vec::new(), Vec::new());
    for chunk in header.chunks() {
        let (frame, rest) = file
            .split_at_checked(chunk.frame_len as usize)
            .ok_or(ImageError::Truncated("a chunk"))?;
        file = rest;
        let prefix = &slot[slot.len() - chunk.prefix_len as usize..];
        decoder.decode_chunk(&chunk, prefix, frame, &mut raw)?;
        assert_eq!(chunk.raw_offset, slot.len() as u64);
        slot.extend_from_slice(&raw);
    }
    Ok(slot)
}

/// Everything that `image verify` checks.
fn verify(mut file: &[u8], trust: &TrustStore) -> Result<(), ImageError> {
    let header = ManifestFrame::read(&mut file)?
        .verify(trust, 1)?
        .read_index(&mut file)?;
    check_payload(&header, &mut file, &mut |_| ())
}

/// Runs a tool in a folder; `None`, loudly, if it is not installed.
fn tool(dir: &Path, name: &str, args: &[&str]) -> Option<std::process::Output> {
    let run = Command::new(name)
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::null())
        .output();
    match run {
        Ok(output) => Some(output),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            skip::skipped(format_args!(
                "`{name}` is not installed, its part of the test did not run"
            ));
            None
        }
        Err(error) => panic!("cannot run {name}: {error}"),
    }
}

#[track_caller]
fn assert_ok(output: &std::process::Output) {
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

// ---- round trips --------------------------------------------------------------------------------

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn what_was_built_is_what_is_installed(
        sectors in 1..400_usize, seed in any::<u64>(), chunk in 1..9_u32, threads in 1..5_usize,
        signed in any::<bool>(),
    ) {
        let raw = raw_image(sectors, seed);
        let (signing, new) = key();
        let keys: &[&SigningKey] = if signed { &[&signing] } else { &[] };
        let file = image_with(&raw, &options(chunk * 4096, threads), keys);

        let header = header_of(&file).unwrap();
        prop_assert_eq!(header.file_len(), file.len() as u64);
        prop_assert_eq!(header.manifest().payload.sha256, Sha256::of(&raw));
        prop_assert_eq!(header.manifest().security_epoch, 7);
        prop_assert!(zstd::decode_all(file.as_slice()).unwrap() == raw);
        let trust = store(&[&new]);
        if signed {
            prop_assert!(install(&file, &trust).unwrap() == raw);
            verify(&file, &trust).unwrap();
        } else {
            prop_assert_eq!(install(&file, &trust).unwrap_err().code(), "image-unsigned");
        }
    }
}

#[test]
fn the_same_input_gives_the_same_bytes_whatever_the_threads() {
    let raw = raw_image(900, 1);
    let one = image_with(&raw, &options(8192, 1), &[]);
    for threads in [1, 2, 7] {
        assert!(image_with(&raw, &options(8192, threads), &[]) == one);
    }
}

#[test]
fn signing_later_gives_the_file_that_signing_at_once_gives() {
    let raw = raw_image(100, 2);
    let (signing, new) = key();
    let unsigned = image(&raw, &[]);
    let header = header_of(&unsigned).unwrap();
    let mut signatures = Signatures::none();
    signatures
        .add(signing.sign(header.manifest_bytes(), "test").unwrap())
        .unwrap();
    let mut frames = &unsigned[header.payload_offset() as usize..];
    let mut signed = Vec::new();
    sign_again(&header, &signatures, &mut frames, &mut signed).unwrap();

    verify(&signed, &store(&[&new])).unwrap();
    let later = header_of(&signed).unwrap();
    assert_eq!(later.digest(), header.digest());
    assert_eq!(later.signatures(), &signatures);
    // Signatures contain random bytes, but the same number of them.
    assert_eq!(signed.len(), image(&raw, &[&signing]).len());
}

#[test]
fn the_seek_table_gives_a_generic_reader_the_right_places() {
    let raw = raw_image(77, 3);
    let (signing, _) = key();
    let file = image(&raw, &[&signing]);
    // As zstd_seekable_compression_format.md says, from the end of the file.
    let u32_at = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap());
    let foot = file.len() - 9;
    assert_eq!(u32_at(foot + 5), 0x8F92_EAB1);
    assert_eq!(file[foot + 4], 0, "no checksums, no reserved bits");
    let frames = u32_at(foot) as usize;
    let table = foot - frames * 8;
    assert_eq!(u32_at(table - 8), 0x184D_2A5E);
    assert_eq!(u32_at(table - 4) as usize, frames * 8 + 9);

    let (mut at, mut decoded, mut payload) = (0, 0, 0);
    for entry in 0..frames {
        let compressed = u32_at(table + entry * 8) as usize;
        let len = u32_at(table + entry * 8 + 4) as usize;
        let frame = zstd::decode_all(&file[at..at + compressed]).unwrap();
        assert!(frame == raw[decoded..decoded + len]);
        payload += usize::from(len > 0);
        (at, decoded) = (at + compressed, decoded + len);
    }
    assert_eq!((at, decoded, payload), (table - 8, raw.len(), frames - 2));
}

#[test]
fn impossible_builds_are_refused_in_words() {
    let refused = |raw: &[u8], size: usize, options: &BuildOptions| {
        let mut frames = Vec::new();
        let part = Part {
            size: size as u64,
            ..parts(raw).remove(0)
        };
        build(vec![part], options, &mut frames, &mut |_| ())
            .unwrap_err()
            .to_string()
    };
    let good = options(4096, 2);
    let raw = raw_image(64, 4);
    assert!(refused(&raw[..1000], 1000, &good).contains("multiple of 512"));
    assert!(refused(&[], 0, &good).contains("multiple of 512"));
    assert!(refused(&raw, raw.len() + 8192, &good).contains("ended after 32768"));
    for chunk in [0, 2047, 262_145, 8 << 20] {
        assert!(refused(&raw, raw.len(), &options(chunk, 1)).contains("chunk size"));
    }
    for broken in [
        BuildOptions {
            level: 99,
            ..good.clone()
        },
        BuildOptions {
            version: "1 4".to_owned(),
            ..good.clone()
        },
        BuildOptions {
            compatible: Vec::new(),
            ..good.clone()
        },
        BuildOptions {
            name: "x".repeat(200),
            ..good
        },
    ] {
        refused(&raw, raw.len(), &broken);
    }
}

#[test]
fn a_failing_output_ends_the_build_with_its_error() {
    struct Full(usize);
    impl io::Write for Full {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            self.0 = self
                .0
                .checked_sub(buf.len())
                .ok_or(io::ErrorKind::StorageFull)?;
            Ok(buf.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let raw = raw_image(20_000, 5);
    let error = build(
        parts(&raw),
        &options(4096, 3),
        &mut Full(1 << 20),
        &mut |_| (),
    )
    .unwrap_err();
    assert!(
        matches!(&error, ImageError::Write(cause) if cause.kind() == io::ErrorKind::StorageFull),
        "{error:?}"
    );
}

// ---- other people's tools -----------------------------------------------------------------------

#[test]
fn the_zstd_tool_gives_the_raw_image() {
    let raw = raw_image(3000, 6);
    let (signing, _) = key();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("i.zst"), image(&raw, &[&signing])).unwrap();
    let Some(output) = tool(dir.path(), "zstd", &["-dc", "i.zst"]) else {
        return;
    };
    assert_ok(&output);
    assert!(output.stdout == raw);
    assert_ok(&tool(dir.path(), "zstd", &["-t", "i.zst"]).unwrap());
}

#[test]
fn minisign_accepts_our_signature_and_uses_our_key() {
    let (signing, new) = key();
    let file = image(&raw_image(9, 7), &[&signing]);
    let header = header_of(&file).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).unwrap();
    put("manifest.json", header.manifest_bytes());
    put(
        "manifest.json.minisig",
        &header.signatures().iter().next().unwrap().bytes,
    );
    put("k.pub", new.public.as_bytes());
    put("k", new.secret.as_bytes());

    let verify = ["-V", "-p", "k.pub", "-m", "manifest.json"];
    let Some(output) = tool(dir.path(), "minisign", &verify) else {
        return;
    };
    assert_ok(&output);
    let sign = ["-S", "-W", "-s", "k", "-m", "manifest.json"];
    assert_ok(&tool(dir.path(), "minisign", &sign).unwrap());
    let theirs = fs::read(dir.path().join("manifest.json.minisig")).unwrap();
    assert!(trusts(&new.public, header.manifest_bytes(), &theirs));
}

/// True when a file of signatures by other tools convinces a store with this one key.
fn trusts(public: &str, message: &[u8], signature: &[u8]) -> bool {
    let keys = Keys::new();
    keys.put("keys.d", "k.pub", public.as_bytes());
    let mut signatures = Signatures::none();
    signatures
        .add(Signature::from_file_content(signature).unwrap())
        .unwrap();
    keys.load().verify(message, &signatures, 1).is_ok()
}

#[test]
fn signatures_and_keys_made_by_minisign_are_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let Some(output) = tool(
        dir.path(),
        "minisign",
        &["-G", "-W", "-p", "k.pub", "-s", "k"],
    ) else {
        return;
    };
    assert_ok(&output);
    let message = b"{\"a\": \"manifest\"}\n";
    fs::write(dir.path().join("m"), message).unwrap();
    let public = fs::read_to_string(dir.path().join("k.pub")).unwrap();
    // Prehashed (the default) and the older kind.
    for kind in ["-H", "-l"] {
        assert_ok(
            &tool(
                dir.path(),
                "minisign",
                &["-S", kind, "-W", "-s", "k", "-m", "m"],
            )
            .unwrap(),
        );
        let signature = fs::read(dir.path().join("m.minisig")).unwrap();
        assert!(trusts(&public, message, &signature), "{kind}");
        assert!(!trusts(&public, b"other", &signature), "{kind}");
        // The key alone, without its comment line.
        let line = public.lines().last().unwrap();
        assert!(trusts(line, message, &signature));
    }
    let secret = fs::read_to_string(dir.path().join("k")).unwrap();
    let signing = SigningKey::parse(&secret, None).unwrap();
    let ours = signing.sign(&message[..], "test").unwrap();
    assert!(trusts(&public, message, &ours.bytes));
}

#[test]
fn ecdsa_signatures_made_by_openssl_are_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let openssl = |args: &str| {
        let args: Vec<_> = args.split(' ').collect();
        tool(dir.path(), "openssl", &args).inspect(assert_ok)
    };
    if openssl("ecparam -name prime256v1 -genkey -noout -out k").is_none() {
        return;
    }
    openssl("ec -in k -pubout -out k.pub");
    fs::write(dir.path().join("m"), b"manifest").unwrap();
    let public = fs::read_to_string(dir.path().join("k.pub")).unwrap();
    // DER integers differ in length from signature to signature.
    for _ in 0..8 {
        openssl("dgst -sha256 -sign k -out m.sig m");
        let signature = fs::read(dir.path().join("m.sig")).unwrap();
        assert!(trusts(&public, b"manifest", &signature));
        assert!(!trusts(&public, b"manifesT", &signature));
    }
    // Another curve is refused by name, not by failing to verify later.
    openssl("ecparam -name secp384r1 -genkey -noout -out k3");
    openssl("ec -in k3 -pubout -out k3.pub");
    let keys = Keys::new();
    keys.put(
        "keys.d",
        "k3.pub",
        &fs::read(dir.path().join("k3.pub")).unwrap(),
    );
    assert!(keys.load().warnings()[0].contains("prime256v1"));
}

// ---- trust --------------------------------------------------------------------------------------

#[test]
fn each_reason_not_to_trust_has_its_own_code_and_names_keys() {
    let ((good, good_new), (other, other_new)) = (key(), key());
    let raw = raw_image(8, 8);
    let by_good = image(&raw, &[&good]);
    let code = |file: &[u8], store: &TrustStore| {
        let error = install(file, store).unwrap_err();
        (error.code(), error.to_string())
    };

    let store_good = store(&[&good_new]);
    install(&by_good, &store_good).unwrap();
    assert_eq!(code(&image(&raw, &[]), &store_good).0, "image-unsigned");

    let (wrong, text) = code(&image(&raw, &[&other]), &store_good);
    assert_eq!(wrong, "signature-wrong-key");
    assert!(text.contains(&other.id().to_string()) && text.contains(&good.id().to_string()));

    let (none, text) = code(&by_good, &Keys::new().load());
    assert_eq!(none, "trust-no-keys");
    assert!(text.contains("keys.d"));

    // A revoked key loses although its file is still among the trusted, under any name.
    let keys = Keys::trusting(&[&good_new, &other_new]);
    let line = good_new.public.lines().last().unwrap();
    keys.put("revoked.d", "leaked.pub", line.as_bytes());
    let (revoked, text) = code(&by_good, &keys.load());
    assert_eq!(revoked, "signature-revoked-key");
    assert!(text.contains(&good.id().to_string()));
    install(&image(&raw, &[&good, &other]), &keys.load()).unwrap();
}

#[test]
fn a_changed_manifest_names_the_key_whose_signature_no_longer_fits() {
    let (signing, new) = key();
    let mut file = image(&raw_image(8, 9), &[&signing]);
    let at = file.windows(5).position(|w| w == b"1.4.0").unwrap();
    file[at] = b'9';
    let error = install(&file, &store(&[&new])).unwrap_err();
    assert_eq!(error.code(), "signature-bad");
    assert!(error.to_string().contains(&new.id.to_string()));
}

#[test]
fn the_threshold_counts_keys_not_signatures() {
    let ((a, a_new), (b, b_new), (_, c_new)) = (key(), key(), key());
    let trust = store(&[&a_new, &b_new, &c_new]);
    let frame = |keys: &[&SigningKey]| {
        ManifestFrame::read(&mut image(&raw_image(8, 10), keys).as_slice()).unwrap()
    };
    let both = frame(&[&a, &b]).verify(&trust, 2).unwrap();
    assert_eq!(both.signed_by().len(), 2);
    let error = frame(&[&a, &b]).verify(&trust, 3).unwrap_err();
    assert_eq!(error.code(), "signature-threshold");

    // The same key twice: under another id in its file and its signature it is still one key.
    let renamed = |text: &str| {
        use base64::{Engine, engine::general_purpose::STANDARD};
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        let mut bytes = STANDARD.decode(&lines[1]).unwrap();
        bytes[2..10].fill(0x42);
        lines[1] = STANDARD.encode(bytes);
        lines.join("\n") + "\n"
    };
    let keys = Keys::trusting(&[&a_new]);
    keys.put("keys.d", "alias.pub", renamed(&a_new.public).as_bytes());
    let one = frame(&[&a]);
    let mut signatures = one.signatures().clone();
    let text = String::from_utf8(signatures.iter().next().unwrap().bytes.clone()).unwrap();
    signatures
        .add(Signature::from_file_content(renamed(&text).as_bytes()).unwrap())
        .unwrap();
    assert_eq!(signatures.iter().count(), 2);
    let error = keys
        .load()
        .verify(one.manifest_bytes(), &signatures, 2)
        .unwrap_err();
    assert_eq!(error.code(), "signature-threshold");
    // A threshold of zero is one.
    assert!(keys.load().verify(b"other", &signatures, 0).is_err());
}

#[test]
fn a_broken_key_file_is_named_and_a_broken_revocation_refuses_everything() {
    let (signing, new) = key();
    let keys = Keys::trusting(&[&new]);
    keys.put("keys.d", "broken.pub", b"hello");
    keys.put("keys.d", "readme.txt", b"not a key, not looked at");
    fs::create_dir(keys.dir.path().join("keys.d/folder.pub")).unwrap();
    let trust = keys.load();
    assert_eq!(trust.warnings().len(), 2, "{:?}", trust.warnings());
    assert!(trust.warnings()[0].contains("broken.pub"));
    install(&image(&raw_image(8, 11), &[&signing]), &trust).unwrap();

    keys.put("revoked.d", "broken.pub", b"hello");
    let error = keys.try_load().unwrap_err();
    assert_eq!(error.code(), "trust-revocation-unreadable");
}

#[test]
fn a_detached_signature_is_checked_while_the_bytes_pass() {
    let ((a, a_new), (b, b_new)) = (key(), key());
    let file = raw_image(500, 12);
    let sign = |key: &SigningKey| key.sign(file.as_slice(), "plain").unwrap().bytes;
    let check = |trust: &TrustStore, signature: &[u8], threshold, bytes: &[u8]| {
        let signatures = DetachedSignatures::parse(signature)?;
        let mut verifier = trust.verify_detached(&signatures, threshold)?;
        for part in bytes.chunks(1000) {
            verifier.update(part);
        }
        verifier.finish()
    };
    let code = |result: Result<_, TrustError>| result.map_or_else(|e| e.code(), |_: Vec<_>| "ok");
    let trust = store(&[&a_new]);
    assert_eq!(check(&trust, &sign(&a), 1, &file).unwrap(), [a.id()]);
    assert_eq!(
        code(check(&trust, &sign(&a), 1, &file[1..])),
        "signature-bad"
    );
    assert_eq!(
        code(check(&trust, &sign(&b), 1, &file)),
        "signature-wrong-key"
    );
    assert_eq!(
        code(check(&trust, b"hello", 1, &file)),
        "signature-file-syntax"
    );
    assert_eq!(code(check(&trust, b"", 1, &file)), "signature-file-syntax");
    assert_eq!(
        code(check(&trust, &sign(&a), 2, &file)),
        "signature-threshold"
    );
    assert_eq!(
        code(check(&Keys::new().load(), &sign(&a), 1, &file)),
        "trust-no-keys"
    );

    let both = [sign(&a), sign(&b)].concat();
    let two = store(&[&a_new, &b_new]);
    assert_eq!(check(&two, &both, 2, &file).unwrap().len(), 2);
    let twice = [sign(&a), sign(&a)].concat();
    assert_eq!(code(check(&two, &twice, 2, &file)), "signature-threshold");

    let keys = Keys::trusting(&[&a_new]);
    keys.put("revoked.d", "a.pub", a_new.public.as_bytes());
    keys.put("keys.d", "b.pub", b_new.public.as_bytes());
    assert_eq!(
        code(check(&keys.load(), &sign(&a), 1, &file)),
        "signature-revoked-key"
    );
    assert_eq!(code(check(&keys.load(), &both, 1, &file)), "ok");
}

#[test]
fn minisigns_old_kind_of_signature_cannot_be_checked_while_streaming() {
    let dir = tempfile::tempdir().unwrap();
    let Some(output) = tool(
        dir.path(),
        "minisign",
        &["-G", "-W", "-p", "k.pub", "-s", "k"],
    ) else {
        return;
    };
    assert_ok(&output);
    fs::write(dir.path().join("m"), b"image").unwrap();
    assert_ok(
        &tool(
            dir.path(),
            "minisign",
            &["-S", "-l", "-W", "-s", "k", "-m", "m"],
        )
        .unwrap(),
    );
    let trust = TrustStore::from_files(&[dir.path().join("k.pub")]).unwrap();
    let text = fs::read(dir.path().join("m.minisig")).unwrap();
    let signatures = DetachedSignatures::parse(&text).unwrap();
    let error = trust.verify_detached(&signatures, 1).err().unwrap();
    assert_eq!(error.code(), "signature-file-legacy");
}

// ---- damage -------------------------------------------------------------------------------------

#[test]
fn an_image_cut_off_anywhere_is_never_taken_for_whole() {
    let raw = raw_image(200, 13);
    let (signing, new) = key();
    let file = image(&raw, &[&signing]);
    let trust = store(&[&new]);
    let payload = header_of(&file).unwrap().payload_offset() as usize;
    let rest = (payload..file.len()).step_by(4096);
    for len in (0..payload).chain(rest).chain([file.len() - 1]) {
        let error = verify(&file[..len], &trust).unwrap_err();
        assert_eq!(error.code(), "image-truncated", "cut at {len}");
        if len < payload {
            assert!(install(&file[..len], &trust).is_err(), "cut at {len}");
        }
    }
    verify(&file, &trust).unwrap();
}

#[test]
fn a_flipped_bit_is_found_or_harmless() {
    let raw = raw_image(24, 14);
    let (signing, new) = key();
    let file = image(&raw, &[&signing]);
    let trust = store(&[&new]);
    let header = header_of(&file).unwrap();
    let payload = header.payload_offset() as usize;
    let frames = payload..payload + header.index().frames_len() as usize;
    let mut harmless = Vec::new();
    for at in 0..file.len() {
        // Every bit of what we parse ourselves, one of each byte of what zstd parses.
        let bits = if frames.contains(&at) {
            at % 8..at % 8 + 1
        } else {
            0..8
        };
        for bit in bits {
            let mut changed = file.clone();
            changed[at] ^= 1_u8 << bit;
            if let Ok(slot) = install(&changed, &trust) {
                assert!(
                    slot == raw,
                    "bit {bit} of byte {at} changed what is installed"
                );
            }
            if verify(&changed, &trust).is_ok() {
                harmless.push(at);
            }
            // And without a key: whatever the manifest says then, its digests hold.
            if let Ok(header) = header_of(&changed) {
                let mut rest = &changed[header.payload_offset() as usize..];
                if check_payload(&header, &mut rest, &mut |_| ()).is_ok() {
                    assert_eq!(header.manifest().payload.sha256, Sha256::of(&raw));
                }
            }
        }
    }
    // Only what nothing depends on: reserved bytes and the untrusted comment of the signature, and
    // bits of zstd frames that do not change what comes out.
    let frame = ManifestFrame::read(&mut file.as_slice()).unwrap();
    let signatures = 28 + frame.manifest_bytes().len();
    let text = &frame.signatures().iter().next().unwrap().bytes;
    let comment = signatures + 8 + text.iter().position(|b| *b == b'\n').unwrap();
    for at in &harmless {
        let unchecked = (signatures..comment).contains(at) || frames.contains(at);
        assert!(unchecked, "byte {at} is not checked");
    }
}

#[test]
fn bytes_behind_the_end_are_found() {
    let (signing, new) = key();
    let mut file = image(&raw_image(8, 15), &[&signing]);
    file.push(0);
    let error = verify(&file, &store(&[&new])).unwrap_err();
    assert_eq!(error.code(), "image-trailing-bytes");
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(
        cut in any::<proptest::sample::Index>(),
        noise in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let file = image(&raw_image(8, 16), &[]);
        let cut = cut.index(file.len());
        let mixed = [&file[..cut], &noise, &file[cut..]].concat();
        for bytes in [noise.as_slice(), &mixed] {
            if let Ok(header) = header_of(bytes) {
                let mut rest = &bytes[header.payload_offset() as usize..];
                let _ = check_payload(&header, &mut rest, &mut |_| ());
            }
        }
    }
}

// ---- forgery ------------------------------------------------------------------------------------

/// Gives bytes without end, and counts those taken.
struct Endless<'a> {
    head: &'a [u8],
    taken: usize,
}

impl Read for Endless<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = match self.head.read(buf)? {
            0 => {
                buf.fill(0);
                buf.len()
            }
            len => len,
        };
        self.taken += len;
        Ok(len)
    }
}

#[test]
fn lengths_beyond_the_limits_are_refused_before_what_they_describe_is_read() {
    let first_frame = |len: u32, manifest: u32, signatures: u32| {
        let mut bytes = 0x184D_2A5A_u32.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(b"FWUPDIMG");
        for number in [1, manifest, signatures] {
            bytes.extend(u32::to_le_bytes(number));
        }
        bytes
    };
    for (len, manifest, signatures, code) in [
        (u32::MAX, u32::MAX - 20, 0, "image-limit-exceeded"),
        (262_165, 262_145, 0, "image-limit-exceeded"),
        (65_657, 100, 65_537, "image-limit-exceeded"),
        (100, 100, 100, "image-malformed"),
        (19, 0, 0, "image-not-recognised"),
    ] {
        let head = first_frame(len, manifest, signatures);
        let mut reader = Endless {
            head: &head,
            taken: 0,
        };
        let error = ManifestFrame::read(&mut reader).unwrap_err();
        assert_eq!(error.code(), code);
        assert!(reader.taken <= head.len());
    }
}

/// An image whose manifest is changed by `change` and then signed properly: what a key holder with
/// bad intentions or a newer tool could make.
fn forged(key: &SigningKey, change: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
    let file = image(&raw_image(8, 17), &[]);
    let header = header_of(&file).unwrap();
    let mut manifest: serde_json::Value = serde_json::from_slice(header.manifest_bytes()).unwrap();
    change(&mut manifest);
    let manifest = serde_json::to_vec(&manifest).unwrap();
    let signature = key.sign(manifest.as_slice(), "forged").unwrap().bytes;
    let mut block = vec![1, 0, 0, 0];
    block.extend((signature.len() as u32).to_le_bytes());
    block.extend(signature);
    let mut out = 0x184D_2A5A_u32.to_le_bytes().to_vec();
    out.extend((20 + manifest.len() as u32 + block.len() as u32).to_le_bytes());
    out.extend(b"FWUPDIMG");
    for number in [1, manifest.len() as u32, block.len() as u32] {
        out.extend(number.to_le_bytes());
    }
    out.extend(manifest);
    out.extend(block);
    let second = 28 + header.manifest_bytes().len();
    out.extend(&file[second..]);
    out
}

#[test]
fn signed_nonsense_is_refused_too() {
    let (signing, new) = key();
    let trust = store(&[&new]);
    let code = |change: fn(&mut serde_json::Value)| {
        install(&forged(&signing, change), &trust).map_or_else(|error| error.code(), |_| "ok")
    };
    assert_eq!(code(|_| ()), "ok");
    assert_eq!(code(|m| m["later"] = "ignored".into()), "ok");
    assert_eq!(
        code(|m| m["criticalFeatures"] = vec!["delta"].into()),
        "image-feature-unknown"
    );
    assert_eq!(
        code(|m| m["images"][0]["target"] = "boot".into()),
        "image-target-unsupported"
    );
    assert_eq!(
        code(|m| m["index"]["size"] = u64::MAX.into()),
        "image-limit-exceeded"
    );
    assert_eq!(
        code(|m| m["index"]["sha256"] = "0".repeat(64).into()),
        "image-index-digest"
    );
    let wrong_size = |m: &mut serde_json::Value| {
        m["payload"]["size"] = 8192.into();
        m["images"][0]["size"] = 8192.into();
    };
    assert_eq!(code(wrong_size), "image-malformed");
}

#[test]
fn nothing_of_the_index_is_read_before_the_signature_was_verified() {
    let (signing, _) = key();
    let (_, other) = key();
    let file = image(&raw_image(8, 18), &[&signing]);
    let mut reader = file.as_slice();
    let frame = ManifestFrame::read(&mut reader).unwrap();
    let read = file.len() - reader.len();
    let index = file.windows(8).position(|w| w == b"FWUPDIDX").unwrap();
    assert_eq!(read, index - 8, "the reader stands at the index frame");
    assert!(frame.verify(&store(&[&other]), 1).is_err());
}

#[test]
fn an_image_with_manifest_is_told_from_a_plain_one() {
    let raw = raw_image(64, 19);
    let file = image(&raw, &[]);
    assert_eq!(ImageKind::detect(&file).unwrap(), ImageKind::Manifest);
    // Our file is also a plain zstd image, if someone names a digest for it.
    let mut out = Vec::new();
    plain_decoder(fwupdated::image::PlainKind::Zstd, file.as_slice())
        .unwrap()
        .read_to_end(&mut out)
        .unwrap();
    assert!(out == raw);
}

#[test]
fn a_missing_key_file_is_named() {
    let error = TrustStore::from_files(&[PathBuf::from("/nonexistent/k.pub")]).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/k.pub"));
}
