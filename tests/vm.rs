//! A whole device in a virtual machine: real U-Boot with the shipped boot script, real kernel and systemd, the Debian
//! package, a hub and an image server outside. `tests/vm/run.sh` builds the parts, confines the run and starts this.
//!
//! Not a test for `cargo test`, since each scenario boots a machine several times: `make test` runs the short form,
//! `make vm-test` everything (`--whole`), and the table of outcomes goes into docs/explanation/vm-results.md. The seed
//! of all chance is told; `VM_SEED=...` repeats it. `VM_ONLY=TEXT|TEXT` runs the scenarios whose name has one of the texts in it,
//! `VM_DIR=DIR` runs them there, `VM_LANES=N` on so many machines at a time.

#[path = "support/mod.rs"]
mod support;

#[path = "vm/bench.rs"]
mod bench;
#[path = "vm/disk.rs"]
mod disk;
#[path = "vm/images.rs"]
mod images;
#[path = "vm/look.rs"]
mod look;
#[path = "vm/machine.rs"]
mod machine;
#[path = "vm/scenarios.rs"]
mod scenarios;
#[path = "vm/table.rs"]
mod table;

use std::{
    collections::VecDeque,
    env,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Mutex,
    thread,
    time::Instant,
};

use self::{
    bench::{Bench, Outcome},
    images::Change,
    scenarios::{EVERY_MOMENT, Moment, Scenario},
    support::random,
    table::{Row, Table},
};

/// What CI runs: one update that is kept, one version that cannot start, two power cuts.
const SHORT: &[Scenario] = &[
    Scenario::PowerCuts(&[Moment::Write, Moment::FirstBoot]),
    Scenario::Broken(Change::NoInit),
];

/// Rounds of power cuts at every moment in the whole form.
const ROUNDS: usize = 6;

fn all() -> Vec<Scenario> {
    let mut scenarios = vec![
        Scenario::Sound,
        Scenario::Broken(Change::NoInit),
        Scenario::Broken(Change::NoKernel),
        Scenario::Broken(Change::Panics),
        Scenario::Broken(Change::Unhealthy),
        Scenario::Broken(Change::NoDaemon),
        Scenario::Broken(Change::Hangs),
        Scenario::Broken(Change::NoFileSystem),
        Scenario::Broken(Change::SystemdDies),
        Scenario::OneCopyRuined("env-1"),
        Scenario::OneCopyRuined("env-2"),
        Scenario::BothCopiesRuined("a"),
        Scenario::BothCopiesRuined("b"),
        Scenario::StateFull,
    ];
    scenarios.extend([Scenario::PowerCuts(EVERY_MOMENT)].repeat(ROUNDS));
    scenarios.push(Scenario::CarriedOver);
    scenarios
}

/// Says it as it happens: a run takes long.
fn say(what: impl std::fmt::Display) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{what}").and_then(|()| out.flush());
}

/// What is left to do, and what came of the rest; shared by the lanes.
struct Run {
    parts: PathBuf,
    place: PathBuf,
    seed: u64,
    left: Mutex<VecDeque<(usize, Scenario)>>,
    table: Mutex<Table>,
}

impl Run {
    /// Takes scenarios until none is left. One machine serves them all, until one fails: the next gets a new machine,
    /// and what the old one said stays.
    async fn lane(&self) {
        let mut bench = None;
        loop {
            let next = self.left.lock().unwrap().pop_front();
            let Some((number, scenario)) = next else {
                return;
            };
            let began = Instant::now();
            let result = self.one(&mut bench, number, scenario).await;
            let took = began.elapsed().as_secs();
            let row = match result {
                Ok(row) => row,
                Err(error) => {
                    bench = None;
                    say(format_args!("FAILED: {}: {error}", scenario.what()));
                    Row::failed(scenario.what())
                }
            };
            say(format_args!("{} {took} s", row.line()));
            self.table.lock().unwrap().add(number, row);
        }
    }

    async fn one(
        &self,
        bench: &mut Option<Bench>,
        number: usize,
        scenario: Scenario,
    ) -> Outcome<Row> {
        let bench = match bench {
            Some(bench) => bench,
            None => {
                let seed = self.seed + number as u64;
                let dir = self.place.join(format!("{number:02}"));
                bench.insert(Bench::start(&self.parts, &dir, seed).await?)
            }
        };
        scenario.run(bench).await
    }
}

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let parts = root.join("target/vm");
    let whole = env::args().any(|argument| argument == "--whole");
    let only = env::var("VM_ONLY").unwrap_or_default();
    let mut scenarios = if whole { all() } else { SHORT.to_vec() };
    let wanted = |what: String| only.split('|').any(|text| what.contains(text));
    scenarios.retain(|scenario| wanted(scenario.what()));
    // A trial that hangs waits more than it computes.
    let lanes = random::number("VM_LANES").unwrap_or(if whole { 2 } else { 1 });

    let place = env::var("VM_DIR").map_or_else(|_| parts.join("run"), PathBuf::from);
    let _ = std::fs::remove_dir_all(&place);
    let run = Run {
        parts,
        place,
        seed: random::seed("VM_SEED"),
        left: Mutex::new(scenarios.into_iter().enumerate().collect()),
        table: Mutex::default(),
    };
    say(format_args!(
        "virtual machine: {} scenarios, VM_SEED={}, in {}",
        run.left.lock().unwrap().len(),
        run.seed,
        run.place.display()
    ));
    let began = Instant::now();
    thread::scope(|scope| {
        for _ in 0..lanes {
            scope.spawn(|| {
                let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
                runtime.block_on(run.lane());
            });
        }
    });

    let table = run.table.into_inner().unwrap();
    say(format_args!("{}", table.markdown()));
    if table.failures() > 0 {
        say(format_args!(
            "{} failed; VM_SEED={}",
            table.failures(),
            run.seed
        ));
        return ExitCode::FAILURE;
    }
    if whole && only.is_empty() {
        let page = root.join("docs/explanation/vm-results.md");
        let day = jiff::Timestamp::now().strftime("%Y-%m-%d").to_string();
        table.write(&page, &day, began.elapsed());
        say(format_args!("written: {}", page.display()));
    }
    ExitCode::SUCCESS
}
