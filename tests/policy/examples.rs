//! The shipped examples of hooks, run as they are, beside a NetworkManager and power supplies of the test's own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::support::bus::Bus;

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("packaging/policy.d")
        .join(name)
}

/// Runs an example with a variable; gives its exit code and the last line that it said.
fn run(name: &str, (key, value): (&str, &str)) -> (i32, String) {
    let mut command = Command::new(example(name));
    let path = std::env::var_os("PATH").unwrap();
    let output = command
        .env_clear()
        .env("PATH", path)
        .env(key, value)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    (
        output.status.code().unwrap(),
        said.lines().last().unwrap_or_default().to_owned(),
    )
}

struct NetworkManager(u32);

#[zbus::interface(name = "org.freedesktop.NetworkManager")]
impl NetworkManager {
    #[zbus(property)]
    fn metered(&self) -> u32 {
        self.0
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_metered_connection_puts_an_update_off_and_no_networkmanager_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let bus = Bus::start(dir.path());
    let ask = || run("10-metered", ("DBUS_SYSTEM_BUS_ADDRESS", &bus.address));
    let (code, said) = ask();
    assert_eq!(code, 0);
    assert!(said.contains("NetworkManager cannot be asked"), "{said}");
    for (metered, expected) in [(0, 0), (1, 75), (2, 0), (3, 75), (4, 0)] {
        let name = "org.freedesktop.NetworkManager";
        let path = "/org/freedesktop/NetworkManager";
        let served = bus.serve(name, path, NetworkManager(metered)).await;
        let (code, said) = ask();
        assert_eq!(code, expected, "{metered}: {said}");
        assert_eq!(said.is_empty(), expected == 0, "{said}");
        served.close().await.unwrap();
    }
}

#[test]
fn a_battery_that_is_not_well_charged_puts_an_update_off_and_a_mouse_s_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let supply = |name: &str, facts: &[(&str, &str)]| {
        let folder = dir.path().join(name);
        fs::create_dir_all(&folder).unwrap();
        for (fact, value) in facts {
            fs::write(folder.join(fact), format!("{value}\n")).unwrap();
        }
    };
    let ask = || run("20-battery", ("SUPPLIES", dir.path().to_str().unwrap()));
    assert_eq!(ask(), (0, String::new()), "no supply at all");
    supply("AC", &[("type", "Mains"), ("online", "0")]);
    let low = [
        ("type", "Battery"),
        ("status", "Discharging"),
        ("capacity", "3"),
    ];
    supply(
        "hid-mouse",
        &[low.as_slice(), &[("scope", "Device")]].concat(),
    );
    assert_eq!(ask(), (0, String::new()));
    supply(
        "BAT0",
        &[
            ("type", "Battery"),
            ("status", "Discharging"),
            ("capacity", "50"),
        ],
    );
    assert_eq!(ask(), (0, String::new()), "enough");
    supply("BAT0", &[("capacity", "49")]);
    let (code, said) = ask();
    assert_eq!(code, 75);
    assert!(said.contains("BAT0 is 49 % full"), "{said}");
    supply("BAT0", &[("status", "Charging")]);
    assert_eq!(ask(), (0, String::new()));
}

#[test]
fn the_examples_are_programs_that_shellcheck_accepts() {
    for entry in fs::read_dir(example("")).unwrap() {
        let file = entry.unwrap().path();
        let mode =
            std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&file).unwrap().permissions());
        assert_eq!(mode & 0o133, 0o111, "{}", file.display());
        let checked = Command::new("shellcheck").arg(&file).output();
        let checked = checked.expect("shellcheck is there; tests/setup.sh installs it");
        assert!(
            checked.status.success(),
            "{}",
            String::from_utf8_lossy(&checked.stdout)
        );
    }
}
