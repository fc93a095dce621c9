//! Windows of a week in which updates may happen: how they are written, and when they are open. Pure.
//!
//! ```text
//! Mon..Fri 02:00-05:00     Sat,Sun 22:00-06:00     01:30-04:00
//! ```
//! A window belongs to the days on which it begins, and may end on the next one. Days are named as in systemd.time(7).
//!
//! What counts is the clock on the wall: [`Windows::is_open`] is true while the local time lies in a window. Where that
//! clock is set forward, what is left of a window is open; one that the change would swallow whole opens at the change,
//! for as long as it is. Where it is set back, a window within the doubled hour is open both times.

use std::{fmt, str::FromStr};

use jiff::{SignedDuration, Timestamp, civil::Date, civil::DateTime, civil::Weekday, tz::TimeZone};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Days that are looked at before and after the present one: more than a week, so that each window is among them.
const HORIZON: i64 = 9;
/// Minutes of a day on a clock that is not changed.
const DAY: u16 = 24 * 60;
/// From Monday on, as they are written.
const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
const WHOLE_NAMES: [&str; 7] = [
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
];

/// One window of a week.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// The days on which it begins, from Monday on.
    days: [bool; 7],
    /// Minutes from midnight.
    start: u16,
    /// Minutes from midnight, of the next day where it is not later than the start.
    end: u16,
}

/// The text was no window.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is no window: {why}; write days and local times such as \"Mon..Fri 02:00-05:00\", \"Sat,Sun 22:00-06:00\" (until \
     the next morning) or \"01:30-04:00\" (every day)"
)]
pub struct NotAWindow {
    text: String,
    why: &'static str,
}

impl FromStr for Window {
    type Err = NotAWindow;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        read(text).map_err(|why| NotAWindow {
            text: text.to_owned(),
            why,
        })
    }
}

fn read(text: &str) -> Result<Window, &'static str> {
    let words: Vec<_> = text.split_whitespace().collect();
    let (days, times) = match words.as_slice() {
        [times] => ([true; 7], *times),
        [days, times] => (read_days(days)?, *times),
        _ => return Err("it is not days, a blank and times"),
    };
    let (start, end) = times.split_once('-').ok_or("the times have no `-`")?;
    let (start, end) = (read_time(start)?, read_time(end)?);
    match (start, end) {
        (DAY, _) => Err("24:00 can only be its end"),
        (start, end) if start == end => Err("it begins when it ends; a whole day is 00:00-24:00"),
        _ => Ok(Window { days, start, end }),
    }
}

fn read_days(text: &str) -> Result<[bool; 7], &'static str> {
    let mut days = [false; 7];
    for part in text.split(',') {
        let (first, last) = part.split_once("..").unwrap_or((part, part));
        let (first, last) = (read_day(first)?, read_day(last)?);
        // Over the weekend too: Fri..Mon.
        let length = (last + 7 - first) % 7;
        for day in first..=first + length {
            days[day % 7] = true;
        }
    }
    Ok(days)
}

fn read_day(text: &str) -> Result<usize, &'static str> {
    (0..7)
        .find(|&day| {
            [DAYS[day], WHOLE_NAMES[day]]
                .iter()
                .any(|name| name.eq_ignore_ascii_case(text))
        })
        .ok_or("a day is none of Mon, Tue, Wed, Thu, Fri, Sat, Sun")
}

/// Minutes from midnight.
fn read_time(text: &str) -> Result<u16, &'static str> {
    const WRONG: &str = "a time is not HH:MM from 00:00 to 24:00";
    let digits = |text: &str| {
        let is_number = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        is_number
            .then(|| text.parse::<u16>().ok())
            .flatten()
            .ok_or(WRONG)
    };
    let (hours, minutes) = text.split_once(':').ok_or(WRONG)?;
    let (hours, minutes) = (digits(hours)?, digits(minutes)?);
    let time = hours * 60 + minutes;
    if minutes < 60 && time <= DAY {
        Ok(time)
    } else {
        Err(WRONG)
    }
}

impl Serialize for Window {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Read within a visitor, so that an error knows which window of a list it is about.
impl<'de> Deserialize<'de> for Window {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Window;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a window such as \"Mon..Fri 02:00-05:00\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Window, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.days != [true; 7] {
            let days = (0..7).filter(|day| self.days[*day]).map(|day| DAYS[day]);
            write!(f, "{} ", days.collect::<Vec<_>>().join(","))?;
        }
        let time = |minutes: u16| format!("{:02}:{:02}", minutes / 60, minutes % 60);
        write!(f, "{}-{}", time(self.start), time(self.end))
    }
}

impl Window {
    /// How long it is on a clock that is not changed.
    fn length(&self) -> SignedDuration {
        let minutes = if self.end > self.start {
            self.end - self.start
        } else {
            DAY - self.start + self.end
        };
        SignedDuration::from_mins(minutes.into())
    }

    /// The local times between which it is open when it begins on `date`, if it does.
    fn on(&self, date: Date) -> Option<(DateTime, DateTime)> {
        if !self.days[day_of(date.weekday())] {
            return None;
        }
        let midnight = date.to_datetime(jiff::civil::Time::midnight());
        let start = midnight.saturating_add(SignedDuration::from_mins(self.start.into()));
        Some((start, start.saturating_add(self.length())))
    }
}

fn day_of(weekday: Weekday) -> usize {
    usize::from(weekday.to_monday_zero_offset().unsigned_abs())
}

/// How things stand at an instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// A window is open.
    Open {
        /// Since when.
        since: Timestamp,
        /// The first instant at which none is.
        until: Timestamp,
    },
    /// None is.
    Closed {
        /// When the next one opens.
        opens: Timestamp,
    },
}

/// All windows. Without any, it is open at all times.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Windows(pub Vec<Window>);

impl Windows {
    /// Whether a window is open at `at` in `zone`.
    #[must_use]
    pub fn is_open(&self, at: Timestamp, zone: &TimeZone) -> bool {
        let local = zone.to_datetime(at);
        let today = local.date();
        self.0.is_empty()
            || self
                .between(today.yesterday().unwrap_or(today), today)
                .any(|(start, end)| start <= local && local < end)
            || self.makes_up(at, zone)
    }

    /// Whether `at` is the time of a window that a clock set forward would swallow.
    fn makes_up(&self, at: Timestamp, zone: &TimeZone) -> bool {
        let Some((change, before, after)) =
            last_change(at, zone).filter(|(_, before, after)| before < after)
        else {
            return false;
        };
        let first = before.date().yesterday().unwrap_or(before.date());
        self.between(first, after.date())
            .filter(|(start, end)| before <= *start && *end <= after)
            .any(|(start, end)| at.duration_since(change) < start.duration_until(end))
    }

    /// The local times of the windows that begin on the days from `first` to `last`.
    fn between(&self, first: Date, last: Date) -> impl Iterator<Item = (DateTime, DateTime)> {
        first
            .series(jiff::Span::new().days(1))
            .take_while(move |date| *date <= last)
            .flat_map(|date| self.0.iter().filter_map(move |window| window.on(date)))
    }

    /// How things stand at `now` in `zone`.
    #[must_use]
    pub fn standing(&self, now: Timestamp, zone: &TimeZone) -> Standing {
        let horizon = SignedDuration::from_hours(24 * HORIZON);
        let (first, last) = (saturating_sub(now, horizon), saturating_add(now, horizon));
        let is_open = self.is_open(now, zone);
        let turns = self.turns(first, last, zone);
        let is_other = |at: &Timestamp| self.is_open(*at, zone) != is_open;
        let next = turns
            .iter()
            .copied()
            .filter(|turn| *turn > now)
            .find(is_other)
            .unwrap_or(last);
        if !is_open {
            return Standing::Closed { opens: next };
        }
        let just_before = |turn: &Timestamp| is_other(&saturating_sub(*turn, NANOSECOND));
        let since = turns
            .iter()
            .rev()
            .copied()
            .filter(|turn| *turn <= now)
            .find(just_before)
            .unwrap_or(first);
        Standing::Open { since, until: next }
    }

    /// In order, every instant from `first` to `last` at which a window may open or close, and others.
    fn turns(&self, first: Timestamp, last: Timestamp, zone: &TimeZone) -> Vec<Timestamp> {
        let mut turns = Vec::new();
        let dates = (
            zone.to_datetime(first).date(),
            zone.to_datetime(last).date(),
        );
        for (start, end) in self.between(dates.0, dates.1) {
            for local in [start, end] {
                let instants = zone.to_ambiguous_timestamp(local);
                turns.extend(instants.earlier().ok());
                turns.extend(instants.later().ok());
            }
        }
        for change in zone
            .following(first)
            .map(|change| change.timestamp())
            .take_while(|change| *change <= last)
        {
            turns.push(change);
            turns.extend(
                self.0
                    .iter()
                    .map(|window| saturating_add(change, window.length())),
            );
        }
        turns.sort_unstable();
        turns.dedup();
        turns
    }
}

const NANOSECOND: SignedDuration = SignedDuration::from_nanos(1);

fn saturating_add(at: Timestamp, by: SignedDuration) -> Timestamp {
    at.checked_add(by).unwrap_or(Timestamp::MAX)
}

fn saturating_sub(at: Timestamp, by: SignedDuration) -> Timestamp {
    at.checked_sub(by).unwrap_or(Timestamp::MIN)
}

/// The last time that the clocks of `zone` were changed, up to `at`: when, and the local times that met there.
fn last_change(at: Timestamp, zone: &TimeZone) -> Option<(Timestamp, DateTime, DateTime)> {
    let change = zone
        .preceding(saturating_add(at, NANOSECOND))
        .next()?
        .timestamp();
    let before = zone.to_datetime(saturating_sub(change, NANOSECOND));
    Some((
        change,
        before.saturating_add(NANOSECOND),
        zone.to_datetime(change),
    ))
}

#[cfg(test)]
mod tests;
