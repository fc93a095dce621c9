//! What the hub's refusals mean, in words and codes.
//!
//! IoT Hub writes its errors in two shapes, both `{"Message": ...}`: JSON within a string, and
//! `ErrorCode:Name;text`; some parts send plain members instead. [`Fault::read`] takes all of them.

use std::{io, path::PathBuf, time::Duration};

use reqwest::{StatusCode, header::HeaderMap};
use serde_json::Value;

use super::connection::NotAConnectionString;
use crate::{
    ctl::exit,
    platform::tls::{self, TlsError},
    update::{
        failure::{Class, Coded},
        uri::UriError,
    },
};

/// An answer of the hub that is no success, as data.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fault {
    /// HTTP status.
    pub status: u16,
    /// IoT Hub's number, such as 404103; 0 when it gave none.
    pub number: u32,
    /// IoT Hub's name, such as `DeviceNotOnline`.
    pub name: String,
    /// IoT Hub's words.
    pub message: String,
    /// The value of `Retry-After`.
    pub retry_after: Option<Duration>,
}

impl Fault {
    /// Reads an answer with `status`, `headers` and `body`, whatever its shape.
    #[must_use]
    pub fn read(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Self {
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let mut fault = Self {
            status: status.as_u16(),
            name: header("iothub-errorcode").unwrap_or_default().to_owned(),
            retry_after: header("retry-after")
                .and_then(|seconds| seconds.trim().parse().ok())
                .map(Duration::from_secs),
            ..Self::default()
        };
        let outer: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
        match member(&outer, "message") {
            Some(Value::String(text)) => match serde_json::from_str::<Value>(text) {
                Ok(inner @ Value::Object(_)) => fault.take(&inner),
                _ => fault.take_old(text),
            },
            _ => fault.take(&outer),
        }
        if let (0, Some(code)) = (fault.number, member(&outer, "errorCode")) {
            fault.take_code(code);
        }
        fault
    }

    fn take(&mut self, document: &Value) {
        if let Some(code) = member(document, "errorCode") {
            self.take_code(code);
        }
        if let Some(Value::String(message)) = member(document, "message") {
            message.clone_into(&mut self.message);
        }
    }

    fn take_code(&mut self, code: &Value) {
        match code {
            Value::Number(number) => {
                self.number = number
                    .as_u64()
                    .and_then(|n| u32::try_from(n).ok())
                    .unwrap_or(0);
            }
            Value::String(name) => match name.parse() {
                Ok(number) => self.number = number,
                Err(_) if self.name.is_empty() => name.clone_into(&mut self.name),
                Err(_) => {}
            },
            _ => {}
        }
    }

    /// `ErrorCode:IotHubUnauthorizedAccess;Unauthorized`
    fn take_old(&mut self, text: &str) {
        match text
            .strip_prefix("ErrorCode:")
            .and_then(|rest| rest.split_once(';'))
        {
            Some((name, message)) => {
                if self.name.is_empty() {
                    name.trim().clone_into(&mut self.name);
                }
                message.trim().clone_into(&mut self.message);
            }
            None => text.trim().clone_into(&mut self.message),
        }
    }

    fn is(&self, number: u32, name: &str) -> bool {
        self.number == number || self.name.eq_ignore_ascii_case(name)
    }

    /// The error that this is, about `device` where one was named.
    #[must_use]
    pub fn into_error(self, device: Option<&str>) -> HubError {
        let device = device.unwrap_or_default().to_owned();
        let about_device = !device.is_empty();
        let said = self.said();
        match self.status {
            401 => HubError::Unauthorized { said },
            404 if self.is(404_103, "DeviceNotOnline") => HubError::Offline { device },
            404 if about_device => HubError::DeviceNotFound { device },
            429 => HubError::Throttled { said },
            504 if about_device => HubError::NoAnswer { device },
            400 => HubError::BadRequest { said },
            403 => HubError::Forbidden { said },
            500..=599 => HubError::Unavailable {
                status: self.status,
                said,
            },
            status => HubError::Unexpected { status, said },
        }
    }

    /// IoT Hub's own words, with its name and number.
    fn said(&self) -> String {
        let message = match self.message.as_str() {
            "" => "no reason given",
            message => message,
        };
        match (self.name.as_str(), self.number) {
            ("", 0) => message.to_owned(),
            (name, 0) => format!("{message} ({name})"),
            ("", number) => format!("{message} ({number})"),
            (name, number) => format!("{message} ({number} {name})"),
        }
    }
}

/// A member of `object`, its name compared without regard to case.
fn member<'a>(object: &'a Value, name: &str) -> Option<&'a Value> {
    object
        .as_object()?
        .iter()
        .find(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value)
}

/// Why a call got no answer, in the words of whoever noticed first: the libraries in between only add theirs.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Cause(String);

/// Why the hub did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The image's address.
    #[error(transparent)]
    Uri(#[from] UriError),
    /// Neither flag nor variable.
    #[error(
        "no service connection string; give --connection-string-file FILE or set FWUPDATED_HUB_CONNECTION_STRING"
    )]
    NoConnectionString,
    /// The text is none.
    #[error(transparent)]
    ConnectionString(#[from] NotAConnectionString),
    /// The file cannot be read.
    #[error("cannot read the connection string file {}", file.display())]
    ConnectionStringFile {
        /// The file.
        file: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// Nobody to trust.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The HTTP client could not be made.
    #[error("cannot set up the HTTPS client")]
    Setup {
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No connection, or it broke.
    #[error("cannot reach the hub {host}; check the name and the network")]
    Unreachable {
        /// Host, and port.
        host: String,
        /// Why.
        source: Cause,
    },
    /// Someone answers whose certificate is not to be trusted.
    #[error(
        "the certificate of the hub {host} is not trusted; check the name and this machine's clock, or give an emulator's CA with --ca-file"
    )]
    Untrusted {
        /// Host, and port.
        host: String,
        /// Why.
        source: Cause,
    },
    /// The answer was no JSON.
    #[error(
        "the hub {host} answered with something that is not JSON; is there a proxy in between?"
    )]
    NotJson {
        /// Host, and port.
        host: String,
    },
    /// 401.
    #[error(
        "the hub refused the access token: {said}; check the policy's key and this machine's clock"
    )]
    Unauthorized {
        /// The hub's words.
        said: String,
    },
    /// 403.
    #[error(
        "the hub refused: {said}; check the policy's rights (service connect) and the hub's quota"
    )]
    Forbidden {
        /// The hub's words.
        said: String,
    },
    /// 400.
    #[error("the hub does not understand the request: {said}")]
    BadRequest {
        /// The hub's words.
        said: String,
    },
    /// 404 on a device.
    #[error("the hub does not know the device {device}; check the name, which is case-sensitive")]
    DeviceNotFound {
        /// The device.
        device: String,
    },
    /// The device is not connected.
    #[error(
        "the device {device} is offline, or listens to no methods; try again when it is online, or wait for it with --connect-timeout 300"
    )]
    Offline {
        /// The device.
        device: String,
    },
    /// The device did not answer the method in time.
    #[error(
        "the device {device} did not answer in time; it may have started all the same: look at `fwupdatectl hub twin {device}` before trying again"
    )]
    NoAnswer {
        /// The device.
        device: String,
    },
    /// 429, also after retries.
    #[error("the hub throttles: {said}; try again later")]
    Throttled {
        /// The hub's words.
        said: String,
    },
    /// 5xx, also after retries.
    #[error("the hub cannot answer now ({status}): {said}; try again later")]
    Unavailable {
        /// HTTP status.
        status: u16,
        /// The hub's words.
        said: String,
    },
    /// Any other status.
    #[error("the hub answered {status}: {said}")]
    Unexpected {
        /// HTTP status.
        status: u16,
        /// The hub's words.
        said: String,
    },
}

impl Coded for HubError {
    fn code(&self) -> &'static str {
        match self {
            Self::Uri(error) => error.code(),
            Self::NoConnectionString => "hub-no-connection-string",
            Self::ConnectionString(_) => "hub-connection-string",
            Self::ConnectionStringFile { .. } => "hub-connection-string-file",
            Self::Tls(error) => error.code(),
            Self::Setup { .. } => "hub-setup",
            Self::Unreachable { .. } => "hub-unreachable",
            Self::Untrusted { .. } => "hub-untrusted",
            Self::NotJson { .. } => "hub-not-json",
            Self::Unauthorized { .. } => "hub-unauthorized",
            Self::Forbidden { .. } => "hub-forbidden",
            Self::BadRequest { .. } => "hub-bad-request",
            Self::DeviceNotFound { .. } => "hub-device-not-found",
            Self::Offline { .. } => "hub-device-offline",
            Self::NoAnswer { .. } => "hub-device-no-answer",
            Self::Throttled { .. } => "hub-throttled",
            Self::Unavailable { .. } => "hub-unavailable",
            Self::Unexpected { .. } => "hub-unexpected-answer",
        }
    }

    fn class(&self) -> Class {
        match self {
            Self::Unreachable { .. }
            | Self::NotJson { .. }
            | Self::Throttled { .. }
            | Self::Unavailable { .. } => Class::Retry,
            Self::Offline { .. } | Self::NoAnswer { .. } => Class::Wait,
            Self::Uri(_)
            | Self::NoConnectionString
            | Self::ConnectionString(_)
            | Self::ConnectionStringFile { .. }
            | Self::Tls(_)
            | Self::Setup { .. }
            | Self::Unauthorized { .. }
            | Self::Forbidden { .. }
            | Self::BadRequest { .. }
            | Self::Untrusted { .. }
            | Self::DeviceNotFound { .. }
            | Self::Unexpected { .. } => Class::Final,
        }
    }
}

impl HubError {
    /// What it means that `host` gave no answer.
    #[must_use]
    pub fn no_answer(host: &str, error: &reqwest::Error) -> Self {
        let host = host.to_owned();
        if let Some(problem @ rustls::Error::InvalidCertificate(_)) = tls::error_in(error) {
            let source = Cause(problem.to_string());
            return Self::Untrusted { host, source };
        }
        let mut first: &dyn std::error::Error = error;
        while let Some(earlier) = first.source() {
            first = earlier;
        }
        let source = match error.is_timeout() {
            true => Cause("it did not answer in time".to_owned()),
            false => Cause(first.to_string()),
        };
        Self::Unreachable { host, source }
    }

    /// How the program ends with this error.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Uri(_)
            | Self::NoConnectionString
            | Self::ConnectionString(_)
            | Self::ConnectionStringFile { .. }
            | Self::BadRequest { .. }
            | Self::DeviceNotFound { .. } => exit::USAGE,
            Self::Unauthorized { .. } | Self::Forbidden { .. } => exit::REFUSED,
            Self::Tls(
                TlsError::Unreadable { .. }
                | TlsError::NotPem { .. }
                | TlsError::BadCertificate { .. }
                | TlsError::Empty { .. },
            ) => exit::USAGE,
            Self::Tls(TlsError::NoRoots(_) | TlsError::Setup(_))
            | Self::Setup { .. }
            | Self::Unreachable { .. }
            | Self::Untrusted { .. }
            | Self::NotJson { .. }
            | Self::Offline { .. }
            | Self::NoAnswer { .. }
            | Self::Throttled { .. }
            | Self::Unavailable { .. }
            | Self::Unexpected { .. } => exit::UNREACHABLE,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn fault(status: u16, body: &str) -> Fault {
        Fault::read(
            StatusCode::from_u16(status).unwrap(),
            &HeaderMap::new(),
            body.as_bytes(),
        )
    }

    #[test]
    fn json_in_a_string_is_read() {
        let inner = json!({"errorCode": 404_103, "trackingId": "x", "message": "Timed out waiting for device to connect."});
        let fault = fault(
            404,
            &json!({"Message": inner.to_string(), "ExceptionMessage": ""}).to_string(),
        );
        assert_eq!(fault.number, 404_103);
        let error = fault.into_error(Some("pi"));
        assert_eq!(
            (error.code(), error.exit_code()),
            ("hub-device-offline", exit::UNREACHABLE)
        );
    }

    #[test]
    fn the_old_shape_is_read() {
        let fault = fault(
            401,
            r#"{"Message":"ErrorCode:IotHubUnauthorizedAccess;Unauthorized","ExceptionMessage":"Tracking ID:1"}"#,
        );
        assert_eq!(
            (fault.name.as_str(), fault.message.as_str()),
            ("IotHubUnauthorizedAccess", "Unauthorized")
        );
        let error = fault.into_error(None);
        assert_eq!(
            (error.code(), error.exit_code()),
            ("hub-unauthorized", exit::REFUSED)
        );
        assert!(
            error
                .to_string()
                .contains("Unauthorized (IotHubUnauthorizedAccess)")
        );
    }

    #[test]
    fn plain_members_text_and_nothing_are_read() {
        assert_eq!(
            fault(400, r#"{"errorCode":400004,"message":"bad"}"#).said(),
            "bad (400004)"
        );
        assert_eq!(fault(400, r#"{"Message":"just text"}"#).said(), "just text");
        assert_eq!(fault(502, "<html>").said(), "no reason given");
    }

    #[test]
    fn the_header_s_name_and_retry_after_count() {
        let mut headers = HeaderMap::new();
        headers.insert("iothub-errorcode", "DeviceNotOnline".parse().unwrap());
        headers.insert("retry-after", "7".parse().unwrap());
        let fault = Fault::read(StatusCode::NOT_FOUND, &headers, b"");
        assert_eq!(fault.retry_after, Some(Duration::from_secs(7)));
        assert_eq!(fault.into_error(Some("pi")).code(), "hub-device-offline");
    }

    #[test]
    fn each_status_has_its_error() {
        for (status, device, code, exit) in [
            (404, Some("pi"), "hub-device-not-found", exit::USAGE),
            (404, None, "hub-unexpected-answer", exit::UNREACHABLE),
            (400, Some("pi"), "hub-bad-request", exit::USAGE),
            (403, Some("pi"), "hub-forbidden", exit::REFUSED),
            (429, Some("pi"), "hub-throttled", exit::UNREACHABLE),
            (504, Some("pi"), "hub-device-no-answer", exit::UNREACHABLE),
            (504, None, "hub-unavailable", exit::UNREACHABLE),
            (500, Some("pi"), "hub-unavailable", exit::UNREACHABLE),
            (418, None, "hub-unexpected-answer", exit::UNREACHABLE),
        ] {
            let error = fault(status, "{}").into_error(device);
            assert_eq!((error.code(), error.exit_code()), (code, exit), "{status}");
        }
    }

    proptest! {
        #[test]
        fn no_body_makes_it_panic(status in 400_u16..600, body in any::<Vec<u8>>(), text in any::<String>()) {
            let _ = Fault::read(StatusCode::from_u16(status).unwrap(), &HeaderMap::new(), &body).into_error(Some("d"));
            let _ = fault(status, &json!({"Message": text, "errorCode": text}).to_string()).said();
        }
    }
}
