//! The U-Boot environment against its other users: `fw_printenv` and `fw_setenv` (libubootenv-tool) and
//! `mkenvimage` (u-boot-tools), in both directions, in files and on loop devices.
//!
//! Where the tools are missing, or loop devices need a right that is not there, the tests say `SKIPPED`
//! and pass; `tests/setup.sh` installs what they need.

#[path = "support/skip.rs"]
mod skip;

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::Write,
    os::unix::{ffi::OsStrExt, fs::FileExt},
    path::{Path, PathBuf},
    process::{Child, Command, Output},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use fwupdated::{
    platform::uboot_env::{EnvError, EnvLocation, UbootBootloader, UbootEnv, names},
    update::{failure::Coded, ports::Bootloader, slot::Slot},
};
use proptest::prelude::*;
use tempfile::TempDir;

/// Bytes of one copy.
const SIZE: usize = 0x2000;
/// The lock that `fw_setenv` takes; it knows no other.
const REAL_LOCK: &str = "/var/lock/fw_printenv.lock";
/// What a value may look like: quotes, separators of shells and of the format, blanks at the ends, lines.
const ODD: &[(&str, &str)] = &[
    ("bootcmd", "run distro; if test $a = b; then boot; fi"),
    ("equals", "a=b==c="),
    ("blanks", "  two  words\t "),
    ("quotes", "it's \"${quoted}\" \\ `x` $(y) #no comment"),
    ("lines", "one\ntwo\nthree=3"),
    ("unicode", "größe 🚀"),
    ("dotted.name-1:x#2", "1"),
    ("last", "x"),
];

/// Whether the tools are there; says so when they are not.
fn tools() -> bool {
    ["fw_printenv", "fw_setenv", "mkenvimage"]
        .iter()
        .all(|tool| match Command::new(tool).arg("-h").output() {
            Ok(_) => true,
            Err(error) => {
                skip::skipped(format_args!("{tool}: {error}; tests/setup.sh installs it"));
                false
            }
        })
}

fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// An attached loop device; detached when dropped.
struct Loop(String);

impl Loop {
    fn over(backing: &Path, sector: u32) -> Option<Self> {
        let output = Command::new("losetup")
            .args(["-f", "--show", "-b", &sector.to_string()])
            .arg(backing)
            .output();
        match output {
            Ok(output) if output.status.success() => Some(Self(
                String::from_utf8(output.stdout).unwrap().trim().into(),
            )),
            other => {
                skip::skipped(format_args!("no loop device ({other:?})"));
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let detached = Command::new("losetup").args(["-d", &self.0]).status();
        if !detached.as_ref().is_ok_and(|status| status.success()) {
            eprintln!("losetup -d {}: {detached:?}", self.0);
        }
    }
}

/// An environment's place, for both sides.
struct Place {
    dir: TempDir,
    what: &'static str,
    /// Device and absolute offset of each copy.
    copies: Vec<(PathBuf, u64)>,
    /// Detached with the place.
    _device: Option<Loop>,
}

impl Place {
    /// `copies` of (file or device, absolute offset, the same as it is written in fw_env.config).
    fn new(
        dir: TempDir,
        what: &'static str,
        copies: &[(&Path, u64, &str)],
        device: Option<Loop>,
    ) -> Self {
        let line = |(path, _, offset): &(&Path, u64, &str)| {
            format!("{} {offset} {SIZE:#x}\n", path.display())
        };
        let config: String = copies.iter().map(line).collect();
        fs::write(dir.path().join("fw_env.config"), config).unwrap();
        let copies = copies
            .iter()
            .map(|(path, at, _)| (path.to_path_buf(), *at))
            .collect();
        Self {
            dir,
            what,
            copies,
            _device: device,
        }
    }

    /// One file with one copy, or with two.
    fn file(redundant: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("env");
        fs::write(&file, vec![0xff; 3 * SIZE]).unwrap();
        let second = format!("{:#x}", 2 * SIZE);
        let copies = [
            (file.as_path(), 0, "0"),
            (file.as_path(), 2 * SIZE as u64, &*second),
        ];
        if redundant {
            Self::new(dir, "two copies in a file", &copies, None)
        } else {
            Self::new(dir, "one copy in a file", &copies[..1], None)
        }
    }

    /// Every kind of place that this machine has: files; loop devices, also counted from the end.
    fn all() -> Vec<Self> {
        let mut places = vec![Self::file(false), Self::file(true)];

        let dir = tempfile::tempdir().unwrap();
        let files = [dir.path().join("env0"), dir.path().join("env1")];
        for file in &files {
            fs::write(file, vec![0; SIZE]).unwrap();
        }
        let copies = files.each_ref().map(|file| (file.as_path(), 0, "0x0"));
        places.push(Self::new(dir, "two files", &copies, None));

        let end = format!("-{SIZE:#x}");
        for (redundant, sector) in [(false, 512), (true, 512), (true, 4096)] {
            let dir = tempfile::tempdir().unwrap();
            let backing = dir.path().join("disk");
            let length = 16 * SIZE;
            fs::write(&backing, vec![0; length]).unwrap();
            let Some(device) = Loop::over(&backing, sector) else {
                continue;
            };
            let path = PathBuf::from(&device.0);
            let copies = [
                (path.as_path(), (length - SIZE) as u64, &*end),
                (path.as_path(), 0x1000, "4096"),
            ];
            places.push(match (redundant, sector) {
                (false, _) => Self::new(dir, "one copy on a device", &copies[..1], Some(device)),
                (true, 512) => Self::new(dir, "two copies on a device", &copies, Some(device)),
                (true, _) => Self::new(dir, "two copies, 4 KiB sectors", &copies, Some(device)),
            });
        }
        places
    }

    fn redundant(&self) -> bool {
        self.copies.len() == 2
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("fw_env.config")
    }

    /// Our side, under `lock`.
    fn ours_under(&self, lock: &Path) -> UbootEnv {
        UbootEnv::new(EnvLocation::read(&self.config()).unwrap(), lock)
    }

    /// Our side, under a lock of its own: one test does not wait for another's.
    fn ours(&self) -> UbootEnv {
        self.ours_under(&self.dir.path().join("lock"))
    }

    fn bootloader(&self) -> UbootBootloader {
        UbootBootloader::new(&self.config(), &self.dir.path().join("lock"))
    }

    fn tool(&self, name: &str) -> Command {
        let mut command = Command::new(name);
        command.arg("-c").arg(self.config());
        command
    }

    /// All that `fw_printenv` prints.
    fn printed(&self) -> Vec<u8> {
        succeed(&mut self.tool("fw_printenv")).stdout
    }

    fn set(&self, name: &str, value: impl AsRef<OsStr>) {
        // A value may look like an option.
        succeed(self.tool("fw_setenv").arg("--").arg(name).arg(value));
    }

    fn unset(&self, name: &str) {
        succeed(self.tool("fw_setenv").arg(name));
    }

    /// Writes all copies with `mkenvimage`: `text` has a line a variable.
    fn make(&self, text: &str, padding: &str) {
        let (input, output) = (self.dir.path().join("in"), self.dir.path().join("out"));
        fs::write(&input, text).unwrap();
        let mut command = Command::new("mkenvimage");
        command.args(["-s", &format!("{SIZE:#x}"), "-p", padding]);
        if self.redundant() {
            command.arg("-r");
        }
        succeed(command.arg("-o").arg(&output).arg(&input));
        let image = fs::read(output).unwrap();
        for index in 0..self.copies.len() {
            self.write(index, 0, &image);
        }
    }

    fn write(&self, index: usize, at: usize, bytes: &[u8]) {
        let (path, offset) = &self.copies[index];
        let file = File::options().write(true).open(path).unwrap();
        file.write_all_at(bytes, offset + at as u64).unwrap();
    }

    fn copy(&self, index: usize) -> Vec<u8> {
        let (path, offset) = &self.copies[index];
        let mut bytes = vec![0; SIZE];
        let file = File::open(path).unwrap();
        file.read_exact_at(&mut bytes, *offset).unwrap();
        bytes
    }

    fn all_copies(&self) -> Vec<Vec<u8>> {
        (0..self.copies.len()).map(|i| self.copy(i)).collect()
    }

    fn damage(&self, index: usize) {
        let byte = self.copy(index)[100];
        self.write(index, 100, &[byte ^ 0xff]);
    }

    /// Both sides see exactly `expected`.
    fn check(&self, expected: &BTreeMap<String, String>) {
        assert_eq!(&variables(&self.ours()), expected, "ours, {}", self.what);
        let printed = String::from_utf8(self.printed()).unwrap();
        assert_eq!(printed, text(expected), "fw_printenv, {}", self.what);
    }
}

fn variables(env: &UbootEnv) -> BTreeMap<String, String> {
    let env = env.read().unwrap();
    env.iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn map(variables: &[(&str, &str)]) -> BTreeMap<String, String> {
    variables
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

/// As `fw_printenv` prints it: by name.
fn text(variables: &BTreeMap<String, String>) -> String {
    variables
        .iter()
        .map(|(name, value)| format!("{name}={value}\n"))
        .collect()
}

#[test]
fn what_mkenvimage_wrote_is_read_the_same_by_both() {
    if !tools() {
        return;
    }
    let long = "0123456789abcdef".repeat(200);
    for place in Place::all() {
        // A line break cannot be said in mkenvimage's input; an empty value can.
        let mut expected = map(ODD);
        expected.remove("lines");
        expected.insert("long".into(), long.clone());
        expected.insert("empty".into(), String::new());
        for padding in ["0x00", "0xff"] {
            place.make(&format!("# a comment\n{}\n", text(&expected)), padding);
            place.check(&expected);
        }
    }
}

#[test]
fn what_fw_setenv_wrote_is_read_the_same_by_both() {
    if !tools() {
        return;
    }
    for place in Place::all() {
        place.make("gone=soon\nkept=1\n", "0xff");
        let mut expected = map(ODD);
        for (name, value) in ODD {
            place.set(name, value);
        }
        place.unset("gone");
        // Unlike U-Boot's own, this tool stores an empty value.
        place.set("empty", "");
        expected.insert("empty".into(), String::new());
        expected.insert("kept".into(), "1".into());
        place.check(&expected);
    }
}

#[test]
fn what_we_wrote_is_printed_exactly_and_the_older_copy_was_written() {
    if !tools() {
        return;
    }
    let long = "v".repeat(3000);
    for place in Place::all() {
        let ours = place.ours();
        ours.initialise([("first", "1"), ("doomed", "x")]).unwrap();
        place.check(&map(&[("first", "1"), ("doomed", "x")]));
        let before = place.all_copies();
        ours.update(|env| {
            env.remove("doomed");
            for (name, value) in ODD.iter().copied().chain([("long", &*long)]) {
                env.set(name, value).unwrap();
            }
        })
        .unwrap();
        let mut expected = map(ODD);
        expected.insert("first".into(), "1".into());
        expected.insert("long".into(), long.clone());
        place.check(&expected);
        if place.redundant() {
            assert_eq!(
                place.copy(0),
                before[0],
                "the copy in force, {}",
                place.what
            );
            assert_ne!(place.copy(1), before[1], "the older copy, {}", place.what);
        }
        // An empty value takes the variable away, as in U-Boot.
        ours.update(|env| env.set("long", "").unwrap()).unwrap();
        expected.remove("long");
        place.check(&expected);
    }
}

#[test]
fn a_first_environment_of_ours_is_byte_for_byte_mkenvimage_s() {
    if !tools() {
        return;
    }
    for place in Place::all() {
        let variables = [("b", "2"), ("a", "1 = one"), ("c", "x y")];
        place.ours().initialise(variables).unwrap();
        let ours = place.copy(0);
        place.make("b=2\na=1 = one\nc=x y\n", "0x00");
        assert!(ours == place.copy(0), "{}", place.what);
    }
}

#[test]
fn the_flags_count_up_and_wrap_whoever_writes() {
    if !tools() {
        return;
    }
    for place in Place::all().into_iter().filter(Place::redundant) {
        // Over the wrap, and over the place where a signed number would.
        for (first, start) in [(0, 250), (1, 250), (0, 122), (1, 122)] {
            place.make("n=start\n", "0xff");
            // The CRC does not cover the flags.
            place.write(first, 4, &[start]);
            place.write(1 - first, 4, &[start + 1]);
            let ours = place.ours();
            for step in 0..12 {
                let case = format!("step {step} from {start} in copy {first}, {}", place.what);
                let before = place.all_copies();
                // In twos, so that each side writes each copy and follows itself as well as the other.
                if step % 4 < 2 {
                    ours.update(|env| env.set("n", &step.to_string()).unwrap())
                        .unwrap();
                } else {
                    place.set("n", step.to_string());
                }
                let (written, in_force) = if step % 2 == 0 {
                    (first, 1 - first)
                } else {
                    (1 - first, first)
                };
                assert_eq!(
                    usize::from(place.copy(written)[4]),
                    (usize::from(start) + 2 + step) % 256,
                    "{case}"
                );
                assert_eq!(place.copy(in_force), before[in_force], "{case}");
                place.check(&map(&[("n", &step.to_string())]));
            }
        }
    }
}

#[test]
fn variables_that_we_cannot_show_survive_our_writes() {
    if !tools() {
        return;
    }
    for place in Place::all() {
        // `.flags` holds U-Boot's access rules; the tool obeys and does not print it.
        place.make("ro=1\nn=0\n.flags=ro:sr\n", "0xff");
        let bytes = OsString::from(OsStr::from_bytes(b"\xff\xfe caf\xe9"));
        place.set("raw", &bytes);
        place
            .ours()
            .update(|env| env.set("n", "1").unwrap())
            .unwrap();
        let mut printed = b"n=1\nraw=".to_vec();
        printed.extend_from_slice(bytes.as_bytes());
        printed.extend_from_slice(b"\nro=1\n");
        assert_eq!(place.printed(), printed, "{}", place.what);
        place.set("ro", "2");
        assert_eq!(place.printed(), printed, "still read-only, {}", place.what);
    }
}

#[test]
fn an_environment_filled_to_the_last_byte_is_read_by_both() {
    if !tools() {
        return;
    }
    for place in Place::all() {
        let ours = place.ours();
        ours.initialise([("n", "1")]).unwrap();
        let head = if place.redundant() { 5 } else { 4 };
        // CRC, flags, `n=1` NUL, `big=` value NUL, NUL.
        let room = SIZE - head - 4 - 4 - 2;
        let error = ours
            .update(|env| env.set("big", &"x".repeat(room + 1)).unwrap())
            .unwrap_err();
        assert_eq!(error.code(), "env-full");
        let big = "x".repeat(room);
        ours.update(|env| env.set("big", &big).unwrap()).unwrap();
        place.check(&map(&[("n", "1"), ("big", &big)]));
    }
}

#[test]
fn sizes_are_hexadecimal_and_offsets_are_not() {
    if !tools() {
        return;
    }
    let place = Place::file(false);
    for line in ["0 2000", "0x0 0x2000", "00 02000 200 1"] {
        let config = format!("{} {line}\n", place.copies[0].0.display());
        fs::write(place.config(), config).unwrap();
        place.make("a=1\n", "0xff");
        place.check(&map(&[("a", "1")]));
    }
    for (line, offset) in [("512 2000", 512), ("0200 2000", 128), ("0x80 2000", 128)] {
        place.make("a=1\n", "0xff");
        let image = place.copy(0);
        place.write(0, 0, &vec![0; SIZE]);
        place.write(0, offset, &image);
        let config = format!("{} {line}\n", place.copies[0].0.display());
        fs::write(place.config(), config).unwrap();
        place.check(&map(&[("a", "1")]));
    }
}

#[test]
fn one_damaged_copy_is_passed_over_and_healed_by_the_next_write() {
    if !tools() {
        return;
    }
    for place in Place::all().into_iter().filter(Place::redundant) {
        for bad in [0, 1] {
            for healer in ["we", "fw_setenv"] {
                place.make("n=old\n", "0xff");
                place.damage(bad);
                place.check(&map(&[("n", "old")]));
                let good = place.copy(1 - bad);
                if healer == "we" {
                    let ours = place.ours();
                    ours.update(|env| env.set("n", "new").unwrap()).unwrap();
                } else {
                    place.set("n", "new");
                }
                assert_eq!(place.copy(1 - bad), good, "{healer}, {}", place.what);
                place.check(&map(&[("n", "new")]));
                // The healed copy holds alone.
                place.damage(1 - bad);
                place.check(&map(&[("n", "new")]));
            }
        }
    }
}

#[test]
fn without_a_good_copy_nothing_is_written() {
    if !tools() {
        return;
    }
    for place in Place::all() {
        place.make(&format!("{}=a\n", names::SLOT), "0xff");
        for index in 0..place.copies.len() {
            place.damage(index);
        }
        let before = place.all_copies();
        let error = place.ours().update(|env| env.remove("x")).unwrap_err();
        assert_eq!(error.code(), "env-no-good-copy");
        assert_eq!(place.ours().read().unwrap_err().code(), "env-no-good-copy");
        let mut bootloader = place.bootloader();
        for failure in [
            bootloader.arm_trial(Slot::B, 3, "u1").unwrap_err(),
            bootloader.mark_good(Slot::A).unwrap_err(),
            bootloader.mark_bad(Slot::B).unwrap_err(),
            bootloader.state().unwrap_err(),
        ] {
            assert_eq!(failure.code, "env-no-good-copy");
        }
        assert!(place.all_copies() == before, "{}", place.what);
        // The other tool cannot read it either: it looks for a default environment.
        let printed = place
            .tool("fw_printenv")
            .args(["-f", "/nonexistent"])
            .output()
            .unwrap();
        assert!(!printed.status.success());
    }
}

#[test]
fn each_decision_of_the_bootloader_port_is_seen_by_fw_printenv() {
    if !tools() {
        return;
    }
    for place in Place::all() {
        place.make("bootcmd=run x\n", "0xff");
        place.set(names::SLOT, "a");
        let mut bootloader = place.bootloader();
        let shown = |expected: &[(&str, &str)]| {
            let mut expected = map(expected);
            expected.insert("bootcmd".into(), "run x".into());
            place.check(&expected);
        };
        bootloader.mark_bad(Slot::B).unwrap();
        shown(&[("fwupdated_slot", "a")]);
        bootloader.arm_trial(Slot::B, 3, "update 1").unwrap();
        shown(&[
            ("fwupdated_slot", "a"),
            ("fwupdated_trial", "b"),
            ("fwupdated_tries", "3"),
            ("fwupdated_job", "update 1"),
        ]);
        // U-Boot counts; its write looks like fw_setenv's.
        place.set("fwupdated_tries", "2");
        let state = bootloader.state().unwrap();
        assert_eq!(state.confirmed, Slot::A);
        assert_eq!(state.trial.unwrap().tries_left, 2);
        bootloader.mark_good(Slot::B).unwrap();
        shown(&[("fwupdated_slot", "b")]);
        bootloader.arm_trial(Slot::A, 9, "u2").unwrap();
        bootloader.mark_bad(Slot::A).unwrap();
        shown(&[("fwupdated_slot", "b")]);
        // A decision made by hand with fw_setenv counts.
        place.set("fwupdated_slot", "a");
        assert_eq!(bootloader.state().unwrap().confirmed, Slot::A);
    }
}

/// One step of the random walk.
#[derive(Debug, Clone)]
enum Step {
    /// One write of ours: each variable set (or removed, when empty).
    Ours(Vec<(String, String)>),
    /// `fw_setenv NAME VALUE`.
    Set(String, String),
    /// `fw_setenv NAME`.
    Unset(String),
    /// `fw_setenv -s`: several variables in one write.
    Script(Vec<(String, String)>),
    /// The copy that is not in force is torn.
    TearOlder,
}

fn step() -> impl Strategy<Value = Step> {
    // Few names, so that they meet again.
    let name = "[ab]|fwupdated_(slot|tries)|boot_[a-d]";
    let value = "[^\0]{1,60}|[ -~]{200,300}";
    let line = "[ -~]{0,40}[!-~]";
    let pairs = |value: &'static str| proptest::collection::vec((name, value), 1..4);
    prop_oneof![
        4 => pairs("[^\0]{0,40}").prop_map(Step::Ours),
        4 => (name, value).prop_map(|(name, value)| Step::Set(name, value)),
        1 => name.prop_map(Step::Unset),
        2 => pairs(line).prop_map(Step::Script),
        1 => Just(Step::TearOlder),
    ]
}

fn walk(place: &Place, steps: &[Step]) {
    place.make("bootcmd=x\n", "0xff");
    let mut expected = map(&[("bootcmd", "x")]);
    let ours = place.ours();
    // mkenvimage gives both copies the same flags: the first is in force.
    let mut in_force = 0;
    for step in steps {
        let before = place.all_copies();
        match step {
            Step::Ours(pairs) => {
                ours.update(|env| {
                    for (name, value) in pairs {
                        env.set(name, value).unwrap();
                    }
                })
                .unwrap();
                for (name, value) in pairs {
                    expected.remove(name);
                    if !value.is_empty() {
                        expected.insert(name.clone(), value.clone());
                    }
                }
            }
            Step::Set(name, value) => {
                place.set(name, value);
                expected.insert(name.clone(), value.clone());
            }
            Step::Unset(name) => {
                place.unset(name);
                expected.remove(name);
            }
            Step::Script(pairs) => {
                let script = place.dir.path().join("script");
                let lines = pairs
                    .iter()
                    .map(|(name, value)| format!("{name}={value}\n"));
                fs::write(&script, lines.collect::<String>()).unwrap();
                succeed(place.tool("fw_setenv").arg("-s").arg(&script));
                expected.extend(pairs.iter().cloned());
            }
            Step::TearOlder if place.redundant() => place.damage(1 - in_force),
            Step::TearOlder => {}
        }
        place.check(&expected);
        if place.redundant() && !matches!(step, Step::TearOlder) {
            assert_eq!(
                place.copy(in_force),
                before[in_force],
                "the copy in force was written"
            );
            if place.copy(1 - in_force) != before[1 - in_force] {
                in_force = 1 - in_force;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_our_writes_and_fw_setenv_s_is_seen_the_same(
        steps in proptest::collection::vec(step(), 50),
        redundant: bool,
    ) {
        if tools() {
            walk(&Place::file(redundant), &steps);
        }
    }
}

/// Held by the tests that stop the world with the real lock.
static LOCK_TESTS: Mutex<()> = Mutex::new(());

/// Whether the lock of the tools can be had and watched here.
fn real_lock() -> bool {
    let mut options = File::options();
    let lock = options
        .write(true)
        .create(true)
        .truncate(false)
        .open(REAL_LOCK);
    let watched = fs::metadata("/proc/locks");
    match (lock, watched) {
        (Ok(_), Ok(_)) => tools(),
        (lock, watched) => {
            skip::skipped(format_args!(
                "{REAL_LOCK}: {lock:?}, /proc/locks: {watched:?}"
            ));
            false
        }
    }
}

fn until(what: &str, mut there: impl FnMut() -> bool) {
    let began = Instant::now();
    while !there() {
        assert!(began.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether `child` holds a lock, or waits for one (proc(5), `/proc/locks`: `->` marks who waits).
fn locks(child: &Child, waits: bool) -> bool {
    let pid = child.id().to_string();
    fs::read_to_string("/proc/locks")
        .unwrap()
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .any(|words| words.contains(&"->") == waits && words.contains(&&*pid))
}

/// Asks again while another program on this machine holds the tools' lock.
fn patiently<T>(mut ask: impl FnMut() -> Result<T, EnvError>) -> T {
    let began = Instant::now();
    loop {
        match ask() {
            Err(EnvError::Locked(_)) if began.elapsed() < Duration::from_secs(120) => {}
            other => return other.unwrap(),
        }
    }
}

#[test]
fn a_lock_that_belongs_to_another_user_is_taken_too() {
    use std::os::unix::fs::PermissionsExt;
    if !nix::unistd::geteuid().is_root() {
        skip::skipped(format_args!("only root can be another user"));
        return;
    }
    let place = Place::file(true);
    place.ours().initialise([("n", "1")]).unwrap();
    let (dir, lock) = (place.dir.path(), place.dir.path().join("lock"));
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&lock, fs::Permissions::from_mode(0o644)).unwrap();
    let ours = place.ours();
    let read = std::thread::spawn(move || {
        // Another user to the file system, in this thread alone.
        nix::unistd::setfsuid(nix::unistd::Uid::from_raw(4242));
        ours.read().map(|env| env.get("n").map(str::to_owned))
    });
    assert_eq!(read.join().unwrap().unwrap().as_deref(), Some("1"));
}

#[test]
fn fw_setenv_waits_while_we_change_the_environment() {
    let _alone = LOCK_TESTS.lock().unwrap_or_else(PoisonError::into_inner);
    if !real_lock() {
        return;
    }
    let place = Place::file(true);
    place.make("n=0\n", "0xff");
    let ours = place.ours_under(Path::new(REAL_LOCK));
    let mut child = patiently(|| {
        ours.update(|env| {
            let mut child = place
                .tool("fw_setenv")
                .args(["theirs", "1"])
                .spawn()
                .unwrap();
            until("fw_setenv waits for the lock", || locks(&child, true));
            assert!(child.try_wait().unwrap().is_none());
            env.set("ours", "1").unwrap();
            child
        })
    });
    assert!(child.wait().unwrap().success());
    place.check(&map(&[("n", "0"), ("ours", "1"), ("theirs", "1")]));
}

#[test]
fn we_wait_while_fw_setenv_changes_the_environment_and_then_name_the_lock() {
    let _alone = LOCK_TESTS.lock().unwrap_or_else(PoisonError::into_inner);
    if !real_lock() {
        return;
    }
    let place = Place::file(true);
    place.make("n=0\n", "0xff");
    // fw_setenv takes the lock, then reads its script: from a pipe, it holds the lock until we write.
    let script = place.dir.path().join("script");
    nix::unistd::mkfifo(&script, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut child = place
        .tool("fw_setenv")
        .arg("-s")
        .arg(&script)
        .spawn()
        .unwrap();
    until("fw_setenv holds the lock", || locks(&child, false));
    let before = place.all_copies();
    let ours = place.ours_under(Path::new(REAL_LOCK));
    for error in [
        ours.read().unwrap_err(),
        ours.update(|env| env.set("ours", "0").unwrap())
            .unwrap_err(),
    ] {
        assert_eq!(error.code(), "env-locked");
        assert!(error.to_string().contains(REAL_LOCK), "{error}");
    }
    assert!(place.all_copies() == before);

    let waiting = {
        let ours = ours.clone();
        std::thread::spawn(move || patiently(|| ours.update(|env| env.set("ours", "1").unwrap())))
    };
    let mut pipe = File::options().write(true).open(&script).unwrap();
    pipe.write_all(b"theirs=1\n").unwrap();
    drop(pipe);
    assert!(child.wait().unwrap().success());
    waiting.join().unwrap();
    place.check(&map(&[("n", "0"), ("ours", "1"), ("theirs", "1")]));
}

#[test]
fn no_change_is_lost_when_both_write_at_once() {
    let _alone = LOCK_TESTS.lock().unwrap_or_else(PoisonError::into_inner);
    if !real_lock() {
        return;
    }
    const WRITES: usize = 40;
    let place = Place::file(true);
    place.make("n=0\n", "0xff");
    let ours = place.ours_under(Path::new(REAL_LOCK));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..WRITES {
                place.set(&format!("theirs{number}"), "1");
            }
        });
        scope.spawn(|| {
            for number in 0..WRITES {
                let name = format!("ours{number}");
                patiently(|| ours.update(|env| env.set(&name, "1").unwrap()));
            }
        });
    });
    let mut expected = map(&[("n", "0")]);
    for number in 0..WRITES {
        expected.insert(format!("ours{number}"), "1".into());
        expected.insert(format!("theirs{number}"), "1".into());
    }
    place.check(&expected);
}
