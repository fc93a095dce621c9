//! The scenes: each lets fwupdated and the other tools do the same work, and says what came of the targets.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::{
    Wish,
    board::{self, Board, Installed},
    measure::{Cost, Row, Slot, has, measure, output, run},
    pair,
    peers::{DECODES, Ground, HASHES, Peer, UPDATES, WHOLE},
    report::{Report, Table, Target},
    server::Server,
    support::{
        figures::{Figures, number},
        random::Random,
        rig::{Rig, fwupdatectl},
    },
    throttle::Throttle,
};

#[path = "memory.rs"]
mod memory;
#[path = "sizes.rs"]
mod sizes;
#[path = "updates.rs"]
mod updates;
#[path = "whole.rs"]
mod whole;

/// What `--only` takes.
pub(crate) const NAMES: &[&str] = &[
    "whole",
    "kill",
    "throttled",
    "updates",
    "same",
    "squashfs",
    "memory",
    "build",
];
const GIB: u64 = 1 << 30;
/// The default of `fwupdatectl image build`.
const LEVEL: i32 = 9;
/// The image of the old release.
const OLD_IMAGE: &str = "old.img.zst";

/// Everything that scenes work with.
pub(crate) struct Stage {
    wish: Wish,
    rig: Rig,
    server: Server,
    board: Board,
    old: PathBuf,
    /// The image of it, below `files`.
    old_image: &'static str,
    /// The releases that follow the old one, by name.
    new: Vec<(&'static str, PathBuf)>,
    noise: PathBuf,
    files: PathBuf,
    scratch: PathBuf,
    tools: PathBuf,
    /// Full installations, with read back.
    full: Vec<Cost>,
    /// Results.
    pub(crate) report: Report,
    /// Last, so that it goes when all that lies in it is closed.
    dir: TempDir,
}

impl Stage {
    /// Makes images, server, hub and device.
    pub(crate) async fn set(wish: &Wish) -> io::Result<Self> {
        let pairs = if wish.smoke {
            None
        } else {
            Some(wish.pairs.clone())
        };
        // The slots are as large as the images: not in /tmp, which may be memory.
        let dir = match &pairs {
            Some(folder) => TempDir::with_prefix_in("bench-", folder).map_err(|error| {
                let script = "tests/bench/pairs.sh";
                io::Error::other(format!(
                    "{}: {error}; the images are made by {script}",
                    folder.display()
                ))
            })?,
            None => TempDir::with_prefix("bench-install-")?,
        };
        let kept = pairs.clone().unwrap_or_else(|| dir.path().to_owned());
        let (files, scratch) = (kept.join("files"), dir.path().join("scratch"));
        fs::create_dir_all(&files)?;
        fs::create_dir_all(&scratch)?;
        let (old, new) = match &pairs {
            Some(folder) => {
                let new = ["v2r", "v2i"].map(|name| (name, folder.join(format!("{name}.img"))));
                (folder.join("v1.img"), new.to_vec())
            }
            None => small_pair(dir.path())?,
        };
        for image in new.iter().map(|(_, image)| image).chain([&old]) {
            if !image.is_file() {
                return Err(io::Error::other(format!(
                    "{} is missing; make it with tests/bench/pairs.sh {}",
                    image.display(),
                    kept.display()
                )));
            }
        }
        let size = fs::metadata(&old)?.len();
        let noise = dir.path().join("noise.img");
        make_noise(&noise, size, 3)?;
        let rig = Rig::start(&dir.path().join("rig")).await;
        let server = Server::start(&files)?;
        let slots = ["slot-a", "slot-b"].map(|name| Slot::new(&dir.path().join(name), size, false));
        let [a, b] = slots;
        let (a, b) = (a?, b?);
        a.fill(&noise)?;
        let board = Board::new(&rig, &dir.path().join("device"), [a, b]).await?;
        let tools = kept.join("tools");
        let wish = Wish {
            runs: if wish.smoke { 1 } else { wish.runs },
            ..wish.clone()
        };
        Ok(Self {
            wish,
            rig,
            server,
            board,
            old,
            old_image: OLD_IMAGE,
            new,
            noise,
            files,
            scratch,
            tools,
            full: Vec::new(),
            report: Report::default(),
            dir,
        })
    }

    /// All scenes, in an order in which each finds the device as it needs it.
    pub(crate) async fn play(&mut self) -> io::Result<()> {
        self.images()?;
        if self.wants("whole") {
            self.whole().await?;
        }
        if self.wants("kill") {
            self.kill().await?;
        }
        if self.wants("throttled") {
            self.throttled().await?;
        }
        if self.wants("updates") || self.wants("same") {
            self.board
                .live_on(&self.rig, &self.server.url(OLD_IMAGE))
                .await?;
        }
        if self.wants("updates") {
            for index in 0..self.new.len() {
                self.updates(index).await?;
            }
        }
        if self.wants("same") {
            self.same().await?;
        }
        if self.wants("squashfs") && !self.wish.smoke {
            self.squashfs().await?;
        }
        if self.wants("memory") {
            self.memory().await?;
        }
        Ok(())
    }

    fn wants(&self, scene: &str) -> bool {
        self.wish.only.is_empty() || self.wish.only.iter().any(|name| name == scene)
    }

    fn ours(&self, index: usize) -> PathBuf {
        self.files.join(format!("{}.img.zst", self.new[index].0))
    }

    fn url(&self, index: usize) -> String {
        self.server.url(&format!("{}.img.zst", self.new[index].0))
    }

    /// A figure that takes long to make: as it was kept in `file`, else what `make` gives, which is kept then.
    fn kept(
        &mut self,
        file: &str,
        make: impl FnOnce(&mut Self) -> io::Result<Option<u64>>,
    ) -> io::Result<Option<u64>> {
        let kept = self.files.join(file);
        let text = fs::read_to_string(&kept).unwrap_or_default();
        if let Ok(figure) = text.trim().parse() {
            return Ok(Some(figure));
        }
        let made = make(self)?;
        if let Some(figure) = made {
            fs::write(kept, figure.to_string())?;
        }
        Ok(made)
    }

    /// The length of what `zstd` makes of `from` with these options.
    fn compressed_size(&self, options: &[&str], from: &Path) -> io::Result<u64> {
        let to = self.scratch.join("slow.zst");
        run(Command::new("zstd")
            .args(["-q", "-f"])
            .args(options)
            .arg(from)
            .arg("-o")
            .arg(&to))?;
        let size = fs::metadata(&to)?.len();
        fs::remove_file(&to)?;
        Ok(size)
    }

    fn ground(&self, index: usize) -> io::Result<(PathBuf, &'static str)> {
        let name = self.new[index].0;
        let files = self.files.join(name);
        fs::create_dir_all(&files)?;
        Ok((files, name))
    }

    /// Builds the images; how long that takes, and how large they are.
    fn images(&mut self) -> io::Result<()> {
        board::build(
            &self.rig,
            &self.old,
            "1.1.0",
            &self.files.join(OLD_IMAGE),
            &["--level", "1"],
        )?;
        let mut ours = Row {
            tool: "fwupdatectl image build".to_owned(),
            ..Row::default()
        };
        let began = Instant::now();
        for (index, (_, raw)) in self.new.iter().enumerate() {
            let to = self.ours(index);
            let began = Instant::now();
            board::build(&self.rig, raw, &format!("2.{index}.0"), &to, &[])?;
            let wall = began.elapsed().as_secs_f64();
            if index == 0 {
                ours.runs.push(Cost {
                    wall,
                    ..Cost::default()
                });
                ours.note = format!("{} bytes", fs::metadata(&to)?.len());
            }
        }
        println!(
            "images built in {} s",
            number(began.elapsed().as_secs_f64())
        );
        if !self.wants("build") || self.wish.smoke {
            return Ok(());
        }
        self.sizes(ours)
    }
}

/// One run of whatever is measured.
impl Stage {
    /// One run of fwupdated on a target that holds noise.
    async fn install(
        &mut self,
        index: usize,
        content: Option<&Path>,
        kill: Option<Duration>,
        group: Option<&Path>,
    ) -> io::Result<Installed> {
        let content = content.unwrap_or(&self.noise);
        self.board.target().fill(content)?;
        let url = self.url(index);
        let installed = self
            .board
            .install(&self.rig, &self.server, &url, kill, group)
            .await?;
        if self.board.target().holds(&self.new[index].1)? {
            Ok(installed)
        } else {
            Err(io::Error::other(
                "fwupdated: the slot does not hold the image afterwards",
            ))
        }
    }

    /// Those of `peers` that can work here, as empty rows.
    fn cast(
        &mut self,
        peers: &'static [Peer],
        index: usize,
    ) -> io::Result<Vec<(&'static Peer, Row)>> {
        let mut cast = Vec::new();
        // In a smoke test only what every machine has.
        let peers = if self.wish.smoke { &peers[..1] } else { peers };
        for peer in peers {
            let (files, name) = self.ground(index)?;
            match peer.prepare(&self.on(&files, index, name)) {
                Ok(()) => cast.push((peer, peer.row())),
                Err(reason) => self.report.skip(format!("{}: {reason}", peer.name)),
            }
        }
        Ok(cast)
    }

    fn on<'a>(&'a self, files: &'a Path, index: usize, name: &'a str) -> Ground<'a> {
        Ground {
            old: &self.old,
            new: &self.new[index].1,
            files,
            folder: name,
            scratch: &self.scratch,
            tools: &self.tools,
            server: &self.server,
            target: self.board.target(),
            running: self.board.running(),
        }
    }

    /// A run of each of `cast`; one that fails leaves the benchmark, loudly.
    fn act(&mut self, cast: &mut Vec<(&'static Peer, Row)>, index: usize) -> io::Result<()> {
        let (files, name) = self.ground(index)?;
        let mut failed = Vec::new();
        for (peer, row) in cast.iter_mut() {
            if peer.fills {
                self.board.target().fill(&self.noise)?;
            }
            match peer.measure(&self.on(&files, index, name)) {
                Ok(cost) => row.runs.push(cost),
                Err(error) => failed.push((peer.name, error)),
            }
        }
        for (name, error) in failed {
            self.report.skip(format!("{name}: {error}"));
            cast.retain(|(peer, _)| peer.name != name);
        }
        Ok(())
    }
}

fn ours(tool: &str) -> Row {
    Row {
        tool: tool.to_owned(),
        ..Row::default()
    }
}

/// Run by run, one row's figure divided by another's.
fn ratios(own: &Row, other: &Row, of: fn(&Cost) -> f64) -> Figures {
    Figures::new(
        own.runs
            .iter()
            .zip(&other.runs)
            .map(|(own, other)| of(own) / of(other)),
    )
}

/// A median with its range.
fn words(figures: &Figures) -> String {
    let (least, median, most) = (figures.least(), figures.median(), figures.most());
    format!("{} ({} to {})", number(median), number(least), number(most))
}

/// `size` bytes that nobody has, for slots that know nothing.
fn make_noise(path: &Path, size: u64, seed: u64) -> io::Result<()> {
    let mut file = File::create(path)?;
    let mut state = seed;
    let mut piece = Vec::with_capacity(1 << 20);
    let mut left = size;
    while left > 0 {
        piece.clear();
        while piece.len() < 1 << 20 {
            // xorshift64
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            piece.extend_from_slice(&state.to_le_bytes());
        }
        let count = left.min(piece.len() as u64);
        file.write_all(&piece[..count as usize])?;
        left -= count;
    }
    Ok(())
}

/// A pair of 24 MiB, most of which is the same.
fn small_pair(dir: &Path) -> io::Result<(PathBuf, Vec<(&'static str, PathBuf)>)> {
    let (old, new) = (dir.join("v1.img"), dir.join("v2r.img"));
    make_noise(&old, 24 << 20, 5)?;
    let mut raw = fs::read(&old)?;
    for place in (0..raw.len()).step_by(3 << 20) {
        raw[place..place + 5000].fill(7);
    }
    raw[(8 << 20)..(12 << 20)].fill(0);
    fs::write(&new, raw)?;
    Ok((old, vec![("v2r", new)]))
}
