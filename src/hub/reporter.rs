//! When which patch of the reported section is sent. Sans-IO: `handle_*` in, `poll_*` out, time passed
//! in, randomness seeded.
//!
//! Guarantees, whatever the hub and the network do:
//! - The newest document wins; one patch is in flight; a change of stage goes at once if the last patch
//!   is older than the stage interval, progress at most every progress interval.
//! - **The last word of every update arrives, in order.** A finished update's document is neither
//!   dropped nor overtaken by the next update's until the hub has it ([`Event::Delivered`]).
//! - A patch whose fate is unknown (no answer, 5xx) is stated again as a whole, so that the twin is right
//!   whether or not it was applied.
//! - A patch that the hub refuses for good is said ([`Event::Rejected`]) and never sent in a loop.
//! - What someone else wrote into our section shows by its version: the twin is read again and put right.
//!
//! After each call of a `handle_*` or of [`Reporter::set_wanted`]: read the twin if [`Reporter::poll_read`]
//! asks for it, send what [`Reporter::poll_transmit`] gives, take [`Reporter::poll_event`] until it is empty,
//! then wait until [`Reporter::poll_timeout`].

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{
    backoff::{Backoff, Jitter},
    twin::{Run, difference, merge, owned, restate},
};

mod message;

pub use message::{Change, Event, Pace, Patch, Wanted};

/// First and longest pause after a throttled or failed patch.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));

/// When a document that the hub refused is tried again, if neither a stage nor a connection came between: the
/// reason may have been one of the hub's own.
const REFUSED_PAUSE: Duration = Duration::from_secs(3600);

/// Patches of unknown fate that are remembered. After so many the twin is read instead.
const MAX_UNCERTAIN: usize = 16;

/// A document on its way. All but the last in the queue are finished updates.
#[derive(Debug)]
struct Entry {
    /// Stays the same while documents of one run replace each other.
    id: u64,
    document: Value,
    run: Option<Run>,
    terminal: Option<String>,
    delivered: bool,
    /// Holds a change of stage that was not acknowledged.
    urgent: bool,
    /// Refused by the hub, and not tried again before then.
    held: Option<Instant>,
}

#[derive(Debug)]
struct InFlight {
    rid: String,
    body: Value,
    entry: u64,
    terminal: Option<String>,
    urgent: bool,
    deadline: Instant,
}

/// Whether the twin is to be read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Read {
    /// What it says is known.
    No,
    /// Yes.
    Due,
    /// It was asked for, and is asked for again if nothing comes until then.
    Asked(Instant),
}

/// Keeps the twin's reported section what it shall be. See the module's description.
#[derive(Debug)]
pub struct Reporter {
    pace: Pace,
    jitter: Jitter,
    backoff: Backoff,
    queue: VecDeque<Entry>,
    connected: bool,
    /// What of our section the hub has for certain.
    acknowledged: Value,
    /// The version of the hub's reported section then, if it is known.
    version: Option<u64>,
    /// Patches since then whose fate is unknown, equal ones once. Cleared by each acknowledgement and each
    /// look at the twin.
    uncertain: Vec<Value>,
    /// The twin is to be read before anything else is sent.
    read: Read,
    in_flight: Option<InFlight>,
    last_sent: Option<Instant>,
    not_before: Option<Instant>,
    events: VecDeque<Event>,
    next_id: u64,
}

impl Reporter {
    /// A reporter that first delivers `outbox`: documents of finished updates that the hub has not
    /// acknowledged, oldest first, as persisted by the caller.
    #[must_use]
    pub fn new(pace: Pace, jitter: Jitter, outbox: Vec<Value>) -> Self {
        let mut reporter = Self {
            pace,
            jitter,
            backoff: Backoff::new(BACKOFF.0, BACKOFF.1),
            queue: VecDeque::new(),
            connected: false,
            acknowledged: Value::Null,
            version: None,
            uncertain: Vec::new(),
            read: Read::No,
            in_flight: None,
            last_sent: None,
            not_before: None,
            events: VecDeque::new(),
            next_id: 0,
        };
        for document in outbox {
            let terminal = Run::of(&document).map(|run| run.update_id);
            reporter.set_wanted(Wanted {
                document,
                change: Change::Stage,
                terminal,
            });
        }
        reporter
    }

    /// The reported section shall be `wanted` from now on. A document that would take a finished run back
    /// is ignored.
    pub fn set_wanted(&mut self, wanted: Wanted) {
        let Wanted {
            document,
            change,
            terminal,
        } = wanted;
        let run = Run::of(&document);
        let urgent = change == Change::Stage;
        if let Some(last) = self.queue.back_mut() {
            if same_run(last.run.as_ref(), run.as_ref()) {
                if terminal.is_none() && last.terminal.is_some() {
                    // It has ended, and stays so; what else the section says may still change.
                    if status_word(&document) == status_word(&last.document) {
                        last.document = document;
                        last.urgent |= urgent;
                        last.held = last.held.filter(|_| !urgent);
                    }
                    return;
                }
                last.delivered &= last.terminal == terminal;
                last.document = document;
                last.terminal = terminal;
                last.urgent |= urgent;
                last.held = last.held.filter(|_| !urgent);
                return;
            }
            if last.terminal.is_none() || last.delivered {
                self.queue.pop_back();
            }
        }
        self.next_id += 1;
        self.queue.push_back(Entry {
            id: self.next_id,
            document,
            run,
            terminal,
            delivered: false,
            urgent: true,
            held: None,
        });
    }

    /// A connection stands and the twin was read: `reported` is its reported section. A patch still in
    /// flight belonged to an earlier connection; what became of it is in `reported`.
    pub fn handle_connected(&mut self, reported: &Value, now: Instant) {
        self.connected = true;
        self.in_flight = None;
        let start = now + self.jitter.up_to(self.pace.reconnect_jitter);
        self.not_before = self.not_before.max(Some(start));
        for entry in &mut self.queue {
            entry.held = None;
        }
        self.look_at(reported);
    }

    /// The twin was read again. What was read before our last patch was answered says nothing new.
    pub fn handle_read(&mut self, reported: &Value) {
        let is_old = version_of(reported)
            .zip(self.version)
            .is_some_and(|(read, known)| read < known);
        if self.connected && self.in_flight.is_none() && !is_old {
            self.look_at(reported);
        }
    }

    /// From now on the hub has `reported` for certain.
    fn look_at(&mut self, reported: &Value) {
        self.acknowledged = owned(reported);
        self.version = version_of(reported);
        self.read = Read::No;
        self.uncertain.clear();
        for entry in &mut self.queue {
            entry.urgent = true;
        }
        // What stands before the run that the twin shows was delivered earlier: a restart forgot it.
        let shown = Run::of(&self.acknowledged);
        let reached = self
            .queue
            .iter()
            .position(|entry| shown.is_some() && same_run(entry.run.as_ref(), shown.as_ref()));
        for _ in 0..reached.unwrap_or(0) {
            self.head_is_delivered();
        }
        if let (Some(_), Some(head)) = (reached, self.queue.front())
            && head.terminal.is_some()
            && status_word(&head.document) == status_word(&self.acknowledged)
        {
            self.head_is_delivered();
        }
    }

    /// The connection ended.
    pub fn handle_disconnected(&mut self) {
        self.connected = false;
        self.in_flight = None;
    }

    /// The hub answered request `rid`; `version` is that of the reported section after it. Answers to requests
    /// that are no longer in flight are ignored.
    pub fn handle_answer(
        &mut self,
        rid: &str,
        status: u16,
        retry_after: Option<Duration>,
        version: Option<u64>,
        now: Instant,
    ) {
        let Some(sent) = self.in_flight.take_if(|sent| sent.rid == rid) else {
            return;
        };
        match status {
            200..=299 => {
                merge(&mut self.acknowledged, &sent.body);
                self.count(version);
                self.uncertain.clear();
                self.backoff.reset();
                // Of a twin that someone else wrote too only a look at it can say so.
                let certain = self.read == Read::No;
                if certain && sent.terminal.is_some() && self.is_head(sent.entry) {
                    self.head_is_delivered();
                }
            }
            408 | 412 | 429 | 500.. => {
                let pause = self.backoff.pause(&mut self.jitter);
                // The hub knows how long at least; a fleet must not come back in step.
                let asked = retry_after.map(|wait| wait + self.jitter.up_to(wait / 4));
                let pause = pause.max(asked.unwrap_or_default());
                self.not_before = self.not_before.max(Some(now + pause));
                match status {
                    429 => self.is_urgent_again(&sent),
                    412 => {
                        self.is_urgent_again(&sent);
                        self.read = Read::Due;
                    }
                    _ => self.again(sent),
                }
            }
            _ => {
                // A stage that came meanwhile is not what was refused.
                if self.is_head(sent.entry) && !self.queue[0].urgent {
                    self.queue[0].held = Some(now + REFUSED_PAUSE);
                }
                self.events.push_back(Event::Rejected {
                    status,
                    update_id: sent.terminal,
                });
            }
        }
    }

    /// Each write makes one more version. When there are more than our patch made, something else was written as
    /// well: by someone else, or by a patch of ours that was not answered.
    fn count(&mut self, version: Option<u64>) {
        if let (Some(known), Some(version)) = (self.version, version)
            && version != known.saturating_add(1)
        {
            self.read = Read::Due;
        }
        self.version = version;
    }

    /// [`Reporter::poll_timeout`] was reached.
    pub fn handle_timeout(&mut self, now: Instant) {
        if let Some(lost) = self.in_flight.take_if(|sent| sent.deadline <= now) {
            self.again(lost);
        }
        if matches!(self.read, Read::Asked(deadline) if deadline <= now) {
            self.read = Read::Due;
        }
    }

    /// When to call [`Reporter::handle_timeout`] and then [`Reporter::poll_transmit`]; `None` when only
    /// something from outside can lead to the next patch.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        if let Some(sent) = &self.in_flight {
            return Some(sent.deadline);
        }
        if !self.connected {
            return None;
        }
        match self.read {
            Read::Asked(deadline) => return Some(deadline),
            Read::Due => return self.not_before,
            Read::No => {}
        }
        let head = self.queue.front()?;
        self.patch_for(head)?;
        head.held.max(self.due(head))
    }

    /// True when the twin must be read now, and handed to [`Reporter::handle_read`]. Counts as asked for.
    pub fn poll_read(&mut self, now: Instant) -> bool {
        let due = self.connected
            && self.in_flight.is_none()
            && self.read == Read::Due
            && self.not_before.is_none_or(|not_before| not_before <= now);
        if due {
            self.read = Read::Asked(now + self.pace.answer_timeout);
        }
        due
    }

    /// The patch to send now, if any. It counts as sent.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Patch> {
        if !self.connected || self.in_flight.is_some() || self.read != Read::No {
            return None;
        }
        loop {
            let head = self.queue.front()?;
            if head.held.is_some_and(|until| now < until) {
                if self.queue.len() == 1 {
                    return None;
                }
                let given_up = self.queue.pop_front().and_then(|head| head.terminal);
                self.events
                    .extend(given_up.map(|update_id| Event::GivenUp { update_id }));
                continue;
            }
            if let Some(body) = self.patch_for(head) {
                if self.due(head).is_some_and(|due| now < due) {
                    return None;
                }
                return Some(self.sent(body, now));
            }
            self.queue[0].urgent = false;
            if !self.head_is_delivered() {
                return None;
            }
        }
    }

    /// What the caller must know, oldest first.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// True when the hub has everything there is to say (or refuses it).
    #[must_use]
    pub fn is_settled(&self) -> bool {
        let said = |head: &Entry| {
            head.held.is_some() || (self.connected && self.patch_for(head).is_none())
        };
        self.in_flight.is_none()
            && self.read == Read::No
            && self.queue.len() <= 1
            && self.queue.front().is_none_or(said)
    }

    /// True when the hub has every change of stage so far (or refuses it); counts may still be on their way.
    #[must_use]
    pub fn stages_are_settled(&self) -> bool {
        let counts_only = self.queue.len() <= 1
            && self.queue.front().is_some_and(|head| !head.urgent)
            && self.in_flight.as_ref().is_none_or(|sent| !sent.urgent);
        self.is_settled() || (self.connected && counts_only)
    }

    /// From now on no patch waits for the pace, only for the hub's answers and its throttling: there is
    /// little time left.
    pub fn hurry(&mut self) {
        self.pace.stage_interval = Duration::ZERO;
        self.pace.progress_interval = Duration::ZERO;
    }

    fn is_head(&self, entry: u64) -> bool {
        self.queue.front().is_some_and(|head| head.id == entry)
    }

    fn patch_for(&self, entry: &Entry) -> Option<Value> {
        let patch = difference(&self.acknowledged, &entry.document);
        restate(patch, &self.uncertain, &entry.document)
    }

    fn due(&self, entry: &Entry) -> Option<Instant> {
        let interval = if entry.urgent {
            self.pace.stage_interval
        } else {
            self.pace.progress_interval
        };
        self.not_before
            .max(self.last_sent.map(|sent| sent + interval))
    }

    fn sent(&mut self, body: Value, now: Instant) -> Patch {
        self.next_id += 1;
        let rid = format!("p{:x}", self.next_id);
        let head = &mut self.queue[0];
        self.in_flight = Some(InFlight {
            rid: rid.clone(),
            body: body.clone(),
            entry: head.id,
            terminal: head.terminal.clone(),
            urgent: head.urgent,
            deadline: now + self.pace.answer_timeout,
        });
        (head.urgent, head.held) = (false, None);
        self.last_sent = Some(now);
        Patch { rid, body }
    }

    /// `sent` did not get through: what was urgent in it still is.
    fn is_urgent_again(&mut self, sent: &InFlight) {
        if self.is_head(sent.entry) {
            self.queue[0].urgent |= sent.urgent;
        }
    }

    /// `lost` may or may not have been applied: state it again.
    fn again(&mut self, lost: InFlight) {
        self.is_urgent_again(&lost);
        if self.uncertain.contains(&lost.body) {
            return;
        }
        if self.uncertain.len() == MAX_UNCERTAIN {
            self.read = Read::Due;
            return;
        }
        self.uncertain.push(lost.body);
    }

    /// The hub has the document at the head: makes way for the next. False when there is none.
    fn head_is_delivered(&mut self) -> bool {
        let more = self.queue.len() > 1;
        if let Some(head) = self.queue.front_mut() {
            if let Some(update_id) = head.terminal.clone().filter(|_| !head.delivered) {
                self.events.push_back(Event::Delivered { update_id });
            }
            head.delivered = true;
        }
        if more {
            self.queue.pop_front();
        }
        more
    }
}

fn version_of(reported: &Value) -> Option<u64> {
    reported["$version"].as_u64()
}

fn status_word(document: &Value) -> &Value {
    &document["iothubDM"]["firmwareUpdate"]["status"]
}

fn same_run(one: Option<&Run>, other: Option<&Run>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => one.is(other),
        (one, other) => one.is_none() && other.is_none(),
    }
}

#[cfg(test)]
mod tests;
