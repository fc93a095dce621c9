//! How devices get into the emulated hub and what it does to their connections, packet by packet over real
//! TLS: identities, sessions, provisioning, throttles, faults. It is a test of the emulator that our other
//! tests stand on.

#[path = "emulator_access/client.rs"]
mod client;
#[path = "emulator_access/dps.rs"]
mod dps;
#[path = "emulator_access/identity.rs"]
mod identity;
#[path = "emulator_access/sessions.rs"]
mod sessions;
