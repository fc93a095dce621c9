//! The newcomer's path: `docs/tutorial/first-update.md`, each command as it stands there, on the programs of this build.

mod support;

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Command, Stdio},
};

use support::{
    rig::{program, run},
    skipped,
};

const PAGE: &str = include_str!("../docs/tutorial/first-update.md");

/// The commands of the page, in order.
fn commands() -> Vec<&'static str> {
    PAGE.lines()
        .filter_map(|line| line.strip_prefix("$ "))
        .collect()
}

#[test]
fn the_newcomer_s_path_has_under_ten_commands() {
    let commands = commands();
    assert!(commands.len() < 10, "{commands:#?}");
    assert!(PAGE.contains("# Tutorial: a first update in nine commands"));
    assert_eq!(commands.len(), 9, "{commands:#?}");
    // Nothing to type is hidden in another form.
    assert_eq!(
        PAGE.matches("```").count(),
        2 * PAGE.matches("```console").count()
    );
}

#[test]
fn the_newcomer_s_path_leads_to_an_update() {
    // Its ports are fixed; in a network of its own nobody else has them.
    if !nix::unistd::Uid::effective().is_root() {
        skipped("the newcomer's path: needs root for a network of its own");
        return;
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR"));
    // With the whole workspace, as the tests are built: for one package alone cargo would choose other features of the
    // crates below, and build them again.
    run(Command::new(env!("CARGO"))
        .args(["build", "--locked", "--workspace", "--bins"])
        .current_dir(source));
    let dir = tempfile::tempdir().unwrap();
    let programs = program("fwupdated").parent().unwrap().to_owned();
    let path = std::env::var("PATH").unwrap();
    let mut shell = Command::new("unshare")
        // When the shell ends, so does what runs in the background.
        .args([
            "--net",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "bash",
        ])
        .arg("-e")
        .current_dir(dir.path())
        .env(
            "PATH",
            format!("{}:{path}:/usr/sbin:/sbin", programs.display()),
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut types = shell.stdin.take().unwrap();
    let lines = BufReader::new(shell.stdout.take().unwrap()).lines();
    let mut type_line = |line: &str| writeln!(types, "{line}").unwrap();
    type_line("exec 2>&1; ip link set lo up");
    for command in commands() {
        if command.starts_with("sudo apt-get install ") {
            // The packages are installed in tests/vm; here are the programs that they bring.
            continue;
        }
        let board = source.join("packaging/practice/practice-board");
        type_line(&command.replace(
            "/usr/share/fwupdated/practice-board",
            board.to_str().unwrap(),
        ));
        if command.ends_with("hub.json &") {
            // A person reads the page meanwhile.
            type_line("until [ -s hub.json ]; do sleep 0.1; done");
        }
        if command.contains("practice-board device") {
            type_line(
                "until fwupdatectl --socket device/control status --json 2>/dev/null | \
                 jq -e '(.status // .).hub.connected' >/dev/null; do sleep 0.1; done",
            );
        }
    }
    type_line("fwupdatectl --socket device/control status --json; echo THE END; exit");
    let mut seen = Vec::new();
    for line in lines {
        let line = line.unwrap();
        let is_end = line == "THE END";
        seen.push(line);
        if is_end {
            break;
        }
    }
    let _ = shell.wait();
    let text = seen.join("\n");
    assert!(text.ends_with("THE END"), "{text}");
    assert!(text.contains("practice-board: slot b boots"), "{text}");
    let status: serde_json::Value = serde_json::from_str(&seen[seen.len() - 2])
        .unwrap_or_else(|error| panic!("{error}\n{text}"));
    let status = status.get("status").unwrap_or(&status);
    assert_eq!(status["bootedSlot"], "b", "{text}");
    assert_eq!(status["update"]["stage"], "applyComplete", "{text}");
    let rootfs = fs::read(dir.path().join("rootfs.img")).unwrap();
    let slot = fs::read(dir.path().join("device/slot-b.img")).unwrap();
    assert!(slot.starts_with(&rootfs), "slot b holds something else");
}
