//! A whole device in a virtual machine: real U-Boot with the shipped boot script, real kernel and systemd, the Debian
//! package, a hub and an image server outside. `tests/vm/run.sh` builds the parts, confines the run and starts this.
//!
//! Not a test for `cargo test`, since each scenario boots a machine several times: `make test` runs the short form,
//! `make vm-test` everything (`--whole`), and the table of outcomes goes into docs/explanation/vm-results.md. The seed
//! of all chance is told; `VM_SEED=...` repeats it. `VM_ONLY=TEXT` runs the scenarios whose name has TEXT in it, `VM_DIR=DIR`
//! runs them there.

#[path = "support/mod.rs"]
mod support;

#[path = "vm/bench.rs"]
mod bench;
#[path = "vm/disk.rs"]
mod disk;
#[path = "vm/images.rs"]
mod images;
#[path = "vm/machine.rs"]
mod machine;
#[path = "vm/scenarios.rs"]
mod scenarios;
#[path = "vm/table.rs"]
mod table;

use std::{
    env,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Instant, SystemTime},
};

use self::{
    bench::{Bench, Outcome},
    images::Change,
    scenarios::{EVERY_MOMENT, Moment, Scenario},
    table::{Row, Table},
};

/// What CI runs: one update that is kept, one version that cannot start, two power cuts.
const SHORT: &[Scenario] = &[
    Scenario::PowerCuts(&[Moment::Write, Moment::FirstBoot]),
    Scenario::Broken(Change::NoInit),
];

/// Rounds of power cuts at every moment in the whole form.
const ROUNDS: usize = 6;

fn whole() -> Vec<Scenario> {
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
        Scenario::BothCopiesRuined,
        Scenario::StateFull,
    ];
    scenarios.extend([Scenario::PowerCuts(EVERY_MOMENT)].repeat(ROUNDS));
    scenarios
}

/// Says it as it happens: a run takes long.
fn say(what: impl std::fmt::Display) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{what}").and_then(|()| out.flush());
}

/// Runs one scenario, on the machine of the one before unless that failed.
async fn run(
    bench: &mut Option<Bench>,
    scenario: Scenario,
    parts: &Path,
    place: &Path,
    seed: u64,
) -> Outcome<Row> {
    if bench.is_none() {
        let dir = place.join(format!("{seed}"));
        *bench = Some(Bench::start(parts, &dir, seed).await?);
    }
    let bench = bench.as_mut().expect("there is one");
    scenario.run(bench).await
}

#[tokio::main]
async fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let parts = root.join("target/vm");
    let all = env::args().any(|argument| argument == "--whole");
    let only = env::var("VM_ONLY").unwrap_or_default();
    let mut scenarios = if all { whole() } else { SHORT.to_vec() };
    scenarios.retain(|scenario| scenario.what().contains(&only));

    let place = env::var("VM_DIR").map_or_else(|_| parts.join("run"), PathBuf::from);
    let _ = std::fs::remove_dir_all(&place);
    let seed = support::random::seed("VM_SEED");
    say(format_args!(
        "virtual machine: {} scenarios, VM_SEED={seed}, in {}",
        scenarios.len(),
        place.display()
    ));
    let began = Instant::now();
    let mut table = Table::default();
    let mut bench = None;
    for (number, scenario) in scenarios.into_iter().enumerate() {
        let began = Instant::now();
        match run(&mut bench, scenario, &parts, &place, seed + number as u64).await {
            Ok(row) => {
                say(format_args!(
                    "{} {} s",
                    row.line(),
                    began.elapsed().as_secs()
                ));
                table.add(row);
            }
            Err(error) => {
                // The next one gets a new machine; what this one said stays.
                bench = None;
                say(format_args!("FAILED: {}: {error}", scenario.what()));
                table.failed(&scenario.what());
            }
        }
    }
    say(format_args!("{}", table.markdown()));
    if table.failures() > 0 {
        say(format_args!("{} failed; VM_SEED={seed}", table.failures()));
        return ExitCode::FAILURE;
    }
    if all && only.is_empty() {
        let page = root.join("docs/explanation/vm-results.md");
        let day = jiff::Timestamp::try_from(SystemTime::now()).expect("a time of today");
        table.write(
            &page,
            &day.strftime("%Y-%m-%d").to_string(),
            began.elapsed(),
        );
        say(format_args!("written: {}", page.display()));
    }
    ExitCode::SUCCESS
}
