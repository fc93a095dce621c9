//! What `PUT /jobs/v2/{id}` asks for.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::hub_error::HubError;
use crate::methods::Call;
use crate::query;
use crate::registry;
use crate::twin::ServiceWrite;

/// How long a job may take when the request does not say.
const MAX_EXECUTION_SECONDS: u64 = 3600;
/// The longest that a request may ask for: a year, so that no time overflows.
const LONGEST_SECONDS: u64 = 366 * 24 * 3600;

/// A job, as asked for and checked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) id: String,
    pub(crate) operation: Operation,
    /// What stands after WHERE, or `*`.
    pub(crate) condition: String,
    /// Absent: now.
    pub(crate) start: Option<Timestamp>,
    pub(crate) max_execution_seconds: u64,
}

/// What is done to each device, as it stood in the request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Operation {
    Method(Value),
    UpdateTwin(Value),
}

impl Request {
    pub(crate) fn parse(id: &str, body: &Value) -> Result<Self, HubError> {
        registry::check_id(id).map_err(|_| {
            HubError::argument(format!(
                "'{}' is no job id: 1 to 128 letters, digits and - . % _ * ? ! ( ) , : = @ $ '",
                id.chars().take(140).collect::<String>()
            ))
        })?;
        let body = body
            .as_object()
            .ok_or_else(|| HubError::argument("The job must be a JSON object."))?;
        match body.get("jobId") {
            None => {}
            Some(Value::String(named)) if named == id => {}
            Some(_) => {
                return Err(HubError::argument(
                    "'jobId' in the body is not the one in the path.",
                ));
            }
        }
        let needs = |name: &str| {
            body.get(name)
                .filter(|value| !value.is_null())
                .cloned()
                .ok_or_else(|| HubError::argument(format!("A job of this type needs '{name}'.")))
        };
        let operation = match body.get("type").and_then(Value::as_str) {
            Some("scheduleDeviceMethod") => Operation::Method(needs("cloudToDeviceMethod")?),
            Some("scheduleUpdateTwin") => Operation::UpdateTwin(needs("updateTwin")?),
            _ => {
                return Err(HubError::argument(
                    "'type' must be 'scheduleDeviceMethod' or 'scheduleUpdateTwin'.",
                ));
            }
        };
        operation.check()?;
        let condition = body
            .get("queryCondition")
            .and_then(Value::as_str)
            .filter(|condition| !condition.is_empty())
            .ok_or_else(|| {
                HubError::argument(
                    "'queryCondition' must be what stands after WHERE, or '*' for every device.",
                )
            })?;
        parse_condition(condition)?;
        let start = match body.get("startTime") {
            // Node sends null when its caller gave no time.
            None | Some(Value::Null) => None,
            Some(time) => Some(parse_time(time)?),
        };
        let max_execution_seconds = match body.get("maxExecutionTimeInSeconds") {
            None | Some(Value::Null) => MAX_EXECUTION_SECONDS,
            Some(seconds) => seconds
                .as_u64()
                .filter(|seconds| (1..=LONGEST_SECONDS).contains(seconds))
                .ok_or_else(|| {
                    HubError::argument(format!(
                        "'maxExecutionTimeInSeconds' must be 1 to {LONGEST_SECONDS}, not {seconds}."
                    ))
                })?,
        };
        Ok(Self {
            id: id.to_owned(),
            operation,
            condition: condition.to_owned(),
            start,
            max_execution_seconds,
        })
    }
}

/// The condition of a job; `None` is every device.
pub(super) fn parse_condition(text: &str) -> Result<Option<query::Expr>, HubError> {
    if text.trim() == "*" {
        return Ok(None);
    }
    match query::condition(text) {
        Ok(condition) => Ok(Some(condition)),
        Err(error) => Err(HubError::argument(format!("'queryCondition': {error}"))),
    }
}

/// A date and time with its offset. Without one it is UTC, as in the service's own answers.
fn parse_time(value: &Value) -> Result<Timestamp, HubError> {
    let parsed = value.as_str().and_then(|text| {
        text.parse::<Timestamp>()
            .or_else(|_| format!("{text}Z").parse())
            .ok()
    });
    parsed.ok_or_else(|| {
        HubError::argument(format!(
            "'startTime' must be a time such as 2030-01-31T08:00:00Z, or be left out, not {value}."
        ))
    })
}

impl Operation {
    /// The name in `type` and `jobType`.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Method(_) => "scheduleDeviceMethod",
            Self::UpdateTwin(_) => "scheduleUpdateTwin",
        }
    }

    fn check(&self) -> Result<(), HubError> {
        match self {
            Self::Method(call) => Call::parse(call).map(|_| ()),
            Self::UpdateTwin(twin) => ServiceWrite::parse(twin)?.check(),
        }
    }

    /// `cloudToDeviceMethod` and `updateTwin`, as a job shows them.
    pub(crate) fn document(&self) -> Value {
        match self {
            Self::Method(call) => json!({ "cloudToDeviceMethod": call }),
            Self::UpdateTwin(twin) => json!({ "updateTwin": twin }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn method() -> Value {
        json!({ "jobId": "j", "type": "scheduleDeviceMethod", "queryCondition": "*",
                "cloudToDeviceMethod": { "methodName": "m" } })
    }

    #[test]
    fn a_job_needs_little_more_than_its_operation_and_condition() {
        let request = Request::parse("j", &method()).unwrap();
        assert_eq!(request.start, None);
        assert_eq!(request.max_execution_seconds, 3600);
        let mut at = method();
        at["startTime"] = Value::Null;
        assert_eq!(Request::parse("j", &at).unwrap().start, None);
        for (time, expected) in [
            ("2030-01-31T08:00:00Z", 1_896_076_800),
            ("2030-01-31T09:00:00.000+01:00", 1_896_076_800),
            ("2030-01-31T08:00:00.0000000", 1_896_076_800),
        ] {
            at["startTime"] = time.into();
            let start = Request::parse("j", &at).unwrap().start.unwrap();
            assert_eq!(start.as_second(), expected, "{time}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_member_named() {
        for (member, value) in [
            ("jobId", json!("other")),
            ("type", json!("export")),
            ("cloudToDeviceMethod", json!(null)),
            ("cloudToDeviceMethod", json!({ "methodName": "" })),
            ("queryCondition", json!(null)),
            ("queryCondition", json!("")),
            ("queryCondition", json!("SELECT * FROM devices")),
            ("queryCondition", json!("tags.a ==")),
            ("startTime", json!("tomorrow")),
            ("maxExecutionTimeInSeconds", json!(0)),
            ("maxExecutionTimeInSeconds", json!("60")),
        ] {
            let mut body = method();
            body[member] = value.clone();
            let error = Request::parse("j", &body).unwrap_err();
            assert_eq!(error.kind().number(), 400_004);
            let named = error.message().contains(member) || error.message().contains("methodName");
            assert!(named, "{member} {value}: {}", error.message());
        }
        assert!(Request::parse("a/b", &json!({})).is_err());
        let bad_twin = json!({ "type": "scheduleUpdateTwin", "queryCondition": "*",
            "updateTwin": { "tags": { "a.b": 1 } } });
        assert!(Request::parse("j", &bad_twin).is_err());
    }
}
