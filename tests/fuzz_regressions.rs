//! Replays what fuzzing once found, and inputs picked by hand, through the very targets of `tests/fuzz`: each file of
//! `tests/fuzz/regressions/TARGET/` is one input. Files ending in `.hex` hold it as hexadecimal digits, in lines and
//! with comments after `#`; files ending in `.txt` hold it as it is.

// Gives the targets the name under which they use the fuzzer.
extern crate self as libfuzzer_sys;

use std::{
    collections::BTreeSet,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

/// What the fuzzer makes of a target, without the fuzzer.
macro_rules! replayed {
    (|$bytes:ident: &[u8]| $body:expr) => {
        pub(crate) fn replay($bytes: &[u8]) {
            $body
        }
    };
    (|$input:ident: $kind:ty| $body:expr) => {
        pub(crate) fn replay(bytes: &[u8]) {
            let bytes = arbitrary::Unstructured::new(bytes);
            if let Ok($input) = <$kind as arbitrary::Arbitrary>::arbitrary_take_rest(bytes) {
                $body
            }
        }
    };
}
pub(crate) use replayed as fuzz_target;

/// The targets, by name.
macro_rules! targets {
    ($($name:ident at $file:literal),* $(,)?) => {
        $(
            // They are programs of their own for the fuzzer.
            #[allow(unused_attributes)]
            #[path = $file]
            mod $name;
        )*
        const TARGETS: &[(&str, fn(&[u8]))] = &[$((stringify!($name), $name::replay)),*];
    };
}

targets! {
    archive at "fuzz/fuzz_targets/archive.rs",
    connection_string at "fuzz/fuzz_targets/connection_string.rs",
    chunk at "fuzz/fuzz_targets/chunk.rs",
    cutter at "fuzz/fuzz_targets/cutter.rs",
    damaged at "fuzz/fuzz_targets/damaged.rs",
    delta at "fuzz/fuzz_targets/delta.rs",
    header at "fuzz/fuzz_targets/header.rs",
    hub_messages at "fuzz/fuzz_targets/hub_messages.rs",
    hub_twin at "fuzz/fuzz_targets/hub_twin.rs",
    image at "fuzz/fuzz_targets/image.rs",
    keys at "fuzz/fuzz_targets/keys.rs",
    manifest at "fuzz/fuzz_targets/manifest.rs",
    plain at "fuzz/fuzz_targets/plain.rs",
    provisioning at "fuzz/fuzz_targets/provisioning.rs",
}

fn fuzz_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz")
}

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let stem = |entry: std::io::Result<fs::DirEntry>| {
        entry
            .unwrap()
            .path()
            .file_stem()
            .map(|s| s.to_string_lossy().into_owned())
    };
    entries.filter_map(stem).collect()
}

/// The bytes that a file of regressions stands for.
fn input(file: &Path) -> Vec<u8> {
    let bytes = fs::read(file).unwrap();
    match file.extension().and_then(|end| end.to_str()) {
        Some("txt") => bytes,
        Some("hex") => from_hex(&String::from_utf8(bytes).unwrap())
            .unwrap_or_else(|| panic!("{} is no hexadecimal text", file.display())),
        _ => panic!("{} ends in neither .hex nor .txt", file.display()),
    }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let lines = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default());
    let digits: Vec<_> = lines
        .flat_map(str::chars)
        .filter(|c| !c.is_whitespace())
        .map(|c| c.to_digit(16))
        .collect::<Option<_>>()?;
    let (pairs, rest) = digits.as_chunks::<2>();
    rest.is_empty().then(|| {
        pairs
            .iter()
            .map(|[high, low]| (high * 16 + low) as u8)
            .collect()
    })
}

#[test]
fn what_fuzzing_found_once_is_not_found_again() {
    let mut failed = Vec::new();
    for (target, replay) in TARGETS {
        let dir = fuzz_dir().join("regressions").join(target);
        let mut files: Vec<_> = fs::read_dir(&dir)
            .map(|entries| entries.map(|entry| entry.unwrap().path()).collect())
            .unwrap_or_default();
        files.sort();
        for file in files {
            let bytes = input(&file);
            if catch_unwind(AssertUnwindSafe(|| replay(&bytes))).is_err() {
                failed.push(file);
            }
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn every_target_of_the_fuzzer_is_replayed_and_every_input_has_its_target() {
    let replayed: BTreeSet<_> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names(&fuzz_dir().join("fuzz_targets")), replayed);
    let inputs = names(&fuzz_dir().join("regressions"));
    assert!(inputs.is_subset(&replayed), "{inputs:?}");
}

#[test]
fn an_input_reaches_its_target_as_the_fuzzer_would_give_it() {
    mod whole {
        crate::fuzz_target!(|bytes: &[u8]| assert_ne!(bytes, b"\x00\xff"));
    }
    mod structured {
        crate::fuzz_target!(|pair: (u8, u16, &[u8])| assert!(pair.1 != 0x0201 || pair.2 != b"x"));
    }
    let hit = |replay: fn(&[u8]), text: &str| {
        let bytes = from_hex(text).unwrap();
        catch_unwind(|| replay(&bytes)).is_err()
    };
    assert!(hit(whole::replay, "00 # a comment\nFf\n"));
    assert!(!hit(whole::replay, "00fe"));
    assert!(hit(structured::replay, "07 0102 78"));
    assert!(!hit(structured::replay, "07 0202 78"));
    assert_eq!(from_hex("0"), None);
    assert_eq!(from_hex("0g"), None);
}
