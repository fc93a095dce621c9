//! What the page's list says of one device: a few members read out of its twin, not the twin itself. Pure.

use serde::Serialize;
use serde_json::Value;

use crate::clock::NO_DATE;
use crate::hub::Device;
use crate::twin::Object;
use crate::wire_log::{redact, shortened};

/// Longest text taken over from a twin; a device may report 4 KB in one.
const TEXT_SHOWN: usize = 200;

/// One row of the page.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Summary {
    pub(crate) id: String,
    pub(crate) connected: bool,
    pub(crate) enabled: bool,
    /// Since when it is connected or not; absent when it never was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) since: Option<String>,
    /// The version that it says it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) firmware: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) update: Option<Update>,
    /// When it was last heard.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) activity: Option<String>,
    /// Not shown, but a change of it is news: versions of desired, reported and the whole twin, and connections.
    #[serde(skip)]
    pub(crate) counts: [u64; 4],
}

/// The update under way, else the last one.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Update {
    /// The stage in the device's own word.
    pub(crate) word: String,
    pub(crate) phase: Phase,
    /// Finer than `word`, where the device says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stage: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<String>,
    /// The version that it installs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) started: Option<String>,
    /// 0 to 100, of the present stage; absent while the device does not know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) percent: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) bytes_done: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) bytes_total: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

/// Whether an update goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Phase {
    Running,
    Done,
    Failed,
}

impl Summary {
    pub(crate) fn of(device: &Device) -> Self {
        let record = &device.record;
        let twin = &record.twin;
        let reported = twin.reported.values();
        let date = |stamp: &str| (stamp != NO_DATE).then(|| stamp.to_owned());
        let firmware = text(reported, &["iothubDM", "firmwareVersion"])
            .or_else(|| text(reported, &["firmware", "currentFwVersion"]));
        Self {
            id: record.identity.id.clone(),
            connected: device.link.is_some(),
            enabled: record.identity.enabled,
            since: date(&device.connection_state_updated),
            firmware,
            update: Update::by_method(reported).or_else(|| Update::by_desired(reported)),
            activity: date(&record.last_activity),
            counts: [
                twin.desired.version(),
                twin.reported.version(),
                twin.version(),
                device.connects,
            ],
        }
    }
}

impl Update {
    /// `iothubDM.firmwareUpdate`, the section of updates that a direct method started.
    fn by_method(reported: &Object) -> Option<Self> {
        let section = reported
            .get("iothubDM")?
            .get("firmwareUpdate")?
            .as_object()?;
        let word = text(section, &["status"])?;
        let phase = Phase::of_status(&word);
        let number = |name| at(section, &["progress", name]).and_then(Value::as_f64);
        let (done, total) = (number("bytesDone"), number("bytesTotal"));
        // 0 of 0 bytes is a device that has no figure for this stage.
        let known = total.is_none_or(|total| total > 0.0);
        let running = phase == Phase::Running;
        Some(Self {
            stage: text(section, &["progress", "stage"]).filter(|stage| running && *stage != word),
            word,
            phase,
            id: text(section, &["updateId"]),
            version: text(section, &["fwVersion"]),
            started: text(section, &["startedWaitingTime"]),
            percent: number("percent")
                .filter(|_| running && known)
                .map(|percent| percent.clamp(0.0, 100.0)),
            bytes_done: done.filter(|_| running && known).map(|bytes| bytes as u64),
            bytes_total: total.filter(|_| running && known).map(|bytes| bytes as u64),
            error: section.get("error").and_then(error_text),
        })
    }

    /// `firmware`, the section of updates that a desired property started, for devices that have no other.
    fn by_desired(reported: &Object) -> Option<Self> {
        let section = reported.get("firmware")?.as_object()?;
        let word = text(section, &["fwUpdateStatus"])?;
        let phase = match word.as_str() {
            // It says so from its first start on; an update has left the time of its end.
            "current" => {
                text(section, &["lastFwUpdateEndTime"]).filter(|time| !time.is_empty())?;
                Phase::Done
            }
            "error" | "rolledback" => Phase::Failed,
            _ => Phase::Running,
        };
        let told = |name| text(section, &[name]).filter(|text| !text.is_empty());
        let substatus = told("fwUpdateSubstatus");
        Some(Self {
            stage: substatus.clone().filter(|_| phase == Phase::Running),
            word,
            phase,
            id: None,
            version: told("pendingFwVersion"),
            started: told("lastFwUpdateStartTime"),
            percent: None,
            bytes_done: None,
            bytes_total: None,
            error: substatus.filter(|_| phase == Phase::Failed),
        })
    }
}

impl Phase {
    /// Device programs spell the words differently: `downloadfailed`, `downloadFailed`, `Download image failed`.
    pub(crate) fn of_status(word: &str) -> Self {
        let word = word.to_ascii_lowercase();
        if word.contains("fail") {
            Self::Failed
        } else if word.starts_with("appl") && word.ends_with("complete") {
            Self::Done
        } else {
            Self::Running
        }
    }
}

fn at<'a>(object: &'a Object, path: &[&str]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    rest.iter()
        .try_fold(object.get(*first)?, |value, name| value.get(name))
}

/// A text of a twin as the page may show it: short, and without the secrets of an address.
fn text(object: &Object, path: &[&str]) -> Option<String> {
    let text = at(object, path)?.as_str()?;
    Some(shortened(&redact(text), TEXT_SHOWN))
}

/// `code: message`, or whatever of it is there; the samples' codes are numbers or texts.
fn error_text(error: &Value) -> Option<String> {
    let plain = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    let of = |name| error.get(name).and_then(plain);
    let text = match (of("code"), of("message")) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => plain(error)?,
    };
    Some(shortened(&redact(&text), TEXT_SHOWN))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::hub::Record;
    use crate::registry::Identity;

    fn summary(reported: Value) -> Summary {
        let mut record = Record::new(Identity::new("pi", None).unwrap());
        record.twin.report(&reported, None, "T1").unwrap();
        Summary::of(&Device::new(record))
    }

    fn update(section: Value) -> Option<Update> {
        summary(json!({ "iothubDM": { "firmwareUpdate": section } })).update
    }

    #[test]
    fn a_device_that_never_came_has_an_id_and_no_dates() {
        let row = serde_json::to_value(summary(json!({}))).unwrap();
        assert_eq!(
            row,
            json!({ "id": "pi", "connected": false, "enabled": true })
        );
    }

    #[test]
    fn the_version_is_found_in_either_section() {
        let both = json!({ "iothubDM": { "firmwareVersion": "1" }, "firmware": { "currentFwVersion": "2" } });
        assert_eq!(summary(both).firmware.as_deref(), Some("1"));
        let one = json!({ "firmware": { "currentFwVersion": "2" } });
        assert_eq!(summary(one).firmware.as_deref(), Some("2"));
    }

    #[test]
    fn a_running_update_has_its_figures() {
        let update = update(json!({
            "status": "downloading", "updateId": "u1", "fwVersion": "2.0.0", "startedWaitingTime": "T",
            "progress": { "stage": "downloading", "percent": 42, "bytesDone": 21, "bytesTotal": 50 },
        }))
        .unwrap();
        assert_eq!(
            serde_json::to_value(update).unwrap(),
            json!({
                "word": "downloading", "phase": "running", "id": "u1", "version": "2.0.0", "started": "T",
                "percent": 42.0, "bytesDone": 21, "bytesTotal": 50,
            })
        );
    }

    #[test]
    fn a_stage_without_figures_has_no_percentage() {
        let update = update(json!({
            "status": "applying",
            "progress": { "stage": "rebooting", "percent": 0, "bytesDone": 0, "bytesTotal": 0 },
        }))
        .unwrap();
        assert_eq!((update.percent, update.bytes_total), (None, None));
        assert_eq!(update.stage.as_deref(), Some("rebooting"));
    }

    #[test]
    fn ends_are_known_in_every_sample_s_spelling() {
        for word in [
            "downloadfailed",
            "downloadFailed",
            "applyFailed",
            "Download image failed",
        ] {
            assert_eq!(Phase::of_status(word), Phase::Failed, "{word}");
        }
        for word in [
            "applyComplete",
            "apply firmware image complete",
            "Apply firmware image complete",
        ] {
            assert_eq!(Phase::of_status(word), Phase::Done, "{word}");
        }
        for word in [
            "waiting",
            "downloading",
            "downloadComplete",
            "download complete",
            "applying",
        ] {
            assert_eq!(Phase::of_status(word), Phase::Running, "{word}");
        }
    }

    #[test]
    fn a_desired_update_is_shown_where_there_is_no_other() {
        let firmware = |status: &str, substatus: &str, ended: &str| {
            summary(json!({ "firmware": {
                "fwUpdateStatus": status, "fwUpdateSubstatus": substatus, "pendingFwVersion": "2", "lastFwUpdateEndTime": ended,
            } }))
            .update
        };
        assert_eq!(firmware("current", "", ""), None);
        assert_eq!(firmware("current", "", "T").unwrap().phase, Phase::Done);
        let running = firmware("verifying", "Start verifying download", "").unwrap();
        assert_eq!(running.phase, Phase::Running);
        assert_eq!(running.stage.as_deref(), Some("Start verifying download"));
        let failed = firmware("error", "Insecure package URI", "").unwrap();
        assert_eq!(
            (failed.phase, failed.error.as_deref()),
            (Phase::Failed, Some("Insecure package URI"))
        );
    }

    #[test]
    fn an_error_is_code_and_message_without_secrets_and_never_endless() {
        let error = |error: Value| {
            update(json!({ "status": "downloadfailed", "error": error }))
                .unwrap()
                .error
        };
        assert_eq!(
            error(json!({ "code": "x", "message": "y" })).unwrap(),
            "x: y"
        );
        assert_eq!(error(json!({ "code": 7 })).unwrap(), "7");
        assert_eq!(error(json!("words")).unwrap(), "words");
        assert_eq!(error(json!({ "other": [] })), None);
        let secret = error(json!({ "message": "https://s/x?sig=SECRET&se=1" })).unwrap();
        assert_eq!(secret, "https://s/x?sig=***&se=1");
        assert!(error(json!("ü".repeat(1000))).unwrap().len() < 450);
    }

    #[test]
    fn members_of_another_shape_are_left_out() {
        assert_eq!(
            summary(json!({ "iothubDM": 5, "firmware": [1] })).update,
            None
        );
        assert_eq!(update(json!({ "status": 5 })), None);
        let odd = update(
            json!({ "status": "downloading", "progress": { "percent": 4e9, "bytesTotal": -1 } }),
        )
        .unwrap();
        assert_eq!((odd.percent, odd.bytes_total), (None, None));
    }
}
