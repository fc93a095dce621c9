//! When an update may start, and when the device may reboot into it. Pure: the time, the zone and what goes on on the
//! device are given.
//!
//! Two questions, [`start`] and [`reboot`], each answered by [`Verdict`]; what a wait is for is a [`Wait`], in words. What
//! people said about the update ([`Consent`]) is part of the update and survives with it.

use std::{fmt, time::Duration};

use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use serde::{Deserialize, Serialize};

use super::{
    digest::Sha256,
    machine::Job,
    status::seconds,
    window::{Standing, Windows},
};

/// When an accepted update may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// In a window; at any time where there are none.
    Window,
    /// At any time.
    Now,
}

/// When the device may reboot into the slot that was written and verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reboot {
    /// In a window; at any time where there are none.
    Window,
    /// At any time.
    Now,
    /// While nobody is logged in and the load is small.
    Idle,
    /// When someone says so.
    Manual,
}

/// Whether someone must agree before an update starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Approval {
    /// Nobody.
    None,
    /// Someone.
    Required,
}

/// The policy of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// When updates may happen. Default: none, which means at any time.
    pub windows: Windows,
    /// Where the windows' times hold. Default: the system's zone.
    pub time_zone: Option<TimeZone>,
    /// When an update may start. Default [`Start::Window`].
    pub start: Start,
    /// Whether someone must agree before. Default [`Approval::None`].
    pub approval: Approval,
    /// Random delay before the start, up to this. Default none.
    pub random_delay: Duration,
    /// When the device may reboot. Default [`Reboot::Window`].
    pub reboot: Reboot,
    /// How long, from its acceptance, an update can be put off, and waits for an idle device. Default 7 days.
    pub max_deferral: Duration,
}

/// What people said about an update. A word of theirs takes the one before back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Consent {
    /// The start was approved.
    pub start: bool,
    /// The reboot was approved.
    pub reboot: bool,
    /// What waits now is not to wait for anything of the policy's.
    pub now: bool,
    /// Nothing goes on before.
    pub deferred_until: Option<Timestamp>,
    /// Programs that inhibit the reboot have been waited for long enough.
    pub past_inhibitors: bool,
}

/// What the time is, and whether that is known.
#[derive(Debug, Clone)]
pub struct Clock {
    /// The time.
    pub now: Timestamp,
    /// The zone in which windows are read.
    pub zone: TimeZone,
    /// False while the clock of the device was not set since it was switched on.
    pub is_set: bool,
}

/// What goes on on the device.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Activity {
    /// How many users are logged in.
    pub users: usize,
    /// The average load of the last five minutes, for each processor.
    pub load: f64,
}

/// The load for each processor below which a device is idle.
const IDLE_LOAD: f64 = 0.5;

/// Whether an update may go on.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// It may.
    Go,
    /// Not yet.
    Wait(Wait),
}

/// What an update waits for.
#[derive(Debug, Clone, PartialEq)]
pub enum Wait {
    /// Someone's approval.
    Approval,
    /// Someone's word to reboot.
    RebootByHand,
    /// The time until which someone put it off.
    Deferral {
        /// Until then.
        until: Timestamp,
    },
    /// A clock that is right.
    Clock,
    /// A window.
    Window {
        /// When it opens.
        opens: Timestamp,
        /// Where.
        zone: TimeZone,
    },
    /// This device's share of the random delay.
    Delay {
        /// Until then.
        until: Timestamp,
    },
    /// Nobody being logged in. How many are is told, not who: a hub hears it too.
    Users(usize),
    /// A smaller load.
    Load,
}

impl Wait {
    /// When the answer will be another one, as far as that is a matter of time alone.
    #[must_use]
    pub fn ends(&self) -> Option<Timestamp> {
        match self {
            Self::Deferral { until } | Self::Delay { until } => Some(*until),
            Self::Window { opens, .. } => Some(*opens),
            Self::Approval | Self::RebootByHand | Self::Clock | Self::Users(_) | Self::Load => None,
        }
    }

    /// Whether only a person's word ends it.
    #[must_use]
    pub fn is_for_a_person(&self) -> bool {
        matches!(self, Self::Approval | Self::RebootByHand)
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Approval => f.write_str("waiting for approval (`fwupdatectl approve`)"),
            Self::RebootByHand => {
                f.write_str("verified; waiting for someone to allow the reboot (`fwupdatectl approve`)")
            }
            Self::Deferral { until } => write!(f, "put off until {}", seconds(*until)),
            Self::Clock => f.write_str(
                "waiting for the clock to be set: before that nobody knows whether a window is open (`timedatectl`; \
                 `fwupdatectl approve --now` does not wait)",
            ),
            Self::Window { opens, zone } => {
                let local = opens.to_zoned_datetime(zone.clone());
                write!(f, "waiting for the window that opens {}", local.strftime("%a %Y-%m-%d %H:%M %Z"))
            }
            Self::Delay { until } => {
                write!(f, "waiting until {} (random delay of the policy)", seconds(*until))
            }
            Self::Users(1) => f.write_str("verified; waiting until nobody is logged in (1 user is)"),
            Self::Users(number) => {
                write!(f, "verified; waiting until nobody is logged in ({number} users are)")
            }
            Self::Load => f.write_str("verified; waiting until the device has little to do"),
        }
    }
}

/// Whether `job` may start. `seed` is the device's name, which spreads a fleet over the random delay.
#[must_use]
pub fn start(rules: &Rules, job: &Job, seed: &str, clock: &Clock) -> Verdict {
    if job.request.force || job.consent.now {
        return Verdict::Go;
    }
    if rules.approval == Approval::Required && !job.consent.start {
        return Verdict::Wait(Wait::Approval);
    }
    if let Some(until) = deferral(rules, job, clock.now) {
        return Verdict::Wait(Wait::Deferral { until });
    }
    let (opened, closes) = match rules.start {
        Start::Now => (Timestamp::MIN, Timestamp::MAX),
        Start::Window => match window(rules, clock) {
            Ok(open) => open,
            Err(wait) => return Verdict::Wait(wait),
        },
    };
    // Counted from the acceptance, so that a restart does not start it again; or from the opening of the window, so that
    // a fleet that waits for it does not start as one.
    let from = opened.max(job.times.waiting.unwrap_or(clock.now));
    let room = Duration::try_from(closes.duration_since(from)).unwrap_or_default();
    let until = later(from, delay(rules.random_delay.min(room), seed, &job.id));
    // A clock that was set back to before the acceptance says nothing about how long that is ago.
    if from <= clock.now && clock.now < until {
        return Verdict::Wait(Wait::Delay { until });
    }
    Verdict::Go
}

/// Whether the device may reboot into the slot that was verified for `job`.
#[must_use]
pub fn reboot(rules: &Rules, job: &Job, clock: &Clock, activity: &Activity) -> Verdict {
    if job.request.force || job.consent.now {
        return Verdict::Go;
    }
    if let Some(until) = deferral(rules, job, clock.now) {
        return Verdict::Wait(Wait::Deferral { until });
    }
    match rules.reboot {
        Reboot::Now => Verdict::Go,
        Reboot::Window => window(rules, clock).map_or_else(Verdict::Wait, |_| Verdict::Go),
        Reboot::Manual if job.consent.reboot => Verdict::Go,
        Reboot::Manual => Verdict::Wait(Wait::RebootByHand),
        Reboot::Idle if clock.now >= limit(rules, job, clock.now) => Verdict::Go,
        Reboot::Idle if activity.users > 0 => Verdict::Wait(Wait::Users(activity.users)),
        Reboot::Idle if activity.load >= IDLE_LOAD => Verdict::Wait(Wait::Load),
        Reboot::Idle => Verdict::Go,
    }
}

/// The time to which someone may put `job` off who asks for `by`, at most the policy's limit; `None` when that is over.
#[must_use]
pub fn deferred_until(rules: &Rules, job: &Job, by: Duration, now: Timestamp) -> Option<Timestamp> {
    let until = later(now, by).min(limit(rules, job, now));
    (until > now && !job.request.force).then_some(until)
}

/// When `job` can be put off no longer.
fn limit(rules: &Rules, job: &Job, now: Timestamp) -> Timestamp {
    later(job.times.waiting.unwrap_or(now), rules.max_deferral)
}

/// Until when `job` is put off, if that is still to come. A time that lies farther off than any that may be asked for was
/// meant by another clock.
fn deferral(rules: &Rules, job: &Job, now: Timestamp) -> Option<Timestamp> {
    let until = job.consent.deferred_until?;
    (now < until && until <= later(now, rules.max_deferral)).then_some(until)
}

/// Since when and until when a window is open, or what is waited for.
fn window(rules: &Rules, clock: &Clock) -> Result<(Timestamp, Timestamp), Wait> {
    if rules.windows.0.is_empty() {
        return Ok((Timestamp::MIN, Timestamp::MAX));
    }
    if !clock.is_set {
        return Err(Wait::Clock);
    }
    match rules.windows.standing(clock.now, &clock.zone) {
        Standing::Open { since, until } => Ok((since, until)),
        Standing::Closed { opens } => Err(Wait::Window {
            opens,
            zone: clock.zone.clone(),
        }),
    }
}

/// A delay below `most` that is this device's own for this update: the fleet spreads, a restart does not
/// draw again.
fn delay(most: Duration, seed: &str, job: &str) -> Duration {
    let digest = Sha256::of(format!("{seed}\n{job}").as_bytes());
    let number = u64::from_be_bytes(digest.0[..8].try_into().expect("eight bytes of thirty-two"));
    let millis = u128::from(number) * most.as_millis() / (u128::from(u64::MAX) + 1);
    Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
}

fn later(at: Timestamp, by: Duration) -> Timestamp {
    SignedDuration::try_from(by)
        .ok()
        .and_then(|by| at.checked_add(by).ok())
        .unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests;
