//! Secret keys: made, read and used on the machine that builds images, never on a device.
//!
//! The files are minisign's, so that `minisign` can use keys made here and the other way round. The
//! key itself never reaches a log: nothing here prints it, and `Debug` does not either.

use std::{fmt, io::Read};

use base64::{Engine, engine::general_purpose::STANDARD};
use minisign::{KeyPair, PublicKey, SecretKey, SecretKeyBox};

use crate::update::failure::{Class, Coded};

use super::{
    public_key::KeyId,
    signature::{Signature, SignatureKind},
};

/// A secret key cannot be made, read or used.
#[derive(Debug, thiserror::Error)]
pub enum SigningError {
    /// The text is not minisign's secret key file.
    #[error(
        "it is not a secret key made by `fwupdatectl image keygen` or `minisign -G`: expected a comment line and a line of base64"
    )]
    NotAKey,
    /// It is encrypted and no password was given.
    #[error("the secret key is protected by a password; give it with --password-file")]
    PasswordNeeded,
    /// The password does not open it (or the file is damaged).
    #[error("the password does not open the secret key")]
    WrongPassword(#[source] minisign::PError),
    /// The library failed: no random numbers, or no memory for the password's derivation.
    #[error("cannot {0} the secret key")]
    Failed(&'static str, #[source] minisign::PError),
}

impl Coded for SigningError {
    fn code(&self) -> &'static str {
        match self {
            Self::NotAKey => "secret-key-syntax",
            Self::PasswordNeeded => "secret-key-password-needed",
            Self::WrongPassword(_) => "secret-key-wrong-password",
            Self::Failed(..) => "secret-key-failed",
        }
    }

    fn class(&self) -> Class {
        Class::Final
    }
}

/// A new key pair as the content of its two files.
pub struct NewKey {
    /// For `KEY`: readable by its owner only.
    pub secret: String,
    /// For `KEY.pub`.
    pub public: String,
    /// The key's short name.
    pub id: KeyId,
}

/// A secret key, ready to sign.
pub struct SigningKey(SecretKey);

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.id())
    }
}

impl SigningKey {
    /// Makes a key pair; with a password the secret key is encrypted by it.
    ///
    /// # Errors
    /// When the system gives no random numbers, or the password is too long.
    pub fn generate(password: Option<String>) -> Result<NewKey, SigningError> {
        let failed = |error| SigningError::Failed("make", error);
        let encrypted = password.is_some();
        let KeyPair { pk, sk } = match password {
            Some(password) => KeyPair::generate_encrypted_keypair(Some(password)),
            None => KeyPair::generate_unencrypted_keypair(),
        }
        .map_err(failed)?;
        let id = key_id(pk.keynum());
        let kind = if encrypted {
            "encrypted"
        } else {
            "unencrypted"
        };
        let comment = format!("fwupdated {kind} secret key {id}");
        let secret = sk.to_box(Some(&comment)).map_err(failed)?.into_string();
        let public = format!(
            "untrusted comment: fwupdated public key {id}\n{}\n",
            pk.to_base64()
        );
        Ok(NewKey { secret, public, id })
    }

    /// True when the secret key in `text` needs a password.
    ///
    /// # Errors
    /// [`SigningError::NotAKey`].
    pub fn needs_password(text: &str) -> Result<bool, SigningError> {
        let bytes = decode(text)?;
        // "Ed", then how the password becomes a key: "Sc" for scrypt, zeros for none.
        match bytes.get(..4) {
            Some(b"EdSc") => Ok(true),
            Some([b'E', b'd', 0, 0]) => Ok(false),
            _ => Err(SigningError::NotAKey),
        }
    }

    /// Takes the content of a secret key file.
    ///
    /// # Errors
    /// When it is not one, or the password is missing or wrong.
    pub fn parse(text: &str, password: Option<String>) -> Result<Self, SigningError> {
        let key = if Self::needs_password(text)? {
            let password = password.ok_or(SigningError::PasswordNeeded)?;
            SecretKeyBox::from(text.to_owned())
                .into_secret_key(Some(password))
                .map_err(SigningError::WrongPassword)?
        } else {
            // Not by `into_unencrypted_secret_key`: `minisign -G -W` up to 0.11 leaves the checksum
            // empty, which that refuses. A damaged key is found by `sign`, which checks its work.
            SecretKey::from_bytes(&decode(text)?)
                .map_err(|error| SigningError::Failed("read", error))?
        };
        Ok(Self(key))
    }

    /// The key's short name.
    #[must_use]
    pub fn id(&self) -> KeyId {
        key_id(self.0.keynum())
    }

    /// Signs `message` (prehashed, `ED`) with a trusted comment of one line. minisign mixes fresh
    /// random bytes into each signature, so two of them differ; their length does not.
    ///
    /// # Errors
    /// When the message cannot be read or the system gives no random numbers.
    pub fn sign(&self, message: impl Read, comment: &str) -> Result<Signature, SigningError> {
        let failed = |error| SigningError::Failed("use", error);
        // The public key makes the library check what it signed: a bit flip in memory would
        // otherwise leak the secret key or ship an image that no device takes.
        let public = PublicKey::from_secret_key(&self.0).map_err(failed)?;
        let untrusted = format!("signature by fwupdated key {}", self.id());
        let signed = minisign::sign(
            Some(&public),
            &self.0,
            message,
            Some(comment),
            Some(&untrusted),
        )
        .map_err(failed)?;
        Ok(Signature {
            kind: SignatureKind::Minisign,
            bytes: signed.into_string().into_bytes(),
        })
    }
}

/// The binary form of a secret key file: its second line.
fn decode(text: &str) -> Result<Vec<u8>, SigningError> {
    let line = text.lines().nth(1).ok_or(SigningError::NotAKey)?;
    STANDARD
        .decode(line.trim())
        .map_err(|_| SigningError::NotAKey)
}

fn key_id(keynum: &[u8]) -> KeyId {
    let id = keynum.try_into().map_or(0, u64::from_le_bytes);
    KeyId::Minisign(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::public_key::{PublicKey as Verifier, Verdict};

    #[test]
    fn a_new_key_signs_what_its_public_half_accepts() {
        for password in [None, Some("correct horse".to_owned())] {
            let new = SigningKey::generate(password.clone()).unwrap();
            assert_eq!(
                SigningKey::needs_password(&new.secret).unwrap(),
                password.is_some()
            );
            let key = SigningKey::parse(&new.secret, password).unwrap();
            let public = Verifier::parse(new.public.as_bytes()).unwrap();
            let signature = key.sign(&b"message"[..], "comment").unwrap();
            assert_eq!((key.id(), public.id()), (new.id, new.id));
            assert_eq!(signature.key_id(), Some(new.id));
            assert_eq!(public.check(b"message", &signature), Verdict::Good);
            assert_eq!(public.check(b"messagE", &signature), Verdict::Bad);
        }
    }

    #[test]
    fn a_protected_key_opens_with_its_password_only() {
        let new = SigningKey::generate(Some("right".to_owned())).unwrap();
        let code = |password| SigningKey::parse(&new.secret, password).unwrap_err().code();
        assert_eq!(code(None), "secret-key-password-needed");
        assert_eq!(code(Some("wrong".to_owned())), "secret-key-wrong-password");
    }

    #[test]
    fn a_damaged_key_signs_nothing() {
        let new = SigningKey::generate(None).unwrap();
        let mut bytes = decode(&new.secret).unwrap();
        // In the seed, so that it no longer belongs to the public half behind it.
        bytes[70] ^= 1;
        let text = format!("x\n{}\n", STANDARD.encode(bytes));
        let key = SigningKey::parse(&text, None).unwrap();
        assert_eq!(
            key.sign(&b"message"[..], "comment").unwrap_err().code(),
            "secret-key-failed"
        );
    }

    #[test]
    fn the_secret_is_not_in_the_debug_output() {
        let new = SigningKey::generate(None).unwrap();
        let key = SigningKey::parse(&new.secret, None).unwrap();
        assert_eq!(format!("{key:?}"), format!("SigningKey({})", new.id));
    }

    #[test]
    fn other_files_are_not_taken_for_a_secret_key() {
        let public = SigningKey::generate(None).unwrap().public;
        for text in ["", "one line", "x\n!!!", "x\nAAAA", &public] {
            assert!(matches!(
                SigningKey::parse(text, None),
                Err(SigningError::NotAKey)
            ));
        }
    }
}
