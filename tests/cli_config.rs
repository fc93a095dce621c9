//! `fwupdatectl config` and the local commands without a daemon, by the real program.

use std::{fs, path::Path, process::Output};

fn fwupdatectl(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    std::process::Command::new(env!("CARGO_BIN_EXE_fwupdatectl"))
        .args(arguments)
        .env_clear()
        .envs(variables.iter().copied())
        .output()
        .unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_right_file_is_said_to_be_right() {
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/etc/fwupdated/fwupdated.toml");
    let output = fwupdatectl(&["config", "check", shipped], &[]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stdout(&output), "the configuration is valid\n");
    assert!(stderr(&output).contains("no slots are configured"));
    assert_eq!(
        fwupdatectl(&["--config", shipped, "config", "check"], &[])
            .status
            .code(),
        Some(0)
    );
}

#[test]
fn a_mistake_is_shown_with_its_place_and_code() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("my.toml");
    fs::write(&file, "[hub]\nkeep_alve = \"1m\"\n").unwrap();
    let output = fwupdatectl(&["config", "check", text(&file)], &[]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        stderr(&output),
        format!(
            "fwupdatectl: {}:2:1: unknown key `hub.keep_alve`; did you mean `hub.keep_alive`? [config-unknown-key]\n",
            file.display()
        )
    );
    assert_eq!(stdout(&output), "");
}

#[test]
fn a_wrong_variable_is_shown_by_name() {
    let output = fwupdatectl(
        &["config", "check", "/dev/null"],
        &[("FWUPDATED_BOOTLOADER__TRIES", "99")],
    );
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        stderr(&output),
        "fwupdatectl: FWUPDATED_BOOTLOADER__TRIES: bootloader.tries is 99; allowed is 1 to 9 [config-value]\n"
    );
}

#[test]
fn a_file_that_is_not_there_is_an_error() {
    let output = fwupdatectl(&["--config", "/nowhere/x.toml", "config", "check"], &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("[config-missing-file]"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn an_address_with_a_mistake_is_not_repeated_with_its_secrets() {
    for arguments in [
        &["install", "ftp://store/x?sig=SECRET"][..],
        &["install", "//user:SECRET@x"],
        &["install", "https//store/x?sig=SECRET"],
        &["install", "user:SECRET@store/x"],
        &[
            "hub",
            "--connection-string",
            "HostName=x;SharedAccessKey=SECRET",
            "list",
        ],
        &["hub", "--connection-string", "SECRET", "list"],
    ] {
        let output = fwupdatectl(arguments, &[]);
        assert!(
            output
                .status
                .code()
                .is_some_and(|code| code == 2 || code == 3),
            "{arguments:?}"
        );
        assert!(!stderr(&output).contains("SECRET"), "{}", stderr(&output));
    }
    let output = fwupdatectl(
        &["hub", "list"],
        &[(
            "FWUPDATED_HUB_CONNECTION_STRING",
            "HostName=x;SharedAccessKeyName=y;SharedAccessKey=SECRET!",
        )],
    );
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        stderr(&output),
        "fwupdatectl: SharedAccessKey in the connection string is not base64; copy it whole [hub-connection-string]\n"
    );
}

#[test]
fn output_that_nobody_reads_is_no_crash() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = std::process::Command::new(env!("CARGO_BIN_EXE_fwupdatectl"))
        .args(["config", "check", "/dev/null"])
        .env_clear()
        .stdout(writer)
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(141));
}

#[test]
fn what_counts_is_shown_with_where_it_comes_from_and_means_the_same_when_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("connection-string");
    fs::write(
        &secret,
        "HostName=h.example;DeviceId=d;SharedAccessKey=U0VDUkVU",
    )
    .unwrap();
    let file = dir.path().join("my.toml");
    let written = format!(
        "[hub]\nconnection_string_file = \"{}\"\n[bootloader]\nkind = \"file\"\nbooted_file = \"/b\"\n",
        text(&secret)
    );
    fs::write(&file, written).unwrap();
    let variables = [("FWUPDATED_HUB__KEEP_ALIVE", "2m")];
    let output = fwupdatectl(&["--config", text(&file), "config", "show"], &variables);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let shown = stdout(&output);
    assert!(!shown.contains("U0VDUkVU"), "{shown}");
    let line = |key: &str| {
        let mut lines = shown.lines();
        let line = lines.find(|line| line.starts_with(&format!("{key} = ")));
        line.unwrap_or_else(|| panic!("no {key}\n{shown}"))
    };
    let place = |line: u8, column: u8| format!("# {}:{line}:{column}", file.display());
    assert!(line("keep_alive").ends_with("# FWUPDATED_HUB__KEEP_ALIVE"));
    assert!(line("keep_alive").starts_with("keep_alive = \"2m\""));
    assert!(line("connection_string_file").ends_with(&place(2, 26)));
    assert!(line("kind").ends_with(&place(4, 8)));
    assert!(line("mqtt_port").ends_with("# built-in"));
    // What suits this bootloader, and not what suits another one.
    for expected in [
        "units = []",
        "reboot_notice = \"0s\"",
        "max_inhibit = \"0s\"",
    ] {
        let key = expected.split(' ').next().unwrap();
        assert!(line(key).starts_with(expected), "{}", line(key));
    }

    let again = dir.path().join("again.toml");
    fs::write(&again, &shown).unwrap();
    let settings = |file: &Path, variables: &[(&str, &str)]| {
        let output = fwupdatectl(
            &["--config", text(file), "config", "show", "--json"],
            variables,
        );
        let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let settings = document["settings"].as_array().unwrap().clone();
        let values = settings
            .iter()
            .map(|setting| (setting["key"].clone(), setting["value"].clone()));
        values.collect::<Vec<_>>()
    };
    let first = settings(&file, &variables);
    assert!(first.len() > 60, "{first:?}");
    assert_eq!(settings(&again, &[]), first);
}

#[test]
fn nothing_is_shown_of_a_configuration_that_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("my.toml");
    fs::write(&file, "[hub]\nproxy = \"http://me:hunter2@proxy:3128\"\n").unwrap();
    let output = fwupdatectl(&["--config", text(&file), "config", "show"], &[]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(stdout(&output), "");
    let said = stderr(&output);
    assert!(
        said.contains("my.toml:2:9") && !said.contains("hunter2"),
        "{said}"
    );
}

/// `config init` below `folder`, of a board whose partitions are told, with these options too.
fn init(folder: &Path, more: &[&str]) -> Output {
    let mut arguments = vec!["config", "init", "--to", text(folder)];
    let board = "--bootloader uboot --slot-a PARTLABEL=root-a --slot-b PARTLABEL=root-b";
    arguments.extend(board.split(' '));
    arguments.extend(more);
    fwupdatectl(&arguments, &[])
}

const CONNECTION_STRING: &str = "HostName=h.example;DeviceId=d;SharedAccessKey=U0VDUkVU";

#[test]
fn a_first_configuration_is_made_by_options_alone_and_its_secret_is_root_s() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let given = dir.path().join("given");
    fs::write(&given, format!("{CONNECTION_STRING}\n")).unwrap();
    let folder = dir.path().join("etc");
    let output = init(
        &folder,
        &[
            "--connection-string-file",
            text(&given),
            "--state-directory",
            "/data/fwupdated",
        ],
    );
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let said = stdout(&output) + &stderr(&output);
    assert!(
        said.contains("next: systemctl restart fwupdated") && !said.contains("U0VDUkVU"),
        "{said}"
    );
    let board = folder.join("conf.d/10-board.toml");
    let secret = folder.join("connection-string");
    let mode = |file: &Path| fs::metadata(file).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&board), mode(&secret)), (0o644, 0o600));
    assert_eq!(
        fs::read_to_string(&secret).unwrap(),
        format!("{CONNECTION_STRING}\n")
    );
    let written = fs::read_to_string(&board).unwrap();
    let (comment, settings) = written.split_once("\n\n").unwrap();
    assert!(comment.starts_with('#'), "{written}");
    assert_eq!(
        settings,
        format!(
            "[hub]\nconnection_string_file = \"{}\"\n\n[slots.a]\nrootfs = \"PARTLABEL=root-a\"\n\n\
             [slots.b]\nrootfs = \"PARTLABEL=root-b\"\n\n[bootloader]\nkind = \"uboot\"\n\n\
             [state]\ndirectory = \"/data/fwupdated\"\n",
            text(&secret)
        )
    );
    let checked = fwupdatectl(&["config", "check", text(&board)], &[]);
    assert_eq!(stdout(&checked), "the configuration is valid\n");
    assert_eq!(stderr(&checked), "");

    // A second time nothing is touched, unless that is wanted.
    fs::write(
        &given,
        CONNECTION_STRING.replace("DeviceId=d", "DeviceId=e"),
    )
    .unwrap();
    let again = ["--connection-string-file", text(&given)];
    let output = init(&folder, &again);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("[config-init-exists]"),
        "{}",
        stderr(&output)
    );
    assert_eq!(fs::read_to_string(&board).unwrap(), written);
    let output = init(&folder, &[&again[..], &["--force"]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(fs::read_to_string(&secret).unwrap().contains("DeviceId=e"));
    assert!(!fs::read_to_string(&board).unwrap().contains("[state]"));
    assert_eq!(mode(&secret), 0o600);
}

#[test]
fn a_dry_run_shows_the_configuration_but_no_secret_and_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    fs::write(&key, "U0VDUkVU\n").unwrap();
    let folder = dir.path().join("etc");
    let output = init(
        &folder,
        &[
            "--id-scope",
            "0ne1",
            "--registration-id",
            "pi-1",
            "--symmetric-key-file",
            text(&key),
            "--dry-run",
        ],
    );
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let shown = stdout(&output);
    for expected in [
        "[provisioning]",
        "id_scope = \"0ne1\"",
        "registration_id = \"pi-1\"",
        "/etc/provisioning-key",
        "mode 0600",
    ] {
        assert!(shown.contains(expected), "no {expected}\n{shown}");
    }
    assert!(!shown.contains("U0VDUkVU"), "{shown}");
    assert!(!folder.exists());
}

#[test]
fn what_would_be_refused_later_is_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let given = dir.path().join("given");
    fs::write(
        &given,
        "HostName=h.example;DeviceId=d;SharedAccessKey=SECRET!",
    )
    .unwrap();
    let by_certificate = dir.path().join("by-certificate");
    fs::write(&by_certificate, "HostName=h.example;DeviceId=d;x509=true").unwrap();
    let folder = dir.path().join("etc");
    for (options, code) in [
        (
            &["--connection-string-file", text(&given)][..],
            "hub-key-invalid",
        ),
        (
            &["--connection-string-file", text(&by_certificate)],
            "config-init-identity",
        ),
        (
            &["--connection-string-file", "/nowhere/x"],
            "config-init-read",
        ),
        (
            &["--id-scope", "0ne1", "--registration-id", "a/b"],
            "config-value",
        ),
        (
            &[
                "--id-scope",
                "0ne1",
                "--registration-id",
                "a",
                "--symmetric-key-file",
                text(&given),
            ],
            "config-init-identity",
        ),
        (&["--bootloader", "tryboot"], "config-init-slots"),
    ] {
        let more: Vec<_> = options.to_vec();
        let output = if options[0] == "--bootloader" {
            let own = [
                "config",
                "init",
                "--to",
                text(&folder),
                "--slot-a",
                "/a",
                "--slot-b",
                "/b",
            ];
            fwupdatectl(&[&own[..], options].concat(), &[])
        } else {
            init(&folder, &more)
        };
        assert_eq!(output.status.code(), Some(2), "{options:?}");
        let said = stderr(&output);
        assert!(said.contains(&format!("[{code}]")), "{options:?}: {said}");
        assert!(!said.contains("SECRET"), "{said}");
        assert!(!folder.exists(), "{options:?}");
    }
    // A machine that is no such board: the slots are not guessed.
    let output = fwupdatectl(
        &[
            "config",
            "init",
            "--to",
            text(&folder),
            "--bootloader",
            "uboot",
        ],
        &[],
    );
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--slot-a"), "{}", stderr(&output));
    assert!(!folder.exists());
}

#[test]
fn a_person_at_a_terminal_is_asked_and_the_secret_is_not_echoed() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("etc");
    let command = format!(
        "{} config init --to {} --bootloader uboot --slot-a /dev/x1 --slot-b /dev/x2",
        env!("CARGO_BIN_EXE_fwupdatectl"),
        text(&folder)
    );
    // `script` gives the program a terminal.
    let mut person = std::process::Command::new("script")
        .args(["--quiet", "--return", "--command", &command, "/dev/null"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut types = person.stdin.take().unwrap();
    let mut sees = person.stdout.take().unwrap();
    let mut seen = String::new();
    let mut until = |words: &str| {
        use std::io::Read as _;
        let mut byte = [0];
        while !seen.contains(words) {
            assert_eq!(sees.read(&mut byte).unwrap(), 1, "no {words}\n{seen}");
            seen.push(char::from(byte[0]));
        }
        seen.clone()
    };
    use std::io::Write as _;
    until("1, 2 or 3: ");
    types.write_all(b"1\n").unwrap();
    until("(not shown): ");
    // The program turns the echo off just after the question.
    std::thread::sleep(std::time::Duration::from_millis(500));
    types
        .write_all(format!("{CONNECTION_STRING}\n").as_bytes())
        .unwrap();
    let seen = until("next: ");
    assert!(!seen.contains("SharedAccessKey"), "{seen}");
    assert!(person.wait().unwrap().success());
    let kept = fs::read_to_string(folder.join("connection-string")).unwrap();
    assert_eq!(kept, format!("{CONNECTION_STRING}\n"));
}
