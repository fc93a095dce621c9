//! Who may come in: keys, thumbprints, CAs; and what a change of credentials does to a live connection.

use std::time::Duration;

use iothub_emulator::{DeviceCertificate, Emulator, Options};
use rumqttc::ConnectReturnCode;
use serde_json::{Value, json};

use super::client::{
    Client, connect, connect_with_certificate, connect_with_key, key, members, service, token,
};

const NOT_AUTHORISED: Option<ConnectReturnCode> = Some(ConnectReturnCode::NotAuthorized);
const ACCEPTED: Option<ConnectReturnCode> = Some(ConnectReturnCode::Success);

async fn emulator() -> Emulator {
    Emulator::start(Options::default().device("pi-01"))
        .await
        .unwrap()
}

fn by_ca() -> Value {
    json!({ "authentication": { "type": "certificateAuthority" } })
}

fn by_thumbprint(print: &str) -> Value {
    json!({ "authentication": {
        "type": "selfSigned", "x509Thumbprint": { "secondaryThumbprint": print } } })
}

#[tokio::test]
async fn a_ca_signed_device_comes_in_by_chain_and_common_name() {
    let emulator = emulator().await;
    emulator.put_device("pi-ca", &by_ca()).unwrap();
    assert_eq!(
        emulator.twin("pi-ca")["authenticationType"],
        "certificateAuthority"
    );
    let hello = || connect_with_certificate(&emulator, "pi-ca");

    let good = emulator.issue_certificate("pi-ca").unwrap();
    assert_eq!(
        Client::refusal(&emulator, Some(&good), hello()).await,
        ACCEPTED
    );

    let other = emulator.issue_certificate("pi-cb").unwrap();
    let expired = emulator.issue_certificate_for("pi-ca", -60).unwrap();
    let self_signed = DeviceCertificate::self_signed("pi-ca", 3600).unwrap();
    for wrong in [Some(&other), Some(&expired), Some(&self_signed), None] {
        assert_eq!(
            Client::refusal(&emulator, wrong, hello()).await,
            NOT_AUTHORISED
        );
    }
    assert_eq!(emulator.refusals("pi-ca"), 4);
    // A token does not help where a certificate is due.
    let with_token = connect_with_key(&emulator, "pi-ca", &key(&emulator, "pi-01"));
    assert_eq!(
        Client::refusal(&emulator, None, with_token).await,
        NOT_AUTHORISED
    );
}

#[tokio::test]
async fn a_ca_of_the_operators_counts_from_the_start_or_from_when_it_is_registered() {
    let theirs = emulator().await;
    let ca_file = theirs.ready().device_ca_file.clone();
    let made = theirs.issue_certificate("pi-ca").unwrap();
    let hello = |emulator: &Emulator| connect_with_certificate(emulator, "pi-ca");

    let late = emulator().await;
    late.put_device("pi-ca", &by_ca()).unwrap();
    assert_eq!(
        Client::refusal(&late, Some(&made), hello(&late)).await,
        NOT_AUTHORISED
    );
    let pem = std::fs::read_to_string(&ca_file).unwrap();
    assert_eq!(late.register_device_ca(&pem), Ok(1));
    assert_eq!(
        Client::refusal(&late, Some(&made), hello(&late)).await,
        ACCEPTED
    );
    assert!(late.register_device_ca("nothing").is_err());

    let early = Emulator::start(Options {
        device_cas: vec![ca_file],
        ..Options::default()
    })
    .await
    .unwrap();
    early.put_device("pi-ca", &by_ca()).unwrap();
    assert_eq!(
        Client::refusal(&early, Some(&made), hello(&early)).await,
        ACCEPTED
    );
}

#[tokio::test]
async fn a_thumbprint_is_sha1_or_sha256_in_either_case_and_either_place() {
    let emulator = emulator().await;
    let made = DeviceCertificate::self_signed("any name", 3600).unwrap();
    let hello = || connect_with_certificate(&emulator, "pi-x");
    for print in [
        made.sha1_thumbprint.clone(),
        made.sha256_thumbprint.to_uppercase(),
    ] {
        emulator.put_device("pi-x", &by_thumbprint(&print)).unwrap();
        assert_eq!(
            Client::refusal(&emulator, Some(&made), hello()).await,
            ACCEPTED
        );
    }
    let other = DeviceCertificate::self_signed("any name", 3600).unwrap();
    assert_eq!(
        Client::refusal(&emulator, Some(&other), hello()).await,
        NOT_AUTHORISED
    );
}

#[tokio::test]
async fn an_x509_device_of_the_start_finds_its_files_and_keeps_them_over_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let options = Options {
        state: Some(directory.path().join("hub")),
        ..Options::default().x509_device("pi-ca")
    };
    let mut seen = Vec::new();
    for _ in 0..2 {
        let emulator = Emulator::start(options.clone()).await.unwrap();
        let ready = emulator.ready();
        assert_eq!(members(&ready.devices["pi-ca"])["x509"], "true");
        let files = &ready.certificates["pi-ca"];
        let made = DeviceCertificate {
            certificate: std::fs::read_to_string(&files.certificate_file).unwrap(),
            private_key: std::fs::read_to_string(&files.private_key_file).unwrap(),
            sha1_thumbprint: String::new(),
            sha256_thumbprint: String::new(),
        };
        let hello = connect_with_certificate(&emulator, "pi-ca");
        assert_eq!(
            Client::refusal(&emulator, Some(&made), hello).await,
            ACCEPTED
        );
        seen.push(made.certificate);
        emulator.stop().await;
    }
    assert_eq!(seen[0], seen[1]);
}

#[tokio::test]
async fn over_websocket_a_certificate_counts_too_and_rest_needs_none() {
    let emulator = emulator().await;
    emulator.put_device("pi-ca", &by_ca()).unwrap();
    let made = emulator.issue_certificate("pi-ca").unwrap();
    let mut client = Client::dial_websocket(&emulator, Some(&made)).await;
    let hello = connect_with_certificate(&emulator, "pi-ca");
    assert_eq!(client.hello(hello).await, ACCEPTED);
    client.subscribe(&["$iothub/twin/res/#"]).await;
    assert_eq!(
        client.read_twin("1").await.0,
        "$iothub/twin/res/200/?$rid=1"
    );

    let port = emulator.ready().https_port;
    let (http, token) = service(&emulator);
    let answer = http
        .get(format!(
            "https://localhost:{port}/devices/pi-ca?api-version=2021-04-12"
        ))
        .header("Authorization", token)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    let identity: Value = answer.json().await.unwrap();
    assert_eq!(identity["authentication"]["type"], "certificateAuthority");
    assert_eq!(identity["connectionState"], "Connected");
}

#[tokio::test]
async fn certificates_and_cas_are_to_be_had_by_hand() {
    let emulator = emulator().await;
    let (http, _) = service(&emulator);
    let base = format!("https://localhost:{}/emulator", emulator.ready().https_port);
    let post = async |path: &str, body: String| {
        let answer = http.post(format!("{base}{path}")).body(body).send().await;
        let answer = answer.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        answer.json::<Value>().await.unwrap()
    };
    let made = |answer: &Value| DeviceCertificate {
        certificate: answer["certificate"].as_str().unwrap().to_owned(),
        private_key: answer["privateKey"].as_str().unwrap().to_owned(),
        sha1_thumbprint: answer["sha1Thumbprint"].as_str().unwrap().to_owned(),
        sha256_thumbprint: answer["sha256Thumbprint"].as_str().unwrap().to_owned(),
    };
    emulator.put_device("pi-ca", &by_ca()).unwrap();
    let signed = made(&post("/certificates/pi-ca", String::new()).await);
    let hello = || connect_with_certificate(&emulator, "pi-ca");
    assert_eq!(
        Client::refusal(&emulator, Some(&signed), hello()).await,
        ACCEPTED
    );
    let expired = made(&post("/certificates/pi-ca?seconds=-5", String::new()).await);
    assert_eq!(
        Client::refusal(&emulator, Some(&expired), hello()).await,
        NOT_AUTHORISED
    );

    let own = made(&post("/certificates/pi-x?self-signed=true", String::new()).await);
    let print = &own.sha256_thumbprint;
    emulator.put_device("pi-x", &by_thumbprint(print)).unwrap();
    let hello = connect_with_certificate(&emulator, "pi-x");
    assert_eq!(
        Client::refusal(&emulator, Some(&own), hello).await,
        ACCEPTED
    );

    let pem = std::fs::read_to_string(&emulator.ready().device_ca_file).unwrap();
    assert_eq!(post("/device-cas", pem).await["registered"], 1);
}

#[tokio::test]
async fn the_older_form_of_the_user_name_and_the_bare_one_connect() {
    let emulator = emulator().await;
    for (user, twin_status) in [
        (
            "localhost/pi-01/?api-version=2021-04-12&DeviceClientType=x%2F1",
            "200",
        ),
        ("LOCALHOST/pi-01/api-version=2016-11-14", "200"),
        ("localhost/pi-01", "400"),
    ] {
        let mut hello = connect(&emulator, "pi-01");
        let password = hello.login.clone().unwrap().password;
        hello.set_login(user, password);
        let mut client = Client::open_with(&emulator, None, hello).await;
        client.subscribe(&["$iothub/twin/res/#"]).await;
        let (topic, _) = client.read_twin("1").await;
        assert_eq!(
            topic,
            format!("$iothub/twin/res/{twin_status}/?$rid=1"),
            "{user}"
        );
    }
}

#[tokio::test]
async fn strangers_are_refused() {
    let emulator = emulator().await;
    let right = || connect(&emulator, "pi-01");
    let mut cases = Vec::new();
    let mut unknown = right();
    unknown.client_id = "nobody".to_owned();
    cases.push(unknown);
    let mut other_hub = right();
    let password = right().login.unwrap().password;
    other_hub.set_login("elsewhere/pi-01/?api-version=2021-04-12", password.clone());
    cases.push(other_hub);
    let mut no_user = right();
    no_user.login = None;
    cases.push(no_user);
    let user = right().login.unwrap().username;
    for wrong in [
        token("localhost/devices/pi-02", &key(&emulator, "pi-01")),
        token("localhost/devices/pi-01", "AAAAAAAAAAAAAAAAAAAAAA=="),
        iothub_emulator::sign("localhost/devices/pi-01", &key(&emulator, "pi-01"), 1, None)
            .unwrap(),
        "junk".to_owned(),
    ] {
        let mut hello = right();
        hello.set_login(user.clone(), wrong);
        cases.push(hello);
    }
    for hello in cases {
        let shown = format!("{hello:?}");
        assert_eq!(
            Client::refusal(&emulator, None, hello).await,
            NOT_AUTHORISED,
            "{shown}"
        );
    }
}

#[tokio::test]
async fn disabling_deleting_and_new_keys_close_a_live_connection() {
    let emulator = emulator().await;
    let mut client = Client::open(&emulator, "pi-01").await;
    emulator
        .put_device("pi-01", &json!({ "status": "disabled" }))
        .unwrap();
    client.is_closed().await;
    let refused = Client::refusal(&emulator, None, connect(&emulator, "pi-01")).await;
    assert_eq!(refused, NOT_AUTHORISED);

    emulator
        .put_device("pi-01", &json!({ "status": "enabled" }))
        .unwrap();
    let mut client = Client::open(&emulator, "pi-01").await;
    let new_keys = json!({ "authentication": { "type": "sas" } });
    emulator.put_device("pi-01", &new_keys).unwrap();
    client.is_closed().await;
    let old_key = connect(&emulator, "pi-01");
    assert_eq!(
        Client::refusal(&emulator, None, old_key).await,
        NOT_AUTHORISED
    );

    emulator.put_device("pi-02", &json!({})).unwrap();
    let identity = emulator.put_device("pi-02", &json!({})).unwrap();
    let key = identity["authentication"]["symmetricKey"]["secondaryKey"]
        .as_str()
        .unwrap();
    let hello = || connect_with_key(&emulator, "pi-02", key);
    let mut client = Client::open_with(&emulator, None, hello()).await;
    emulator.delete_device("pi-02").unwrap();
    client.is_closed().await;
    assert_eq!(
        Client::refusal(&emulator, None, hello()).await,
        NOT_AUTHORISED
    );
}

#[tokio::test]
async fn rotating_the_key_that_a_connection_does_not_use_leaves_it_alone() {
    let emulator = emulator().await;
    let primary = key(&emulator, "pi-01");
    let mut client = Client::open(&emulator, "pi-01").await;
    let keys = |primary: &str| json!({ "authentication": { "type": "sas", "symmetricKey": { "primaryKey": primary } } });
    // The secondary becomes a new one; the primary, in use, stays.
    emulator.put_device("pi-01", &keys(&primary)).unwrap();
    client.is_quiet().await;
    assert!(emulator.is_connected("pi-01"));
    emulator.put_device("pi-01", &keys("")).unwrap();
    client.is_closed().await;
}

#[tokio::test]
async fn a_token_of_a_policy_admits_any_device_and_outlives_its_keys() {
    let emulator = emulator().await;
    let service = members(&emulator.ready().service_connection_string);
    let expiry = jiff::Timestamp::now().as_second() as u64 + 3600;
    let resource = "localhost/devices";
    let owner = service["SharedAccessKeyName"];
    let token =
        iothub_emulator::sign(resource, service["SharedAccessKey"], expiry, Some(owner)).unwrap();
    let mut hello = connect(&emulator, "pi-01");
    let user = hello.login.clone().unwrap().username;
    hello.set_login(user, token);
    let mut client = Client::open_with(&emulator, None, hello).await;
    let new_keys = json!({ "authentication": { "type": "sas" } });
    emulator.put_device("pi-01", &new_keys).unwrap();
    client.is_quiet().await;
}

#[tokio::test]
async fn a_token_admits_until_its_end_and_the_grace() {
    let emulator = Emulator::start(Options {
        token_grace: Duration::from_secs(1),
        ..Options::default().device("pi-01")
    })
    .await
    .unwrap();
    let expiry = jiff::Timestamp::now().as_second() as u64 + 2;
    let key = key(&emulator, "pi-01");
    let short = iothub_emulator::sign("localhost/devices/pi-01", &key, expiry, None).unwrap();
    let mut hello = connect(&emulator, "pi-01");
    let user = hello.login.clone().unwrap().username;
    hello.set_login(user, short);
    let mut client = Client::open_with(&emulator, None, hello.clone()).await;
    client.is_closed().await;
    assert!(jiff::Timestamp::now().as_second() as u64 > expiry);
    assert_eq!(
        Client::refusal(&emulator, None, hello).await,
        NOT_AUTHORISED
    );
}
