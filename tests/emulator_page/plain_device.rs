//! A device that reports what a test says, over real MQTT.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use iothub_emulator::Emulator;
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS, TlsConfiguration, Transport};
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::support::rig::PATIENCE;

/// Connects, and connects again whenever it is thrown out.
pub(crate) struct PlainDevice {
    id: String,
    client: AsyncClient,
    running: JoinHandle<()>,
}

impl PlainDevice {
    /// Connects as the registered device `id`.
    pub(crate) async fn connect(emulator: &Emulator, id: &str) -> Self {
        let ready = emulator.ready();
        let parts: BTreeMap<&str, &str> = ready.devices[id]
            .split(';')
            .filter_map(|part| part.split_once('='))
            .collect();
        let host = parts["HostName"];
        let resource = format!("{host}/devices/{id}");
        let key = parts["SharedAccessKey"];
        let token = iothub_emulator::sign(&resource, key, 4_000_000_000, None).unwrap();
        let tls = fwupdated::platform::tls::client_config(Some(&ready.ca_file)).unwrap();
        let mut options = MqttOptions::new(id, host, ready.mqtt_port);
        options
            .set_transport(Transport::Tls(TlsConfiguration::Rustls(Arc::clone(&tls))))
            .set_credentials(format!("{host}/{id}/?api-version=2021-04-12"), token);
        let (client, mut events) = AsyncClient::new(options, 50);
        let subscriber = client.clone();
        let running = tokio::spawn(async move {
            loop {
                match events.poll().await {
                    Ok(Event::Incoming(Packet::ConnAck(_))) => {
                        let filter = "$iothub/twin/res/#";
                        subscriber.try_subscribe(filter, QoS::AtMostOnce).unwrap();
                    }
                    Ok(_) => {}
                    Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
                }
            }
        });
        let device = Self {
            id: id.to_owned(),
            client,
            running,
        };
        device
            .wait(emulator, |emulator| emulator.is_connected(id))
            .await;
        device
    }

    /// Reports `patch`; the hub has it when this returns.
    pub(crate) async fn report(&self, emulator: &Emulator, patch: Value) {
        let before = emulator.reported_history(&self.id).len();
        let topic = "$iothub/twin/PATCH/properties/reported/?$rid=1";
        let payload = patch.to_string();
        let sent = self.client.publish(topic, QoS::AtMostOnce, false, payload);
        sent.await.unwrap();
        let accepted = |emulator: &Emulator| emulator.reported_history(&self.id).len() > before;
        self.wait(emulator, accepted).await;
    }

    async fn wait(&self, emulator: &Emulator, condition: impl FnMut(&Emulator) -> bool) {
        let came = emulator.wait_until(PATIENCE, condition).await;
        assert!(came, "{}: it did not come to pass", self.id);
    }
}

impl Drop for PlainDevice {
    fn drop(&mut self) {
        self.running.abort();
    }
}
