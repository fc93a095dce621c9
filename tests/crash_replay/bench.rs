//! What all devices here share: the updates that they are asked for, and where the images lie.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use fwupdated::update::{slot::Slot, status::Stage};

use super::{
    disk::Disk,
    folder::Files,
    script::Script,
    uboot::{self, Variables},
    world::{Job, World},
};
use crate::support::{
    image_server::ImageServer,
    rig::{Image, Site, build_image, fwupdatectl, make_key, noise, run},
};

/// The version that shares most of its bytes with what its slot holds.
const SIMILAR: &str = "3.0.0";
/// The one that is not healthy.
pub(crate) const SICK: &str = "4.0.0";
/// The one whose slot never comes up.
pub(crate) const DEAD: &str = "5.0.0";
/// The one that comes without a manifest, signed beside it.
const PLAIN: &str = "6.0.0";

/// An update, and how it ends when nothing comes between.
pub(crate) struct Plan {
    version: &'static str,
    target: Slot,
    end: (Stage, Option<&'static str>),
}

impl Plan {
    const fn completes(version: &'static str, target: Slot) -> Self {
        let end = (Stage::ApplyComplete, None);
        Self {
            version,
            target,
            end,
        }
    }

    const fn fails(version: &'static str, target: Slot, code: &'static str) -> Self {
        let end = (Stage::ApplyFailed, Some(code));
        Self {
            version,
            target,
            end,
        }
    }
}

/// Each is written to the slot that does not run then.
pub(crate) const PLANS: [Plan; 5] = [
    Plan::completes("2.0.0", Slot::B),
    Plan::completes(SIMILAR, Slot::A),
    Plan::fails(SICK, Slot::B, "health-check-failed"),
    Plan::fails(DEAD, Slot::B, "trial-boot-failed"),
    Plan::completes(PLAIN, Slot::B),
];

/// What all boards here share: the updates, and where their images lie.
pub(crate) struct Bench {
    /// What the devices are meant to hold.
    pub(crate) world: World,
    server: ImageServer,
    /// What each device is installed with.
    pub(crate) site: Site,
    images: Vec<Image>,
    /// Boots of a trial.
    pub(crate) tries: u8,
}

impl Bench {
    /// The first `count` of the [`PLANS`] on boards with this boot script, with images of `size` bytes for slots that are a
    /// fourth larger, and so many boots of a trial.
    pub(crate) fn new(
        dir: &Path,
        script: &'static Script,
        size: usize,
        tries: u8,
        count: usize,
    ) -> Self {
        fwupdated::platform::tls::install_provider();
        fs::create_dir_all(dir).unwrap();
        let server = ImageServer::start();
        let key = make_key(dir);
        let slot_size = size + size / 4;
        let factory = [noise(slot_size, 11), noise(slot_size, 12)];
        let mut images = Vec::new();
        for (plan, seed) in PLANS[..count].iter().zip(21..) {
            let mut raw = noise(size, seed);
            if plan.version == SIMILAR {
                raw = factory[usize::from(plan.target == Slot::B)][..size].to_vec();
                for place in (0..size).step_by(size / 8) {
                    raw[place..place + 6000].fill(0x33);
                }
            }
            let mut image = build_image(dir, &key, plan.version, raw, &[]);
            let path = format!("/{}", plan.version);
            if plan.version == PLAIN {
                image.file = pack(dir, &key, &image.raw);
                let signature = format!("{}.minisig", image.file.display());
                server.put(&format!("{path}.minisig"), Path::new(&signature));
            }
            server.put(&path, image.file.as_path());
            images.push(image);
        }
        let jobs = images.iter().zip(PLANS).map(|(image, plan)| Job {
            id: format!("to-{}", plan.version),
            target: plan.target,
            image: image.raw.clone(),
            end: plan.end,
        });
        let world = World {
            script,
            jobs: jobs.collect(),
            factory,
        };
        let site = Site {
            // No hub: what is told goes over the control socket, in words that the recorder understands.
            connection_string: "HostName=localhost;DeviceId=pi-01;SharedAccessKey=bm9uZQ=="
                .to_owned(),
            hub_ca: None,
            mqtt_port: 1,
            hub: String::new(),
            image_ca: server.ca_file(),
            key,
        };
        Self {
            world,
            server,
            site,
            images,
            tries,
        }
    }

    /// A device as it leaves the factory.
    pub(crate) fn factory(&self) -> Disk {
        let [a, b] = &self.world.factory;
        let mut variables = Variables::new();
        // Each of our variables in a sector of its own, so that a torn write can part them.
        for name in ["bootcmd", "fwupdated_m", "fwupdated_t", "fwupdated_trial_m"] {
            variables.insert(name.to_owned(), name.repeat(1000 / name.len()));
        }
        let script = self.world.script;
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        variables.extend(script.factory.iter().map(owned));
        // Slot b ran before slot a was installed: so says the older copy. The counter of the copies wraps around soon.
        let mut before = variables.clone();
        before.extend(script.before.iter().map(owned));
        let env = [uboot::encode(&variables, 254), uboot::encode(&before, 253)].concat();
        Disk::new([a.clone(), b.clone()], env, Files::new())
    }

    /// Where the image of `job` lies.
    pub(crate) fn uri(&self, job: &Job) -> String {
        let version = job.id.strip_prefix("to-").expect("so they are named");
        self.server.url(&format!("/{version}"))
    }

    /// Whether this is the image of `version`.
    pub(crate) fn is(&self, version: &str, holds: impl Fn(&[u8]) -> bool) -> bool {
        let image = self.images.iter().find(|image| image.version == version);
        image.is_some_and(|image| holds(&image.raw))
    }
}

/// `raw` packed as any tool does it, with a signature beside it.
fn pack(dir: &Path, key: &Path, raw: &[u8]) -> PathBuf {
    let (file, packed) = (dir.join("plain.img"), dir.join("plain.img.gz"));
    fs::write(&file, raw).unwrap();
    run(Command::new("gzip").arg("-1").arg(&file));
    run(fwupdatectl()
        .args(["image", "sign"])
        .arg(&packed)
        .arg("--key")
        .arg(key));
    packed
}
