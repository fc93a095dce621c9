//! The configuration from its files to the valid value: layers, mistakes and where they are found.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::update::failure::{Coded, chain};

const SHIPPED: &str = include_str!("../../etc/fwupdated/fwupdated.toml");

fn load(files: &[(&str, &str)], environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let files: Vec<Layer> = files
        .iter()
        .map(|(name, text)| Layer::file(*name, *text))
        .collect();
    let variable = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    Config::load_from(&files, environment.iter().map(variable))
}

/// The error of one file `f`, as code and text.
fn refused(text: &str) -> (&'static str, String) {
    let error = load(&[("f", text)], &[]).expect_err(text);
    (error.code(), chain(&error))
}

fn refused_variable(name: &str, value: &str) -> (&'static str, String) {
    let error = load(&[], &[(name, value)]).expect_err(name);
    (error.code(), chain(&error))
}

#[test]
fn nothing_written_means_the_built_in_defaults() {
    let config = load(&[], &[]).unwrap();
    assert_eq!(config, Config::built_in());
    assert_eq!(config, load(&[("empty", "")], &[]).unwrap());
    assert_eq!(config.slots, None);
    assert_eq!(config.hub.keep_alive, Duration::from_secs(180));
    assert_eq!(config.health.units, ["boot-complete.target"]);
    assert!(config.health.newly_failed_units && config.carry_over.paths.is_empty());
    assert!(!config.trust.allow_unsigned);
    assert_eq!(config.trust.plain, PlainTrust::Digest);
}

#[test]
fn a_stand_in_board_does_not_look_at_the_machine_s_failed_units_unless_told_to() {
    let file = "[bootloader]\nkind = 'file'\nbooted_file = '/b'\n[health]\n";
    let looks = |more: &str| {
        let text = format!("{file}{more}");
        load(&[("f", &text)], &[])
            .unwrap()
            .health
            .newly_failed_units
    };
    assert!(!looks(""));
    assert!(looks("newly_failed_units = true"));
}

#[test]
fn what_is_carried_over_is_named_by_whole_paths_without_detours() {
    let config = load(
        &[(
            "f",
            "carry_over.paths = ['/etc/ssh/ssh_host_*', '/var/lib/x/']",
        )],
        &[],
    );
    let carry_over = config.unwrap().carry_over;
    assert!(
        carry_over.covers(Path::new("/var/lib/x")) && carry_over.covers(Path::new("/var/lib/x/y"))
    );
    assert!(
        !carry_over.covers(Path::new("/var/lib")) && !carry_over.covers(Path::new("/var/lib/xy"))
    );
    for (path, says) in [
        ("etc/x", "give the whole path"),
        ("", "give the whole path"),
        ("/", "whole root file system"),
        ("//", "whole root file system"),
        ("/etc/../root", "without `.` and `..`"),
        ("/./etc", "without `.` and `..`"),
    ] {
        let (code, text) = refused(&format!("carry_over.paths = ['/etc', '{path}']"));
        assert_eq!(code, "config-value");
        assert!(
            text.contains(": carry_over.paths has") && text.contains(says),
            "{text}"
        );
    }
}

#[test]
fn a_later_file_wins_key_by_key_and_the_environment_wins_over_files() {
    let config = load(
        &[
            (
                "1",
                "[hub]\nkeep_alive = '20s'\nmqtt_port = 1\n[fetch]\ninsecure_hosts = ['a', 'b']",
            ),
            (
                "2",
                "[hub]\nmqtt_port = 2\nca_file = '/ca'\n[fetch]\ninsecure_hosts = ['c']",
            ),
            ("3", "hub.ca_file = ''"),
        ],
        &[
            ("FWUPDATED_HUB__MQTT_PORT", "3"),
            ("FWUPDATED_SLOTS__A__ROOTFS", "/dev/a"),
            ("FWUPDATED_SLOTS__B__ROOTFS", "PARTLABEL=b"),
        ],
    )
    .unwrap();
    assert_eq!(config.hub.keep_alive, Duration::from_secs(20));
    assert_eq!(config.hub.mqtt_port, 3);
    assert_eq!(config.hub.ca_file, None, "an empty text takes a value back");
    assert_eq!(
        config.fetch.insecure_hosts,
        ["c"],
        "lists replace each other"
    );
    assert_eq!(config.slots.unwrap().b, "PARTLABEL=b");
}

#[test]
fn a_trial_gets_the_boots_that_its_bootloader_can_give() {
    let tries = |text| load(&[("f", text)], &[]).unwrap().bootloader.tries;
    assert_eq!(tries(""), 3);
    assert_eq!(tries("bootloader.tries = 5"), 5);
    assert_eq!(tries("bootloader.kind = 'tryboot'"), 1);
    assert_eq!(
        tries("bootloader.kind = 'tryboot'\nbootloader.tries = 1"),
        1
    );
}

#[test]
fn variables_are_read_as_what_their_key_is() {
    let config = load(
        &[],
        &[
            ("FWUPDATED_HUB__ALLOW_REBOOT_METHOD", "true"),
            ("FWUPDATED_HUB__KEEP_ALIVE", "77s"),
            ("FWUPDATED_HUB__GATEWAY_HOST", "7"),
            ("FWUPDATED_FETCH__INSECURE_HOSTS", "one, two"),
            ("FWUPDATED_TRUST__COMPATIBLE", r#"["7", "true"]"#),
            ("FWUPDATED_TRUST__UNSIGNED", "allow"),
            (
                "FWUPDATED_HUB_CONNECTION_STRING",
                "no setting: it has no double underscore",
            ),
            ("PATH", "/bin"),
        ],
    )
    .unwrap();
    assert!(config.hub.allow_reboot_method && config.trust.allow_unsigned);
    assert_eq!(config.hub.keep_alive, Duration::from_secs(77));
    assert_eq!(config.hub.gateway_host.as_deref(), Some("7"));
    assert_eq!(config.fetch.insecure_hosts, ["one", "two"]);
    assert_eq!(config.trust.compatible, ["7", "true"]);
}

#[test]
fn a_wrong_variable_is_named() {
    let (code, text) = refused_variable("FWUPDATED_HUB__KEEP_ALVE", "5s");
    assert_eq!(code, "config-unknown-key");
    assert_eq!(
        text,
        "FWUPDATED_HUB__KEEP_ALVE: unknown key `hub.keep_alve`; did you mean `hub.keep_alive`?"
    );
    let (code, text) = refused_variable("FWUPDATED_HUB__MQTT_PORT", "many");
    assert_eq!(code, "config-type");
    assert!(
        text.starts_with("FWUPDATED_HUB__MQTT_PORT: invalid type: string \"many\""),
        "{text}"
    );
    let (code, text) = refused_variable("FWUPDATED_HUB__MQTT_PORT", "70000");
    assert_eq!(code, "config-value");
    assert!(
        text.starts_with("FWUPDATED_HUB__MQTT_PORT: invalid value: integer `70000`"),
        "{text}"
    );
    let (code, text) = refused_variable("FWUPDATED_HUB__KEEP_ALIVE", "1s");
    assert_eq!(code, "config-value");
    assert_eq!(
        text,
        "FWUPDATED_HUB__KEEP_ALIVE: hub.keep_alive is 1s; allowed is 10s to 3m 50s"
    );
    assert_eq!(refused_variable("FWUPDATED___", "").0, "config-unknown-key");
}

#[test]
fn an_unknown_key_names_its_place_and_the_closest_one() {
    for (text, expected) in [
        (
            "[hub]\n\n  keep_alve = '1m'",
            "f:3:3: unknown key `hub.keep_alve`; did you mean `hub.keep_alive`?",
        ),
        (
            "keep_alive = '1m'",
            "f:1:1: unknown key `keep_alive`; did you mean `hub.keep_alive`?",
        ),
        ("[hup]", "f:1:2: unknown key `hup`; did you mean `hub`?"),
        (
            "[slots.c]\nrootfs = '/x'",
            "f:1:8: unknown key `slots.c`; did you mean `slots.b`?",
        ),
        (
            "[state]\nzzzzzzzzzzzzzz = 1",
            "f:2:1: unknown key `state.zzzzzzzzzzzzzz`; [state] has directory",
        ),
    ] {
        assert_eq!(refused(text), ("config-unknown-key", expected.to_owned()));
    }
}

#[test]
fn syntax_and_types_are_located() {
    let (code, text) = refused("[hub]\nkeep_alive = ");
    assert_eq!(code, "config-syntax");
    assert!(text.starts_with("f:2:14: "), "{text}");
    for (text, place) in [
        ("[hub]\nmqtt_port = '8883'", "f:2:13: invalid type"),
        (
            "hub = 5",
            "f:1:7: invalid type: integer `5`, expected a table",
        ),
        (
            "[hub]\nkeep_alive = 30",
            "f:2:14: invalid type: integer `30`, expected a duration such as",
        ),
        ("[fetch]\ninsecure_hosts = ['a', 5]", "f:2:24: invalid type"),
        (
            "[hub]\n# é\nallow_reboot_method = 'yes'",
            "f:3:23: invalid type",
        ),
    ] {
        let (code, message) = refused(text);
        assert_eq!(code, "config-type", "{message}");
        assert!(message.starts_with(place), "{message}");
    }
    let (code, text) = refused("[bootloader]\nkind = 'ubot'");
    assert_eq!(
        (code, text.as_str()),
        (
            "config-value",
            "f:2:8: unknown variant `ubot`, expected one of `uboot`, `tryboot`, `file`"
        )
    );
}

#[test]
fn values_out_of_range_are_located_where_they_were_last_given() {
    let good = "[hub]\nkeep_alive = '20s'\n";
    let error = load(
        &[
            ("1", good),
            ("2", "[hub]\nkeep_alive = '5m'"),
            ("3", "[state]"),
        ],
        &[],
    )
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "2:2:14: hub.keep_alive is 5m; allowed is 10s to 3m 50s"
    );
    for (text, expected) in [
        (
            "hub.keep_alive = '5'",
            "f:1:18: `5` is not a duration; write one such as \"500ms\", \"30s\", \"5m\", \"1h30m\" or \"7d\"",
        ),
        (
            "hub.keep_alive = '-30s'",
            "f:1:18: `-30s` is not a duration",
        ),
        (
            "bootloader.tries = 0",
            "f:1:20: bootloader.tries is 0; allowed is 1 to 9",
        ),
        (
            "bootloader.kind = 'tryboot'\nbootloader.tries = 3",
            "f:2:20: bootloader.tries is 3; the Raspberry Pi's firmware tries a slot once",
        ),
        (
            "bootloader.kind = 'tryboot'\nslots.a.rootfs = '/a'\nslots.b.rootfs = '/b'",
            "f: slots.a.boot is missing; with bootloader.kind = \"tryboot\"",
        ),
        (
            "bootloader.kind = 'tryboot'\nbootloader.booted_file = '/b'",
            "f:2:26: bootloader.booted_file is only for",
        ),
        (
            "bootloader.kind = 'tryboot'\nbootloader.device_tree = '/d'",
            "f: bootloader.booted_file is missing; a bootloader.device_tree of one's own is for a stand-in",
        ),
        (
            "bootloader.kind = 'tryboot'\nbootloader.reboot_command = ['/b']",
            "f:2:29: bootloader.reboot_command is only for",
        ),
        (
            "hub.ca_file = 'ca.pem'",
            "f:1:15: hub.ca_file is `ca.pem`; give the whole path",
        ),
        (
            "hub.gateway_host = 'h:8883'",
            "f:1:20: hub.gateway_host has `h:8883`; give a host name alone",
        ),
        ("hub.method_names = []", "f:1:20: hub.method_names is empty"),
        (
            "hub.method_names = ['a/b']",
            "f:1:20: hub.method_names has `a/b`",
        ),
        (
            "fetch.authorization_file = '/token'",
            "f:1:28: fetch.authorization_file is given, but no host that its header may be sent to; \
             list the hosts of your images in fetch.authorization_hosts",
        ),
        (
            "fetch.authorization_hosts = ['h:8443', 'https://h']",
            "f:1:29: fetch.authorization_hosts has `https://h`",
        ),
        (
            "fetch.authorization_hosts = ['h:0']",
            "f:1:29: fetch.authorization_hosts has `h:0`",
        ),
        (
            "fetch.authorization_hosts = ['*.h']",
            "f:1:29: fetch.authorization_hosts has `*.h`",
        ),
        (
            "fetch.authorization_hosts = ['::1']",
            "f:1:29: fetch.authorization_hosts has `::1`",
        ),
        ("fetch.connections = 0", "f:1:21: fetch.connections is 0"),
        (
            "fetch.rate_limit = '15K'",
            "f:1:20: fetch.rate_limit is `15K`",
        ),
        (
            "fetch.rate_limit = '2 M'",
            "f:1:20: fetch.rate_limit is `2 M`",
        ),
        ("fetch.rate_limit = 'K'", "f:1:20: fetch.rate_limit is `K`"),
        (
            "fetch.rate_limit = '99999999999999999999G'",
            "f:1:20: fetch.rate_limit is `9999",
        ),
        (
            "fetch.proxy = 'proxy.lan:3128'",
            "f:1:15: fetch.proxy must have the form `http://HOST:PORT`",
        ),
        (
            "fetch.proxy = 'http://me:hunter2@proxy.lan:3128'",
            "f:1:15: fetch.proxy holds a user name or password; put `user:password` into a file and \
             name it in fetch.proxy_authorization_file",
        ),
        (
            "fetch.proxy_authorization_file = '/p'",
            "f:1:34: fetch.proxy_authorization_file is given, but no fetch.proxy",
        ),
        (
            "fetch.client_certificate_file = '/c'",
            "f: fetch.client_key_file is missing",
        ),
        (
            "fetch.client_key_file = '/k'",
            "f: fetch.client_certificate_file is missing",
        ),
        (
            "fetch.client_certificate_file = '/c'\nfetch.client_key_file = '/k'",
            "f:1:33: fetch.client_certificate_file is given, but no host that may see it",
        ),
        (
            "fetch.client_certificate_hosts = ['*.h']",
            "f:1:34: fetch.client_certificate_hosts has `*.h`",
        ),
        (
            "fetch.insecure_hosts = ['http://h/']",
            "f:1:24: fetch.insecure_hosts has `http://h/`",
        ),
        (
            "trust.compatible = ['']",
            "f:1:20: trust.compatible has an empty text",
        ),
        ("trust.threshold = 0", "f:1:19: trust.threshold is 0"),
        (
            "[trust]\nplain = 'signed'\nunsigned = 'allow'",
            "f:3:12: trust.unsigned is \"allow\" while trust.plain = \"signed\"",
        ),
        ("health.units = ['app']", "f:1:16: health.units has `app`"),
        ("state.directory = ''", "f:1:19: state.directory is empty"),
        (
            "[slots]\na.rootfs = '/dev/x'\nb.rootfs = '/dev/x'",
            "f:3:12: slots.b.rootfs is the same partition as slots.a.rootfs (/dev/x)",
        ),
        (
            "slots.a.rootfs = '/dev/x'",
            "f: slots.b.rootfs is missing while slots.a.rootfs is there",
        ),
        (
            "slots.b.rootfs = '/dev/x'",
            "f: slots.a.rootfs is missing while slots.b.rootfs is there",
        ),
        (
            "[slots]\na.rootfs = 'sda1'\nb.rootfs = '/dev/x'",
            "f:2:12: slots.a.rootfs is `sda1`",
        ),
        (
            "slots.a.boot = '/dev/x'\nslots.b.boot = '/dev/y'",
            "f: slots.a.rootfs is missing while slots.a.boot is there",
        ),
        (
            "[slots]\na.rootfs = '/dev/x'\nb.rootfs = '/dev/y'\na.boot = '/dev/z'",
            "f: slots.b.boot is missing while slots.a.boot is there",
        ),
        (
            "[slots]\na.rootfs = '/dev/x'\nb.rootfs = '/dev/y'\na.boot = '/dev/z'\nb.boot = '/dev/x'",
            "f:5:10: slots.b.boot is the same partition as slots.a.rootfs (/dev/x)",
        ),
        (
            "bootloader.partitions = [3, 3]",
            "f:1:25: bootloader.partitions is [3, 3]; it must be two different",
        ),
        (
            "[bootloader]\nvariables = 'rauc'\nmark_file = '/boot/x'",
            "f:3:13: bootloader.mark_file is only for bootloader.variables = \"fwupdated\"",
        ),
        (
            "bootloader.reboot_command = ['reboot']",
            "f:1:29: bootloader.reboot_command is only for bootloader.kind",
        ),
        (
            "bootloader.booted_file = '/b'",
            "f:1:26: bootloader.booted_file is only for",
        ),
        (
            "bootloader.kind = 'file'",
            "f: bootloader.booted_file is missing",
        ),
    ] {
        let (code, message) = refused(text);
        assert_eq!(code, "config-value", "{message}");
        assert!(
            message.starts_with(expected),
            "{message}\nexpected {expected}"
        );
    }
}

#[test]
fn rates_proxies_and_client_certificates_are_read() {
    for (text, rate) in [
        ("", None),
        ("16K", Some(16 << 10)),
        ("16384", Some(16384)),
        ("500k", Some(500 << 10)),
        ("2M", Some(2 << 20)),
        ("1g", Some(1 << 30)),
    ] {
        let config = load(&[("f", &format!("fetch.rate_limit = '{text}'"))], &[]).unwrap();
        assert_eq!(config.fetch.rate_limit, rate, "{text}");
    }
    assert_eq!(Config::built_in().fetch.proxy, FetchProxy::Environment);
    let direct = load(&[("f", "fetch.proxy = 'none'")], &[]).unwrap();
    assert_eq!(direct.fetch.proxy, FetchProxy::Direct);
    let text = "[fetch]\nproxy = 'http://[fd00::1]:3128'\nproxy_authorization_file = '/p'\n\
                client_certificate_file = '/c'\nclient_key_file = '/k'\n\
                client_certificate_hosts = ['images.lan:8443']";
    let fetch = load(&[("f", text)], &[]).unwrap().fetch;
    let through = ProxyConfig {
        host: "fd00::1".to_owned(),
        port: 3128,
        authorization_file: Some("/p".into()),
    };
    assert_eq!(fetch.proxy, FetchProxy::Through(through));
    let certificate = fetch.client_certificate.unwrap();
    assert_eq!(certificate.hosts, ["images.lan:8443"]);
    // A variable of digits alone is a text all the same.
    let config = load(&[], &[("FWUPDATED_FETCH__RATE_LIMIT", "20000")]).unwrap();
    assert_eq!(config.fetch.rate_limit, Some(20_000));
}

#[test]
fn the_file_bootloader_needs_no_unit_of_systemd() {
    let config = load(
        &[(
            "f",
            "[bootloader]\nkind = 'file'\nbooted_file = '/b'\nreboot_command = ['r', '-f']",
        )],
        &[],
    )
    .unwrap();
    assert!(config.health.units.is_empty());
    assert_eq!(config.bootloader.reboot_command.unwrap(), ["r", "-f"]);
}

#[test]
fn a_named_file_must_exist_and_be_readable_text() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x.toml");
    assert_eq!(
        Config::load(Some(&file)).unwrap_err().code(),
        "config-missing-file"
    );
    assert_eq!(
        Config::load(Some(dir.path())).unwrap_err().code(),
        "config-unreadable"
    );
    fs::write(&file, b"# line\n# \xff\n").unwrap();
    let error = Config::load(Some(&file)).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("{}:2:3: the file is not UTF-8 text", file.display())
    );
    fs::write(&file, "hub.mqtt_port = 9").unwrap();
    assert_eq!(Config::load(Some(&file)).unwrap().hub.mqtt_port, 9);
}

#[test]
fn the_search_path_is_read_in_order_and_may_be_absent() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second, drop_ins) = (
        dir.path().join("1.toml"),
        dir.path().join("2.toml"),
        dir.path().join("conf.d"),
    );
    let names = || -> Vec<String> {
        search(&[first.clone(), second.clone()], &drop_ins)
            .unwrap()
            .iter()
            .map(|layer| layer.name.rsplit('/').next().unwrap().to_owned())
            .collect()
    };
    assert!(names().is_empty());
    fs::create_dir(&drop_ins).unwrap();
    for name in ["20-b.toml", "10-a.toml", "30-c.toml.bak", "README"] {
        fs::write(drop_ins.join(name), "").unwrap();
    }
    fs::write(&second, "").unwrap();
    assert_eq!(names(), ["2.toml", "10-a.toml", "20-b.toml"]);
}

/// The options of the shipped file: lines that begin with `#` and no blank.
fn shipped_options() -> String {
    let option = |line: &str| match line.strip_prefix('#') {
        Some(rest) if !rest.is_empty() && !rest.starts_with(' ') => rest.to_owned(),
        _ => line.to_owned(),
    };
    SHIPPED.lines().map(option).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_shipped_file_changes_nothing_and_shows_every_default() {
    assert_eq!(
        load(&[("shipped", SHIPPED)], &[]).unwrap(),
        Config::built_in()
    );
    assert_eq!(
        load(&[("options", &shipped_options())], &[]).unwrap(),
        Config::built_in()
    );
    let all = toml::Table::try_from(RawConfig::default()).unwrap();
    let shown: toml::Table = shipped_options().parse().unwrap();
    assert_eq!(layer::keys(&shown, ""), layer::keys(&all, ""));
    // Not only valid in the same way: the very values.
    assert_eq!(
        toml::from_str::<RawConfig>(&shipped_options()).unwrap(),
        RawConfig {
            bootloader: raw::RawBootloader {
                tries: Some(raw::TRIES),
                ..raw::RawBootloader::default()
            },
            health: raw::RawHealth {
                units: Some(vec!["boot-complete.target".to_owned()]),
                newly_failed_units: Some(true),
                ..raw::RawHealth::default()
            },
            policy: raw::RawPolicy {
                reboot_notice: Some(raw::REBOOT_NOTICE),
                max_inhibit: Some(raw::MAX_INHIBIT),
                ..raw::RawPolicy::default()
            },
            ..RawConfig::default()
        }
    );
}

#[test]
fn a_policy_is_read_whole_and_a_stand_in_disturbs_nobody_on_the_machine_that_it_runs_on() {
    let text = "[policy]\nwindows = ['Mon..Fri 02:00-05:00', 'Sat,Sun 22:00-06:00']\ntime_zone = 'Europe/Berlin'\n\
                start = 'now'\napproval = 'required'\nreboot = 'idle'\nmax_deferral = '14d'\n";
    let policy = load(&[("f", text)], &[]).unwrap().policy;
    assert_eq!(policy.rules.windows.0.len(), 2);
    assert_eq!(
        policy.rules.time_zone,
        jiff::tz::TimeZone::get("Europe/Berlin").ok()
    );
    assert_eq!(
        policy.rules.max_deferral,
        Duration::from_secs(14 * 24 * 3600)
    );
    let disturbs = |policy: &PolicyConfig| (policy.reboot_notice, policy.max_inhibit);
    assert_eq!(
        disturbs(&policy),
        (Duration::from_secs(60), Duration::from_secs(6 * 3600))
    );
    let stand_in = "[bootloader]\nkind = 'file'\nbooted_file = '/b'\n";
    let policy = load(&[("f", stand_in)], &[]).unwrap().policy;
    assert_eq!(disturbs(&policy), (Duration::ZERO, Duration::ZERO));
    let asked = format!("{stand_in}[policy]\nreboot_notice = '5s'\nmax_inhibit = '1h'\n");
    let policy = load(&[("f", &asked)], &[]).unwrap().policy;
    assert_eq!(
        disturbs(&policy),
        (Duration::from_secs(5), Duration::from_secs(3600))
    );
}

#[test]
fn a_wrong_policy_is_shown_with_its_place_and_what_is_allowed() {
    for (text, place, expected) in [
        (
            "[policy]\nwindows = ['Sat 22:00-06:00', 'Sun 25:00-26:00']",
            "f:2:31",
            "`Sun 25:00-26:00` is no window: a time is not HH:MM",
        ),
        (
            "[policy]\ntime_zone = 'Europe/Atlantis'",
            "f:2:13",
            "policy.time_zone is `Europe/Atlantis`",
        ),
        (
            "[policy]\nreboot = 'never'",
            "f:2:10",
            "unknown variant `never`, expected one of `window`, `now`, `idle`, `manual`",
        ),
        (
            "[policy]\nreboot_notice = '1h'",
            "f:2:17",
            "policy.reboot_notice is 1h; allowed is 0s to 15m",
        ),
    ] {
        let (code, message) = refused(text);
        assert_eq!(code, "config-value", "{text}");
        assert!(message.starts_with(place), "{message}");
        assert!(message.contains(expected), "{message}");
    }
    // A list has commas of its own here.
    let windows = r#"["Sat,Sun 22:00-06:00"]"#;
    let config = load(&[], &[("FWUPDATED_POLICY__WINDOWS", windows)]).unwrap();
    assert_eq!(config.policy.rules.windows.0.len(), 1);
}

#[test]
fn every_option_of_the_shipped_file_is_explained_on_the_line_before() {
    let mut before = "";
    for line in SHIPPED.lines() {
        if line.starts_with('#') && !line.starts_with("# ") && line.contains(" = ") {
            assert!(before.starts_with("# "), "no explanation before: {line}");
        }
        before = line;
    }
}

#[test]
fn the_reference_documents_every_key_and_no_other() {
    let page = include_str!("../../docs/reference/configuration.md");
    let documented: std::collections::BTreeSet<String> = page
        .lines()
        .filter_map(|line| {
            line.strip_prefix("| `")?
                .split('`')
                .next()
                .map(str::to_owned)
        })
        .collect();
    let all = toml::Table::try_from(RawConfig::default()).unwrap();
    let keys: std::collections::BTreeSet<String> = layer::keys(&all, "").into_iter().collect();
    assert_eq!(documented, keys);
    for key in keys {
        let mut value = &toml::Value::Table(all.clone());
        for name in key.split('.') {
            value = &value[name];
        }
        let row = page
            .lines()
            .find(|line| line.starts_with(&format!("| `{key}`")))
            .unwrap();
        assert!(
            row.contains(&format!("`{value}`")),
            "the default of {key} is {value}: {row}"
        );
    }
}

/// Text that is nearly a configuration.
fn nearly_toml() -> impl Strategy<Value = String> {
    let key = prop_oneof![
        Just("hub".to_owned()),
        Just("slots.a".to_owned()),
        Just("keep_alive".to_owned()),
        Just("rootfs".to_owned()),
        Just("method_names".to_owned()),
        "[a-zé\"']{0,6}",
    ];
    let value = prop_oneof![
        any::<i64>().prop_map(|n| n.to_string()),
        any::<f64>().prop_map(|n| n.to_string()),
        "'[^']{0,12}'",
        "\"PT?-?[0-9]{1,25}[smhd]{1,2}\"",
        Just("true".to_owned()),
        Just("['x', 1]".to_owned()),
        Just("{ a = 1 }".to_owned()),
        ".{0,10}",
    ];
    let line = (key, value, 0..3_u8).prop_map(|(key, value, form)| match form {
        0 => format!("[{key}]"),
        1 => format!("{key} = {value}"),
        _ => format!("{key}.{value}"),
    });
    proptest::collection::vec(line, 0..8).prop_map(|lines| lines.join("\n"))
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in prop_oneof![any::<String>(), nearly_toml()], name in "FWUPDATED_[A-Z_]{0,20}", value in any::<String>()) {
        for outcome in [
            load(&[("f", &text)], &[]),
            load(&[], &[(&name, &value)]),
            load(&[], &[("FWUPDATED_HUB__KEEP_ALIVE", &value)]),
            load(&[], &[("FWUPDATED_HUB__METHOD_NAMES", &value)]),
            load(&[], &[("FWUPDATED_HUB__CONNECTION_STRING_FILE", &value)]),
        ] {
            // What was read strictly is merged: the merge has no opinion of its own.
            prop_assert!(!matches!(outcome, Err(ConfigError::Merge { .. })), "{outcome:?}");
        }
    }

    #[test]
    fn durations_survive_their_text_form(millis in 0..10_000_000_000_u64) {
        let duration = raw::RawDuration(Duration::from_millis(millis));
        prop_assert_eq!(duration.to_string().parse::<raw::RawDuration>().unwrap(), duration);
    }
}

const CERTIFICATE: &str = "[hub]\ncertificate_file = '/c.pem'\nprivate_key_file = '/k.pem'\n";

#[test]
fn keys_of_an_identity_that_contradict_each_other_are_refused_with_the_key_to_change() {
    for (text, expected) in [
        (
            "[hub]\ncertificate_file = '/c'",
            "hub.private_key_file is missing",
        ),
        (
            "[hub]\nprivate_key_file = '/k'",
            "hub.certificate_file is missing",
        ),
        ("[hub]\nproxy_authorization_file = '/p'", "but no hub.proxy"),
        (
            "[provisioning]\nregistration_id = 'pi'",
            "provisioning.registration_id is given, but no provisioning.id_scope",
        ),
        (
            "[provisioning]\nsymmetric_key_file = '/k'",
            "provisioning.symmetric_key_file is given, but no provisioning.id_scope",
        ),
        (
            "[provisioning]\nid_scope = '0ne1'\nsymmetric_key_file = '/k'",
            "provisioning.registration_id is missing",
        ),
        (
            "[provisioning]\nid_scope = 'a/b'",
            "provisioning.id_scope is `a/b`",
        ),
        (
            "[provisioning]\nid_scope = '0ne1'\nregistration_id = 'a/b'",
            "provisioning.registration_id is `a/b`",
        ),
        ("[provisioning]\nhost = ''", "provisioning.host is empty"),
        (
            "[hub]\ntransport = 'amqp'",
            "unknown variant `amqp`, expected one of `mqtt`, `websocket`, `auto`",
        ),
    ] {
        let (code, message) = refused(text);
        assert_eq!(code, "config-value", "{text}");
        assert!(message.contains(expected), "{text}: {message}");
    }
    let both = format!(
        "{CERTIFICATE}[provisioning]\nid_scope = '0ne1'\nregistration_id = 'pi'\nsymmetric_key_file = '/k'"
    );
    assert!(
        refused(&both)
            .1
            .contains("contradicts hub.certificate_file")
    );
    // By a certificate, which has a name in it, the id scope is enough.
    let config = load(
        &[(
            "f",
            &format!("{CERTIFICATE}[provisioning]\nid_scope = '0ne1'"),
        )],
        &[],
    );
    let provisioning = config.unwrap().provisioning.unwrap();
    assert_eq!(provisioning.registration_id, None);
    assert_eq!(provisioning.host, "global.azure-devices-provisioning.net");
}

#[test]
fn a_proxy_is_a_host_and_a_port_and_never_a_password() {
    let proxy = |text: &str| load(&[("f", &format!("[hub]\nproxy = '{text}'"))], &[]);
    for (text, host, port) in [
        ("http://proxy.lan:3128", "proxy.lan", 3128),
        ("http://proxy.lan:80/", "proxy.lan", 80),
        ("http://10.0.0.1:8080", "10.0.0.1", 8080),
        ("http://[fd00::1]:8080/", "fd00::1", 8080),
    ] {
        let found = proxy(text).unwrap().hub.proxy.unwrap();
        assert_eq!((found.host.as_str(), found.port), (host, port), "{text}");
    }
    for text in [
        "proxy.lan:3128",
        "http://proxy.lan",
        "https://proxy.lan:3128",
        "socks5://proxy.lan:1080",
        "http://proxy.lan:3128/x",
        "http://me:hunter2@proxy.lan:3128",
        "http:// hunter2",
    ] {
        let message = chain(&proxy(text).expect_err(text));
        assert!(message.contains("hub.proxy"), "{message}");
        assert!(!message.contains("hunter2"), "{message}");
    }
}
