//! A configuration: read from a request, shown in an answer.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::clock;
use crate::hub_error::HubError;
use crate::query::{self, Document, Query};
use crate::registry;
use crate::twin::{self, Object};
use crate::twin_limits;

/// The part of a twin that a configuration may set.
const DESIRED: &str = "properties.desired";

/// A configuration as it was asked for, checked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Configuration {
    pub(crate) id: String,
    pub(crate) etag: String,
    pub(crate) created: String,
    pub(crate) updated: String,
    pub(crate) priority: u32,
    schema_version: String,
    labels: Object,
    /// `properties.desired.path` to value, as written.
    device_content: Object,
    target_condition: String,
    metrics: BTreeMap<String, String>,
}

/// What a configuration's queries found.
pub(crate) struct Results {
    pub(crate) targeted: usize,
    pub(crate) applied: usize,
    pub(crate) metrics: BTreeMap<String, usize>,
}

impl Configuration {
    /// The configuration that `PUT /configurations/{id}` with `body` makes, out of `old` if there is one.
    pub(crate) fn from_body(id: &str, body: &Value, old: Option<&Self>) -> Result<Self, HubError> {
        registry::check_id(id).map_err(|_| {
            HubError::argument("A configuration's id has 1 to 128 letters, digits and some signs.")
        })?;
        let body = body
            .as_object()
            .ok_or_else(|| HubError::argument("The configuration must be a JSON object."))?;
        match body.get("id") {
            None => {}
            Some(Value::String(named)) if named == id => {}
            Some(_) => {
                return Err(HubError::argument(
                    "'id' in the body is not the one in the path.",
                ));
            }
        }
        let device_content = match (content(body.get("content"))?, old) {
            (Some(content), Some(old)) if content != old.device_content => {
                return Err(HubError::argument(
                    "The content of a configuration cannot be changed; make a new one with a higher priority.",
                ));
            }
            (Some(content), _) => content,
            (None, Some(old)) => old.device_content.clone(),
            (None, None) => Object::new(),
        };
        settings_of(&device_content)?;
        let target_condition = match body.get("targetCondition") {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(condition)) => condition.clone(),
            Some(_) => return Err(HubError::argument("'targetCondition' must be a text.")),
        };
        Target::parse(&target_condition)?;
        let priority = match body.get("priority") {
            None | Some(Value::Null) => 0,
            Some(priority) => priority
                .as_u64()
                .and_then(|priority| u32::try_from(priority).ok())
                .ok_or_else(|| {
                    HubError::argument("'priority' must be a whole number of 0 or more.")
                })?,
        };
        let labels = match body.get("labels") {
            None | Some(Value::Null) => Object::new(),
            Some(Value::Object(labels)) if labels.values().all(Value::is_string) => labels.clone(),
            Some(_) => return Err(HubError::argument("'labels' must be an object of texts.")),
        };
        let metrics = metrics(
            body.get("metrics")
                .and_then(|metrics| metrics.get("queries")),
        )?;
        for (name, text) in &metrics {
            parse_metric(text)
                .map_err(|error| HubError::argument(format!("The metric '{name}': {error}")))?;
        }
        let schema_version = body.get("schemaVersion").and_then(Value::as_str);
        let now = clock::stamp();
        Ok(Self {
            id: id.to_owned(),
            etag: clock::new_identity_etag(),
            created: old.map_or_else(|| now.clone(), |old| old.created.clone()),
            updated: now,
            priority,
            schema_version: schema_version.unwrap_or("1.0").to_owned(),
            labels,
            device_content,
            target_condition,
            metrics,
        })
    }

    /// The desired properties that it sets.
    pub(crate) fn settings(&self) -> Object {
        settings_of(&self.device_content).unwrap_or_default()
    }

    /// Whom it is for.
    pub(crate) fn target(&self) -> Target {
        Target::parse(&self.target_condition).unwrap_or(Target::None)
    }

    /// The queries of its metrics by name.
    pub(crate) fn metric_queries(&self) -> impl Iterator<Item = (&String, Query)> {
        let queries = self.metrics.iter();
        queries.filter_map(|(name, text)| query::parse(text).ok().map(|query| (name, query)))
    }

    /// The configuration as REST shows it.
    pub(crate) fn document(&self, results: &Results) -> Value {
        let condition = match self.target_condition.trim() {
            "" | "*" => String::new(),
            condition => format!(" where {condition}"),
        };
        json!({
            "id": self.id,
            "schemaVersion": self.schema_version,
            "labels": self.labels,
            "content": { "deviceContent": self.device_content },
            "targetCondition": self.target_condition,
            "createdTimeUtc": self.created,
            "lastUpdatedTimeUtc": self.updated,
            "priority": self.priority,
            "systemMetrics": {
                "results": { "targetedCount": results.targeted, "appliedCount": results.applied },
                "queries": {
                    "targetedCount": format!("select deviceId from devices{condition}"),
                    "appliedCount": format!(
                        "select deviceId from devices where configurations.[[{}]].status = 'Applied'",
                        self.id
                    ),
                },
            },
            "metrics": { "results": results.metrics, "queries": self.metrics },
            "etag": self.etag,
        })
    }
}

/// Whom a configuration is for.
#[derive(Debug)]
pub(crate) enum Target {
    /// The condition is empty.
    None,
    /// `*`.
    All,
    Where(query::Expr),
}

impl Target {
    fn parse(text: &str) -> Result<Self, HubError> {
        match text.trim() {
            "" => Ok(Self::None),
            "*" => Ok(Self::All),
            // Not trimmed, so that an error's place is that in the text.
            _ => match query::condition(text) {
                Ok(condition) => Ok(Self::Where(condition)),
                Err(error) => Err(HubError::argument(format!("'targetCondition': {error}"))),
            },
        }
    }

    pub(crate) fn includes(&self, twin: &impl Document) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Where(condition) => query::holds(condition, twin),
        }
    }
}

/// What `POST /configurations/testQueries` answers: the errors of a condition and of metrics, if any.
pub(crate) fn test_queries(body: &Value) -> Result<Value, HubError> {
    let condition = body.get("targetCondition").and_then(Value::as_str);
    let error = condition.and_then(|condition| Target::parse(condition).err());
    let mut errors = Object::new();
    for (name, text) in metrics(body.get("customMetricQueries"))? {
        if let Err(error) = parse_metric(&text) {
            errors.insert(name, error.to_string().into());
        }
    }
    Ok(json!({
        "targetConditionError": error.map(|error| error.message().to_owned()),
        "customMetricQueryErrors": errors,
    }))
}

fn parse_metric(text: &str) -> Result<Query, String> {
    query::parse(text).map_err(|error| error.to_string())
}

fn metrics(queries: Option<&Value>) -> Result<BTreeMap<String, String>, HubError> {
    let wrong = || HubError::argument("The queries of metrics must be an object of texts.");
    match queries {
        None | Some(Value::Null) => Ok(BTreeMap::new()),
        Some(queries) => BTreeMap::deserialize(queries).map_err(|_| wrong()),
    }
}

/// `deviceContent`, if there is some. What is for modules is refused: this emulator has none.
fn content(content: Option<&Value>) -> Result<Option<Object>, HubError> {
    let Some(content) = content.filter(|content| !content.is_null()) else {
        return Ok(None);
    };
    let filled = |name: &str| {
        let member = content.get(name).filter(|member| !member.is_null());
        member.is_some_and(|member| *member != json!({}))
    };
    if filled("modulesContent") || filled("moduleContent") {
        return Err(HubError::argument(
            "This emulator has no modules: only 'deviceContent' is possible.",
        ));
    }
    match content.get("deviceContent") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(content)) => Ok(Some(content.clone())),
        Some(_) => Err(HubError::argument("'deviceContent' must be a JSON object.")),
    }
}

/// The desired properties that `deviceContent` stands for.
fn settings_of(content: &Object) -> Result<Object, HubError> {
    let mut settings = Object::new();
    for (path, value) in content {
        let names = match path.strip_prefix(DESIRED) {
            Some("") => Vec::new(),
            Some(rest) if rest.starts_with('.') => rest[1..].split('.').collect(),
            _ => {
                return Err(HubError::argument(format!(
                    "'deviceContent' sets {DESIRED} or members of it, not '{path}'."
                )));
            }
        };
        let nested = names
            .into_iter()
            .rfold(value.clone(), |inner, name| json!({ name: inner }));
        let Value::Object(nested) = nested else {
            return Err(HubError::argument(format!(
                "'{DESIRED}' must be a JSON object."
            )));
        };
        twin_limits::check(&nested, "deviceContent")?;
        twin::merge(&mut settings, &nested);
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration(content: Value) -> Result<Configuration, HubError> {
        let body = json!({ "id": "c", "content": { "deviceContent": content } });
        Configuration::from_body("c", &body, None)
    }

    #[test]
    fn paths_become_desired_properties() {
        let content = json!({
            "properties.desired.firmware": { "fwVersion": "2" },
            "properties.desired.firmware.url": "x",
            "properties.desired.a.b.c": [1, 2],
        });
        assert_eq!(
            Value::Object(configuration(content).unwrap().settings()),
            json!({ "firmware": { "fwVersion": "2", "url": "x" }, "a": { "b": { "c": [1, 2] } } })
        );
        let whole = configuration(json!({ "properties.desired": { "a": 1 } })).unwrap();
        assert_eq!(Value::Object(whole.settings()), json!({ "a": 1 }));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for content in [
            json!({ "tags.a": 1 }),
            json!({ "properties.reported.a": 1 }),
            json!({ "properties.desiredx": {} }),
            json!({ "properties.desired": 1 }),
            json!({ "properties.desired.a": { "b c": 1 } }),
            json!({ "properties.desired..a": 1 }),
            json!([1]),
        ] {
            assert!(configuration(content.clone()).is_err(), "{content}");
        }
        for body in [
            json!({ "id": "d" }),
            json!({ "targetCondition": "SELECT * FROM devices" }),
            json!({ "priority": -1 }),
            json!({ "labels": { "a": 1 } }),
            json!({ "metrics": { "queries": { "m": "SELECT" } } }),
            json!({ "content": { "modulesContent": { "m": { "properties.desired": {} } } } }),
        ] {
            assert!(
                Configuration::from_body("c", &body, None).is_err(),
                "{body}"
            );
        }
    }

    #[test]
    fn an_update_keeps_the_content_and_cannot_change_it() {
        let old = configuration(json!({ "properties.desired.a": 1 })).unwrap();
        let new = Configuration::from_body("c", &json!({ "priority": 5 }), Some(&old)).unwrap();
        assert_eq!((new.settings(), new.priority), (old.settings(), 5));
        assert_eq!(new.created, old.created);
        assert_ne!(new.etag, old.etag);
        let other = json!({ "content": { "deviceContent": { "properties.desired.a": 2 } } });
        assert!(Configuration::from_body("c", &other, Some(&old)).is_err());
    }

    #[test]
    fn queries_are_tested_one_by_one() {
        let tested = test_queries(&json!({
            "targetCondition": "tags.a ==",
            "customMetricQueries": { "good": "SELECT deviceId FROM devices", "bad": "SELECT" },
        }))
        .unwrap();
        assert!(tested["targetConditionError"].is_string());
        assert!(tested["customMetricQueryErrors"]["bad"].is_string());
        assert_eq!(tested["customMetricQueryErrors"].get("good"), None);
        let good = test_queries(&json!({ "targetCondition": "tags.a = 1" })).unwrap();
        assert_eq!(
            good,
            json!({ "targetConditionError": null, "customMetricQueryErrors": {} })
        );
    }
}
