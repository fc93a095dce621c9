//! What a hub keeps of a session, answers to a client's messages, and ends a connection for. As `probe_refusals`:
//! noted rather than asserted.

use std::{sync::Arc, time::Duration};

use rumqttc::QoS;
use serde_json::{Value, json};

use super::{
    client::{Client, Login, topic},
    hub::Hub,
    scene::{reported, without_bookkeeping},
    service::Reply,
};

/// How long a hub is watched for whether it ends a connection.
const WATCHED: Duration = Duration::from_secs(4);

/// For a message that a device must get.
const PATIENCE: Duration = Duration::from_secs(60);

const METHODS: &str = "$iothub/methods/POST/#";
const TWIN_ANSWERS: &str = "$iothub/twin/res/#";

pub(crate) async fn what_a_hub_keeps_of_a_session_and_what_ends_a_connection(hub: Arc<Hub>) {
    let (id, keys) = hub.register().await;
    let login = Login::new(&id, &keys.primary);
    let mut client = Client::up(&hub, &login).await;
    let granted = client.subscribe(TWIN_ANSWERS, QoS::AtLeastOnce).await;
    hub.notes.note(
        "twin answers, subscribed with QoS 1",
        format_args!("granted {granted:?}"),
    );
    let granted = client.subscribe(METHODS, QoS::AtMostOnce).await;
    assert_eq!(granted, Some(QoS::AtMostOnce));
    twin_answers(&hub, &mut client).await;
    methods(&hub, &mut client).await;
    client.leave().await;

    let mut client = Client::up(&hub, &login).await;
    hub.notes.note(
        "session present at a second CONNECT",
        client.session_present,
    );
    let heard = call(&hub, &mut client, Some("1")).await.is_some();
    hub.notes
        .note("subscriptions of a kept session are restored", heard);
    client.leave().await;
    let clean = Login {
        clean_session: true,
        ..Login::new(&id, &keys.primary)
    };
    let mut client = Client::up(&hub, &clean).await;
    let heard = call(&hub, &mut client, Some("1")).await.is_some();
    hub.notes
        .note("a clean session starts without subscriptions", !heard);
    client.leave().await;

    wrong_patches(&hub, &login).await;
    for (what, act) in ENDINGS {
        let mut client = Client::up(&hub, &login).await;
        act(&client);
        let ended = client.ends_within(WATCHED).await;
        let seen = if ended {
            "ends the connection"
        } else {
            "is let pass"
        };
        hub.notes.note(what, seen);
    }
    hub.delete_now(&format!("/devices/{id}"));
}

type Misdeed = fn(&Client);

/// What a client should not do.
const ENDINGS: [(&str, Misdeed); 4] = [
    ("SUBSCRIBE to a filter of the client's own", |client| {
        client.client.try_subscribe("a/b", QoS::AtMostOnce).unwrap();
    }),
    ("UNSUBSCRIBE of a filter that nobody knows", |client| {
        client.client.try_unsubscribe("a/b").unwrap();
    }),
    ("PUBLISH with QoS 2", |client| {
        let topic = format!("devices/{}/messages/events/", client.id);
        client
            .client
            .try_publish(topic, QoS::ExactlyOnce, false, "{}")
            .unwrap();
    }),
    ("PUBLISH to another device's topic", |client| {
        client.send("devices/another/messages/events/", "{}");
    }),
];

async fn twin_answers(hub: &Hub, client: &mut Client) {
    let read = client.ask_twin("$iothub/twin/GET/?$rid=r1", " ").await;
    let (topic, body) = read.expect("an answer to a twin read");
    assert!(topic.starts_with("$iothub/twin/res/200/"), "{topic} {body}");
    let twin: Value = serde_json::from_str(&body).expect("a twin");
    let version = twin["reported"]["$version"].as_u64().expect("a $version");

    let patch =
        |rid: &str, more: &str| format!("$iothub/twin/PATCH/properties/reported/?$rid={rid}{more}");
    let body = r#"{"probe":{"a":1,"gone":null}}"#;
    let taken = client.ask_twin(&patch("p1", ""), body).await;
    let (topic, _) = taken.expect("an answer to a patch");
    let (status, tail) = answer_parts(&topic);
    assert!(status.starts_with('2'), "{topic}");
    assert!(
        tail.contains(&format!("$version={}", version + 1)),
        "{topic}"
    );
    hub.notes.note("a reported patch that is taken", status);

    // What is deleted may not have been there.
    let (topic, _) = client
        .ask_twin(&patch("p2", ""), r#"{"probe":null}"#)
        .await
        .expect("an answer");
    assert!(
        topic.contains(&format!("$version={}", version + 2)),
        "{topic}"
    );
    let twin = hub.service.twin(&client.id).await;
    assert_eq!(without_bookkeeping(reported(&twin)), json!({}));
}

/// Patches that a hub should not take, each on a connection of its own: it may be the last word there.
async fn wrong_patches(hub: &Hub, login: &Login<'_>) {
    let patch = "$iothub/twin/PATCH/properties/reported/?$rid=1";
    let wrong = [
        (
            "with a stale $version",
            "&$version=1",
            r#"{"a":1}"#.to_owned(),
        ),
        ("that is not JSON", "", "{".to_owned()),
        ("with a dot in a name", "", r#"{"a.b":1}"#.to_owned()),
        ("with a null in an array", "", r#"{"a":[null]}"#.to_owned()),
        (
            "with a text of 5,000 characters",
            "",
            json!({"a": "x".repeat(5000)}).to_string(),
        ),
    ];
    for (what, more, body) in wrong {
        let mut client = Client::up(hub, login).await;
        client.subscribe(TWIN_ANSWERS, QoS::AtMostOnce).await;
        let seen = match client.ask_twin(&format!("{patch}{more}"), &body).await {
            Some((topic, body)) => {
                let (status, tail) = answer_parts(&topic);
                let body: Value = serde_json::from_str(&body).unwrap_or_default();
                let later = tail.contains("retry-after");
                let later = if later { " retry-after" } else { "" };
                format!("{status} {}{later}", body["errorCode"])
            }
            None => "no answer".to_owned(),
        };
        hub.notes
            .note(format_args!("a reported patch {what}"), seen);
    }
}

/// Status and tail of an answer's topic.
fn answer_parts(topic: &str) -> (&str, &str) {
    let rest = topic.trim_start_matches("$iothub/twin/res/");
    rest.split_once('/').expect("a status and a tail")
}

/// The id of a method's request.
fn rid(topic: &str) -> &str {
    topic.rsplit("$rid=").next().unwrap_or_default()
}

/// Calls a method; the client answers with `body`, or not at all. Returns the request's topic and what the caller
/// got; `None` when the client did not hear of it.
async fn call(hub: &Arc<Hub>, client: &mut Client, body: Option<&str>) -> Option<(String, Reply)> {
    let calling = tokio::spawn({
        let (hub, id) = (Arc::clone(hub), client.id.clone());
        async move { hub.service.invoke(&id, "probe", &json!({}), (5, 0)).await }
    });
    let message = client
        .message("$iothub/methods/POST/", Duration::from_secs(7))
        .await?;
    let request = topic(&message).to_owned();
    if let Some(body) = body {
        let answer = format!("$iothub/methods/res/200/?$rid={}", rid(&request));
        client.send(&answer, body);
    }
    // The client must go on reading, or the hub takes it for dead.
    let reply = tokio::select! {
        reply = calling => reply.unwrap(),
        _ = client.ends_within(PATIENCE) => return None,
    };
    Some((request, reply))
}

async fn methods(hub: &Arc<Hub>, client: &mut Client) {
    let mut rids = Vec::new();
    for _ in 0..10 {
        let (request, reply) = call(hub, client, Some("{}"))
            .await
            .expect("a call that arrives");
        assert_eq!(reply.expect("a call")["status"], 200);
        rids.push(rid(&request).to_owned());
    }
    hub.notes.note("request ids of ten methods", rids.join(" "));
    let (_, reply) = call(hub, client, Some(""))
        .await
        .expect("a call that arrives");
    let seen = format!("{} {}", reply.summary(), reply.body);
    hub.notes
        .note("a device that answers a method with an empty body", seen);
    let (_, reply) = call(hub, client, Some("not JSON"))
        .await
        .expect("a call that arrives");
    hub.notes
        .note("a device that answers a method with text", reply.summary());
    let (_, reply) = call(hub, client, None).await.expect("a call that arrives");
    assert_eq!(reply.status, 504, "{reply:?}");
    hub.notes
        .note("a device that does not answer a method", reply.summary());
}
