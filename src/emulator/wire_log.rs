//! The wire log: one readable line for each MQTT packet and each HTTP request, without secrets.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rumqttc::mqttbytes::v4::{Packet, SubscribeReasonCode};

use crate::clock;

/// Longest part of a payload shown.
const PAYLOAD_SHOWN: usize = 2000;

/// Lines kept in memory for the page, of all devices together: bounded however many devices there are.
const RECENT_LINES: usize = 2000;
/// Longest part of a line kept in memory.
const RECENT_SHOWN: usize = 400;

/// Where the lines go, if anywhere.
#[derive(Default)]
pub(crate) struct WireLog {
    file: Option<Mutex<File>>,
    recent: Option<Mutex<VecDeque<Recent>>>,
}

/// A line kept in memory.
struct Recent {
    device: String,
    line: String,
}

impl WireLog {
    /// Appends to `path`.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = File::options().append(true).create(true).open(path)?;
        Ok(Self {
            file: Some(Mutex::new(file)),
            recent: None,
        })
    }

    /// Keeps the last lines in memory too, for [`WireLog::recent`].
    pub(crate) fn remembering(mut self) -> Self {
        self.recent = Some(Mutex::default());
        self
    }

    /// The last lines of `device`, at most `most`, oldest first. Few or none when others were busier.
    pub(crate) fn recent(&self, device: &str, most: usize) -> Vec<String> {
        let Some(recent) = &self.recent else {
            return Vec::new();
        };
        let recent = lock(recent);
        let of_device = recent.iter().rev().filter(|line| line.device == device);
        let mut lines: Vec<_> = of_device.take(most).map(|line| line.line.clone()).collect();
        lines.reverse();
        lines
    }

    /// A packet from `device` to the hub.
    pub(crate) fn received(&self, device: &str, packet: &Packet) {
        self.line(device, || format!("-> {}", describe(packet)));
    }

    /// A packet from the hub to `device`.
    pub(crate) fn sent(&self, device: &str, packet: &Packet) {
        self.line(device, || format!("<- {}", describe(packet)));
    }

    /// Anything else worth a line, such as why a connection ended.
    pub(crate) fn note(&self, device: &str, text: &str) {
        self.line(device, || format!("-- {text}"));
    }

    fn line(&self, device: &str, text: impl FnOnce() -> String) {
        if self.file.is_none() && self.recent.is_none() {
            return;
        }
        let (now, text) = (clock::stamp(), single_line(&redact(&text())));
        if let Some(file) = &self.file
            && let Err(error) = lock(file)
                .write_all(format!("{now} {} {text}\n", single_line(&redact(device))).as_bytes())
        {
            tracing::warn!("cannot write the wire log: {error}");
        }
        // A client may call itself anything of any length; a device's id is short.
        if let Some(recent) = &self.recent
            && device.len() <= 128
        {
            let line = format!("{now} {}", shortened(&text, RECENT_SHOWN));
            let mut recent = lock(recent);
            if recent.len() == RECENT_LINES {
                recent.pop_front();
            }
            recent.push_back(Recent {
                device: device.to_owned(),
                line,
            });
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

fn describe(packet: &Packet) -> String {
    match packet {
        Packet::Connect(connect) => {
            let (user, password) = match &connect.login {
                Some(login) if login.password.is_empty() => (login.username.as_str(), "none"),
                Some(login) => (login.username.as_str(), "given"),
                None => ("", "none"),
            };
            format!(
                "CONNECT client-id={} clean={} keep-alive={} will={} user={user} password={password}",
                connect.client_id,
                u8::from(connect.clean_session),
                connect.keep_alive,
                connect.last_will.is_some(),
            )
        }
        Packet::ConnAck(ack) => format!(
            "CONNACK {} {:?} session-present={}",
            ack.code as u8,
            ack.code,
            u8::from(ack.session_present)
        ),
        Packet::Publish(publish) => format!(
            "PUBLISH q{} id={} dup={} retain={} {} {}",
            publish.qos as u8,
            publish.pkid,
            u8::from(publish.dup),
            u8::from(publish.retain),
            publish.topic,
            payload(&publish.payload)
        ),
        Packet::PubAck(ack) => format!("PUBACK id={}", ack.pkid),
        Packet::Subscribe(subscribe) => {
            let filters: Vec<String> = subscribe
                .filters
                .iter()
                .map(|filter| format!("{} q{}", filter.path, filter.qos as u8))
                .collect();
            format!("SUBSCRIBE id={} {}", subscribe.pkid, filters.join(", "))
        }
        Packet::SubAck(ack) => {
            let codes: Vec<String> = ack
                .return_codes
                .iter()
                .map(|code| match code {
                    SubscribeReasonCode::Success(qos) => format!("q{}", *qos as u8),
                    SubscribeReasonCode::Failure => "failure".to_owned(),
                })
                .collect();
            format!("SUBACK id={} {}", ack.pkid, codes.join(", "))
        }
        Packet::Unsubscribe(unsubscribe) => format!(
            "UNSUBSCRIBE id={} {}",
            unsubscribe.pkid,
            unsubscribe.topics.join(", ")
        ),
        Packet::UnsubAck(ack) => format!("UNSUBACK id={}", ack.pkid),
        Packet::PingReq => "PINGREQ".to_owned(),
        Packet::PingResp => "PINGRESP".to_owned(),
        Packet::Disconnect => "DISCONNECT".to_owned(),
        Packet::PubRec(_) | Packet::PubRel(_) | Packet::PubComp(_) => format!("{packet:?}"),
    }
}

fn payload(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => shortened(text, PAYLOAD_SHOWN),
        Err(_) => format!("({} bytes, not UTF-8)", bytes.len()),
    }
}

/// `text`, or its first `most` characters and its length.
pub(crate) fn shortened(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}... ({} bytes)", &text[..end], text.len()),
        None => text.to_owned(),
    }
}

/// `text` with the values of signatures and keys replaced: `sig=` of SAS tokens and of download
/// addresses, `SharedAccessKey=` of connection strings.
pub(crate) fn redact(text: &str) -> String {
    const SECRETS: [&str; 4] = [
        "sig=",
        "sharedaccesskey=",
        "sharedaccesssignature=",
        "password=",
    ];
    let lower = text.to_ascii_lowercase();
    let mut redacted = String::with_capacity(text.len());
    let mut at = 0;
    while let Some((start, name)) = SECRETS
        .iter()
        .filter_map(|name| lower[at..].find(name).map(|found| (at + found, name)))
        .min()
    {
        let value = start + name.len();
        let ends =
            |c: char| matches!(c, '&' | ';' | '"' | '\'' | '\\' | ',' | '}') || c.is_whitespace();
        let end = text[value..]
            .find(ends)
            .map_or(text.len(), |length| value + length);
        redacted.push_str(&text[at..value]);
        let plain = matches!(&text[value..end], "" | "none" | "given");
        redacted.push_str(if plain { &text[value..end] } else { "***" });
        at = end;
    }
    redacted.push_str(&text[at..]);
    redacted
}

fn single_line(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('\n', "\\n")
        .replace('\r', "\\r")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rumqttc::mqttbytes::QoS;
    use rumqttc::mqttbytes::v4::{Connect, Publish};

    use super::*;

    #[test]
    fn no_secret_reaches_the_log() {
        let mut connect = Connect::new("pi");
        connect.set_login(
            "hub/pi/?api-version=2021-04-12",
            "SharedAccessSignature sr=x&sig=SECRET&se=1",
        );
        let publish = Publish::new(
            "$iothub/methods/POST/firmwareUpdate/?$rid=1",
            QoS::AtMostOnce,
            r#"{"fwPackageUri":"https://x/y?sv=1&sig=SECRET%3D&se=2","c":"HostName=h;SharedAccessKey=SECRET=;x"}"#,
        );
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("wire.log");
        let log = WireLog::open(&path).unwrap();
        log.received("pi", &Packet::Connect(connect));
        log.sent("pi", &Packet::Publish(publish));
        log.note("pi", "two\nlines");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(!text.contains("SECRET"), "{text}");
        assert!(text.contains("password=given"), "{text}");
        assert!(text.contains("sig=***&se=2"), "{text}");
        assert_eq!(text.lines().count(), 3, "{text}");
    }

    #[test]
    fn the_last_lines_of_each_device_are_kept_when_asked_for() {
        let log = WireLog::default();
        log.note("pi", "forgotten");
        assert!(log.recent("pi", 9).is_empty());
        let log = WireLog::default().remembering();
        for n in 0..RECENT_LINES {
            log.note("pi", &format!("line {n} sig=SECRET"));
            log.note("other", "noise");
        }
        let lines = log.recent("pi", 2);
        assert_eq!(lines.len(), 2);
        assert!(
            lines[0].ends_with(&format!("-- line {} sig=***", RECENT_LINES - 2)),
            "{lines:?}"
        );
        assert!(
            lines[1].ends_with(&format!("-- line {} sig=***", RECENT_LINES - 1)),
            "{lines:?}"
        );
        assert_eq!(
            log.recent("pi", usize::MAX).len(),
            RECENT_LINES / 2,
            "all of them are bounded"
        );
    }

    #[test]
    fn a_long_payload_is_cut_between_characters() {
        let shown = payload("ü".repeat(PAYLOAD_SHOWN + 1).as_bytes());
        assert!(shown.ends_with("... (4002 bytes)"), "{shown}");
    }

    proptest! {
        #[test]
        fn redaction_keeps_everything_else(text in "[^=]*") {
            prop_assert_eq!(redact(&text), text);
        }

        #[test]
        fn redaction_never_panics(text in ".*(sig=|SharedAccessKey=).*") {
            let _ = redact(&text);
        }
    }
}
