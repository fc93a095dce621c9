//! Which configuration a twin gets, and what has to be written for that. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::configuration::{Configuration, Target};
use crate::query::Document;
use crate::twin::Object;

/// What the configurations have done to a device.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Applied {
    /// The configurations that target it.
    pub(crate) statuses: BTreeMap<String, Status>,
    /// The desired properties that a configuration has set.
    pub(crate) settings: Object,
}

/// How a configuration stands with a device that it targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Status {
    Applied,
    /// Another one with a higher priority is applied, or the twin has no room for it.
    Targeted,
}

impl Applied {
    /// The member `configurations` of a twin; `None` when no configuration targets it.
    pub(crate) fn document(&self) -> Option<Value> {
        let members: Object = self
            .statuses
            .iter()
            .map(|(id, status)| (id.clone(), json!({ "status": status })))
            .collect();
        (!members.is_empty()).then(|| members.into())
    }
}

/// The configurations, ready to be compared with many twins: the first that targets one wins.
pub(crate) struct Plan(Vec<Planned>);

struct Planned {
    id: String,
    target: Target,
    settings: Object,
}

impl Plan {
    pub(crate) fn new<'a>(configurations: impl Iterator<Item = &'a Configuration>) -> Self {
        let mut sorted: Vec<_> = configurations.collect();
        sorted
            .sort_by(|a, b| (b.priority, &b.created, &b.id).cmp(&(a.priority, &a.created, &a.id)));
        let planned = |configuration: &Configuration| Planned {
            id: configuration.id.clone(),
            target: configuration.target(),
            settings: configuration.settings(),
        };
        Self(sorted.into_iter().map(planned).collect())
    }

    /// What is to be so for a device with this twin.
    pub(crate) fn for_twin(&self, twin: &impl Document) -> Applied {
        let mut applied = Applied::default();
        for planned in self
            .0
            .iter()
            .filter(|planned| planned.target.includes(twin))
        {
            let status = match applied.statuses.is_empty() {
                true => Status::Applied,
                false => Status::Targeted,
            };
            if status == Status::Applied {
                applied.settings.clone_from(&planned.settings);
            }
            applied.statuses.insert(planned.id.clone(), status);
        }
        applied
    }
}

/// The patch to the desired properties that takes back `old` and sets `new`; empty when all is so already.
pub(crate) fn patch(desired: &Object, old: &Object, new: &Object) -> Object {
    let mut patch = taken_back(desired, old, new);
    overlay(&mut patch, set(desired, new));
    patch
}

/// Deletes what `old` has and `new` has not. An object goes as a whole when nothing else is in it.
fn taken_back(desired: &Object, old: &Object, new: &Object) -> Object {
    let mut patch = Object::new();
    for (key, old) in old {
        let Some(current) = desired.get(key) else {
            continue;
        };
        match (old, new.get(key), current) {
            (Value::Object(old), Some(Value::Object(new)), Value::Object(current)) => {
                let inner = taken_back(current, old, new);
                if !inner.is_empty() {
                    patch.insert(key.clone(), inner.into());
                }
            }
            (Value::Object(old), None, Value::Object(current)) => {
                let inner = taken_back(current, old, &Object::new());
                let deletes = |key: &String| inner.get(key) == Some(&Value::Null);
                if current.keys().all(deletes) {
                    patch.insert(key.clone(), Value::Null);
                } else if !inner.is_empty() {
                    patch.insert(key.clone(), inner.into());
                }
            }
            // Somebody put something of another kind there: it is theirs.
            (Value::Object(_), None, _) | (_, None, Value::Object(_)) => {}
            (_, None, _) => {
                patch.insert(key.clone(), Value::Null);
            }
            // It is about to be replaced.
            (_, Some(_), _) => {}
        }
    }
    patch
}

/// What is to be written so that everything in `new` is in the desired properties.
fn set(desired: &Object, new: &Object) -> Object {
    let mut patch = Object::new();
    for (key, new) in new {
        match (new, desired.get(key)) {
            (Value::Object(new), Some(Value::Object(current))) => {
                let inner = set(current, new);
                if !inner.is_empty() {
                    patch.insert(key.clone(), inner.into());
                }
            }
            (new, Some(current)) if new == current => {}
            _ => {
                patch.insert(key.clone(), new.clone());
            }
        }
    }
    patch
}

fn overlay(target: &mut Object, over: Object) {
    for (key, over) in over {
        match (target.get_mut(&key), over) {
            (Some(Value::Object(target)), Value::Object(over)) => overlay(target, over),
            (_, over) => {
                target.insert(key, over);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::twin::merge;

    fn object(value: Value) -> Object {
        value.as_object().unwrap().clone()
    }

    fn patched(desired: Value, old: Value, new: Value) -> Value {
        let mut desired = object(desired);
        let patch = patch(&desired, &object(old), &object(new));
        merge(&mut desired, &patch);
        desired.into()
    }

    #[test]
    fn settings_are_set_and_taken_back_and_the_rest_is_left_alone() {
        let ours = json!({ "fw": { "v": 2, "u": "x" } });
        let with = patched(json!({ "other": 1 }), json!({}), ours.clone());
        assert_eq!(with, json!({ "other": 1, "fw": { "v": 2, "u": "x" } }));
        assert_eq!(
            patched(with, ours.clone(), json!({})),
            json!({ "other": 1 })
        );
        let shared = json!({ "fw": { "v": 2, "u": "x", "theirs": 3 } });
        assert_eq!(
            patched(shared, ours.clone(), json!({})),
            json!({ "fw": { "theirs": 3 } })
        );
        assert_eq!(
            patched(
                json!({ "fw": { "v": 2, "u": "x" } }),
                ours,
                json!({ "fw": { "v": 3 } })
            ),
            json!({ "fw": { "v": 3 } })
        );
    }

    #[test]
    fn what_is_set_already_needs_no_write() {
        let ours = object(json!({ "fw": { "v": 2 }, "list": [1, 2] }));
        let desired = object(json!({ "fw": { "v": 2, "theirs": 3 }, "list": [1, 2] }));
        assert_eq!(patch(&desired, &ours, &ours), Object::new());
    }

    #[test]
    fn the_highest_priority_wins_and_of_equal_ones_the_newest() {
        let configuration = |id: &str, priority: u32, created: &str, condition: &str| {
            let body = json!({ "priority": priority, "targetCondition": condition,
                "content": { "deviceContent": { "properties.desired.from": id } } });
            let mut configuration = Configuration::from_body(id, &body, None).unwrap();
            configuration.created = created.to_owned();
            configuration
        };
        let all = [
            configuration("low", 1, "T9", "*"),
            configuration("old", 5, "T1", "tags.a = 1"),
            configuration("new", 5, "T2", "tags.a = 1"),
            configuration("other", 9, "T1", "tags.a = 2"),
            configuration("nobody", 9, "T1", ""),
        ];
        let plan = Plan::new(all.iter());
        let applied = plan.for_twin(&json!({ "tags": { "a": 1 } }));
        assert_eq!(
            Value::Object(applied.settings.clone()),
            json!({ "from": "new" })
        );
        assert_eq!(
            applied.document(),
            Some(
                json!({ "low": { "status": "Targeted" }, "new": { "status": "Applied" }, "old": { "status": "Targeted" } })
            )
        );
        let nothing = Plan::new(all[1..].iter()).for_twin(&json!({}));
        assert_eq!(
            (nothing.document(), nothing.settings),
            (None, Object::new())
        );
    }

    fn members(depth: u32) -> impl Strategy<Value = Object> {
        let leaf = (0..3_i32).prop_map(Value::from);
        let value = leaf.prop_recursive(depth, 16, 3, |inner| {
            proptest::collection::btree_map("[a-c]", inner, 1..3)
                .prop_map(|members| Value::Object(members.into_iter().collect()))
        });
        proptest::collection::btree_map("[a-c]", value, 0..3)
            .prop_map(|members| members.into_iter().collect())
    }

    fn includes(whole: &Object, part: &Object) -> bool {
        part.iter().all(|(key, part)| match (whole.get(key), part) {
            (Some(Value::Object(whole)), Value::Object(part)) => includes(whole, part),
            (whole, part) => whole == Some(part),
        })
    }

    proptest! {
        #[test]
        fn afterwards_everything_is_set_and_a_second_time_changes_nothing(
            desired in members(3), old in members(3), new in members(3)
        ) {
            let mut after = desired.clone();
            merge(&mut after, &patch(&desired, &old, &new));
            prop_assert!(includes(&after, &new), "{after:?}");
            prop_assert_eq!(patch(&after, &new, &new), Object::new());
        }

        #[test]
        fn setting_and_taking_back_leaves_what_was_there_before(
            theirs in members(2), ours in members(2)
        ) {
            // Under names of its own nobody else's are touched.
            let ours: Object = ours.into_iter().map(|(key, value)| (format!("x{key}"), value)).collect();
            let mut desired = theirs.clone();
            let none = Object::new();
            let set = patch(&desired, &none, &ours);
            merge(&mut desired, &set);
            let back = patch(&desired, &ours, &none);
            merge(&mut desired, &back);
            prop_assert_eq!(desired, theirs);
        }
    }
}
