//! Random schedules of updates, faults, reconnects and restarts against a model of the hub.

use proptest::prelude::*;

use super::*;
use crate::hub::twin::without_nulls;

/// What the hub does with the next patch.
#[derive(Debug, Clone, Copy)]
enum Hub {
    Answer,
    /// Applied, but the answer never comes.
    AnswerLost,
    /// Neither applied nor answered.
    PatchLost,
    Throttle,
    Fail {
        applied: bool,
    },
}

#[derive(Debug, Clone, Copy)]
enum Op {
    Wait(u64),
    Progress,
    Stage,
    Hub(Hub),
    HandAnswer,
    /// The connection ends; some of the patches under way still arrive.
    Cut {
        arrive: usize,
    },
    Connect,
    /// The daemon starts again; perhaps it forgot what was delivered since it last wrote its outbox.
    Restart {
        forget: bool,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let hub = prop_oneof![
        5 => Just(Hub::Answer),
        1 => Just(Hub::AnswerLost),
        1 => Just(Hub::PatchLost),
        1 => Just(Hub::Throttle),
        1 => any::<bool>().prop_map(|applied| Hub::Fail { applied }),
    ];
    prop_oneof![
        4 => (0..40_000_u64).prop_map(Op::Wait),
        2 => Just(Op::Progress),
        4 => Just(Op::Stage),
        6 => hub.prop_map(Op::Hub),
        6 => Just(Op::HandAnswer),
        1 => (0..3_usize).prop_map(|arrive| Op::Cut { arrive }),
        3 => Just(Op::Connect),
        1 => any::<bool>().prop_map(|forget| Op::Restart { forget }),
    ]
}

const STAGES: [&str; 5] = [
    "waiting",
    "downloading",
    "downloadComplete",
    "applying",
    "applyComplete",
];

struct World {
    now: Instant,
    reporter: Reporter,
    connected: bool,
    twin: Value,
    wire: VecDeque<Patch>,
    answers: VecDeque<(String, u16, Option<Duration>)>,
    /// The update under way: its number, its stage, its bytes.
    run: (usize, usize, u64),
    /// Every document that was ever wanted, in order.
    wanted: Vec<Value>,
    /// The newest of them that the twin has shown.
    shown: Option<usize>,
    outbox: Vec<Value>,
    stale_outbox: Vec<Value>,
    finished: Vec<String>,
    seen_finished: Vec<String>,
    delivered: Vec<String>,
    last_sent: Option<Instant>,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            now: Instant::now(),
            reporter: reporter(vec![]),
            connected: false,
            twin: json!({"other": 1, "$version": 1}),
            wire: VecDeque::new(),
            answers: VecDeque::new(),
            run: (0, 0, 0),
            wanted: vec![],
            shown: None,
            outbox: vec![],
            stale_outbox: vec![],
            finished: vec![],
            seen_finished: vec![],
            delivered: vec![],
            last_sent: None,
        };
        world.want(Change::Stage);
        world
    }

    /// The document of the present run. Members come, change and go with the stages, as in the real one.
    fn document(&self) -> Value {
        let (number, stage, bytes) = self.run;
        // Every third update fails in the download, every other third after the reboot.
        let (status, error) = match (number % 3, stage) {
            (1, 2) => (
                "downloadfailed",
                Some(json!({"code": "c", "message": number})),
            ),
            (2, 4) => ("applyFailed", Some(json!({"code": "d"}))),
            _ => (STAGES[stage], None),
        };
        let once = |from: usize| (stage >= from).then(|| format!("{number}-{from}"));
        json!({
            "iothubDM": {"firmwareUpdate": {
                "updateId": format!("u{number}"), "startedWaitingTime": once(0), "status": status,
                "startedDownloadingTime": once(1), "downloadCompleteTime": once(2),
                "error": error, "progress": {"bytesDone": bytes}
            }},
            "fwupdated": {"slots": {"b": (stage > 1).then(|| json!({"state": status}))}}
        })
    }

    fn is_finished(&self) -> bool {
        let (number, stage, _) = self.run;
        stage == 4 || (number % 3 == 1 && stage == 2)
    }

    fn want(&mut self, change: Change) {
        let document = self.document();
        self.wanted.push(document.clone());
        let terminal = self.is_finished().then(|| format!("u{}", self.run.0));
        if let Some(id) = &terminal
            && self.finished.last() != Some(id)
        {
            self.finished.push(id.clone());
            self.outbox.push(document.clone());
            self.stale_outbox.push(document.clone());
        }
        self.reporter.set_wanted(Wanted {
            document,
            change,
            terminal,
        });
    }

    fn apply(&mut self, patch: &Value) {
        merge(&mut self.twin, patch);
        assert_eq!(self.twin["other"], 1);
        let ours = owned(&self.twin);
        let from = self.shown.unwrap_or(0);
        let found = self.wanted[from..]
            .iter()
            .position(|wanted| without_nulls(wanted) == ours);
        let Some(found) = found else {
            panic!("the twin went back or mixes two documents: {ours:#}");
        };
        self.shown = Some(from + found);
        let update = &ours["iothubDM"]["firmwareUpdate"];
        let id = update["updateId"].as_str().unwrap().to_owned();
        let last = ["applyComplete", "downloadfailed", "applyFailed"].map(Value::from);
        if last.contains(&update["status"]) && self.seen_finished.last() != Some(&id) {
            self.seen_finished.push(id);
        }
    }

    fn hub(&mut self, hub: Hub) {
        let Some(patch) = self.wire.pop_front() else {
            return;
        };
        let applied = matches!(
            hub,
            Hub::Answer | Hub::AnswerLost | Hub::Fail { applied: true }
        );
        if applied {
            self.apply(&patch.body);
        }
        match hub {
            Hub::Answer => self.answers.push_back((patch.rid, 204, None)),
            Hub::Throttle => self.answers.push_back((patch.rid, 429, Some(SECOND * 7))),
            Hub::Fail { .. } => self.answers.push_back((patch.rid, 500, None)),
            Hub::AnswerLost | Hub::PatchLost => {}
        }
    }

    fn cut(&mut self, arrive: usize) {
        for _ in 0..arrive {
            self.hub(Hub::AnswerLost);
        }
        self.wire.clear();
        self.answers.clear();
        self.connected = false;
        self.reporter.handle_disconnected();
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Wait(millis) => {
                self.now += Duration::from_millis(millis);
                self.reporter.handle_timeout(self.now);
            }
            Op::Progress => {
                self.run.2 += 1;
                self.want(Change::Progress);
            }
            Op::Stage => {
                self.run = match self.run {
                    (number, ..) if self.is_finished() => (number + 1, 0, 0),
                    (number, stage, _) => (number, stage + 1, 0),
                };
                self.want(Change::Stage);
            }
            Op::Hub(hub) => self.hub(hub),
            Op::HandAnswer => {
                if let Some((rid, status, retry_after)) = self.answers.pop_front() {
                    self.reporter
                        .handle_answer(&rid, status, retry_after, self.now);
                }
            }
            Op::Cut { arrive } => self.cut(arrive),
            Op::Connect => {
                // While connected this is a token's renewal, of which nobody is told but by its end.
                self.wire.clear();
                self.answers.clear();
                self.connected = true;
                self.reporter.handle_connected(&self.twin, self.now);
            }
            Op::Restart { forget } => {
                self.cut(1);
                if forget {
                    self.outbox.clone_from(&self.stale_outbox);
                }
                let outbox = self.outbox.clone();
                self.stale_outbox.clone_from(&outbox);
                self.reporter = Reporter::new(pace(), Jitter::seeded(2), outbox);
                self.last_sent = None;
                let terminal = self.is_finished().then(|| format!("u{}", self.run.0));
                self.reporter.set_wanted(Wanted {
                    document: self.document(),
                    change: Change::Stage,
                    terminal,
                });
            }
        }
        self.drive();
    }

    fn drive(&mut self) {
        while let Some(patch) = self.reporter.poll_transmit(self.now) {
            assert!(self.connected);
            if let Some(last) = self.last_sent.replace(self.now) {
                assert!(self.now >= last + pace().stage_interval);
            }
            self.wire.push_back(patch);
        }
        while let Some(event) = self.reporter.poll_event() {
            let Event::Delivered { update_id } = event else {
                panic!("{event:?}");
            };
            self.outbox
                .retain(|document| Run::of(document).unwrap().update_id != update_id);
            if !self.delivered.contains(&update_id) {
                self.delivered.push(update_id);
            }
        }
    }

    /// The storm is over: everything arrives in bounded time.
    fn calm(&mut self) {
        self.cut(0);
        self.step(Op::Connect);
        for _ in 0..2 * self.finished.len() + 4 {
            self.step(Op::Hub(Hub::Answer));
            self.step(Op::HandAnswer);
            if let Some(due) = self.reporter.poll_timeout() {
                self.now = self.now.max(due);
            }
            self.step(Op::Wait(0));
        }
        assert!(self.reporter.is_settled());
        assert_eq!(self.reporter.poll_timeout(), None);
        assert_eq!(
            owned(&self.twin),
            without_nulls(self.wanted.last().unwrap())
        );
        assert_eq!(self.delivered, self.finished, "every last word, in order");
        assert_eq!(
            self.seen_finished, self.finished,
            "and each was in the twin"
        );
        assert_eq!(self.outbox, Vec::<Value>::new());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn after_any_storm_every_last_word_arrived_in_order_and_the_twin_never_went_back(
        ops in prop::collection::vec(op(), 0..120)
    ) {
        let mut world = World::new();
        for op in ops {
            world.step(op);
        }
        world.calm();
    }
}
