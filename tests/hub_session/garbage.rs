//! Bytes and messages that no hub should send: none ends the session, none keeps it from answering.

use super::*;

/// A small generator of numbers (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        (0..self.below(most)).map(|_| self.next() as u8).collect()
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }
}

const TOPICS: &[&str] = &[
    "$iothub/methods/POST/",
    "$iothub/twin/res/",
    "$iothub/twin/PATCH/properties/desired/",
    "devices/pi-01/messages/devicebound/",
    "",
];

const TAILS: &[&str] = &[
    "firmwareUpdate/?$rid=",
    "?$version=",
    "204/?$rid=read-1",
    "429/?$rid=p1&$retry-after=",
    "/?&&==%%$rid",
    "é/?$rid=\u{fffd}",
    "18446744073709551616/?$rid=1&$version=-1",
];

/// The session answers a call, on this connection or on the next.
async fn still_answers(peer: &Peer, events: &mut Events) {
    let wait = async {
        loop {
            let call = peer.call("alive", "");
            while let Ok(Some(event)) = timeout(Duration::from_millis(300), events.recv()).await {
                if let HubEvent::Method(call) = event
                    && call.name == "alive"
                {
                    call.reply.send(answer(200, json!(1)));
                    break;
                }
            }
            if let Ok(Ok((200, _))) = timeout(Duration::from_millis(300), call).await {
                return;
            }
        }
    };
    timeout(LONG, wait).await.expect("it still answers");
}

#[tokio::test]
async fn no_message_keeps_it_from_answering() {
    let peer = Peer::start().await;
    let (_handle, mut events, _) = up(&peer).await;
    let mut random = Random(7);
    for _ in 0..20 {
        for _ in 0..50 {
            let mut topic = random.pick(TOPICS).to_owned();
            topic.push_str(random.pick(TAILS));
            topic.push_str(
                &String::from_utf8_lossy(&random.bytes(12)).replace(['+', '#', '\0'], "_"),
            );
            let payload = match random.below(3) {
                0 => random.bytes(200),
                1 => b"{\"$version\":3,\"firmware\":null}".to_vec(),
                _ => "[".repeat(5000).into_bytes(),
            };
            peer.publish(&topic, payload);
        }
        still_answers(&peer, &mut events).await;
    }
    peer.with(|state| assert_eq!(state.seen.connects.len(), 1, "they are ignored"));
}

#[tokio::test]
async fn no_bytes_end_the_session() {
    let peer = Peer::start().await;
    let (_handle, mut events, _) = up(&peer).await;
    let mut random = Random(8);
    for _ in 0..60 {
        let mut bytes = random.bytes(60);
        if random.below(2) == 0 {
            // A packet that is whole, of any kind.
            let length = u8::try_from(bytes.len()).unwrap();
            bytes.splice(0..0, [random.next() as u8, length]);
        }
        peer.raw(&bytes);
        // Bytes that announce more would wait for it.
        peer.close();
        loop {
            if let HubEvent::Connected { .. } = next(&mut events).await {
                break;
            }
        }
    }
    still_answers(&peer, &mut events).await;
}
