//! How the hub says no: one error for REST answers, twin answers over MQTT and the library.
//!
//! The numbers and names are IoT Hub's own. REST has two body shapes; both are made here, so that
//! every refusal of the emulator looks as the service SDKs expect it.

use serde_json::{Value, json};

use crate::clock;

/// A refusal with IoT Hub's status, number and name.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message} ({} {})", .kind.number(), .kind.name())]
pub struct HubError {
    kind: Kind,
    message: String,
    info: Option<Value>,
    retry_after: Option<u32>,
}

/// The refusals this emulator knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the names are IoT Hub's own")]
pub enum Kind {
    InvalidProtocolVersion,
    ArgumentInvalid,
    IotHubUnauthorizedAccess,
    DeviceModelMaxPropertiesExceeded,
    NotFound,
    DeviceNotFound,
    DeviceNotOnline,
    MethodNotAllowed,
    DeviceAlreadyExists,
    PreconditionFailed,
    MessageTooLarge,
    ThrottlingException,
    BadDeviceAnswer,
    GatewayTimeout,
    /// A status asked for by a fault such as `fail-twin-patches`.
    Injected(u16),
}

impl Kind {
    /// The HTTP status, also that of a twin answer.
    pub fn status(self) -> u16 {
        match self {
            Self::InvalidProtocolVersion | Self::ArgumentInvalid => 400,
            Self::IotHubUnauthorizedAccess => 401,
            Self::DeviceModelMaxPropertiesExceeded => 403,
            Self::NotFound | Self::DeviceNotFound | Self::DeviceNotOnline => 404,
            Self::MethodNotAllowed => 405,
            Self::DeviceAlreadyExists => 409,
            Self::PreconditionFailed => 412,
            Self::MessageTooLarge => 413,
            Self::ThrottlingException => 429,
            Self::BadDeviceAnswer => 502,
            Self::GatewayTimeout => 504,
            Self::Injected(status) => status,
        }
    }

    /// IoT Hub's six-digit number.
    pub fn number(self) -> u32 {
        match self {
            Self::InvalidProtocolVersion => 400_001,
            Self::ArgumentInvalid => 400_004,
            Self::IotHubUnauthorizedAccess => 401_002,
            Self::DeviceModelMaxPropertiesExceeded => 403_100,
            Self::NotFound => 404_000,
            Self::DeviceNotFound => 404_001,
            Self::DeviceNotOnline => 404_103,
            Self::MethodNotAllowed => 405_000,
            Self::DeviceAlreadyExists => 409_001,
            Self::PreconditionFailed => 412_001,
            Self::MessageTooLarge => 413_001,
            Self::ThrottlingException => 429_001,
            Self::BadDeviceAnswer => 502_000,
            Self::GatewayTimeout => 504_101,
            Self::Injected(429) => 429_001,
            Self::Injected(status) => u32::from(status) * 1000,
        }
    }

    /// IoT Hub's name, which goes in the header `iothub-errorcode`.
    pub fn name(self) -> &'static str {
        match self {
            Self::InvalidProtocolVersion => "InvalidProtocolVersion",
            Self::ArgumentInvalid => "ArgumentInvalid",
            Self::IotHubUnauthorizedAccess => "IotHubUnauthorizedAccess",
            Self::DeviceModelMaxPropertiesExceeded => "DeviceModelMaxPropertiesExceeded",
            Self::NotFound => "GenericNotFound",
            Self::DeviceNotFound => "DeviceNotFound",
            Self::DeviceNotOnline => "DeviceNotOnline",
            Self::MethodNotAllowed => "GenericMethodNotAllowed",
            Self::DeviceAlreadyExists => "DeviceAlreadyExists",
            Self::PreconditionFailed => "PreconditionFailed",
            Self::MessageTooLarge => "MessageTooLarge",
            Self::ThrottlingException => "ThrottlingException",
            Self::BadDeviceAnswer => "GenericBadGateway",
            Self::GatewayTimeout => "GatewayTimeout",
            Self::Injected(429) => "ThrottlingException",
            Self::Injected(_) => "InjectedFault",
        }
    }
}

impl HubError {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            info: None,
            retry_after: None,
        }
    }

    /// Tells the caller to come again in so many seconds.
    pub(crate) fn with_retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    pub(crate) fn with_info(mut self, info: Value) -> Self {
        self.info = Some(info);
        self
    }

    pub(crate) fn argument(message: impl Into<String>) -> Self {
        Self::new(Kind::ArgumentInvalid, message)
    }

    pub(crate) fn no_device(id: &str) -> Self {
        Self::new(
            Kind::DeviceNotFound,
            format!("The device '{id}' is not registered."),
        )
    }

    pub(crate) fn stale(what: &str) -> Self {
        Self::new(
            Kind::PreconditionFailed,
            format!("Precondition failed: {what} is not current; read it again."),
        )
    }

    /// What went wrong, in IoT Hub's terms.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// In how many seconds the caller may come again, if it is told.
    pub fn retry_after(&self) -> Option<u32> {
        self.retry_after
    }

    /// The text for people.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The body of a twin answer, and the inner document of a REST error.
    pub(crate) fn document(&self) -> Value {
        let mut document = json!({
            "errorCode": self.kind.number(),
            "trackingId": tracking_id(),
            "message": self.message,
            "timestampUtc": clock::stamp(),
        });
        if let Some(info) = &self.info {
            document["info"] = info.clone();
        }
        document
    }

    /// The body of a REST error: JSON in a string in JSON, or the older text for the few refusals
    /// that still use it.
    pub(crate) fn rest_body(&self) -> Value {
        match self.kind {
            Kind::IotHubUnauthorizedAccess | Kind::InvalidProtocolVersion => json!({
                "Message": format!("ErrorCode:{};{}", self.kind.name(), self.message),
                "ExceptionMessage": format!("Tracking ID:{}", tracking_id()),
            }),
            _ => json!({ "Message": self.document().to_string(), "ExceptionMessage": "" }),
        }
    }
}

fn tracking_id() -> String {
    format!(
        "{}-G:0-TimeStamp:{}",
        clock::new_tracking_id(),
        clock::tracking_stamp()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rest_error_is_json_in_a_string_in_json() {
        let body = HubError::no_device("pi").rest_body();
        let inner: Value = serde_json::from_str(body["Message"].as_str().unwrap()).unwrap();
        assert_eq!(inner["errorCode"], 404_001);
        assert_eq!(body["ExceptionMessage"], "");
    }

    #[test]
    fn an_unauthorised_call_gets_the_old_shape() {
        let error = HubError::new(Kind::IotHubUnauthorizedAccess, "Unauthorized");
        assert_eq!(
            error.rest_body()["Message"],
            "ErrorCode:IotHubUnauthorizedAccess;Unauthorized"
        );
    }

    #[test]
    fn the_status_is_the_head_of_the_number() {
        for kind in [
            Kind::ArgumentInvalid,
            Kind::DeviceNotOnline,
            Kind::GatewayTimeout,
            Kind::ThrottlingException,
            Kind::Injected(429),
            Kind::Injected(503),
        ] {
            assert_eq!(kind.number() / 1000, u32::from(kind.status()));
        }
    }
}
