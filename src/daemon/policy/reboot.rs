//! When the device may reboot into the slot that was verified: waits for the policy, then for programs that inhibit the
//! reboot, and warns users. Nothing is armed meanwhile.

use std::fs;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;
use tracing::warn;

use super::{LOOK, clock::ClockReader, pause};
use crate::{
    config::PolicyConfig,
    platform::logind::{self, Inhibitor, LogindError},
    update::{
        failure::{Class, Failure},
        machine::Job,
        policy::{self, Activity, Reboot, Verdict},
        status::seconds,
    },
};

/// How far off a reboot that comes at once is announced for.
const A_MOMENT: SignedDuration = SignedDuration::from_secs(5);

/// What is asked before a reboot for `job`.
pub struct Gate<'a> {
    config: &'a PolicyConfig,
    job: &'a Job,
    clock: ClockReader,
    /// That logind cannot be asked was said.
    is_told: bool,
}

impl<'a> Gate<'a> {
    /// For the update `job`.
    #[must_use]
    pub fn new(config: &'a PolicyConfig, job: &'a Job) -> Self {
        Self {
            config,
            job,
            clock: ClockReader::default(),
            is_told: false,
        }
    }

    /// Whether the device may reboot this instant, with nobody to warn before.
    pub async fn is_open(&mut self) -> bool {
        self.verdict().await == Verdict::Go
            && self.inhibitors().await.is_empty()
            && self.listeners().await.is_empty()
    }

    /// Waits until the device may reboot. `say` is told what is waited for. True when programs that inhibit the reboot were
    /// waited for long enough.
    pub async fn wait(&mut self, say: impl Fn(String)) -> bool {
        let mut inhibited: Option<Instant> = None;
        loop {
            if let Verdict::Wait(wait) = self.verdict().await {
                say(wait.to_string());
                pause(&wait).await;
                continue;
            }
            let inhibitors = self.inhibitors().await;
            if inhibitors.is_empty() {
                return false;
            }
            let left = self
                .config
                .max_inhibit
                .saturating_sub(inhibited.get_or_insert_with(Instant::now).elapsed());
            if left.is_zero() {
                warn!(
                    "rebooting although {} inhibits it: that was waited for as long as policy.max_inhibit says",
                    names(&inhibitors)
                );
                return true;
            }
            say(format!(
                "verified; waiting for {}, which inhibits the reboot (`systemd-inhibit --list`)",
                names(&inhibitors)
            ));
            tokio::time::sleep(LOOK.min(left)).await;
        }
    }

    /// Warns the users who are logged in of the reboot into `version`; says when the reboot was announced for, if anyone is there to wait for.
    pub async fn warn_users(
        &mut self,
        version: Option<&str>,
        say: impl Fn(String),
    ) -> Option<Timestamp> {
        let users = self.listeners().await;
        if users.is_empty() {
            return None;
        }
        let now = Timestamp::now();
        let notice = SignedDuration::try_from(self.config.reboot_notice).unwrap_or_default();
        let at = now.checked_add(notice).unwrap_or(now);
        let version = version.unwrap_or("a new version");
        let mut message =
            format!("fwupdated has installed {version} of this device's firmware; save your work.");
        // Only said where it would be heard.
        if policy::deferred_until(&self.config.rules, self.job, LOOK, now).is_some() {
            message.push_str(" `fwupdatectl defer 1h` puts the reboot off.");
        }
        if let Err(error) = logind::warn_users(&message, at).await {
            self.tell(&error);
        }
        say(format!(
            "verified; rebooting at {}, after a warning of the users who are logged in ({})",
            seconds(at),
            users.len()
        ));
        Some(at)
    }

    /// Tells the users who are logged in that the device goes back to `version` at once: a person's word waits for nobody.
    ///
    /// # Errors
    /// A program inhibits the reboot, which is not waited for either.
    pub async fn announce_return(&mut self, version: Option<&str>) -> Result<(), Failure> {
        let inhibitors = self.inhibitors().await;
        if !inhibitors.is_empty() {
            let text = format!(
                "{} inhibits the reboot (`systemd-inhibit --list`); go back when it has ended",
                names(&inhibitors)
            );
            return Err(Failure::new("reboot-inhibited", Class::Wait, text));
        }
        if self.listeners().await.is_empty() {
            return Ok(());
        }
        let version = version.unwrap_or("another version");
        let message = format!(
            "fwupdated goes back to {version} of this device's firmware, as someone on the device has asked."
        );
        // logind says nothing about a time that is over.
        let now = Timestamp::now();
        let soon = now.checked_add(A_MOMENT).unwrap_or(now);
        if let Err(error) = logind::warn_users(&message, soon).await {
            self.tell(&error);
        }
        Ok(())
    }

    /// Whether a program has begun to inhibit the reboot since it was waited for.
    pub async fn is_inhibited(&mut self) -> bool {
        !self.job.consent.past_inhibitors && !self.inhibitors().await.is_empty()
    }

    async fn verdict(&mut self) -> Verdict {
        let clock = self.clock.read(&self.config.rules).await;
        let activity = match self.config.rules.reboot {
            Reboot::Idle => Activity {
                users: self.heard(logind::users().await).len(),
                load: load(),
            },
            Reboot::Window | Reboot::Now | Reboot::Manual => Activity::default(),
        };
        policy::reboot(&self.config.rules, self.job, &clock, &activity)
    }

    async fn inhibitors(&mut self) -> Vec<Inhibitor> {
        if self.config.max_inhibit.is_zero() {
            return Vec::new();
        }
        let asked = logind::inhibitors().await;
        self.heard(asked)
    }

    async fn listeners(&mut self) -> Vec<String> {
        if self.config.reboot_notice.is_zero() {
            return Vec::new();
        }
        let asked = logind::users().await;
        self.heard(asked)
    }

    /// A logind that does not answer knows of nobody: a device without one must be updated too.
    fn heard<T>(&mut self, answer: Result<Vec<T>, LogindError>) -> Vec<T> {
        answer.unwrap_or_else(|error| {
            self.tell(&error);
            Vec::new()
        })
    }

    fn tell(&mut self, error: &LogindError) {
        if !std::mem::replace(&mut self.is_told, true) {
            let failure = Failure::from(error);
            warn!(fwupdated_error_code = failure.code, "{failure}");
        }
    }
}

/// Programs as people know them: what they call themselves, and why.
fn names(inhibitors: &[Inhibitor]) -> String {
    let clean = |text: &str| {
        text.chars()
            .filter(|c| !c.is_control())
            .take(80)
            .collect::<String>()
    };
    let named = inhibitors
        .iter()
        .map(|one| format!("{} ({})", clean(&one.who), clean(&one.why)));
    named.collect::<Vec<_>>().join(", ")
}

/// The average load of the last five minutes, for each processor. Where it cannot be read there is none.
fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: f64 = text
        .split_whitespace()
        .nth(1)
        .and_then(|load| load.parse().ok())
        .unwrap_or_default();
    #[expect(
        clippy::cast_precision_loss,
        reason = "no machine has so many processors"
    )]
    let processors = std::thread::available_parallelism().map_or(1.0, |n| n.get() as f64);
    load / processors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_named_on_one_line_however_it_calls_itself() {
        let inhibitor = |who: &str, why: &str| Inhibitor {
            who: who.to_owned(),
            why: why.to_owned(),
        };
        let named = names(&[
            inhibitor("apt", "packages\nare installed"),
            inhibitor("x", &"y".repeat(200)),
        ]);
        assert_eq!(
            named,
            format!("apt (packagesare installed), x ({})", "y".repeat(80))
        );
    }

    #[test]
    fn the_load_of_this_machine_can_be_read() {
        assert!(load() >= 0.0 && load().is_finite());
        assert!(fs::read_to_string("/proc/loadavg").is_ok());
    }
}
