//! The faults by name: what each does, which parameters it takes, and how it is written.
//!
//! One grammar for all ways in: `--fault refuse-connects=3,code=5,device=pi-01` at the start,
//! `POST /emulator/refuse-connects?count=3&code=5&device=pi-01` while it runs, and the same text parsed
//! in a test. What a fault then does is in `faults.rs`.

use std::fmt;
use std::str::FromStr;

use serde_json::{Map, Value, json};

/// Something to make go wrong. Parse one from text, such as `fail-twin-reads=2,status=503`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub(crate) kind: FaultKind,
    /// The device (or registration id) it is for; every one when absent.
    pub(crate) device: Option<String>,
    pub(crate) parameters: Parameters,
}

/// The numbers that faults take; each kind uses some.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Parameters {
    pub(crate) count: Option<u32>,
    pub(crate) code: Option<u32>,
    pub(crate) status: Option<u32>,
    pub(crate) retry_after: Option<u32>,
    pub(crate) milliseconds: Option<u32>,
    pub(crate) seconds: Option<u32>,
    pub(crate) seed: Option<u32>,
}

/// The kinds of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FaultKind {
    Drop,
    ForgetSession,
    ExpireTokens,
    Outage,
    Down,
    Up,
    RefuseConnects,
    CloseConnects,
    FailSubscribes,
    DropAfterPackets,
    DelayTwinAnswers,
    SwallowTwinAnswers,
    FailTwinReads,
    FailTwinPatches,
    CorruptTwins,
    DropBeforePatch,
    DropAfterPatch,
    SwallowDesired,
    RepeatDesired,
    StaleDesired,
    CorruptDesired,
    DelayMethods,
    SwallowMethodAnswers,
    FailRegistrations,
    FailRequests,
    Impostor,
    Chaos,
    Calm,
}

/// How a kind is written and what it does.
pub(crate) struct Row {
    pub(crate) kind: FaultKind,
    pub(crate) name: &'static str,
    /// The parameter that a value right after the name is for, if it takes one.
    main: Option<&'static str>,
    /// The others.
    more: &'static [&'static str],
    pub(crate) does: &'static str,
}

const fn row(
    kind: FaultKind,
    name: &'static str,
    main: Option<&'static str>,
    more: &'static [&'static str],
    does: &'static str,
) -> Row {
    Row {
        kind,
        name,
        main,
        more,
        does,
    }
}

const COUNT: Option<&str> = Some("count");
const DEVICE: &[&str] = &["device"];
const STATUS: &[&str] = &["status", "retry-after", "device"];

/// Every kind, in the order in which they are listed.
pub(crate) const TABLE: &[Row] = &[
    row(
        FaultKind::Drop,
        "drop",
        None,
        DEVICE,
        "close the connection, or every one",
    ),
    row(
        FaultKind::ForgetSession,
        "forget-session",
        None,
        DEVICE,
        "the next connection has no subscriptions",
    ),
    row(
        FaultKind::ExpireTokens,
        "expire-tokens",
        None,
        &[],
        "every token used so far is expired, at once",
    ),
    row(
        FaultKind::Outage,
        "outage",
        Some("seconds"),
        &[],
        "go away, come back by itself",
    ),
    row(FaultKind::Down, "down", None, &[], "go away until ..."),
    row(FaultKind::Up, "up", None, &[], "... told to come back"),
    row(
        FaultKind::RefuseConnects,
        "refuse-connects",
        COUNT,
        &["code", "device"],
        "refuse CONNECTs with this CONNACK code (1 to 5; 3 unless given)",
    ),
    row(
        FaultKind::CloseConnects,
        "close-connects",
        COUNT,
        DEVICE,
        "close instead of a CONNACK",
    ),
    row(
        FaultKind::FailSubscribes,
        "fail-subscribes",
        COUNT,
        DEVICE,
        "answer SUBSCRIBE with a failure",
    ),
    row(
        FaultKind::DropAfterPackets,
        "drop-after-packets",
        COUNT,
        DEVICE,
        "close when so many packets more came in",
    ),
    row(
        FaultKind::DelayTwinAnswers,
        "delay-twin-answers",
        Some("milliseconds"),
        &["count", "device"],
        "answer twin requests late; 0 ends it",
    ),
    row(
        FaultKind::SwallowTwinAnswers,
        "swallow-twin-answers",
        COUNT,
        DEVICE,
        "carry out the request, lose the answer",
    ),
    row(
        FaultKind::FailTwinReads,
        "fail-twin-reads",
        COUNT,
        STATUS,
        "refuse twin reads (429 unless a status is given)",
    ),
    row(
        FaultKind::FailTwinPatches,
        "fail-twin-patches",
        COUNT,
        STATUS,
        "refuse reported patches (429 unless a status is given)",
    ),
    row(
        FaultKind::CorruptTwins,
        "corrupt-twins",
        COUNT,
        DEVICE,
        "answer twin reads with what is no JSON",
    ),
    row(
        FaultKind::DropBeforePatch,
        "drop-before-patch",
        COUNT,
        DEVICE,
        "close instead of applying a patch",
    ),
    row(
        FaultKind::DropAfterPatch,
        "drop-after-patch",
        COUNT,
        DEVICE,
        "apply a patch, close instead of answering",
    ),
    row(
        FaultKind::SwallowDesired,
        "swallow-desired",
        COUNT,
        DEVICE,
        "lose pushes of desired properties",
    ),
    row(
        FaultKind::RepeatDesired,
        "repeat-desired",
        COUNT,
        DEVICE,
        "push desired properties twice",
    ),
    row(
        FaultKind::StaleDesired,
        "stale-desired",
        COUNT,
        DEVICE,
        "push the desired change before once more, after the new one",
    ),
    row(
        FaultKind::CorruptDesired,
        "corrupt-desired",
        COUNT,
        DEVICE,
        "push what is no JSON",
    ),
    row(
        FaultKind::DelayMethods,
        "delay-methods",
        Some("milliseconds"),
        &["count", "device"],
        "send method requests late; 0 ends it",
    ),
    row(
        FaultKind::SwallowMethodAnswers,
        "swallow-method-answers",
        COUNT,
        DEVICE,
        "lose what the device answers",
    ),
    row(
        FaultKind::FailRegistrations,
        "fail-registrations",
        COUNT,
        STATUS,
        "refuse requests to provisioning (429 unless a status is given)",
    ),
    row(
        FaultKind::FailRequests,
        "fail-requests",
        COUNT,
        &["status", "retry-after"],
        "refuse service calls over REST (429 unless a status is given)",
    ),
    row(
        FaultKind::Impostor,
        "impostor",
        Some("milliseconds"),
        &["seconds", "device"],
        "a second client with the device's identity, which connects each so many milliseconds (for 10 seconds unless given); 0 ends it",
    ),
    row(
        FaultKind::Chaos,
        "chaos",
        Some("milliseconds"),
        &["seconds", "seed"],
        "one fault after another by chance, about each so many milliseconds, such that a right device recovers; 0 ends it",
    ),
    row(
        FaultKind::Calm,
        "calm",
        None,
        DEVICE,
        "end every fault in force",
    ),
];

/// Why a text is no fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FaultError {
    /// No fault has this name.
    #[error("there is no fault '{name}'; there are: {}", names())]
    Unknown {
        /// The name.
        name: String,
    },
    /// The fault takes no such parameter.
    #[error("'{fault}' takes no '{name}'; it takes {}", parameters_of(.fault))]
    Parameter {
        /// The fault.
        fault: &'static str,
        /// The parameter.
        name: String,
    },
    /// A parameter that the fault cannot do without is missing.
    #[error("'{fault}' needs '{name}'")]
    Missing {
        /// The fault.
        fault: &'static str,
        /// The parameter.
        name: &'static str,
    },
    /// A value is out of range or no number.
    #[error("'{name}' must be {wanted}, not '{value}'")]
    Value {
        /// The parameter.
        name: String,
        /// What it may be.
        wanted: &'static str,
        /// What it was.
        value: String,
    },
}

fn names() -> String {
    let names: Vec<&str> = TABLE.iter().map(|row| row.name).collect();
    names.join(", ")
}

fn parameters_of(fault: &str) -> String {
    let Some(row) = TABLE.iter().find(|row| row.name == fault) else {
        return "nothing".to_owned();
    };
    let names: Vec<&str> = row.main.iter().chain(row.more).copied().collect();
    match names.is_empty() {
        true => "nothing".to_owned(),
        false => names.join(", "),
    }
}

impl FaultKind {
    pub(crate) fn row(self) -> &'static Row {
        TABLE
            .iter()
            .find(|row| row.kind == self)
            .expect("every kind is in the table")
    }

    /// Its name, as it is written.
    pub(crate) fn name(self) -> &'static str {
        self.row().name
    }
}

impl Row {
    /// Name and parameters as in a query: `refuse-connects?count=N[&code=N][&device=ID]`.
    pub(crate) fn usage(&self) -> String {
        let mut text = self.name.to_owned();
        let value = |name: &str| if name == "device" { "ID" } else { "N" };
        if let Some(main) = self.main {
            text.push_str(&format!("?{main}=N"));
        }
        for (at, name) in self.more.iter().enumerate() {
            let first = at == 0 && self.main.is_none();
            text.push_str(&format!(
                "[{}{name}={}]",
                if first { '?' } else { '&' },
                value(name)
            ));
        }
        text
    }
}

impl Fault {
    /// A fault for every device.
    pub(crate) fn new(kind: FaultKind, parameters: Parameters) -> Self {
        Self {
            kind,
            device: None,
            parameters,
        }
    }

    /// The same fault, for `device` only.
    #[must_use]
    pub fn on(mut self, device: &str) -> Self {
        self.device = Some(device.to_owned());
        self
    }

    /// Reads the parameters of the fault called `name`.
    pub(crate) fn parse<'a>(
        name: &str,
        parameters: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, FaultError> {
        let row = TABLE
            .iter()
            .find(|row| row.name == name)
            .ok_or_else(|| FaultError::Unknown {
                name: name.to_owned(),
            })?;
        let mut fault = Self::new(row.kind, Parameters::default());
        for (name, value) in parameters {
            if row.main != Some(name) && !row.more.contains(&name) {
                return Err(FaultError::Parameter {
                    fault: row.name,
                    name: name.to_owned(),
                });
            }
            fault.set(name, value)?;
        }
        match row.main {
            Some(main) if fault.parameters.get(main).is_none() => Err(FaultError::Missing {
                fault: row.name,
                name: main,
            }),
            _ => Ok(fault),
        }
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), FaultError> {
        let (wanted, allowed) = match name {
            "code" => ("a CONNACK code, 1 to 5", 1..=5),
            "status" => ("400 to 599", 400..=599),
            _ => ("a whole number", 0..=u32::MAX),
        };
        if name == "device" {
            self.device = Some(value.to_owned());
            return Ok(());
        }
        let number = value.parse().ok().filter(|number| allowed.contains(number));
        let number = number.ok_or_else(|| FaultError::Value {
            name: name.to_owned(),
            wanted,
            value: value.to_owned(),
        })?;
        if let Some(place) = self.parameters.place(name) {
            *place = Some(number);
        }
        Ok(())
    }

    /// The parameters as they are shown: by name.
    pub(crate) fn document(&self) -> Map<String, Value> {
        let mut document = Map::new();
        document.insert("fault".to_owned(), self.kind.name().into());
        let row = self.kind.row();
        for name in row.main.iter().chain(row.more) {
            if let Some(number) = self.parameters.get(name) {
                document.insert((*name).to_owned(), json!(number));
            }
        }
        if let Some(device) = &self.device {
            document.insert("device".to_owned(), json!(device));
        }
        document
    }
}

impl Parameters {
    pub(crate) fn count(count: u32) -> Self {
        Self {
            count: Some(count),
            ..Self::default()
        }
    }

    fn place(&mut self, name: &str) -> Option<&mut Option<u32>> {
        Some(match name {
            "count" => &mut self.count,
            "code" => &mut self.code,
            "status" => &mut self.status,
            "retry-after" => &mut self.retry_after,
            "milliseconds" => &mut self.milliseconds,
            "seconds" => &mut self.seconds,
            "seed" => &mut self.seed,
            _ => return None,
        })
    }

    fn get(mut self, name: &str) -> Option<u32> {
        *self.place(name)?
    }
}

impl FromStr for Fault {
    type Err = FaultError;

    /// Reads `name`, `name=value` and `name=value,parameter=value,...`.
    fn from_str(text: &str) -> Result<Self, FaultError> {
        let mut parts = text.split(',');
        let head = parts.next().unwrap_or_default();
        let (name, value) = match head.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (head, None),
        };
        let main = TABLE
            .iter()
            .find(|row| row.name == name)
            .and_then(|row| row.main);
        let mut parameters = Vec::new();
        match (value, main) {
            (Some(value), Some(main)) => parameters.push((main, value)),
            (Some(_), None) if TABLE.iter().any(|row| row.name == name) => {
                // A value right after the name of a fault that takes none.
                return Self::parse(name, [("value", "")]);
            }
            (Some(_), None) | (None, _) => {}
        }
        parameters.extend(parts.map(|part| part.split_once('=').unwrap_or((part, ""))));
        Self::parse(name, parameters)
    }
}

impl fmt::Display for Fault {
    /// As it is parsed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = self.kind.row();
        f.write_str(row.name)?;
        if let Some(number) = row.main.and_then(|name| self.parameters.get(name)) {
            write!(f, "={number}")?;
        }
        for name in row.more {
            if let Some(number) = self.parameters.get(name) {
                write!(f, ",{name}={number}")?;
            }
        }
        match &self.device {
            Some(device) => write!(f, ",device={device}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Fault {
        text.parse().unwrap()
    }

    #[test]
    fn a_fault_is_read_with_its_parameters() {
        let fault = parse("refuse-connects=3,code=5,device=pi=01");
        assert_eq!(fault.kind, FaultKind::RefuseConnects);
        assert_eq!(fault.device.as_deref(), Some("pi=01"));
        assert_eq!(
            (fault.parameters.count, fault.parameters.code),
            (Some(3), Some(5))
        );
        assert_eq!(parse("drop").on("a"), parse("drop,device=a"));
        assert_eq!(parse("outage=5").parameters.seconds, Some(5));
        for text in [
            "up",
            "drop,device=a",
            "refuse-connects=3,code=5,device=pi=01",
        ] {
            assert_eq!(parse(text).to_string(), text);
        }
    }

    #[test]
    fn each_mistake_is_named() {
        for (text, part) in [
            ("", "no fault ''"),
            ("explode=1", "no fault 'explode'; there are: drop,"),
            ("drop=1", "'drop' takes no 'value'; it takes device"),
            ("down=1", "it takes nothing"),
            ("outage", "'outage' needs 'seconds'"),
            (
                "outage=soon",
                "'seconds' must be a whole number, not 'soon'",
            ),
            ("refuse-connects=1,code=0", "a CONNACK code, 1 to 5"),
            ("fail-twin-reads=1,status=200", "400 to 599"),
            (
                "fail-twin-reads=1,code=5",
                "takes no 'code'; it takes count, status, retry-after, device",
            ),
        ] {
            let error = text.parse::<Fault>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn the_table_has_each_kind_and_each_name_once() {
        for row in TABLE {
            assert_eq!(row.kind.row().name, row.name);
            assert_eq!(
                TABLE.iter().filter(|other| other.name == row.name).count(),
                1
            );
        }
        assert_eq!(TABLE[0].usage(), "drop[?device=ID]");
        let refuse = FaultKind::RefuseConnects.row().usage();
        assert_eq!(refuse, "refuse-connects?count=N[&code=N][&device=ID]");
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "(drop|outage|chaos|fail-twin-reads)?[a-z0-9,=.-]*") {
            let _ = text.parse::<Fault>();
        }
    }
}
