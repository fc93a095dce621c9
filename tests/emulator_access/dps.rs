//! The provisioning service on the hub's own ports: who may register, what is answered, what the hub then
//! knows.

use iothub_emulator::{DeviceCertificate, Emulator, Fault, Options, derive_key};
use rumqttc::{Connect, ConnectReturnCode, Packet, Publish, QoS};
use serde_json::{Value, json};

use super::client::{Client, connect_with_certificate, connect_with_key, service, token};

const ANSWERS: &str = "$dps/registrations/res/#";
const REGISTER: &str = "$dps/registrations/PUT/iotdps-register/?$rid=r%201";
const ACCEPTED: Option<ConnectReturnCode> = Some(ConnectReturnCode::Success);
const NOT_AUTHORISED: Option<ConnectReturnCode> = Some(ConnectReturnCode::NotAuthorized);

async fn emulator() -> Emulator {
    Emulator::start(Options::default()).await.unwrap()
}

fn scope(emulator: &Emulator) -> String {
    emulator.ready().dps.as_ref().unwrap().id_scope.clone()
}

/// A CONNECT to the service, with this password.
fn hello_with(emulator: &Emulator, id: &str, password: &str) -> Connect {
    let scope = scope(emulator);
    let mut connect = Connect::new(id);
    connect.set_login(
        format!("{scope}/registrations/{id}/api-version=2019-03-31&ClientVersion=test%2F1"),
        password,
    );
    connect
}

fn hello(emulator: &Emulator, id: &str, key: &str) -> Connect {
    let resource = format!("{}/registrations/{id}", scope(emulator));
    hello_with(emulator, id, &token(&resource, key))
}

fn request(id: &str) -> String {
    json!({ "registrationId": id, "payload": { "model": "pi" } }).to_string()
}

/// An answer: the topic's status, the rest of it, and the body.
async fn answer(client: &mut Client) -> (u16, String, Value) {
    let (topic, payload) = client.message().await;
    let rest = topic.strip_prefix("$dps/registrations/res/").unwrap();
    let (status, query) = rest.split_once("/?").unwrap();
    let body = serde_json::from_slice(&payload).unwrap();
    (status.parse().unwrap(), query.to_owned(), body)
}

async fn ask(client: &mut Client, operation: &str) -> (u16, String, Value) {
    let topic = format!(
        "$dps/registrations/GET/iotdps-get-operationstatus/?$rid=2&operationId={operation}"
    );
    client.publish(&topic, " ").await;
    answer(client).await
}

/// The whole flow; the final body.
async fn register(
    emulator: &Emulator,
    certificate: Option<&DeviceCertificate>,
    connect: Connect,
) -> Value {
    let id = connect.client_id.clone();
    let mut client = Client::open_with(emulator, certificate, connect).await;
    client.subscribe(&[ANSWERS]).await;
    client.publish(REGISTER, request(&id)).await;
    let (status, query, body) = answer(&mut client).await;
    assert_eq!((status, query.as_str()), (202, "$rid=r%201&retry-after=1"));
    assert_eq!(body["status"], "assigning");
    let operation = body["operationId"].as_str().unwrap().to_owned();
    let (status, query, body) = ask(&mut client, &operation).await;
    assert_eq!((status, query.as_str()), (200, "$rid=2"));
    assert_eq!(body["operationId"], operation);
    client.send(Packet::Disconnect).await;
    body
}

#[tokio::test]
async fn a_device_of_the_key_group_is_registered_once_and_comes_in_with_its_derived_key() {
    let emulator = emulator().await;
    let group_key = emulator.ready().dps.as_ref().unwrap().group_key.clone();
    let key = derive_key(&group_key, "pi-01").unwrap();
    assert_eq!(key, emulator.derived_key("pi-01"));
    let twin = json!({ "tags": { "site": "lab" }, "properties": { "desired": { "v": 1 } } });
    let group = json!({ "initialTwin": twin, "payload": { "welcome": true } });
    emulator.enroll_group("keys", &group).unwrap();

    let body = register(&emulator, None, hello(&emulator, "pi-01", &key)).await;
    assert_eq!(body["status"], "assigned");
    let state = &body["registrationState"];
    for (name, expected) in [
        ("registrationId", json!("pi-01")),
        ("assignedHub", json!("localhost")),
        ("deviceId", json!("pi-01")),
        ("status", json!("assigned")),
        ("substatus", json!("initialAssignment")),
        ("payload", json!({ "welcome": true })),
        ("symmetricKey", json!({ "enrollmentGroupId": "keys" })),
    ] {
        assert_eq!(state[name], expected, "{name}");
    }
    assert_eq!(emulator.registrations("pi-01"), 1);
    assert_eq!(emulator.registration("pi-01"), *state);
    let twin = emulator.twin("pi-01");
    assert_eq!(twin["tags"]["site"], "lab");
    assert_eq!(twin["properties"]["desired"]["v"], 1);
    Client::open_with(&emulator, None, connect_with_key(&emulator, "pi-01", &key)).await;
    assert!(body["operationId"].as_str().unwrap().starts_with("4."));
}

#[tokio::test]
async fn tokens_with_and_without_the_policy_name_are_taken_and_wrong_ones_refused() {
    let emulator = emulator().await;
    let (key, scope) = (emulator.derived_key("pi-01"), scope(&emulator));
    let resource = format!("{scope}/registrations/pi-01");
    let signed = |resource: &str, key: &str, expiry, policy| {
        iothub_emulator::sign(resource, key, expiry, policy).unwrap()
    };
    let late = 4_000_000_000;
    let judge = async |password: &str| {
        Client::refusal(&emulator, None, hello_with(&emulator, "pi-01", password)).await
    };
    for good in [None, Some("registration")] {
        assert_eq!(judge(&signed(&resource, &key, late, good)).await, ACCEPTED);
    }
    let other = emulator.derived_key("pi-02");
    for bad in [
        signed(&resource, &other, late, None),
        signed(&resource, &key, 1_700_000_000, None),
        signed(&resource, &key, late, Some("iothubowner")),
        signed(&format!("{scope}/registrations/pi-02"), &key, late, None),
        signed("0neFFFFFFFF/registrations/pi-01", &key, late, None),
        "junk".to_owned(),
        String::new(),
    ] {
        assert_eq!(judge(&bad).await, NOT_AUTHORISED, "{bad}");
    }
    let password = signed(&resource, &key, late, None);
    let mut other_scope = hello_with(&emulator, "pi-01", &password);
    other_scope.set_login(
        "0ne00000000/registrations/pi-01/api-version=2019-03-31",
        password,
    );
    assert_eq!(
        Client::refusal(&emulator, None, other_scope).await,
        NOT_AUTHORISED
    );
    let mut other_client = hello(&emulator, "pi-01", &key);
    other_client.client_id = "pi-02".to_owned();
    assert_eq!(
        Client::refusal(&emulator, None, other_client).await,
        NOT_AUTHORISED
    );
    assert_eq!(emulator.registrations("pi-01"), 0);
}

#[tokio::test]
async fn an_individual_enrollment_has_a_key_and_may_name_the_device() {
    let key = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
    let emulator = Emulator::start(Options {
        enrollments: vec![
            "serial-7=MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
                .parse()
                .unwrap(),
        ],
        id_scope: Some("0ne00000001".to_owned()),
        dps_group_key: Some(key.to_owned()),
        ..Options::default()
    })
    .await
    .unwrap();
    let ready = emulator.ready().dps.clone().unwrap();
    assert_eq!(ready.id_scope, "0ne00000001");
    assert_eq!(ready.group_key, key);
    assert_eq!(ready.enrollments["serial-7"], key);
    emulator
        .enroll("serial-7", &json!({ "deviceId": "Pi-07" }))
        .unwrap();
    // The group's derived key is not that of an enrollment of its own.
    let derived = hello(&emulator, "serial-7", &emulator.derived_key("serial-7"));
    assert_eq!(
        Client::refusal(&emulator, None, derived).await,
        NOT_AUTHORISED
    );

    let body = register(&emulator, None, hello(&emulator, "serial-7", key)).await;
    assert_eq!(body["registrationState"]["deviceId"], "Pi-07");
    assert_eq!(
        body["registrationState"]["symmetricKey"]["enrollmentGroupId"],
        Value::Null
    );
    Client::open_with(&emulator, None, connect_with_key(&emulator, "Pi-07", key)).await;
}

#[tokio::test]
async fn certificates_prove_a_registration_by_ca_or_by_thumbprint() {
    let emulator = emulator().await;
    let by_ca = emulator.issue_certificate("pi-ca").unwrap();
    let hello = |id: &str| hello_with(&emulator, id, "");
    let body = register(&emulator, Some(&by_ca), hello("pi-ca")).await;
    assert_eq!(
        body["registrationState"]["x509"]["enrollmentGroupId"],
        "certificates"
    );
    let in_hub = connect_with_certificate(&emulator, "pi-ca");
    Client::open_with(&emulator, Some(&by_ca), in_hub).await;

    let other_name = Client::refusal(&emulator, Some(&by_ca), hello("pi-cb")).await;
    assert_eq!(other_name, NOT_AUTHORISED);
    let own = DeviceCertificate::self_signed("pi-x", 3600).unwrap();
    assert_eq!(
        Client::refusal(&emulator, Some(&own), hello("pi-x")).await,
        NOT_AUTHORISED
    );
    let thumbprints = json!({ "type": "x509", "thumbprints": [own.sha1_thumbprint] });
    emulator
        .enroll("pi-x", &json!({ "attestation": thumbprints }))
        .unwrap();
    let body = register(&emulator, Some(&own), hello("pi-x")).await;
    assert_eq!(body["status"], "assigned");
    let in_hub = connect_with_certificate(&emulator, "pi-x");
    Client::open_with(&emulator, Some(&own), in_hub).await;
}

#[tokio::test]
async fn disabled_and_failed_are_final() {
    let emulator = emulator().await;
    let hello = || hello(&emulator, "pi-01", &emulator.derived_key("pi-01"));
    emulator
        .enroll_group("keys", &json!({ "status": "disabled" }))
        .unwrap();
    let body = register(&emulator, None, hello()).await;
    assert_eq!(body["status"], "disabled");
    assert_eq!(body["registrationState"]["errorCode"], 401_002);
    assert_eq!(emulator.twin("pi-01"), Value::Null);

    let failing = json!({ "status": "enabled", "failure": "no hub for this model" });
    emulator.enroll_group("keys", &failing).unwrap();
    let body = register(&emulator, None, hello()).await;
    assert_eq!(body["status"], "failed");
    let state = &body["registrationState"];
    assert_eq!(state["errorMessage"], "no hub for this model");
    assert_eq!(state.get("assignedHub"), None);
    assert_eq!(emulator.registrations("pi-01"), 2);
}

#[tokio::test]
async fn provisioning_again_keeps_the_twin_unless_it_is_to_be_reset() {
    let emulator = emulator().await;
    let key = emulator.derived_key("pi-01");
    let again = async || register(&emulator, None, hello(&emulator, "pi-01", &key)).await;
    again().await;
    emulator
        .patch_desired("pi-01", &json!({ "kept": 1 }))
        .unwrap();
    let mut live =
        Client::open_with(&emulator, None, connect_with_key(&emulator, "pi-01", &key)).await;
    let body = again().await;
    assert_eq!(body["registrationState"]["substatus"], "initialAssignment");
    assert_eq!(emulator.twin("pi-01")["properties"]["desired"]["kept"], 1);
    live.is_quiet().await;

    emulator
        .enroll_group("keys", &json!({ "resetTwin": true }))
        .unwrap();
    let body = again().await;
    assert_eq!(body["registrationState"]["substatus"], "deviceDataReset");
    assert_eq!(
        emulator.twin("pi-01")["properties"]["desired"].get("kept"),
        None
    );
    assert_eq!(emulator.registrations("pi-01"), 3);
}

#[tokio::test]
async fn a_renewed_certificate_takes_the_place_of_the_old_one_in_the_hub() {
    let emulator = emulator().await;
    let [old, new] = [1, 2].map(|_| emulator.issue_certificate("pi-ca").unwrap());
    register(&emulator, Some(&old), hello_with(&emulator, "pi-ca", "")).await;
    let in_hub = || connect_with_certificate(&emulator, "pi-ca");
    let mut live = Client::open_with(&emulator, Some(&old), in_hub()).await;
    assert_eq!(
        Client::refusal(&emulator, Some(&new), in_hub()).await,
        NOT_AUTHORISED
    );
    register(&emulator, Some(&new), hello_with(&emulator, "pi-ca", "")).await;
    live.is_closed().await;
    assert_eq!(
        Client::refusal(&emulator, Some(&old), in_hub()).await,
        NOT_AUTHORISED
    );
    assert_eq!(
        Client::refusal(&emulator, Some(&new), in_hub()).await,
        ACCEPTED
    );
}

#[tokio::test]
async fn the_assignment_can_point_to_another_hub_which_this_one_does_not_register_for() {
    let emulator = emulator().await;
    let hello = |id: &str| hello(&emulator, id, &emulator.derived_key(id));
    emulator.assign_to(Some("other.azure-devices.net"));
    let body = register(&emulator, None, hello("pi-01")).await;
    assert_eq!(
        body["registrationState"]["assignedHub"],
        "other.azure-devices.net"
    );
    assert_eq!(emulator.twin("pi-01"), Value::Null);
    emulator.assign_to(None);
    let body = register(&emulator, None, hello("pi-01")).await;
    assert_eq!(body["registrationState"]["assignedHub"], "localhost");
    assert_eq!(emulator.twin("pi-01")["deviceId"], "pi-01");

    emulator
        .enroll_group("keys", &json!({ "assignedHub": "third.example" }))
        .unwrap();
    let body = register(&emulator, None, hello("pi-02")).await;
    assert_eq!(body["registrationState"]["assignedHub"], "third.example");
}

#[tokio::test]
async fn requests_are_refused_on_request_and_bad_ones_by_themselves() {
    let emulator = emulator().await;
    let fault: Fault = "fail-registrations=1,status=429,retry-after=7,device=pi-01"
        .parse()
        .unwrap();
    emulator.inject(fault).await.unwrap();
    emulator
        .inject("fail-registrations=1,status=503".parse().unwrap())
        .await
        .unwrap();
    let key = emulator.derived_key("pi-01");
    let mut client = Client::open_with(&emulator, None, hello(&emulator, "pi-01", &key)).await;
    client.subscribe(&[ANSWERS]).await;
    let mut attempt = async |payload: String| {
        client.publish(REGISTER, payload).await;
        answer(&mut client).await
    };
    let (status, query, body) = attempt(request("pi-01")).await;
    assert_eq!((status, query.as_str()), (429, "$rid=r%201&retry-after=7"));
    assert_eq!(body["errorCode"], 429_001);
    let (status, query, _) = attempt(request("pi-01")).await;
    assert_eq!((status, query.as_str()), (503, "$rid=r%201"));
    assert_eq!(attempt("no JSON".to_owned()).await.0, 400);
    assert_eq!(attempt(request("pi-02")).await.0, 400);
    assert_eq!(emulator.registrations("pi-01"), 0);
    let (status, _, body) = attempt(request("pi-01")).await;
    assert_eq!(status, 202);
    let operation = body["operationId"].as_str().unwrap();
    let (status, _, body) = ask(&mut client, "4.unknown").await;
    assert_eq!(status, 404);
    assert!(body["trackingId"].is_string());
    assert_eq!(ask(&mut client, operation).await.0, 200);
    // What was answered is forgotten, and so is what was begun before.
    assert_eq!(ask(&mut client, operation).await.0, 404);
    let mut begin = async || {
        client.publish(REGISTER, request("pi-01")).await;
        let (_, _, body) = answer(&mut client).await;
        body["operationId"].as_str().unwrap().to_owned()
    };
    let (first, second) = (begin().await, begin().await);
    assert_eq!(ask(&mut client, &first).await.0, 404);
    assert_eq!(ask(&mut client, &second).await.0, 200);
}

#[tokio::test]
async fn what_the_service_does_not_allow_closes_the_connection() {
    let emulator = emulator().await;
    let key = emulator.derived_key("pi-01");
    let open = async || Client::open_with(&emulator, None, hello(&emulator, "pi-01", &key)).await;
    for topic in [
        "devices/pi-01/messages/events/",
        "$dps/registrations/POST/x/?$rid=1",
    ] {
        let mut client = open().await;
        client.publish(topic, "{}").await;
        client.is_closed().await;
    }
    let mut client = open().await;
    let mut publish = Publish::new(REGISTER, QoS::AtLeastOnce, request("pi-01"));
    publish.pkid = 3;
    client.send(Packet::Publish(publish)).await;
    assert!(matches!(client.next().await, Some(Packet::PubAck(ack)) if ack.pkid == 3));
    // Nobody listens: no answer.
    client.is_quiet().await;
    client.send(Packet::PingReq).await;
    assert_eq!(client.next().await, Some(Packet::PingResp));
    emulator.set_down(true);
    client.is_closed().await;
    emulator.set_down(false);
    // A CONNECT to the service counts as one for the faults too.
    emulator.refuse_connects(1);
    let refused = Client::refusal(&emulator, None, hello(&emulator, "pi-01", &key)).await;
    assert_eq!(refused, Some(ConnectReturnCode::ServiceUnavailable));
    open().await;
}

#[tokio::test]
async fn scope_keys_enrollments_and_registrations_outlive_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let options = Options {
        state: Some(directory.path().join("hub")),
        enrollments: vec!["own".parse().unwrap()],
        ..Options::default()
    };
    let emulator = Emulator::start(options.clone()).await.unwrap();
    let before = emulator.ready().dps.clone().unwrap();
    let key = emulator.derived_key("pi-01");
    register(&emulator, None, hello(&emulator, "pi-01", &key)).await;
    emulator
        .enroll("other", &json!({ "status": "disabled" }))
        .unwrap();
    emulator.stop().await;

    let emulator = Emulator::start(options).await.unwrap();
    let after = emulator.ready().dps.clone().unwrap();
    assert_eq!(
        (before.id_scope, before.group_key),
        (after.id_scope, after.group_key)
    );
    assert_eq!(before.enrollments["own"], after.enrollments["own"]);
    assert!(after.enrollments.contains_key("other"));
    assert_eq!(emulator.registrations("pi-01"), 1);
    assert_eq!(emulator.registration("pi-01")["status"], "assigned");
    Client::open_with(&emulator, None, connect_with_key(&emulator, "pi-01", &key)).await;
}

#[tokio::test]
async fn provisioning_works_over_websocket_too() {
    let emulator = emulator().await;
    let key = emulator.derived_key("pi-01");
    let mut client = Client::dial_websocket(&emulator, None).await;
    assert_eq!(
        client.hello(hello(&emulator, "pi-01", &key)).await,
        ACCEPTED
    );
    client.subscribe(&[ANSWERS]).await;
    client.publish(REGISTER, request("pi-01")).await;
    let (_, _, body) = answer(&mut client).await;
    let operation = body["operationId"].as_str().unwrap().to_owned();
    let (_, _, body) = ask(&mut client, &operation).await;
    assert_eq!(body["status"], "assigned");
}

#[tokio::test]
async fn enrollments_and_settings_are_changed_by_hand() {
    let directory = tempfile::tempdir().unwrap();
    let wire_log = directory.path().join("wire.log");
    let emulator = Emulator::start(Options {
        wire_log: Some(wire_log.clone()),
        ..Options::default()
    })
    .await
    .unwrap();
    let (http, _) = service(&emulator);
    let base = format!(
        "https://localhost:{}/emulator/dps",
        emulator.ready().https_port
    );
    let call = async |method: reqwest::Method, path: &str, body: &str| {
        let request = http
            .request(method, format!("{base}{path}"))
            .body(body.to_owned());
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        (status, answer.json::<Value>().await.unwrap_or_default())
    };
    use reqwest::Method;
    let (status, made) = call(Method::PUT, "/enrollments/Pi-09", r#"{"deviceId":"nine"}"#).await;
    assert_eq!(status, 200);
    let key = made["attestation"]["primaryKey"].as_str().unwrap();
    let (status, _) = call(Method::POST, "?polls=2&retry-after=3", "").await;
    assert_eq!(status, 204);
    let hello = || hello(&emulator, "pi-09", key);
    let mut client = Client::open_with(&emulator, None, hello()).await;
    client.subscribe(&[ANSWERS]).await;
    client.publish(REGISTER, request("pi-09")).await;
    let (status, query, body) = answer(&mut client).await;
    assert_eq!((status, query.as_str()), (202, "$rid=r%201&retry-after=3"));
    let operation = body["operationId"].as_str().unwrap().to_owned();
    let statuses = [
        ask(&mut client, &operation).await.0,
        ask(&mut client, &operation).await.0,
    ];
    assert_eq!(statuses, [202, 200]);
    let (_, registration) = call(Method::GET, "/registrations/pi-09", "").await;
    assert_eq!(registration["count"], 1);
    assert_eq!(registration["request"], json!({ "model": "pi" }));
    assert_eq!(registration["state"]["deviceId"], "nine");
    let (_, all) = call(Method::GET, "", "").await;
    assert_eq!(all["idScope"], scope(&emulator));
    assert_eq!(all["enrollments"]["pi-09"]["status"], "enabled");
    assert_eq!(all["registrations"]["pi-09"]["count"], 1);

    assert_eq!(
        call(Method::PUT, "/groups/bad", r#"{"colour":1}"#).await.0,
        400
    );
    assert_eq!(call(Method::DELETE, "/enrollments/pi-09", "").await.0, 204);
    assert_eq!(call(Method::DELETE, "/enrollments/pi-09", "").await.0, 404);
    assert_eq!(
        Client::refusal(&emulator, None, hello()).await,
        NOT_AUTHORISED
    );

    let wire = std::fs::read_to_string(wire_log).unwrap();
    for line in [
        "dps/pi-09 -> CONNECT client-id=pi-09",
        "dps/pi-09 -> PUBLISH q0 id=0 dup=0 retain=0 $dps/registrations/PUT/iotdps-register/",
        "dps/pi-09 <- PUBLISH q0 id=0 dup=0 retain=0 $dps/registrations/res/202/",
    ] {
        assert!(wire.contains(line), "{line}\n{wire}");
    }
    assert!(!wire.contains("sig=") || wire.contains("sig=***"), "{wire}");
}
