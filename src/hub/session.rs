//! The MQTT connection.
