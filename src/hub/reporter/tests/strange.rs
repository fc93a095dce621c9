//! Twins and answers as no hub should send them.

use proptest::prelude::*;

use super::*;
use crate::hub::twin::without_nulls;

/// Any JSON, made of the names that matter and of others.
fn json_value() -> impl Strategy<Value = Value> {
    let names = vec![
        "iothubDM",
        "firmwareUpdate",
        "firmwareVersion",
        "firmware",
        "fwUpdateStatus",
        "fwupdated",
        "slots",
        "status",
        "error",
        "updateId",
        "startedWaitingTime",
        "progress",
        "$version",
        "x.y $",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        prop::sample::select(vec!["x", "x-start", "applyComplete", "waiting"])
            .prop_map(Value::from),
        Just(json!([null, {"status": []}])),
    ];
    leaf.prop_recursive(4, 40, 6, move |inner| {
        let name = prop::sample::select(names.clone()).prop_map(str::to_owned);
        prop::collection::btree_map(name, inner, 0..6)
            .prop_map(|members| Value::Object(members.into_iter().collect()))
    })
}

proptest! {
    #[test]
    fn any_twin_is_put_right_with_one_patch(
        found in json_value().prop_filter("a section is an object", Value::is_object)
    ) {
        let start = Instant::now();
        let mut twin = without_nulls(&found);
        let others: Vec<_> = ["x.y $", "error", "status"].map(|name| twin.get(name).cloned()).into();
        let mut reporter = reporter(vec![]);
        reporter.set_wanted(wanted("x", "applyComplete", 0));
        reporter.handle_connected(&twin, start);
        if let Some(patch) = reporter.poll_transmit(start) {
            merge(&mut twin, &patch.body);
            reporter.handle_answer(&patch.rid, 204, None, None, start);
        }
        prop_assert!(reporter.is_settled());
        prop_assert_eq!(reporter.poll_event(), delivered("x"));
        prop_assert_eq!(owned(&twin), without_nulls(&document("x", "applyComplete", 0)));
        let left: Vec<_> = ["x.y $", "error", "status"].map(|name| twin.get(name).cloned()).into();
        prop_assert_eq!(left, others, "what is not ours stays");
    }

    #[test]
    fn no_answer_and_no_twin_makes_it_panic_or_send_without_end(
        answers in prop::collection::vec(
            (any::<u16>(), prop::option::of(0..=300_u64), prop::option::of(any::<u64>()), json_value()), 1..60
        )
    ) {
        let (mut reporter, mut now) = waiting();
        reporter.set_wanted(wanted("x", "downloading", 0));
        let (mut requests, end) = (0, now + SECOND * 600);
        for (status, retry_after, version, twin) in answers.iter().cycle() {
            if reporter.poll_read(now) {
                requests += 1;
                reporter.handle_read(twin);
            }
            if let Some(patch) = reporter.poll_transmit(now) {
                requests += 1;
                let wait = retry_after.map(Duration::from_secs);
                reporter.handle_answer(&patch.rid, *status, wait, *version, now);
            }
            while reporter.poll_event().is_some() {}
            let Some(due) = reporter.poll_timeout().filter(|due| *due <= end) else {
                break;
            };
            now = now.max(due);
            reporter.handle_timeout(now);
        }
        // Ten minutes: a patch and a read a second is what the pace allows at most.
        prop_assert!(requests <= 1200, "{requests}");
    }
}
