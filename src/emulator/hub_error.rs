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
    InvalidOperation,
    ArgumentInvalid,
    DeviceDefinedMultipleTimes,
    BulkRegistryOperationFailure,
    RequestTimedOut,
    IotHubUnauthorizedAccess,
    DeviceModelMaxPropertiesExceeded,
    DeviceMaximumInflightMethodExceeded,
    NotFound,
    DeviceNotFound,
    JobNotFound,
    ModuleNotFound,
    DeviceNotOnline,
    MethodNotAllowed,
    Conflict,
    DeviceAlreadyExists,
    JobAlreadyExists,
    PreconditionFailed,
    MessageTooLarge,
    TooManyDevices,
    UnsupportedMediaType,
    ThrottlingMaxActiveJobCountExceeded,
    ServerError,
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
            Self::Injected(status) => status,
            // The number begins with it.
            named => u16::try_from(named.number() / 1000).unwrap_or(500),
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
            Self::InvalidOperation => 400_003,
            Self::DeviceDefinedMultipleTimes => 400_011,
            Self::BulkRegistryOperationFailure => 400_013,
            Self::RequestTimedOut => 400_024,
            Self::DeviceMaximumInflightMethodExceeded => 403_800,
            Self::JobNotFound => 404_002,
            Self::ModuleNotFound => 404_010,
            Self::Conflict => 409_000,
            Self::JobAlreadyExists => 409_104,
            Self::TooManyDevices => 413_002,
            Self::UnsupportedMediaType => 415_000,
            Self::ThrottlingMaxActiveJobCountExceeded => 429_004,
            Self::ServerError => 500_001,
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
            Self::InvalidOperation => "InvalidOperation",
            Self::DeviceDefinedMultipleTimes => "DeviceDefinedMultipleTimes",
            Self::BulkRegistryOperationFailure => "BulkRegistryOperationFailure",
            Self::RequestTimedOut => "RequestTimedOut",
            Self::DeviceMaximumInflightMethodExceeded => "DeviceMaximumInflightMethodExceeded",
            Self::JobNotFound => "JobNotFound",
            Self::ModuleNotFound => "ModuleNotFound",
            Self::Conflict => "GenericConflict",
            Self::JobAlreadyExists => "JobAlreadyExists",
            Self::TooManyDevices => "TooManyDevices",
            Self::UnsupportedMediaType => "GenericUnsupportedMediaType",
            Self::ThrottlingMaxActiveJobCountExceeded => "ThrottlingMaxActiveJobCountExceeded",
            Self::ServerError => "ServerError",
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
    /// that still use it. From that alone the Node.js service SDK makes its `DeviceNotFoundError`.
    pub(crate) fn rest_body(&self) -> Value {
        match self.kind {
            Kind::IotHubUnauthorizedAccess
            | Kind::InvalidProtocolVersion
            | Kind::DeviceNotFound
            | Kind::ThrottlingMaxActiveJobCountExceeded => json!({
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
        let body = HubError::stale("the etag").rest_body();
        let inner: Value = serde_json::from_str(body["Message"].as_str().unwrap()).unwrap();
        assert_eq!(inner["errorCode"], 412_001);
        assert_eq!(body["ExceptionMessage"], "");
    }

    #[test]
    fn an_unauthorised_call_and_an_unknown_device_get_the_old_shape() {
        let error = HubError::new(Kind::IotHubUnauthorizedAccess, "Unauthorized");
        assert_eq!(
            error.rest_body()["Message"],
            "ErrorCode:IotHubUnauthorizedAccess;Unauthorized"
        );
        assert_eq!(
            HubError::no_device("pi").rest_body()["Message"],
            "ErrorCode:DeviceNotFound;The device 'pi' is not registered."
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
