//! A shell inside of an emulated machine, as `tests/vm/guest/look.socket` gives it to whoever connects.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    time::Duration,
};

/// Where the guest listens.
pub(crate) const PORT: u16 = 7777;

/// Longest wait for the next word of the shell.
const PATIENCE: Duration = Duration::from_secs(120);

/// A port out here that nobody listens on, for QEMU to forward to [`PORT`].
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("it has an address").port()
}

/// What these shell commands print in the guest behind `port`; `None` while nobody is there to run them, or when it
/// goes down meanwhile.
pub(crate) fn ask(port: u16, commands: &str) -> Option<String> {
    const END: &str = "== that is all ==\n";
    let mut shell = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
    shell.set_read_timeout(Some(PATIENCE)).ok()?;
    let script = format!("{{ {commands}\n}} </dev/null 2>&1\nprintf '{END}'\nexit\n");
    shell.write_all(script.as_bytes()).ok()?;
    let mut said = Vec::new();
    // One that breaks off lacks the end.
    let _ = shell.read_to_end(&mut said);
    let said = String::from_utf8_lossy(&said);
    said.strip_suffix(END).map(str::to_owned)
}
