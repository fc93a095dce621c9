//! A system bus of a test's own, where it can play systemd.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

/// A running `dbus-daemon`.
pub(crate) struct Bus {
    daemon: Child,
    /// For `DBUS_SYSTEM_BUS_ADDRESS`.
    pub(crate) address: String,
}

impl Drop for Bus {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

impl Bus {
    /// Starts it, with its socket and configuration in `dir`.
    pub(crate) fn start(dir: &Path) -> Self {
        Self::start_at(dir, "bus")
    }

    /// The same, with another name for the socket.
    pub(crate) fn start_at(dir: &Path, name: &str) -> Self {
        let config = dir.join(format!("{name}.conf"));
        let text = format!(
            "<busconfig><listen>unix:path={}/{name}</listen><policy context=\"default\"><allow user=\"*\"/>\
             <allow own=\"*\"/><allow send_destination=\"*\"/><allow receive_sender=\"*\"/></policy></busconfig>",
            dir.display()
        );
        fs::write(&config, text).unwrap();
        let mut daemon = Command::new("dbus-daemon")
            .arg(format!("--config-file={}", config.display()))
            .args(["--nofork", "--print-address"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("dbus-daemon starts; tests/setup.sh installs it");
        let mut address = String::new();
        let said = daemon.stdout.take().expect("it is piped");
        BufReader::new(said).read_line(&mut address).unwrap();
        let address = address.trim().to_owned();
        Self { daemon, address }
    }

    /// Serves `interface` at `path` under `name`, as long as the connection is kept.
    pub(crate) async fn serve<I: zbus::object_server::Interface>(
        &self,
        name: &'static str,
        path: &'static str,
        interface: I,
    ) -> zbus::Connection {
        let builder = zbus::connection::Builder::address(self.address.as_str());
        let builder = builder.name(name).serve_at(path, interface);
        builder.build().await.expect("the bus takes it")
    }
}
