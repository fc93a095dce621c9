//! The status document as lines for people.

use std::fmt::Write as _;

use jiff::Timestamp;

use crate::{
    ctl::{
        output::{self, bytes, clean, table},
        progress::View,
    },
    update::{
        failure::{Class, Failure},
        status::{HubStatus, Stage, Status, UpdateReport, Wear},
    },
};

/// Lines that say what runs, the slots, the hub and the update.
pub(super) fn status(status: &Status) -> Vec<String> {
    let Status {
        daemon_version,
        firmware_version,
        booted_slot,
        slots,
        bootloader,
        unsigned_allowed,
        hub,
        update,
        last_success,
        problem,
    } = status;
    let mut lines = Vec::new();
    let mut say = |name: &str, text: String| lines.push(format!("{name:<10}{}", clean(&text)));
    say(
        "Firmware",
        format!(
            "{} in slot {}",
            firmware_version.as_deref().unwrap_or("of unknown version"),
            booted_slot.map_or("?", |slot| slot.name()),
        ),
    );
    say(
        "Daemon",
        format!("fwupdated {daemon_version}, bootloader {bootloader}"),
    );
    say("Hub", self::hub(hub));
    if let Some(error) = &hub.error {
        say("", failure(error));
    }
    if let Some(time) = last_success {
        say(
            "Updated",
            format!("last successful update {}", output::time(*time)),
        );
    }
    if let Some(problem) = problem {
        say("Problem", failure(problem));
    }
    if *unsigned_allowed {
        say(
            "Warning",
            "images without a signature are installed (trust.unsigned = \"allow\")".to_owned(),
        );
    }
    lines.push(String::new());
    let rows: Vec<Vec<String>> = slots
        .iter()
        .map(|(slot, status)| {
            let booted = if *booted_slot == Some(*slot) {
                "booted"
            } else {
                ""
            };
            let version = clean(status.version.as_deref().unwrap_or("-")).into_owned();
            vec![
                slot.to_string(),
                status.state.word().to_owned(),
                version,
                booted.to_owned(),
            ]
        })
        .collect();
    lines.extend(table(&["SLOT", "STATE", "VERSION", ""], &rows));
    lines.push(String::new());
    match update {
        Some(update) => lines.extend(self::update(update)),
        None => lines.push("No update so far.".to_owned()),
    }
    lines
}

fn hub(hub: &HubStatus) -> String {
    let HubStatus {
        connected,
        host,
        device_id,
        transport,
        authentication,
        since,
        error: _,
    } = hub;
    let Some(host) = host else {
        return match device_id {
            Some(registration) => format!("no hub assigned yet to {registration}"),
            None => "no identity: see hub.connection_string_file".to_owned(),
        };
    };
    let mut text = if *connected {
        "connected to "
    } else {
        "not connected to "
    }
    .to_owned();
    text.push_str(host);
    if let Some(device) = device_id {
        let _ = write!(text, " as {device}");
    }
    let how: Vec<&str> = [transport, authentication]
        .into_iter()
        .filter_map(|how| how.as_deref())
        .collect();
    if !how.is_empty() {
        let _ = write!(text, " ({})", how.join(", "));
    }
    if let Some(since) = since {
        let _ = write!(text, " since {}", output::time(*since));
    }
    text
}

fn update(update: &UpdateReport) -> Vec<String> {
    let UpdateReport {
        id,
        origin,
        uri,
        target,
        version,
        from_version,
        stage: _,
        detail: _,
        progress,
        times,
        error,
    } = update;
    let mut lines = Vec::new();
    let mut say = |name: &str, text: String| lines.push(format!("{name:<10}{}", clean(&text)));
    let unknown = "?";
    say(
        "Update",
        format!(
            "{} -> {} into slot {target}",
            from_version.as_deref().unwrap_or(unknown),
            version.as_deref().unwrap_or(unknown),
        ),
    );
    say("Id", format!("{id}, asked for by {origin}"));
    say("Image", uri.clone());
    let view = view(update);
    let mut stage = view.word.clone();
    if let Some(percent) = view.percent {
        let _ = write!(stage, "  [{}] {percent} %", bar(percent));
    }
    for more in [view.amount().as_ref(), update.detail.as_ref()]
        .into_iter()
        .flatten()
    {
        let _ = write!(stage, "  {more}");
    }
    say("Stage", stage);
    if progress.bytes_downloaded + progress.bytes_reused + progress.bytes_written > 0 {
        say(
            "Bytes",
            format!(
                "{} downloaded, {} reused, {} written",
                bytes(progress.bytes_downloaded),
                bytes(progress.bytes_reused),
                bytes(progress.bytes_written),
            ),
        );
    }
    if let Some(medium) = medium(&progress.wear) {
        say("Medium", medium);
    }
    let reached = [
        ("accepted", times.waiting),
        ("downloading", times.downloading),
        ("downloaded", times.download_complete),
        ("applying", times.applying),
        ("ended", times.ended),
    ];
    let mut name = "Times";
    for (what, time) in reached {
        if let Some(time) = time {
            say(name, format!("{} {what}", output::time(time)));
            name = "";
        }
    }
    if let Some(error) = error {
        say("Error", failure(error));
        say("", advice(error.class).to_owned());
    }
    lines
}

/// What was done to the slot's medium beside writing; what did not happen is not mentioned.
fn medium(wear: &Wear) -> Option<String> {
    let amounts = [
        (wear.bytes_skipped, "skipped"),
        (wear.bytes_zeroed, "zeroed"),
        (wear.bytes_discarded, "discarded"),
        (wear.bytes_unreadable, "UNREADABLE"),
    ];
    let amounts = amounts.iter().filter(|(amount, _)| *amount > 0);
    let mut parts: Vec<_> = amounts
        .map(|(amount, what)| format!("{} {what}", bytes(*amount)))
        .collect();
    if wear.writes + wear.syncs > 0 {
        parts.push(format!("{} writes, {} syncs", wear.writes, wear.syncs));
    }
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// What watching shows of `update`.
pub(super) fn view(update: &UpdateReport) -> View {
    let moving = matches!(update.stage, Stage::Downloading | Stage::DownloadComplete);
    let known = moving && update.progress.bytes_total > 0;
    View {
        word: stage(update.stage).to_owned(),
        percent: known.then(|| update.progress.percent()),
        bytes: known.then_some((update.progress.bytes_done, update.progress.bytes_total)),
        note: update
            .error
            .as_ref()
            .map(failure)
            .or_else(|| update.detail.clone()),
    }
}

/// The stage in this tool's words: the status word, but with the reboot and the trial told apart.
fn stage(stage: Stage) -> &'static str {
    match stage {
        Stage::Rebooting => "rebooting",
        Stage::Trial => "trial",
        other => other.word(),
    }
}

fn failure(failure: &Failure) -> String {
    failure.to_string()
}

/// What can be done about an error of this class.
fn advice(class: Class) -> &'static str {
    match class {
        Class::Retry => "Starting the same update again may work.",
        Class::Wait => "It can work later, once the cause above is gone.",
        Class::Final => "The same update will fail again until the cause above is mended.",
    }
}

/// `percent` in 20 characters.
fn bar(percent: u8) -> String {
    let done = usize::from(percent.min(100)) / 5;
    format!("{}{}", "#".repeat(done), ".".repeat(20 - done))
}

/// The time as the documents of this tool have it.
pub(super) fn now() -> String {
    crate::update::status::iso_millis(Timestamp::now())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::update::{
        slot::Slot,
        status::{Progress, SlotState, SlotStatus, Times},
    };

    fn example() -> Status {
        let slot = |state, version: &str| SlotStatus {
            state,
            version: Some(version.to_owned()),
        };
        Status {
            daemon_version: "0.1.0".to_owned(),
            firmware_version: Some("1.3.0".to_owned()),
            booted_slot: Some(Slot::A),
            slots: BTreeMap::from([
                (Slot::A, slot(SlotState::Good, "1.3.0")),
                (
                    Slot::B,
                    SlotStatus {
                        state: SlotState::Writing,
                        version: None,
                    },
                ),
            ]),
            bootloader: "uboot".to_owned(),
            unsigned_allowed: false,
            hub: HubStatus {
                connected: true,
                host: Some("h.azure-devices.net".to_owned()),
                device_id: Some("pi-01".to_owned()),
                transport: Some("mqtt".to_owned()),
                authentication: Some("symmetric-key".to_owned()),
                since: Some(Timestamp::UNIX_EPOCH),
                error: None,
            },
            update: Some(UpdateReport {
                id: "job-1".to_owned(),
                origin: crate::update::request::Origin::Method,
                uri: "https://store.example/x.img".to_owned(),
                target: Slot::B,
                version: Some("1.4.0".to_owned()),
                from_version: Some("1.3.0".to_owned()),
                stage: Stage::Downloading,
                detail: None,
                progress: Progress {
                    bytes_done: 21_000_000,
                    bytes_total: 50_000_000,
                    bytes_downloaded: 5_000_000,
                    bytes_reused: 16_000_000,
                    bytes_written: 4_000,
                    wear: Wear {
                        bytes_skipped: 8_000,
                        bytes_discarded: 3_000_000,
                        writes: 3,
                        syncs: 2,
                        ..Wear::default()
                    },
                },
                times: Times {
                    waiting: Some(Timestamp::UNIX_EPOCH),
                    downloading: Some(Timestamp::UNIX_EPOCH),
                    ..Times::default()
                },
                error: None,
            }),
            last_success: None,
            problem: None,
        }
    }

    #[test]
    fn a_running_update_is_told_in_lines() {
        assert_eq!(
            status(&example()),
            [
                "Firmware  1.3.0 in slot a",
                "Daemon    fwupdated 0.1.0, bootloader uboot",
                "Hub       connected to h.azure-devices.net as pi-01 (mqtt, symmetric-key) since 1970-01-01T00:00:00Z",
                "",
                "SLOT  STATE    VERSION",
                "a     good     1.3.0    booted",
                "b     writing  -",
                "",
                "Update    1.3.0 -> 1.4.0 into slot b",
                "Id        job-1, asked for by the hub's method",
                "Image     https://store.example/x.img",
                "Stage     downloading  [########............] 42 %  21.0 MB of 50.0 MB",
                "Bytes     5.0 MB downloaded, 16.0 MB reused, 4.0 kB written",
                "Medium    8.0 kB skipped, 3.0 MB discarded, 3 writes, 2 syncs",
                "Times     1970-01-01T00:00:00Z accepted",
                "          1970-01-01T00:00:00Z downloading",
            ]
        );
    }

    #[test]
    fn an_error_is_told_with_its_code_and_what_to_do() {
        let mut example = example();
        let update = example.update.as_mut().unwrap();
        update.stage = Stage::DownloadFailed;
        update.error = Some(Failure::new(
            "image-signature",
            Class::Final,
            "no key\u{1b}[31m signed it",
        ));
        let lines = status(&example).join("\n");
        assert!(lines.contains("Stage     downloadfailed\n"), "{lines}");
        assert!(lines.contains("Error     no key\u{fffd}[31m signed it [image-signature]\n          The same update will fail again"), "{lines}");
    }

    #[test]
    fn what_is_unknown_is_said_to_be() {
        let mut example = example();
        example.update = None;
        example.booted_slot = None;
        example.firmware_version = None;
        example.hub = HubStatus::default();
        example.unsigned_allowed = true;
        example.problem = Some(Failure::new(
            "no-slots",
            Class::Final,
            "no slots are configured",
        ));
        let lines = status(&example);
        assert_eq!(lines[0], "Firmware  of unknown version in slot ?");
        assert_eq!(
            lines[2],
            "Hub       no identity: see hub.connection_string_file"
        );
        assert_eq!(lines[3], "Problem   no slots are configured [no-slots]");
        assert!(lines[4].starts_with("Warning   "));
        assert_eq!(lines.last().unwrap(), "No update so far.");
    }
}
