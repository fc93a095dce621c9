//! What may stand in a twin: names, depth, values and sizes.

use serde_json::Value;

use crate::twin::Object;

/// Deepest nesting of objects below a section.
const DEPTH: usize = 10;
/// Longest member name in bytes.
const KEY_BYTES: usize = 1024;
/// Longest string in bytes.
const STRING_BYTES: usize = 4096;
/// Whole numbers stay within what 53 bits hold exactly, halved.
const INTEGERS: std::ops::RangeInclusive<i64> = -4_503_599_627_370_496..=4_503_599_627_370_495;

/// The size limit of a section.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limit {
    section: &'static str,
    bytes: usize,
}

impl Limit {
    pub(crate) const TAGS: Self = Self {
        section: "tags",
        bytes: 8 * 1024,
    };
    pub(crate) const DESIRED: Self = Self {
        section: "desired properties",
        bytes: 32 * 1024,
    };
    pub(crate) const REPORTED: Self = Self {
        section: "reported properties",
        bytes: 32 * 1024,
    };
}

/// What is wrong with a write, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Violation {
    #[error(
        "The name '{0}' in {1} is not allowed: no '.', '$', space or control characters, 1 to 1024 bytes."
    )]
    Key(String, String),
    #[error("'{0}' in {1} is nested deeper than 10 levels.")]
    Depth(String, String),
    #[error("The text at '{0}' in {1} is longer than 4096 bytes.")]
    String(String, String),
    #[error("The number at '{0}' in {1} is outside -4503599627370496 to 4503599627370495.")]
    Integer(String, String),
    #[error("The array at '{0}' in {1} holds null.")]
    NullInArray(String, String),
    #[error("The {section} would take {size} bytes; the limit is {limit}.")]
    Size {
        section: &'static str,
        size: usize,
        limit: usize,
    },
}

impl Violation {
    /// Whether the write is well-formed but too large.
    pub(crate) fn is_about_size(&self) -> bool {
        matches!(self, Self::Size { .. })
    }
}

/// Checks each name and value of a patch to `section`.
pub(crate) fn check(patch: &Object, section: &str) -> Result<(), Violation> {
    check_object(patch, section, "", 0)
}

fn check_object(object: &Object, section: &str, at: &str, depth: usize) -> Result<(), Violation> {
    if depth > DEPTH {
        return Err(Violation::Depth(at.into(), section.into()));
    }
    for (key, value) in object {
        let bad = |c: char| c.is_control() || matches!(c, '.' | '$' | ' ');
        if key.is_empty() || key.len() > KEY_BYTES || key.contains(bad) {
            let shown: String = key.chars().take(64).collect();
            return Err(Violation::Key(shown, section.into()));
        }
        let at = if at.is_empty() {
            key.clone()
        } else {
            format!("{at}.{key}")
        };
        check_value(value, section, &at, depth)?;
    }
    Ok(())
}

fn check_value(value: &Value, section: &str, at: &str, depth: usize) -> Result<(), Violation> {
    match value {
        Value::Object(object) => check_object(object, section, at, depth + 1),
        Value::Array(items) => items.iter().try_for_each(|item| match item {
            Value::Null => Err(Violation::NullInArray(at.into(), section.into())),
            _ => check_value(item, section, at, depth),
        }),
        Value::String(text) if text.len() > STRING_BYTES => {
            Err(Violation::String(at.into(), section.into()))
        }
        Value::Number(number) => {
            let whole_and_outside = match number.as_i64() {
                Some(integer) => !INTEGERS.contains(&integer),
                None => number.is_u64(),
            };
            if whole_and_outside {
                Err(Violation::Integer(at.into(), section.into()))
            } else {
                Ok(())
            }
        }
        Value::Null | Value::Bool(_) | Value::String(_) => Ok(()),
    }
}

/// Refuses a section that became too large.
pub(crate) fn measure(values: &Object, limit: Limit) -> Result<(), Violation> {
    let size = object_size(values);
    if size <= limit.bytes {
        return Ok(());
    }
    Err(Violation::Size {
        section: limit.section,
        size,
        limit: limit.bytes,
    })
}

fn object_size(object: &Object) -> usize {
    object
        .iter()
        .map(|(key, value)| text_size(key) + value_size(value))
        .sum()
}

fn value_size(value: &Value) -> usize {
    match value {
        Value::Null => 0,
        Value::Bool(_) => 4,
        Value::Number(_) => 8,
        Value::String(text) => text_size(text),
        Value::Array(items) => items.iter().map(value_size).sum(),
        Value::Object(object) => object_size(object),
    }
}

fn text_size(text: &str) -> usize {
    text.chars().filter(|c| !c.is_control()).count()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn checked(value: Value) -> Result<(), Violation> {
        check(value.as_object().unwrap(), "reported properties")
    }

    fn nested(levels: usize) -> Value {
        (0..levels).fold(json!(1), |inner, _| json!({ "k": inner }))
    }

    #[test]
    fn ten_levels_below_the_section_are_allowed_and_eleven_are_not() {
        assert_eq!(
            checked(nested(11)),
            Ok(()),
            "ten objects in the section, and a leaf"
        );
        assert!(matches!(checked(nested(12)), Err(Violation::Depth(..))));
        assert!(matches!(
            checked(json!({ "a": [nested(11)] })),
            Err(Violation::Depth(..))
        ));
    }

    #[test]
    fn odd_names_are_refused() {
        for key in [
            "",
            "a.b",
            "$x",
            "a b",
            "a\u{7}",
            "a\u{85}",
            &"k".repeat(1025),
        ] {
            assert!(
                matches!(checked(json!({ key: 1 })), Err(Violation::Key(..))),
                "{key:?}"
            );
        }
        assert_eq!(
            checked(json!({ "a-b_c#ü": 1, "k".repeat(1024): 1 })),
            Ok(())
        );
    }

    #[test]
    fn numbers_and_texts_have_bounds() {
        assert_eq!(
            checked(json!({ "a": 4_503_599_627_370_495_i64, "b": 1e300 })),
            Ok(())
        );
        assert!(checked(json!({ "a": 4_503_599_627_370_496_i64 })).is_err());
        assert!(checked(json!({ "a": u64::MAX })).is_err());
        assert_eq!(checked(json!({ "a": "x".repeat(4096) })), Ok(()));
        assert!(checked(json!({ "a": "x".repeat(4097) })).is_err());
    }

    #[test]
    fn size_counts_names_and_values() {
        let object = json!({ "ab": true, "c": 1, "d": "xyz\n", "e": { "f": [1, "g"] } });
        let object = object.as_object().unwrap();
        assert_eq!(
            object_size(object),
            (2 + 4) + (1 + 8) + (1 + 3) + 1 + (1 + 8 + 1)
        );
    }
}
