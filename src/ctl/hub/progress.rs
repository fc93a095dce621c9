//! A twin's reported `iothubDM.firmwareUpdate` as the state of **one** update: the one just started.
//!
//! The section outlives its update, so the last words of an older one must never be taken for this one's.
//! With an `updateId` in the method's answer only sections with that id count; for other devices only a
//! section that changed since before the call. Words are compared without regard to case, and the words
//! of older samples are understood.

use serde_json::Value;

use crate::ctl::progress::View;

/// What a status word means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// More will come.
    UnderWay,
    /// The update ended well.
    Complete,
    /// The update failed.
    Failed,
}

/// The meaning of `word`, in any spelling of the samples: `downloadfailed`, `downloadFailed`,
/// `Download image failed`, `apply firmware image complete`.
#[must_use]
pub fn meaning(word: &str) -> Meaning {
    let letters: String = word
        .chars()
        .filter(|c| !c.is_whitespace())
        .flat_map(char::to_lowercase)
        .collect();
    match letters.as_str() {
        "applycomplete" | "applyfirmwareimagecomplete" => Meaning::Complete,
        "downloadfailed" | "downloadimagefailed" | "applyfailed" | "applyimagefailed" => {
            Meaning::Failed
        }
        _ => Meaning::UnderWay,
    }
}

/// The section of a twin and when the hub says it was written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    section: Value,
    written: Value,
}

impl Snapshot {
    /// Takes it from a whole twin. A twin without the section gives an empty one.
    #[must_use]
    pub fn of(twin: &Value) -> Self {
        let section = |reported: &Value| reported["iothubDM"]["firmwareUpdate"].clone();
        let reported = &twin["properties"]["reported"];
        Self {
            section: section(reported),
            written: section(&reported["$metadata"]),
        }
    }

    fn id(&self) -> Option<&str> {
        self.section["updateId"].as_str()
    }

    /// The section itself.
    #[must_use]
    pub fn section(&self) -> &Value {
        &self.section
    }

    /// The status word; empty when there is none.
    #[must_use]
    pub fn word(&self) -> &str {
        self.section["status"].as_str().unwrap_or_default()
    }

    /// What is shown of it.
    pub(in crate::ctl) fn view(&self) -> View {
        let progress = &self.section["progress"];
        let number = |name: &str| progress[name].as_u64();
        // The last stage's percentage says nothing about the next one, and only downloads have one.
        let moving = self.word().to_lowercase().starts_with("download");
        let current = progress["stage"]
            .as_str()
            .is_none_or(|stage| stage.eq_ignore_ascii_case(self.word()))
            && moving;
        let error = &self.section["error"];
        let note = error["message"]
            .as_str()
            .map(|message| match &error["code"] {
                Value::String(code) => format!("{message} [{code}]"),
                Value::Null => message.to_owned(),
                code => format!("{message} [{code}]"),
            });
        View {
            word: self.word().to_owned(),
            percent: number("percent")
                .filter(|_| current && number("bytesTotal") != Some(0))
                .and_then(|n| u8::try_from(n.min(100)).ok()),
            bytes: current.then(|| {
                let number = |name| number(name).unwrap_or(0);
                (number("bytesDone"), number("bytesTotal"))
            }),
            note,
        }
    }
}

/// What a look at the twin says about the update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// Nothing of this update (yet).
    Nothing,
    /// It is under way, or has ended.
    State(Meaning),
    /// Another update took its place before its end was seen; its id.
    Superseded(String),
}

/// Follows one update through the twin.
#[derive(Debug, Clone)]
pub struct Tracker {
    id: Option<String>,
    before: Snapshot,
    begun: bool,
}

impl Tracker {
    /// For the update that the device named `id`, or left unnamed. `before` is from before the call.
    #[must_use]
    pub fn new(id: Option<String>, before: Snapshot) -> Self {
        Self {
            id,
            before,
            begun: false,
        }
    }

    /// Judges a look at the twin after the call.
    pub fn see(&mut self, now: &Snapshot) -> Seen {
        let meaning = meaning(now.word());
        match &self.id {
            Some(id) if now.id() != Some(id) => {
                return match now.id() {
                    Some(other) if self.begun => Seen::Superseded(other.to_owned()),
                    _ => Seen::Nothing,
                };
            }
            // An id that was used before: its old end is not the new one's.
            Some(_)
                if !self.begun
                    && now.section == self.before.section
                    && meaning != Meaning::UnderWay =>
            {
                return Seen::Nothing;
            }
            None if !self.begun && *now == self.before => return Seen::Nothing,
            _ => {}
        }
        if now.word().is_empty() {
            return Seen::Nothing;
        }
        self.begun = true;
        Seen::State(meaning)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn snapshot(section: Value, written: &str) -> Snapshot {
        Snapshot::of(&json!({"properties": {"reported": {
            "iothubDM": {"firmwareUpdate": section},
            "$metadata": {"iothubDM": {"firmwareUpdate": {"$lastUpdated": written}}},
        }}}))
    }

    fn ours(id: &str, status: &str) -> Snapshot {
        snapshot(json!({"updateId": id, "status": status}), status)
    }

    #[test]
    fn words_of_all_samples_are_understood() {
        for word in [
            "applyComplete",
            "APPLYCOMPLETE",
            "apply firmware image complete",
            "Apply firmware image complete",
        ] {
            assert_eq!(meaning(word), Meaning::Complete, "{word}");
        }
        for word in [
            "downloadfailed",
            "downloadFailed",
            "Download image failed",
            "applyFailed",
            "Apply image failed",
        ] {
            assert_eq!(meaning(word), Meaning::Failed, "{word}");
        }
        for word in [
            "waiting",
            "downloading",
            "download complete",
            "downloadComplete",
            "applying",
            "",
            "odd",
        ] {
            assert_eq!(meaning(word), Meaning::UnderWay, "{word}");
        }
    }

    #[test]
    fn the_end_of_an_older_update_is_not_this_one_s() {
        let mut tracker = Tracker::new(Some("new".to_owned()), ours("old", "applyComplete"));
        assert_eq!(tracker.see(&ours("old", "applyComplete")), Seen::Nothing);
        assert_eq!(
            tracker.see(&ours("old", "applyFailed")),
            Seen::Nothing,
            "even when it changes late"
        );
        assert_eq!(
            tracker.see(&ours("new", "waiting")),
            Seen::State(Meaning::UnderWay)
        );
        assert_eq!(
            tracker.see(&ours("new", "applyComplete")),
            Seen::State(Meaning::Complete)
        );
    }

    #[test]
    fn an_end_seen_at_the_first_look_counts_when_the_id_is_right() {
        let mut tracker = Tracker::new(Some("new".to_owned()), ours("old", "applyComplete"));
        assert_eq!(
            tracker.see(&ours("new", "downloadfailed")),
            Seen::State(Meaning::Failed)
        );
    }

    #[test]
    fn an_update_already_under_way_is_followed_at_once() {
        let mut tracker = Tracker::new(Some("x".to_owned()), ours("x", "downloading"));
        assert_eq!(
            tracker.see(&ours("x", "downloading")),
            Seen::State(Meaning::UnderWay)
        );
    }

    #[test]
    fn an_id_used_again_does_not_end_with_its_former_end() {
        let mut tracker = Tracker::new(Some("x".to_owned()), ours("x", "applyFailed"));
        assert_eq!(tracker.see(&ours("x", "applyFailed")), Seen::Nothing);
        assert_eq!(
            tracker.see(&ours("x", "waiting")),
            Seen::State(Meaning::UnderWay)
        );
        assert_eq!(
            tracker.see(&ours("x", "applyFailed")),
            Seen::State(Meaning::Failed)
        );
    }

    #[test]
    fn another_update_that_takes_over_is_noticed() {
        let mut tracker = Tracker::new(Some("x".to_owned()), Snapshot::default());
        assert_eq!(
            tracker.see(&ours("x", "downloading")),
            Seen::State(Meaning::UnderWay)
        );
        assert_eq!(
            tracker.see(&ours("y", "applyComplete")),
            Seen::Superseded("y".to_owned())
        );
    }

    #[test]
    fn without_an_id_only_what_changed_since_the_call_counts() {
        let before = snapshot(json!({"status": "applyComplete"}), "1");
        let mut tracker = Tracker::new(None, before.clone());
        assert_eq!(tracker.see(&before), Seen::Nothing);
        // The same words written again are news: the hub's own time says so.
        let again = snapshot(json!({"status": "applyComplete"}), "2");
        assert_eq!(tracker.see(&again), Seen::State(Meaning::Complete));
        let mut tracker = Tracker::new(None, Snapshot::default());
        assert_eq!(tracker.see(&Snapshot::default()), Seen::Nothing);
        assert_eq!(
            tracker.see(&snapshot(json!({"status": "waiting"}), "3")),
            Seen::State(Meaning::UnderWay)
        );
    }

    #[test]
    fn progress_of_another_stage_is_not_shown() {
        let section = |stage: &str| {
            snapshot(
                json!({"status": "downloading", "progress": {"stage": stage, "percent": 42, "bytesDone": 42_000, "bytesTotal": 100_000}}),
                "",
            )
        };
        assert_eq!(
            section("downloading").view().line(),
            "downloading        42 %  42.0 kB of 100.0 kB"
        );
        assert_eq!(section("waiting").view().line(), "downloading");
        let failed = snapshot(
            json!({"status": "applyFailed", "error": {"code": 5, "message": "no"}}),
            "",
        );
        assert_eq!(failed.view().line(), "applyFailed              no [5]");
    }

    proptest! {
        #[test]
        fn no_twin_makes_it_panic(text in any::<String>(), number in any::<u64>()) {
            for section in [json!(text), json!(number), json!([text]), json!({"status": number, "updateId": text, "progress": text, "error": number}),
                json!({"status": text, "progress": {"percent": number, "bytesDone": number, "bytesTotal": number}, "error": {"code": [], "message": text}})] {
                let snapshot = snapshot(section, &text);
                let _ = snapshot.view().line();
                let _ = Tracker::new(Some(text.clone()), Snapshot::default()).see(&snapshot);
                let _ = Tracker::new(None, Snapshot::default()).see(&snapshot);
            }
        }
    }
}
