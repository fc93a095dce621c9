//! The desired property `firmware {fwVersion, fwPackageURI, fwPackageCheckValue}`: what it asks for, and
//! when that starts an update.
//!
//! Rules: the newest content counts; content that was acted on once (started, refused or found to be
//! installed) is never acted on again until it changes, so that a bad image cannot loop; content that
//! comes while an update is under way waits for its end. Pure: the caller persists [`Acted`].

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    method::{expected_version, kind},
    twin::{merge, without_nulls},
};
use crate::update::{
    digest::{NotASha256, Sha256},
    failure::{Class, Coded},
    request::{Origin, Request},
    uri::UriError,
};

/// Why the desired property `firmware` is no request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DesiredError {
    /// The property itself has another type.
    #[error(
        "the desired property firmware is {0}; expected an object {{\"fwVersion\",\"fwPackageURI\",\"fwPackageCheckValue\"}}"
    )]
    Kind(&'static str),
    /// A member has another type.
    #[error("the desired property firmware.{member} is {found}; expected a text")]
    Type {
        /// Its name.
        member: &'static str,
        /// What it is.
        found: &'static str,
    },
    /// No address.
    #[error(
        "the desired property firmware has no fwPackageURI; set it to the image's https:// URL"
    )]
    NoUri,
    /// The address is none.
    #[error(transparent)]
    Uri(#[from] UriError),
    /// `fwPackageCheckValue` is no SHA-256.
    #[error("the desired property firmware.fwPackageCheckValue is wrong")]
    CheckValue(#[from] NotASha256),
    /// `fwVersion` breaks its rules.
    #[error("the desired property firmware.fwVersion must be 1 to 64 printable characters")]
    Version,
}

impl Coded for DesiredError {
    fn code(&self) -> &'static str {
        match self {
            Self::Kind(_) => "desired-kind",
            Self::Type { .. } => "desired-type",
            Self::NoUri => "desired-no-uri",
            Self::Uri(error) => error.code(),
            Self::CheckValue(_) => "desired-check-value",
            Self::Version => "desired-version",
        }
    }

    fn class(&self) -> Class {
        Class::Final
    }
}

/// What a desired section's `firmware` asks for; `None` when there is none or it is empty.
///
/// # Errors
/// [`DesiredError`] when it is there but cannot be understood.
#[must_use]
pub fn parse(desired: &Value) -> Option<Result<Request, DesiredError>> {
    match desired.get("firmware") {
        None | Some(Value::Null) => None,
        Some(Value::Object(members)) if members.is_empty() => None,
        Some(firmware @ Value::Object(_)) => Some(request(firmware)),
        Some(other) => Some(Err(DesiredError::Kind(kind(other)))),
    }
}

fn request(firmware: &Value) -> Result<Request, DesiredError> {
    let version = member(firmware, "fwVersion")?
        .map(|version| expected_version(version).ok_or(DesiredError::Version))
        .transpose()?;
    let uri = member(firmware, "fwPackageURI")?.filter(|uri| !uri.trim().is_empty());
    let mut request = Request::new(uri.ok_or(DesiredError::NoUri)?.parse()?, Origin::Desired);
    request.version = version;
    request.sha256 = member(firmware, "fwPackageCheckValue")?
        .map(str::parse)
        .transpose()?;
    Ok(request)
}

fn member<'a>(firmware: &'a Value, member: &'static str) -> Result<Option<&'a str>, DesiredError> {
    match &firmware[member] {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text)),
        other => Err(DesiredError::Type {
            member,
            found: kind(other),
        }),
    }
}

/// What was last acted on. Survives restarts, best in the same write as the update it started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Acted {
    /// Digest of the content (which may hold a signed URL, so it is not kept itself).
    pub content: Option<Sha256>,
    /// The version of the desired section then.
    pub version: u64,
}

/// What is to be done about the desired property.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Start this update.
    Start(Request),
    /// Its version runs already.
    UpToDate,
    /// It cannot be understood: report the error.
    Refuse(DesiredError),
}

/// An [`Action`] and what to hand to [`DesiredTracker::done`] once it was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// What is to be done.
    pub action: Action,
    /// The content it is for.
    pub acted: Acted,
}

/// Follows the desired section and says when it asks for something new.
#[derive(Debug, Clone, Default)]
pub struct DesiredTracker {
    acted: Acted,
    desired: Value,
    version: u64,
}

impl DesiredTracker {
    /// A tracker that knows nothing but what was last acted on.
    #[must_use]
    pub fn new(acted: Acted) -> Self {
        Self {
            acted,
            ..Self::default()
        }
    }

    /// The whole desired section was read, with its `$version`.
    pub fn handle_whole(&mut self, desired: &Value) {
        self.version = desired["$version"].as_u64().unwrap_or_default();
        self.desired = without_nulls(desired);
    }

    /// A change of the desired section was pushed. One that is not the next is ignored, and so is one that
    /// comes before the whole section is known: after a gap the whole is read.
    pub fn handle_patch(&mut self, version: u64, patch: &Value) {
        if version == self.version + 1 && self.desired.is_object() {
            merge(&mut self.desired, patch);
            self.version = version;
        }
    }

    /// What is to be done now, with `running` the running version and `busy` while an update is under
    /// way. Says the same until [`DesiredTracker::done`].
    #[must_use]
    pub fn due(&self, running: Option<&str>, busy: bool) -> Option<Due> {
        let request = parse(&self.desired)?;
        let acted = Acted {
            content: Some(self.content()),
            version: self.version,
        };
        if busy || acted.content == self.acted.content {
            return None;
        }
        let asked = self.desired["firmware"]["fwVersion"].as_str();
        let action = match request {
            _ if asked.is_some() && asked.map(str::trim) == running => Action::UpToDate,
            Ok(request) => Action::Start(request),
            Err(error) => Action::Refuse(error),
        };
        Some(Due { action, acted })
    }

    /// What was due was done (the update accepted, the refusal reported): it is not due again until the
    /// content changes. Returns what to persist.
    pub fn done(&mut self, acted: Acted) -> &Acted {
        self.acted = acted;
        &self.acted
    }

    /// Digest of the members that count, in a fixed order.
    fn content(&self) -> Sha256 {
        let firmware = &self.desired["firmware"];
        let content = if firmware.is_object() {
            ["fwVersion", "fwPackageURI", "fwPackageCheckValue"]
                .map(|name| firmware[name].clone())
                .into_iter()
                .collect()
        } else {
            json!({"other": firmware})
        };
        Sha256::of(content.to_string().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEX: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn desired(version: u64, fw_version: &str) -> Value {
        json!({"firmware": {
            "fwVersion": fw_version, "fwPackageURI": format!("https://h/{fw_version}?sig=S"),
            "fwPackageCheckValue": HEX
        }, "$version": version})
    }

    fn tracker(desired: &Value) -> DesiredTracker {
        let mut tracker = DesiredTracker::new(Acted::default());
        tracker.handle_whole(desired);
        tracker
    }

    /// The version that is to be started, after which it counts as done.
    fn start(tracker: &mut DesiredTracker, running: &str) -> Option<String> {
        let due = tracker.due(Some(running), false)?;
        tracker.done(due.acted);
        match due.action {
            Action::Start(request) => request.version,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_samples_property_is_a_request() {
        let request = parse(&desired(1, "2.8.5")).unwrap().unwrap();
        assert_eq!(request.uri.to_string(), "https://h/2.8.5");
        assert_eq!(request.version.as_deref(), Some("2.8.5"));
        assert_eq!(request.sha256, Some(Sha256::of(b"abc")));
        assert_eq!((request.origin, request.force), (Origin::Desired, false));
        for nothing in [
            json!({}),
            json!({"firmware": {}}),
            json!({"firmware": null}),
            json!(null),
        ] {
            assert_eq!(parse(&nothing), None);
        }
    }

    #[test]
    fn what_is_no_request_says_why() {
        let uri = "https://h/x";
        for (firmware, code) in [
            (json!("1.0"), "desired-kind"),
            (json!({"fwVersion": "1"}), "desired-no-uri"),
            (json!({"fwPackageURI": " "}), "desired-no-uri"),
            (json!({"fwPackageURI": 5}), "desired-type"),
            (
                json!({"fwPackageURI": uri, "fwVersion": 2.8}),
                "desired-type",
            ),
            (
                json!({"fwPackageURI": uri, "fwVersion": ""}),
                "desired-version",
            ),
            (json!({"fwPackageURI": "ftp://h/x"}), "url-scheme"),
            (
                json!({"fwPackageURI": uri, "fwPackageCheckValue": "123456abcde"}),
                "desired-check-value",
            ),
        ] {
            let desired = json!({"firmware": firmware, "$version": 3});
            assert_eq!(parse(&desired).unwrap().unwrap_err().code(), code);
            let due = tracker(&desired).due(Some("9"), false).unwrap();
            assert!(matches!(due.action, Action::Refuse(error) if error.code() == code));
        }
    }

    #[test]
    fn content_is_acted_on_once_also_after_a_restart() {
        let mut first = tracker(&desired(4, "2"));
        assert_eq!(start(&mut first, "1").as_deref(), Some("2"));
        assert_eq!(
            first.due(Some("1"), false),
            None,
            "failed or not, never again"
        );

        let stored = serde_json::to_string(&first.acted).unwrap();
        assert!(!stored.contains("sig"));
        let mut restarted = DesiredTracker::new(serde_json::from_str(&stored).unwrap());
        restarted.handle_whole(&desired(9, "2"));
        assert_eq!(restarted.due(Some("1"), false), None);
        restarted.handle_patch(
            10,
            &json!({"firmware": {"fwPackageURI": "https://h/again"}}),
        );
        assert_eq!(start(&mut restarted, "1").as_deref(), Some("2"));
    }

    #[test]
    fn what_comes_during_a_run_waits_and_the_newest_wins() {
        let mut tracker = tracker(&desired(1, "2"));
        assert_eq!(start(&mut tracker, "1").as_deref(), Some("2"));
        tracker.handle_patch(2, &desired(2, "3"));
        tracker.handle_patch(3, &desired(3, "4"));
        assert_eq!(tracker.due(Some("1"), true), None);
        assert_eq!(start(&mut tracker, "2").as_deref(), Some("4"));
    }

    #[test]
    fn what_runs_already_is_not_installed() {
        let due = tracker(&desired(1, "2")).due(Some("2"), false).unwrap();
        assert_eq!(due.action, Action::UpToDate);
    }

    #[test]
    fn a_change_elsewhere_or_an_old_one_starts_nothing() {
        let mut tracker = tracker(&desired(5, "2"));
        start(&mut tracker, "1").unwrap();
        tracker.handle_patch(6, &json!({"telemetry": 5, "firmware": {"note": "x"}}));
        tracker.handle_patch(4, &desired(4, "1.5"));
        assert_eq!(tracker.due(Some("1"), false), None);
        tracker.handle_patch(7, &json!({"firmware": null}));
        assert_eq!(tracker.due(Some("1"), false), None);
    }

    #[test]
    fn nothing_is_due_before_the_section_was_read() {
        let mut tracker = DesiredTracker::new(Acted::default());
        tracker.handle_patch(1, &desired(1, "2"));
        assert_eq!(tracker.due(None, false), None);
    }

    /// Any JSON, made of the names that matter and of others.
    fn json_value() -> impl Strategy<Value = Value> {
        let names = vec![
            "firmware",
            "fwVersion",
            "fwPackageURI",
            "fwPackageCheckValue",
            "$version",
            "x",
        ];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
            prop::sample::select(vec!["https://h/x", "http://h/x", "2.0", " 2.0 ", HEX])
                .prop_map(Value::from),
            Just(json!([{"firmware": null}])),
        ];
        leaf.prop_recursive(3, 30, 5, move |inner| {
            let name = prop::sample::select(names.clone()).prop_map(str::to_owned);
            prop::collection::btree_map(name, inner, 0..5)
                .prop_map(|members| Value::Object(members.into_iter().collect()))
        })
    }

    proptest! {
        #[test]
        fn no_desired_section_and_no_change_makes_the_reader_panic_or_act_twice(
            whole in json_value(), changes in prop::collection::vec((any::<u64>(), json_value()), 0..6)
        ) {
            let mut tracker = tracker(&whole);
            for (version, change) in changes {
                tracker.handle_patch(version, &change);
                if let Some(due) = tracker.due(Some("2.0"), false) {
                    prop_assert_eq!(tracker.due(None, true), None, "not while an update runs");
                    tracker.done(due.acted);
                    prop_assert_eq!(tracker.due(Some("2.0"), false), None);
                }
            }
        }
    }
}
