//! The systemd units: systemd understands them, the sandbox is as tight as stated, and the daemon's defaults
//! fit into it.

#[path = "support/skip.rs"]
mod skip;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use fwupdated::config::Config;

/// Highest exposure that `systemd-analyze security` may find in the daemon's unit, tenths (0 safe, 100
/// open). It was 33 with systemd 252; a newer one may weigh differently.
const EXPOSURE: &str = "37";

/// Links that Debian makes; systemd follows them in `ReadWritePaths=`.
const LINKS: [(&str, &str); 2] = [("/var/lock", "/run/lock"), ("/var/run", "/run")];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap()
}

fn units() -> Vec<PathBuf> {
    let mut units = files_in("systemd");
    units.retain(|path| {
        path.extension()
            .is_some_and(|it| it == "service" || it == "timer")
    });
    assert!(units.len() >= 3, "{units:?}");
    units
}

/// The files of a folder, without those in folders below; none when there is no such folder.
fn files_in(folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join(folder)).into_iter().flatten();
    let mut files: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    files
}

/// What is assigned to `key` in a unit, all assignments, split at blanks.
fn values(unit: &str, key: &str) -> Vec<String> {
    let assignments = unit.lines().filter_map(|line| line.split_once('='));
    assignments
        .filter(|(name, _)| *name == key)
        .flat_map(|(_, value)| value.split_whitespace())
        .map(str::to_owned)
        .collect()
}

fn value(unit: &str, key: &str) -> String {
    let values = values(unit, key);
    assert_eq!(values.len(), 1, "{key}= {values:?}");
    values.into_iter().next().unwrap()
}

/// `None`, after saying why, without the tool.
fn systemd_analyze(arguments: &[&str], units: &[PathBuf]) -> Option<(bool, String)> {
    let output = Command::new("systemd-analyze")
        .args(arguments)
        .args(units)
        .output();
    match output {
        Ok(output) => {
            let said = [output.stdout, output.stderr].concat();
            Some((
                output.status.success(),
                String::from_utf8_lossy(&said).into_owned(),
            ))
        }
        Err(error) => {
            skip::skipped(format_args!(
                "systemd-analyze: {error}; tests/setup.sh installs it"
            ));
            None
        }
    }
}

/// The units in `dir`, with the programs that were built here in place of installed ones.
fn as_built(dir: &Path) -> Vec<PathBuf> {
    units()
        .iter()
        .map(|path| {
            let copy = dir.join(path.file_name().unwrap());
            let unit = fs::read_to_string(path).unwrap();
            let unit = unit.replace(
                "=/usr/bin/fwupdated\n",
                concat!("=", env!("CARGO_BIN_EXE_fwupdated"), "\n"),
            );
            fs::write(&copy, unit).unwrap();
            copy
        })
        .collect()
}

/// What `systemd-analyze verify` says of our units; it exits with 0 for a key that it does not know.
fn complaints(dir: &Path) -> Option<Vec<String>> {
    let (_, said) = systemd_analyze(&["verify", "--man=no"], &as_built(dir))?;
    let ours = said.lines().filter(|line| line.contains("fwupdated"));
    Some(ours.map(str::to_owned).collect())
}

#[test]
fn systemd_has_nothing_to_say_against_the_units() {
    let dir = tempfile::tempdir().unwrap();
    if let Some(complaints) = complaints(dir.path()) {
        assert!(complaints.is_empty(), "{complaints:#?}");
    }
}

#[test]
fn a_mistake_in_a_unit_would_be_seen() {
    let dir = tempfile::tempdir().unwrap();
    let unit = text("systemd/fwupdated.service").replace("WatchdogSec=", "WatchdogSecs=");
    let path = dir.path().join("fwupdated.service");
    fs::write(&path, unit).unwrap();
    if let Some((_, said)) = systemd_analyze(&["verify", "--man=no"], &[path]) {
        assert!(said.contains("WatchdogSecs"), "{said}");
    }
}

#[test]
fn the_sandbox_is_as_tight_as_stated() {
    let unit = [root().join("systemd/fwupdated.service")];
    let threshold = format!("--threshold={EXPOSURE}");
    let arguments = ["security", "--offline=true", "--no-pager", &threshold];
    if let Some((below, said)) = systemd_analyze(&arguments, &unit) {
        assert!(below, "more open than {EXPOSURE} tenths:\n{said}");
        assert!(said.contains("Overall exposure level"), "{said}");
    }
}

fn without_links(path: &Path) -> PathBuf {
    for (link, target) in LINKS {
        if let Ok(rest) = path.strip_prefix(link) {
            return Path::new(target).join(rest);
        }
    }
    path.to_owned()
}

/// Whether the unit lets the daemon write to `path`.
fn writable(unit: &str, path: &Path) -> bool {
    assert_eq!(value(unit, "ProtectSystem"), "strict");
    let managed = |key, base: &'static str| {
        let names = values(unit, key);
        names.into_iter().map(move |name| format!("{base}/{name}"))
    };
    let listed = values(unit, "ReadWritePaths")
        .into_iter()
        .map(|path| path.trim_start_matches('-').to_owned());
    let path = without_links(path);
    managed("StateDirectory", "/var/lib")
        .chain(managed("RuntimeDirectory", "/run"))
        .chain(listed)
        .any(|allowed| path.starts_with(allowed))
}

/// `state.directory` in the example of how to prepare a board.
fn documented_state() -> PathBuf {
    let page = text("docs/how-to/prepare-a-board.md");
    let (_, example) = page.split_once("\n[state]\ndirectory = \"").unwrap();
    example.split('"').next().unwrap().into()
}

#[test]
fn every_path_of_the_default_configuration_fits_the_sandbox() {
    let unit = text("systemd/fwupdated.service");
    let config = Config::built_in();
    for path in [
        &config.state.directory,
        &config.control.socket,
        &config.bootloader.lock_file,
        // Places of a bootloader environment in a file, on Debian and on Raspberry Pi OS.
        Path::new("/boot/uboot.env"),
        Path::new("/boot/firmware/uboot.env"),
        // The metrics, as docs/reference/metrics.md says.
        Path::new("/var/lib/prometheus/node-exporter/fwupdated.prom"),
        // The state of a board that is prepared as documented.
        &documented_state(),
    ] {
        assert!(writable(&unit, path), "{} is read-only", path.display());
    }
    assert!(!writable(&unit, Path::new("/etc/passwd")));

    let mut read = vec![
        config.bootloader.env_config.clone(),
        config.policy.hook_dir.clone(),
        config.health.hook_dir.clone(),
        config.control.os_release.clone(),
    ];
    read.extend(config.hub.connection_string_file.clone());
    read.extend(config.trust.key_dirs.clone());
    read.extend(config.trust.revoked_dirs.clone());
    read.extend(fwupdated::config::FILES.map(PathBuf::from));
    read.push(fwupdated::config::DROP_IN_DIR.into());
    for key in [
        "InaccessiblePaths",
        "TemporaryFileSystem",
        "NoExecPaths",
        "RootDirectory",
        "RootImage",
    ] {
        assert!(
            values(&unit, key).is_empty(),
            "{key}= hides paths: check them here"
        );
    }
    for path in read {
        let path = without_links(&path);
        // PrivateTmp= replaces these.
        assert!(
            !path.starts_with("/tmp") && !path.starts_with("/var/tmp"),
            "{path:?}"
        );
        assert!(
            !["/home", "/root", "/run/user"]
                .iter()
                .any(|hidden| path.starts_with(hidden))
        );
    }
}

#[test]
fn block_devices_can_be_written_and_nothing_undoes_it() {
    let unit = text("systemd/fwupdated.service");
    assert_eq!(values(&unit, "DeviceAllow"), ["block-*", "rw"]);
    assert!(
        values(&unit, "PrivateDevices").is_empty(),
        "it hides block devices"
    );
    assert!(
        values(&unit, "PrivateUsers").is_empty(),
        "root must own devices"
    );
    let kept = values(&unit, "CapabilityBoundingSet");
    for capability in ["CAP_SYS_ADMIN", "CAP_SYS_BOOT"] {
        assert!(kept.iter().any(|kept| kept == capability), "{capability}");
    }
}

#[test]
fn files_can_be_carried_over_with_all_that_belongs_to_them() {
    let unit = text("systemd/fwupdated.service");
    let kept = values(&unit, "CapabilityBoundingSet");
    for needed in [
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "SETFCAP",
        "SYS_ADMIN",
    ] {
        assert!(kept.contains(&format!("CAP_{needed}")), "{needed}");
    }
    assert!(values(&unit, "SystemCallFilter").contains(&"@mount".to_owned()));
    assert!(
        values(&unit, "RestrictSUIDSGID").is_empty(),
        "folders have such modes"
    );
    // What systemd means by these groups has the calls.
    let groups = [
        "syscall-filter",
        "@mount",
        "@system-service",
        "@file-system",
    ];
    if let Some((_, said)) = systemd_analyze(&groups, &[]) {
        for call in ["fsopen", "fsconfig", "fsmount", "openat2", "fsetxattr"] {
            assert!(said.split_whitespace().any(|word| word == call), "{call}");
        }
    }
}

#[test]
fn what_the_daemon_reads_of_proc_and_the_network_is_left_to_it() {
    let unit = text("systemd/fwupdated.service");
    for key in [
        "ProcSubset",
        "PrivateNetwork",
        "IPAddressDeny",
        "ProtectProc",
    ] {
        assert!(values(&unit, key).is_empty(), "{key}=");
    }
    let families = values(&unit, "RestrictAddressFamilies");
    for family in ["AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK"] {
        assert!(families.iter().any(|allowed| allowed == family), "{family}");
    }
}

#[test]
fn the_daemon_speaks_to_systemd_as_the_unit_expects() {
    let unit = text("systemd/fwupdated.service");
    let daemon = text("src/daemon/mod.rs");
    assert_eq!(value(&unit, "Type"), "notify");
    assert!(daemon.contains("service_manager::ready()"));
    assert!(!values(&unit, "WatchdogSec").is_empty());
    assert!(text("src/daemon/supervise.rs").contains("watchdog_ping()"));
    // A credential's name: `NAME:FILE`.
    let identity = text("src/daemon/identity.rs");
    let credentials = values(&unit, "LoadCredential");
    assert_eq!(credentials.len(), 4);
    for credential in credentials {
        let (name, file) = credential.split_once(':').unwrap();
        assert!(identity.contains(&format!("\"{name}\"")), "{name}");
        assert!(
            !file.contains('/'),
            "with a whole path a missing file is an error"
        );
        let modes = text("systemd/tmpfiles.d/fwupdated.conf");
        assert!(
            modes.contains(&format!("/etc/credstore/{file} ")) || name == "device_certificate",
            "{name}: the mode of a secret is kept"
        );
    }
    // A daemon that gave up for good could not be repaired from afar.
    assert_eq!(value(&unit, "StartLimitIntervalSec"), "0");
    assert!(values(&unit, "RestartPreventExitStatus").is_empty());
}

#[test]
fn what_the_health_gate_asks_for_by_default_is_pulled_in() {
    let unit = text("systemd/fwupdated.service");
    let wanted = values(&unit, "Wants");
    for needed in Config::built_in().health.units {
        assert!(wanted.contains(&needed), "nothing starts {needed}");
        assert!(
            !values(&unit, "After").contains(&needed),
            "it would wait for {needed}"
        );
    }
}

fn minutes(text: &str) -> Duration {
    let number = text.strip_suffix("min").expect("minutes");
    Duration::from_secs(60 * number.parse::<u64>().unwrap())
}

#[test]
fn a_trial_s_last_resort_comes_after_the_daemon_s_own_deadline_and_only_in_a_trial() {
    let timer = text("systemd/fwupdated-trial.timer");
    let after = minutes(&value(&timer, "OnBootSec"));
    assert!(after >= Config::built_in().health.deadline + Duration::from_secs(300));
    let service = text("systemd/fwupdated-trial.service");
    let script = text("packaging/uboot/boot.cmd");
    for unit in [&timer, &service] {
        // The condition has a `=` of its own.
        let condition = "ConditionKernelCommandLine=fwupdated.boot=trial\n";
        assert!(unit.contains(condition));
    }
    assert!(script.contains("fwupdated.boot=${fwup_boot}") && script.contains("fwup_boot=trial\n"));
    // What comes to nothing is tried again.
    assert!(minutes(&value(&timer, "OnUnitActiveSec")) >= Duration::from_secs(60));
    assert!(
        values(&text("systemd/fwupdated.service"), "Also")
            .contains(&"fwupdated-trial.timer".to_owned())
    );
}

/// The shell command of the trial service's condition, as systemd hands it to sh.
fn trial_condition() -> String {
    let service = text("systemd/fwupdated-trial.service").replace("\\\n", " ");
    let line = service
        .lines()
        .find_map(|line| line.strip_prefix("ExecCondition=/bin/sh -c '"));
    let command = line.unwrap().strip_suffix('\'').unwrap();
    assert!(
        !command.contains(['\'', '\\', '%']),
        "systemd would read it otherwise: {command}"
    );
    command.replace("$$", "$")
}

/// Runs the condition 20 minutes into a boot with `command_line`, with `confirmed` in the bootloader's environment
/// (`None`: it cannot be read). Whether the device is to reboot, and what systemctl was asked.
fn ask_trial_condition(command_line: &str, confirmed: Option<&str>) -> (bool, String) {
    ask_trial_condition_after(1200, command_line, confirmed)
}

/// The same, so many seconds into the boot.
fn ask_trial_condition_after(
    uptime: u32,
    command_line: &str,
    confirmed: Option<&str>,
) -> (bool, String) {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let program = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    let name = fwupdated::platform::uboot_env::names::SLOT;
    let answer = match confirmed {
        Some(slot) => format!("test \"$*\" = \"-n {name}\" && echo {slot}"),
        None => "echo 'Cannot read environment' >&2; exit 1".to_owned(),
    };
    program("fw_printenv", &answer);
    let asked = dir.path().join("asked");
    program("systemctl", &format!("echo \"$*\" >>{}", asked.display()));
    let proc = dir.path().join("cmdline");
    fs::write(&proc, format!("{command_line}\n")).unwrap();
    let clock = dir.path().join("uptime");
    fs::write(&clock, format!("{uptime}.25 {uptime}.00\n")).unwrap();
    let command = trial_condition();
    assert!(command.contains("/proc/cmdline") && command.contains("/proc/uptime"));
    let command = command.replace("/proc/cmdline", proc.to_str().unwrap());
    let limit = value(&text("systemd/fwupdated-trial.service"), "Environment");
    let (name, limit) = limit.split_once('=').unwrap();
    let ended = Command::new("/bin/sh")
        .arg("-c")
        .arg(command.replace("/proc/uptime", clock.to_str().unwrap()))
        .env(name, limit)
        .env("PATH", format!("{}:/usr/bin:/bin", dir.path().display()))
        .status()
        .unwrap();
    // 0: go on; 1 to 254: nothing to do; else the unit fails.
    let code = ended.code().unwrap();
    assert!(code == 0 || code == 1, "{ended}");
    (code == 0, fs::read_to_string(asked).unwrap_or_default())
}

#[test]
fn the_last_resort_reboots_while_the_running_slot_is_not_the_confirmed_one() {
    let trial = "console=ttyS0 root=/dev/mmcblk0p3 fwupdated.slot=b fwupdated.boot=trial ro";
    // Whether or not the trial was ended in the bootloader: a rollback does that before its reboot.
    let nothing = String::new();
    assert_eq!(
        ask_trial_condition(trial, Some("a")),
        (true, nothing.clone())
    );
    // Confirmed: the timer has done its work.
    let stop = "--no-block stop fwupdated-trial.timer\n".to_owned();
    assert_eq!(ask_trial_condition(trial, Some("b")), (false, stop));
    // Nothing is known for certain: asked again later.
    assert_eq!(ask_trial_condition(trial, None), (false, nothing.clone()));
    assert_eq!(
        ask_trial_condition(trial, Some("")),
        (false, nothing.clone())
    );
    let without = "console=ttyS0 fwupdated.boot=trial";
    assert_eq!(ask_trial_condition(without, Some("a")), (false, nothing));
}

#[test]
fn the_last_resort_gives_up_a_trial_whose_environment_stays_unreadable() {
    let trial = "root=/dev/mmcblk0p3 fwupdated.slot=b fwupdated.boot=trial ro";
    let reboots = |uptime, confirmed| ask_trial_condition_after(uptime, trial, confirmed).0;
    assert!(!reboots(3599, None) && reboots(3600, None) && reboots(3600, Some("")));
    assert!(!reboots(3600, Some("b")), "confirmed");
    let without = "console=ttyS0 fwupdated.boot=trial";
    assert!(!ask_trial_condition_after(3600, without, None).0);
}

#[test]
fn the_last_resort_needs_neither_the_system_bus_nor_logind_and_cannot_hang() {
    let service = text("systemd/fwupdated-trial.service");
    let command = values(&service, "ExecStart");
    assert_eq!(
        command,
        ["/bin/systemctl", "--no-block", "--force", "reboot"]
    );
    assert!(minutes(&value(&service, "TimeoutStartSec")) <= Duration::from_secs(120));
    // The daemon's own last step is the same, and its sandbox lets it reach PID 1's socket and run systemctl.
    let unit = text("systemd/fwupdated.service");
    assert!(values(&unit, "RestrictAddressFamilies").contains(&"AF_UNIX".to_owned()));
    assert!(values(&unit, "CapabilityBoundingSet").contains(&"CAP_SYS_BOOT".to_owned()));
    assert_eq!(fwupdated::platform::reboot::FORCED.as_slice(), command);
    let hiding = [
        "InaccessiblePaths",
        "TemporaryFileSystem",
        "NoExecPaths",
        "RootDirectory",
    ];
    assert!(hiding.iter().all(|key| values(&unit, key).is_empty()));
}

#[test]
fn the_group_of_the_socket_is_made_and_the_operator_s_folders_too() {
    let unit = text("systemd/fwupdated.service");
    let group = value(&unit, "Group");
    let sysusers = text("systemd/sysusers.d/fwupdated.conf");
    assert!(
        sysusers
            .lines()
            .any(|line| line.starts_with(&format!("g {group} ")))
    );

    let tmpfiles = text("systemd/tmpfiles.d/fwupdated.conf");
    let made: BTreeSet<_> = tmpfiles
        .lines()
        .filter_map(|line| line.strip_prefix("d ")?.split_whitespace().next())
        .collect();
    let config = Config::built_in();
    let mut folders = vec![config.policy.hook_dir, config.health.hook_dir];
    folders.extend(config.trust.key_dirs);
    folders.extend(config.trust.revoked_dirs);
    folders.push(fwupdated::config::DROP_IN_DIR.into());
    for folder in folders.iter().filter(|folder| folder.starts_with("/etc")) {
        assert!(
            made.contains(folder.to_str().unwrap()),
            "{}",
            folder.display()
        );
    }
    let secret = config.hub.connection_string_file.unwrap();
    let kept = tmpfiles
        .lines()
        .find(|line| line.starts_with(&format!("z {} ", secret.display())));
    assert!(kept.is_some_and(|line| line.contains(" 0600 root root ")));
}

#[test]
fn systemd_makes_the_operator_s_folders_and_the_group_from_these_files() {
    if !nix::unistd::geteuid().is_root() {
        skip::skipped(format_args!("only root may give files to root"));
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = |path: &str| dir.path().join(path.trim_start_matches('/'));
    fs::create_dir_all(at("/etc/fwupdated")).unwrap();
    fs::create_dir_all(at("/etc/credstore")).unwrap();
    fs::write(at("/etc/passwd"), "root:x:0:0::/root:/bin/sh\n").unwrap();
    fs::write(at("/etc/group"), "root:x:0:\n").unwrap();
    let secret = at("/etc/fwupdated/connection-string");
    fs::write(&secret, "HostName=x").unwrap();
    for (tool, arguments, file) in [
        (
            "systemd-sysusers",
            None,
            "systemd/sysusers.d/fwupdated.conf",
        ),
        (
            "systemd-tmpfiles",
            Some("--create"),
            "systemd/tmpfiles.d/fwupdated.conf",
        ),
    ] {
        let mut root_argument = std::ffi::OsString::from("--root=");
        root_argument.push(dir.path());
        // With a root of its own the tool looks for the file there.
        let copy = at(file.strip_prefix("systemd").unwrap());
        fs::create_dir_all(copy.parent().unwrap()).unwrap();
        fs::copy(root().join(file), &copy).unwrap();
        let output = Command::new(tool)
            .arg(&root_argument)
            .args(arguments)
            .arg(&copy)
            .output();
        match output {
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                let fine = said.lines().all(|line| line.starts_with("Creating group"));
                assert!(output.status.success() && fine, "{tool}: {said}");
            }
            Err(error) => {
                skip::skipped(format_args!("{tool}: {error}"));
                return;
            }
        }
    }
    let groups = fs::read_to_string(at("/etc/group")).unwrap();
    assert!(groups.contains("\nfwupdated:x:"), "{groups}");
    assert!(at("/etc/fwupdated/health.d").is_dir());
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(
        fs::metadata(secret).unwrap().permissions().mode() & 0o777,
        0o600
    );
}

#[test]
fn the_package_has_each_file_where_it_is_looked_for() {
    let manifest = text("Cargo.toml");
    let mut files = files_in("systemd");
    assert!(files.len() >= units().len());
    for folder in ["sysusers.d", "tmpfiles.d", "system.conf.d"] {
        files.push(root().join(format!("systemd/{folder}/fwupdated.conf")));
    }
    files.extend(files_in("packaging/dbus"));
    files.extend(files_in("packaging/polkit"));
    for file in files {
        let file = file.strip_prefix(root()).unwrap().to_str().unwrap();
        let (folder, name) = file.rsplit_once('/').unwrap();
        let (_, extension) = name.rsplit_once('.').unwrap();
        let place = match (folder, extension) {
            ("systemd", "catalog") => "usr/lib/systemd/catalog/",
            ("systemd", _) => "usr/lib/systemd/system/",
            ("systemd/system.conf.d", _) => "usr/lib/systemd/system.conf.d/10-fwupdated.conf",
            ("packaging/dbus", "conf") => "usr/share/dbus-1/system.d/",
            ("packaging/dbus", "service") => "usr/share/dbus-1/system-services/",
            ("packaging/dbus", _) => "usr/share/dbus-1/interfaces/",
            ("packaging/polkit", "rules") => "usr/share/polkit-1/rules.d/",
            ("packaging/polkit", _) => "usr/share/polkit-1/actions/",
            (below, _) => &format!("usr/lib/{}/", below.trim_start_matches("systemd/")),
        };
        let asset = format!("[\"{file}\", \"{place}\", \"644\"]");
        assert!(manifest.contains(&asset), "Cargo.toml lacks {asset}");
    }
}
