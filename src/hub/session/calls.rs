//! The method calls that are open on one connection: each gets an answer within a second, from the consumer or,
//! when that does not come, from here.

use std::{collections::HashSet, future::Future, pin::Pin, time::Duration};

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout, timeout_at},
};

use super::MethodReply;
use crate::{
    hub::method::Answer,
    update::failure::{Class, Failure},
};

/// Calls open at a time.
pub(super) const MAX_OPEN: usize = 32;

/// When a call that nobody answered is answered for the consumer. A caller hears from us within a second, whatever
/// happens: this leaves time for the way back.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_millis(950);

/// How long the consumer may still answer when we stop.
const STOPPING: Duration = Duration::from_millis(500);

type Answered = Pin<Box<dyn Future<Output = (String, Answer)> + Send>>;

/// The open calls, by their request ids.
#[derive(Default)]
pub(super) struct Calls {
    waiting: FuturesUnordered<Answered>,
    open: HashSet<String>,
}

impl Calls {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.waiting.len() >= MAX_OPEN
    }

    /// Opens call `rid`.
    pub(super) fn open(&mut self, rid: String) -> MethodReply {
        let (reply, answer) = oneshot::channel();
        self.open.insert(rid.clone());
        self.waiting.push(Box::pin(async move {
            let answer = match timeout(ANSWER_LIMIT, answer).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(_)) => Answer::internal("the call was dropped"),
                Err(_) => late(),
            };
            (rid, answer)
        }));
        MethodReply(reply)
    }

    /// The next answer, with its call; `None` when no call is open. Can be cancelled.
    pub(super) async fn next(&mut self) -> Option<(String, Answer)> {
        let (rid, answer) = self.waiting.next().await?;
        self.open.remove(&rid);
        Some((rid, answer))
    }

    /// Ends all calls: the answers that are there or come within a moment, and `rest` for the others.
    pub(super) async fn close(&mut self, rest: &Answer) -> Vec<(String, Answer)> {
        let end = Instant::now() + STOPPING;
        let mut answers = Vec::new();
        while let Ok(Some(answered)) = timeout_at(end, self.next()).await {
            answers.push(answered);
        }
        let open = self.open.drain().map(|rid| (rid, rest.clone()));
        answers.extend(open);
        self.waiting.clear();
        answers
    }
}

/// For a caller that cannot be told more in time.
fn late() -> Answer {
    let text = "the device is too slow to answer now; ask for firmwareUpdateStatus";
    Answer::unavailable(&Failure::new("answer-late", Class::Retry, text))
}

/// For a caller while no more calls can be open.
pub(super) fn overload() -> Answer {
    let text = "too many method calls are open on this device; try again later";
    Answer::unavailable(&Failure::new("method-overload", Class::Retry, text))
}

/// For a caller whose call cannot be taken to its end.
pub(super) fn stopping() -> Answer {
    Answer::unavailable(&Failure::stopping())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn calls_are_answered_in_any_order_by_the_consumer_or_in_time_for_it() {
        let mut calls = Calls::default();
        let one = calls.open("1".to_owned());
        let mut two = calls.open("a".to_owned());
        drop(calls.open("b".to_owned()));
        let dropped = calls.next().await.unwrap();
        assert_eq!((dropped.0.as_str(), dropped.1.status), ("b", 500));
        one.send(Answer::done("x"));
        assert_eq!(calls.next().await.unwrap().1, Answer::done("x"));
        let (rid, answer) = calls.next().await.unwrap();
        assert_eq!((rid.as_str(), answer.status), ("a", 503));
        assert_eq!(answer.body["code"], "answer-late");
        two.is_late().await;
        assert!(!two.send(Answer::done("y")), "nobody waits any more");
        assert!(calls.next().await.is_none() && calls.is_empty());
    }

    #[tokio::test]
    async fn all_calls_have_an_answer_at_the_end() {
        let mut calls = Calls::default();
        let replies: Vec<_> = (0..3).map(|n| calls.open(n.to_string())).collect();
        let mut replies = replies.into_iter();
        replies.next().unwrap().send(Answer::done("x"));
        let mut answers = calls.close(&stopping()).await;
        answers.sort_by(|a, b| a.0.cmp(&b.0));
        let statuses: Vec<_> = answers.iter().map(|(_, answer)| answer.status).collect();
        assert_eq!(statuses, [200, 503, 503]);
        assert!(calls.is_empty());
    }
}
