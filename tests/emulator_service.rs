//! The emulator's service side over real HTTPS, with devices over real MQTT.

#[path = "emulator_service/configurations.rs"]
mod configurations;
#[path = "emulator_service/errors.rs"]
mod errors;
#[path = "emulator_service/jobs.rs"]
mod jobs;
#[path = "emulator_service/methods.rs"]
mod methods;
#[path = "emulator_service/query.rs"]
mod query;
#[path = "emulator_service/registry.rs"]
mod registry;
#[path = "emulator_service/rig.rs"]
mod rig;
#[path = "emulator_service/twins.rs"]
mod twins;
