//! A cable between the device and its hub, with counters: a network namespace of its own for the device, joined by a pair
//! of virtual Ethernet cards. What passes is what would pass on a real network: segments of at most 1500 bytes, with
//! their IP and TCP headers, acknowledgements and TLS records. Nothing else does: no ARP, no IPv6 chatter.

use std::{
    fs::{self, File},
    ops::Sub,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, setns};

/// The hub's end, from the range for benchmarks (RFC 2544).
pub(crate) const HUB: &str = "198.18.77.1";
const DEVICE: &str = "198.18.77.2";
/// Ethernet's header, which the counters hold and the provider of a line does not count.
const ETHERNET: u64 = 14;
/// No packet for so long: what was going on is over.
const QUIET: Duration = Duration::from_millis(1200);

/// The cable. It goes with the value.
pub(crate) struct Wire {
    name: String,
}

/// What has passed, in IP packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Count {
    /// From the device.
    pub(crate) sent_packets: u64,
    pub(crate) sent_bytes: u64,
    /// To the device.
    pub(crate) received_packets: u64,
    pub(crate) received_bytes: u64,
}

impl Count {
    pub(crate) fn bytes(&self) -> u64 {
        self.sent_bytes + self.received_bytes
    }
}

impl Sub for Count {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            sent_packets: self.sent_packets - before.sent_packets,
            sent_bytes: self.sent_bytes - before.sent_bytes,
            received_packets: self.received_packets - before.received_packets,
            received_bytes: self.received_bytes - before.received_bytes,
        }
    }
}

impl Wire {
    /// Lays the cable; the reason when that is not possible, usually for want of root.
    pub(crate) fn lay() -> Result<Self, String> {
        let wire = Self {
            name: format!("fwu{}", std::process::id()),
        };
        let name = &wire.name;
        let steps = [
            format!("netns add {name}"),
            format!(
                "link add {name} address 02:00:00:00:00:01 type veth peer name eth0 address 02:00:00:00:00:02 netns {name}"
            ),
            format!("link set dev {name} addrgenmode none"),
            format!("-n {name} link set dev eth0 addrgenmode none"),
            format!("addr add {HUB}/30 dev {name}"),
            format!("-n {name} addr add {DEVICE}/30 dev eth0"),
            // Without this the kernel hands over bundles of segments and counts them as one.
            format!("link set dev {name} gso_max_segs 1 up"),
            format!("-n {name} link set dev eth0 gso_max_segs 1 up"),
            format!("-n {name} link set dev lo up"),
            format!("neigh replace {DEVICE} lladdr 02:00:00:00:00:02 nud permanent dev {name}"),
            format!(
                "-n {name} neigh replace {HUB} lladdr 02:00:00:00:00:01 nud permanent dev eth0"
            ),
        ];
        for step in steps {
            ip(&step)?;
        }
        Ok(wire)
    }

    /// The words that start a program at the device's end.
    pub(crate) fn launcher(&self) -> Vec<String> {
        ["ip", "netns", "exec", &self.name]
            .map(str::to_owned)
            .to_vec()
    }

    /// Does `work` on a thread at the device's end; sockets that it opens, and threads that it starts, are there too.
    pub(crate) fn at_the_device<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/run/netns/{}", self.name)).unwrap();
        thread::scope(|scope| {
            let there = scope.spawn(|| {
                setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            there.join().unwrap()
        })
    }

    /// What has passed so far.
    pub(crate) fn count(&self) -> Count {
        let counter = |name: &str| -> u64 {
            let file = format!("/sys/class/net/{}/statistics/{name}", self.name);
            fs::read_to_string(file).unwrap().trim().parse().unwrap()
        };
        // The hub's card receives what the device sends.
        let (sent_packets, received_packets) = (counter("rx_packets"), counter("tx_packets"));
        Count {
            sent_packets,
            sent_bytes: counter("rx_bytes") - ETHERNET * sent_packets,
            received_packets,
            received_bytes: counter("tx_bytes") - ETHERNET * received_packets,
        }
    }

    /// Waits until nothing has passed for a moment; what had passed by then.
    pub(crate) fn quiet(&self) -> Count {
        let (mut last, mut since) = (self.count(), Instant::now());
        while since.elapsed() < QUIET {
            thread::sleep(Duration::from_millis(20));
            let now = self.count();
            if now != last {
                (last, since) = (now, Instant::now());
            }
        }
        last
    }

    /// The next thing that passes, from its first packet to the silence after it.
    pub(crate) fn next(&self) -> Count {
        let before = self.quiet();
        while self.count() == before {
            thread::sleep(Duration::from_millis(20));
        }
        self.quiet() - before
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        // The cards go with the namespace.
        let _ = ip(&format!("netns del {}", self.name));
    }
}

fn ip(arguments: &str) -> Result<(), String> {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("`ip` (package iproute2) cannot be started: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(format!("`ip {arguments}` failed: {}", text.trim()))
}
