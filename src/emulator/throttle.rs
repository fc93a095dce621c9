//! The throttles of a hub of a certain size: a leaky bucket for each kind of operation, with the time passed
//! in. Off unless asked for.
//!
//! What is allowed comes from Microsoft's table of quotas. How much may come at once does not: here it is
//! a minute's worth of what is limited by the minute, and ten seconds' worth of what is limited by the
//! second.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::hub::{Hub, State};
use crate::hub_error::{HubError, Kind};

/// Seconds of a rate by the second that fit into its bucket.
const BURST_SECONDS: f64 = 10.0;
/// Method payloads are counted in pieces of this size.
const METHOD_PIECE: usize = 4 * 1024;
/// A device whose telemetry is further behind than this is disconnected.
const BACKLOG: Duration = Duration::from_secs(10);

/// The tier of a hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are IoT Hub's own")]
pub enum Tier {
    F1,
    S1,
    S2,
    S3,
}

/// The size of the hub whose throttles are kept. Parse one from text, such as `S1` or `S2:3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Throttle {
    /// Its tier.
    pub tier: Tier,
    /// Its units; at least one.
    pub units: u32,
    /// Whether a refused twin request is told when to come again (`retry-after` in the topic).
    pub retry_after: bool,
}

/// Why a text is no throttle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is no throttle; write F1, S1, S2 or S3, with units as in S1:2, and ',no-retry-after' if wanted"
)]
pub struct BadThrottle(String);

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Operation {
    Registry,
    Connect,
    Telemetry,
    Query,
    /// A call with a request of so many bytes.
    Method(usize),
    TwinRead,
    TwinUpdate,
    Job,
    /// What a job does to one device.
    #[allow(dead_code, reason = "for the jobs to count")]
    JobDevice,
    Configuration,
}

/// What a bucket leaks, and what fits into it.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Limit {
    /// A second.
    rate: f64,
    capacity: f64,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    level: f64,
    at: Instant,
}

/// Every bucket, and how often each was full.
#[derive(Default)]
pub(crate) struct Meters {
    throttle: Option<Throttle>,
    buckets: BTreeMap<&'static str, Bucket>,
    refused: BTreeMap<&'static str, u64>,
}

impl FromStr for Throttle {
    type Err = BadThrottle;

    fn from_str(text: &str) -> Result<Self, BadThrottle> {
        let bad = || BadThrottle(text.to_owned());
        let (size, retry_after) = match text.split_once(',') {
            None => (text, true),
            Some((size, "no-retry-after")) => (size, false),
            Some(_) => return Err(bad()),
        };
        let (tier, units) = size.split_once(':').unwrap_or((size, "1"));
        let tier = match tier.to_ascii_uppercase().as_str() {
            "F1" => Tier::F1,
            "S1" => Tier::S1,
            "S2" => Tier::S2,
            "S3" => Tier::S3,
            _ => return Err(bad()),
        };
        let units = units.parse().ok().filter(|units| *units > 0);
        Ok(Self {
            tier,
            units: units.ok_or_else(bad)?,
            retry_after,
        })
    }
}

impl fmt::Display for Throttle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}:{}", self.tier, self.units)?;
        match self.retry_after {
            true => Ok(()),
            false => f.write_str(",no-retry-after"),
        }
    }
}

impl Throttle {
    /// What the table allows of `operation`.
    fn limit(&self, operation: Operation) -> Limit {
        let units = f64::from(self.units);
        let by_tier = |small: f64, s2: f64, s3: f64| match self.tier {
            Tier::F1 | Tier::S1 => small,
            Tier::S2 => s2,
            Tier::S3 => s3,
        };
        let a_minute = |limit: f64| Limit {
            rate: limit / 60.0,
            capacity: limit,
        };
        let a_second = |limit: f64| Limit {
            rate: limit,
            capacity: limit * BURST_SECONDS,
        };
        match operation {
            Operation::Registry | Operation::Job => a_minute(by_tier(100.0, 100.0, 5000.0) * units),
            Operation::Connect | Operation::Telemetry => a_second(by_tier(
                f64::max(100.0, 12.0 * units),
                120.0 * units,
                6000.0 * units,
            )),
            Operation::Query => a_minute(by_tier(20.0, 20.0, 1000.0) * units),
            Operation::Method(_) => a_second(by_tier(160.0, 480.0, 24.0 * 1024.0) * 1024.0 * units),
            Operation::TwinRead => {
                a_second(by_tier(100.0, f64::max(100.0, 10.0 * units), 500.0 * units))
            }
            Operation::TwinUpdate => {
                a_second(by_tier(50.0, f64::max(50.0, 5.0 * units), 250.0 * units))
            }
            Operation::JobDevice => a_second(by_tier(10.0, f64::max(10.0, units), 50.0 * units)),
            Operation::Configuration => a_minute(20.0 * units),
        }
    }

    /// How many jobs may run at the same time.
    pub(crate) fn jobs(&self) -> usize {
        match self.tier {
            Tier::F1 | Tier::S1 => 1,
            Tier::S2 => 5,
            Tier::S3 => 10,
        }
    }
}

impl Operation {
    /// What a REST request counts as; `None` when it is not counted.
    pub(crate) fn of_request(method: &str, path: &str, bytes: usize) -> Option<Self> {
        let mut segments = path.trim_matches('/').split('/');
        let (first, second) = (segments.next()?, segments.next());
        Some(match (first, second, segments.next()) {
            ("devices", Some("query"), _) => Self::Query,
            ("devices" | "statistics", ..) => Self::Registry,
            ("twins", _, Some("methods")) => Self::Method(bytes),
            ("twins", ..) if method == "GET" => Self::TwinRead,
            ("twins", ..) => Self::TwinUpdate,
            ("jobs", ..) => Self::Job,
            ("configurations", ..) => Self::Configuration,
            _ => return None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Registry => "registry operations",
            Self::Connect => "connections",
            Self::Telemetry => "telemetry messages",
            Self::Query => "queries",
            Self::Method(_) => "direct methods",
            Self::TwinRead => "twin reads",
            Self::TwinUpdate => "twin updates",
            Self::Job => "job operations",
            Self::JobDevice => "device operations of jobs",
            Self::Configuration => "configuration operations",
        }
    }

    /// What it pours into its bucket.
    fn cost(self) -> f64 {
        match self {
            Self::Method(bytes) => (bytes.div_ceil(METHOD_PIECE).max(1) * METHOD_PIECE) as f64,
            _ => 1.0,
        }
    }
}

impl Bucket {
    /// What is left in it at `now`.
    fn leak(&mut self, limit: Limit, now: Instant) {
        let time = now.saturating_duration_since(self.at).as_secs_f64();
        self.level = (self.level - time * limit.rate).max(0.0);
        self.at = self.at.max(now);
    }

    /// How long until `cost` more fits.
    fn wait(&self, limit: Limit, cost: f64) -> Duration {
        let excess = (self.level + cost - limit.capacity).max(0.0);
        Duration::from_secs_f64(excess / limit.rate)
    }
}

impl Meters {
    pub(crate) fn set(&mut self, throttle: Option<Throttle>) {
        *self = Self {
            throttle,
            ..Self::default()
        };
    }

    /// Counts `operation`, or refuses it when its bucket is full.
    pub(crate) fn take(&mut self, operation: Operation) -> Result<(), HubError> {
        let Err(wait) = self.take_at(operation, Instant::now()) else {
            return Ok(());
        };
        let seconds = wait.as_secs_f64().ceil().max(1.0) as u32;
        let error = HubError::new(
            Kind::ThrottlingException,
            format!(
                "Throttled: too many {}; try again in {seconds} s.",
                operation.name()
            ),
        );
        Err(match self.throttle {
            Some(Throttle {
                retry_after: true, ..
            }) => error.with_retry_after(seconds),
            Some(_) | None => error,
        })
    }

    fn take_at(&mut self, operation: Operation, now: Instant) -> Result<(), Duration> {
        let Some((bucket, limit)) = self.bucket(operation, now) else {
            return Ok(());
        };
        let wait = bucket.wait(limit, operation.cost());
        if wait.is_zero() {
            bucket.level += operation.cost();
            return Ok(());
        }
        *self.refused.entry(operation.name()).or_default() += 1;
        Err(wait)
    }

    /// Counts a telemetry message, which is never refused: how long its sender has to wait before the next is
    /// read, or `None` when the backlog is too long for that.
    pub(crate) fn shape(&mut self, now: Instant) -> Option<Duration> {
        let operation = Operation::Telemetry;
        let Some((bucket, limit)) = self.bucket(operation, now) else {
            return Some(Duration::ZERO);
        };
        bucket.level += operation.cost();
        let wait = bucket.wait(limit, 0.0);
        if wait <= BACKLOG {
            return Some(wait);
        }
        *self.refused.entry(operation.name()).or_default() += 1;
        None
    }

    fn bucket(&mut self, operation: Operation, now: Instant) -> Option<(&mut Bucket, Limit)> {
        let limit = self.throttle?.limit(operation);
        let empty = Bucket {
            level: 0.0,
            at: now,
        };
        let bucket = self.buckets.entry(operation.name()).or_insert(empty);
        bucket.leak(limit, now);
        Some((bucket, limit))
    }

    /// What is in force and what was refused because of it, for people.
    pub(crate) fn document(&self) -> Value {
        let throttle = self.throttle.map(|throttle| throttle.to_string());
        json!({ "throttle": throttle, "refused": self.refused })
    }
}

impl Hub {
    /// Counts `operation` against the hub's throttle, or refuses it with 429001. What comes over REST is
    /// counted already.
    #[allow(dead_code, reason = "for the jobs to ask")]
    pub(crate) fn throttle(&self, operation: Operation) -> Result<(), HubError> {
        self.lock().meters.take(operation)
    }
}

impl State {
    /// How many jobs the throttle lets run at the same time; `None` without one.
    #[allow(dead_code, reason = "for the jobs to ask")]
    pub(crate) fn job_limit(&self) -> Option<usize> {
        self.meters.throttle.map(|throttle| throttle.jobs())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn meters(text: &str) -> Meters {
        let mut meters = Meters::default();
        meters.set(Some(text.parse().unwrap()));
        meters
    }

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn a_throttle_is_read_and_written() {
        for (text, shown) in [
            ("s1", "S1:1"),
            ("S2:3", "S2:3"),
            ("F1,no-retry-after", "F1:1,no-retry-after"),
        ] {
            assert_eq!(text.parse::<Throttle>().unwrap().to_string(), shown);
        }
        for bad in ["", "S4", "S1:0", "S1:x", "S1,now", "B1"] {
            assert!(bad.parse::<Throttle>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_table_is_kept() {
        let rate = |text: &str, operation| text.parse::<Throttle>().unwrap().limit(operation).rate;
        for (text, operation, expected) in [
            ("F1", Operation::Registry, 100.0 / 60.0),
            ("S2:2", Operation::Registry, 200.0 / 60.0),
            ("S3:2", Operation::Registry, 10_000.0 / 60.0),
            ("S1", Operation::Connect, 100.0),
            ("S1:10", Operation::Connect, 120.0),
            ("S2:2", Operation::Telemetry, 240.0),
            ("S1:2", Operation::Query, 40.0 / 60.0),
            ("S1", Operation::Method(1), 160.0 * 1024.0),
            ("S3", Operation::Method(1), 24.0 * 1024.0 * 1024.0),
            ("S1:9", Operation::TwinRead, 100.0),
            ("S2:20", Operation::TwinRead, 200.0),
            ("S1:9", Operation::TwinUpdate, 50.0),
            ("S2:20", Operation::TwinUpdate, 100.0),
            ("S3:2", Operation::TwinUpdate, 500.0),
            ("S2:3", Operation::Job, 300.0 / 60.0),
            ("S2:20", Operation::JobDevice, 20.0),
            ("S3:5", Operation::Configuration, 100.0 / 60.0),
        ] {
            assert_eq!(rate(text, operation), expected, "{text} {operation:?}");
        }
        let jobs = |text: &str| text.parse::<Throttle>().unwrap().jobs();
        assert_eq!([jobs("F1"), jobs("S2:9"), jobs("S3")], [1, 5, 10]);
    }

    #[test]
    fn a_burst_passes_then_the_rate() {
        let (mut meters, start) = (meters("S1"), Instant::now());
        for _ in 0..500 {
            assert_eq!(meters.take_at(Operation::TwinUpdate, start), Ok(()));
        }
        let wait = meters.take_at(Operation::TwinUpdate, start).unwrap_err();
        assert!(
            (seconds(0.019)..=seconds(0.021)).contains(&wait),
            "{wait:?}"
        );
        // Another operation has a bucket of its own.
        assert_eq!(meters.take_at(Operation::TwinRead, start), Ok(()));
        let later = start + seconds(1.01);
        let passed = (0..100).filter(|_| meters.take_at(Operation::TwinUpdate, later).is_ok());
        assert_eq!(passed.count(), 50);
        assert_eq!(meters.document()["refused"]["twin updates"], 51);
    }

    #[test]
    fn methods_are_counted_by_size() {
        let (mut meters, start) = (meters("S1"), Instant::now());
        let mut calls = |bytes: usize| {
            (0..10_000)
                .take_while(|_| meters.take_at(Operation::Method(bytes), start).is_ok())
                .count()
        };
        // 1600 KB: 200 calls of 4097 bytes, which count as 8 KB each.
        assert_eq!(calls(4097), 200);
        assert_eq!(calls(0), 0);
    }

    #[test]
    fn telemetry_is_first_delayed_and_then_cut_off() {
        let (mut meters, start) = (meters("S1"), Instant::now());
        for _ in 0..1000 {
            assert_eq!(meters.shape(start), Some(Duration::ZERO));
        }
        let wait = meters.shape(start).unwrap();
        assert!(
            (seconds(0.005)..=seconds(0.015)).contains(&wait),
            "{wait:?}"
        );
        let allowed = (0..5000)
            .take_while(|_| meters.shape(start).is_some())
            .count();
        assert_eq!(allowed, 999);
    }

    #[test]
    fn without_a_throttle_nothing_is_refused() {
        let (mut meters, now) = (Meters::default(), Instant::now());
        for _ in 0..10_000 {
            assert_eq!(meters.take_at(Operation::Query, now), Ok(()));
        }
    }

    #[test]
    fn a_refusal_says_when_to_come_again_unless_told_not_to() {
        for (text, expected) in [("F1", Some(3)), ("F1,no-retry-after", None)] {
            let mut meters = meters(text);
            let refused = (0..30)
                .find_map(|_| meters.take(Operation::Query).err())
                .unwrap();
            assert_eq!(refused.kind().number(), 429_001);
            assert_eq!(refused.retry_after(), expected);
        }
    }

    #[test]
    fn a_request_counts_as_what_it_asks_for() {
        let of = |method, path| Operation::of_request(method, path, 7);
        assert_eq!(of("POST", "/devices/query"), Some(Operation::Query));
        assert_eq!(of("GET", "/devices/pi"), Some(Operation::Registry));
        assert_eq!(of("POST", "/devices"), Some(Operation::Registry));
        assert_eq!(of("GET", "/statistics/devices"), Some(Operation::Registry));
        assert_eq!(of("GET", "/twins/pi"), Some(Operation::TwinRead));
        assert_eq!(of("PATCH", "/twins/pi"), Some(Operation::TwinUpdate));
        assert_eq!(of("POST", "/twins/pi/methods"), Some(Operation::Method(7)));
        assert_eq!(of("PUT", "/jobs/v2/j"), Some(Operation::Job));
        assert_eq!(of("GET", "/configurations"), Some(Operation::Configuration));
        assert_eq!(of("GET", "/emulator"), None);
    }

    proptest! {
        #[test]
        fn over_any_time_no_more_passes_than_the_bucket_and_the_rate(
            pauses in prop::collection::vec(0_u64..200, 1..400),
        ) {
            let (mut meters, start) = (meters("F1"), Instant::now());
            let (mut now, mut passed) = (start, 0.0);
            for pause in pauses {
                now += Duration::from_millis(pause);
                if meters.take_at(Operation::Query, now).is_ok() {
                    passed += 1.0;
                }
                let most = 20.0 + (now - start).as_secs_f64() * 20.0 / 60.0;
                prop_assert!(passed <= most + 1e-6, "{passed} of {most}");
            }
        }
    }
}
