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
    peers::{Ground, Peer, UPDATES, WHOLE},
    report::{Report, Table, Target},
    server::Server,
    support::{
        figures::{Figures, number},
        random::Random,
        rig::{Rig, fwupdatectl},
    },
    throttle::Throttle,
};

#[path = "updates.rs"]
mod updates;

/// What `--only` takes.
pub(crate) const NAMES: &[&str] = &["whole", "kill", "throttled", "updates", "same", "memory", "build"];
/// What a good SD card writes a second.
const CARD: u64 = 40 << 20;
const GIB: u64 = 1 << 30;
/// The default of `fwupdatectl image build`.
const LEVEL: i32 = 9;

/// Everything that scenes work with.
pub(crate) struct Stage {
    wish: Wish,
    rig: Rig,
    server: Server,
    board: Board,
    old: PathBuf,
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
        let pairs = if wish.smoke { None } else { Some(wish.pairs.clone()) };
        // The slots are as large as the images: not in /tmp, which may be memory.
        let dir = match &pairs {
            Some(folder) => TempDir::with_prefix_in("bench-", folder).map_err(|error| {
                let script = "tests/bench/pairs.sh";
                io::Error::other(format!("{}: {error}; the images are made by {script}", folder.display()))
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
            self.board.live_on(&self.rig, &self.server.url("old.img.zst")).await?;
        }
        if self.wants("updates") {
            for index in 0..self.new.len() {
                self.updates(index).await?;
            }
        }
        if self.wants("same") {
            self.same().await?;
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

    fn ground(&self, index: usize) -> io::Result<(PathBuf, &'static str)> {
        let name = self.new[index].0;
        let files = self.files.join(name);
        fs::create_dir_all(&files)?;
        Ok((files, name))
    }

    /// Builds the images; how long that takes, and how large they are.
    fn images(&mut self) -> io::Result<()> {
        board::build(&self.rig, &self.old, "1.1.0", &self.files.join("old.img.zst"), &["--level", "1"])?;
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
                ours.runs.push(Cost { wall, ..Cost::default() });
                ours.note = format!("{} bytes", fs::metadata(&to)?.len());
            }
        }
        println!("images built in {} s", number(began.elapsed().as_secs_f64()));
        if !self.wants("build") || self.wish.smoke {
            return Ok(());
        }
        self.sizes(ours)
    }

    /// Puts the size and the time of a build beside zstd's.
    fn sizes(&mut self, mut ours: Row) -> io::Result<()> {
        let raw = self.new[0].1.clone();
        let level = LEVEL;
        let mut zstd = Row {
            tool: format!("zstd -T0 -{level}"),
            ..Row::default()
        };
        let to = self.scratch.join("whole.zst");
        for run_number in 0..self.wish.runs {
            if run_number > 0 {
                let began = Instant::now();
                board::build(&self.rig, &raw, "2.0.0", &self.scratch.join("again.zst"), &[])?;
                let wall = began.elapsed().as_secs_f64();
                ours.runs.push(Cost { wall, ..Cost::default() });
                fs::remove_file(self.scratch.join("again.zst"))?;
            }
            let began = Instant::now();
            run(Command::new("zstd").args(["-q", "-f", "-T0", &format!("-{level}")]).arg(&raw).arg("-o").arg(&to))?;
            let wall = began.elapsed().as_secs_f64();
            zstd.runs.push(Cost { wall, ..Cost::default() });
        }
        zstd.note = format!("{} bytes", fs::metadata(&to)?.len());
        fs::remove_file(&to)?;
        self.report.target(Target {
            what: "building an image, wall, against `zstd -T0` at the same level",
            at_most: "≤ 1.3",
            measured: words(&ratios(&ours, &zstd, |cost| cost.wall)),
            met: ratios(&ours, &zstd, |cost| cost.wall).median() <= 1.3,
            bound: String::new(),
        });
        let mut rows = vec![ours, zstd];
        if let Some(size) = self.kept_size("v2r.19.size", &["-19"])? {
            let own = fs::metadata(self.ours(0))?.len() as f64 / size as f64;
            self.report.target(Target {
                what: "size of the image, against `zstd -19` of the raw image as one frame",
                at_most: "≤ 1.05",
                measured: format!("{own:.3}"),
                met: own <= 1.05,
                bound: String::new(),
            });
            rows.push(Row {
                tool: "zstd -19".to_owned(),
                runs: Vec::new(),
                note: format!("{size} bytes"),
            });
        }
        self.report.table(Table {
            title: "Building an image of v2r".to_owned(),
            about: "The file's size is in the last column.".to_owned(),
            rows,
            base: 1,
        });
        Ok(())
    }

    /// The size of what `zstd` makes of v2r with these options: as it was kept, or made now with `--slow`.
    fn kept_size(&mut self, file: &str, options: &[&str]) -> io::Result<Option<u64>> {
        let kept = self.files.join(file);
        if let Some(size) = fs::read_to_string(&kept).ok().and_then(|text| text.trim().parse().ok()) {
            return Ok(Some(size));
        }
        if !self.wish.slow {
            self.report.skip(format!("zstd {}: takes long; --slow makes it once and keeps its size", options.join(" ")));
            return Ok(None);
        }
        let to = self.scratch.join("slow.zst");
        run(Command::new("zstd").args(["-q", "-f", "-T0"]).args(options).arg(&self.new[0].1).arg("-o").arg(&to))?;
        let size = fs::metadata(&to)?.len();
        fs::remove_file(&to)?;
        fs::write(kept, size.to_string())?;
        Ok(Some(size))
    }
}

/// Full installations.
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
        let installed = self.board.install(&self.rig, &self.server, &url, kill, group).await?;
        if self.board.target().holds(&self.new[index].1)? {
            Ok(installed)
        } else {
            Err(io::Error::other("fwupdated: the slot does not hold the image afterwards"))
        }
    }

    /// Those of `peers` that can work here, as empty rows.
    fn cast(&mut self, peers: &'static [Peer], index: usize) -> io::Result<Vec<(&'static Peer, Row)>> {
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

    /// The whole image onto a device that knows nothing of it.
    async fn whole(&mut self) -> io::Result<()> {
        let mut cast = self.cast(WHOLE, 0)?;
        let (mut whole, mut unread) = (ours("fwupdated"), ours("fwupdated, without read back"));
        for _ in 0..self.wish.runs {
            self.act(&mut cast, 0)?;
            let installed = self.install(0, None, None, None).await?;
            whole.runs.push(installed.whole);
            unread.runs.push(installed.unread);
        }
        let row = |name: &str| cast.iter().find(|(peer, _)| peer.name.starts_with(name)).map(|(_, row)| row);
        let wall = |cost: &Cost| cost.wall;
        let processor = |cost: &Cost| cost.processor;
        let mut targets = Vec::new();
        let mut compare = |what, at_most, limit: f64, own: &Row, peer: &str, of: fn(&Cost) -> f64| {
            let Some(peer) = row(peer) else { return };
            let ratios = ratios(own, peer, of);
            targets.push(Target {
                what,
                at_most,
                measured: words(&ratios),
                met: ratios.median() <= limit,
                bound: String::new(),
            });
        };
        compare("full install without read back, wall, against `curl \\| zstd \\| dd` (buffered)", "≤ 0.50", 0.5, &unread, "curl | zstd | dd, buffered", wall);
        compare("the same, processor", "≤ 0.45", 0.45, &unread, "curl | zstd | dd, buffered", processor);
        compare("full install without read back, wall, against `curl \\| zstd \\| dd` (direct)", "≤ 1.0", 1.0, &unread, "curl | zstd | dd, direct", wall);
        compare("full install with read back, wall, against RAUC", "≤ 0.65", 0.65, &whole, "RAUC", wall);
        compare("the same, processor", "≤ 0.60", 0.6, &whole, "RAUC", processor);
        compare("full install with read back, wall, against SWUpdate", "≤ 0.75", 0.75, &whole, "SWUpdate", wall);
        compare("the same, processor", "≤ 0.60", 0.6, &whole, "SWUpdate", processor);
        for target in targets {
            self.report.target(target);
        }
        self.full.clone_from(&whole.runs);
        let mut rows: Vec<_> = cast.into_iter().map(|(_, row)| row).collect();
        rows.extend([whole, unread]);
        self.report.table(Table {
            title: "Full installation of v2r".to_owned(),
            about: "Onto a slot full of noise, by a device that has nothing of the image. The base of the ratios is \
                `curl | zstd | dd`, buffered."
                .to_owned(),
            base: 1.min(rows.len() - 1),
            rows,
        });
        Ok(())
    }

    /// What a kill in the middle costs.
    async fn kill(&mut self) -> io::Result<()> {
        let undisturbed = self.install(0, None, None, None).await?;
        let mut random = Random(self.wish.runs as u64);
        let mut row = ours("fwupdated, killed once");
        for _ in 0..self.wish.runs.max(3) {
            let share = 0.1 + random.below(80) as f64 / 100.0;
            let after = Duration::from_secs_f64(undisturbed.unread.wall * share);
            row.runs.push(self.install(0, None, Some(after), None).await?.whole);
        }
        // What is downloaded twice stands for so much of the raw image.
        let raw = fs::metadata(&self.new[0].1)?.len() as f64;
        let once = undisturbed.whole.served.bytes as f64;
        let extra = row.figures(|cost| (cost.served.bytes as f64 - once).max(0.0) / once * raw / (1 << 20) as f64);
        self.report.target(Target {
            what: "after SIGKILL at a random moment, what is fetched again, MiB of image",
            at_most: "≤ 64, median ≤ 32",
            measured: words(&extra),
            met: extra.most() <= 64.0 && extra.median() <= 32.0,
            bound: "checkpoints every 64 MiB".to_owned(),
        });
        let mut once = ours("fwupdated");
        once.runs.push(undisturbed.whole);
        self.report.table(Table {
            title: "Full installation, killed at a random moment and started again".to_owned(),
            about: "The rows count from the method call to the request for the reboot.".to_owned(),
            rows: vec![once, row],
            base: 0,
        });
        Ok(())
    }

    /// The same on a device that writes no faster than a card.
    async fn throttled(&mut self) -> io::Result<()> {
        let throttle = match Throttle::new(self.board.target(), CARD) {
            Ok(throttle) => throttle,
            Err(error) => {
                self.report.skip(format!("a device as slow as a card: the kernel cannot limit it here: {error}"));
                return Ok(());
            }
        };
        let mut dd = Row {
            tool: "dd, raw image, direct".to_owned(),
            ..Row::default()
        };
        let (mut whole, mut unread) = (ours("fwupdated"), ours("fwupdated, without read back"));
        // Minutes each, and steady: the limit decides.
        for _ in 0..self.wish.runs.min(2) {
            self.board.target().fill(&self.noise)?;
            let mut command = Command::new("bash");
            command.args(["-euc", "echo $$ >\"$GROUP/cgroup.procs\"; exec dd if=\"$RAW\" of=\"$DEVICE\" bs=4M oflag=direct conv=fsync status=none"]);
            command.env("GROUP", &throttle.group).env("RAW", &self.new[0].1).env("DEVICE", &self.board.target().device);
            dd.runs.push(measure(&mut command, &self.server, Some(self.board.target()), &self.scratch)?);
            let installed = self.install(0, None, None, Some(&throttle.group)).await?;
            whole.runs.push(installed.whole);
            unread.runs.push(installed.unread);
        }
        let ratio = ratios(&unread, &dd, |cost| cost.wall);
        self.report.target(Target {
            what: "full install on a device as slow as a card (40 MiB/s), without the read, wall, against `dd`",
            at_most: "≤ 1.05",
            measured: words(&ratio),
            met: ratio.median() <= 1.05,
            bound: "the card; zeros that are there already are not written".to_owned(),
        });
        self.report.table(Table {
            title: "Full installation on a device as slow as a card".to_owned(),
            about: "Writes are limited to 40 MiB a second by the kernel (control groups); reads are not.".to_owned(),
            rows: vec![dd, whole, unread],
            base: 0,
        });
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
    Figures::new(own.runs.iter().zip(&other.runs).map(|(own, other)| of(own) / of(other)))
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
