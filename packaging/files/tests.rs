//! What is generated says all that its source says, in a form that its readers take.

use std::{collections::BTreeSet, io::Write as _, path::Path, process::Command};

use clap_complete::Shell;
use fwupdated::config::raw::RawConfig;

use super::{changelog, copyright, man, markdown};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A page as it would be read: without fonts and escapes.
fn plain(roff: &str) -> String {
    let roff = roff.replace("\\-", "-");
    ["\\fB", "\\fI", "\\fR", "\\&"]
        .iter()
        .fold(roff, |text, font| text.replace(font, ""))
}

fn page(file: &str) -> String {
    let pages = man::pages(root()).unwrap();
    let page = pages.into_iter().find(|page| page.file == file);
    plain(&page.unwrap_or_else(|| panic!("no {file}")).text)
}

/// The names of `command` and of all below it, with the long names of their options.
fn commands(command: &clap::Command, found: &mut Vec<(String, Vec<String>)>) {
    if command.is_hide_set() {
        return;
    }
    let options = command
        .get_arguments()
        .filter(|option| !option.is_hide_set());
    let options = options
        .filter_map(|option| option.get_long())
        .map(|long| format!("--{long}"));
    let name = command.get_display_name().unwrap_or(command.get_name());
    found.push((name.to_owned(), options.collect()));
    for below in command.get_subcommands() {
        commands(below, found);
    }
}

#[test]
fn each_command_has_a_page_that_names_each_of_its_options() {
    let pages = man::pages(root()).unwrap();
    let mut seen = 0;
    for program in man::PROGRAMS {
        let mut command = (program.command)().disable_help_subcommand(true);
        command.build();
        let mut found = Vec::new();
        commands(&command, &mut found);
        for (name, options) in found {
            let page = pages.iter().find(|page| {
                page.file.rsplit_once('.').map(|(stem, _)| stem) == Some(name.as_str())
            });
            let text = plain(&page.unwrap_or_else(|| panic!("no page of {name}")).text);
            for option in options {
                assert!(text.contains(&option), "{name} {option}");
                seen += 1;
            }
            for section in [".SH NAME", ".SH SYNOPSIS", ".SH \"SEE ALSO\""] {
                assert!(text.contains(section), "{name} has no {section}");
            }
        }
    }
    assert!(seen > 50, "only {seen} options");
}

/// The keys of a table and of those in it, joined by dots.
fn keys(table: &toml::Table, before: &str, found: &mut BTreeSet<String>) {
    for (name, value) in table {
        let key = format!("{before}{name}");
        match value {
            toml::Value::Table(below) => keys(below, &format!("{key}."), found),
            _ => {
                found.insert(key);
            }
        }
    }
}

#[test]
fn the_page_of_the_configuration_names_every_key_and_says_something_about_it() {
    let text = page("fwupdated.toml.5");
    let mut all = BTreeSet::new();
    keys(
        &toml::Table::try_from(RawConfig::default()).unwrap(),
        "",
        &mut all,
    );
    assert!(all.len() > 50, "{all:?}");
    for key in all {
        let entry = format!(".TP\n{key}\n");
        let (_, rest) = text
            .split_once(&entry)
            .unwrap_or_else(|| panic!("no entry for {key}"));
        assert!(
            rest.lines().next().is_some_and(|line| line.len() > 10),
            "{key}"
        );
    }
}

#[test]
fn files_exit_codes_and_variables_are_told_by_the_pages_of_the_programs() {
    let daemon = page("fwupdated.8");
    for told in [
        "/etc/fwupdated/fwupdated.toml",
        "FWUPDATED_LOG",
        "78",
        "fwupdatectl(1)",
    ] {
        assert!(daemon.contains(told), "{told}");
    }
    assert!(!daemon.contains("RUST_LOG"), "that is the emulator's");
    let ctl = page("fwupdatectl.1");
    for told in [
        "FWUPDATED_HUB_CONNECTION_STRING",
        ".SH \"EXIT STATUS\"",
        "141",
    ] {
        assert!(ctl.contains(told), "{told}");
    }
    assert!(page("iothub-emulator.1").contains("RUST_LOG"));
}

#[test]
fn markdown_becomes_what_man_shows() {
    let page = "# Title\n\nText with `code-span`, **bold `code` on** and [a link](x.md); C:\\x.\n\n## A `key`: what\n\n\
                - one\n- two\n\n1. first\n2. second\n\n```console\n$ run\n.dot\n```\n\n| A | B | C |\n|---|---|---|\n\
                | `x` | 1 | says |\n| y |  | .more |\n";
    let expected = ".PP\nText with \\fBcode\\-span\\fR, \\fBbold \\fBcode\\fB on\\fR and a link; C:\\ex.\n\
                    .SH \"A \\fBkey\\fR: what\"\n.IP \\(bu 4\none\n.IP \\(bu 4\ntwo\n.IP 1. 4\nfirst\n.IP 2. 4\nsecond\n\
                    .PP\n.RS 4\n.EX\n$ run\n\\&.dot\n.EE\n.RE\n\
                    .TP\n\\fBx\\fR\nsays\n.br\nB: 1.\n.TP\ny\n\\&.more\n";
    assert_eq!(markdown::roff(page), expected);
}

#[test]
fn shells_understand_the_completions() {
    for program in man::PROGRAMS {
        let mut command = (program.command)();
        let name = command.get_name().to_owned();
        let mut text = Vec::new();
        clap_complete::generate(Shell::Bash, &mut command, &name, &mut text);
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&text).unwrap();
        let checked = Command::new("bash")
            .arg("-n")
            .arg(file.path())
            .output()
            .unwrap();
        assert!(
            checked.status.success(),
            "{name}: {}",
            String::from_utf8_lossy(&checked.stderr)
        );
    }
}

#[test]
fn the_changelog_has_an_entry_for_each_version_in_debian_s_form() {
    let text = "# Changelog\n\nAbout.\n\n## Unreleased\n\nFirst words.\n\n- **One**: a `thing` with [a link](x.md)\n  and more\n- two\n\n\
                ## 0.9.0 - 2026-01-02\n\n- older\n";
    let built = jiff::Timestamp::from_second(1_796_000_000).unwrap();
    let written = changelog::debian(text, "pkg", "1.0.0", "A B <a@example.org>", built).unwrap();
    let expected = "pkg (1.0.0-1) unstable; urgency=medium\n\n  * First words.\n  * One: a thing with a link and more\n  * two\n\n\
                    \x20-- A B <a@example.org>  Mon, 30 Nov 2026 00:53:20 +0000\n\n\
                    pkg (0.9.0-1) unstable; urgency=medium\n\n  * older\n\n\
                    \x20-- A B <a@example.org>  Fri, 02 Jan 2026 00:00:00 +0000\n";
    assert_eq!(written, expected);
    let ours = std::fs::read_to_string(root().join("CHANGELOG.md")).unwrap();
    let ours =
        changelog::debian(&ours, "fwupdated", "1.0.0", "A B <a@example.org>", built).unwrap();
    assert!(
        ours.lines().all(|line| line.chars().count() <= 80),
        "{ours}"
    );
}

#[test]
fn of_alternative_licences_the_apache_license_is_chosen_and_of_several_none_is_lost() {
    for (expression, chosen) in [
        ("MIT OR Apache-2.0", "Apache-2.0"),
        ("Unlicense/MIT", "Unlicense"),
        ("Apache-2.0 AND ISC", "Apache-2.0 and ISC"),
        (
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "Apache-2.0 and Unicode-3.0",
        ),
        (
            "Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT",
            "Apache-2.0",
        ),
    ] {
        assert_eq!(copyright::chosen(expression), chosen);
    }
}

#[test]
fn each_crate_that_is_linked_is_named_with_its_licence() {
    for package in ["fwupdated", "iothub-emulator"] {
        let text = copyright::of(root(), package).unwrap();
        for linked in ["ring-0.17", "tokio-1.", "rustls-0.23"] {
            assert!(
                text.contains(&format!("third-party/{linked}")),
                "{package}: {linked}"
            );
        }
        // Used while building, and in no program.
        for not in ["clap_mangen", "syn-2", "third-party/fwupdated"] {
            assert!(!text.contains(not), "{package}: {not}");
        }
        for paragraph in text.split("\n\nFiles: ").skip(1) {
            assert!(
                paragraph.contains("\nLicense: ") && paragraph.contains("\nCopyright: "),
                "{paragraph}"
            );
        }
    }
}
