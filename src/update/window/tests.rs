//! Windows as written and as open, on days when clocks are changed above all, in every zone that the system knows.

use proptest::prelude::*;

use super::*;

fn windows(texts: &[&str]) -> Windows {
    Windows(texts.iter().map(|text| text.parse().unwrap()).collect())
}

fn zone(name: &str) -> TimeZone {
    TimeZone::get(name).unwrap()
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// When the windows open and close between two instants.
fn openings(windows: &Windows, from: &str, to: &str, zone: &TimeZone) -> Vec<(String, String)> {
    let (mut now, to) = (at(from), at(to));
    let mut found = Vec::new();
    while now < to {
        match windows.standing(now, zone) {
            Standing::Open { since, until } => {
                found.push((since.to_string(), until.to_string()));
                now = until;
            }
            Standing::Closed { opens } => now = opens,
        }
    }
    found
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    let own = |(from, to): &(&str, &str)| ((*from).to_owned(), (*to).to_owned());
    expected.iter().map(own).collect()
}

#[test]
fn a_window_is_read_as_systemd_names_days_and_shown_in_one_form() {
    for (text, shown) in [
        ("Mon..Fri 02:00-05:00", "Mon,Tue,Wed,Thu,Fri 02:00-05:00"),
        ("sat,SUN 22:00-06:00", "Sat,Sun 22:00-06:00"),
        ("  01:30-04:00 ", "01:30-04:00"),
        ("Fri..Mon 00:00-24:00", "Mon,Fri,Sat,Sun 00:00-24:00"),
        (
            "Mon,Wednesday..Fri 23:59-00:00",
            "Mon,Wed,Thu,Fri 23:59-00:00",
        ),
        ("Mon..Sun 12:00-12:01", "12:00-12:01"),
    ] {
        let window: Window = text.parse().unwrap();
        assert_eq!(window.to_string(), shown, "{text}");
        assert_eq!(shown.parse(), Ok(window), "{text}");
    }
}

#[test]
fn what_is_no_window_says_why_and_what_is_one() {
    for (text, why) in [
        ("", "not days"),
        ("Mon", "no `-`"),
        ("Mon 02:00 - 05:00", "not days"),
        ("Mon 2:00-05:00", "not HH:MM"),
        ("Mon 02:60-05:00", "not HH:MM"),
        ("Mon 02:00-24:01", "not HH:MM"),
        ("Mon 24:00-05:00", "only be its end"),
        ("Mon 02:00-02:00", "whole day"),
        ("Mo 02:00-05:00", "none of Mon"),
        ("Mon...Fri 02:00-05:00", "none of Mon"),
        ("Mon-Fri 02:00-05:00", "none of Mon"),
        ("Mon..Fri,02:00-05:00", "not HH:MM"),
        ("+2:00-05:00", "not HH:MM"),
    ] {
        let error = text.parse::<Window>().unwrap_err().to_string();
        assert!(error.contains(why), "{text}: {error}");
        assert!(error.contains("Mon..Fri 02:00-05:00"), "{error}");
    }
}

#[test]
fn a_window_over_midnight_belongs_to_the_day_on_which_it_begins() {
    let windows = windows(&["Sat,Sun 22:00-06:00", "Wed 03:00-03:30"]);
    let open = openings(
        &windows,
        "2026-11-23T00:00:00Z",
        "2026-11-30T00:00:00Z",
        &TimeZone::UTC,
    );
    assert_eq!(
        open,
        pairs(&[
            // Of the Sunday before.
            ("2026-11-22T22:00:00Z", "2026-11-23T06:00:00Z"),
            ("2026-11-25T03:00:00Z", "2026-11-25T03:30:00Z"),
            ("2026-11-28T22:00:00Z", "2026-11-29T06:00:00Z"),
            ("2026-11-29T22:00:00Z", "2026-11-30T06:00:00Z"),
        ])
    );
}

#[test]
fn windows_that_touch_are_one_and_none_at_all_is_always_open() {
    let touching = windows(&["Mon 22:00-24:00", "Tue 00:00-02:00", "Tue 01:00-03:00"]);
    let open = openings(
        &touching,
        "2026-11-23T00:00:00Z",
        "2026-11-24T12:00:00Z",
        &TimeZone::UTC,
    );
    assert_eq!(
        open,
        pairs(&[("2026-11-23T22:00:00Z", "2026-11-24T03:00:00Z")])
    );
    for always in [
        windows(&[]),
        windows(&["00:00-24:00"]),
        windows(&["12:00-11:00", "10:00-13:00"]),
    ] {
        let now = at("2026-03-29T01:00:00Z");
        let Standing::Open { since, until } = always.standing(now, &zone("Europe/Berlin")) else {
            panic!("{always:?} is closed");
        };
        assert!(since < now && now < until);
    }
}

/// On 29 March 2026 Berlin's clocks went from 02:00 to 03:00, at 01:00Z.
#[test]
fn where_the_clock_is_set_forward_what_is_left_of_a_window_is_open_and_none_is_lost() {
    for (text, expected) in [
        // Around the change: as the clock on the wall says, an hour less.
        (
            "Sun 01:00-05:00",
            ("2026-03-29T00:00:00Z", "2026-03-29T03:00:00Z"),
        ),
        // It begins in the hour that there is not: at its end.
        (
            "Sun 02:30-05:00",
            ("2026-03-29T01:00:00Z", "2026-03-29T03:00:00Z"),
        ),
        // It ends there: at the change.
        (
            "Sun 01:30-02:30",
            ("2026-03-29T00:30:00Z", "2026-03-29T01:00:00Z"),
        ),
        // It lies there whole: at the change, for as long as it is.
        (
            "Sun 02:10-02:50",
            ("2026-03-29T01:00:00Z", "2026-03-29T01:40:00Z"),
        ),
        (
            "Sun 02:00-03:00",
            ("2026-03-29T01:00:00Z", "2026-03-29T02:00:00Z"),
        ),
        (
            "Sat 22:00-06:00",
            ("2026-03-28T21:00:00Z", "2026-03-29T04:00:00Z"),
        ),
    ] {
        let open = openings(
            &windows(&[text]),
            "2026-03-28T12:00:00Z",
            "2026-03-29T12:00:00Z",
            &zone("Europe/Berlin"),
        );
        assert_eq!(open, pairs(&[expected]), "{text}");
    }
}

/// On 25 October 2026 they went from 03:00 back to 02:00, at 01:00Z.
#[test]
fn where_the_clock_is_set_back_the_clock_on_the_wall_counts_both_times() {
    for (text, expected) in [
        (
            "Sun 01:00-05:00",
            vec![("2026-10-24T23:00:00Z", "2026-10-25T04:00:00Z")],
        ),
        (
            "Sun 02:10-02:50",
            vec![
                ("2026-10-25T00:10:00Z", "2026-10-25T00:50:00Z"),
                ("2026-10-25T01:10:00Z", "2026-10-25T01:50:00Z"),
            ],
        ),
        (
            "Sun 01:30-02:30",
            vec![
                ("2026-10-24T23:30:00Z", "2026-10-25T00:30:00Z"),
                ("2026-10-25T01:00:00Z", "2026-10-25T01:30:00Z"),
            ],
        ),
        (
            "Sun 03:00-04:00",
            vec![("2026-10-25T02:00:00Z", "2026-10-25T03:00:00Z")],
        ),
    ] {
        let open = openings(
            &windows(&[text]),
            "2026-10-24T12:00:00Z",
            "2026-10-25T12:00:00Z",
            &zone("Europe/Berlin"),
        );
        assert_eq!(open, pairs(&expected), "{text}");
    }
}

/// Each change of each zone's clocks from 1990 on, and some of those that rules give for the future.
fn changes() -> Vec<(TimeZone, Timestamp)> {
    let (from, to) = (at("1990-01-01T00:00:00Z"), at("2040-01-01T00:00:00Z"));
    let mut found = Vec::new();
    for name in jiff::tz::db().available() {
        let Ok(zone) = TimeZone::get(name.as_str()) else {
            continue;
        };
        let changes = zone
            .following(from)
            .map(|change| change.timestamp())
            .take_while(|change| *change < to);
        found.extend(
            changes
                .collect::<Vec<_>>()
                .into_iter()
                .map(|change| (zone.clone(), change)),
        );
    }
    found
}

/// Every zone that the system knows is among the changes that are drawn from.
fn drawn_change() -> impl Strategy<Value = (TimeZone, Timestamp)> {
    let all = changes();
    assert!(
        all.len() > 10_000,
        "only {} changes: is tzdata installed?",
        all.len()
    );
    prop::sample::select(all)
}

fn drawn_windows() -> impl Strategy<Value = Windows> {
    let window = (prop::array::uniform7(any::<bool>()), 0..DAY, 1..=DAY)
        .prop_filter_map("a window begins before it ends", |(days, start, end)| {
            (start != end).then_some(Window { days, start, end })
        });
    prop::collection::vec(window, 1..4).prop_map(Windows)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn around_any_change_of_any_clock_a_window_is_open_as_the_wall_says_and_the_standing_agrees(
        (zone, change) in drawn_change(),
        windows in drawn_windows(),
        minutes in -3000_i64..3000,
    ) {
        let now = change + SignedDuration::from_mins(minutes);
        let open = windows.is_open(now, &zone);

        // By the wall alone, minute by minute of its day: what is open must be open.
        let local = zone.to_datetime(now);
        let minute = u16::try_from(local.hour()).unwrap() * 60 + u16::try_from(local.minute()).unwrap();
        let today = day_of(local.weekday());
        let by_the_wall = windows.0.iter().any(|window| {
            let over_midnight = window.end <= window.start;
            let begun = window.days[today] && window.start <= minute && (over_midnight || minute < window.end);
            begun || (window.days[(today + 6) % 7] && over_midnight && minute < window.end)
        });
        prop_assert!(!by_the_wall || open, "{now} is {local}");
        // And what is open beyond it makes up for what a change has swallowed, within a day after that.
        if open && !by_the_wall {
            let (last, before, after) = last_change(now, &zone).unwrap();
            prop_assert!(before < after && now.duration_since(last) < SignedDuration::from_hours(24));
        }

        match windows.standing(now, &zone) {
            Standing::Open { since, until } => {
                prop_assert!(open && since <= now && now < until);
                prop_assert!(windows.is_open(since, &zone) && windows.is_open(until - NANOSECOND, &zone));
            }
            Standing::Closed { opens } => {
                prop_assert!(!open && now < opens);
                prop_assert!(!windows.is_open(opens - NANOSECOND, &zone));
                // Every window comes once a week, whatever happens to the clocks.
                let has_days = windows.0.iter().any(|window| window.days != [false; 7]);
                prop_assert!(!has_days || windows.is_open(opens, &zone), "nothing opens from {now} on");
            }
        }
    }
}
