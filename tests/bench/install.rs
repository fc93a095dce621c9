//! How fast, how small and how thrifty installations are, beside other tools (`make bench-install`, as root).
//!
//! Options (`make bench-install ARGS="..."`):
//! `--runs N` (default 3) · `--pairs FOLDER` (default target/pairs, made by tests/bench/pairs.sh) ·
//! `--only SCENE,...` (whole, kill, throttled, updates, same, squashfs, memory, build) · `--slow` (also `zstd -19`, half an hour) ·
//! `--write-docs` (docs/explanation/performance.md) · `--smoke` (tiny images, no other tools, one run: is it alive?)
//!
//! Tools that are not installed are skipped, loudly. A result that is not the image ends the benchmark: speed without it is worth
//! nothing. Nothing is asserted about the figures.

// A benchmark says its figures.
#![allow(clippy::print_stdout)]

#[path = "install/board.rs"]
mod board;
#[path = "install/measure.rs"]
mod measure;
#[path = "install/pair.rs"]
mod pair;
#[path = "install/peers.rs"]
mod peers;
#[path = "install/report.rs"]
mod report;
#[path = "install/scenes.rs"]
mod scenes;
#[path = "install/server.rs"]
mod server;
#[path = "../support/mod.rs"]
mod support;
#[path = "install/throttle.rs"]
mod throttle;

use std::{env, io, path::PathBuf, process::ExitCode};

use support::skipped;

/// What was asked for.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    /// Runs of each tool.
    pub(crate) runs: usize,
    /// Where the pairs are.
    pub(crate) pairs: PathBuf,
    /// Scenes to play; empty: all.
    pub(crate) only: Vec<String>,
    /// Whether what takes half an hour is done too.
    pub(crate) slow: bool,
    /// Whether the page is written.
    pub(crate) write_docs: bool,
    /// Whether it is only tried whether all works.
    pub(crate) smoke: bool,
}

impl Wish {
    fn read(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut wish = Self {
            runs: 3,
            pairs: PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/pairs"),
            only: Vec::new(),
            slow: false,
            write_docs: false,
            smoke: false,
        };
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} needs a value"));
            match word.as_str() {
                // From cargo.
                "--bench" => {}
                "--runs" => {
                    let runs = value()?;
                    let count = runs.parse().ok().filter(|count| *count > 0);
                    wish.runs = count.ok_or(format!("--runs {runs}: not a number of runs"))?;
                }
                "--pairs" => wish.pairs = value()?.into(),
                "--only" => wish.only = value()?.split(',').map(str::to_owned).collect(),
                "--slow" => wish.slow = true,
                "--write-docs" => wish.write_docs = true,
                "--smoke" => wish.smoke = true,
                other => return Err(format!("unknown option {other}")),
            }
        }
        let unknown = wish
            .only
            .iter()
            .find(|name| !scenes::NAMES.contains(&name.as_str()));
        match unknown {
            Some(name) => Err(format!(
                "no scene {name}; there are {}",
                scenes::NAMES.join(", ")
            )),
            None => Ok(wish),
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let wish = match Wish::read(env::args().skip(1)) {
        Ok(wish) => wish,
        Err(reason) => {
            eprintln!("bench-install: {reason}");
            return ExitCode::from(2);
        }
    };
    if !nix::unistd::geteuid().is_root() {
        skipped("bench-install needs root, for loop devices");
        return ExitCode::SUCCESS;
    }
    match play(&wish).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-install: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn play(wish: &Wish) -> io::Result<()> {
    let mut stage = scenes::Stage::set(wish).await?;
    stage.play().await?;
    if wish.write_docs && !wish.smoke {
        stage.report.write(&report::docs(), wish.runs)?;
        println!("\nwritten: {}/performance.md", report::docs().display());
    }
    Ok(())
}
