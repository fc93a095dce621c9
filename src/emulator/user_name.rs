//! The MQTT user name: which hub, which device, which api-version.

use crate::percent;

/// A user name, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UserName {
    pub(crate) hub: String,
    /// `{device}` or `{device}/{module}`.
    pub(crate) client: String,
    pub(crate) api_version: Option<String>,
    pub(crate) model_id: Option<String>,
}

impl UserName {
    /// Reads `{hub}/{client}/?api-version=…&…`, the older form without `?`, and the bare `{hub}/{client}`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (hub, rest) = text.split_once('/')?;
        let (client, query) = rest
            .split_once("/?")
            .or_else(|| {
                let at = rest.find("/api-version=")?;
                Some((&rest[..at], &rest[at + 1..]))
            })
            .unwrap_or((rest.trim_end_matches('/'), ""));
        if hub.is_empty() || client.is_empty() {
            return None;
        }
        Some(Self {
            hub: hub.to_owned(),
            client: client.to_owned(),
            api_version: percent::bag_value(query, "api-version"),
            model_id: percent::bag_value(query, "model-id"),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_the_sdks_send_is_understood() {
        let name = UserName::parse(
            "h/dev1/?api-version=2020-09-30&model-id=dtmi%3Aa%3Ab%3B1&DeviceClientType=azure-iot-device%2F1.18.4",
        )
        .unwrap();
        assert_eq!((name.hub.as_str(), name.client.as_str()), ("h", "dev1"));
        assert_eq!(name.api_version.as_deref(), Some("2020-09-30"));
        assert_eq!(name.model_id.as_deref(), Some("dtmi:a:b;1"));
    }

    #[test]
    fn old_and_bare_forms_are_understood() {
        let old = UserName::parse("h/d/m/api-version=2016-11-14").unwrap();
        assert_eq!(
            (old.client.as_str(), old.api_version.as_deref()),
            ("d/m", Some("2016-11-14"))
        );
        for bare in ["h/d", "h/d/"] {
            let bare = UserName::parse(bare).unwrap();
            assert_eq!((bare.client.as_str(), bare.api_version), ("d", None));
        }
        for bad in ["", "h", "h/", "/d"] {
            assert_eq!(UserName::parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".*(/\\?|/api-version=)?.*") {
            let _ = UserName::parse(&text);
        }
    }
}
