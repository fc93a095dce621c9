//! `fwupdatectl config check` and the local commands without a daemon, by the real program.

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
