//! A model of everything around the reporter: updates, the hub with its twin, another writer, and the faults
//! between them. It checks at each change of the twin that it does not go back.

use super::*;
use crate::hub::twin::without_nulls;

/// What the hub does with the next request.
#[derive(Debug, Clone, Copy)]
pub(super) enum Hub {
    Answer,
    /// Applied, but the answer never comes.
    AnswerLost,
    /// Neither applied nor answered.
    RequestLost,
    Throttle {
        retry_after: Option<u64>,
    },
    Fail {
        applied: bool,
    },
    /// Refused for good; of a read as well as of a patch.
    Refuse,
    Conflict,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Op {
    Wait(u64),
    Progress,
    Stage,
    /// A desired property is refused: an update that is only its end.
    RefusedAtOnce,
    Hub(Hub),
    HandAnswer,
    /// Someone else changes members of ours.
    Foreign(u8),
    /// The connection ends; some of the requests under way still arrive.
    Cut {
        arrive: usize,
    },
    Connect,
    /// The daemon starts again; perhaps it forgot what was delivered since it last wrote its outbox.
    Restart {
        forget: bool,
    },
}

const STAGES: [&str; 5] = [
    "waiting",
    "downloading",
    "downloadComplete",
    "applying",
    "applyComplete",
];

/// On its way to the hub.
enum Request {
    Patch(Patch),
    Read,
}

/// On its way back.
enum Reply {
    Answer(String, u16, Option<Duration>, Option<u64>),
    Twin(Value),
}

/// The update under way.
#[derive(Clone, Copy, Default)]
struct Update {
    number: usize,
    stage: usize,
    bytes: u64,
    refused: bool,
}

pub(super) struct World {
    now: Instant,
    reporter: Reporter,
    connected: bool,
    twin: Value,
    /// Someone else's hand shows in the twin.
    tampered: bool,
    wire: VecDeque<Request>,
    replies: VecDeque<Reply>,
    update: Update,
    /// Every document that was ever wanted, in order.
    wanted: Vec<Value>,
    /// The newest of them that the twin has shown.
    shown: Option<usize>,
    outbox: Vec<(String, Value)>,
    stale_outbox: Vec<(String, Value)>,
    finished: Vec<String>,
    seen_finished: Vec<String>,
    delivered: Vec<String>,
    given_up: Vec<String>,
    last_sent: Option<Instant>,
    pub(super) patches: usize,
}

impl World {
    pub(super) fn new() -> Self {
        let mut world = Self {
            now: Instant::now(),
            reporter: reporter(vec![]),
            connected: false,
            twin: json!({"other": 1, "$version": 1}),
            tampered: false,
            wire: VecDeque::new(),
            replies: VecDeque::new(),
            update: Update::default(),
            wanted: vec![],
            shown: None,
            outbox: vec![],
            stale_outbox: vec![],
            finished: vec![],
            seen_finished: vec![],
            delivered: vec![],
            given_up: vec![],
            last_sent: None,
            patches: 0,
        };
        world.want(Change::Stage);
        world
    }

    fn name(&self) -> String {
        format!("run-{}", self.update.number)
    }

    /// The document of the present update. Members come, change and go with the stages, as in the real one; a
    /// caller may use an id twice.
    fn document(&self) -> Value {
        let Update {
            number,
            stage,
            bytes,
            refused,
        } = self.update;
        // Every third update fails in the download, every other third after the reboot.
        let (status, error) = match (number % 3, stage) {
            _ if refused => ("downloadfailed", Some(json!({"code": "refused"}))),
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
                "updateId": format!("u{}", number / 2), "startedWaitingTime": once(0), "status": status,
                "startedDownloadingTime": once(1), "downloadCompleteTime": once(2),
                "error": error, "progress": {"bytesDone": bytes}
            }},
            "fwupdated": {"slots": {"b": (stage > 1).then(|| json!({"state": status}))}}
        })
    }

    fn is_finished(&self) -> bool {
        let Update {
            number,
            stage,
            refused,
            ..
        } = self.update;
        refused || stage == 4 || (number % 3 == 1 && stage == 2)
    }

    fn want(&mut self, change: Change) {
        let document = self.document();
        self.wanted.push(document.clone());
        let terminal = self.is_finished().then(|| self.name());
        if let Some(name) = &terminal
            && self.finished.last() != Some(name)
        {
            self.finished.push(name.clone());
            self.outbox.push((name.clone(), document.clone()));
            self.stale_outbox.push((name.clone(), document.clone()));
        }
        self.reporter.set_wanted(Wanted {
            document,
            change,
            terminal,
        });
    }

    fn next_update(&mut self, refused: bool) {
        self.update = Update {
            number: self.update.number + 1,
            refused,
            ..Update::default()
        };
    }

    fn write(&mut self, patch: &Value) {
        let version = self.twin["$version"].as_u64().unwrap();
        merge(&mut self.twin, patch);
        self.twin["$version"] = (version + 1).into();
    }

    fn apply(&mut self, patch: &Value) {
        self.write(patch);
        assert_eq!(self.twin["other"], 1, "what others report is left alone");
        let ours = owned(&self.twin);
        let from = self.shown.unwrap_or(0);
        let found = self.wanted[from..]
            .iter()
            .position(|wanted| without_nulls(wanted) == ours);
        match found {
            Some(found) => {
                self.tampered = false;
                self.shown = Some(from + found);
            }
            None if self.tampered => {}
            None => panic!("the twin went back or mixes two documents: {ours:#}"),
        }
        let update = &ours["iothubDM"]["firmwareUpdate"];
        let last = ["applyComplete", "downloadfailed", "applyFailed"].map(Value::from);
        if last.contains(&update["status"]) {
            let started = update["startedWaitingTime"].as_str().unwrap();
            let name = format!("run-{}", started.trim_end_matches("-0"));
            if self.seen_finished.last() != Some(&name) {
                self.seen_finished.push(name);
            }
        }
    }

    fn hub(&mut self, hub: Hub) {
        let Some(request) = self.wire.pop_front() else {
            return;
        };
        let patch = match request {
            Request::Patch(patch) => patch,
            // A read that fails is the session's to repeat; one that is lost comes to nothing.
            Request::Read => {
                if let Hub::Answer = hub {
                    self.replies.push_back(Reply::Twin(self.twin.clone()));
                }
                return;
            }
        };
        let applied = matches!(
            hub,
            Hub::Answer | Hub::AnswerLost | Hub::Fail { applied: true }
        );
        if applied {
            self.apply(&patch.body);
        }
        let (status, retry_after) = match hub {
            Hub::Answer => (204, None),
            Hub::Throttle { retry_after } => (429, retry_after.map(Duration::from_secs)),
            Hub::Fail { .. } => (500, None),
            Hub::Refuse => (400, None),
            Hub::Conflict => (412, None),
            Hub::AnswerLost | Hub::RequestLost => return,
        };
        let version = (status == 204).then(|| self.twin["$version"].as_u64().unwrap());
        let reply = Reply::Answer(patch.rid, status, retry_after, version);
        self.replies.push_back(reply);
    }

    fn hand_answer(&mut self) {
        match self.replies.pop_front() {
            Some(Reply::Answer(rid, status, retry_after, version)) => {
                let now = self.now;
                self.reporter
                    .handle_answer(&rid, status, retry_after, version, now);
            }
            Some(Reply::Twin(twin)) => self.reporter.handle_read(&twin),
            None => {}
        }
    }

    /// Another writer's change. It leaves alone what names the run: without that nobody could tell.
    fn foreign(&mut self, which: u8) {
        let patch = match which % 4 {
            0 => json!({"iothubDM": {"firmwareUpdate": {"progress": {"bytesDone": 1_000_000}}}}),
            1 => json!({"iothubDM": {"firmwareUpdate": {"status": "theirs"}}}),
            2 => json!({"fwupdated": {"slots": {"b": {"state": "theirs", "more": 1}}}}),
            _ => json!({"iothubDM": {"firmwareUpdate": {"error": null, "progress": null}}}),
        };
        self.write(&patch);
        self.tampered = true;
    }

    fn cut(&mut self, arrive: usize) {
        for _ in 0..arrive {
            self.hub(Hub::AnswerLost);
        }
        self.wire.clear();
        self.replies.clear();
        self.connected = false;
        self.reporter.handle_disconnected();
    }

    fn restart(&mut self, forget: bool) {
        if forget {
            self.outbox.clone_from(&self.stale_outbox);
        }
        self.stale_outbox.clone_from(&self.outbox);
        self.reporter = Reporter::new(pace(), Jitter::seeded(2), vec![]);
        self.last_sent = None;
        for (name, document) in self.outbox.clone() {
            self.reporter.set_wanted(Wanted {
                document,
                change: Change::Stage,
                terminal: Some(name),
            });
        }
        let terminal = self.is_finished().then(|| self.name());
        self.reporter.set_wanted(Wanted {
            document: self.document(),
            change: Change::Stage,
            terminal,
        });
    }

    pub(super) fn step(&mut self, op: Op) {
        match op {
            Op::Wait(millis) => {
                self.now += Duration::from_millis(millis);
                self.reporter.handle_timeout(self.now);
            }
            // A finished update counts no more.
            Op::Progress if self.is_finished() => {}
            Op::Progress => {
                self.update.bytes += 1;
                self.want(Change::Progress);
            }
            Op::Stage => {
                if self.is_finished() {
                    self.next_update(false);
                } else {
                    self.update.stage += 1;
                    self.update.bytes = 0;
                }
                self.want(Change::Stage);
            }
            Op::RefusedAtOnce => {
                // While an update is under way a desired property waits.
                if self.is_finished() {
                    self.next_update(true);
                    self.want(Change::Stage);
                }
            }
            Op::Hub(hub) => self.hub(hub),
            Op::HandAnswer => self.hand_answer(),
            Op::Foreign(which) => self.foreign(which),
            Op::Cut { arrive } => self.cut(arrive),
            Op::Connect => {
                // While connected this is a token's renewal, of which nobody is told but by its end.
                self.wire.clear();
                self.replies.clear();
                self.connected = true;
                self.reporter.handle_connected(&self.twin, self.now);
            }
            Op::Restart { forget } => {
                self.cut(1);
                self.restart(forget);
            }
        }
        self.drive();
    }

    fn drive(&mut self) {
        if self.reporter.poll_read(self.now) {
            assert!(self.connected);
            self.wire.push_back(Request::Read);
        }
        while let Some(patch) = self.reporter.poll_transmit(self.now) {
            assert!(self.connected);
            if let Some(last) = self.last_sent.replace(self.now) {
                assert!(self.now >= last + pace().stage_interval);
            }
            self.patches += 1;
            self.wire.push_back(Request::Patch(patch));
        }
        while let Some(event) = self.reporter.poll_event() {
            let name = match event {
                Event::Delivered { update_id } => {
                    if !self.delivered.contains(&update_id) {
                        self.delivered.push(update_id.clone());
                    }
                    update_id
                }
                Event::GivenUp { update_id } => {
                    self.given_up.push(update_id.clone());
                    update_id
                }
                Event::Rejected { .. } => continue,
            };
            self.outbox.retain(|(finished, _)| *finished != name);
        }
    }

    /// The storm is over: everything arrives in bounded time.
    pub(super) fn calm(&mut self) {
        self.cut(0);
        self.step(Op::Connect);
        for _ in 0..2 * self.finished.len() + 6 {
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
        // Only what the hub refused for good may be missing, and that is known.
        let kept = |names: &[String]| -> Vec<String> {
            let kept = names.iter().filter(|name| !self.given_up.contains(name));
            kept.cloned().collect()
        };
        let expected = kept(&self.finished);
        assert_eq!(kept(&self.delivered), expected, "every last word, in order");
        assert_eq!(
            kept(&self.seen_finished),
            expected,
            "and each was in the twin, once"
        );
        assert_eq!(self.outbox, vec![]);
    }
}
