//! `fwupdatectl doctor`: looks at everything an update needs, and says what is wrong and what to do.
//!
//! Each topic has a file: `gather` looks (and changes nothing), `judge` is pure. What cannot be looked at is said
//! to be unknown, never well. Works without the daemon, and without root as far as that goes.

mod bootloader;
mod clock;
mod finding;
mod hub;
mod secrets;
mod service;
mod slots;
mod state;
mod trust;
mod watchdog;

use std::{fs::File, io, path::PathBuf};

use serde_json::json;

use self::finding::{Finding, Level};
use super::{
    exit,
    local::{DaemonAt, ask_status},
    output::{clean, line},
};
use crate::{config::Config, update::failure::Failure};

/// Looks at the device and shows what was found. `wrong` is what is wrong with the configuration, in whose place
/// `config` are the defaults. Returns the exit code.
pub(super) async fn run(config: &Config, wrong: Option<&Failure>, at: &DaemonAt, json: bool) -> u8 {
    let findings = examine(config, wrong, at).await;
    if json {
        let worst = worst(&findings).word();
        line(json!({"worst": worst, "findings": findings}).to_string());
    } else {
        show(&findings).iter().for_each(line);
    }
    exit_code(&findings)
}

async fn examine(config: &Config, wrong: Option<&Failure>, at: &DaemonAt) -> Vec<Finding> {
    let mut findings = vec![match wrong {
        Some(failure) => Finding::failure("configuration", failure),
        None => Finding::ok("configuration", "valid"),
    }];
    let answer = ask_status(at).await;
    findings.extend(service::judge(&answer));

    let state = state::gather(config);
    let slots = slots::gather(config, |slot| state.image(slot));
    let booted = slots
        .as_ref()
        .and_then(|seen| Some(seen.as_ref().ok()?.booted));
    findings.extend(slots::judge(&slots));
    let bootloader = bootloader::gather(config, booted, state.machine());
    findings.extend(bootloader::judge(&bootloader));
    findings.extend(state::judge(&state));

    findings.extend(trust::judge(&trust::gather(&config.trust)));
    findings.extend(secrets::judge(&secrets::gather(config)));
    findings.push(clock::judge(&clock::gather().await));
    let told = answer.ok().map(|status| status.hub);
    findings.push(hub::judge(
        &hub::gather(config, told, closed_file(config)).await,
    ));
    findings.push(watchdog::judge(
        &watchdog::gather(config.bootloader.kind).await,
    ));
    findings
}

/// A file of the device's identity that we may not read.
fn closed_file(config: &Config) -> Option<PathBuf> {
    let key = config
        .provisioning
        .as_ref()
        .and_then(|it| it.symmetric_key_file.clone());
    let files = [
        config.hub.connection_string_file.clone(),
        config.hub.private_key_file.clone(),
        key,
    ];
    let closed = |file: &PathBuf| {
        File::open(file).is_err_and(|it| it.kind() == io::ErrorKind::PermissionDenied)
    };
    files.into_iter().flatten().find(closed)
}

fn worst(findings: &[Finding]) -> Level {
    let levels = findings.iter().map(|finding| finding.level);
    levels.max().unwrap_or(Level::Unknown)
}

/// Warnings are no failure: the device can be updated. What was not looked at might be one.
fn exit_code(findings: &[Finding]) -> u8 {
    let found = |level| findings.iter().any(|finding| finding.level == level);
    match () {
        () if found(Level::Error) => exit::FAILED,
        () if found(Level::Unknown) => exit::UNDECIDED,
        () => exit::OK,
    }
}

fn show(findings: &[Finding]) -> Vec<String> {
    let width = |length: fn(&Finding) -> usize| findings.iter().map(length).max().unwrap_or(0);
    let (level, topic) = (
        width(|it| it.level.word().len()),
        width(|it| it.topic.len()),
    );
    let mut lines = Vec::new();
    for finding in findings {
        let code = finding.code.as_deref().map(|code| format!(" [{code}]"));
        lines.push(format!(
            "{:level$}  {:topic$}  {}{}",
            finding.level.word(),
            finding.topic,
            clean(&finding.text),
            code.unwrap_or_default(),
        ));
        if let Some(advice) = &finding.advice {
            lines.push(format!("{:1$}-> {2}", "", level + topic + 4, clean(advice)));
        }
    }
    let count = |level| findings.iter().filter(|it| it.level == level).count();
    lines.push(String::new());
    lines.push(format!(
        "{} errors, {} warnings, {} not looked at, {} ok",
        count(Level::Error),
        count(Level::Warning),
        count(Level::Unknown),
        count(Level::Ok)
    ));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_finding_is_a_line_with_what_to_do_below_it() {
        let findings = [
            Finding::ok("slots", "fine"),
            Finding::warning("environment", "one copy\u{1b}[31m", "make two"),
        ];
        assert_eq!(
            show(&findings),
            [
                "ok       slots        fine",
                "warning  environment  one copy\u{fffd}[31m",
                "                      -> make two",
                "",
                "0 errors, 1 warnings, 0 not looked at, 1 ok",
            ]
        );
    }

    #[test]
    fn only_errors_fail_and_what_was_not_looked_at_is_not_called_well() {
        let (ok, unknown) = (Finding::ok("x", ""), Finding::unknown("x", ""));
        let (warning, error) = (Finding::warning("x", "", ""), Finding::error("x", "", ""));
        let code = |findings: &[&Finding]| {
            let findings: Vec<_> = findings.iter().map(|&it| it.clone()).collect();
            exit_code(&findings)
        };
        assert_eq!(code(&[&ok, &warning]), exit::OK);
        assert_eq!(code(&[&ok, &unknown]), exit::UNDECIDED);
        assert_eq!(code(&[&unknown, &error, &ok]), exit::FAILED);
        // A warning is known; what is unknown might be an error.
        assert_eq!(code(&[&unknown, &warning]), exit::UNDECIDED);
    }
}
