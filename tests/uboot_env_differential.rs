//! Random environments, read and written by us and by `fw_printenv` and `fw_setenv` (libubootenv-tool): both see the
//! same, whatever the sizes, the flags and the damage. Without the tools the tests say `SKIPPED`.
//!
//! The copies are made here, by code of its own: a misread format must not cancel out.

#[path = "support/skip.rs"]
mod skip;

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    process::{Command, Output},
};

use fwupdated::{
    platform::uboot_env::{EnvLocation, UbootEnv},
    update::failure::Coded,
};
use proptest::{prelude::*, test_runner::TestCaseResult};

type Variables = BTreeMap<String, String>;

/// What happens to a copy before it is read.
#[derive(Debug, Clone, Copy)]
enum Damage {
    None,
    /// A bit is turned, somewhere.
    Bit(prop::sample::Index),
    /// It was never written.
    Zeros,
    Erased,
    /// The power was cut when this much was written, over zeros.
    Torn(prop::sample::Index),
}

#[derive(Debug, Clone)]
struct Copy {
    variables: Variables,
    flags: u8,
    damage: Damage,
}

impl Copy {
    fn bytes(&self, size: usize, redundant: bool) -> Vec<u8> {
        let mut data = Vec::new();
        for (name, value) in &self.variables {
            data.extend(format!("{name}={value}\0").bytes());
        }
        data.resize(size - 4 - usize::from(redundant), 0);
        let mut bytes = crc32fast::hash(&data).to_le_bytes().to_vec();
        if redundant {
            bytes.push(self.flags);
        }
        bytes.extend(data);
        match self.damage {
            Damage::None => {}
            Damage::Bit(at) => bytes[at.index(size)] ^= 1 << (at.index(8)),
            Damage::Zeros => bytes.fill(0),
            Damage::Erased => bytes.fill(0xff),
            Damage::Torn(at) => bytes[at.index(size)..].fill(0),
        }
        bytes
    }
}

/// One write after another, by either side.
#[derive(Debug, Clone)]
enum Write {
    Ours(String, String),
    Theirs(String, String),
    /// A bit of one copy is turned.
    Damage(bool, prop::sample::Index),
}

fn name() -> impl Strategy<Value = String> {
    "[abc]|boot_[a-d]|fwupdated_(slot|tries)"
}

fn value() -> impl Strategy<Value = String> {
    "[!-~]([ -~]{0,30}[!-~])?"
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        6 => Just(Damage::None),
        1 => any::<prop::sample::Index>().prop_map(Damage::Bit),
        1 => Just(Damage::Zeros),
        1 => Just(Damage::Erased),
        1 => any::<prop::sample::Index>().prop_map(Damage::Torn),
    ]
}

fn copy() -> impl Strategy<Value = Copy> {
    // Those around the wrap, and around the place where a signed number would.
    let flags = prop_oneof![
        Just(0),
        Just(1),
        Just(254),
        Just(255),
        126..=129u8,
        any::<u8>()
    ];
    let variables = prop::collection::btree_map(name(), value(), 1..5);
    (variables, flags, damage()).prop_map(|(variables, flags, damage)| Copy {
        variables,
        flags,
        damage,
    })
}

fn write() -> impl Strategy<Value = Write> {
    prop_oneof![
        3 => (name(), value()).prop_map(|(name, value)| Write::Ours(name, value)),
        3 => (name(), value()).prop_map(|(name, value)| Write::Theirs(name, value)),
        1 => (any::<bool>(), any::<prop::sample::Index>()).prop_map(|(copy, at)| Write::Damage(copy, at)),
    ]
}

/// An environment in a file, for both sides.
struct Place {
    dir: tempfile::TempDir,
    size: usize,
    offsets: Vec<usize>,
}

impl Place {
    fn new(size: usize, redundant: bool, gap: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let offsets = if redundant {
            vec![gap, gap + size]
        } else {
            vec![gap]
        };
        let place = Self { dir, size, offsets };
        fs::write(place.file(), vec![0x55; gap + 2 * size + 7]).unwrap();
        let line = |offset: &usize| format!("{} {offset:#x} {size:#x}\n", place.file().display());
        let config: String = place.offsets.iter().map(line).collect();
        fs::write(place.config(), config).unwrap();
        place
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("env")
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("fw_env.config")
    }

    fn put(&self, index: usize, bytes: &[u8]) {
        let mut all = fs::read(self.file()).unwrap();
        let at = self.offsets[index];
        all[at..at + bytes.len()].copy_from_slice(bytes);
        fs::write(self.file(), all).unwrap();
    }

    fn turn(&self, index: usize, at: usize) {
        let mut all = fs::read(self.file()).unwrap();
        all[self.offsets[index] + at] ^= 0x10;
        fs::write(self.file(), all).unwrap();
    }

    fn ours(&self) -> UbootEnv {
        let location = EnvLocation::read(&self.config()).unwrap();
        UbootEnv::new(location, &self.dir.path().join("lock"))
    }

    fn tool(&self, name: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(name);
        command.arg("-c").arg(self.config());
        // Without a good copy it would go on with this one.
        command.args(["-f", "/nonexistent"]).args(arguments);
        command.output().unwrap()
    }

    /// What both read; `None` when no copy is good.
    fn read(&self) -> Result<Option<Variables>, TestCaseError> {
        let printed = self.tool("fw_printenv", &[]);
        let ours = match self.ours().read() {
            Ok(env) => env
                .iter()
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect::<Variables>(),
            Err(error) => {
                prop_assert_eq!(error.code(), "env-no-good-copy");
                prop_assert!(!printed.status.success(), "they read what we do not");
                return Ok(None);
            }
        };
        let text: String = ours
            .iter()
            .map(|(name, value)| format!("{name}={value}\n"))
            .collect();
        prop_assert!(printed.status.success(), "we read what they do not");
        prop_assert_eq!(String::from_utf8_lossy(&printed.stdout), text);
        Ok(Some(ours))
    }
}

fn tools() -> bool {
    let found = Command::new("fw_printenv").arg("-h").output();
    if let Err(error) = &found {
        skip::skipped(format_args!(
            "fw_printenv: {error}; tests/setup.sh installs it"
        ));
    }
    found.is_ok()
}

fn both_agree(place: &Place, copies: &[Copy], writes: &[Write]) -> TestCaseResult {
    let redundant = place.offsets.len() == 2;
    for (index, copy) in copies.iter().enumerate().take(place.offsets.len()) {
        place.put(index, &copy.bytes(place.size, redundant));
    }
    for write in writes {
        let Some(mut expected) = place.read()? else {
            return Ok(());
        };
        match write {
            Write::Ours(name, value) => {
                place
                    .ours()
                    .update(|env| env.set(name, value))
                    .unwrap()
                    .unwrap();
                expected.insert(name.clone(), value.clone());
            }
            Write::Theirs(name, value) => {
                let output = place.tool("fw_setenv", &["--", name, value]);
                prop_assert!(output.status.success(), "{:?}", output);
                expected.insert(name.clone(), value.clone());
            }
            Write::Damage(copy, at) => {
                place.turn(
                    usize::from(*copy && redundant),
                    // Not the flags: after that only the reading is compared.
                    at.index(place.size - 5) + 5,
                );
                continue;
            }
        }
        prop_assert_eq!(place.read()?, Some(expected));
    }
    place.read()?;
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn we_and_the_tools_read_and_write_any_environment_alike(
        size in prop_oneof![0x200..0x240usize, Just(0x1000), Just(0x4000), Just(0x20000), 0x200..0x3000usize],
        redundant: bool,
        gap in prop_oneof![Just(0), 0..0x300usize],
        copies in prop::collection::vec(copy(), 2),
        writes in prop::collection::vec(write(), 0..8),
    ) {
        if tools() {
            both_agree(&Place::new(size, redundant, gap), &copies, &writes)?;
        }
    }

    #[test]
    fn we_and_the_tools_pick_the_same_of_two_good_copies(first: u8, second: u8) {
        if tools() {
            let place = Place::new(0x200, true, 0);
            let copy = |flags, value: &str| Copy {
                variables: Variables::from([("n".to_owned(), value.to_owned())]),
                flags,
                damage: Damage::None,
            };
            let copies = [copy(first, "first"), copy(second, "second")];
            both_agree(&place, &copies, &[])?;
        }
    }
}
