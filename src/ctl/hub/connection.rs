//! The service connection string of an IoT Hub, and the access tokens made from it.
//!
//! `HostName={hub};SharedAccessKeyName={policy};SharedAccessKey={base64}`; the host may have a port (an
//! emulator). Guarantee: neither key nor token is ever in a `Debug` or error text.
//! Format: <https://learn.microsoft.com/azure/iot-hub/authenticate-authorize-sas>.

use std::{fmt, path::Path, str::FromStr};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use jiff::Timestamp;
use ring::hmac;

use super::fault::HubError;

/// How long a token is good for, in seconds. A fresh one is made well before.
const TOKEN_LIFETIME: i64 = 3600;

/// A service connection string.
#[derive(Clone)]
pub struct ConnectionString {
    host: String,
    policy: String,
    key: hmac::Key,
}

impl ConnectionString {
    /// Reads the one line of `file`.
    ///
    /// # Errors
    /// When the file cannot be read or does not hold a service connection string.
    pub fn from_file(file: &Path) -> Result<Self, HubError> {
        std::fs::read_to_string(file)
            .map_err(|source| HubError::ConnectionStringFile {
                file: file.to_owned(),
                source,
            })?
            .parse()
            .map_err(HubError::ConnectionString)
    }

    /// Host, and port where there is one.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// A token that is good for an hour from `now`.
    #[must_use]
    pub fn token(&self, now: Timestamp) -> String {
        self.token_until(now.as_second() + TOKEN_LIFETIME)
    }

    fn token_until(&self, expiry: i64) -> String {
        let resource = encode(&self.host);
        let signature = hmac::sign(&self.key, format!("{resource}\n{expiry}").as_bytes());
        let signature = encode(&BASE64.encode(signature));
        let policy = encode(&self.policy);
        format!("SharedAccessSignature sr={resource}&sig={signature}&se={expiry}&skn={policy}")
    }
}

/// Everything but letters, digits and `-_.~` as `%XX`.
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// Why a text is not a service connection string. Never holds a value of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAConnectionString {
    /// Nothing there.
    #[error(
        "the connection string is empty; take the one of a shared access policy such as `service`"
    )]
    Empty,
    /// In quotes.
    #[error("the connection string begins with a quotation mark; leave the quotes out")]
    Quoted,
    /// A part without `=`.
    #[error(
        "a part of the connection string is not of the form Name=Value; copy it whole, in quotes"
    )]
    Form,
    /// A part is not there.
    #[error(
        "the connection string has no {0} (spelled so); take the one of a shared access policy such as `service`"
    )]
    Missing(&'static str),
    /// It is a device's.
    #[error(
        "this is a device's connection string; take the one of a shared access policy such as `service`"
    )]
    Device,
    /// The host is none.
    #[error("HostName in the connection string is not a host name")]
    Host,
    /// The key is not base64.
    #[error("SharedAccessKey in the connection string is not base64; copy it whole")]
    Key,
}

impl FromStr for ConnectionString {
    type Err = NotAConnectionString;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        if text.is_empty() {
            return Err(NotAConnectionString::Empty);
        }
        if text.starts_with(['"', '\'']) {
            return Err(NotAConnectionString::Quoted);
        }
        let (mut host, mut policy, mut key) = (None, None, None);
        for part in text.split(';').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').ok_or(NotAConnectionString::Form)?;
            match name {
                "HostName" => host = Some(value),
                "SharedAccessKeyName" => policy = Some(value),
                "SharedAccessKey" => key = Some(value),
                "DeviceId" => return Err(NotAConnectionString::Device),
                _ => {}
            }
        }
        let host = host.ok_or(NotAConnectionString::Missing("HostName"))?;
        let policy = policy.ok_or(NotAConnectionString::Missing("SharedAccessKeyName"))?;
        let key = key.ok_or(NotAConnectionString::Missing("SharedAccessKey"))?;
        let url =
            url::Url::parse(&format!("https://{host}")).map_err(|_| NotAConnectionString::Host)?;
        let alone = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
        if !alone || url.username() != "" || url.password().is_some() || host.contains(['/', '\\'])
        {
            return Err(NotAConnectionString::Host);
        }
        let key = BASE64.decode(key).map_err(|_| NotAConnectionString::Key)?;
        if key.is_empty() {
            return Err(NotAConnectionString::Key);
        }
        Ok(Self {
            host: host.to_ascii_lowercase(),
            policy: policy.to_owned(),
            key: hmac::Key::new(hmac::HMAC_SHA256, &key),
        })
    }
}

impl fmt::Debug for ConnectionString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConnectionString({}, {})", self.host, self.policy)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

    #[test]
    fn a_token_is_signed_as_the_hub_expects() {
        let text = format!(
            "HostName=MyHub.azure-devices.net;SharedAccessKeyName=service;SharedAccessKey={KEY}\n"
        );
        let connection: ConnectionString = text.parse().unwrap();
        assert_eq!(
            connection.token_until(1_700_000_000),
            "SharedAccessSignature sr=myhub.azure-devices.net&sig=sJAIZTF5oG40VHrie96heZ865%2BnR4QavBvHnzxZm8rk%3D&se=1700000000&skn=service"
        );
        assert!(
            connection
                .token(Timestamp::UNIX_EPOCH)
                .contains("&se=3600&")
        );
        assert!(!format!("{connection:?}").contains(KEY));
    }

    #[test]
    fn a_port_belongs_to_the_host_and_is_encoded_in_the_token() {
        let text =
            format!("SharedAccessKey={KEY};HostName=localhost:8443;SharedAccessKeyName=service");
        let connection: ConnectionString = text.parse().unwrap();
        assert_eq!(connection.host(), "localhost:8443");
        assert!(connection.token_until(1).contains("sr=localhost%3A8443&"));
    }

    #[test]
    fn what_is_wrong_is_said_without_the_key() {
        for (text, wrong) in [
            ("", NotAConnectionString::Empty),
            (" \n", NotAConnectionString::Empty),
            (
                "\"HostName=h;SharedAccessKeyName=p;SharedAccessKey=SECRET\"",
                NotAConnectionString::Quoted,
            ),
            (
                "hostname=h;SharedAccessKeyName=p;SharedAccessKey=SECRET",
                NotAConnectionString::Missing("HostName"),
            ),
            ("SECRET", NotAConnectionString::Form),
            (
                "HostName=h;SharedAccessKey=SECRET",
                NotAConnectionString::Missing("SharedAccessKeyName"),
            ),
            (
                "HostName=h;SharedAccessKeyName=p",
                NotAConnectionString::Missing("SharedAccessKey"),
            ),
            (
                "HostName=h;SharedAccessKeyName=p;SharedAccessKey=SECRET!",
                NotAConnectionString::Key,
            ),
            (
                "HostName=h;SharedAccessKeyName=p;SharedAccessKey=",
                NotAConnectionString::Key,
            ),
            (
                "HostName=h;DeviceId=d;SharedAccessKey=SECRET",
                NotAConnectionString::Device,
            ),
            (
                "HostName=h/x;SharedAccessKeyName=p;SharedAccessKey=SECRET",
                NotAConnectionString::Host,
            ),
            (
                "HostName=u@h;SharedAccessKeyName=p;SharedAccessKey=SECRET",
                NotAConnectionString::Host,
            ),
            (
                "HostName=;SharedAccessKeyName=p;SharedAccessKey=SECRET",
                NotAConnectionString::Host,
            ),
        ] {
            let error = text.parse::<ConnectionString>().unwrap_err();
            assert_eq!(error, wrong, "{text}");
            assert!(!format!("{error} {error:?}").contains("SECRET"));
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in any::<String>(), host in ".{0,20}", key in "[A-Za-z0-9+/=]{0,50}") {
            let _ = text.parse::<ConnectionString>();
            let _ = format!("HostName={host};SharedAccessKeyName=p;SharedAccessKey={key}").parse::<ConnectionString>();
        }
    }
}
