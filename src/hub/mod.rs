//! SPEAKS IoT Hub. Pure but for [`session`], which holds the MQTT connection and is the only user of
//! `rumqttc`.
pub mod session;
