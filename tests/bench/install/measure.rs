//! One run of one tool, measured from outside: time, processor, memory, what the server sent, what the device was written.

use std::{
    fs::{self, File},
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use nix::sys::resource::{UsageWho, getrusage};

use super::{
    server::{Served, Server},
    support::figures::Figures,
};

/// What one run cost.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cost {
    /// Seconds from start to end.
    pub(crate) wall: f64,
    /// Seconds of processor, user and system, with all child processes.
    pub(crate) processor: f64,
    /// Peak resident memory of the largest process, bytes. `None` where it cannot be told from this program's own.
    pub(crate) memory: Option<u64>,
    /// What the server sent.
    pub(crate) served: Served,
    /// Bytes written to the slot.
    pub(crate) written: u64,
}

/// A line of a table: one tool, all its runs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Row {
    /// The tool and how it was used.
    pub(crate) tool: String,
    /// Every run.
    pub(crate) runs: Vec<Cost>,
    /// What a reader must know.
    pub(crate) note: String,
}

impl Row {
    /// One number of every run.
    pub(crate) fn figures(&self, of: impl Fn(&Cost) -> f64) -> Figures {
        Figures::new(self.runs.iter().map(of))
    }
}

/// A loop device over a file, with direct I/O between both so that nothing is cached twice.
pub(crate) struct Slot {
    /// `/dev/loopN`.
    pub(crate) device: PathBuf,
    file: PathBuf,
}

impl Slot {
    /// A device of `size` bytes; its blocks are all allocated, or `sparse`.
    pub(crate) fn new(file: &Path, size: u64, sparse: bool) -> io::Result<Self> {
        let out = File::create(file)?;
        out.set_len(size)?;
        if !sparse {
            // Written once, so that no run pays for the allocation.
            let (dd, of) = (
                format!("count={}", size >> 20),
                format!("of={}", file.display()),
            );
            run(Command::new("dd").args([
                "if=/dev/zero",
                &of,
                "bs=1M",
                &dd,
                "conv=notrunc,fsync",
                "status=none",
            ]))?;
        }
        let device = output(
            Command::new("losetup")
                .args(["--show", "--direct-io=on", "-f"])
                .arg(file),
        )?;
        Ok(Self {
            device: PathBuf::from(device.trim()),
            file: file.to_owned(),
        })
    }

    /// Puts `content` there, past every cache, and forgets what was cached.
    pub(crate) fn fill(&self, content: &Path) -> io::Result<()> {
        let (from, to) = (
            format!("if={}", content.display()),
            format!("of={}", self.device.display()),
        );
        run(Command::new("dd").args([
            &from,
            &to,
            "bs=4M",
            "oflag=direct",
            "conv=fsync",
            "status=none",
        ]))?;
        run(Command::new("blockdev")
            .arg("--flushbufs")
            .arg(&self.device))
    }

    /// Bytes written to it since it exists, as the kernel counts (Documentation/block/stat.rst).
    pub(crate) fn written(&self) -> u64 {
        let name = self.device.file_name().expect("a device").to_string_lossy();
        let stat = fs::read_to_string(format!("/sys/block/{name}/stat")).unwrap_or_default();
        let sectors = stat
            .split_whitespace()
            .nth(6)
            .and_then(|word| word.parse::<u64>().ok());
        sectors.unwrap_or(0) * 512
    }

    /// Its number, `major:minor`.
    pub(crate) fn number(&self) -> io::Result<String> {
        let name = self.device.file_name().expect("a device").to_string_lossy();
        Ok(fs::read_to_string(format!("/sys/block/{name}/dev"))?
            .trim()
            .to_owned())
    }

    /// Whether it begins with the bytes of `image`.
    pub(crate) fn holds(&self, image: &Path) -> io::Result<bool> {
        run(Command::new("blockdev")
            .arg("--flushbufs")
            .arg(&self.device))?;
        let size = fs::metadata(image)?.len();
        let same = Command::new("cmp")
            .args(["-s", "-n", &size.to_string()])
            .args([image, &self.device])
            .status()?;
        Ok(same.success())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // Left over, it would only take space: nothing to do about it here.
        let _ = run(Command::new("losetup").arg("-d").arg(&self.device));
        let _ = fs::remove_file(&self.file);
    }
}

/// Where a tool says its own figures, one `name value` a line: `wall` (seconds) where the work is only a part of the
/// process's life, `memory` (bytes).
pub(crate) const SAYS: &str = "BENCH_SAYS";

/// Runs `command` and measures it. What the tool prints is shown only if it fails.
pub(crate) fn measure(
    command: &mut Command,
    server: &Server,
    slot: Option<&Slot>,
    scratch: &Path,
) -> io::Result<Cost> {
    let says = scratch.join("says");
    let _ = fs::remove_file(&says);
    let log_file = scratch.join("output.log");
    let log = File::create(&log_file)?;
    command
        .env(SAYS, &says)
        .current_dir(scratch)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0);
    let written = slot.map_or(0, Slot::written);
    let before = children();
    server.reset();
    let began = Instant::now();
    let status = command.status()?;
    let wall = began.elapsed().as_secs_f64();
    if !status.success() {
        let log = fs::read_to_string(&log_file).unwrap_or_default();
        let tail: Vec<_> = log.lines().rev().take(12).collect();
        let tail = tail.into_iter().rev().collect::<Vec<_>>().join("\n  ");
        return Err(io::Error::other(format!(
            "{} ended with {status}:\n  {tail}",
            command.get_program().to_string_lossy()
        )));
    }
    let said = fs::read_to_string(&says).unwrap_or_default();
    let word = |name: &str| {
        said.lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok())
    };
    Ok(Cost {
        wall: word("wall ").unwrap_or(wall),
        processor: children() - before,
        memory: word("memory ").map(|bytes| bytes as u64),
        served: server.served(),
        written: slot.map_or(0, Slot::written) - written,
    })
}

/// Processor seconds of all children that have ended.
fn children() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("it is a valid question");
    let seconds =
        |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    seconds(usage.user_time()) + seconds(usage.system_time())
}

/// Runs a command that must succeed.
pub(crate) fn run(command: &mut Command) -> io::Result<()> {
    output(command).map(drop)
}

/// Runs a command that must succeed; returns what it printed.
pub(crate) fn output(command: &mut Command) -> io::Result<String> {
    let out = command.stdin(Stdio::null()).output()?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&out.stderr);
    Err(io::Error::other(format!(
        "{command:?} ended with {}: {}",
        out.status,
        said.trim()
    )))
}

/// Whether there is a program of this name.
pub(crate) fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|folder| folder.join(program).is_file())
}
