//! The device twin: merging, limits, versions and metadata. Pure: time is passed in as text.
//!
//! A write either happens whole or not at all: it is checked, merged into a copy, measured, and only
//! then put in place.

use std::borrow::Cow;

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::hub_error::{HubError, Kind};
use crate::query::Document;
use crate::twin_limits::{self, Limit};

/// A JSON object.
pub(crate) type Object = Map<String, Value>;

/// Tags, desired and reported properties of one device.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Twin {
    pub(crate) tags: Object,
    pub(crate) desired: Section,
    pub(crate) reported: Section,
    version: u64,
    etag: u64,
}

/// Desired or reported properties, with their version and the stamps of each member.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Section {
    values: Object,
    metadata: Object,
    version: u64,
}

/// What a service write changes; a section that is absent stays as it is, and one that is null is emptied.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct ServiceWrite {
    pub(crate) tags: Option<SectionWrite>,
    pub(crate) desired: Option<SectionWrite>,
}

/// What a service write does to a section.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum SectionWrite {
    /// Merges or replaces, as the write's mode says.
    Members(Object),
    /// Empties it: it was null in the request.
    Empty,
}

/// Whether a service write merges or replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Merge,
    Replace,
}

impl Twin {
    /// The twin of a device that was just registered.
    pub(crate) fn new(now: &str) -> Self {
        Self {
            tags: Object::new(),
            desired: Section::new(now, true),
            reported: Section::new(now, false),
            version: 2,
            etag: 1,
        }
    }

    /// What the device reads: values and versions, no metadata, no tags.
    pub(crate) fn device_view(&self) -> Value {
        json!({ "desired": self.desired.view(false), "reported": self.reported.view(false) })
    }

    /// `{"desired":…,"reported":…}` with metadata, as service tools see it.
    pub(crate) fn properties(&self) -> Value {
        json!({ "desired": self.desired.view(true), "reported": self.reported.view(true) })
    }

    /// The etag of tags and desired properties.
    pub(crate) fn etag(&self) -> String {
        BASE64_STANDARD.encode(self.etag.to_be_bytes())
    }

    /// The version of tags and desired properties.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// Notes that the device's identity was changed, which makes a new version of the twin too.
    pub(crate) fn identity_changed(&mut self) {
        self.version += 1;
    }

    /// Merges what the device reports and returns the new `$version`. With `expected`, only if that is
    /// the current one.
    pub(crate) fn report(
        &mut self,
        patch: &Value,
        expected: Option<u64>,
        now: &str,
    ) -> Result<u64, HubError> {
        let patch = patch
            .as_object()
            .ok_or_else(|| HubError::argument("The reported properties must be a JSON object."))?;
        if expected.is_some_and(|version| version != self.reported.version) {
            return Err(HubError::stale(
                "the given $version of the reported properties",
            ));
        }
        twin_limits::check(patch, "reported properties")?;
        let next = self.reported.merged(patch, now, false);
        twin_limits::measure(&next.values, Limit::REPORTED)?;
        self.reported = next;
        Ok(self.reported.version)
    }

    /// Carries out a service write. Returns the document to push to the device when desired changed.
    pub(crate) fn write(
        &mut self,
        write: &ServiceWrite,
        mode: Mode,
        now: &str,
    ) -> Result<Option<Value>, HubError> {
        write.check()?;
        let resolved = |section: &Option<SectionWrite>| match section {
            None => None,
            Some(SectionWrite::Members(members)) => Some((members.clone(), mode)),
            Some(SectionWrite::Empty) => Some((Object::new(), Mode::Replace)),
        };
        let mut next = self.clone();
        if let Some((tags, mode)) = resolved(&write.tags) {
            if mode == Mode::Replace {
                next.tags = Object::new();
            }
            merge(&mut next.tags, &tags);
            twin_limits::measure(&next.tags, Limit::TAGS)?;
        }
        let mut push = None;
        if let Some((desired, mode)) = resolved(&write.desired) {
            next.desired = match mode {
                Mode::Merge => self.desired.merged(&desired, now, true),
                Mode::Replace => self.desired.replaced(&desired, now, true),
            };
            twin_limits::measure(&next.desired.values, Limit::DESIRED)?;
            let mut document = match mode {
                Mode::Merge => desired,
                Mode::Replace => next.desired.values.clone(),
            };
            document.insert("$version".into(), next.desired.version.into());
            push = Some(Value::Object(document));
        }
        if *write != ServiceWrite::default() {
            next.version += 1;
            next.etag += 1;
        }
        *self = next;
        Ok(push)
    }
}

impl ServiceWrite {
    /// Reads `{"tags":…,"properties":{"desired":…}}`. What else a twin holds may be there, because
    /// tools send back what they read; it is ignored.
    pub(crate) fn parse(body: &Value) -> Result<Self, HubError> {
        let body = body
            .as_object()
            .ok_or_else(|| HubError::argument("The twin must be a JSON object."))?;
        let section = |value: Option<&Value>, what: &str| match value {
            None => Ok(None),
            Some(Value::Null) => Ok(Some(SectionWrite::Empty)),
            Some(Value::Object(object)) => {
                let mut object = object.clone();
                object.retain(|key, _| !matches!(key.as_str(), "$version" | "$metadata"));
                Ok(Some(SectionWrite::Members(object)))
            }
            Some(_) => Err(HubError::argument(format!("{what} must be a JSON object."))),
        };
        let desired = match body.get("properties") {
            None | Some(Value::Null) => None,
            Some(Value::Object(properties)) => {
                section(properties.get("desired"), "'properties.desired'")?
            }
            Some(_) => return Err(HubError::argument("'properties' must be a JSON object.")),
        };
        Ok(Self {
            tags: section(body.get("tags"), "'tags'")?,
            desired,
        })
    }

    /// Checks each name and value; the sizes depend on what is there already.
    pub(crate) fn check(&self) -> Result<(), HubError> {
        let sections = [(&self.tags, "tags"), (&self.desired, "desired properties")];
        for (section, name) in sections {
            if let Some(SectionWrite::Members(members)) = section {
                twin_limits::check(members, name)?;
            }
        }
        Ok(())
    }
}

impl Section {
    fn new(now: &str, versioned: bool) -> Self {
        Self {
            values: Object::new(),
            metadata: stamps(now, versioned.then_some(1)),
            version: 1,
        }
    }

    /// The properties, without version and metadata.
    pub(crate) fn values(&self) -> &Object {
        &self.values
    }

    /// What a path leads to in [`Twin::properties`], below the section.
    pub(crate) fn look_up(&self, path: &[String]) -> Option<Cow<'_, Value>> {
        match path {
            [] => Some(Cow::Owned(self.view(true))),
            [name] if name == "$version" => Some(Cow::Owned(self.version.into())),
            [name] if name == "$metadata" => Some(Cow::Owned(self.metadata.clone().into())),
            [name, member, rest @ ..] if name == "$metadata" => {
                self.metadata.get(member)?.look_up(rest)
            }
            [name, rest @ ..] => self.values.get(name)?.look_up(rest),
        }
    }

    /// `$version`: counts the writes.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    fn view(&self, with_metadata: bool) -> Value {
        let mut view = self.values.clone();
        if with_metadata {
            view.insert("$metadata".into(), self.metadata.clone().into());
        }
        view.insert("$version".into(), self.version.into());
        view.into()
    }

    fn merged(&self, patch: &Object, now: &str, versioned: bool) -> Self {
        let mut next = self.clone();
        next.version += 1;
        let stamp = Stamp {
            now,
            version: versioned.then_some(next.version),
        };
        stamp.mark(&mut next.metadata, &next.values, patch);
        merge(&mut next.values, patch);
        next
    }

    fn replaced(&self, whole: &Object, now: &str, versioned: bool) -> Self {
        let empty = Self {
            values: Object::new(),
            metadata: Object::new(),
            version: self.version,
        };
        empty.merged(whole, now, versioned)
    }
}

/// Merges `patch` into `target`: objects member by member, anything else replaces, `null` deletes.
pub(crate) fn merge(target: &mut Object, patch: &Object) {
    for (key, value) in patch {
        match value {
            Value::Null => {
                target.remove(key);
            }
            Value::Object(patch) => {
                let member = target.entry(key.clone()).or_insert_with(|| json!({}));
                if !member.is_object() {
                    *member = json!({});
                }
                if let Value::Object(member) = member {
                    merge(member, patch);
                }
            }
            _ => {
                target.insert(key.clone(), value.clone());
            }
        }
    }
}

/// When, and for desired properties with which version, members were last written.
#[derive(Clone, Copy)]
struct Stamp<'a> {
    now: &'a str,
    version: Option<u64>,
}

impl Stamp<'_> {
    /// Marks in `metadata` what `patch` is about to change in `values`.
    fn mark(self, metadata: &mut Object, values: &Object, patch: &Object) {
        for (key, value) in patch {
            match value {
                Value::Null => {
                    metadata.remove(key);
                }
                Value::Object(patch) => {
                    let empty = Object::new();
                    let old = values.get(key).and_then(Value::as_object);
                    let mut child = match (old, metadata.remove(key)) {
                        (Some(_), Some(Value::Object(child))) => child,
                        _ => Object::new(),
                    };
                    self.mark(&mut child, old.unwrap_or(&empty), patch);
                    metadata.insert(key.clone(), child.into());
                }
                _ => {
                    metadata.insert(key.clone(), stamps(self.now, self.version).into());
                }
            }
        }
        metadata.append(&mut stamps(self.now, self.version));
    }
}

fn stamps(now: &str, version: Option<u64>) -> Object {
    let mut stamps = Object::new();
    stamps.insert("$lastUpdated".into(), now.into());
    if let Some(version) = version {
        stamps.insert("$lastUpdatedVersion".into(), version.into());
    }
    stamps
}

impl From<twin_limits::Violation> for HubError {
    fn from(violation: twin_limits::Violation) -> Self {
        let kind = if violation.is_about_size() {
            Kind::DeviceModelMaxPropertiesExceeded
        } else {
            Kind::ArgumentInvalid
        };
        Self::new(kind, violation.to_string())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn object(value: Value) -> Object {
        value.as_object().unwrap().clone()
    }

    fn desired(value: Value) -> ServiceWrite {
        ServiceWrite::parse(&json!({ "properties": { "desired": value } })).unwrap()
    }

    #[test]
    fn a_new_twin_has_version_one_in_both_sections() {
        let twin = Twin::new("T0");
        assert_eq!(
            twin.device_view(),
            json!({ "desired": { "$version": 1 }, "reported": { "$version": 1 } })
        );
        assert_eq!(twin.etag(), "AAAAAAAAAAE=");
        assert_eq!(
            twin.properties()["desired"]["$metadata"],
            json!({ "$lastUpdated": "T0", "$lastUpdatedVersion": 1 })
        );
    }

    #[test]
    fn objects_merge_scalars_replace_and_null_deletes() {
        let mut twin = Twin::new("T0");
        twin.report(&json!({ "a": { "b": 1, "c": 2 }, "d": [1, 2] }), None, "T1")
            .unwrap();
        let version = twin
            .report(
                &json!({ "a": { "b": null, "e": { "x": null, "y": 3 } }, "d": "text", "gone": null }),
                None,
                "T2",
            )
            .unwrap();
        assert_eq!(version, 3);
        assert_eq!(
            twin.device_view()["reported"],
            json!({ "a": { "c": 2, "e": { "y": 3 } }, "d": "text", "$version": 3 })
        );
    }

    #[test]
    fn deleting_the_last_member_leaves_an_empty_object() {
        let mut twin = Twin::new("T0");
        twin.report(&json!({ "a": { "b": 1 } }), None, "T1")
            .unwrap();
        twin.report(&json!({ "a": { "b": null } }), None, "T2")
            .unwrap();
        assert_eq!(
            twin.device_view()["reported"],
            json!({ "a": {}, "$version": 3 })
        );
    }

    #[test]
    fn an_empty_patch_still_makes_a_version() {
        let mut twin = Twin::new("T0");
        assert_eq!(twin.report(&json!({}), None, "T1"), Ok(2));
    }

    #[test]
    fn metadata_stamps_the_written_leaves_and_everything_above_them() {
        let mut twin = Twin::new("T0");
        twin.write(
            &desired(json!({ "fw": { "v": "1", "u": "x" } })),
            Mode::Merge,
            "T1",
        )
        .unwrap();
        twin.write(&desired(json!({ "fw": { "v": "2" } })), Mode::Merge, "T2")
            .unwrap();
        let stamp =
            |at: &str, version: u64| json!({ "$lastUpdated": at, "$lastUpdatedVersion": version });
        let mut expected = stamp("T2", 3);
        expected["fw"] = stamp("T2", 3);
        expected["fw"]["v"] = stamp("T2", 3);
        expected["fw"]["u"] = stamp("T1", 2);
        assert_eq!(twin.properties()["desired"]["$metadata"], expected);
    }

    #[test]
    fn metadata_forgets_what_was_deleted_or_became_a_scalar() {
        let mut twin = Twin::new("T0");
        twin.report(&json!({ "a": { "b": 1 }, "c": 1 }), None, "T1")
            .unwrap();
        twin.report(&json!({ "a": 5, "c": null }), None, "T2")
            .unwrap();
        assert_eq!(
            twin.properties()["reported"]["$metadata"],
            json!({ "$lastUpdated": "T2", "a": { "$lastUpdated": "T2" } })
        );
    }

    #[test]
    fn reported_changes_neither_etag_nor_version() {
        let mut twin = Twin::new("T0");
        let before = (twin.etag(), twin.version());
        twin.report(&json!({ "a": 1 }), None, "T1").unwrap();
        assert_eq!((twin.etag(), twin.version()), before);
        let tags = ServiceWrite::parse(&json!({ "tags": { "site": "lab" } })).unwrap();
        assert_eq!(twin.write(&tags, Mode::Merge, "T2"), Ok(None));
        assert_eq!(twin.etag(), "AAAAAAAAAAI=");
        assert_eq!(twin.device_view()["desired"]["$version"], 1);
    }

    #[test]
    fn a_merge_pushes_the_patch_as_sent_and_a_replace_the_whole() {
        let mut twin = Twin::new("T0");
        let push = twin
            .write(&desired(json!({ "a": null, "b": 1 })), Mode::Merge, "T1")
            .unwrap();
        assert_eq!(push, Some(json!({ "a": null, "b": 1, "$version": 2 })));
        let push = twin
            .write(
                &desired(json!({ "c": 2, "d": null, "$version": 9 })),
                Mode::Replace,
                "T2",
            )
            .unwrap();
        assert_eq!(push, Some(json!({ "c": 2, "$version": 3 })));
    }

    #[test]
    fn a_replace_leaves_absent_sections_alone() {
        let mut twin = Twin::new("T0");
        let tags = ServiceWrite::parse(&json!({ "tags": { "a": 1 } })).unwrap();
        twin.write(&tags, Mode::Merge, "T1").unwrap();
        twin.write(&desired(json!({ "b": 1 })), Mode::Replace, "T2")
            .unwrap();
        assert_eq!(twin.tags, object(json!({ "a": 1 })));
    }

    #[test]
    fn a_section_that_is_null_is_emptied_and_one_that_is_absent_is_not() {
        let mut twin = Twin::new("T0");
        let both = json!({ "tags": { "a": 1 }, "properties": { "desired": { "b": 1 } } });
        twin.write(&ServiceWrite::parse(&both).unwrap(), Mode::Merge, "T1")
            .unwrap();
        let tags = ServiceWrite::parse(&json!({ "tags": null })).unwrap();
        assert_eq!(twin.write(&tags, Mode::Merge, "T2"), Ok(None));
        assert_eq!(twin.tags, Object::new());
        assert_eq!(twin.device_view()["desired"]["b"], 1);
        let push = twin
            .write(&desired(Value::Null), Mode::Merge, "T3")
            .unwrap();
        assert_eq!(push, Some(json!({ "$version": 3 })));
        assert_eq!(twin.device_view()["desired"], json!({ "$version": 3 }));
    }

    #[test]
    fn an_array_has_one_stamp_for_the_whole() {
        let mut twin = Twin::new("T0");
        twin.report(&json!({ "list": [{ "a": 1 }, [2]] }), None, "T1")
            .unwrap();
        assert_eq!(
            twin.properties()["reported"]["$metadata"]["list"],
            json!({ "$lastUpdated": "T1" })
        );
    }

    #[test]
    fn deleting_what_is_not_there_is_no_error_and_makes_a_version() {
        let mut twin = Twin::new("T0");
        let push = twin.write(
            &desired(json!({ "gone": { "deep": null } })),
            Mode::Merge,
            "T1",
        );
        assert_eq!(push.unwrap().unwrap()["$version"], 2);
        assert_eq!(
            twin.device_view()["desired"],
            json!({ "gone": {}, "$version": 2 })
        );
        assert_eq!(twin.report(&json!({ "gone": null }), None, "T2"), Ok(2));
    }

    #[test]
    fn a_replace_stamps_everything_anew() {
        let mut twin = Twin::new("T0");
        twin.write(&desired(json!({ "a": 1, "b": 1 })), Mode::Merge, "T1")
            .unwrap();
        twin.write(&desired(json!({ "a": 1 })), Mode::Replace, "T2")
            .unwrap();
        assert_eq!(
            twin.properties()["desired"]["$metadata"],
            json!({ "$lastUpdated": "T2", "$lastUpdatedVersion": 3,
                    "a": { "$lastUpdated": "T2", "$lastUpdatedVersion": 3 } })
        );
    }

    #[test]
    fn a_stale_version_is_refused() {
        let mut twin = Twin::new("T0");
        let refused = twin.report(&json!({ "a": 1 }), Some(7), "T1").unwrap_err();
        assert_eq!(refused.kind().status(), 412);
        assert_eq!(twin.report(&json!({ "a": 1 }), Some(1), "T1"), Ok(2));
    }

    #[test]
    fn a_refused_patch_changes_nothing() {
        let mut twin = Twin::new("T0");
        let before = twin.properties();
        for (patch, status) in [
            (json!([1]), 400),
            (json!({ "a.b": 1 }), 400),
            (json!({ "$version": 1 }), 400),
            (json!({ "a": [null] }), 400),
        ] {
            let refused = twin.report(&patch, None, "T1").unwrap_err();
            assert_eq!(refused.kind().status(), status, "{patch}");
        }
        let mut large = Object::new();
        for n in 0..9 {
            large.insert(format!("k{n}"), "x".repeat(4000).into());
        }
        let refused = twin.report(&large.into(), None, "T1").unwrap_err();
        assert_eq!(refused.kind().number(), 403_100);
        assert_eq!(twin.properties(), before);
    }

    fn json_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "[a-z]{0,6}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            proptest::collection::btree_map("[a-c]", inner, 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect()))
        })
    }

    fn json_object() -> impl Strategy<Value = Value> {
        proptest::collection::btree_map("[a-c]", json_value(), 0..4)
            .prop_map(|members| Value::Object(members.into_iter().collect()))
    }

    fn holds_null(value: &Value) -> bool {
        match value {
            Value::Null => true,
            Value::Object(members) => members.values().any(holds_null),
            _ => false,
        }
    }

    /// The member names of a metadata tree, without the stamps.
    fn shape(metadata: &Object) -> Value {
        metadata
            .iter()
            .filter(|(key, _)| !key.starts_with('$'))
            .map(|(key, child)| (key.clone(), shape(child.as_object().unwrap())))
            .collect::<Object>()
            .into()
    }

    fn value_shape(values: &Object) -> Value {
        values
            .iter()
            .map(|(key, value)| {
                let child = value.as_object().map_or(json!({}), value_shape);
                (key.clone(), child)
            })
            .collect::<Object>()
            .into()
    }

    proptest! {
        #[test]
        fn a_twin_never_holds_null_and_metadata_mirrors_it(
            patches in proptest::collection::vec(json_object(), 1..5)
        ) {
            let mut twin = Twin::new("T0");
            for patch in &patches {
                twin.report(patch, None, "T1").unwrap();
            }
            prop_assert!(!twin.reported.values.values().any(holds_null));
            prop_assert_eq!(shape(&twin.reported.metadata), value_shape(&twin.reported.values));
            prop_assert_eq!(twin.reported.version, 1 + patches.len() as u64);
        }

        #[test]
        fn merging_the_same_patch_again_changes_no_value(first in json_object(), second in json_object()) {
            let mut twin = Twin::new("T0");
            twin.report(&first, None, "T1").unwrap();
            twin.report(&second, None, "T2").unwrap();
            let once = twin.reported.values.clone();
            twin.report(&second, None, "T3").unwrap();
            prop_assert_eq!(once, twin.reported.values);
        }
    }
}
