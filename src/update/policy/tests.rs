//! What an update waits for, at which time, and what people's words change about it.

use proptest::prelude::*;

use super::*;
use crate::update::{
    request::{Origin, Request},
    slot::Slot,
    status::Times,
};

/// A Saturday.
const ACCEPTED: &str = "2026-11-28T12:00:00Z";

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn hours(hours: u64) -> Duration {
    Duration::from_secs(hours * 3600)
}

fn rules() -> Rules {
    Rules {
        windows: Windows::default(),
        time_zone: None,
        start: Start::Window,
        approval: Approval::None,
        random_delay: Duration::ZERO,
        reboot: Reboot::Window,
        max_deferral: hours(7 * 24),
    }
}

/// Open from 02:00 to 05:00 each day.
fn nightly() -> Rules {
    Rules {
        windows: Windows(vec!["02:00-05:00".parse().unwrap()]),
        ..rules()
    }
}

fn job(consent: Consent) -> Job {
    Job {
        id: "u1".into(),
        request: Request::new("https://store/x.img.zst".parse().unwrap(), Origin::Method),
        target: Slot::B,
        from_version: None,
        times: Times {
            waiting: Some(at(ACCEPTED)),
            ..Times::default()
        },
        consent,
    }
}

fn clock(now: &str) -> Clock {
    Clock {
        now: at(now),
        zone: TimeZone::UTC,
        is_set: true,
    }
}

fn start_at(rules: &Rules, consent: Consent, now: &str) -> Verdict {
    start(rules, &job(consent), "pi-01", &clock(now))
}

fn reboot_at(rules: &Rules, consent: Consent, now: &str) -> Verdict {
    reboot(rules, &job(consent), &clock(now), &Activity::default())
}

fn words(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Go => "go".to_owned(),
        Verdict::Wait(wait) => wait.to_string(),
    }
}

#[test]
fn without_a_policy_nothing_waits() {
    assert_eq!(
        start_at(&rules(), Consent::default(), ACCEPTED),
        Verdict::Go
    );
    assert_eq!(
        reboot_at(&rules(), Consent::default(), ACCEPTED),
        Verdict::Go
    );
}

#[test]
fn a_window_is_waited_for_and_named_unless_the_phase_does_not_ask_for_one() {
    let verdict = start_at(&nightly(), Consent::default(), ACCEPTED);
    assert_eq!(
        words(&verdict),
        "waiting for the window that opens Sun 2026-11-29 02:00 UTC"
    );
    assert_eq!(reboot_at(&nightly(), Consent::default(), ACCEPTED), verdict);
    for now in ["2026-11-29T02:00:00Z", "2026-11-29T04:59:59Z"] {
        assert_eq!(start_at(&nightly(), Consent::default(), now), Verdict::Go);
        assert_eq!(reboot_at(&nightly(), Consent::default(), now), Verdict::Go);
    }
    let any_time = Rules {
        start: Start::Now,
        reboot: Reboot::Now,
        ..nightly()
    };
    assert_eq!(
        start_at(&any_time, Consent::default(), ACCEPTED),
        Verdict::Go
    );
    assert_eq!(
        reboot_at(&any_time, Consent::default(), ACCEPTED),
        Verdict::Go
    );
}

#[test]
fn with_a_clock_that_is_not_set_a_window_is_not_judged_and_the_wait_says_so() {
    let unset = Clock {
        is_set: false,
        ..clock("2026-11-29T03:00:00Z")
    };
    let verdict = start(&nightly(), &job(Consent::default()), "pi-01", &unset);
    assert_eq!(verdict, Verdict::Wait(Wait::Clock));
    assert!(words(&verdict).contains("clock to be set"));
    // Where nothing depends on it, it is not asked for.
    assert_eq!(
        start(&rules(), &job(Consent::default()), "pi-01", &unset),
        Verdict::Go
    );
}

#[test]
fn approval_is_waited_for_first_and_the_window_after_it() {
    let rules = Rules {
        approval: Approval::Required,
        ..nightly()
    };
    let night = "2026-11-29T03:00:00Z";
    let verdict = start_at(&rules, Consent::default(), night);
    assert_eq!(verdict, Verdict::Wait(Wait::Approval));
    assert!(words(&verdict).starts_with("waiting for approval"));
    let approved = || Consent {
        start: true,
        ..Consent::default()
    };
    assert_eq!(start_at(&rules, approved(), night), Verdict::Go);
    assert!(matches!(
        start_at(&rules, approved(), ACCEPTED),
        Verdict::Wait(Wait::Window { .. })
    ));
}

#[test]
fn a_reboot_by_hand_waits_for_a_word_about_the_reboot() {
    let rules = Rules {
        reboot: Reboot::Manual,
        ..rules()
    };
    let consent = |start, reboot| Consent {
        start,
        reboot,
        ..Consent::default()
    };
    assert_eq!(
        reboot_at(&rules, consent(true, false), ACCEPTED),
        Verdict::Wait(Wait::RebootByHand)
    );
    assert_eq!(
        reboot_at(&rules, consent(false, true), ACCEPTED),
        Verdict::Go
    );
}

#[test]
fn a_reboot_when_idle_waits_for_users_and_load_but_not_for_ever() {
    let rules = Rules {
        reboot: Reboot::Idle,
        ..rules()
    };
    let asked = |users, load, now| {
        words(&reboot(
            &rules,
            &job(Consent::default()),
            &clock(now),
            &Activity { users, load },
        ))
    };
    assert_eq!(asked(0, 0.49, ACCEPTED), "go");
    assert!(asked(2, 0.0, ACCEPTED).contains("nobody is logged in (2 users are)"));
    assert!(asked(0, 0.5, ACCEPTED).contains("little to do"));
    assert!(asked(1, 9.0, "2026-12-05T11:59:59Z").contains("(1 user is)"));
    assert_eq!(asked(1, 9.0, "2026-12-05T12:00:00Z"), "go");
}

#[test]
fn force_and_a_person_s_now_pass_every_wait() {
    let strict = Rules {
        approval: Approval::Required,
        reboot: Reboot::Manual,
        random_delay: hours(1),
        ..nightly()
    };
    let mut forced = job(Consent {
        deferred_until: Some(at("2026-11-28T14:00:00Z")),
        ..Consent::default()
    });
    forced.request.force = true;
    let now = job(Consent {
        now: true,
        ..Consent::default()
    });
    for job in [forced, now] {
        let unset = Clock {
            is_set: false,
            ..clock(ACCEPTED)
        };
        assert_eq!(start(&strict, &job, "pi-01", &unset), Verdict::Go);
        assert_eq!(
            reboot(&strict, &job, &unset, &Activity::default()),
            Verdict::Go
        );
    }
}

#[test]
fn what_is_put_off_waits_until_then_and_no_longer_than_the_limit_from_the_acceptance() {
    let put_off = |by, now| deferred_until(&rules(), &job(Consent::default()), by, at(now));
    assert_eq!(
        put_off(hours(2), "2026-11-28T13:00:00Z"),
        Some(at("2026-11-28T15:00:00Z"))
    );
    // A week from the acceptance, whatever is asked for and whenever.
    let limit = at("2026-12-05T12:00:00Z");
    assert_eq!(put_off(hours(10_000), ACCEPTED), Some(limit));
    assert_eq!(put_off(hours(2), "2026-12-05T11:00:00Z"), Some(limit));
    assert_eq!(put_off(hours(2), "2026-12-05T12:00:00Z"), None);
    let never = Rules {
        max_deferral: Duration::ZERO,
        ..rules()
    };
    assert_eq!(
        deferred_until(&never, &job(Consent::default()), hours(2), at(ACCEPTED)),
        None
    );
    let mut forced = job(Consent::default());
    forced.request.force = true;
    assert_eq!(
        deferred_until(&rules(), &forced, hours(2), at(ACCEPTED)),
        None
    );

    let deferred = || Consent {
        deferred_until: Some(at("2026-11-28T15:00:00Z")),
        ..Consent::default()
    };
    let verdict = start_at(&rules(), deferred(), "2026-11-28T14:59:59Z");
    assert_eq!(words(&verdict), "put off until 2026-11-28T15:00:00Z");
    assert_eq!(
        reboot_at(&rules(), deferred(), "2026-11-28T14:59:59Z"),
        verdict
    );
    assert_eq!(
        start_at(&rules(), deferred(), "2026-11-28T15:00:00Z"),
        Verdict::Go
    );
    // Said by a clock that was years ahead.
    assert_eq!(
        start_at(&rules(), deferred(), "2020-01-01T00:00:00Z"),
        Verdict::Go
    );
}

#[test]
fn the_random_delay_is_stable_bounded_and_spreads_a_fleet() {
    let most = hours(1);
    let delays: Vec<_> = (0..1000)
        .map(|n| delay(most, &format!("pi-{n}"), "u1"))
        .collect();
    assert!(delays.iter().all(|d| *d < most));
    assert_eq!(delays[7], delay(most, "pi-7", "u1"));
    let early = delays.iter().filter(|d| **d < most / 4).count();
    assert!(
        (200..300).contains(&early),
        "{early} of 1000 in the first quarter"
    );
    assert_eq!(delay(Duration::ZERO, "x", "y"), Duration::ZERO);
}

#[test]
fn a_fleet_that_waited_for_a_window_is_spread_within_it_and_every_device_gets_its_turn() {
    let rules = Rules {
        random_delay: hours(24),
        ..nightly()
    };
    let starts: Vec<_> = (0..200)
        .map(|n| {
            let opens = clock("2026-11-29T02:00:00Z");
            match start(&rules, &job(Consent::default()), &format!("pi-{n}"), &opens) {
                Verdict::Wait(Wait::Delay { until }) => until,
                other => panic!("{other:?}"),
            }
        })
        .collect();
    assert!(
        starts
            .iter()
            .all(|start| *start < at("2026-11-29T05:00:00Z"))
    );
    let early = starts
        .iter()
        .filter(|start| **start < at("2026-11-29T03:30:00Z"))
        .count();
    assert!(
        (70..130).contains(&early),
        "{early} of 200 in the first half"
    );
}

proptest! {
    /// Asked again when it says that the answer will be another one, the policy never waits in circles for the same
    /// thing, and never says a time that is past.
    #[test]
    fn a_wait_ends_in_the_future_and_what_is_waited_for_then_is_something_else(
        minutes in 0_i64..20_000,
        deferral in proptest::option::of(0_i64..20_000),
        delay in 0_u64..30,
        windows in prop::sample::subsequence(vec!["Mon..Fri 02:00-05:00", "Sat 22:00-06:00", "Tue 12:00-12:01"], 0..=3),
    ) {
        let rules = Rules {
            windows: Windows(windows.iter().map(|text| text.parse().unwrap()).collect()),
            random_delay: hours(delay),
            ..rules()
        };
        let job = job(Consent {
            deferred_until: deferral.map(|minutes| at(ACCEPTED) + SignedDuration::from_mins(minutes)),
            ..Consent::default()
        });
        let mut clock = Clock { now: at(ACCEPTED) + SignedDuration::from_mins(minutes), ..clock(ACCEPTED) };
        // At most: put off, a window, the delay in it; and a window once more if the delay ends with it.
        for _ in 0..6 {
            match start(&rules, &job, "pi-01", &clock) {
                Verdict::Go => return Ok(()),
                Verdict::Wait(wait) => {
                    let ends = wait.ends().expect("nobody is waited for");
                    prop_assert!(clock.now < ends, "{wait:?}");
                    clock.now = ends;
                    let next = start(&rules, &job, "pi-01", &clock);
                    prop_assert_ne!(next, Verdict::Wait(wait));
                }
            }
        }
        prop_assert!(false, "it never goes on");
    }
}
