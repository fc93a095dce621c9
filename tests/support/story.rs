//! What a twin has shown of its updates, read from the hub's list of accepted patches.

use serde_json::{Value, json};

/// The words in the order of an update; a failure may follow any of the others.
const ORDER: [&str; 5] = [
    "waiting",
    "downloading",
    "downloadComplete",
    "applying",
    "applyComplete",
];

/// Words that nothing follows.
pub(crate) const LAST_WORDS: [&str; 3] = ["applyComplete", "applyFailed", "downloadfailed"];

/// An update as the twin showed it: its id, and its status words without repeats.
#[derive(Debug, PartialEq)]
pub(crate) struct Shown {
    pub(crate) id: String,
    pub(crate) words: Vec<String>,
}

/// Every update that the twin has shown, in order. An id that comes back after another one stands there twice.
pub(crate) fn shown(history: &[Value]) -> Vec<Shown> {
    let mut document = json!({});
    let mut updates: Vec<Shown> = Vec::new();
    for entry in history {
        merge(&mut document, &entry["patch"]);
        let section = &document["iothubDM"]["firmwareUpdate"];
        let (Some(id), Some(word)) = (section["updateId"].as_str(), section["status"].as_str())
        else {
            continue;
        };
        if updates.last().is_none_or(|update| update.id != id) {
            updates.push(Shown {
                id: id.to_owned(),
                words: Vec::new(),
            });
        }
        let words = &mut updates.last_mut().expect("one was pushed").words;
        if words.last().is_none_or(|last| last != word) {
            words.push(word.to_owned());
        }
    }
    updates
}

/// What is wrong with `history`, if anything: it must show exactly `expected` (update id and last word), one
/// after the other, each stage at most once and in order, and never anything of an update that has ended.
pub(crate) fn fault(history: &[Value], expected: &[(String, String)]) -> Option<String> {
    let updates = shown(history);
    let ids: Vec<_> = updates.iter().map(|update| &update.id).collect();
    let wanted: Vec<_> = expected.iter().map(|(id, _)| id).collect();
    if ids != wanted {
        return Some(format!("the twin showed {ids:?} instead of {wanted:?}"));
    }
    for (update, (_, last)) in updates.iter().zip(expected) {
        let Shown { id, words } = update;
        if words.last() != Some(last) {
            return Some(format!("update {id} ended in {words:?} instead of {last}"));
        }
        let rank = |word: &String| ORDER.iter().position(|known| known == word).unwrap_or(4);
        if !words.is_sorted_by(|a, b| rank(a) < rank(b)) {
            return Some(format!("update {id} went through {words:?}"));
        }
    }
    None
}

/// The hub's merge rule, as far as the tests need it.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else { return };
    if !target.is_object() {
        *target = json!({});
    }
    let Value::Object(target) = target else {
        return;
    };
    for (key, value) in patch {
        match value {
            Value::Null => drop(target.remove(key)),
            Value::Object(_) => merge(target.entry(key.clone()).or_insert(Value::Null), value),
            other => drop(target.insert(key.clone(), other.clone())),
        }
    }
}
