//! The operator's programs at moments of an update: `hooks.d/MOMENT/*`.
//!
//! Before the slot is armed a program may stop the update; after that it is only told, since nothing must keep a
//! device from its way home. After a power cut a moment may come again: programs must bear that.

use super::hooks;
use crate::{
    config::HooksConfig,
    update::{
        failure::{Class, Failure},
        machine::State,
    },
};

/// When programs run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The image was accepted; the slot is about to be written. May stop the update.
    PreInstall,
    /// The slot was written and read back; it is not armed. May stop the update.
    PostInstall,
    /// The slot is armed; the reboot into it follows.
    PreReboot,
    /// The new slot runs and was confirmed.
    Confirmed,
    /// The old slot runs, and the update is given up after it was armed.
    RolledBack,
}

impl Moment {
    /// The folder of its programs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::PreInstall => "pre-install",
            Self::PostInstall => "post-install",
            Self::PreReboot => "pre-reboot",
            Self::Confirmed => "confirmed",
            Self::RolledBack => "rolled-back",
        }
    }
}

/// Runs the programs for `moment` of the update in `state`, one after the other, up to the first that fails.
///
/// # Errors
/// `hook-failed`: which program, and its last line.
pub async fn run(config: &HooksConfig, moment: Moment, state: &State) -> Result<(), Failure> {
    let failed = |text: String| Failure::new("hook-failed", Class::Final, text);
    let folder = config.dir.join(moment.name());
    let programs = hooks::list(&folder)
        .map_err(|error| failed(format!("{} cannot be read: {error}", folder.display())))?;
    let variables = variables(moment, state);
    for program in programs {
        let result = hooks::run(&program, &variables, config.timeout).await;
        if result.code != Some(0) {
            return Err(failed(format!(
                "the {} hook {} failed: {}",
                moment.name(),
                result.name,
                result.explanation
            )));
        }
    }
    Ok(())
}

fn variables(moment: Moment, state: &State) -> Vec<(&'static str, String)> {
    let job = state.job();
    let text = |text: Option<&String>| text.cloned().unwrap_or_default();
    let failure = state.failure();
    vec![
        ("FWUPDATED_HOOK", moment.name().to_owned()),
        ("FWUPDATED_UPDATE_ID", text(job.map(|job| &job.id))),
        (
            "FWUPDATED_SLOT",
            job.map(|job| job.target.to_string()).unwrap_or_default(),
        ),
        (
            "FWUPDATED_VERSION",
            text(state.image().and_then(|image| image.version.as_ref())),
        ),
        (
            "FWUPDATED_FROM_VERSION",
            text(job.and_then(|job| job.from_version.as_ref())),
        ),
        (
            "FWUPDATED_ERROR_CODE",
            text(failure.map(|failure| &failure.code)),
        ),
        (
            "FWUPDATED_ERROR",
            text(failure.map(|failure| &failure.message)),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

    use super::*;

    fn program(folder: &std::path::Path, name: &str, text: &str) {
        fs::create_dir_all(folder).unwrap();
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
        let file = folder.join(name);
        fs::write(&file, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[tokio::test]
    async fn the_first_program_that_fails_ends_a_moment_and_is_named_with_its_last_line() {
        let dir = tempfile::tempdir().unwrap();
        let config = HooksConfig {
            dir: dir.path().to_owned(),
            timeout: Duration::from_secs(60),
        };
        let run = || run(&config, Moment::PostInstall, &State::Idle);
        assert_eq!(run().await, Ok(()), "no folder, no program");
        let folder = dir.path().join("post-install");
        let ran = dir.path().join("ran");
        program(
            &folder,
            "10-fine",
            &format!("echo $FWUPDATED_HOOK >>{}", ran.display()),
        );
        assert_eq!(run().await, Ok(()));
        program(&folder, "20-bad", "echo no room; exit 1");
        program(
            &folder,
            "30-late",
            &format!("echo late >>{}", ran.display()),
        );
        let failure = run().await.unwrap_err();
        assert_eq!(failure.code, "hook-failed");
        assert!(
            failure
                .message
                .contains("post-install hook 20-bad failed: no room"),
            "{failure}"
        );
        assert_eq!(
            fs::read_to_string(ran).unwrap(),
            "post-install\npost-install\n"
        );
    }
}
