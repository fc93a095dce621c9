//! `slots` and `history` as tables.

use crate::{
    ctl::output::{self, bytes, clean, table},
    daemon::control_names::SlotInfo,
    update::status::UpdateReport,
};

/// Characters of a digest that are shown; the whole is in `--json`.
const DIGEST_SHOWN: usize = 12;

/// One row for each slot.
pub(super) fn slots(slots: &[SlotInfo]) -> Vec<String> {
    let rows: Vec<Vec<String>> = slots
        .iter()
        .map(|info| {
            let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
            let mut boots = Vec::new();
            if info.running {
                boots.push("running".to_owned());
            }
            if info.confirmed == Some(true) {
                boots.push("confirmed".to_owned());
            }
            if let Some(tries) = info.tries_left {
                boots.push(format!("on trial, {tries} tries left"));
            }
            vec![
                info.slot.to_string(),
                info.state.word().to_owned(),
                clean(&or_dash(info.version.clone())).into_owned(),
                clean(&or_dash(info.device.clone())).into_owned(),
                or_dash(info.size.map(bytes)),
                or_dash(
                    info.installed
                        .map(|digest| digest.to_string().chars().take(DIGEST_SHOWN).collect()),
                ),
                boots.join(", "),
            ]
        })
        .collect();
    table(
        &[
            "SLOT", "STATE", "VERSION", "DEVICE", "SIZE", "SHA-256", "BOOT",
        ],
        &rows,
    )
}

/// One row for each update.
pub(super) fn history(updates: &[UpdateReport]) -> Vec<String> {
    let rows: Vec<Vec<String>> = updates
        .iter()
        .map(|update| {
            let version = |version: &Option<String>| version.clone().unwrap_or_else(|| "?".into());
            let versions = format!(
                "{} -> {}",
                version(&update.from_version),
                version(&update.version)
            );
            vec![
                update.times.ended.map_or("-".to_owned(), output::time),
                update.stage.word().to_owned(),
                clean(&versions).into_owned(),
                update.target.to_string(),
                clean(&update.id).into_owned(),
                (update.error.as_ref()).map_or(String::new(), |it| clean(&it.code).into_owned()),
            ]
        })
        .collect();
    table(&["ENDED", "RESULT", "VERSION", "SLOT", "ID", "WHY"], &rows)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_slots_table_says_what_boots_and_what_is_in_them() {
        let of: Vec<SlotInfo> = serde_json::from_value(json!([
            {"slot": "a", "running": true, "confirmed": true, "triesLeft": null, "state": "good", "version": "1.3.0",
                "device": "/dev/mmcblk0p2", "size": 2_000_000_000_u64, "installed": "ab".repeat(32)},
            {"slot": "b", "running": false, "confirmed": false, "triesLeft": 3, "state": "verified", "version": null,
                "device": null, "size": null, "installed": null},
        ]))
        .unwrap();
        assert_eq!(
            slots(&of),
            [
                "SLOT  STATE     VERSION  DEVICE          SIZE    SHA-256       BOOT",
                "a     good      1.3.0    /dev/mmcblk0p2  2.0 GB  abababababab  running, confirmed",
                "b     verified  -        -               -       -             on trial, 3 tries left",
            ]
        );
    }

    #[test]
    fn the_history_table_says_how_each_update_ended() {
        let report = |id: &str, stage: &str, code: Option<&str>| {
            let error =
                code.map(|code| json!({"code": code, "message": "\u{1b}", "class": "final"}));
            json!({"id": id, "origin": "local", "uri": "", "target": "b", "version": "2", "fromVersion": null,
                "stage": stage, "detail": null, "progress": {}, "times": {"ended": "2026-03-01T12:00:00Z"},
                "error": error})
        };
        let updates: Vec<UpdateReport> = serde_json::from_value(json!([
            report("u2", "applyComplete", None),
            report("u1\u{1b}[31m", "applyFailed", Some("health-check-failed")),
        ]))
        .unwrap();
        assert_eq!(
            history(&updates),
            [
                "ENDED                 RESULT         VERSION  SLOT  ID       WHY",
                "2026-03-01T12:00:00Z  applyComplete  ? -> 2   b     u2",
                "2026-03-01T12:00:00Z  applyFailed    ? -> 2   b     u1\u{fffd}[31m  health-check-failed",
            ]
        );
    }
}
