//! How a hub refuses a client, and ends the connection of one that it no longer wants. Nothing that is published says
//! it all for certain: little is asserted, everything is noted. The device side must live with either.

use std::{net::ToSocketAddrs, sync::Arc, time::Duration};

use fwupdated::platform::tls;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::Instant};

use super::{
    client::{Client, Login},
    hub::Hub,
    identity::new_key,
};

/// How long a hub is watched for whether it ends a connection.
const WATCHED: Duration = Duration::from_secs(4);

pub(crate) async fn what_a_hub_tells_a_client_that_it_refuses(hub: Arc<Hub>) {
    let (id, keys) = hub.register().await;
    let (nobody, wrong) = (hub.new_name(), new_key());
    let login = Login::new(&id, &keys.primary);
    let logins = [
        ("an unknown device", Login::new(&nobody, &keys.primary)),
        ("a wrong key", Login::new(&id, &wrong)),
        (
            "an expired token",
            Login {
                token_life: -3600,
                ..Login::new(&id, &keys.primary)
            },
        ),
        (
            "a user name of another hub",
            Login {
                hub_name: Some("other.example"),
                ..login
            },
        ),
    ];
    for (what, login) in logins {
        let seen = Client::refused(&hub, &login).await;
        hub.notes.note(format_args!("CONNECT with {what}"), seen);
    }
    hub.service.set_enabled(&id, false).await;
    let seen = Client::refused(&hub, &Login::new(&id, &keys.primary)).await;
    hub.notes.note("CONNECT of a disabled device", seen);
    hub.service.set_enabled(&id, true).await;
    // Either key opens it.
    for key in [&keys.primary, &keys.secondary] {
        let client = Client::up(&hub, &Login::new(&id, key)).await;
        client.leave().await;
    }
    hub.notes
        .note("TLS that the hub chooses", tls_version(&hub).await);
    hub.delete_now(&format!("/devices/{id}"));
}

async fn tls_version(hub: &Hub) -> String {
    let host = hub.service.host().to_owned();
    let target = (host.as_str(), hub.mqtt_port).to_socket_addrs().unwrap();
    let target = target.collect::<Vec<_>>();
    let stream = TcpStream::connect(&target[..])
        .await
        .expect("the hub's MQTT port");
    let config = tls::client_config(hub.ca_file.as_deref()).expect("CAs to trust");
    let name = host.try_into().expect("a host name");
    let stream = tokio_rustls::TlsConnector::from(config)
        .connect(name, stream)
        .await;
    let version = stream
        .expect("a TLS handshake")
        .get_ref()
        .1
        .protocol_version();
    version.map_or("none".to_owned(), |version| format!("{version:?}"))
}

pub(crate) async fn how_soon_a_hub_ends_the_connection_of_a_device_that_it_no_longer_wants(
    hub: Arc<Hub>,
) {
    let (id, keys) = hub.register().await;
    let path = format!("/devices/{id}");
    let state = async || {
        let identity = hub.service.call(Method::GET, &path, &[], None).await.body;
        identity["connectionState"]
            .as_str()
            .unwrap_or("?")
            .to_owned()
    };
    let login = Login::new(&id, &keys.primary);
    let client = Client::up(&hub, &login).await;
    hub.notes
        .note("connectionState right after CONNACK", state().await);
    client.leave().await;
    hub.notes
        .note("connectionState right after DISCONNECT", state().await);

    let mut client = Client::up(&hub, &login).await;
    hub.service.set_enabled(&id, false).await;
    note_end(&hub, "disabled", &mut client).await;
    hub.service.set_enabled(&id, true).await;

    let mut client = Client::up(&hub, &login).await;
    let change = |identity: &mut Value| {
        identity["authentication"]["symmetricKey"]["primaryKey"] = json!(new_key());
    };
    let keys = hub.service.change_identity(&id, change).await;
    note_end(&hub, "given another key", &mut client).await;
    drop(client);

    let login = Login::new(&id, &keys.primary);
    let mut client = Client::up(&hub, &login).await;
    hub.delete_now(&path);
    note_end(&hub, "deleted", &mut client).await;
    let seen = Client::refused(&hub, &login).await;
    hub.notes.note("CONNECT of a deleted device", seen);
}

async fn note_end(hub: &Hub, what: &str, client: &mut Client) {
    let began = Instant::now();
    let ended = client.ends_within(WATCHED).await;
    let seen = match ended {
        true => format!("ends after {} s", began.elapsed().as_secs()),
        false => format!("stands after {} s", WATCHED.as_secs()),
    };
    hub.notes.note(
        format_args!("the connection of a device that is {what}"),
        seen,
    );
}
