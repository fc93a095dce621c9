//! Updates one after the other, whatever the hub does meanwhile: those of the real daemon, with kills, and those
//! of simulated devices.

use std::{collections::BTreeMap, fs, sync::Arc, time::Duration};

use fwupdated::platform::tls;
use serde_json::json;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use crate::{
    fleet::device::{Fate, Tally},
    support::{
        random::Random,
        rig::{DEVICE, Device, Rig, fwupdatectl, noise, run},
    },
};

/// What the image holds, bytes.
const IMAGE: usize = 2 << 20;

/// Updates that were accepted, with the last word that each must have: what the twin has to show in the end.
pub(crate) type Expected = Vec<(String, String)>;

/// The real daemon and its owner.
pub(crate) struct Board {
    pub(crate) rig: Arc<Rig>,
    pub(crate) device: Device,
    pub(crate) expected: Expected,
    pub(crate) kills: u32,
    random: Random,
}

impl Board {
    /// A board that `rig` serves, connected.
    pub(crate) async fn start(rig: Arc<Rig>, random: Random) -> Self {
        tls::install_provider();
        run(fwupdatectl()
            .args(["image", "keygen", "--no-password", "--output"])
            .arg(rig.dir.join("foreign.key")));
        let dir = rig.dir.join("device");
        let health = format!(
            "[health]\nhook_dir = \"{}/health.d\"\ndeadline = \"4s\"\ninterval = \"300ms\"\nunits = []\n",
            dir.display()
        );
        let mut device = Device::new(&rig, &dir, 2 * IMAGE as u64, "1.0.0", &health);
        // glibc gives each thread a heap of its own, by chance, and keeps it: growth that is none of ours.
        device.launcher = ["env", "MALLOC_ARENA_MAX=1"].map(str::to_owned).to_vec();
        device.add_health_check("50-soak", &format!("test ! -e {}/unwell", dir.display()));
        device.boot();
        device.until_connected(&rig).await;
        Self {
            rig,
            device,
            expected: Vec::new(),
            kills: 0,
            random,
        }
    }

    /// One update of any kind, perhaps with kills.
    pub(crate) async fn any_update(&mut self) {
        let fate = match self.random.below(5) {
            0 => Fate::BadImage,
            1 => Fate::Unhealthy,
            _ => Fate::Complete,
        };
        let kills = self.random.below(3);
        self.update(fate, kills).await;
    }

    /// One update to its end on the device; the twin may learn of it later.
    pub(crate) async fn update(&mut self, fate: Fate, kills: u64) {
        let number = self.expected.len() + 1;
        let id = format!("soak-{number}");
        let foreign = self.rig.dir.join("foreign.key");
        let foreign = ["--key", foreign.to_str().unwrap()];
        let key: &[&str] = if fate == Fate::BadImage {
            &foreign
        } else {
            &[]
        };
        let raw = noise(IMAGE, number as u64);
        let image = self.rig.build(&format!("2.{number}.0"), raw, key);
        let unwell = self.device.dir.join("unwell");
        match fate {
            Fate::Unhealthy => fs::write(&unwell, "").unwrap(),
            Fate::Complete | Fate::BadImage => drop(fs::remove_file(&unwell)),
        }
        let before = self.device.running();
        let address = self.rig.serve(&image);
        self.ask(&id, &address).await;
        for _ in 0..kills {
            self.kill_at_random().await;
        }
        let what = format!("end of {id}");
        let idle = |device: &mut Device| (device.state() == "idle").then_some(());
        self.device.until(&what, idle).await;
        self.rig
            .server
            .remove(&format!("/rootfs-2.{number}.0.img.zst"));
        let (runs, log) = (self.device.running(), || self.device.log());
        if fate == Fate::Complete {
            assert!(
                runs != before && self.device.holds(runs, &image.raw),
                "{id}\n{}",
                log()
            );
        } else {
            assert_eq!(runs, before, "{id}\n{}", log());
        }
        self.expected.push((id, fate.word().to_owned()));
    }

    /// Calls the method until the device has taken the update. A caller who gets no answer, or a late one, looks whether
    /// it was heard.
    async fn ask(&mut self, id: &str, address: &str) {
        let payload = json!({"fwPackageUri": address, "updateId": id});
        let taken = format!("update {id}: ");
        let began = Instant::now();
        loop {
            let emulator = &self.rig.emulator;
            let call = emulator.invoke(DEVICE, "firmwareUpdate", payload.clone());
            if matches!(call.await, Ok(answer) if answer.status == 200) {
                return;
            }
            sleep(Duration::from_secs(1)).await;
            if self.device.log().contains(&taken) {
                return;
            }
            let log = || self.device.log();
            assert!(
                began.elapsed() < Duration::from_secs(120),
                "{id} is not taken\n{}",
                log()
            );
        }
    }

    async fn kill_at_random(&mut self) {
        let end = Instant::now() + Duration::from_millis(self.random.below(1200));
        while Instant::now() < end {
            self.device.follow_reboot();
            sleep(Duration::from_millis(10)).await;
        }
        self.device.kill();
        self.kills += 1;
        if self.device.reboot_is_asked() {
            self.device.boot();
        } else {
            self.device.start();
        }
    }
}

/// Runs updates on the simulated device `id` until `stop` is raised.
pub(crate) async fn simulated(
    rig: Arc<Rig>,
    id: String,
    tally: Arc<Tally>,
    mut random: Random,
    stop: watch::Receiver<bool>,
) -> Expected {
    let mut expected = Expected::new();
    while !*stop.borrow() {
        let number = expected.len() + 1;
        let fate = match random.below(5) {
            0 => Fate::BadImage,
            1 => Fate::Unhealthy,
            _ => Fate::Complete,
        };
        let update = format!("sim-{number}");
        let payload = json!({"fwPackageUri": fate.address(number), "updateId": update});
        // Busy with the one before, or not to be reached.
        while !tally.has_accepted(&id, &update) && !*stop.borrow() {
            let call = rig.emulator.invoke(&id, "firmwareUpdate", payload.clone());
            let _ = call.await;
            sleep(Duration::from_millis(200)).await;
        }
        if tally.has_accepted(&id, &update) {
            expected.push((update, fate.word().to_owned()));
        }
    }
    expected
}

/// How many updates ended with each word.
pub(crate) fn by_word<'a>(all: impl IntoIterator<Item = &'a Expected>) -> BTreeMap<&'a str, u32> {
    let mut words = BTreeMap::new();
    for (_, word) in all.into_iter().flatten() {
        *words.entry(word.as_str()).or_default() += 1;
    }
    words
}
