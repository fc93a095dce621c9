//! What is done to the machine, and what must come of it.

use std::{fs, path::Path, time::Duration};

use super::{
    bench::{Bench, End, Outcome, Update},
    images::Change,
    look,
    table::Row,
};

/// One scenario.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Scenario {
    /// An update that is kept.
    Sound,
    /// A version that cannot start, or does not get well, in one of the ways of [`Change`].
    Broken(Change),
    /// The power fails once in each of these moments of one update.
    PowerCuts(&'static [Moment]),
    /// One copy of the environment is damaged.
    OneCopyRuined(&'static str),
    /// Both copies of the environment are damaged, while this slot is confirmed.
    BothCopiesRuined(&'static str),
    /// Nothing can be saved.
    StateFull,
    /// Who the device is and whom it trusts lies in the slots, not on `data`. It stays so: for the end of a bench.
    CarriedOver,
}

/// A stage of an update, in which the power fails at a random moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Moment {
    /// The first half of download and write, which go hand in hand.
    Download,
    /// The second half, and the reading back.
    Write,
    /// The bootloader is told, and the reboot asked for.
    Arm,
    /// U-Boot, kernel and systemd of the trial boot.
    FirstBoot,
    /// The daemon runs in the new slot: health gate and confirmation.
    Confirm,
}

impl Moment {
    fn name(self) -> &'static str {
        match self {
            Self::Download => "download",
            Self::Write => "write",
            Self::Arm => "arming",
            Self::FirstBoot => "first boot",
            Self::Confirm => "confirmation",
        }
    }
}

/// Every moment, in order.
pub(crate) const EVERY_MOMENT: &[Moment] = &[
    Moment::Download,
    Moment::Write,
    Moment::Arm,
    Moment::FirstBoot,
    Moment::Confirm,
];

impl Scenario {
    /// What is done, in words.
    pub(crate) fn what(self) -> String {
        match self {
            Self::Sound => "update to a sound version".to_owned(),
            Self::Broken(change) => match change {
                Change::Sound | Change::Large => "a sound version".to_owned(),
                Change::NoInit => "root file system without init".to_owned(),
                Change::NoKernel => "slot without a kernel".to_owned(),
                Change::Panics => "kernel panic once systemd runs".to_owned(),
                Change::Hangs => "boot that hangs before the daemon".to_owned(),
                Change::NoFileSystem => "boot that waits for ever, without fw_printenv".to_owned(),
                Change::SystemdDies => "systemd dies (hardware watchdog)".to_owned(),
                Change::NoDaemon => "no daemon in the new version".to_owned(),
                Change::Unhealthy => "health check that fails".to_owned(),
            },
            Self::PowerCuts(moments) => {
                let names: Vec<_> = moments.iter().map(|moment| moment.name()).collect();
                format!("power cuts at random moments of {}", names.join(", "))
            }
            Self::OneCopyRuined(copy) => format!("environment: copy {copy} damaged"),
            Self::BothCopiesRuined(slot) => {
                format!("environment: both copies damaged, slot {slot} confirmed")
            }
            Self::StateFull => "file system of the state is full".to_owned(),
            Self::CarriedOver => "identity and keys in the slot, carried over".to_owned(),
        }
    }

    /// Runs it; the machine is on and idle before and after.
    pub(crate) async fn run(self, bench: &mut Bench) -> Outcome<Row> {
        let resets = bench.resets;
        let (cuts, mut outcome) = match self {
            Self::Sound => (0, sound(bench).await?),
            Self::Broken(change) => (0, broken(bench, change).await?),
            Self::PowerCuts(moments) => power_cuts(bench, moments).await?,
            Self::OneCopyRuined(copy) => (1, one_copy_ruined(bench, copy).await?),
            Self::BothCopiesRuined(slot) => (1, both_copies_ruined(bench, slot).await?),
            Self::StateFull => (1, state_full(bench).await?),
            Self::CarriedOver => (1, carried_over(bench).await?),
        };
        let resets = bench.resets - resets;
        if resets > 0 {
            outcome +=
                &format!("; U-Boot crashed in QEMU's restart and was reset by hand: {resets}");
        }
        Ok(Row {
            what: self.what(),
            cuts,
            outcome,
        })
    }
}

/// An update that must have been kept.
fn kept(end: &End) -> Outcome<String> {
    match &end.reason {
        None => Ok(format!("confirmed ({} boots)", end.boots)),
        Some((code, message)) => Err(format!("{}: {message} [{code}]", end.word)),
    }
}

/// Codes that tell the truth of a version that was left again.
fn codes(change: Change) -> &'static [&'static str] {
    match change {
        Change::Unhealthy => &["health-check-failed"],
        // Nothing of ours ever ran there.
        _ => &["trial-boot-failed", "trial-not-confirmed"],
    }
}

/// An update that must have ended where it began, for the right reason.
fn left(change: Change, end: &End) -> Outcome<String> {
    let Some((code, message)) = &end.reason else {
        return Err("a broken version was confirmed".to_owned());
    };
    if end.word != "applyFailed" || !codes(change).contains(&code.as_str()) {
        return Err(format!("{}: {message} [{code}]", end.word));
    }
    Ok(format!("rolled back, `{code}` ({} boots)", end.boots))
}

/// An update that is kept, and what a person finds who looks at the device meanwhile and then.
async fn sound(bench: &mut Bench) -> Outcome<String> {
    let update = bench.begin(Change::Sound).await?;
    look::at_work(bench, &update).await?;
    let end = bench.end(update).await?;
    let outcome = kept(&end)?;
    look::at_units(bench).await?;
    look::at_data(bench).await?;
    look::at_end(bench, &end).await?;
    look::at_story(bench, &end).await?;
    Ok(outcome)
}

/// An update to a broken version, and what a person finds then.
async fn broken(bench: &mut Bench, change: Change) -> Outcome<String> {
    let end = bench.update(change).await?;
    let outcome = left(change, &end)?;
    look::at_end(bench, &end).await?;
    // One that dies while it writes to the journal takes lines with it.
    if matches!(
        change,
        Change::NoInit | Change::NoKernel | Change::Unhealthy
    ) {
        look::at_story(bench, &end).await?;
    }
    Ok(outcome)
}

/// One update with a power cut in each of these moments, and another without one where it failed.
async fn power_cuts(bench: &mut Bench, moments: &[Moment]) -> Outcome<(usize, String)> {
    let update = bench.begin(Change::Large).await?;
    for moment in moments {
        reach(bench, &update, *moment).await?;
        bench.power_cycle();
    }
    let end = bench.end(update).await?;
    look::at_end(bench, &end).await?;
    let outcome = match &end.reason {
        None => kept(&end)?,
        Some((code, _)) => {
            let next = kept(&bench.update(Change::Sound).await?)?;
            format!("truthful failure `{code}`; then: {next}")
        }
    };
    Ok((moments.len(), outcome))
}

/// Waits until `moment` of `update` has come, and then some random time. An update that has ended meanwhile ends the
/// waiting too: a power cut must not hurt then either.
async fn reach(bench: &mut Bench, update: &Update, moment: Moment) -> Outcome {
    let (ready, spread): (fn(&Bench, &Update) -> bool, u64) = match moment {
        Moment::Download => (
            |bench, update| is_at(bench, update, &["downloading"]),
            6_000,
        ),
        Moment::Write => (
            |bench, update| {
                let percent = bench.rig.section()["progress"]["percent"].as_u64();
                let second_half = percent.is_some_and(|percent| percent >= 50);
                (is_at(bench, update, &["downloading"]) && second_half)
                    || is_at(bench, update, &["downloadComplete"])
            },
            10_000,
        ),
        Moment::Arm => (|bench, update| is_at(bench, update, &["applying"]), 1_500),
        Moment::FirstBoot => (
            |bench, _| bench.console().contains("fwupdated: trial boot of slot"),
            30_000,
        ),
        Moment::Confirm => (
            |bench, update| {
                let runs = format!("slot {} runs", update.target);
                bench.console().contains(&runs)
            },
            3_000,
        ),
    };
    bench
        .until(&format!("{moment:?} of update {}", update.id), |bench| {
            (ready(bench, update) || bench.has_ended(update)).then_some(())
        })
        .await?;
    let pause = Duration::from_millis(bench.random.below(spread));
    tokio::time::sleep(pause).await;
    Ok(())
}

fn is_at(bench: &Bench, update: &Update, words: &[&str]) -> bool {
    bench
        .word(update)
        .is_some_and(|word| words.contains(&word.as_str()))
}

/// The device goes on with the other copy, and repairs the damaged one with its next write.
async fn one_copy_ruined(bench: &mut Bench, copy: &str) -> Outcome<String> {
    let running = bench.running();
    bench.cut_power();
    bench.disk.ruin_env(copy);
    bench.power_on();
    bench
        .until_reported(&running.slot, &running.version)
        .await?;
    kept(&bench.update(Change::Sound).await?)
}

/// U-Boot starts with its compiled-in environment, the boot script finds the confirmed slot by its mark and initialises
/// the environment, and updates go on.
async fn both_copies_ruined(bench: &mut Bench, slot: &str) -> Outcome<String> {
    if bench.running().slot != slot {
        kept(&bench.update(Change::Sound).await?)?;
    }
    let running = bench.running();
    bench.cut_power();
    bench.disk.ruin_env("env-1");
    bench.disk.ruin_env("env-2");
    bench.power_on();
    bench
        .until_reported(&running.slot, &running.version)
        .await?;
    let next = kept(&bench.update(Change::Sound).await?)?;
    Ok(format!("slot {slot} booted; then: {next}"))
}

/// An update is refused rather than begun, and goes well once there is room again.
async fn state_full(bench: &mut Bench) -> Outcome<String> {
    let running = bench.running();
    bench.cut_power();
    bench.disk.with_mounted("data", |data| {
        // Until nothing more fits.
        let mut file = fs::File::create(data.join("filler")).unwrap();
        while std::io::Write::write_all(&mut file, &[0; 4096]).is_ok() {}
    });
    bench.power_on();
    bench
        .until_reported(&running.slot, &running.version)
        .await?;
    let refusal = bench.refused(Change::Sound).await?;
    bench.cut_power();
    bench.disk.with_mounted("data", |data| {
        fs::remove_file(data.join("filler")).unwrap();
    });
    bench.power_on();
    bench
        .until_reported(&running.slot, &running.version)
        .await?;
    let next = kept(&bench.update(Change::Sound).await?)?;
    Ok(format!("refused, `{refusal}`; with room again: {next}"))
}

/// The new slot has them from the old one: else it would not find its hub, nor take the next image. There and back.
async fn carried_over(bench: &mut Bench) -> Outcome<String> {
    const LINES: &str = r#"
[trust]
key_dirs = ["/etc/fwupdated/keys.d"]

[carry_over]
paths = ["/etc/fwupdated/connection-string", "/etc/fwupdated/keys.d"]
"#;
    let running = bench.running();
    let slot = format!("rootfs-{}", running.slot);
    bench.cut_power();
    bench.disk.with_mounted("data", |data| {
        bench.disk.with_mounted(&slot, |root| {
            let etc = root.join("etc/fwupdated");
            for file in ["connection-string", "keys.d/vm.pub"] {
                relocate(&data.join(file), &etc.join(file));
            }
        });
        let site = data.join("site.toml");
        let text = fs::read_to_string(&site).unwrap();
        let text = text.replace(
            "/data/connection-string",
            "/etc/fwupdated/connection-string",
        );
        fs::write(site, text + LINES).unwrap();
    });
    bench.power_on();
    bench
        .until_reported(&running.slot, &running.version)
        .await?;
    let there = kept(&bench.update(Change::Sound).await?)?;
    let back = kept(&bench.update(Change::Sound).await?)?;
    Ok(format!("{there}; back: {back}"))
}

/// Moves a file to another file system, with its mode.
fn relocate(from: &Path, to: &Path) {
    fs::copy(from, to).unwrap();
    fs::remove_file(from).unwrap();
}
