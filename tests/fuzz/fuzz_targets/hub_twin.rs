//! Any JSON as the twin's reported section: it is put right with few patches, by the hub's rules of merging, and
//! nothing of others is touched. First line: what there is; second: what another writer then puts there.
#![no_main]

use std::time::{Duration, Instant};

use fwupdated::hub::{
    backoff::Jitter,
    reporter::{Change, Pace, Reporter, Wanted},
    twin::{merge, owned, without_nulls},
};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

fuzz_target!(|bytes: &[u8]| {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let mut json = || serde_json::from_slice::<Value>(lines.next().unwrap_or_default()).ok();
    let Some(mut twin) = json().filter(Value::is_object) else {
        return;
    };
    let foreign = json().filter(Value::is_object).unwrap_or(json!({}));
    let pace = Pace {
        stage_interval: Duration::ZERO,
        progress_interval: Duration::ZERO,
        answer_timeout: Duration::from_secs(30),
        reconnect_jitter: Duration::ZERO,
    };
    let now = Instant::now();
    let mut reporter = Reporter::new(pace, Jitter::seeded(1), Vec::new());
    let document = json!({
        "iothubDM": {"firmwareUpdate": {"updateId": "u", "startedWaitingTime": "t", "status": "applyComplete", "error": null}},
        "firmware": {"fwUpdateStatus": "current"},
        "fwupdated": {"slots": {"a": {"state": "good"}, "b": null}},
    });
    reporter.set_wanted(Wanted {
        document: document.clone(),
        change: Change::Stage,
        terminal: Some("u".to_owned()),
    });
    let mut version = 1;
    for change in [json!({}), foreign] {
        merge(&mut twin, &change);
        twin["$version"] = version.into();
        reporter.handle_connected(&twin, now);
        let mut patches = 0;
        while let Some(patch) = reporter.poll_transmit(now) {
            merge(&mut twin, &patch.body);
            version += 1;
            reporter.handle_answer(&patch.rid, 204, None, Some(version), now);
            patches += 1;
            assert!(patches <= 1, "one patch says it all");
        }
        assert_eq!(owned(&twin), without_nulls(&document));
        assert!(reporter.is_settled());
    }
});
