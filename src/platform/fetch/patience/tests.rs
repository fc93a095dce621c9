//! Patience in simulated time.

use super::*;

const SILENCE: Duration = Duration::from_secs(60);

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn a_drip_is_too_slow_once_a_window_and_a_slow_link_is_not() {
    // Connections, bytes that come after each second of waiting, and how often that is too slow within the hour.
    for (connections, rate, times) in [
        (1, 0, 6),
        (1, 1, 6),
        (1, 1023, 6),
        (1, 1024, 0),
        (1, 100_000, 0),
        // A slow link's bytes are shared: one of four is as good as its share.
        (4, 255, 6),
        (4, 256, 0),
    ] {
        let mut patience = Patience::new(seconds(60), SILENCE, connections);
        let mut verdicts = Vec::new();
        for _ in 0..3600 {
            patience.waited(seconds(1));
            patience.received(rate);
            verdicts.extend(patience.too_slow());
        }
        assert_eq!(verdicts, vec![(rate * 600, seconds(600)); times], "{rate}");
    }
    // Nine silent minutes and then a good one are a bad link, but one that works.
    let mut patience = Patience::new(seconds(60), SILENCE, 1);
    patience.waited(seconds(540));
    patience.received(700_000);
    patience.waited(seconds(60));
    assert_eq!(patience.too_slow(), None);
}

#[test]
fn time_that_several_wait_at_once_counts_once() {
    let start = Instant::now();
    // Four downloads of 300 bytes a second each are together above the least.
    for (each, slow) in [(300, false), (200, true)] {
        let mut budget = Budget::new(seconds(3600), SILENCE);
        let mut verdicts = 0;
        for second in 0..600 {
            let began = start + seconds(second);
            for _ in 0..4 {
                budget.waited(began, began + seconds(1));
                budget.received(each);
                verdicts += usize::from(budget.too_slow().is_some());
            }
        }
        // The last second's bytes come after the verdict.
        assert_eq!(verdicts, usize::from(slow), "{each}");
    }
    // Gaps in which nobody waits do not count.
    let mut budget = Budget::new(seconds(3600), SILENCE);
    budget.waited(start, start + seconds(10));
    budget.waited(start + seconds(5), start + seconds(12));
    budget.waited(start + seconds(20), start + seconds(21));
    assert_eq!(budget.window.waited, seconds(13));
}

#[test]
fn a_drip_does_not_put_off_the_moment_of_giving_up() {
    let mut patience = Patience::new(seconds(60), SILENCE, 1);
    let mut budget = Budget::new(seconds(3600), SILENCE);
    let (start, mut now) = (Instant::now(), Instant::now());
    loop {
        for _ in 0..11 {
            now += seconds(59);
            patience.waited(seconds(59));
            patience.received(1);
            patience.progress();
            budget.progress(1);
        }
        patience.too_slow().unwrap();
        let left = budget.left(now);
        if left.is_zero() {
            break;
        }
        now += patience.pause(left, None);
    }
    assert!(
        now - start < seconds(3600 + 2 * 11 * 60),
        "{:?}",
        now - start
    );
}

#[test]
fn small_ranges_that_each_drip_are_given_up_together() {
    let mut budget = Budget::new(seconds(3600), SILENCE);
    let (start, mut now) = (Instant::now(), Instant::now());
    // Each range of 32 KiB takes five minutes, at 109 bytes a second: none of them is too slow by itself.
    let mut given_up = false;
    while !given_up && now - start < seconds(24 * 3600) {
        for _ in 0..300 {
            budget.waited(now, now + seconds(1));
            now += seconds(1);
            budget.received(109);
            budget.progress(109);
            given_up |= budget.too_slow().is_some() && budget.left(now).is_zero();
        }
    }
    assert!(
        given_up && now - start < seconds(2 * 3600),
        "{:?}",
        now - start
    );
}

fn headers(wait: &str, date: Option<&str>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(RETRY_AFTER, wait.parse().unwrap());
    if let Some(date) = date {
        headers.insert(DATE, date.parse().unwrap());
    }
    headers
}

#[test]
fn retry_after_is_seconds_or_a_date_by_the_servers_clock() {
    let date = Some("Sun, 06 Nov 1994 08:49:37 GMT");
    for (wait, expected) in [
        ("120", Some(120)),
        ("0", Some(0)),
        ("99999999999999999999", Some(u32::MAX.into())),
        ("Sun, 06 Nov 1994 08:50:07 GMT", Some(30)),
        ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
        ("soon", None),
        ("-5", None),
        ("", None),
    ] {
        let found = retry_after(&headers(wait, date));
        assert_eq!(found, expected.map(Duration::from_secs), "{wait}");
    }
    // Without the server's date it is this device's clock that counts: long past.
    let found = retry_after(&headers("Sun, 06 Nov 1994 08:49:37 GMT", None));
    assert_eq!(found, Some(Duration::ZERO));
}

#[test]
fn pauses_grow_to_the_longest_and_end_when_patience_does() {
    let longest = Duration::from_secs(60);
    let started = Instant::now();
    let mut now = started;
    let mut patience = Patience::new(longest, SILENCE, 1);
    let mut budget = Budget::new(Duration::from_secs(3600), SILENCE);
    let mut pauses = Vec::new();
    loop {
        let left = budget.left(now);
        if left.is_zero() {
            break;
        }
        let pause = patience.pause(left, None);
        let bound = FIRST_PAUSE.saturating_mul(1 << pauses.len().min(20));
        assert!(pause <= bound.min(longest), "{pauses:?} {pause:?}");
        now += pause;
        pauses.push(pause);
    }
    assert_eq!(now - started, Duration::from_secs(3600));
    let mean = pauses.iter().sum::<Duration>() / u32::try_from(pauses.len()).unwrap();
    assert!(mean > Duration::from_secs(15), "{mean:?}");
}

#[test]
fn what_the_server_asks_for_is_waited_but_neither_for_hours_nor_longer_than_patience() {
    let start = Instant::now();
    let mut patience = Patience::new(seconds(1), SILENCE, 1);
    let mut budget = Budget::new(seconds(100), SILENCE);
    let pause = patience.pause(budget.left(start), Some(seconds(30)));
    assert!((30..=31).contains(&pause.as_secs()), "{pause:?}");
    let pause = patience.pause(budget.left(start), Some(seconds(1000)));
    assert_eq!(pause, seconds(100));
    let pause = patience.pause(seconds(30 * 24 * 3600), Some(seconds(86_400)));
    assert!((1800..=1801).contains(&pause.as_secs()), "{pause:?}");
    assert!(budget.left(start + seconds(100)).is_zero());
    // Some bytes make the next pause short, but only as many as a window must bring are a new start.
    budget.progress(budget.window.least - 1);
    patience.progress();
    assert_eq!(patience.attempts(), 0);
    assert!(budget.left(start + seconds(100)).is_zero());
    budget.progress(1);
    // However long the reader took before the next failure.
    let later = start + seconds(5000);
    assert_eq!(budget.left(later), seconds(100));
    assert_eq!(budget.left(later + seconds(99)), seconds(1));
    assert!(budget.left(later + seconds(100)).is_zero());
}
