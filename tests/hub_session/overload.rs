//! More calls, longer ones and slower answers than anyone should ask for.

use super::*;

#[tokio::test]
async fn an_answer_too_long_for_the_hub_becomes_500() {
    let peer = Peer::start().await;
    let (_handle, mut events, _) = up(&peer).await;
    let call = peer.call("m", "");
    let long = "x".repeat(200_000);
    method(&mut events)
        .await
        .reply
        .send(answer(200, json!(long)));
    assert_eq!(timeout(LONG, call).await.unwrap().unwrap().0, 500);
}

#[tokio::test]
async fn a_call_that_the_consumer_keeps_is_answered_in_time_all_the_same() {
    let peer = Peer::start().await;
    let (_handle, mut events, _) = up(&peer).await;
    let call = peer.call("m", "");
    let mut open = method(&mut events).await;
    let (status, body) = timeout(LONG, call).await.unwrap().unwrap();
    assert_eq!((status, &body["code"]), (503, &json!("answer-late")));
    timeout(LONG, open.reply.is_late()).await.unwrap();
    assert!(!open.reply.send(answer(200, json!(1))));
}

#[tokio::test]
async fn a_flood_of_calls_costs_neither_the_connection_nor_the_calls_that_are_open() {
    let peer = Peer::start().await;
    let (_handle, mut events, _) = up(&peer).await;
    let first = peer.call("first", "");
    let open = method(&mut events).await;
    let flood = peer.flood("m", 3000);
    // Nobody takes the calls, so that all but the first 32 are refused.
    assert!(open.reply.send(answer(200, json!("first"))));
    assert_eq!(timeout(LONG, first).await.unwrap().unwrap().0, 200);
    let mut refused = 0;
    for call in flood {
        if let Ok(Ok((status, _))) = timeout(Duration::from_millis(1500), call).await {
            assert_eq!(status, 503);
            refused += 1;
            continue;
        }
        // From here on calls were dropped: more than can be refused at a time.
        break;
    }
    assert!(refused >= 400, "{refused}");
    let mut stale = 0;
    while let Ok(Some(event)) = timeout(Duration::from_millis(500), events.recv()).await {
        assert!(matches!(event, HubEvent::Method(_)), "{event:?}");
        stale += 1;
    }
    assert!(stale <= 32, "{stale} calls are open at a time at most");
    peer.with(|state| assert_eq!(state.seen.connects.len(), 1, "it is the same connection"));
    let last = peer.call("last", "");
    method(&mut events).await.reply.send(answer(200, json!(2)));
    assert_eq!(timeout(LONG, last).await.unwrap().unwrap().0, 200);
}

#[tokio::test]
async fn a_slow_consumer_bounds_the_calls_that_are_open() {
    let peer = Peer::start().await;
    let (_handle, mut events, _) = up(&peer).await;
    let mut calls: Vec<_> = (0..40).map(|_| peer.call("m", "")).collect();
    // The first 32 are open and wait for their consumer; the rest is answered for it.
    for late in calls.split_off(32) {
        assert_eq!(timeout(LONG, late).await.unwrap().unwrap().0, 503);
    }
    for call in calls {
        method(&mut events).await.reply.send(answer(200, json!(0)));
        assert_eq!(timeout(LONG, call).await.unwrap().unwrap().0, 200);
    }
}
