//! SPEAKS IoT Hub. Pure but for [`session`], which holds the MQTT connection and is the only user of
//! `rumqttc`: everything else takes bytes and times and gives back values.
//!
//! - [`credentials`]: the connection string, the CONNECT user name and password.
//! - [`sas`]: symmetric keys and the tokens that they sign.
//! - [`provisioning`]: how the provisioning service is asked which hub is ours.
//! - [`topics`]: the topics of the hub's MQTT dialect.
//! - [`method`]: a direct method's name and payload to a command, and the answers.
//! - [`twin`]: the reported section from a status, and the hub's merge rules.
//! - [`desired`]: the desired property `firmware`, and when it starts an update.
//! - [`reporter`]: when which patch is sent, so that the last word of every update arrives.
//! - [`session`]: the connection itself.
//! - [`backoff`], [`percent`]: small helpers of the above.

pub mod backoff;
pub mod credentials;
pub mod desired;
pub mod method;
pub mod percent;
pub mod provisioning;
pub mod reporter;
pub mod sas;
pub mod session;
pub mod topics;
pub mod twin;
