//! Tests of plain images: each kind, its limits, damage.

use std::io::Write;

use proptest::prelude::*;

use super::*;

fn raw() -> Vec<u8> {
    (0..64 * 1024_u32).map(|n| ((n * n) >> 5) as u8).collect()
}

fn compressed(kind: PlainKind, raw: &[u8]) -> Vec<u8> {
    match kind {
        PlainKind::Raw => raw.to_vec(),
        PlainKind::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Default::default());
            encoder.write_all(raw).unwrap();
            encoder.finish().unwrap()
        }
        PlainKind::Xz => {
            let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 6);
            encoder.write_all(raw).unwrap();
            encoder.finish().unwrap()
        }
        PlainKind::Bzip2 => {
            let level = bzip2::Compression::fast();
            let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), level);
            encoder.write_all(raw).unwrap();
            encoder.finish().unwrap()
        }
        PlainKind::Zstd => zstd::encode_all(raw, 3).unwrap(),
    }
}

const PACKED: [PlainKind; 4] = [
    PlainKind::Gzip,
    PlainKind::Xz,
    PlainKind::Bzip2,
    PlainKind::Zstd,
];

fn decode(kind: PlainKind, file: &[u8]) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    plain_decoder(kind, file)?.read_to_end(&mut out)?;
    Ok(out)
}

fn code(result: io::Result<Vec<u8>>) -> &'static str {
    PlainError::of(&result.unwrap_err()).map_or("source", PlainError::code)
}

#[test]
fn each_kind_is_known_by_its_first_bytes_and_gives_the_raw_bytes() {
    // A root file system begins with zeros or binary data.
    let raw = [vec![0; 1024], raw()].concat();
    for kind in PACKED.into_iter().chain([PlainKind::Raw]) {
        let file = compressed(kind, &raw);
        assert_eq!(ImageKind::detect(&file).unwrap(), ImageKind::Plain(kind));
        assert_eq!(decode(kind, &file).unwrap(), raw);
    }
}

#[test]
fn concatenated_streams_are_followed() {
    for kind in PACKED {
        let raw = raw();
        let file = [compressed(kind, &raw), compressed(kind, &raw)].concat();
        assert_eq!(decode(kind, &file).unwrap(), [raw.clone(), raw].concat());
        // Cut off in the beginning of the second one.
        let cut = file.len() / 2 + 3;
        assert_eq!(code(decode(kind, &file[..cut])), "plain-corrupt", "{kind}");
    }
}

#[test]
fn bytes_behind_the_end_and_cut_off_files_are_errors() {
    for kind in PACKED {
        let file = compressed(kind, &raw());
        for garbage in [&b"garbage!"[..], &[0x55; 4096]] {
            let file = [&file, garbage].concat();
            assert_eq!(code(decode(kind, &file)), "plain-corrupt", "{kind}");
        }
        for len in [1, 9, file.len() / 2, file.len() - 1] {
            assert_eq!(
                code(decode(kind, &file[..len])),
                "plain-corrupt",
                "{kind} {len}"
            );
        }
    }
}

#[test]
fn what_is_no_image_is_not_taken_for_a_raw_one() {
    for (first, expected) in [
        (&b""[..], "plain-empty"),
        (b"<!DOCTYPE html><html>", "plain-text"),
        (b"\n\n  <HTML>", "plain-text"),
        (b"{\"error\":\"gone\"}", "plain-text"),
        (b"Not Found", "plain-text"),
        (
            "<p>Zugriff verweigert: gesch\u{fc}tzt</p>".as_bytes(),
            "plain-text",
        ),
        (b"PK\x03\x04\0\0", "plain-format-unsupported"),
        (b"BZhello", "plain-text"),
    ] {
        let error = ImageKind::detect(first).unwrap_err();
        assert_eq!(error.code(), expected, "{}", first.escape_ascii());
    }
    for size in [0, 1, 511, 513] {
        assert_eq!(
            code(decode(PlainKind::Raw, &vec![0; size])),
            "plain-not-sectors"
        );
    }
    let short = compressed(PlainKind::Gzip, &[0; 700]);
    assert_eq!(code(decode(PlainKind::Gzip, &short)), "plain-not-sectors");
}

#[test]
fn only_our_own_manifest_frame_makes_a_zstd_file_an_image_with_manifest() {
    let ours = [
        &MANIFEST_FRAME.to_le_bytes()[..],
        &[9, 0, 0, 0],
        IMAGE_MAGIC,
    ]
    .concat();
    assert_eq!(ImageKind::detect(&ours).unwrap(), ImageKind::Manifest);
    for file in [
        &ours[..12],
        &[&[0x50, 0x2a, 0x4d, 0x18], &ours[4..]].concat(),
        &[&ours[..8], b"SOMEELSE"].concat(),
    ] {
        let kind = ImageKind::detect(file).unwrap();
        assert_eq!(kind, ImageKind::Plain(PlainKind::Zstd));
    }
}

#[test]
fn memory_beyond_the_limit_is_refused_with_advice() {
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 9);
    encoder.write_all(&raw()).unwrap();
    let file = encoder.finish().unwrap();
    assert_eq!(code(decode(PlainKind::Xz, &file)), "plain-memory");

    let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
    encoder.window_log(ZSTD_WINDOW_LOG + 1).unwrap();
    encoder.write_all(&raw()).unwrap();
    let file = encoder.finish().unwrap();
    assert_eq!(code(decode(PlainKind::Zstd, &file)), "plain-memory");
}

#[test]
fn an_error_of_the_source_comes_out_unchanged() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::new(io::ErrorKind::ConnectionReset, "gone"))
        }
    }
    for kind in PACKED.into_iter().chain([PlainKind::Raw]) {
        let file = compressed(kind, &raw());
        let broken = file[..file.len() / 2].chain(Broken);
        let mut decoder = plain_decoder(kind, broken).unwrap();
        let error = decoder.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{kind}");
        assert!(PlainError::of(&error).is_none());
    }
}

proptest! {
    #[test]
    fn damage_never_panics_and_never_changes_bytes_silently(
        which in 0..PACKED.len(), at in any::<proptest::sample::Index>(), bit in 0_u8..8,
    ) {
        let kind = PACKED[which];
        let raw = raw();
        let mut file = compressed(kind, &raw);
        let at = at.index(file.len());
        file[at] ^= 1_u8 << bit;
        // zstd's frames here have no checksum, as from `zstd --no-check`: only digests help.
        if let Ok(found) = decode(kind, &file) && kind != PlainKind::Zstd {
            prop_assert_eq!(found, raw);
        }
    }

    #[test]
    fn any_first_bytes_have_a_kind_or_a_refusal(first in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = ImageKind::detect(&first);
    }
}
