//! Direct methods: name and payload in, a [`Command`] or an error [`Answer`] out; and the answers.
//!
//! Guarantees: no payload panics; every answer's body is a JSON value (the hub passes a device's bytes
//! on unchecked); an answer never repeats a payload, which may hold a signed URL.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::{Value, json};

use crate::update::{
    digest::{NotASha256, Sha256},
    failure::{Class, Coded, Failure},
    request::{Origin, Request},
    status::{Status, UpdateReport},
    uri::UriError,
};

/// Longest update id, in characters.
const MAX_UPDATE_ID: usize = 64;

/// Longest expected version, in characters.
const MAX_VERSION: usize = 64;

/// Names of the methods besides the one(s) that start an update.
const STATUS: &str = "firmwareUpdateStatus";
const CANCEL: &str = "firmwareUpdateCancel";
const APPROVE: &str = "firmwareUpdateApprove";
const ROLLBACK: &str = "firmwareUpdateRollback";
const REBOOT: &str = "reboot";

/// Which methods are answered.
#[derive(Debug, Clone)]
pub struct Methods {
    /// Names under which an update is started (`hub.method_names`).
    pub update_names: Vec<String>,
    /// Whether `reboot` is answered (`hub.allow_reboot_method`).
    pub allow_reboot: bool,
}

impl Methods {
    /// Whether `name` is a method that asks and changes nothing: back ends may call it each minute.
    #[must_use]
    pub fn only_asks(&self, name: &str) -> bool {
        name == STATUS && !self.update_names.iter().any(|update| update == name)
    }
}

/// What a caller wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Start an update.
    Update(Request),
    /// Tell the status.
    Status,
    /// Cancel the update under way.
    Cancel,
    /// Let the update that waits for approval go on.
    Approve,
    /// Go back to the other slot.
    Rollback,
    /// Reboot the device.
    Reboot,
}

/// The answer to a method call.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// HTTP-like status, as the caller sees it.
    pub status: i32,
    /// Any JSON value.
    pub body: Value,
}

/// Why a method call cannot be understood.
#[derive(Debug, thiserror::Error)]
pub enum MethodError {
    /// Nobody knows the method.
    #[error("there is no method `{name}`; there are {known}")]
    Unknown {
        /// The name, shortened.
        name: String,
        /// The names there are.
        known: String,
    },
    /// `reboot` while it is switched off.
    #[error(
        "the method `reboot` is switched off on this device; set hub.allow_reboot_method = true to allow it"
    )]
    RebootDisabled,
    /// No JSON.
    #[error(
        "the payload is not JSON (line {line}, column {column}); send {{\"fwPackageUri\":\"https://...\"}}"
    )]
    NotJson {
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
    },
    /// JSON, but neither an object nor a text.
    #[error(
        "the payload is {0}; send {{\"fwPackageUri\":\"https://...\"}} or the URL as a JSON string"
    )]
    Kind(&'static str),
    /// No address.
    #[error("the payload has no fwPackageUri; send {{\"fwPackageUri\":\"https://...\"}}")]
    NoUri,
    /// The same member twice, whatever its case.
    #[error(
        "the payload has more than one member {0} (upper and lower case are the same); send one"
    )]
    Ambiguous(&'static str),
    /// A member of the wrong type.
    #[error("the payload's {member} must be {expected}, not {found}")]
    Type {
        /// Its name.
        member: &'static str,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: &'static str,
    },
    /// The address is none.
    #[error(transparent)]
    Uri(#[from] UriError),
    /// `fwPackageSha256` is no digest.
    #[error("the payload's fwPackageSha256 is wrong")]
    Digest(#[from] NotASha256),
    /// `updateId` breaks its rules.
    #[error("the payload's updateId must be 1 to {MAX_UPDATE_ID} characters of A-Z a-z 0-9 . _ -")]
    UpdateId,
    /// `fwVersion` breaks its rules.
    #[error("the payload's fwVersion must be 1 to {MAX_VERSION} printable characters")]
    Version,
}

impl Coded for MethodError {
    fn code(&self) -> &'static str {
        match self {
            Self::Unknown { .. } => "method-unknown",
            Self::RebootDisabled => "method-disabled",
            Self::NotJson { .. } => "payload-not-json",
            Self::Kind(_) => "payload-kind",
            Self::NoUri => "payload-no-uri",
            Self::Ambiguous(_) => "payload-ambiguous",
            Self::Type { .. } => "payload-type",
            Self::Uri(error) => error.code(),
            Self::Digest(_) => "payload-digest",
            Self::UpdateId => "payload-update-id",
            Self::Version => "payload-version",
        }
    }

    fn class(&self) -> Class {
        Class::Final
    }
}

impl From<MethodError> for Answer {
    fn from(error: MethodError) -> Self {
        let status = match error {
            MethodError::Unknown { .. } => 501,
            MethodError::RebootDisabled => 403,
            _ => 400,
        };
        Self::error(status, &Failure::from(&error))
    }
}

impl Answer {
    /// 200: the update was accepted, or the same package is already under way.
    #[must_use]
    pub fn started(update_id: &str) -> Self {
        let body = json!({"message": "FirmwareUpdate started", "updateId": update_id});
        Self { status: 200, body }
    }

    /// 200: the status document.
    ///
    /// The document is the daemon's own [`Status`], not the twin's.
    #[must_use]
    pub fn status(status: &Status) -> Self {
        match serde_json::to_value(status) {
            Ok(body) => Self { status: 200, body },
            Err(error) => Self::internal(&error.to_string()),
        }
    }

    /// 200: done or begun, with a sentence about it.
    #[must_use]
    pub fn done(message: &str) -> Self {
        let body = json!({"message": message});
        Self { status: 200, body }
    }

    /// 400, 403, 409, 503, ...: `failure` as `{"code","message"}`.
    #[must_use]
    pub fn error(status: i32, failure: &Failure) -> Self {
        let body = json!({"code": failure.code, "message": failure.message});
        Self { status, body }
    }

    /// 409: another update is under way, or its trial is unconfirmed.
    #[must_use]
    pub fn busy(under_way: &UpdateReport) -> Self {
        let UpdateReport { id, uri, stage, .. } = under_way;
        let version = under_way.version.as_deref().unwrap_or("of unknown version");
        let message = format!(
            "update `{id}` ({version}, {uri}) is under way ({}); wait for its end or call {CANCEL}",
            stage.word()
        );
        let body = json!({
            "code": "update-busy", "message": message,
            "updateId": id, "fwPackageUri": uri, "fwVersion": under_way.version, "stage": stage,
        });
        Self { status: 409, body }
    }

    /// 409: what was asked for does not fit the present state.
    #[must_use]
    pub fn conflict(failure: &Failure) -> Self {
        Self::error(409, failure)
    }

    /// 403: policy or trust forbids it.
    #[must_use]
    pub fn forbidden(failure: &Failure) -> Self {
        Self::error(403, failure)
    }

    /// 503: the daemon cannot take it now.
    #[must_use]
    pub fn unavailable(failure: &Failure) -> Self {
        Self::error(503, failure)
    }

    /// 500: nobody answered inside the daemon, which is a bug.
    #[must_use]
    pub fn internal(detail: &str) -> Self {
        let message = format!("the daemon could not answer: {detail}; see its journal");
        Self::error(500, &Failure::new("internal", Class::Retry, message))
    }
}

/// Reads a call of method `name`.
///
/// # Errors
/// The answer to give: 400 for a payload that is wrong, 403 for `reboot` while it is off, 501 for an
/// unknown method.
pub fn parse(methods: &Methods, name: &str, payload: &[u8]) -> Result<Command, Answer> {
    command(methods, name, payload).map_err(Answer::from)
}

fn command(methods: &Methods, name: &str, payload: &[u8]) -> Result<Command, MethodError> {
    if methods.update_names.iter().any(|known| known == name) {
        return Ok(Command::Update(request(payload)?));
    }
    match name {
        STATUS => Ok(Command::Status),
        CANCEL => Ok(Command::Cancel),
        APPROVE => Ok(Command::Approve),
        ROLLBACK => Ok(Command::Rollback),
        REBOOT if methods.allow_reboot => Ok(Command::Reboot),
        REBOOT => Err(MethodError::RebootDisabled),
        _ => {
            let mut known: Vec<&str> = methods.update_names.iter().map(String::as_str).collect();
            known.extend([STATUS, CANCEL, APPROVE, ROLLBACK, REBOOT]);
            Err(MethodError::Unknown {
                name: name.chars().filter(|c| !c.is_control()).take(100).collect(),
                known: known.join(", "),
            })
        }
    }
}

/// The forms of sample-compat, in its order: an object; a text that is an object; a text that is the
/// address.
fn request(payload: &[u8]) -> Result<Request, MethodError> {
    match serde_json::from_slice(payload).map_err(|error| not_json(&error))? {
        Payload::Object(members) => from_members(members),
        Payload::Text(text) => match serde_json::from_str(text.trim()) {
            Ok(Payload::Object(members)) => from_members(members),
            _ => from_url(&text),
        },
        Payload::Other(found) => Err(MethodError::Kind(found)),
    }
}

fn not_json(error: &serde_json::Error) -> MethodError {
    MethodError::NotJson {
        line: error.line(),
        column: error.column(),
    }
}

fn from_url(text: &str) -> Result<Request, MethodError> {
    if text.trim().is_empty() {
        return Err(MethodError::NoUri);
    }
    Ok(Request::new(text.parse()?, Origin::Method))
}

fn from_members(members: Vec<(String, Value)>) -> Result<Request, MethodError> {
    let mut members = Members(members);
    let uri = members.text("fwPackageUri")?.ok_or(MethodError::NoUri)?;
    let mut request = from_url(&uri)?;
    if let Some(version) = members.text("fwVersion")? {
        request.version = Some(expected_version(&version).ok_or(MethodError::Version)?);
    }
    if let Some(digest) = members.text("fwPackageSha256")? {
        request.sha256 = Some(digest.parse::<Sha256>()?);
    }
    if let Some(id) = members.text("updateId")? {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if !(1..=MAX_UPDATE_ID).contains(&id.len()) || !id.chars().all(allowed) {
            return Err(MethodError::UpdateId);
        }
        request.update_id = Some(id);
    }
    request.force = match members.take("force")? {
        None | Some(Value::Null) => false,
        Some(Value::Bool(force)) => force,
        Some(other) => return Err(wrong_type("force", "true or false", &other)),
    };
    Ok(request)
}

/// A version as a caller may expect it: 1 to 64 characters, none a control character.
pub(super) fn expected_version(text: &str) -> Option<String> {
    let version = text.trim();
    let fits = (1..=MAX_VERSION).contains(&version.chars().count());
    (fits && !version.chars().any(char::is_control)).then(|| version.to_owned())
}

fn wrong_type(member: &'static str, expected: &'static str, found: &Value) -> MethodError {
    MethodError::Type {
        member,
        expected,
        found: kind(found),
    }
}

/// What `value` is, for a sentence.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// An object's members as they came, also those that came twice.
struct Members(Vec<(String, Value)>);

impl Members {
    /// Takes the member `name`, whatever its case.
    fn take(&mut self, name: &'static str) -> Result<Option<Value>, MethodError> {
        let mut found = self
            .0
            .extract_if(.., |(key, _)| key.eq_ignore_ascii_case(name));
        let first = found.next().map(|(_, value)| value);
        if found.next().is_some() {
            return Err(MethodError::Ambiguous(name));
        }
        drop(found);
        Ok(first)
    }

    /// Takes the text `name`. Null stands for absent, as several SDKs send it for members not set.
    fn text(&mut self, name: &'static str) -> Result<Option<String>, MethodError> {
        match self.take(name)? {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong_type(name, "a text", &other)),
        }
    }
}

/// A payload. Unlike [`Value`] it keeps members that have the same name, so that they can be refused.
enum Payload {
    Object(Vec<(String, Value)>),
    Text(String),
    Other(&'static str),
}

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = Payload;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON value")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Payload, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Payload::Object(members))
            }

            fn visit_str<E>(self, text: &str) -> Result<Payload, E> {
                Ok(Payload::Text(text.to_owned()))
            }

            fn visit_unit<E>(self) -> Result<Payload, E> {
                Ok(Payload::Other("null"))
            }

            fn visit_bool<E>(self, _: bool) -> Result<Payload, E> {
                Ok(Payload::Other("a boolean"))
            }

            fn visit_i64<E>(self, _: i64) -> Result<Payload, E> {
                Ok(Payload::Other("a number"))
            }

            fn visit_u64<E>(self, _: u64) -> Result<Payload, E> {
                Ok(Payload::Other("a number"))
            }

            fn visit_f64<E>(self, _: f64) -> Result<Payload, E> {
                Ok(Payload::Other("a number"))
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(
                self,
                mut seq: A,
            ) -> Result<Payload, A::Error> {
                while seq.next_element::<serde::de::IgnoredAny>()?.is_some() {}
                Ok(Payload::Other("an array"))
            }
        }

        deserializer.deserialize_any(Reader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const URL: &str = "https://store.example/a.img?sig=SECRET";

    fn methods() -> Methods {
        Methods {
            update_names: vec!["firmwareUpdate".into(), "InitiateFirmwareUpdate".into()],
            allow_reboot: false,
        }
    }

    fn update(payload: &str) -> Request {
        match parse(&methods(), "firmwareUpdate", payload.as_bytes()) {
            Ok(Command::Update(request)) => request,
            other => panic!("{payload}: {other:?}"),
        }
    }

    fn refused(payload: &[u8]) -> (i32, String) {
        let answer = parse(&methods(), "firmwareUpdate", payload).unwrap_err();
        assert!(!answer.body.to_string().contains("SECRET"), "{answer:?}");
        assert!(answer.body["message"].is_string());
        (
            answer.status,
            answer.body["code"].as_str().unwrap().to_owned(),
        )
    }

    #[test]
    fn each_form_that_a_back_end_sends_starts_the_same_update() {
        let plain = Request::new(URL.parse().unwrap(), Origin::Method);
        let object = format!(r#"{{"fwPackageUri":"{URL}"}}"#);
        let quoted = serde_json::to_string(&object).unwrap();
        for payload in [
            object.clone(),
            quoted,
            serde_json::to_string(&format!("  {object}\n")).unwrap(),
            format!(r#""{URL}""#),
            format!(r#"" {URL} ""#),
            format!(r#"{{"FwPackageUri":"{URL}"}}"#),
            format!(r#"{{"FwPackageURI":"{URL}","Firmware":{{"fwPackageUri":5}}}}"#),
            format!(r#"{{"fwPackageUri":"{URL}","fwVersion":null,"force":null,"x":[1,{{}}]}}"#),
        ] {
            assert_eq!(update(&payload), plain, "{payload}");
        }
    }

    #[test]
    fn optional_members_reach_the_request() {
        let hex = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let request = update(&format!(
            r#"{{"fwPackageUri":"{URL}","FWVERSION":" 1.4.0 ","fwPackageSha256":"{hex}","updateId":"a.b_c-1","force":true}}"#
        ));
        assert_eq!(request.version.as_deref(), Some("1.4.0"));
        assert_eq!(request.sha256, Some(Sha256::of(b"abc")));
        assert_eq!(request.update_id.as_deref(), Some("a.b_c-1"));
        assert!(request.force);
    }

    #[test]
    fn every_other_payload_is_400_and_says_why() {
        let with = |member: &str| format!(r#"{{"fwPackageUri":"{URL}",{member}}}"#).into_bytes();
        for (payload, code) in [
            (b"".to_vec(), "payload-not-json"),
            (b"SECRET".to_vec(), "payload-not-json"),
            (b"\"\xff\"".to_vec(), "payload-not-json"),
            (
                b"{\"fwPackageUri\":\"https://x\"} SECRET".to_vec(),
                "payload-not-json",
            ),
            (b"null".to_vec(), "payload-kind"),
            (b"true".to_vec(), "payload-kind"),
            (b"-1".to_vec(), "payload-kind"),
            (b"1.5".to_vec(), "payload-kind"),
            (b"[\"https://SECRET\"]".to_vec(), "payload-kind"),
            (b"{}".to_vec(), "payload-no-uri"),
            (b"\"\"".to_vec(), "payload-no-uri"),
            (b"\" {} \"".to_vec(), "payload-no-uri"),
            (b"{\"fwPackageUri\":null}".to_vec(), "payload-no-uri"),
            (b"{\"fwPackageUri\":\" \"}".to_vec(), "payload-no-uri"),
            (b"{\"fwPackageUri\":[\"SECRET\"]}".to_vec(), "payload-type"),
            (b"\"SECRET\"".to_vec(), "url-malformed"),
            (b"\"ftp://h/SECRET\"".to_vec(), "url-scheme"),
            (
                with(&format!(r#""FWPACKAGEURI":"{URL}""#)),
                "payload-ambiguous",
            ),
            (
                with(&format!(r#""fwPackageUri":"{URL}""#)),
                "payload-ambiguous",
            ),
            (with(r#""force":true,"Force":true"#), "payload-ambiguous"),
            (with(r#""force":"SECRET""#), "payload-type"),
            (with(r#""fwVersion":14"#), "payload-type"),
            (with(r#""fwVersion":" ""#), "payload-version"),
            (with("\"fwVersion\":\"1\\u0007SECRET\""), "payload-version"),
            (with(r#""fwPackageSha256":"SECRET""#), "payload-digest"),
            (with(r#""updateId":"""#), "payload-update-id"),
            (with(r#""updateId":"SECRET/.."#), "payload-not-json"),
            (with(r#""updateId":"SECRET/..""#), "payload-update-id"),
            (
                with(&format!(r#""updateId":"{}""#, "a".repeat(65))),
                "payload-update-id",
            ),
        ] {
            let shown = String::from_utf8_lossy(&payload).into_owned();
            assert_eq!(refused(&payload), (400, code.to_owned()), "{shown}");
        }
    }

    #[test]
    fn the_other_methods_need_no_payload_and_unknown_ones_are_501() {
        let call = |name: &str| parse(&methods(), name, b"");
        assert_eq!(call("firmwareUpdateStatus"), Ok(Command::Status));
        assert_eq!(call("firmwareUpdateCancel"), Ok(Command::Cancel));
        assert_eq!(call("firmwareUpdateApprove"), Ok(Command::Approve));
        assert_eq!(call("firmwareUpdateRollback"), Ok(Command::Rollback));
        assert_eq!(call("reboot").unwrap_err().status, 403);
        assert_eq!(call("firmwareupdate").unwrap_err().status, 501);
        let allowed = Methods {
            allow_reboot: true,
            ..methods()
        };
        assert_eq!(parse(&allowed, "reboot", b"null"), Ok(Command::Reboot));
        let payload = format!("\"{URL}\"");
        let aliased = parse(&methods(), "InitiateFirmwareUpdate", payload.as_bytes());
        assert!(matches!(aliased, Ok(Command::Update(_))));
    }

    #[test]
    fn deep_nesting_is_refused_not_followed() {
        let deep = format!("{{\"a\":{}", "[".repeat(100_000));
        assert_eq!(refused(deep.as_bytes()).0, 400);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&methods(), "firmwareUpdate", &bytes);
        }

        #[test]
        fn every_answer_is_a_status_and_json(name in any::<String>(), payload in any::<String>()) {
            if let Err(answer) = parse(&methods(), &name, payload.as_bytes()) {
                prop_assert!([400, 403, 501].contains(&answer.status));
                prop_assert!(answer.body["code"].is_string());
            }
        }
    }
}
