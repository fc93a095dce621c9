//! What a person finds who logs in to the device: `systemctl status`, the journal of all boots with its catalog, and
//! `fwupdatectl history`. All of it must tell the story that the twin tells.

use fwupdated::update::events;
use serde_json::Value;

use super::bench::{Bench, End, Outcome, Update};

/// What the journal has of an update up to the reboot.
const BEFORE: [&str; 6] = [
    events::UPDATE_ACCEPTED,
    events::DOWNLOAD_STARTED,
    events::DOWNLOAD_COMPLETE,
    events::SLOT_VERIFIED,
    events::SLOT_ARMED,
    events::REBOOTING,
];

/// And in the boot that ends it.
const CONFIRMED: [&str; 3] = [
    events::TRIAL_BEGAN,
    events::HEALTHY,
    events::UPDATE_COMPLETE,
];
const ROLLED_BACK: [&str; 1] = [events::UPDATE_ROLLED_BACK];

/// Waits until `commands` print each of `texts` on the device.
async fn until(bench: &mut Bench, commands: &str, texts: &[&str]) -> Outcome<String> {
    let what = format!("`{commands}` to say {texts:?}");
    let mut last = String::new();
    let found = bench
        .until(&what, |bench| {
            let said = bench.inside(commands)?;
            let all = texts.iter().all(|text| said.contains(text));
            last.clone_from(&said);
            all.then_some(said)
        })
        .await;
    found.map_err(|error| format!("{error}\nit says\n{last}"))
}

/// During the download: slot, hub, update and progress in one line.
pub(crate) async fn at_work(bench: &mut Bench, update: &Update) -> Outcome {
    let runs = format!("Status: \"{}, update ", slot_and_hub(bench));
    let stage = format!("{} to slot {}: downloading ", update.id, update.target);
    let texts = [&*runs, &*stage, " % at "];
    until(bench, "systemctl status --full fwupdated", &texts).await?;
    Ok(())
}

/// systemd has nothing to say against our units, and none of them failed.
pub(crate) async fn at_units(bench: &mut Bench) -> Outcome {
    let units = "fwupdated.service fwupdated-trial.timer fwupdated-tryboot-trial.timer";
    let commands = format!(
        "systemd-analyze verify --man=no {units}; systemctl list-units --failed --plain --no-legend; echo done"
    );
    let said = until(bench, &commands, &["done"]).await?;
    match said.contains("fwupdated") {
        true => Err(format!("systemd does not like our units:\n{said}")),
        false => Ok(()),
    }
}

/// `data` fills the card since the first boot, the partition table is sound, and this boot had nothing to do for it.
pub(crate) async fn at_data(bench: &mut Bench) -> Outcome {
    // The card has 144 MiB from the start of `data` on, the file system took 64 of them when it was made. Some of each
    // are its own.
    let commands = "systemctl show -p Result,ExecMainStatus fwupdated-grow-data
        journalctl -b -u fwupdated-grow-data -o cat
        sfdisk --verify /dev/mmcblk0 2>&1
        set -- $(stat -f -c '%b %S' /data)
        [ $(($1 * $2 >> 20)) -gt 120 ] && echo filled";
    let texts = [
        "Result=success",
        "ExecMainStatus=0",
        "Nothing to do!",
        "No errors detected.",
        "filled",
    ];
    let said = until(bench, commands, &texts).await?;
    match said.contains("Re-reading") || said.contains("partition table has been altered") {
        true => Err(format!("the partition table was written again:\n{said}")),
        false => Ok(()),
    }
}

/// When the update has ended, as the twin says: status and history say the same.
pub(crate) async fn at_end(bench: &mut Bench, end: &End) -> Outcome {
    let End { id, word, .. } = end;
    let code = end.reason.as_ref().map(|(code, _)| &**code);
    let why = code.map_or_else(String::new, |code| format!(" [{code}]"));
    let status = format!(
        "Status: \"{}, idle; last update {id}: {word}{why}\"",
        slot_and_hub(bench)
    );
    let texts = ["Active: active (running)", &*status];
    until(bench, "systemctl status --full fwupdated", &texts).await?;
    let texts = [&**id, &**word, code.unwrap_or_default()];
    until(bench, "fwupdatectl history -n 1", &texts).await?;
    Ok(())
}

/// The update's id finds its story in the journal, before and after the reboot, and the catalog explains its end.
pub(crate) async fn at_story(bench: &mut Bench, end: &End) -> Outcome {
    let End { id, .. } = end;
    let (after, subject): (&[&str], _) = match &end.reason {
        None => (&CONFIRMED, format!("Subject: Update {id} is complete")),
        Some((code, _)) => {
            let subject = format!("Subject: Update {id} was rolled back: {code}");
            (&ROLLED_BACK, subject)
        }
    };
    let last = after.last().expect("each story has an end");
    // /var is empty at each boot of this image, and Debian 12 does not make the catalog anew then.
    let explain = format!(
        "journalctl --update-catalog && journalctl -x -b MESSAGE_ID={last} FWUPDATED_UPDATE_ID={id}"
    );
    until(bench, &explain, &[&subject]).await?;

    let story = format!("journalctl -o json FWUPDATED_UPDATE_ID={id}");
    let told = until(bench, &story, &[last]).await?;
    let entries: Vec<Value> = told
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let boot = |entry: &Value| entry["_BOOT_ID"].as_str().map(str::to_owned);
    let this_boot = entries.last().and_then(boot);
    let (now, before): (Vec<_>, Vec<_>) = entries.iter().partition(|it| boot(it) == this_boot);
    if tells(&before, &BEFORE) && tells(&now, after) {
        return Ok(());
    }
    let messages: Vec<_> = entries.iter().map(|entry| &entry["MESSAGE"]).collect();
    Err(format!(
        "parts of update {id} are missing in the journal: {messages:#?}"
    ))
}

/// Whether these events are among the entries, in this order.
fn tells(entries: &[&Value], story: &[&str]) -> bool {
    let mut entries = entries.iter();
    story
        .iter()
        .all(|event| entries.any(|entry| entry["MESSAGE_ID"] == *event))
}

fn slot_and_hub(bench: &Bench) -> String {
    let running = bench.running();
    format!("slot {} ({}), hub connected", running.slot, running.version)
}
