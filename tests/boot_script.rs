//! The U-Boot boot script against its model, `boot_decision`: every combination of values decides the same.
//!
//! `packaging/uboot/boot.cmd` is written in what U-Boot's hush and a POSIX shell both understand, and runs here
//! under `sh`, whole, with shims for U-Boot's commands. Its decision runs in a real U-Boot too: U-Boot's own `sandbox`
//! build, which `tests/uboot/sandbox.sh` makes and `UBOOT_SANDBOX=required` asks for.

#[path = "support/skip.rs"]
mod skip;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};

use fwupdated::{
    platform::uboot_env::{Env, MARK, boot_decision_with_mark, names},
    update::slot::Slot,
};

const NAMES: [&str; 4] = [names::SLOT, names::TRIAL, names::TRIES, names::JOB];

/// U-Boot's commands, as shell functions. What they did is told in lines that start with `@`.
const SHIMS: &str = r#"
tell() { printf '@%s|%s|%s|%s|%s\n' "$1" "$fwupdated_slot" "$fwupdated_trial" "$fwupdated_tries" "$fwupdated_job"; }
setenv() {
    shim_name=$1
    shift
    if [ $# -eq 0 ]; then unset "$shim_name"; else eval "$shim_name=\$*"; fi
}
saveenv() { tell save; return "$SHIM_SAVEENV"; }
part() { # number TYPE DISK LABEL VARIABLE
    [ "$1 $2 $3" = "number mmc 0" ] || return 1
    case $4 in boot) [ "$SHIM_MARK" != "no partition" ] || return 1; eval "$5=1" ;; rootfs-a) eval "$5=2" ;; rootfs-b) eval "$5=3" ;; *) return 1 ;; esac
}
load() { # TYPE DISK:PART ADDRESS FILE
    case " $SHIM_MISSING " in *" $2$4 "*) return 1 ;; esac
    case $2 in 0:1) [ "$4 $SHIM_MARK" != "/fwupdated.slot no file" ] || return 1 ;; 0:2 | 0:3) ;; *) return 1 ;; esac
    filesize=$(printf %x ${#4})
}
env() { # import -t ADDRESS SIZE NAME: nothing but the variable NAME of the file is taken over
    [ "$1 $2 $3" = "import -t 0x80000" ] || return 1
    shim_value=$(printf '%s\n' "$SHIM_MARK" | sed -n "s/^$5=//p" | tail -n 1)
    if [ -n "$shim_value" ]; then setenv "$5" "$shim_value"; fi
}
fdt() { # addr ADDRESS, or get value VARIABLE PATH PROPERTY
    if [ "$1 $2" = "get value" ]; then eval "$3='console=tty1 firmware=1'"; fi
}
booti() {
    printf '@booti|%s|%s\n' "$*" "$bootargs"
    [ "$SHIM_BOOTI" = 0 ] && { tell end; exit; }
    return 1
}
sleep() { :; }
reset() { echo @reset; tell end; exit; }
"#;

fn script() -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/uboot/boot.cmd");
    fs::read_to_string(file).unwrap()
}

/// What is stored; to U-Boot an empty variable is as good as none.
type Variables = BTreeMap<&'static str, String>;

fn stored(env: &Env) -> Variables {
    NAMES
        .into_iter()
        .filter_map(|name| Some((name, env.get(name)?.to_owned())))
        .filter(|(_, value)| !value.is_empty())
        .collect()
}

fn from_told(told: &str) -> Variables {
    NAMES
        .into_iter()
        .zip(told.split('|').map(str::to_owned))
        .filter(|(_, value)| !value.is_empty())
        .collect()
}

/// What one boot did.
#[derive(Debug)]
struct Boot {
    /// The variables at each `saveenv`.
    saves: Vec<Variables>,
    /// The variables at the end.
    end: Variables,
    /// Arguments of `booti`, and the kernel's; `None` when no kernel was started.
    started: Option<(String, String)>,
    /// Whether it ended in `reset`.
    reset: bool,
}

impl Boot {
    fn slot(&self) -> Slot {
        self.argument("fwupdated.slot=").parse().unwrap()
    }

    /// What the kernel is told after `name`.
    fn argument(&self, name: &str) -> &str {
        let (_, arguments) = self.started.as_ref().expect("a kernel was started");
        let found = arguments
            .split(' ')
            .find_map(|word| word.strip_prefix(name));
        found.unwrap_or_else(|| panic!("{name} is missing: {arguments}"))
    }
}

/// The board on which a boot takes place.
struct Board {
    script: String,
    dir: tempfile::TempDir,
    /// What `load` does not find: `0:PARTITION/FILE`.
    missing: String,
    saveenv_works: bool,
    booti_works: bool,
    /// What the mark file says; or `no partition`, `no file`.
    mark: String,
}

impl Board {
    fn new() -> Self {
        Self {
            script: script(),
            dir: tempfile::tempdir().unwrap(),
            missing: String::new(),
            saveenv_works: true,
            booti_works: true,
            mark: "no file".into(),
        }
    }

    fn boot(&self, variables: &[(&str, &str)]) -> Boot {
        let program = self.dir.path().join("program");
        if !program.exists() {
            fs::write(&program, format!("{SHIMS}{}", self.script)).unwrap();
        }
        let flag = |works| if works { "0" } else { "1" };
        let output = Command::new("sh")
            .arg(&program)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("SHIM_MISSING", &self.missing)
            .env("SHIM_MARK", &self.mark)
            .env("SHIM_SAVEENV", flag(self.saveenv_works))
            .env("SHIM_BOOTI", flag(self.booti_works))
            .envs([
                ("kernel_addr_r", "0x80000"),
                ("ramdisk_addr_r", "0x2700000"),
                ("fdt_addr_r", "0x2600000"),
                ("fdt_addr", "2eff2e00"),
            ])
            .envs(variables.iter().copied())
            .output()
            .unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{variables:?}: {said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let told = |what: &str| {
            let lines = said.lines();
            let told = lines.filter_map(|line| line.strip_prefix('@')?.strip_prefix(what));
            told.map(str::to_owned).collect::<Vec<_>>()
        };
        let end = told("end|");
        assert_eq!(end.len(), 1, "{variables:?}: {said}");
        let booti = told("booti|");
        Boot {
            saves: told("save|").iter().map(|told| from_told(told)).collect(),
            end: from_told(&end[0]),
            started: booti.first().map(|told| {
                let (words, arguments) = told.split_once('|').unwrap();
                (words.to_owned(), arguments.to_owned())
            }),
            reset: !told("reset").is_empty(),
        }
    }

    /// Boots again and again with what the last boot stored.
    fn boots<const N: usize>(&self, variables: &[(&str, &str)]) -> [Boot; N] {
        let mut stored: Vec<(String, String)> = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        std::array::from_fn(|_| {
            let variables: Vec<_> = stored.iter().map(|(n, v)| (&**n, &**v)).collect();
            let boot = self.boot(&variables);
            if let Some(saved) = boot.saves.last() {
                stored = saved
                    .iter()
                    .map(|(name, value)| ((*name).to_owned(), value.clone()))
                    .collect();
            }
            boot
        })
    }
}

/// Every combination of right, wrong, empty and absent values.
fn table() -> Vec<Vec<(&'static str, &'static str)>> {
    let slots = [
        "a", "b", "x", "", "ab", "A", "a b", "= a", "-n", "\"", "$(reset)",
    ];
    let tries = [
        "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "200", "many", "", "03", "+3",
        "-1", "1 2", "3;",
    ];
    let or_absent = |values: &[&'static str]| {
        let values = values.iter().copied().map(Some);
        values.chain([None]).collect::<Vec<_>>()
    };
    let mut table = Vec::new();
    for slot in or_absent(&slots) {
        for trial in or_absent(&slots) {
            // Odd values of both at once say nothing new.
            let odd = |value: Option<&str>| value.is_some_and(|value| !["a", "b"].contains(&value));
            if odd(slot) && odd(trial) && slot != trial {
                continue;
            }
            for tries in or_absent(&tries) {
                for job in [None, Some("update 1")] {
                    let values = [slot, trial, tries, job];
                    let row = NAMES.into_iter().zip(values);
                    table.push(
                        row.filter_map(|(name, value)| Some((name, value?)))
                            .collect(),
                    );
                }
            }
        }
    }
    table
}

/// The model's slot, and what it stores before and after.
fn model(variables: &[(&str, &str)]) -> (Slot, Variables, Variables) {
    model_with(variables, None)
}

/// The same with a mark file.
fn model_with(variables: &[(&str, &str)], mark: Option<Slot>) -> (Slot, Variables, Variables) {
    let mut env = Env::default();
    for (name, value) in variables {
        env.set(name, value).unwrap();
    }
    let before = stored(&env);
    let slot = boot_decision_with_mark(&mut env, mark);
    (slot, before, stored(&env))
}

#[test]
fn the_script_decides_as_its_model_whatever_the_values() {
    let board = Board::new();
    let table = table();
    assert!(table.len() > 2000, "{}", table.len());
    for variables in &table {
        let (slot, before, after) = model(variables);
        let boot = board.boot(variables);
        assert_eq!(boot.slot(), slot, "{variables:?}");
        assert_eq!(boot.end, after, "{variables:?}");
        let trial = slot.name() != after[names::SLOT];
        let kind = if trial { "trial" } else { "confirmed" };
        assert_eq!(boot.argument("fwupdated.boot="), kind, "{variables:?}");
        let saves = if before == after { vec![] } else { vec![after] };
        assert_eq!(boot.saves, saves, "{variables:?}: saved once if it changed");
        assert!(!boot.reset, "{variables:?}");
    }
}

/// What a mark file may hold, and what the daemon takes it for.
const MARKS: &[(&str, Option<Slot>)] = &[
    ("fwupdated_mark=a", Some(Slot::A)),
    ("fwupdated_mark=b", Some(Slot::B)),
    ("fwupdated_mark=", None),
    ("fwupdated_mark=ab", None),
    ("fwupdated_mark", None),
    ("", None),
    ("fwupdated_slot=b", None),
    (
        "bootdelay=5\nfwupdated_mark=b\nfwupdated_slot=a",
        Some(Slot::B),
    ),
];

#[test]
fn when_the_confirmed_slot_is_lost_the_one_that_the_mark_names_boots() {
    let mut board = Board::new();
    let lost = [
        vec![],
        vec![(names::SLOT, "x")],
        vec![(names::TRIAL, "b"), (names::TRIES, "2")],
    ];
    let none = [("no partition", None), ("no file", None)];
    for (text, mark) in MARKS.iter().chain(&none) {
        board.mark = (*text).into();
        for variables in &lost {
            let (slot, _, after) = model_with(variables, *mark);
            let boot = board.boot(variables);
            assert_eq!(boot.slot(), slot, "{text:?}, {variables:?}");
            assert_eq!(boot.saves, [after], "{text:?}, {variables:?}: saved once");
        }
        // A good environment wins over any mark.
        let boot = board.boot(&[(names::SLOT, "a")]);
        assert_eq!((boot.slot(), boot.saves.len()), (Slot::A, 0), "{text:?}");
    }
    board.script = board
        .script
        .replace("fwup_mark=/fwupdated.slot", "fwup_mark=none");
    board.mark = "fwupdated_mark=b".into();
    board.dir = tempfile::tempdir().unwrap();
    assert_eq!(board.boot(&[]).slot(), Slot::A, "no mark is looked for");
}

#[test]
fn the_kernel_gets_the_slot_s_root_and_the_firmware_s_arguments() {
    let board = Board::new();
    for slot in ["a", "b"] {
        let boot = board.boot(&[(names::SLOT, slot)]);
        let (words, arguments) = boot.started.unwrap();
        assert_eq!(words, "0x80000 0x2700000:10 2eff2e00");
        let expected = format!(
            "console=tty1 firmware=1 ro rootwait panic=10 root=PARTLABEL=rootfs-{slot} fwupdated.slot={slot} fwupdated.boot=confirmed fwupdated.script=1"
        );
        assert_eq!(arguments, expected);
    }
}

#[test]
fn another_device_tree_and_no_initial_ram_disk_can_be_chosen() {
    let mut board = Board::new();
    board.script = board
        .script
        .replace("fwup_dtb=firmware\n", "fwup_dtb=/boot/pi.dtb\n")
        .replace("fwup_initrd=/boot/initrd.img\n", "fwup_initrd=none\n");
    let boot = board.boot(&[(names::SLOT, "a")]);
    assert_eq!(boot.started.unwrap().0, "0x80000 - 0x2600000");
    board.missing = "0:2/boot/pi.dtb".into();
    let boot = board.boot(&[(names::SLOT, "a")]);
    assert!(boot.started.is_none() && boot.reset);
}

#[test]
fn a_trial_that_does_not_load_costs_its_tries_and_the_confirmed_slot_boots() {
    for missing in ["0:3/boot/vmlinuz", "0:3/boot/initrd.img"] {
        let mut board = Board::new();
        board.missing = missing.into();
        let boots: [Boot; 5] = board.boots(&[
            (names::SLOT, "a"),
            (names::TRIAL, "b"),
            (names::TRIES, "3"),
            (names::JOB, "u1"),
        ]);
        for boot in &boots[..3] {
            assert!(boot.reset && boot.started.is_none(), "{missing}: {boot:?}");
            assert_eq!(boot.saves.len(), 1);
        }
        assert_eq!([boots[3].slot(), boots[4].slot()], [Slot::A, Slot::A]);
        assert_eq!([boots[3].saves.len(), boots[4].saves.len()], [1, 0]);
    }
}

#[test]
fn a_confirmed_slot_that_does_not_load_is_tried_again_and_never_replaced() {
    for missing in ["0:2/boot/vmlinuz", "0:2/boot/initrd.img"] {
        let mut board = Board::new();
        board.missing = missing.into();
        let boot = board.boot(&[(names::SLOT, "a")]);
        assert!(boot.reset && boot.started.is_none(), "{missing}: {boot:?}");
        assert!(boot.saves.is_empty());
    }
    let mut board = Board::new();
    board.script = board
        .script
        .replace("fwup_files_a=rootfs-a", "fwup_files_a=absent");
    let boot = board.boot(&[(names::SLOT, "a")]);
    assert!(
        boot.reset && boot.started.is_none(),
        "no partition: {boot:?}"
    );
    let mut board = Board::new();
    board.booti_works = false;
    let boot = board.boot(&[(names::SLOT, "a")]);
    assert!(boot.reset, "the kernel was refused: {boot:?}");
    assert_eq!(boot.slot(), Slot::A);
}

#[test]
fn a_try_that_cannot_be_stored_is_not_taken() {
    let mut board = Board::new();
    board.saveenv_works = false;
    for slot in ["a", "b"] {
        let trial = if slot == "a" { "b" } else { "a" };
        let boot = board.boot(&[
            (names::SLOT, slot),
            (names::TRIAL, trial),
            (names::TRIES, "3"),
        ]);
        assert_eq!(boot.slot().name(), slot);
        assert_eq!(boot.argument("fwupdated.boot="), "confirmed");
        assert_eq!(boot.saves.len(), 1, "asked once");
    }
    assert_eq!(board.boot(&[]).slot(), Slot::A, "a slot boots all the same");
}

/// The commands of the script, without comments: line number and words.
fn commands(script: &str) -> Vec<(usize, String)> {
    let lines = script.lines().enumerate();
    let code = lines.filter(|(_, line)| !line.trim_start().starts_with('#'));
    code.flat_map(|(number, line)| {
        // No quoted text of the script has these in it; the next test would stumble over one.
        let parts = line.split(" && ").flat_map(|part| part.split("; "));
        parts.map(move |part| (number + 1, part.trim().to_owned()))
    })
    .filter(|(_, part)| !part.is_empty())
    .collect()
}

#[test]
fn only_what_both_shells_understand_is_used() {
    let known = [
        "test",
        "echo",
        "setenv",
        "saveenv",
        "env",
        "fdt",
        "part",
        "load",
        "sleep",
        "reset",
        "${fwup_start}",
    ];
    for (line, command) in commands(&script()) {
        let mut words: Vec<_> = command.split_whitespace().collect();
        while ["if", "elif", "then", "do"].contains(&words[0]) && words.len() > 1 {
            words.remove(0);
        }
        let assignment = words[0]
            .split_once('=')
            .is_some_and(|(name, value)| name.starts_with("fwup_") && !value.is_empty());
        let keyword = words.len() == 1 && ["then", "else", "fi", "do", "done"].contains(&words[0]);
        let fits = match words[0] {
            "for" => words[2] == "in",
            "test" => words.len() == 4 && ["=", "!="].contains(&words[2]),
            word => keyword || assignment || known.contains(&word),
        };
        assert!(fits, "boot.cmd:{line}: `{command}`");
        let rest = command.replace("${", "").replace("!=", "");
        assert!(
            !rest.contains(['$', '`', '\'', '!', '[', '(', '|', '<', '>', '\\', '&']),
            "boot.cmd:{line}: `{command}`"
        );
    }
}

#[test]
fn the_script_uses_exactly_the_daemon_s_variables() {
    let script = script();
    let found: BTreeSet<_> = script
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.starts_with("fwupdated_"))
        .collect();
    let mut expected = BTreeSet::from(NAMES);
    expected.insert(MARK);
    assert_eq!(found, expected);
}

#[test]
fn mkimage_makes_a_boot_scr_of_it() {
    let dir = tempfile::tempdir().unwrap();
    if let Some(image) = mkimage(&script(), dir.path()) {
        let listed = Command::new("mkimage")
            .arg("-l")
            .arg(&image)
            .output()
            .unwrap();
        let listed = String::from_utf8(listed.stdout).unwrap();
        assert!(listed.contains("Script"), "{listed}");
    }
}

/// A `boot.scr` of `script` in `dir`; `None`, after saying why, without `mkimage`.
fn mkimage(script: &str, dir: &Path) -> Option<PathBuf> {
    let (source, image) = (dir.join("boot.cmd"), dir.join("boot.scr"));
    fs::write(&source, script).unwrap();
    let made = Command::new("mkimage")
        .args(["-T", "script", "-d"])
        .args([&source, &image])
        .output();
    match made {
        Ok(made) => {
            assert!(made.status.success(), "{made:?}");
            Some(image)
        }
        Err(error) => {
            skip::skipped(format_args!("mkimage (package u-boot-tools): {error}"));
            None
        }
    }
}

/// The program of a real U-Boot; `None`, after saying why, where there is none.
fn real_u_boot() -> Option<PathBuf> {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/uboot/sandbox/u-boot");
    if built.exists() {
        return Some(built);
    }
    assert!(
        std::env::var_os("UBOOT_SANDBOX").is_none_or(|value| value != "required"),
        "{} is missing",
        built.display()
    );
    skip::skipped(format_args!(
        "{} is missing; tests/uboot/sandbox.sh builds it",
        built.display()
    ));
    None
}

/// Lets a real U-Boot run the script's decision for each of `rows`, with the disk `disk`. What it answers for
/// each: how often it saved, the slot, the variables.
fn decide_for_real(
    program: &Path,
    disk: &Path,
    rows: &[Vec<(&str, &str)>],
) -> Vec<(usize, String, Variables)> {
    let script = script();
    let (decision, _) = script.split_once("### Load and start").unwrap();
    let decision = decision
        .replace("fwup_disk_type=mmc", "fwup_disk_type=host")
        // The sandbox has nowhere to store an environment: count instead.
        .replace("if saveenv;", "if setenv test_saves ${test_saves}1;");
    let dir = tempfile::tempdir().unwrap();
    let image = mkimage(&decision, dir.path()).expect("mkimage");
    let mut commands = format!(
        "host load hostfs - 1000000 {}\nhost bind 0 {}\nsetenv kernel_addr_r 2000000\n",
        image.display(),
        disk.display()
    );
    for variables in rows {
        for name in NAMES.iter().chain(&["test_saves"]) {
            commands += &format!("setenv {name}\n");
        }
        for (name, value) in variables {
            commands += &format!("setenv {name} '{value}'\n");
        }
        let shown = NAMES.map(|name| format!("${{{name}}}")).join("|");
        commands += &format!("source 1000000\necho \"@${{test_saves}}|${{fwup_slot}}|{shown}\"\n");
    }
    let output = Command::new(program)
        .arg("-c")
        .arg(commands)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let told = said.lines().filter_map(|line| line.strip_prefix('@'));
    let told: Vec<_> = told
        .map(|told| {
            let words: Vec<_> = told.splitn(3, '|').collect();
            (words[0].len(), words[1].to_owned(), from_told(words[2]))
        })
        .collect();
    assert_eq!(told.len(), rows.len(), "{said}");
    told
}

/// A disk whose partition `boot` holds `mark` as `/fwupdated.slot`; without a mark no partition has that name.
fn disk(dir: &Path, mark: Option<&str>) -> PathBuf {
    const START: u64 = 1 << 20;
    let (disk, files, system) = (dir.join("disk"), dir.join("files"), dir.join("system"));
    let _ = fs::remove_dir_all(&files);
    fs::create_dir(&files).unwrap();
    if let Some(mark) = mark {
        fs::write(files.join("fwupdated.slot"), mark).unwrap();
    }
    let succeed = |command: &mut Command| {
        let output = command
            .output()
            .unwrap_or_else(|e| panic!("{command:?}: {e}"));
        assert!(output.status.success(), "{command:?}: {output:?}");
    };
    fs::write(&system, vec![0; 4 << 20]).unwrap();
    succeed(
        Command::new("mkfs.ext4")
            .args(["-q", "-F", "-d"])
            .args([&files, &system]),
    );
    let file = fs::File::create(&disk).unwrap();
    file.set_len(8 << 20).unwrap();
    let name = if mark.is_some() { "boot" } else { "other" };
    let table = dir.join("table");
    let text = format!(
        "label: gpt\nstart={}, size=8192, name={name}\n",
        START / 512
    );
    fs::write(&table, text).unwrap();
    succeed(
        Command::new("sfdisk")
            .arg("-q")
            .arg(&disk)
            .stdin(fs::File::open(&table).unwrap()),
    );
    file.write_all_at(&fs::read(&system).unwrap(), START)
        .unwrap();
    disk
}

#[test]
fn a_real_u_boot_decides_the_same() {
    let Some(program) = real_u_boot() else { return };
    let dir = tempfile::tempdir().unwrap();
    let disk = disk(dir.path(), None);
    for rows in table().chunks(200) {
        let told = decide_for_real(&program, &disk, rows);
        for (variables, (saves, slot, stored)) in rows.iter().zip(told) {
            let (expected, before, after) = model(variables);
            assert_eq!(saves, usize::from(before != after), "{variables:?}");
            assert_eq!(slot, expected.name(), "{variables:?}");
            assert_eq!(stored, after, "{variables:?}");
        }
    }
}

#[test]
fn a_real_u_boot_finds_the_confirmed_slot_by_its_mark_when_the_environment_is_lost() {
    let Some(program) = real_u_boot() else { return };
    let dir = tempfile::tempdir().unwrap();
    for (text, mark) in MARKS {
        let disk = disk(dir.path(), Some(text));
        let rows = [
            vec![],
            vec![(names::SLOT, "x")],
            vec![(names::TRIAL, "b"), (names::TRIES, "2")],
            vec![(names::SLOT, "a")],
        ];
        let told = decide_for_real(&program, &disk, &rows);
        for (variables, (saves, slot, stored)) in rows.iter().zip(told) {
            let (expected, before, after) = model_with(variables, *mark);
            let case = format!("{text:?}, {variables:?}");
            assert_eq!(saves, usize::from(before != after), "{case}");
            assert_eq!((&*slot, stored), (expected.name(), after), "{case}");
        }
    }
}
