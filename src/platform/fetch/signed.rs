//! When a signed URL counts, as far as its query tells: Azure's shared access signatures, S3 and Google Cloud
//! Storage (version 4), and the older `Expires`.
//!
//! Guarantees: only times leave here, never another part of the query, which is a secret.

use jiff::{SignedDuration, Timestamp, civil, tz::TimeZone};
use reqwest::Url;

/// How a signed URL's time frame misses a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outside {
    /// It ended then.
    Ended(Timestamp),
    /// It begins then.
    NotYet(Timestamp),
}

/// Whether `now` lies outside of the time frame that `url` names; `None`: inside, or it names none.
pub(super) fn outside(url: &Url, now: Timestamp) -> Option<Outside> {
    let (start, end) = frame(url);
    match (start, end) {
        (_, Some(end)) if end <= now => Some(Outside::Ended(end)),
        (Some(start), _) if start > now => Some(Outside::NotYet(start)),
        _ => None,
    }
}

/// Start and end.
fn frame(url: &Url) -> (Option<Timestamp>, Option<Timestamp>) {
    let value = |name: &str| {
        let mut pairs = url.query_pairs();
        pairs
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    };
    // https://learn.microsoft.com/rest/api/storageservices/create-service-sas: `sig`, `st`, `se`.
    if value("sig").is_some() {
        let time = |name| value(name).and_then(|text| azure_time(&text));
        return (time("st"), time("se"));
    }
    for vendor in ["X-Amz", "X-Goog"] {
        let start = value(&format!("{vendor}-Date")).and_then(|text| basic_time(&text));
        let lasts = value(&format!("{vendor}-Expires")).and_then(|text| text.parse::<u32>().ok());
        if let (Some(start), Some(lasts)) = (start, lasts) {
            let end = start.checked_add(SignedDuration::from_secs(lasts.into()));
            return (Some(start), end.ok());
        }
    }
    let end = value("Signature")
        .and_then(|_| value("Expires"))
        .and_then(|text| Timestamp::from_second(text.parse().ok()?).ok());
    (None, end)
}

/// `2026-11-28T12:00:00Z`, with or without seconds, or a day alone.
fn azure_time(text: &str) -> Option<Timestamp> {
    text.parse().ok().or_else(|| {
        let day: civil::Date = text.parse().ok()?;
        in_utc(day.at(0, 0, 0, 0))
    })
}

/// `20261128T120000Z`.
fn basic_time(text: &str) -> Option<Timestamp> {
    in_utc(civil::DateTime::strptime("%Y%m%dT%H%M%SZ", text).ok()?)
}

fn in_utc(time: civil::DateTime) -> Option<Timestamp> {
    TimeZone::UTC.to_timestamp(time).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn each_stores_time_frame_is_read() {
        let now = at("2026-11-28T12:00:00Z");
        let ended = |text| Some(Outside::Ended(at(text)));
        let not_yet = |text| Some(Outside::NotYet(at(text)));
        for (query, expected) in [
            ("", None),
            ("sv=2024-11-04&se=2026-11-28T12%3A00%3A01Z&sig=x", None),
            (
                "sv=2024-11-04&se=2026-11-28T12%3A00%3A00Z&sig=x",
                ended("2026-11-28T12:00:00Z"),
            ),
            ("se=2026-11-28T11:59Z&sig=x", ended("2026-11-28T11:59:00Z")),
            ("se=2026-11-27&sig=x", ended("2026-11-27T00:00:00Z")),
            (
                "st=2026-11-28T12:05:00Z&se=2026-11-29&sig=x",
                not_yet("2026-11-28T12:05:00Z"),
            ),
            ("st=2026-11-28T11:05:00Z&se=2026-11-29&sig=x", None),
            // Anybody's parameters, unless there is a signature.
            ("se=2020-01-01", None),
            ("se=soon&sig=x", None),
            (
                "X-Amz-Date=20261128T110000Z&X-Amz-Expires=3600&X-Amz-Signature=x",
                ended("2026-11-28T12:00:00Z"),
            ),
            ("X-Amz-Date=20261128T110001Z&X-Amz-Expires=3600", None),
            (
                "x-goog-date=20261128T130000Z&x-goog-expires=60",
                not_yet("2026-11-28T13:00:00Z"),
            ),
            (
                "Expires=1700000000&Signature=x",
                ended("2023-11-14T22:13:20Z"),
            ),
            ("Expires=1700000000", None),
        ] {
            let url = Url::parse(&format!("https://store.example/a.img?{query}")).unwrap();
            assert_eq!(outside(&url, now), expected, "{query}");
        }
    }

    proptest! {
        #[test]
        fn no_query_panics(query in "(sig=x&)?(se|st|X-Amz-Date|Expires)=[0-9TZ:-]{0,24}&X-Amz-Expires=[0-9]{0,12}|\\PC{0,60}") {
            if let Ok(url) = Url::parse(&format!("https://store.example/?{query}")) {
                let _ = outside(&url, Timestamp::UNIX_EPOCH);
            }
        }
    }
}
