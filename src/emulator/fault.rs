//! The faults by name: what each does, which parameters it takes, and how it is written.
//!
//! One grammar for all ways in: `--fault refuse-connects=3,code=5,device=pi-01` at the start,
//! `POST /emulator/refuse-connects?count=3&code=5&device=pi-01` while it runs, and the same text parsed
//! in a test. What a fault then does is in `faults.rs`.

use std::fmt;
use std::str::FromStr;

use serde_json::{Map, Value, json};

use crate::fault_kind::{FaultKind, TABLE};

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

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "(drop|outage|chaos|fail-twin-reads)?[a-z0-9,=.-]*") {
            let _ = text.parse::<Fault>();
        }
    }
}
