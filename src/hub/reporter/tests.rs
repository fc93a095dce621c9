//! The reporter on a clock of the test's own: what is sent when, and what is said again.

use serde_json::json;

use super::*;

mod storms;
mod strange;
mod world;

const SECOND: Duration = Duration::from_secs(1);

fn pace() -> Pace {
    Pace {
        stage_interval: SECOND,
        progress_interval: SECOND * 5,
        answer_timeout: SECOND * 30,
        reconnect_jitter: Duration::ZERO,
    }
}

fn reporter(outbox: Vec<Value>) -> Reporter {
    Reporter::new(pace(), Jitter::seeded(1), outbox)
}

fn document(id: &str, status: &str, bytes: u64) -> Value {
    json!({"iothubDM": {"firmwareUpdate": {
        "updateId": id, "startedWaitingTime": format!("{id}-start"), "status": status,
        "error": status.ends_with("ailed").then_some("because"), "progress": {"bytesDone": bytes}
    }}})
}

fn wanted(id: &str, status: &str, bytes: u64) -> Wanted {
    let last = ["applyComplete", "downloadfailed", "applyFailed"].contains(&status);
    let change = if bytes == 0 {
        Change::Stage
    } else {
        Change::Progress
    };
    Wanted {
        document: document(id, status, bytes),
        change,
        terminal: last.then(|| id.to_owned()),
    }
}

fn status(patch: Option<&Patch>) -> Option<&str> {
    patch.map(|patch| {
        patch.body["iothubDM"]["firmwareUpdate"]["status"]
            .as_str()
            .unwrap_or("none")
    })
}

fn delivered(id: &str) -> Option<Event> {
    Some(Event::Delivered {
        update_id: id.to_owned(),
    })
}

/// A connected reporter that has reported `waiting`, and the time.
fn waiting() -> (Reporter, Instant) {
    let now = Instant::now();
    let mut reporter = reporter(vec![]);
    reporter.set_wanted(wanted("x", "waiting", 0));
    assert_eq!(reporter.poll_transmit(now), None, "not connected");
    reporter.handle_connected(&json!({"$version": 1}), now);
    let patch = reporter.poll_transmit(now).unwrap();
    reporter.handle_answer(&patch.rid, 204, None, None, now);
    assert!(reporter.is_settled());
    (reporter, now)
}

#[test]
fn a_stage_goes_at_once_and_progress_waits_for_its_interval() {
    let (mut reporter, start) = waiting();
    reporter.set_wanted(wanted("x", "waiting", 5));
    assert_eq!(reporter.poll_transmit(start + SECOND * 4), None);
    assert_eq!(reporter.poll_timeout(), Some(start + SECOND * 5));
    reporter.set_wanted(wanted("x", "downloading", 0));
    assert_eq!(reporter.poll_transmit(start + SECOND / 2), None);
    assert_eq!(reporter.poll_timeout(), Some(start + SECOND));
    let patch = reporter.poll_transmit(start + SECOND);
    assert_eq!(status(patch.as_ref()), Some("downloading"));
}

#[test]
fn pending_counts_do_not_hold_the_next_stage_back() {
    let (mut reporter, start) = waiting();
    assert!(reporter.stages_are_settled());
    reporter.set_wanted(wanted("x", "waiting", 5));
    assert!(reporter.stages_are_settled() && !reporter.is_settled());
    reporter.set_wanted(wanted("x", "downloading", 0));
    assert!(!reporter.stages_are_settled());
    let patch = reporter.poll_transmit(start + SECOND).unwrap();
    assert!(!reporter.stages_are_settled(), "not acknowledged");
    reporter.handle_answer(&patch.rid, 204, None, None, start + SECOND);
    assert!(reporter.stages_are_settled());
    reporter.handle_disconnected();
    assert!(!reporter.stages_are_settled());
}

#[test]
fn what_else_changes_after_the_end_is_reported_too() {
    let (mut reporter, start) = waiting();
    let with_problem = |word: &str, problem: Option<&str>| {
        let mut wanted = wanted("x", word, 0);
        wanted.document["fwupdated"] = json!({"problem": problem});
        wanted
    };
    reporter.set_wanted(with_problem("applyComplete", None));
    let end = reporter.poll_transmit(start + SECOND).unwrap();
    reporter.handle_answer(&end.rid, 204, None, None, start + SECOND);
    assert_eq!(reporter.poll_event(), delivered("x"));
    let later = Wanted {
        terminal: None,
        ..with_problem("applyComplete", Some("disk full"))
    };
    reporter.set_wanted(later);
    let patch = reporter.poll_transmit(start + SECOND * 2).unwrap();
    assert_eq!(patch.body, json!({"fwupdated": {"problem": "disk full"}}));
    reporter.handle_answer(&patch.rid, 204, None, None, start + SECOND * 2);
    assert_eq!(reporter.poll_event(), None, "the end is delivered once");
    // But nothing takes the end back.
    reporter.set_wanted(wanted("x", "downloading", 0));
    assert_eq!(reporter.poll_transmit(start + SECOND * 9), None);
}

#[test]
fn in_a_hurry_only_the_hub_sets_the_pace() {
    let (mut reporter, start) = waiting();
    reporter.hurry();
    for word in ["downloading", "downloadComplete"] {
        reporter.set_wanted(wanted("x", word, 0));
        let patch = reporter.poll_transmit(start).unwrap();
        assert_eq!(status(Some(&patch)), Some(word));
        assert_eq!(reporter.poll_transmit(start), None, "one in flight");
        reporter.handle_answer(&patch.rid, 204, None, None, start);
    }
    reporter.set_wanted(wanted("x", "applying", 0));
    let patch = reporter.poll_transmit(start).unwrap();
    reporter.handle_answer(&patch.rid, 429, Some(SECOND * 5), None, start);
    assert_eq!(reporter.poll_transmit(start + SECOND * 4), None);
}

#[test]
fn one_patch_is_in_flight_and_the_newest_document_follows_it() {
    let (mut reporter, start) = waiting();
    reporter.set_wanted(wanted("x", "downloading", 0));
    let first = reporter.poll_transmit(start + SECOND).unwrap();
    reporter.set_wanted(wanted("x", "downloadComplete", 0));
    reporter.set_wanted(wanted("x", "applying", 0));
    assert_eq!(reporter.poll_transmit(start + SECOND * 9), None);
    reporter.handle_answer("other", 204, None, None, start);
    assert_eq!(reporter.poll_transmit(start + SECOND * 9), None);
    reporter.handle_answer(&first.rid, 204, None, None, start);
    let next = reporter.poll_transmit(start + SECOND * 9).unwrap();
    assert_eq!(status(Some(&next)), Some("applying"));
    assert_eq!(
        next.body,
        json!({"iothubDM": {"firmwareUpdate": {"status": "applying"}}}),
        "only the difference"
    );
}

#[test]
fn throttling_is_obeyed_and_the_change_of_stage_stays_urgent() {
    let (mut reporter, start) = waiting();
    reporter.set_wanted(wanted("x", "downloading", 0));
    let first = reporter.poll_transmit(start + SECOND).unwrap();
    reporter.handle_answer(&first.rid, 429, Some(SECOND * 20), None, start + SECOND);
    assert_eq!(reporter.poll_transmit(start + SECOND * 20), None);
    let due = reporter.poll_timeout().unwrap();
    assert!(due >= start + SECOND * 21 && due <= start + SECOND * 26);
    let again = reporter.poll_transmit(due).unwrap();
    assert_eq!(status(Some(&again)), Some("downloading"));
    for _ in 0..20 {
        let due = reporter.poll_timeout().unwrap().max(due);
        reporter.handle_timeout(due);
        if let Some(patch) = reporter.poll_transmit(due) {
            reporter.handle_answer(&patch.rid, 503, None, None, due);
            assert!(reporter.poll_timeout().unwrap() <= due + SECOND * 60);
        }
    }
}

#[test]
fn a_lost_answer_leads_to_the_same_patch_again() {
    let (mut reporter, start) = waiting();
    reporter.set_wanted(wanted("x", "downloadfailed", 0));
    let lost = reporter.poll_transmit(start + SECOND).unwrap();
    assert_eq!(reporter.poll_timeout(), Some(start + SECOND * 31));
    reporter.handle_timeout(start + SECOND * 30);
    assert_eq!(reporter.poll_transmit(start + SECOND * 30), None);
    reporter.handle_timeout(start + SECOND * 31);
    let again = reporter.poll_transmit(start + SECOND * 31).unwrap();
    assert_eq!(again.body, lost.body);
    reporter.handle_answer(&lost.rid, 204, None, None, start);
    assert_eq!(
        reporter.poll_event(),
        None,
        "the late answer says nothing certain"
    );
    reporter.handle_answer(&again.rid, 204, None, None, start);
    assert_eq!(reporter.poll_event(), delivered("x"));
}

#[test]
fn a_member_that_an_unanswered_patch_may_have_set_is_taken_back() {
    let (mut reporter, start) = waiting();
    reporter.set_wanted(wanted("x", "downloading", 0));
    let lost = reporter.poll_transmit(start + SECOND).unwrap();
    reporter.handle_answer(&lost.rid, 500, None, None, start + SECOND);
    reporter.set_wanted(wanted("x", "waiting", 0));
    let later = start + SECOND * 90;
    let patch = reporter.poll_transmit(later).unwrap();
    assert_eq!(
        status(Some(&patch)),
        Some("waiting"),
        "though it was acknowledged before"
    );
}

#[test]
fn a_refused_patch_is_said_once_and_not_sent_in_a_loop() {
    let (mut reporter, start) = waiting();
    let minute = SECOND * 60;
    reporter.set_wanted(wanted("x", "downloading", 0));
    let patch = reporter.poll_transmit(start + minute).unwrap();
    reporter.handle_answer(&patch.rid, 400, None, None, start + minute);
    let rejected = Event::Rejected {
        status: 400,
        update_id: None,
    };
    assert_eq!(reporter.poll_event(), Some(rejected));
    reporter.set_wanted(wanted("x", "downloading", 7));
    assert_eq!(reporter.poll_transmit(start + minute * 9), None);
    assert_eq!(reporter.poll_timeout(), Some(start + minute * 61));
    assert!(
        reporter.is_settled(),
        "there is nothing that can be done now"
    );
    reporter.set_wanted(wanted("x", "applying", 0));
    assert!(reporter.poll_transmit(start + minute * 9).is_some());
}

#[test]
fn a_stage_that_comes_while_another_is_refused_is_tried() {
    let (mut reporter, start) = waiting();
    reporter.set_wanted(wanted("x", "downloading", 0));
    let patch = reporter.poll_transmit(start + SECOND).unwrap();
    reporter.set_wanted(wanted("x", "applyComplete", 0));
    reporter.handle_answer(&patch.rid, 400, None, None, start + SECOND);
    reporter.set_wanted(wanted("y", "waiting", 0));
    let patch = reporter.poll_transmit(start + SECOND * 2);
    assert_eq!(status(patch.as_ref()), Some("applyComplete"));
}

#[test]
fn a_refused_last_word_is_tried_again_each_hour_on_a_connection_that_stands() {
    let (mut reporter, start) = waiting();
    reporter.set_wanted(wanted("x", "applyComplete", 0));
    let mut now = start + SECOND;
    for _ in 0..3 {
        let patch = reporter.poll_transmit(now).unwrap();
        reporter.handle_answer(&patch.rid, 400, None, None, now);
        assert!(matches!(
            reporter.poll_event(),
            Some(Event::Rejected { status: 400, .. })
        ));
        assert_eq!(reporter.poll_timeout(), Some(now + SECOND * 3600));
        assert_eq!(reporter.poll_transmit(now + SECOND * 3599), None);
        now += SECOND * 3600;
    }
    let patch = reporter.poll_transmit(now).unwrap();
    reporter.handle_answer(&patch.rid, 204, None, None, now);
    assert_eq!(reporter.poll_event(), delivered("x"));
}

#[test]
fn a_retry_after_of_zero_does_not_switch_the_back_off_off() {
    let mut attempts = 0;
    let (mut reporter, start) = waiting();
    reporter.hurry();
    reporter.set_wanted(wanted("x", "downloading", 0));
    let mut now = start;
    while now < start + SECOND * 3600 {
        if let Some(patch) = reporter.poll_transmit(now) {
            attempts += 1;
            assert!(attempts < 300, "{attempts} within {:?}", now - start);
            reporter.handle_answer(&patch.rid, 429, Some(Duration::ZERO), None, now);
        }
        now = now.max(reporter.poll_timeout().unwrap());
    }
    // Full jitter of up to a minute: about two a minute, and a few more at first.
    assert!(attempts > 60, "{attempts} in an hour");
}

#[test]
fn what_another_writer_changed_is_noticed_by_the_version_and_put_right() {
    let (mut reporter, start) = waiting();
    let mut twin = document("x", "waiting", 0);
    twin["$version"] = 7.into();
    reporter.handle_connected(&twin, start);
    reporter.set_wanted(wanted("x", "downloading", 0));
    let patch = reporter.poll_transmit(start + SECOND).unwrap();
    reporter.handle_answer(&patch.rid, 204, None, Some(8), start + SECOND);
    assert!(!reporter.poll_read(start + SECOND), "7 and one is 8");

    reporter.set_wanted(wanted("x", "applying", 0));
    let patch = reporter.poll_transmit(start + SECOND * 2).unwrap();
    reporter.handle_answer(&patch.rid, 204, None, Some(10), start + SECOND * 2);
    assert!(!reporter.is_settled());
    assert!(reporter.poll_read(start + SECOND * 2), "9 was not ours");
    assert!(!reporter.poll_read(start + SECOND * 3), "asked once");
    reporter.set_wanted(wanted("x", "applyComplete", 0));
    assert_eq!(reporter.poll_transmit(start + SECOND * 9), None);
    // An answer from before our patch says nothing; nor does silence.
    twin["$version"] = 8.into();
    reporter.handle_read(&twin);
    assert_eq!(reporter.poll_timeout(), Some(start + SECOND * 32));
    reporter.handle_timeout(start + SECOND * 32);
    assert!(reporter.poll_read(start + SECOND * 32), "asked again");
    twin["iothubDM"]["firmwareUpdate"]["progress"] = json!({"bytesDone": 99});
    twin["$version"] = 10.into();
    reporter.handle_read(&twin);
    let patch = reporter.poll_transmit(start + SECOND * 33).unwrap();
    let section = &patch.body["iothubDM"]["firmwareUpdate"];
    assert_eq!(section["progress"]["bytesDone"], 0);
    assert_eq!(section["status"], "applyComplete");
}

#[test]
fn a_version_conflict_reads_the_twin_and_does_it_again_at_a_bounded_pace() {
    let (mut reporter, start) = waiting();
    reporter.set_wanted(wanted("x", "downloading", 0));
    let mut now = start + SECOND;
    let patch = reporter.poll_transmit(now).unwrap();
    reporter.handle_answer(&patch.rid, 412, None, None, now);
    assert_eq!(reporter.poll_event(), None, "it is not given up");
    assert_eq!(reporter.poll_transmit(now), None);
    now = reporter.poll_timeout().unwrap();
    assert!(reporter.poll_read(now));
    reporter.handle_read(&document("x", "waiting", 0));
    let again = reporter.poll_transmit(now + SECOND).unwrap();
    assert_eq!(again.body, patch.body);
}

#[test]
fn a_hub_that_fails_for_ever_costs_bounded_memory() {
    let (mut reporter, start) = waiting();
    let mut now = start;
    let mut reads = 0;
    for bytes in 1..500 {
        reporter.set_wanted(wanted("x", "downloading", bytes));
        now += SECOND * 100;
        reporter.handle_timeout(now);
        if reporter.poll_read(now) {
            reads += 1;
            reporter.handle_read(&document("x", "waiting", 0));
        }
        if let Some(patch) = reporter.poll_transmit(now) {
            reporter.handle_answer(&patch.rid, 503, None, None, now);
        }
        assert!(reporter.uncertain.len() <= MAX_UNCERTAIN);
    }
    assert!(reads > 10, "beyond, the twin itself says what was applied");
    now += SECOND * 100;
    if reporter.poll_read(now) {
        reporter.handle_read(&document("x", "waiting", 0));
    }
    let patch = reporter.poll_transmit(now).unwrap();
    assert_eq!(status(Some(&patch)), Some("downloading"));
}

#[test]
fn a_refused_last_word_is_tried_on_the_next_connection_and_given_up_for_a_newer_update() {
    let (mut reporter, start) = waiting();
    reporter.set_wanted(wanted("x", "applyFailed", 0));
    let mut now = start;
    for _ in 0..2 {
        now += SECOND * 60;
        reporter.handle_connected(&document("x", "waiting", 0), now);
        let patch = reporter.poll_transmit(now).unwrap();
        reporter.handle_answer(&patch.rid, 403, None, None, now);
        let said = reporter.poll_event();
        assert!(matches!(
            said,
            Some(Event::Rejected {
                status: 403,
                update_id: Some(_)
            })
        ));
        assert_eq!(reporter.poll_transmit(now + SECOND * 9), None);
    }
    reporter.set_wanted(wanted("y", "downloading", 0));
    let patch = reporter.poll_transmit(now + SECOND * 9);
    assert_eq!(status(patch.as_ref()), Some("downloading"));
    let given_up = Event::GivenUp {
        update_id: "x".to_owned(),
    };
    assert_eq!(reporter.poll_event(), Some(given_up));
}

#[test]
fn the_last_word_is_not_overtaken_by_the_next_update() {
    let (mut reporter, start) = waiting();
    reporter.set_wanted(wanted("x", "applyFailed", 0));
    reporter.set_wanted(wanted("y", "waiting", 0));
    reporter.set_wanted(wanted("y", "downloading", 0));
    let mut now = start + SECOND;
    let x = reporter.poll_transmit(now).unwrap();
    assert_eq!(status(Some(&x)), Some("applyFailed"));
    reporter.handle_answer(&x.rid, 204, None, None, now);
    assert_eq!(reporter.poll_event(), delivered("x"));
    assert_eq!(
        reporter.poll_transmit(now),
        None,
        "readers get a second to see it"
    );
    now += SECOND;
    let y = reporter.poll_transmit(now).unwrap();
    assert_eq!(status(Some(&y)), Some("downloading"));
    assert_eq!(y.body["iothubDM"]["firmwareUpdate"]["error"], Value::Null);
}

#[test]
fn the_outbox_goes_first_in_order_after_a_restart() {
    let outbox = vec![
        document("w", "downloadfailed", 0),
        document("x", "applyComplete", 0),
    ];
    let mut reporter = reporter(outbox);
    reporter.set_wanted(wanted("y", "waiting", 0));
    let mut now = Instant::now();
    reporter.handle_connected(&document("v", "applyComplete", 0), now);
    for expected in ["downloadfailed", "applyComplete", "waiting"] {
        let patch = reporter.poll_transmit(now).unwrap();
        assert_eq!(status(Some(&patch)), Some(expected));
        reporter.handle_answer(&patch.rid, 200, None, None, now);
        now += SECOND;
    }
    assert_eq!(reporter.poll_event(), delivered("w"));
    assert_eq!(reporter.poll_event(), delivered("x"));
    assert_eq!(reporter.poll_event(), None);
    assert!(reporter.is_settled());
}

#[test]
fn what_the_twin_shows_already_is_delivered_and_not_sent_again() {
    for (shown, status_shown) in [("x", "applyComplete"), ("y", "waiting")] {
        let outbox = vec![
            document("w", "applyFailed", 0),
            document("x", "applyComplete", 0),
        ];
        let mut reporter = reporter(outbox);
        reporter.set_wanted(wanted("y", "downloading", 0));
        let now = Instant::now();
        reporter.handle_connected(&document(shown, status_shown, 0), now);
        let patch = reporter.poll_transmit(now);
        assert_eq!(
            status(patch.as_ref()),
            Some("downloading"),
            "never back to x or w"
        );
        assert_eq!(reporter.poll_event(), delivered("w"));
        assert_eq!(reporter.poll_event(), delivered("x"));
    }
}

#[test]
fn a_patch_in_flight_at_a_disconnect_is_settled_by_the_twin() {
    for applied in [true, false] {
        let (mut reporter, start) = waiting();
        reporter.set_wanted(wanted("x", "applyComplete", 0));
        reporter.poll_transmit(start + SECOND).unwrap();
        reporter.handle_disconnected();
        assert_eq!(reporter.poll_timeout(), None);
        let status_then = if applied { "applyComplete" } else { "waiting" };
        reporter.handle_connected(&document("x", status_then, 0), start + SECOND * 2);
        let patch = reporter.poll_transmit(start + SECOND * 2);
        assert_eq!(patch.is_none(), applied);
        assert_eq!(reporter.poll_event().is_some(), applied);
    }
}

#[test]
fn reports_after_a_connect_are_spread() {
    let now = Instant::now();
    let mut starts: Vec<Duration> = (0..50)
        .map(|seed| {
            let spread = Pace {
                reconnect_jitter: SECOND * 3,
                ..pace()
            };
            let mut reporter = Reporter::new(spread, Jitter::seeded(seed), vec![]);
            reporter.set_wanted(wanted("x", "waiting", 0));
            reporter.handle_connected(&json!({}), now);
            reporter.poll_timeout().unwrap() - now
        })
        .collect();
    starts.sort();
    assert!(starts[0] < SECOND && starts[49] > SECOND * 2 && starts[49] <= SECOND * 3);
}

#[test]
fn a_finished_run_never_goes_back_to_an_earlier_stage() {
    let (mut reporter, start) = waiting();
    reporter.set_wanted(wanted("x", "applyComplete", 0));
    reporter.set_wanted(wanted("x", "applying", 0));
    let patch = reporter.poll_transmit(start + SECOND);
    assert_eq!(status(patch.as_ref()), Some("applyComplete"));
}
