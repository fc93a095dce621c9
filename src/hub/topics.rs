//! The topics of the hub's MQTT dialect, read and written.
//!
//! Reading never fails loudly: a topic that is not one of ours is `None`. The tail after `/?` is a query
//! in any order; request ids are opaque text (the hub counts in hex) and are echoed as they came.

use std::time::Duration;

use super::percent;

/// Filters to subscribe to: twin answers, method calls, changes of desired properties.
pub const FILTERS: [&str; 3] = [
    "$iothub/twin/res/#",
    "$iothub/methods/POST/#",
    "$iothub/twin/PATCH/properties/desired/#",
];

/// Longest `retry-after` that is believed, in seconds: no hub throttles longer than some minutes, and the end of
/// an update must not wait for a slip.
const MAX_RETRY_AFTER: u64 = 300;

/// What an incoming message is, from its topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming {
    /// A direct method was called.
    Method {
        /// Its name, percent-decoded.
        name: String,
        /// The hub's id of the call, raw.
        rid: String,
    },
    /// The answer to a twin read or patch.
    TwinAnswer {
        /// Our id of the request, raw.
        rid: String,
        /// HTTP-like status.
        status: u16,
        /// The new version of the reported section, after a patch.
        version: Option<u64>,
        /// When to try again, if the hub says.
        retry_after: Option<Duration>,
    },
    /// A desired property changed.
    Desired {
        /// The version of the desired section after the change.
        version: Option<u64>,
    },
}

/// What a message on `topic` is; `None` when it is none of ours.
#[must_use]
pub fn parse(topic: &str) -> Option<Incoming> {
    if let Some(rest) = topic.strip_prefix("$iothub/methods/POST/") {
        let (name, query) = rest.split_once("/?")?;
        return Some(Incoming::Method {
            name: percent::decode(name).filter(|name| !name.is_empty())?,
            rid: rid(query)?,
        });
    }
    if let Some(rest) = topic.strip_prefix("$iothub/twin/res/") {
        let (status, query) = rest.split_once("/?")?;
        return Some(Incoming::TwinAnswer {
            rid: rid(query)?,
            status: status.parse().ok()?,
            version: version(query),
            retry_after: retry_after(query),
        });
    }
    let rest = topic.strip_prefix("$iothub/twin/PATCH/properties/desired/")?;
    Some(Incoming::Desired {
        version: version(rest.strip_prefix('?').unwrap_or(rest)),
    })
}

/// The raw value of `name` in `query`; the first counts. Names may be percent-encoded (`%24rid`).
pub(super) fn value<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .find(|(key, _)| *key == name || percent::decode(key).as_deref() == Some(name))
        .map(|(_, value)| value)
}

/// When to try again, as the server says it; an absurd wait is cut.
pub(super) fn retry_after(query: &str) -> Option<Duration> {
    let seconds = value(query, "retry-after").or_else(|| value(query, "$retry-after"))?;
    let seconds = seconds.parse::<u64>().ok()?;
    Some(Duration::from_secs(seconds.min(MAX_RETRY_AFTER)))
}

/// A request id that can be echoed in a topic: not empty, no wildcard.
fn rid(query: &str) -> Option<String> {
    let rid = value(query, "$rid")?;
    (!rid.is_empty() && !rid.contains(['+', '#', '\0'])).then(|| rid.to_owned())
}

fn version(query: &str) -> Option<u64> {
    value(query, "$version")?.parse().ok()
}

/// Where the answer to method call `rid` goes.
#[must_use]
pub fn method_answer(status: i32, rid: &str) -> String {
    format!("$iothub/methods/res/{status}/?$rid={rid}")
}

/// Where a twin read goes.
#[must_use]
pub fn twin_read(rid: &str) -> String {
    format!("$iothub/twin/GET/?$rid={rid}")
}

/// Where a patch of the reported section goes.
#[must_use]
pub fn twin_patch(rid: &str) -> String {
    format!("$iothub/twin/PATCH/properties/reported/?$rid={rid}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_method_call_keeps_its_hex_request_id() {
        let call = |topic| match parse(topic) {
            Some(Incoming::Method { name, rid }) => Some((name, rid)),
            _ => None,
        };
        let expect = |name: &str, rid: &str| Some((name.to_owned(), rid.to_owned()));
        assert_eq!(
            call("$iothub/methods/POST/firmwareUpdate/?$rid=a"),
            expect("firmwareUpdate", "a")
        );
        assert_eq!(
            call("$iothub/methods/POST/x%2Ay.z-_/?other=1&$rid=00fF-%20&z"),
            expect("x*y.z-_", "00fF-%20")
        );
        assert_eq!(call("$iothub/methods/POST/m/?%24rid=1"), expect("m", "1"));
        assert_eq!(call("$iothub/methods/POST//?$rid=1"), None);
        assert_eq!(call("$iothub/methods/POST/m/?$rid="), None);
        assert_eq!(call("$iothub/methods/POST/m/?$rid=#"), None);
        assert_eq!(call("$iothub/methods/POST/m"), None);
    }

    #[test]
    fn a_twin_answer_is_read_in_any_order_of_its_query() {
        let answer = |version, retry_after| {
            Some(Incoming::TwinAnswer {
                rid: "p1".to_owned(),
                status: 204,
                version,
                retry_after: Option::map(retry_after, Duration::from_secs),
            })
        };
        assert_eq!(
            parse("$iothub/twin/res/204/?$rid=p1&$version=7"),
            answer(Some(7), None)
        );
        assert_eq!(
            parse("$iothub/twin/res/204/?$version=7&$rid=p1"),
            answer(Some(7), None)
        );
        assert_eq!(
            parse("$iothub/twin/res/204/?retry-after=99999&$rid=p1"),
            answer(None, Some(300))
        );
        assert_eq!(
            parse("$iothub/twin/res/204/?$rid=p1&$retry-after=0"),
            answer(None, Some(0))
        );
        for absurd in ["-1", "soon", "", "99999999999999999999999"] {
            let topic = format!("$iothub/twin/res/204/?$rid=p1&retry-after={absurd}");
            assert_eq!(parse(&topic), answer(None, None), "{absurd}");
        }
        assert_eq!(parse("$iothub/twin/res/abc/?$rid=p1"), None);
        assert_eq!(parse("$iothub/twin/res/200/"), None);
    }

    #[test]
    fn a_desired_change_may_lack_its_version() {
        let topic = "$iothub/twin/PATCH/properties/desired/";
        let desired = |version| Some(Incoming::Desired { version });
        assert_eq!(parse(&format!("{topic}?$version=12")), desired(Some(12)));
        assert_eq!(parse(topic), desired(None));
        assert_eq!(parse("devices/d/messages/devicebound/"), None);
    }

    #[test]
    fn topics_are_written_as_the_hub_reads_them() {
        assert_eq!(method_answer(-1, "1f"), "$iothub/methods/res/-1/?$rid=1f");
        assert_eq!(twin_read("g1"), "$iothub/twin/GET/?$rid=g1");
        assert_eq!(
            twin_patch("p1"),
            "$iothub/twin/PATCH/properties/reported/?$rid=p1"
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(
            prefix in prop::sample::select(vec![
                "", "$iothub/methods/POST/", "$iothub/twin/res/", "$iothub/twin/PATCH/properties/desired/"
            ]),
            bytes in prop::collection::vec(any::<u8>(), 0..64)
        ) {
            let _ = parse(&format!("{prefix}{}", String::from_utf8_lossy(&bytes)));
        }

        #[test]
        fn every_method_call_is_read_whatever_stands_around_its_id(
            name in "[A-Za-z0-9._*-]{1,100}", rid in "[^&+#\\x00]{1,300}",
            mut others in prop::collection::vec("[a-z]{1,4}=[a-z0-9]{0,4}", 0..4), at in 0_usize..5
        ) {
            others.insert(at.min(others.len()), format!("$rid={rid}"));
            let topic = format!("$iothub/methods/POST/{}/?{}", percent::encode(&name), others.join("&"));
            prop_assert_eq!(parse(&topic), Some(Incoming::Method { name, rid }));
        }
    }
}
