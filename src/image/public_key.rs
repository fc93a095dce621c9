//! Public keys: read from `*.pub` files, named by a short id, and able to check one signature.
//!
//! Two kinds: minisign's (one or two lines, the second being 42 bytes in base64: `Ed`, 8 bytes of key
//! id, 32 bytes of Ed25519 key) and ECDSA P-256 in PEM as `openssl ec -pubout` writes it.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use serde::{Serialize, Serializer};

use crate::update::{
    digest::Sha256,
    failure::{Class, Coded},
};

use super::signature::{Signature, SignatureKind};

/// Longest key file that is read: keys have about 200 bytes.
const MAX_FILE: u64 = 16 * 1024;

/// DER in front of the point in a P-256 `SubjectPublicKeyInfo` (RFC 5480): algorithm ecPublicKey,
/// curve prime256v1, bit string of 65 bytes and no unused bits.
const P256_SPKI: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// Short name of a key, for people and logs. Trust never depends on it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KeyId {
    /// minisign's own id; shown as `minisign` shows it, 16 hex digits.
    Minisign(u64),
    /// The first 8 bytes of the SHA-256 of the DER public key; shown as `p256:` and 16 hex digits.
    P256(u64),
}

impl KeyId {
    /// From the decoded second line of a minisign key or signature: `Ed`, 8 bytes of id, the rest.
    pub(crate) fn of_minisign(bytes: &[u8]) -> Option<Self> {
        let id = bytes.get(2..10)?.try_into().ok()?;
        Some(Self::Minisign(u64::from_le_bytes(id)))
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Minisign(id) => write!(f, "{id:016X}"),
            Self::P256(id) => write!(f, "p256:{id:016x}"),
        }
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

impl Serialize for KeyId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A file that should hold a public key does not.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It cannot be read.
    #[error("cannot read the key file {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It holds something else.
    #[error("{} is not a public key: {why}", .path.display())]
    NotAKey {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what would be right.
        why: &'static str,
    },
}

impl Coded for KeyFileError {
    fn code(&self) -> &'static str {
        match self {
            Self::Read { .. } => "key-file-read",
            Self::NotAKey { .. } => "key-file-content",
        }
    }

    fn class(&self) -> Class {
        Class::Wait
    }
}

/// A key that can check signatures.
#[derive(Clone)]
pub struct PublicKey {
    id: KeyId,
    material: Material,
}

#[derive(Clone)]
enum Material {
    Ed25519 {
        key: minisign_verify::PublicKey,
        /// The key itself, because the id in front of it can be changed at will.
        raw: [u8; 32],
    },
    /// Uncompressed point, 65 bytes.
    P256(Vec<u8>),
}

/// What a key thinks of a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Good,
    /// Claims to be by this key and is not, or is over other bytes.
    Bad,
    /// By another key, as far as one can tell.
    NotMine,
}

impl PublicKey {
    /// Reads a `*.pub` file.
    ///
    /// # Errors
    /// When it cannot be read or is not a key.
    pub fn read(path: &Path) -> Result<Self, KeyFileError> {
        let mut text = Vec::new();
        File::open(path)
            .and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut text))
            .map_err(|source| KeyFileError::Read {
                path: path.to_owned(),
                source,
            })?;
        Self::parse(&text).map_err(|why| KeyFileError::NotAKey {
            path: path.to_owned(),
            why,
        })
    }

    /// Takes the content of a `*.pub` file.
    ///
    /// # Errors
    /// Why it is not a key.
    pub fn parse(text: &[u8]) -> Result<Self, &'static str> {
        if text.len() as u64 > MAX_FILE {
            return Err("it is far too long for one");
        }
        let text = std::str::from_utf8(text)
            .map_err(|_| "it is not text; expected minisign's two lines or a PEM `PUBLIC KEY`")?;
        if text.contains("SECRET KEY")
            || text.contains("PRIVATE KEY")
            || text.contains("secret key")
        {
            return Err("it is a SECRET key, which does not belong here; move it away now");
        }
        if text.contains("-----BEGIN") {
            Self::parse_pem(text)
        } else {
            Self::parse_minisign(text)
        }
    }

    fn parse_minisign(text: &str) -> Result<Self, &'static str> {
        let lines: Vec<_> = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect();
        let ([line] | [_, line]) = lines.as_slice() else {
            return Err(
                "expected one line of base64 with a comment line before it, as minisign writes it, or a PEM `PUBLIC KEY`",
            );
        };
        let wrong = "its last line is not a minisign key (56 characters of base64, `RW...`)";
        let bytes = STANDARD.decode(line).map_err(|_| wrong)?;
        let key = minisign_verify::PublicKey::from_base64(line).map_err(|_| wrong)?;
        let raw = bytes.get(10..).and_then(|raw| raw.try_into().ok());
        Ok(Self {
            id: KeyId::of_minisign(&bytes).ok_or(wrong)?,
            material: Material::Ed25519 {
                key,
                raw: raw.ok_or(wrong)?,
            },
        })
    }

    fn parse_pem(text: &str) -> Result<Self, &'static str> {
        const BEGIN: &str = "-----BEGIN PUBLIC KEY-----";
        let body = text
            .split_once(BEGIN)
            .and_then(|(_, rest)| rest.split_once("-----END PUBLIC KEY-----"))
            .map(|(body, _)| body)
            .ok_or(
                "its PEM block is not a `PUBLIC KEY`; make one with `openssl ec -in KEY -pubout`",
            )?;
        let body: String = body.split_whitespace().collect();
        let der = STANDARD
            .decode(body)
            .map_err(|_| "its PEM block is not base64")?;
        let point = der
            .strip_prefix(&P256_SPKI)
            .filter(|point| point.len() == 65 && point[0] == 4)
            .ok_or("it is not an uncompressed ECDSA P-256 key (curve prime256v1)")?;
        let [a, b, c, d, e, f, g, h, ..] = Sha256::of(&der).0;
        Ok(Self {
            id: KeyId::P256(u64::from_be_bytes([a, b, c, d, e, f, g, h])),
            material: Material::P256(point.to_vec()),
        })
    }

    /// The key's short name.
    #[must_use]
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// True for the same key, whatever its file calls it.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        match (&self.material, &other.material) {
            (Material::Ed25519 { raw: a, .. }, Material::Ed25519 { raw: b, .. }) => a == b,
            (Material::P256(a), Material::P256(b)) => a == b,
            (Material::Ed25519 { .. }, Material::P256(_))
            | (Material::P256(_), Material::Ed25519 { .. }) => false,
        }
    }

    /// The key for streaming verification, if it is minisign's.
    pub(crate) fn minisign(&self) -> Option<&minisign_verify::PublicKey> {
        match &self.material {
            Material::Ed25519 { key, .. } => Some(key),
            Material::P256(_) => None,
        }
    }

    pub(crate) fn check(&self, message: &[u8], signature: &Signature) -> Verdict {
        match (&self.material, signature.kind) {
            (Material::Ed25519 { key, .. }, SignatureKind::Minisign) => {
                let Some(parsed) = signature.to_minisign() else {
                    return Verdict::NotMine;
                };
                match key.verify(message, &parsed, true) {
                    Ok(()) => Verdict::Good,
                    Err(minisign_verify::Error::UnexpectedKeyId) => Verdict::NotMine,
                    Err(_) => Verdict::Bad,
                }
            }
            (Material::P256(point), SignatureKind::EcdsaP256) => {
                let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point);
                // A DER signature names no key, so a failure says nothing about whose it is.
                match key.verify(message, &signature.bytes) {
                    Ok(()) => Verdict::Good,
                    Err(_) => Verdict::NotMine,
                }
            }
            (Material::Ed25519 { .. } | Material::P256(_), _) => Verdict::NotMine,
        }
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.id)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LINE: &str = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";

    #[test]
    fn a_minisign_key_is_read_with_and_without_its_comment() {
        for text in [
            LINE.to_owned(),
            format!("untrusted comment: minisign public key E7620F1842B4E81F\n{LINE}\n"),
            format!("untrusted comment: windows\r\n{LINE}\r\n\r\n"),
        ] {
            let key = PublicKey::parse(text.as_bytes()).unwrap();
            assert_eq!(key.id().to_string(), "E7620F1842B4E81F");
        }
    }

    #[test]
    fn what_is_no_public_key_is_refused_in_words() {
        for (text, part) in [
            ("", "expected one line"),
            ("a\nb\nc\n", "expected one line"),
            ("hello", "not a minisign key"),
            (
                "untrusted comment: minisign encrypted secret key\nRWRT",
                "SECRET",
            ),
            ("-----BEGIN EC PRIVATE KEY-----", "SECRET"),
            ("-----BEGIN CERTIFICATE-----\n", "not a `PUBLIC KEY`"),
            (
                "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n",
                "prime256v1",
            ),
        ] {
            let why = PublicKey::parse(text.as_bytes()).unwrap_err();
            assert!(why.contains(part), "{text:?}: {why}");
        }
        assert!(PublicKey::parse(&vec![b'A'; 20_000]).is_err());
        assert!(PublicKey::parse(&[0xff, 0xfe]).is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,200}") {
            let _ = PublicKey::parse(text.as_bytes());
            let pem = format!("-----BEGIN PUBLIC KEY-----{text}-----END PUBLIC KEY-----");
            let _ = PublicKey::parse(pem.as_bytes());
        }
    }
}
