//! Bad input with the real programs: each case gets a coded error in the twin, in the journal and on the
//! command line, and leaves the running slot and the U-Boot environment byte for byte as they were.

mod support;

#[path = "bad_input/environment.rs"]
mod environment;
#[path = "bad_input/images.rs"]
mod images;
#[path = "bad_input/payloads.rs"]
mod payloads;
#[path = "bad_input/scene.rs"]
mod scene;
#[path = "bad_input/secrets.rs"]
mod secrets;
#[path = "bad_input/server.rs"]
mod server;
#[path = "bad_input/slots.rs"]
mod slots;
#[path = "bad_input/state_directory.rs"]
mod state_directory;
