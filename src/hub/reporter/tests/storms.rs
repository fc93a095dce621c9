//! Schedules of updates, faults, reconnects and restarts against [`super::world`]: all of one or two faults in
//! the course of two updates, and many random ones.

use proptest::prelude::*;

use super::world::{Hub, Op, World};

/// Two updates, of which the first succeeds, with everything answered at once.
fn good_course() -> Vec<Op> {
    let mut course = vec![Op::Connect];
    for _ in 0..8 {
        let answered = [Op::Hub(Hub::Answer), Op::HandAnswer, Op::Wait(1000)];
        course.extend(answered);
        course.extend([Op::Progress, Op::Wait(5000)]);
        course.extend(answered);
        course.push(Op::Stage);
    }
    course.push(Op::RefusedAtOnce);
    course
}

const FAULTS: [Op; 11] = [
    Op::Cut { arrive: 0 },
    Op::Cut { arrive: 1 },
    Op::Restart { forget: false },
    Op::Restart { forget: true },
    Op::Connect,
    Op::Hub(Hub::AnswerLost),
    Op::Hub(Hub::RequestLost),
    Op::Hub(Hub::Fail { applied: true }),
    Op::Hub(Hub::Throttle {
        retry_after: Some(0),
    }),
    Op::Hub(Hub::Conflict),
    Op::Foreign(1),
];

/// `course` with `fault` before its event `at`, and a connection again `later` events after it.
fn with_fault(course: &[Op], fault: Op, at: usize, later: usize) -> Vec<Op> {
    let mut with = course.to_vec();
    if let Op::Cut { .. } | Op::Restart { .. } = fault {
        with.insert((at + later).min(with.len()), Op::Connect);
    }
    with.insert(at, fault);
    with
}

fn run(ops: &[Op]) {
    let mut world = World::new();
    for op in ops {
        world.step(*op);
    }
    world.calm();
}

#[test]
fn whatever_one_fault_hits_the_last_words_arrive_in_order_and_the_twin_never_goes_back() {
    let course = good_course();
    for fault in FAULTS {
        for at in 0..=course.len() {
            for later in [0, 1, 4, 11] {
                run(&with_fault(&course, fault, at, later));
            }
        }
    }
}

#[test]
fn so_it_is_with_two_faults() {
    let course = good_course();
    // Not every pair of moments, but for each pair of faults other ones.
    for (number, first) in FAULTS.into_iter().enumerate() {
        for at in (number..=course.len()).step_by(11) {
            let once = with_fault(&course, first, at, 2);
            for (number, second) in FAULTS.into_iter().enumerate() {
                for at in (at + number % 7..=once.len()).step_by(7) {
                    run(&with_fault(&once, second, at, 3));
                }
            }
        }
    }
}

#[test]
fn ten_thousand_changes_become_a_handful_of_patches() {
    let mut world = World::new();
    world.step(Op::Connect);
    for change in 0..10_000 {
        // Ten seconds in all; the hub answers each patch after some time.
        world.step(Op::Wait(1));
        world.step(if change == 5000 {
            Op::Stage
        } else {
            Op::Progress
        });
        if change % 50 == 0 {
            world.step(Op::Hub(Hub::Answer));
            world.step(Op::HandAnswer);
        }
    }
    assert!(world.patches <= 5, "{} patches", world.patches);
    world.calm();
}

fn op() -> impl Strategy<Value = Op> {
    let retry_after = prop::sample::select(vec![None, Some(0), Some(7), Some(300)]);
    let hub = prop_oneof![
        10 => Just(Hub::Answer),
        2 => Just(Hub::AnswerLost),
        2 => Just(Hub::RequestLost),
        2 => retry_after.prop_map(|retry_after| Hub::Throttle { retry_after }),
        2 => any::<bool>().prop_map(|applied| Hub::Fail { applied }),
        1 => Just(Hub::Refuse),
        1 => Just(Hub::Conflict),
    ];
    prop_oneof![
        8 => (0..40_000_u64).prop_map(Op::Wait),
        4 => Just(Op::Progress),
        8 => Just(Op::Stage),
        1 => Just(Op::RefusedAtOnce),
        12 => hub.prop_map(Op::Hub),
        12 => Just(Op::HandAnswer),
        1 => any::<u8>().prop_map(Op::Foreign),
        2 => (0..3_usize).prop_map(|arrive| Op::Cut { arrive }),
        6 => Just(Op::Connect),
        2 => any::<bool>().prop_map(|forget| Op::Restart { forget }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn after_any_storm_every_last_word_arrived_in_order_and_the_twin_never_went_back(
        ops in prop::collection::vec(op(), 0..160)
    ) {
        run(&ops);
    }
}
