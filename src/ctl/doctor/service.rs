//! Whether the daemon runs and is content.

use super::finding::Finding;
use crate::update::{failure::Failure, status::Status};

const TOPIC: &str = "daemon";

/// `answer` is what the daemon said of itself, or why it did not.
pub(super) fn judge(answer: &Result<Status, Failure>) -> Vec<Finding> {
    let status = match answer {
        Ok(status) => status,
        Err(failure) if failure.code == "control-permission" => {
            return vec![Finding::forbidden(TOPIC, "the daemon's control socket")];
        }
        Err(failure) => return vec![Finding::failure(TOPIC, failure)],
    };
    let ours = env!("CARGO_PKG_VERSION");
    let mut findings = vec![match &status.daemon_version {
        version if version == ours => Finding::ok(TOPIC, format!("fwupdated {version} runs")),
        version => Finding::warning(
            TOPIC,
            format!("fwupdated {version} runs, but this is fwupdatectl {ours}"),
            "systemctl restart fwupdated",
        ),
    }];
    if let Some(problem) = &status.problem {
        findings.push(Finding::failure(TOPIC, problem));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ctl::doctor::finding::Level, update::failure::Class};

    fn status() -> Status {
        serde_json::from_value(serde_json::json!({
            "daemonVersion": env!("CARGO_PKG_VERSION"), "slots": {}, "bootloader": "uboot",
            "unsignedAllowed": false, "hub": {},
        }))
        .unwrap()
    }

    fn levels(answer: &Result<Status, Failure>) -> Vec<Level> {
        judge(answer).iter().map(|finding| finding.level).collect()
    }

    #[test]
    fn a_daemon_is_well_unless_it_is_of_another_version_or_has_a_problem() {
        assert_eq!(levels(&Ok(status())), [Level::Ok]);
        let mut other = status();
        other.daemon_version = "0.0.1".to_owned();
        other.problem = Some(Failure::new("slot-missing", Class::Final, "no slot"));
        assert_eq!(levels(&Ok(other)), [Level::Warning, Level::Error]);
    }

    #[test]
    fn a_daemon_that_is_not_ours_to_ask_is_not_called_dead() {
        let no = |code| Err(Failure::new(code, Class::Final, "x"));
        assert_eq!(levels(&no("control-permission")), [Level::Unknown]);
        assert_eq!(levels(&no("control-no-daemon")), [Level::Error]);
    }
}
