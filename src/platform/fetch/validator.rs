//! What tells two versions of a file on a server apart, and which bytes of it are meant.

use reqwest::header::{ETAG, HeaderMap, HeaderName, LAST_MODIFIED};
use serde::{Deserialize, Serialize};

/// A range of bytes of a file: `start..end`, or `start..` for everything from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteRange {
    /// First byte.
    pub start: u64,
    /// One past the last byte; `None`: to the end of the file.
    pub end: Option<u64>,
}

impl ByteRange {
    /// The whole file.
    pub const WHOLE: Self = Self {
        start: 0,
        end: None,
    };
}

impl From<std::ops::RangeFull> for ByteRange {
    fn from(_: std::ops::RangeFull) -> Self {
        Self::WHOLE
    }
}

impl From<std::ops::RangeFrom<u64>> for ByteRange {
    fn from(range: std::ops::RangeFrom<u64>) -> Self {
        Self {
            start: range.start,
            end: None,
        }
    }
}

impl From<std::ops::Range<u64>> for ByteRange {
    fn from(range: std::ops::Range<u64>) -> Self {
        Self {
            start: range.start,
            end: Some(range.end),
        }
    }
}

/// What a server said about the version of a file (RFC 9110, section 8.8). Kept with a checkpoint, it
/// makes sure that a download continues with the same file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Validator {
    /// The strong entity tag, quotes included. Weak ones say nothing about bytes and are left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
    /// `Last-Modified`, as the server wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_modified: Option<String>,
    /// Length of the whole file in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
}

/// How two validators compare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Comparison {
    /// The same file.
    Same,
    /// Another file; the text says what differs.
    Changed(String),
    /// They have nothing decisive in common.
    Unknown,
}

impl Validator {
    pub(super) fn from_headers(headers: &HeaderMap, length: Option<u64>) -> Self {
        let text = |name: HeaderName| {
            let text = headers.get(name)?.to_str().ok()?.trim();
            Some(text.to_owned())
        };
        let is_strong = |tag: &String| tag.len() >= 2 && tag.starts_with('"') && tag.ends_with('"');
        Self {
            etag: text(ETAG).filter(is_strong),
            last_modified: text(LAST_MODIFIED).filter(|text| !text.is_empty()),
            length,
        }
    }

    /// What to send as `If-Range`.
    pub(super) fn if_range(&self) -> Option<&str> {
        self.etag.as_deref().or(self.last_modified.as_deref())
    }

    /// Whether `now` is the file that `self` was.
    #[must_use]
    pub fn compare(&self, now: &Self) -> Comparison {
        if let (Some(before), Some(now)) = (self.length, now.length)
            && before != now
        {
            return Comparison::Changed(format!("{before} bytes before, {now} now"));
        }
        let of = |before: &Option<String>, now: &Option<String>, what: &str| {
            let (before, now) = (before.as_ref()?, now.as_ref()?);
            Some(if before == now {
                Comparison::Same
            } else {
                Comparison::Changed(format!("another {what}"))
            })
        };
        of(&self.etag, &now.etag, "ETag")
            .or_else(|| of(&self.last_modified, &now.last_modified, "Last-Modified"))
            .unwrap_or(Comparison::Unknown)
    }
}

/// A `Content-Range` header (RFC 9110, section 14.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ContentRange {
    /// `bytes first-last/total`; here `start..end`.
    Bytes {
        start: u64,
        end: u64,
        total: Option<u64>,
    },
    /// `bytes */total`: what was asked for lies outside.
    Unsatisfied { total: u64 },
}

impl ContentRange {
    /// `None` when it says nothing that makes sense.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (unit, rest) = text.trim().split_once(' ')?;
        if !unit.eq_ignore_ascii_case("bytes") {
            return None;
        }
        let (range, total) = rest.trim().split_once('/')?;
        if range == "*" {
            return Some(Self::Unsatisfied {
                total: number(total)?,
            });
        }
        let total = match total {
            "*" => None,
            total => Some(number(total)?),
        };
        let (first, last) = range.split_once('-')?;
        let (start, end) = (number(first)?, number(last)?.checked_add(1)?);
        (start < end && total.is_none_or(|total| end <= total)).then_some(Self::Bytes {
            start,
            end,
            total,
        })
    }
}

/// Digits only: `u64::from_str` would take a `+` too.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn validator(etag: Option<&str>, modified: Option<&str>, length: Option<u64>) -> Validator {
        Validator {
            etag: etag.map(str::to_owned),
            last_modified: modified.map(str::to_owned),
            length,
        }
    }

    #[test]
    fn the_strongest_thing_both_have_decides() {
        let full = validator(Some("\"1\""), Some("Mon"), Some(9));
        assert_eq!(full.compare(&full), Comparison::Same);
        // A mirror's clock may differ while the tag says it is the same.
        let other_time = validator(Some("\"1\""), Some("Tue"), Some(9));
        assert_eq!(full.compare(&other_time), Comparison::Same);
        for changed in [
            validator(Some("\"2\""), Some("Mon"), Some(9)),
            validator(None, Some("Tue"), Some(9)),
            validator(Some("\"1\""), Some("Mon"), Some(8)),
            validator(None, None, Some(8)),
        ] {
            assert!(matches!(full.compare(&changed), Comparison::Changed(_)));
        }
        let bare = validator(None, None, Some(9));
        assert_eq!(full.compare(&bare), Comparison::Unknown);
    }

    #[test]
    fn weak_and_malformed_tags_are_left_out() {
        for (tag, strong) in [
            ("\"abc\"", true),
            ("W/\"abc\"", false),
            ("abc", false),
            ("\"", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ETAG, tag.parse().unwrap());
            let found = Validator::from_headers(&headers, None).etag;
            assert_eq!(found.is_some(), strong, "{tag}");
        }
    }

    #[test]
    fn content_range_is_read_and_nonsense_is_not() {
        let bytes = |start, end, total| Some(ContentRange::Bytes { start, end, total });
        assert_eq!(ContentRange::parse("bytes 0-0/1"), bytes(0, 1, Some(1)));
        assert_eq!(ContentRange::parse("Bytes 5-9/*"), bytes(5, 10, None));
        assert_eq!(
            ContentRange::parse("bytes */77"),
            Some(ContentRange::Unsatisfied { total: 77 })
        );
        for text in [
            "",
            "bytes",
            "bytes 5-4/9",
            "bytes 0-9/9",
            "items 0-1/2",
            "bytes 0-18446744073709551615/*",
            "bytes +1-2/9",
            "bytes */*",
            "bytes 1-2",
        ] {
            assert_eq!(ContentRange::parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn content_range_survives_its_text_form(start: u32, length in 1_u64..1 << 40, rest: u32) {
            let (start, end) = (u64::from(start), u64::from(start) + length);
            let total = end + u64::from(rest);
            let text = format!("bytes {start}-{}/{total}", end - 1);
            prop_assert_eq!(
                ContentRange::parse(&text),
                Some(ContentRange::Bytes { start, end, total: Some(total) })
            );
        }

        #[test]
        fn no_content_range_panics_or_lies(text in "(bytes )?[0-9*/ -]{0,50}|\\PC{0,40}") {
            if let Some(ContentRange::Bytes { start, end, total }) = ContentRange::parse(&text) {
                prop_assert!(start < end && total.is_none_or(|total| end <= total));
            }
        }

        #[test]
        fn a_validator_survives_its_stored_form(
            etag in prop::option::of("\"[a-z0-9]{0,8}\""),
            last_modified in prop::option::of("[A-Za-z0-9:, ]{1,30}"),
            length: Option<u64>,
        ) {
            let validator = Validator { etag, last_modified, length };
            let text = serde_json::to_string(&validator).unwrap();
            prop_assert_eq!(serde_json::from_str::<Validator>(&text).unwrap(), validator);
        }
    }
}
