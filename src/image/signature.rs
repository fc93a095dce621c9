//! The signatures block of an image: a list of detached signatures over the manifest's bytes.
//!
//! The block itself proves nothing; [`super::trust`] decides what its signatures are worth. Kinds
//! that this version does not know are kept (`image sign` must not lose them) and count for nothing.

use base64::{Engine, engine::general_purpose::STANDARD};

use super::{
    error::ImageError,
    limits::{MAX_SIGNATURES, MAX_SIGNATURES_LEN},
    public_key::KeyId,
};

const PART: &str = "the signatures block";
/// Kind, reserved, length.
const RECORD_HEAD: usize = 8;

/// How a signature was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignatureKind {
    /// The text of a `.minisig` file: Ed25519, prehashed (`ED`) or not (`Ed`).
    Minisign,
    /// ECDSA over P-256 with SHA-256 in DER, as `openssl dgst -sha256 -sign` makes it.
    EcdsaP256,
    /// Of a later version of the format.
    Unknown(u16),
}

impl SignatureKind {
    fn number(self) -> u16 {
        match self {
            Self::Minisign => 1,
            Self::EcdsaP256 => 2,
            Self::Unknown(number) => number,
        }
    }

    fn from_number(number: u16) -> Self {
        match number {
            1 => Self::Minisign,
            2 => Self::EcdsaP256,
            other => Self::Unknown(other),
        }
    }

    /// The kind in words.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Minisign => "minisign",
            Self::EcdsaP256 => "ecdsa-p256-sha256",
            Self::Unknown(_) => "unknown",
        }
    }
}

/// One detached signature, not verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// How it was made.
    pub kind: SignatureKind,
    /// Text or DER, by kind.
    pub bytes: Vec<u8>,
}

impl Signature {
    /// Takes the content of a signature file: minisign's text or a DER signature.
    ///
    /// # Errors
    /// When it is neither.
    pub fn from_file_content(bytes: &[u8]) -> Result<Self, ImageError> {
        let minisign = Self {
            kind: SignatureKind::Minisign,
            bytes: bytes.to_vec(),
        };
        if minisign.to_minisign().is_some() {
            return Ok(minisign);
        }
        // SEQUENCE of two integers of at most 33 bytes: at most 72 bytes in all.
        if let [0x30, len, rest @ ..] = bytes
            && rest.len() == usize::from(*len)
            && rest.len() <= 70
        {
            return Ok(Self {
                kind: SignatureKind::EcdsaP256,
                bytes: bytes.to_vec(),
            });
        }
        Err(ImageError::Build(
            "the signature file has neither minisign's four lines nor a DER signature as `openssl dgst -sha256 -sign` makes it".to_owned(),
        ))
    }

    /// The key that claims to have made it; a DER signature does not say.
    #[must_use]
    pub fn key_id(&self) -> Option<KeyId> {
        self.to_minisign()?;
        // minisign-verify keeps the id to itself; it has checked the encoding just now.
        let text = std::str::from_utf8(&self.bytes).ok()?;
        let bytes = STANDARD.decode(text.lines().nth(1)?.trim()).ok()?;
        KeyId::of_minisign(&bytes)
    }

    /// `None` when it is of another kind or damaged.
    pub(crate) fn to_minisign(&self) -> Option<minisign_verify::Signature> {
        if self.kind != SignatureKind::Minisign {
            return None;
        }
        let text = std::str::from_utf8(&self.bytes).ok()?;
        minisign_verify::Signature::decode(text).ok()
    }
}

/// All signatures of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Signatures(Vec<Signature>);

impl Signatures {
    /// No signature: an image that only `trust.unsigned = "allow"` installs.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// All of them, in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = &Signature> {
        self.0.iter()
    }

    /// True without any.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds one; it replaces an earlier one of the same key.
    ///
    /// # Errors
    /// When the block would break its limits.
    pub fn add(&mut self, signature: Signature) -> Result<(), ImageError> {
        let key = signature.key_id();
        self.0
            .retain(|old| *old != signature && (key.is_none() || old.key_id() != key));
        self.0.push(signature);
        if self.0.len() > MAX_SIGNATURES || self.encode().len() > MAX_SIGNATURES_LEN as usize {
            return Err(ImageError::Build(format!(
                "an image has at most {MAX_SIGNATURES} signatures of {MAX_SIGNATURES_LEN} bytes together"
            )));
        }
        Ok(())
    }

    /// The block as it is in the file.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut block = Vec::new();
        for Signature { kind, bytes } in &self.0 {
            block.extend_from_slice(&kind.number().to_le_bytes());
            block.extend_from_slice(&[0, 0]);
            // `add` and `parse` keep the whole block below 64 KiB.
            let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            block.extend_from_slice(&len.to_le_bytes());
            block.extend_from_slice(bytes);
        }
        block
    }

    pub(crate) fn parse(mut block: &[u8]) -> Result<Self, ImageError> {
        let short = || ImageError::malformed(PART, "a signature is cut off");
        let mut signatures = Vec::new();
        while !block.is_empty() {
            let (head, rest) = block.split_first_chunk::<RECORD_HEAD>().ok_or_else(short)?;
            let [k0, k1, _, _, len @ ..] = *head;
            let len = usize::try_from(u32::from_le_bytes(len)).map_err(|_| short())?;
            let (bytes, rest) = rest.split_at_checked(len).ok_or_else(short)?;
            if signatures.len() == MAX_SIGNATURES {
                return Err(ImageError::TooLarge {
                    what: "the number of signatures",
                    size: MAX_SIGNATURES as u64 + 1,
                    limit: MAX_SIGNATURES as u64,
                });
            }
            signatures.push(Signature {
                kind: SignatureKind::from_number(u16::from_le_bytes([k0, k1])),
                bytes: bytes.to_vec(),
            });
            block = rest;
        }
        Ok(Self(signatures))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_signature_of_the_same_key_replaces_the_older_one() {
        let text = |sig: &str| Signature {
            kind: SignatureKind::Minisign,
            bytes: format!(
                "untrusted comment: x\n{sig}\ntrusted comment: y\n{}\n",
                STANDARD.encode([7; 64])
            )
            .into_bytes(),
        };
        let of_key = |key: u8, fill: u8| {
            let mut bytes = b"ED".to_vec();
            bytes.extend_from_slice(&[key; 8]);
            bytes.extend_from_slice(&[fill; 64]);
            text(&STANDARD.encode(bytes))
        };
        let mut all = Signatures::none();
        for signature in [of_key(1, 1), of_key(2, 1), of_key(1, 2)] {
            all.add(signature).unwrap();
        }
        assert_eq!(all.0, [of_key(2, 1), of_key(1, 2)]);
        assert_eq!(all.0[0].key_id().unwrap().to_string(), "0202020202020202");
    }

    #[test]
    fn an_unknown_kind_is_kept() {
        let signature = Signature {
            kind: SignatureKind::Unknown(77),
            bytes: b"later".to_vec(),
        };
        let mut all = Signatures::none();
        all.add(signature).unwrap();
        assert_eq!(Signatures::parse(&all.encode()).unwrap(), all);
    }

    #[test]
    fn more_signatures_than_allowed_are_refused_on_both_sides() {
        let number = |n: usize| Signature {
            kind: SignatureKind::EcdsaP256,
            bytes: n.to_le_bytes().to_vec(),
        };
        let mut all = Signatures::none();
        for n in 0..MAX_SIGNATURES {
            all.add(number(n)).unwrap();
        }
        let mut block = all.encode();
        block.extend_from_slice(&Signatures(vec![number(99)]).encode());
        assert!(Signatures::parse(&block).is_err());
        assert!(all.add(number(99)).is_err());
    }

    proptest! {
        #[test]
        fn any_block_is_refused_or_survives_encoding(
            block in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            if let Ok(signatures) = Signatures::parse(&block) {
                prop_assert_eq!(Signatures::parse(&signatures.encode()).unwrap(), signatures);
            }
            let _ = Signature::from_file_content(&block);
        }
    }
}
