//! The address of an image, which may contain secrets and is therefore never printed whole.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use url::Url;

use super::{
    failure::{Class, Coded},
    slot::Slot,
};

/// Longest address taken; longer ones are a mistake or an attack (the twin holds 4 KB strings).
const MAX_LENGTH: usize = 2048;

/// The `http` or `https` address of an image, without user info; or, on the word of someone on the device only, a file
/// there or what the other slot holds. `Display` and `Debug` leave out query and fragment, where signed URLs keep their
/// secrets; [`PackageUri::secret`] gives the whole.
#[derive(Clone, PartialEq, Eq)]
pub struct PackageUri(Url);

/// Why a text is not the address of an image. Never contains the text itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    /// Not a URL at all.
    #[error("the image's address is not a URL ({0}); give an absolute https:// URL")]
    Malformed(String),
    /// Not `https` (or `http`, which only hosts in `fetch.insecure_hosts` may use).
    #[error(
        "the image's address has the scheme `{0}`; only https:// is allowed (http:// for hosts in fetch.insecure_hosts)"
    )]
    Scheme(String),
    /// It has a user name or password, which would end in shell histories, and which nobody would send.
    #[error(
        "the image's address contains a user name or password; take it out, and use a signed URL or \
         fetch.authorization_file instead"
    )]
    UserInfo,
    /// Too long to be one.
    #[error("the image's address has {0} characters; at most {MAX_LENGTH} are allowed")]
    TooLong(usize),
    /// `http` to a host that is not allowed to.
    #[error(
        "http:// is not allowed for host `{0}`; use https:// or add the host to fetch.insecure_hosts"
    )]
    Insecure(String),
}

impl Coded for UriError {
    fn code(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "url-malformed",
            Self::Scheme(_) => "url-scheme",
            Self::UserInfo => "url-user-info",
            Self::TooLong(_) => "url-too-long",
            Self::Insecure(_) => "url-insecure",
        }
    }

    fn class(&self) -> Class {
        Class::Final
    }
}

/// Schemes that nothing from outside may have: [`FromStr`] and [`from_outside`] refuse them.
const FILE: &str = "file";
const SLOT: &str = "slot";

/// What stands where no address is known; it cannot exist (RFC 6761).
const UNKNOWN: &str = "https://unknown.invalid/";

impl PackageUri {
    /// For an update whose address is not known. Shown as `unknown`.
    #[must_use]
    pub fn unknown() -> Self {
        UNKNOWN.parse().expect("a constant URL")
    }

    /// A file of this device; `None` when `path` is not absolute.
    #[must_use]
    pub fn file(path: &Path) -> Option<Self> {
        Url::from_file_path(path).ok().map(Self)
    }

    /// What `slot` holds already: nothing is fetched.
    #[must_use]
    pub fn in_slot(slot: Slot) -> Self {
        let url = Url::parse(&format!("{SLOT}:{slot}"));
        Self(url.expect("a scheme and a letter"))
    }

    /// The path of a file of this device; `None` for every other address.
    #[must_use]
    pub fn path(&self) -> Option<PathBuf> {
        (self.0.scheme() == FILE)
            .then(|| self.0.to_file_path().ok())
            .flatten()
    }

    /// Whether nothing is fetched, since the slot holds it already ([`PackageUri::in_slot`]).
    #[must_use]
    pub fn is_in_slot(&self) -> bool {
        self.0.scheme() == SLOT
    }

    /// Whether only someone on the device can have named it.
    #[must_use]
    pub fn is_local(&self) -> bool {
        matches!(self.0.scheme(), FILE | SLOT)
    }

    /// The whole address, secrets included: only for the request line.
    #[must_use]
    pub fn secret(&self) -> &Url {
        &self.0
    }

    /// The host, lower case; an IPv6 address in brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        self.0.host_str().unwrap_or_default()
    }

    /// Whether the host is one of `listed` (compared without regard to case); an entry with `:port` means that
    /// port alone, one without means every port.
    #[must_use]
    pub fn is_at_one_of(&self, listed: &[String]) -> bool {
        is_listed(&self.0, listed)
    }

    /// Refuses plain `http` unless the host is in `insecure_hosts` (compared without regard to case).
    ///
    /// # Errors
    /// [`UriError::Insecure`].
    pub fn check_transport(&self, insecure_hosts: &[String]) -> Result<(), UriError> {
        let allowed = self.0.scheme() != "http"
            || insecure_hosts
                .iter()
                .any(|host| host.eq_ignore_ascii_case(self.host()));
        if allowed {
            Ok(())
        } else {
            Err(UriError::Insecure(self.host().to_owned()))
        }
    }

    /// The address of a file beside this one: `suffix` added to the path, the query kept.
    #[must_use]
    pub fn beside(&self, suffix: &str) -> Self {
        let mut url = self.0.clone();
        url.set_path(&format!("{}{suffix}", self.0.path()));
        Self(url)
    }
}

/// See [`PackageUri::is_at_one_of`], for any address.
#[must_use]
pub fn is_listed(url: &Url, listed: &[String]) -> bool {
    let host = url.host_str().unwrap_or_default();
    let with_port = url
        .port_or_known_default()
        .map(|port| format!("{host}:{port}"));
    listed.iter().any(|entry| {
        entry.eq_ignore_ascii_case(host)
            || with_port
                .as_ref()
                .is_some_and(|host| entry.eq_ignore_ascii_case(host))
    })
}

impl FromStr for PackageUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        if text.len() > MAX_LENGTH {
            return Err(UriError::TooLong(text.len()));
        }
        let malformed = |why: &str| UriError::Malformed(why.to_owned());
        // The parser mends what browsers mend; in an address that a program sends it is a mistake.
        if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(malformed("it contains a space or a control character"));
        }
        let url = Url::parse(text).map_err(|error| malformed(&error.to_string()))?;
        if !matches!(url.scheme(), "https" | "http") {
            let scheme = url.scheme().chars().take(20).collect();
            return Err(UriError::Scheme(scheme));
        }
        let authority = text[url.scheme().len()..].strip_prefix("://");
        if authority.is_none_or(|rest| rest.starts_with(['/', '\\', '?', '#'])) {
            return Err(malformed("it does not begin with https:// and a host"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(UriError::UserInfo);
        }
        Ok(Self(url))
    }
}

impl fmt::Display for PackageUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = &self.0;
        if url.as_str() == UNKNOWN {
            return f.write_str("unknown");
        }
        if self.is_in_slot() {
            return f.write_str(url.as_str());
        }
        write!(f, "{}://{}", url.scheme(), self.host())?;
        if let Some(port) = url.port() {
            write!(f, ":{port}")?;
        }
        f.write_str(url.path())
    }
}

impl fmt::Debug for PackageUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PackageUri({self})")
    }
}

/// Serialises the whole address: for the state file, which only root can read.
impl Serialize for PackageUri {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.as_str())
    }
}

/// Takes what any version has accepted and stored: one address must not make the state file unreadable.
/// What comes from outside goes through [`FromStr`], or [`from_outside`].
impl<'de> Deserialize<'de> for PackageUri {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let url = Url::parse(&String::deserialize(deserializer)?);
        match url.map_err(serde::de::Error::custom)? {
            url if matches!(url.scheme(), "https" | "http" | FILE | SLOT) => Ok(Self(url)),
            _ => Err(serde::de::Error::custom(
                "neither https:// nor http://, nor local",
            )),
        }
    }
}

/// Deserialises an address that a request brings, as strictly as [`FromStr`]: for `deserialize_with`.
///
/// # Errors
/// Those of [`UriError`].
pub fn from_outside<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PackageUri, D::Error> {
    String::deserialize(deserializer)?
        .parse()
        .map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_of_a_signed_url_are_never_printed() {
        let uri: PackageUri = "https://store.example:8443/a/b.img?sig=SECRET#frag"
            .parse()
            .unwrap();
        assert_eq!(uri.to_string(), "https://store.example:8443/a/b.img");
        assert_eq!(
            format!("{uri:?}"),
            "PackageUri(https://store.example:8443/a/b.img)"
        );
        assert_eq!(uri.beside(".minisig").secret().query(), Some("sig=SECRET"));
    }

    #[test]
    fn other_schemes_and_garbage_are_refused_without_echoing_them() {
        for (text, code) in [
            ("ftp://host/x", "url-scheme"),
            ("file:///etc/shadow", "url-scheme"),
            ("slot:b", "url-scheme"),
            ("secureurl", "url-malformed"),
            ("https://", "url-malformed"),
            ("https:///x", "url-malformed"),
            ("https:host/x", "url-malformed"),
            ("https:\\\\host\\x", "url-malformed"),
            ("https://host/a b", "url-malformed"),
            ("https://host/a\tb", "url-malformed"),
            ("https://user@host/x", "url-user-info"),
            ("https://:SECRET@host/x", "url-user-info"),
            (
                &format!("https://h/{}", "x".repeat(MAX_LENGTH)),
                "url-too-long",
            ),
        ] {
            let error = text.parse::<PackageUri>().unwrap_err();
            assert_eq!(error.code(), code, "{text}");
            assert!(!error.to_string().contains("SECRET"), "{error}");
        }
    }

    #[test]
    fn an_unknown_address_says_so_and_survives_the_state_file() {
        let uri = PackageUri::unknown();
        assert_eq!(uri.to_string(), "unknown");
        let text = serde_json::to_string(&uri).unwrap();
        assert_eq!(serde_json::from_str::<PackageUri>(&text).unwrap(), uri);
    }

    #[test]
    fn a_stored_address_that_is_no_longer_accepted_is_still_read_and_shown_without_secrets() {
        for (text, shown) in [
            (
                "https://user:SECRET@store.example/x",
                "https://store.example/x",
            ),
            (
                "https://store.example/a b?SECRET",
                "https://store.example/a%20b",
            ),
        ] {
            assert!(text.parse::<PackageUri>().is_err(), "{text}");
            let stored = serde_json::to_string(text).unwrap();
            let uri: PackageUri = serde_json::from_str(&stored).unwrap();
            assert_eq!(uri.to_string(), shown);
            assert!(!format!("{uri:?}").contains("SECRET"));
        }
        for text in ["", "x", "ftp://store.example/x"] {
            let stored = serde_json::to_string(text).unwrap();
            assert!(
                serde_json::from_str::<PackageUri>(&stored).is_err(),
                "{text}"
            );
        }
    }

    #[test]
    fn a_local_address_survives_the_state_file_and_comes_in_by_no_other_way() {
        let file = PackageUri::file(Path::new("/media/usb/a b.img")).unwrap();
        assert_eq!(file.to_string(), "file:///media/usb/a%20b.img");
        assert_eq!(
            file.path().as_deref(),
            Some(Path::new("/media/usb/a b.img"))
        );
        let slot = PackageUri::in_slot(Slot::B);
        assert_eq!(slot.to_string(), "slot:b");
        assert!(slot.is_in_slot() && slot.path().is_none());
        for uri in [file, slot] {
            assert!(uri.is_local());
            uri.check_transport(&[]).unwrap();
            let stored = serde_json::to_string(&uri).unwrap();
            assert_eq!(serde_json::from_str::<PackageUri>(&stored).unwrap(), uri);
            let text = uri.secret().as_str();
            assert_eq!(text.parse::<PackageUri>().unwrap_err().code(), "url-scheme");
        }
        assert_eq!(PackageUri::file(Path::new("a.img")), None);
        assert!(!PackageUri::unknown().is_local());
    }

    #[test]
    fn a_listed_host_is_found_whatever_its_case_and_at_its_port_alone_if_it_names_one() {
        let at = |uri: &str, entry: &str| {
            let uri: PackageUri = uri.parse().unwrap();
            uri.is_at_one_of(&["other.example".to_owned(), entry.to_owned()])
        };
        for (uri, entry) in [
            ("https://store.example/x", "Store.Example"),
            ("https://STORE.example/x", "store.example:443"),
            ("https://store.example:8443/x", "store.example"),
            ("https://store.example:8443/x", "store.example:8443"),
            ("https://[::1]:8443/x", "[::1]:8443"),
            ("https://[::1]/x", "[::1]"),
        ] {
            assert!(at(uri, entry), "{uri} {entry}");
        }
        for (uri, entry) in [
            ("https://store.example:8443/x", "store.example:443"),
            ("https://store.example/x", "store.example:8443"),
            ("https://a.store.example/x", "store.example"),
            ("https://store.example.evil/x", "store.example"),
            ("https://evil/store.example", "store.example"),
        ] {
            assert!(!at(uri, entry), "{uri} {entry}");
        }
    }

    #[test]
    fn http_is_for_listed_hosts_only() {
        let uri: PackageUri = "http://store.lan/x".parse().unwrap();
        assert_eq!(uri.check_transport(&[]).unwrap_err().code(), "url-insecure");
        uri.check_transport(&["Store.LAN".to_owned()]).unwrap();
    }
}
