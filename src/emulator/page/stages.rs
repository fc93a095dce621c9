//! The stages that a device's last update has shown, told from the reported patches that the hub accepted. Pure.

use serde::Serialize;
use serde_json::Value;

use crate::wire_log::{redact, shortened};

/// Longest word of a device that is shown.
const WORD_SHOWN: usize = 80;

/// A stage, and when the hub first heard of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Stage {
    pub(crate) word: String,
    pub(crate) time: String,
}

/// The stages of the last update in `history`, which holds `{"time":…,"patch":…}` in order.
pub(crate) fn last_update<'a>(history: impl Iterator<Item = &'a Value>) -> Vec<Stage> {
    let mut by_method = Stages::default();
    let mut by_desired = Stages::default();
    for entry in history {
        let time = entry["time"].as_str().unwrap_or_default();
        let patch = &entry["patch"];
        let section = &patch["iothubDM"]["firmwareUpdate"];
        let id = section["updateId"].as_str();
        if let Some(id) = id
            && by_method.update.as_deref() != Some(id)
        {
            by_method = Stages::of(id);
        }
        if let Some(word) = section["status"].as_str() {
            // Devices without ids begin again with this word.
            if word == "waiting" && id.is_none() && by_method.is_under_way() {
                by_method = Stages::default();
            }
            by_method.add(word, time);
        }
        let section = &patch["firmware"];
        if section["lastFwUpdateStartTime"]
            .as_str()
            .is_some_and(|started| !started.is_empty())
        {
            by_desired = Stages::default();
        }
        if let Some(word) = section["fwUpdateStatus"].as_str() {
            by_desired.add(word, time);
        }
    }
    match by_method.stages.is_empty() {
        true => by_desired.stages,
        false => by_method.stages,
    }
}

#[derive(Default)]
struct Stages {
    update: Option<String>,
    stages: Vec<Stage>,
}

impl Stages {
    fn of(update: &str) -> Self {
        Self {
            update: Some(update.to_owned()),
            stages: Vec::new(),
        }
    }

    /// Whether it is past its beginning.
    fn is_under_way(&self) -> bool {
        self.stages
            .last()
            .is_some_and(|last| last.word != "waiting")
    }

    fn add(&mut self, word: &str, time: &str) {
        let word = shortened(&redact(word), WORD_SHOWN);
        if self.stages.last().is_none_or(|last| last.word != word) {
            let time = time.to_owned();
            self.stages.push(Stage { word, time });
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn words(patches: &[Value]) -> Vec<String> {
        let entries: Vec<_> = patches
            .iter()
            .enumerate()
            .map(|(n, patch)| json!({ "time": format!("T{n}"), "patch": patch }))
            .collect();
        let stages = last_update(entries.iter()).into_iter();
        stages
            .map(|stage| format!("{} {}", stage.time, stage.word))
            .collect()
    }

    fn by_method(section: Value) -> Value {
        json!({ "iothubDM": { "firmwareUpdate": section } })
    }

    #[test]
    fn each_stage_is_told_once_with_the_time_it_was_first_heard() {
        let told = words(&[
            json!({ "fwupdated": { "version": "1" } }),
            by_method(json!({ "status": "waiting", "updateId": "u1" })),
            by_method(json!({ "status": "downloading", "progress": { "percent": 1 } })),
            by_method(json!({ "progress": { "percent": 50 } })),
            by_method(json!({ "status": "downloading" })),
            by_method(json!({ "status": "downloadComplete" })),
        ]);
        assert_eq!(
            told,
            ["T1 waiting", "T2 downloading", "T5 downloadComplete"]
        );
    }

    #[test]
    fn a_new_update_begins_anew_by_its_id_or_by_its_first_word() {
        let by_id = words(&[
            by_method(json!({ "status": "applyComplete", "updateId": "u1" })),
            by_method(json!({ "status": "downloading", "updateId": "u2" })),
        ]);
        assert_eq!(by_id, ["T1 downloading"]);
        let by_word = words(&[
            by_method(json!({ "status": "waiting" })),
            by_method(json!({ "status": "applyFailed" })),
            by_method(json!({ "status": "waiting" })),
        ]);
        assert_eq!(by_word, ["T2 waiting"]);
    }

    #[test]
    fn an_update_by_desired_property_is_told_where_there_is_no_other() {
        let firmware = |section: Value| json!({ "firmware": section });
        let told = words(&[
            firmware(json!({ "fwUpdateStatus": "current", "lastFwUpdateStartTime": "" })),
            firmware(json!({ "fwUpdateStatus": "downloading", "lastFwUpdateStartTime": "T" })),
            firmware(json!({ "fwUpdateStatus": "rebooting" })),
            firmware(json!({ "fwUpdateStatus": "current" })),
        ]);
        assert_eq!(told, ["T1 downloading", "T2 rebooting", "T3 current"]);
    }

    #[test]
    fn patches_of_any_shape_are_survived() {
        for patch in [
            json!(null),
            json!([1]),
            json!({ "iothubDM": null, "firmware": 5 }),
        ] {
            assert!(words(&[patch]).is_empty());
        }
    }
}
