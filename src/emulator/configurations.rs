//! Configurations (automatic device management): desired properties for all devices that meet a condition.
//!
//! [`plan`] decides, as pure code, which configuration a twin gets and what has to be written for that;
//! [`board`] holds the configurations and works through the devices; [`routes`] is their REST side.
//!
//! - Of the configurations that target a device the one with the highest priority is applied, of equal ones
//!   the newest. The others wait with the status `Targeted`.
//! - A device that is targeted no longer, or by another one, loses what the configuration had set.
//! - What is applied stays applied: a service tool that changes it meanwhile is overruled.

pub(crate) mod board;
mod configuration;
mod plan;
pub(crate) mod routes;

pub(crate) use board::ConfigurationBoard;
pub(crate) use plan::Applied;
