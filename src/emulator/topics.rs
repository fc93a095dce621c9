//! What a device may publish and subscribe to, and the topics the hub publishes on.

use serde::{Deserialize, Serialize};

use crate::percent;

/// A subscription the hub allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Filter {
    Methods,
    TwinAnswers,
    DesiredChanges,
    CloudToDevice,
}

impl Filter {
    /// The subscription that `filter` names for device `id`; `None` when the hub does not allow it.
    pub(crate) fn parse(filter: &str, id: &str) -> Option<Self> {
        match filter {
            "$iothub/methods/POST/#" => Some(Self::Methods),
            "$iothub/twin/res/#" => Some(Self::TwinAnswers),
            "$iothub/twin/PATCH/properties/desired/#" => Some(Self::DesiredChanges),
            _ => {
                let rest = filter.strip_prefix("devices/")?.strip_prefix(id)?;
                (rest == "/messages/devicebound/#").then_some(Self::CloudToDevice)
            }
        }
    }
}

/// What a device published, by its topic.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Upstream {
    /// Application and system properties of a message.
    Telemetry(Vec<(String, Option<String>)>),
    MethodAnswer {
        status: i32,
        rid: String,
    },
    TwinGet {
        rid: String,
    },
    TwinPatch {
        rid: String,
        version: Option<u64>,
    },
}

impl Upstream {
    /// Reads the topic of a PUBLISH from device `id`; `None` when the hub knows no such topic.
    pub(crate) fn parse(topic: &str, id: &str) -> Option<Self> {
        if let Some(rest) = topic.strip_prefix("$iothub/methods/res/") {
            let (status, query) = rest.split_once("/?")?;
            let status = status.parse().ok()?;
            let rid = rid(query)?;
            return Some(Self::MethodAnswer { status, rid });
        }
        if let Some(query) = topic.strip_prefix("$iothub/twin/GET/?") {
            let rid = rid(query)?;
            return Some(Self::TwinGet { rid });
        }
        if let Some(query) = topic.strip_prefix("$iothub/twin/PATCH/properties/reported/?") {
            let rid = rid(query)?;
            let version = match percent::bag_value(query, "$version") {
                Some(text) => Some(text.parse().ok()?),
                None => None,
            };
            return Some(Self::TwinPatch { rid, version });
        }
        let bag = topic
            .strip_prefix("devices/")?
            .strip_prefix(id)?
            .strip_prefix("/messages/events/")?;
        Some(Self::Telemetry(percent::bag(bag)))
    }
}

/// The request id, exactly as the device wrote it: it is the device's own, and goes back unchanged.
fn rid(query: &str) -> Option<String> {
    query.split('&').find_map(|member| {
        let (key, value) = member.split_once('=')?;
        (percent::decode(key) == "$rid").then(|| value.to_owned())
    })
}

/// `$iothub/methods/POST/{name}/?$rid={rid}`.
pub(crate) fn method_request(name: &str, rid: &str) -> String {
    // A component's method is written with a bare `*`.
    let name = percent::encode(name).replace("%2A", "*");
    format!("$iothub/methods/POST/{name}/?$rid={rid}")
}

/// `$iothub/twin/res/{status}/?$rid={rid}`, for a patch with the new `$version`.
pub(crate) fn twin_answer(status: u16, rid: &str, version: Option<u64>) -> String {
    match version {
        Some(version) => format!("$iothub/twin/res/{status}/?$rid={rid}&$version={version}"),
        None => format!("$iothub/twin/res/{status}/?$rid={rid}"),
    }
}

/// The same for a refusal, which may say in how many seconds to come again.
pub(crate) fn twin_refusal(status: u16, rid: &str, retry_after: Option<u32>) -> String {
    let topic = twin_answer(status, rid, None);
    match retry_after {
        Some(seconds) => format!("{topic}&retry-after={seconds}"),
        None => topic,
    }
}

/// `$iothub/twin/PATCH/properties/desired/?$version={version}`.
pub(crate) fn desired_change(version: u64) -> String {
    format!("$iothub/twin/PATCH/properties/desired/?$version={version}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_the_four_filters_are_allowed() {
        let of = |filter: &str| Filter::parse(filter, "pi");
        assert_eq!(of("$iothub/methods/POST/#"), Some(Filter::Methods));
        assert_eq!(of("$iothub/twin/res/#"), Some(Filter::TwinAnswers));
        assert_eq!(
            of("$iothub/twin/PATCH/properties/desired/#"),
            Some(Filter::DesiredChanges)
        );
        assert_eq!(
            of("devices/pi/messages/devicebound/#"),
            Some(Filter::CloudToDevice)
        );
        for filter in [
            "#",
            "$iothub/#",
            "devices/pi2/messages/devicebound/#",
            "devices/pi/#",
        ] {
            assert_eq!(of(filter), None, "{filter}");
        }
    }

    #[test]
    fn topics_are_read_whatever_the_order_of_their_query() {
        let of = |topic: &str| Upstream::parse(topic, "pi");
        assert_eq!(
            of("$iothub/twin/PATCH/properties/reported/?$version=4&$rid=a%2Fb"),
            Some(Upstream::TwinPatch {
                rid: "a%2Fb".into(),
                version: Some(4)
            })
        );
        assert_eq!(
            of("$iothub/methods/res/-1/?$rid=a"),
            Some(Upstream::MethodAnswer {
                status: -1,
                rid: "a".into()
            })
        );
        assert_eq!(
            of("$iothub/twin/GET/?$rid=1"),
            Some(Upstream::TwinGet { rid: "1".into() })
        );
        assert_eq!(
            of("devices/pi/messages/events/a=b"),
            Some(Upstream::Telemetry(vec![("a".into(), Some("b".into()))]))
        );
    }

    #[test]
    fn foreign_and_unknown_topics_are_not_known() {
        for topic in [
            "devices/pi2/messages/events/",
            "devices/pi/messages/events",
            "$iothub/methods/res/ok/?$rid=1",
            "$iothub/methods/res/99999999999/?$rid=1",
            "$iothub/twin/GET/",
            "$iothub/twin/PATCH/properties/reported/?$rid=1&$version=x",
            "anything",
        ] {
            assert_eq!(Upstream::parse(topic, "pi"), None, "{topic}");
        }
    }

    proptest! {
        #[test]
        fn no_topic_makes_the_parser_panic(
            topic in "(\\$iothub/(methods/res/|twin/GET/|twin/PATCH/properties/reported/)|devices/pi)?.*"
        ) {
            let _ = Upstream::parse(&topic, "pi");
            let _ = Filter::parse(&topic, "pi");
        }
    }
}
