//! Any image into any slot beside any running one: the right bytes, and no more from the network than what neither
//! slot holds. Random content, put together from a few pieces so that it is shared; the installer itself, without
//! hub and bootloader. `INSTALL_ANY_SEED` repeats a run.

mod support;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::Arc,
};

use fwupdated::{
    config::{BootloaderConfig, BootloaderKind, PlainTrust, SlotsConfig, TrustConfig},
    daemon::{
        install::{Inspected, Installer},
        meter::{Meter, cancellation},
    },
    image::{
        Header, ManifestFrame, Missing, Plan,
        cut::is_zeros,
        find::{CutPiece, Finder, PieceCutter},
    },
    platform::{fetch::Fetcher, slots::Slots},
    update::{
        machine::{Job, Prepared, Written},
        request::{Origin, Request},
        slot::Slot,
        status::Times,
    },
};
use support::{
    image_server::ImageServer,
    random::{Random, seed},
    rig::{COMPATIBLE, build_image, make_key},
};

const SLOT: usize = 10 << 20;
const SCENES: u32 = 12;
/// What lies at its place in a slot that a sample takes for another is found only where cuts agree again.
const UNSEEN: u64 = 256 << 10;

/// Bytes put together from pieces that others may have too, and zeros. All pieces consist of the same words, so each
/// chunk is compressed by what is before it.
fn content(random: &mut Random) -> Vec<u8> {
    let word = |number: u64| {
        let mut noise = Random(1 + number);
        (0..4).flat_map(move |_| noise.next().to_le_bytes())
    };
    let mut bytes = Vec::new();
    let length = 512 * (1 + random.below(SLOT as u64 / 512)) as usize;
    while bytes.len() < length {
        let size = 1 + random.below(300_000) as usize;
        match random.below(10) {
            0 => bytes.resize(bytes.len() + size, 0),
            piece => {
                let mut noise = Random(piece);
                let words = (0..size.div_ceil(32)).flat_map(|_| word(noise.below(1024)));
                bytes.extend(words.take(size));
            }
        }
    }
    bytes.truncate(length);
    bytes
}

fn put(path: &Path, content: &[u8]) {
    let mut slot = content.to_vec();
    slot.resize(SLOT, 0);
    fs::write(path, slot).unwrap();
}

/// Bytes of the payload that a device needs which finds what is in place and what the running slot holds.
fn needed(header: &Header, target: &[u8], running: &[u8]) -> u64 {
    let mut missing = Missing::all(header.index().len());
    for (number, chunk) in header.chunks().enumerate() {
        let start = chunk.raw_offset as usize;
        let there = target.get(start..start + chunk.raw_len as usize);
        if chunk.zeros
            || there.is_some_and(|raw| fwupdated::image::check_digest(&chunk, raw).is_ok())
        {
            missing.done(number);
        }
    }
    let mut finder = Finder::new(header.chunks().enumerate(), &missing);
    let mut cutter = PieceCutter::new(&header.manifest().chunking, 0);
    let mut piece = CutPiece::default();
    piece.buffer.resize(cutter.room(), 0);
    piece.buffer.extend_from_slice(running);
    piece.buffer.resize(cutter.room() + SLOT, 0);
    piece.last = true;
    cutter.cut(&mut piece);
    for (offset, bytes) in piece.chunks() {
        finder.look(bytes, offset);
    }
    for (number, _) in finder.found() {
        missing.done(number);
    }
    Plan::new(header.chunks(), &missing, true).bytes()
}

/// A device's folder, and what installs there.
struct Bench {
    dir: PathBuf,
    key: PathBuf,
    server: ImageServer,
}

impl Bench {
    fn installer(&self, meter: &Arc<Meter>, cancel: fwupdated::daemon::meter::Cancel) -> Installer {
        let fetch = self.server.fetch_config();
        let trust = TrustConfig {
            key_dirs: vec![self.dir.join("keys.d")],
            revoked_dirs: Vec::new(),
            threshold: 1,
            plain: PlainTrust::Digest,
            allow_unsigned: false,
            allow_downgrade: false,
            compatible: vec![COMPATIBLE.to_owned()],
        };
        Installer {
            fetcher: Fetcher::new(&fetch).unwrap(),
            connections: fetch.connections,
            installed: None,
            trust,
            meter: meter.clone(),
            cancel,
            inspected: Inspected::default(),
            file: fwupdated::daemon::source::local::HandedOver::default(),
        }
    }

    /// Installs `image` beside `running` over `target`; what it cost and what it had to cost, in bytes.
    fn play(&self, [running, target, image]: [&[u8]; 3]) -> (u64, u64) {
        let path = |name: &str| self.dir.join(name);
        put(&path("a"), running);
        put(&path("b"), target);
        fs::write(path("booted"), "slot=a\nboot_id=1\n").unwrap();
        let slots = SlotsConfig {
            a: path("a").display().to_string(),
            b: path("b").display().to_string(),
            boot: None,
        };
        let bootloader = BootloaderConfig {
            variables: fwupdated::config::BootVariables::Fwupdated,
            partitions: [2, 3],
            mark_file: None,
            kind: BootloaderKind::File,
            env_config: PathBuf::new(),
            lock_file: PathBuf::new(),
            tries: 3,
            autoboot: PathBuf::new(),
            device_tree: PathBuf::new(),
            booted_file: Some(path("booted")),
            reboot_command: None,
        };
        let slot = Slots::open(&slots, &bootloader)
            .unwrap()
            .inactive()
            .unwrap();
        let built = build_image(&self.dir, &self.key, "1.1.0", image.to_vec(), &[]);
        self.server.put("/image", built.file.as_path());
        let (meter, (_canceller, cancel)) = (Arc::new(Meter::default()), cancellation());
        let installer = self.installer(&meter, cancel);
        let request = Request::new(self.server.url("/image").parse().unwrap(), Origin::Method);
        let (_, facts) = installer.inspect(&request).unwrap();
        let before = meter.progress().bytes_downloaded;
        let prepared = Prepared {
            job: Job {
                id: "any".to_owned(),
                request,
                target: Slot::B,
                from_version: None,
                times: Times::default(),
                consent: fwupdated::update::policy::Consent::default(),
            },
            image: facts,
        };
        let content = installer.write(&prepared, &slot).unwrap();
        let fetched = meter.progress().bytes_downloaded - before;
        let Prepared { job, image: facts } = prepared;
        let written = Written {
            job,
            image: facts,
            content,
        };
        installer.verify(&written, &slot).unwrap();
        let now = fs::read(path("b")).unwrap();
        assert!(now[..image.len()] == *image, "other bytes");
        let behind = &now[image.len()..];
        let old = target.get(image.len()..).unwrap_or_default();
        assert!(
            behind.starts_with(old) && is_zeros(&behind[old.len()..]),
            "bytes behind the image"
        );
        let mut file = File::open(&built.file).unwrap();
        let frame = ManifestFrame::read(&mut file).unwrap();
        let header = frame
            .accept_unsigned()
            .unwrap()
            .read_index(&mut file)
            .unwrap();
        (fetched, needed(&header, target, running))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_image_goes_into_any_slot_for_no_more_than_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let key = make_key(dir.path());
    fs::create_dir(dir.path().join("keys.d")).unwrap();
    let public = format!("{}.pub", key.display());
    fs::copy(public, dir.path().join("keys.d/operator.pub")).unwrap();
    let bench = Bench {
        dir: dir.path().to_owned(),
        key,
        server: ImageServer::start(),
    };
    let seed = seed("INSTALL_ANY_SEED");
    eprintln!("INSTALL_ANY_SEED={seed}");
    let scenes = move || {
        let mut random = Random(seed);
        for number in 0..SCENES {
            let contents = [(); 3].map(|()| content(&mut random));
            let (fetched, needed) = bench.play(contents.each_ref().map(Vec::as_slice));
            assert!(
                fetched <= needed + UNSEEN,
                "scene {number}: {fetched} bytes, {needed} are missing"
            );
        }
    };
    tokio::task::spawn_blocking(scenes).await.unwrap();
}
