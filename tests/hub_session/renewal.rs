//! A token is renewed by a new connection, of which nobody notices.

use super::*;

#[tokio::test]
async fn a_token_is_renewed_quietly_while_methods_are_answered_all_along() {
    let peer = Peer::start().await;
    // Long enough that a call that comes when the renewal is due need not be refused to make room for it.
    let short = SessionOptions {
        token_lifetime: Duration::from_secs(10),
        ..options(&peer)
    };
    let (_handle, mut events) = Session::spawn(short);
    connected(&mut events).await;
    let consumer = tokio::spawn(async move {
        let mut renewals = 0;
        while renewals < 2 {
            match next(&mut events).await {
                HubEvent::Method(call) => {
                    call.reply.send(answer(200, json!(renewals)));
                }
                HubEvent::Connected { .. } => renewals += 1,
                other => panic!("a renewal is no disconnect: {other:?}"),
            }
        }
        events
    });
    let mut answered = 0;
    while !consumer.is_finished() {
        let call = peer.call("m", "");
        // A call in the moment between two connections is lost, as it is with a real hub; the caller
        // tries again.
        if let Ok(Ok((status, _))) = timeout(Duration::from_millis(500), call).await {
            assert_eq!(status, 200);
            answered += 1;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let _events = consumer.await.unwrap();
    assert!(answered > 50, "{answered}");
    peer.with(|state| {
        assert!(state.seen.disconnects >= 2, "each renewal says DISCONNECT");
        assert_eq!(state.seen.connects.len(), 3);
        let tokens: Vec<_> = state.seen.connects.iter().map(|c| &c.login).collect();
        assert!(
            tokens.windows(2).all(|pair| pair[0] != pair[1]),
            "each has a fresh token"
        );
    });
}

#[tokio::test]
async fn a_renewal_waits_for_an_open_patch_but_not_beyond_the_tokens_life() {
    let peer = Peer::start().await;
    peer.with(|state| state.script.patch_status = [0].into());
    let short = SessionOptions {
        token_lifetime: Duration::from_secs(4),
        ..options(&peer)
    };
    let started = std::time::Instant::now();
    let (handle, mut events) = Session::spawn(short);
    let (connection, ..) = connected(&mut events).await;
    handle.patch(connection, "p1", &json!({"a": 1}));
    connected(&mut events).await;
    assert!(
        started.elapsed() >= Duration::from_millis(3700),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn a_renewal_loses_no_call_while_calls_overlap_without_end() {
    let peer = Peer::start().await;
    let short = SessionOptions {
        token_lifetime: Duration::from_secs(8),
        ..options(&peer)
    };
    let (_handle, mut events) = Session::spawn(short);
    connected(&mut events).await;
    let consumer = tokio::spawn(async move {
        loop {
            match next(&mut events).await {
                HubEvent::Method(call) => {
                    tokio::spawn(async move {
                        tokio::time::sleep(Duration::from_millis(300)).await;
                        call.reply.send(answer(200, json!(1)));
                    });
                }
                HubEvent::Connected { .. } => return,
                other => panic!("{other:?}"),
            }
        }
    });
    let mut calls = vec![];
    while peer.with(|state| state.seen.disconnects) == 0 {
        calls.push(peer.call("m", ""));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    consumer.await.unwrap();
    // Only what came in the very moment of the renewal may be lost.
    let (mut answered, mut refused, mut lost) = (0, 0, 0);
    for call in calls {
        match timeout(Duration::from_millis(1500), call).await {
            Ok(Ok((200, _))) => answered += 1,
            Ok(Ok((503, body))) => {
                assert_eq!(body["code"], "method-overload");
                refused += 1;
            }
            Ok(other) => panic!("{other:?}"),
            Err(_) => lost += 1,
        }
    }
    assert!(
        answered > 50 && (1..=30).contains(&refused) && lost <= 2,
        "{answered} answered, {refused} refused, {lost} lost"
    );
}

/// Where the journal's lines go.
#[derive(Clone, Default)]
struct Journal(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Journal {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_renewal_says_nothing_in_the_journal() {
    let journal = Journal::default();
    let writer = journal.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(move || writer.clone())
        .finish();
    // The runtime of this test has only this thread.
    let _guard = tracing::subscriber::set_default(subscriber);
    let peer = Peer::start().await;
    let short = SessionOptions {
        token_lifetime: Duration::from_secs(2),
        ..options(&peer)
    };
    let (_handle, mut events) = Session::spawn(short);
    for _ in 0..3 {
        let event = next(&mut events).await;
        assert!(matches!(event, HubEvent::Connected { .. }), "{event:?}");
    }
    let lines = String::from_utf8(journal.0.lock().unwrap().clone()).unwrap();
    assert_eq!(lines.lines().count(), 1, "{lines}");
    assert!(lines.contains("connected to"), "{lines}");
}

static CLOCK_IS_LOST: AtomicBool = AtomicBool::new(false);

#[tokio::test]
async fn a_clock_that_is_lost_does_not_cost_the_connection_that_stands() {
    let peer = Peer::start().await;
    let clock = || match CLOCK_IS_LOST.load(Ordering::SeqCst) {
        true => jiff::Timestamp::UNIX_EPOCH,
        false => jiff::Timestamp::now(),
    };
    let (_handle, mut events) = Session::spawn(SessionOptions {
        token_lifetime: Duration::from_secs(12),
        clock,
        ..options(&peer)
    });
    connected(&mut events).await;
    CLOCK_IS_LOST.store(true, Ordering::SeqCst);
    // Beyond the moment at which the token should be renewed (a new one could not be made), short of its end.
    let end = timeout(Duration::from_millis(10_700), events.recv()).await;
    assert!(end.is_err(), "{end:?}");
    let call = peer.call("m", "");
    method(&mut events)
        .await
        .reply
        .send(answer(200, json!("here")));
    assert_eq!(timeout(LONG, call).await.unwrap().unwrap().0, 200);
    peer.with(|state| assert_eq!(state.seen.connects.len(), 1));
}
