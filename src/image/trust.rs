//! Which keys are trusted, and whether enough of them signed.
//!
//! - A signature counts only when it verifies with a trusted key over exactly the bytes given.
//! - A revoked key counts for nothing, wherever else it is listed and whatever its file calls it.
//! - Different signatures by one key count once: keys are compared by their material, not their id.
//! - No dates: a device's clock may be wrong, and expired certificates have locked fleets out.
//! - A broken key file only costs that key (named in [`TrustStore::warnings`]); a broken *revocation*
//!   refuses everything, because the key it was about would be trusted again.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use crate::update::failure::{Class, Coded, chain};

use super::{
    public_key::{KeyFileError, KeyId, PublicKey, Verdict},
    signature::{Signature, SignatureKind, Signatures},
};

/// Why signatures do not make something trustworthy.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// There is no signature at all.
    #[error(
        "the image is not signed; sign it with `fwupdatectl image sign`, or for development set trust.unsigned = \"allow\""
    )]
    Unsigned,
    /// No key is trusted, so nothing can be.
    #[error(
        "no trusted key is installed in {looked}, so no image can be trusted; put the public key (*.pub) there"
    )]
    NoKeys {
        /// Folders or files that were looked at.
        looked: String,
    },
    /// Signed, but by nobody who is trusted.
    #[error(
        "the image is signed by key {signed_by}, which is not trusted; trusted are {trusted}; sign it with one of them, or install the signer's public key"
    )]
    WrongKey {
        /// Keys named by the signatures.
        signed_by: KeyIds,
        /// Keys that would do.
        trusted: KeyIds,
    },
    /// Names a trusted key, but the signature does not fit the bytes.
    #[error(
        "the signature by trusted key {key} does not fit: the image (or its manifest, which is what is signed if it has one) was changed after signing, or is damaged"
    )]
    BadSignature {
        /// The key that the signature names.
        key: KeyId,
    },
    /// Signed with a key that was revoked.
    #[error("the image is signed by key {key}, which has been revoked; sign it with another key")]
    Revoked {
        /// The revoked key.
        key: KeyId,
    },
    /// Fewer keys than the threshold.
    #[error(
        "the image is signed by {signed_by}, but {needed} different trusted keys must sign it (trust.threshold); trusted are {trusted}"
    )]
    TooFew {
        /// How many must.
        needed: usize,
        /// Trusted keys whose signature fits.
        signed_by: KeyIds,
        /// Keys that would do.
        trusted: KeyIds,
    },
    /// A revocation cannot be read; it would be unsafe to go on without it.
    #[error(
        "cannot read the list of revoked keys, so no signature can be trusted; repair or remove the file"
    )]
    Revocation(#[source] KeyFileError),
    /// A `.minisig` file is something else.
    #[error(
        "the signature file is not minisign's: expected four lines, as `minisign -S` writes them"
    )]
    DetachedSyntax,
    /// A `.minisig` file that cannot be checked while streaming.
    #[error(
        "the signature by key {key} is of minisign's old kind, which needs the whole image in memory; sign again with minisign 0.8 or newer (`minisign -S -H` in older ones)"
    )]
    DetachedLegacy {
        /// The key that the signature names.
        key: KeyId,
    },
}

impl Coded for TrustError {
    fn code(&self) -> &'static str {
        match self {
            Self::Unsigned => "image-unsigned",
            Self::NoKeys { .. } => "trust-no-keys",
            Self::WrongKey { .. } => "signature-wrong-key",
            Self::BadSignature { .. } => "signature-bad",
            Self::Revoked { .. } => "signature-revoked-key",
            Self::TooFew { .. } => "signature-threshold",
            Self::Revocation(_) => "trust-revocation-unreadable",
            Self::DetachedSyntax => "signature-file-syntax",
            Self::DetachedLegacy { .. } => "signature-file-legacy",
        }
    }

    fn class(&self) -> Class {
        match self {
            Self::NoKeys { .. } | Self::Revocation(_) => Class::Wait,
            Self::Unsigned
            | Self::WrongKey { .. }
            | Self::BadSignature { .. }
            | Self::Revoked { .. }
            | Self::TooFew { .. }
            | Self::DetachedSyntax
            | Self::DetachedLegacy { .. } => Class::Final,
        }
    }
}

/// Key ids in a sentence: `A, B`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyIds(pub Vec<KeyId>);

impl fmt::Display for KeyIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("(unnamed)");
        }
        for (at, id) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{id}")?;
        }
        Ok(())
    }
}

/// The trusted keys.
#[derive(Debug, Clone, Default)]
pub struct TrustStore {
    /// Each key once, none of them revoked.
    keys: Vec<PublicKey>,
    revoked: Vec<PublicKey>,
    looked: Vec<PathBuf>,
    warnings: Vec<String>,
}

impl TrustStore {
    /// Reads every `*.pub` file in the folders. Missing folders are fine; a key file that cannot be
    /// used is left out and named in [`TrustStore::warnings`].
    ///
    /// # Errors
    /// [`TrustError::Revocation`] when a file or folder of revoked keys cannot be read.
    pub fn load(key_dirs: &[PathBuf], revoked_dirs: &[PathBuf]) -> Result<Self, TrustError> {
        let mut store = Self {
            looked: key_dirs.to_vec(),
            ..Self::default()
        };
        for dir in revoked_dirs {
            for file in pub_files(dir).map_err(TrustError::Revocation)? {
                let key = PublicKey::read(&file).map_err(TrustError::Revocation)?;
                store.revoked.push(key);
            }
        }
        for dir in key_dirs {
            let files = pub_files(dir).unwrap_or_else(|error| {
                store.warnings.push(chain(&error));
                Vec::new()
            });
            for file in files {
                match PublicKey::read(&file) {
                    Ok(key) => store.add(key),
                    Err(error) => store.warnings.push(chain(&error)),
                }
            }
        }
        Ok(store)
    }

    /// Trusts exactly these key files.
    ///
    /// # Errors
    /// When one of them is not a key.
    pub fn from_files(files: &[PathBuf]) -> Result<Self, KeyFileError> {
        let mut store = Self {
            looked: files.to_vec(),
            ..Self::default()
        };
        for file in files {
            store.add(PublicKey::read(file)?);
        }
        Ok(store)
    }

    fn add(&mut self, key: PublicKey) {
        // The id counts too when it comes to revocation: two keys never share one by accident.
        let revoked = |old: &PublicKey| old.is_same(&key) || old.id() == key.id();
        if !self.revoked.iter().any(revoked) && !self.keys.iter().any(|old| old.is_same(&key)) {
            self.keys.push(key);
        }
    }

    /// Key files that were left out, and why, in words.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Ids of the trusted keys.
    #[must_use]
    pub fn key_ids(&self) -> Vec<KeyId> {
        self.keys.iter().map(PublicKey::id).collect()
    }

    /// How many keys are revoked.
    #[must_use]
    pub fn revoked(&self) -> usize {
        self.revoked.len()
    }

    /// Checks that at least `threshold` (at least one) different trusted keys signed `message`, and
    /// says which did.
    ///
    /// # Errors
    /// What is wrong with the signatures, naming keys.
    pub fn verify(
        &self,
        message: &[u8],
        signatures: &Signatures,
        threshold: usize,
    ) -> Result<Vec<KeyId>, TrustError> {
        if signatures.is_empty() {
            return Err(TrustError::Unsigned);
        }
        self.require_keys()?;
        let mut good: Vec<&PublicKey> = Vec::new();
        let mut bad = None;
        let mut revoked = None;
        for signature in signatures.iter() {
            for key in &self.keys {
                match key.check(message, signature) {
                    Verdict::Good if !good.iter().any(|old| old.is_same(key)) => good.push(key),
                    Verdict::Bad => bad = Some(key.id()),
                    Verdict::Good | Verdict::NotMine => {}
                }
            }
            let by_revoked = |key: &&PublicKey| key.check(message, signature) == Verdict::Good;
            if let Some(key) = self.revoked.iter().find(by_revoked) {
                revoked = Some(key.id());
            }
        }
        let good: Vec<_> = good.into_iter().map(PublicKey::id).collect();
        if good.len() >= threshold.max(1) {
            return Ok(good);
        }
        // The most telling reason first.
        Err(match (revoked, bad) {
            (Some(key), _) => TrustError::Revoked { key },
            (None, Some(key)) => TrustError::BadSignature { key },
            (None, None) if good.is_empty() => TrustError::WrongKey {
                signed_by: KeyIds(signatures.iter().filter_map(Signature::key_id).collect()),
                trusted: KeyIds(self.key_ids()),
            },
            (None, None) => self.too_few(threshold, good),
        })
    }

    /// Starts checking a detached signature of a plain image, whose bytes are then fed to the result.
    /// Whatever can be known before the first byte is refused here.
    ///
    /// # Errors
    /// When the signatures cannot come to `threshold` trusted keys, whatever the bytes are.
    pub fn verify_detached<'a>(
        &'a self,
        signatures: &'a DetachedSignatures,
        threshold: usize,
    ) -> Result<DetachedVerifier<'a>, TrustError> {
        self.require_keys()?;
        let mut streams: Vec<(&PublicKey, minisign_verify::StreamVerifier<'a>)> = Vec::new();
        let mut legacy = None;
        for (_, parsed) in &signatures.0 {
            for key in &self.keys {
                let Some(minisign) = key.minisign() else {
                    continue;
                };
                match minisign.verify_stream(parsed) {
                    Ok(stream) if !streams.iter().any(|(old, _)| old.is_same(key)) => {
                        streams.push((key, stream));
                    }
                    Err(minisign_verify::Error::UnsupportedLegacyMode) => legacy = Some(key.id()),
                    // The same key again, or another key's.
                    Ok(_) | Err(_) => {}
                }
            }
        }
        if streams.len() < threshold.max(1) {
            let named: Vec<_> = signatures
                .0
                .iter()
                .filter_map(|(s, _)| s.key_id())
                .collect();
            let revoked = self.revoked.iter().find(|key| named.contains(&key.id()));
            return Err(match (revoked, legacy) {
                (Some(key), _) => TrustError::Revoked { key: key.id() },
                (None, Some(key)) => TrustError::DetachedLegacy { key },
                (None, None) if streams.is_empty() => TrustError::WrongKey {
                    signed_by: KeyIds(named),
                    trusted: KeyIds(self.key_ids()),
                },
                (None, None) => {
                    self.too_few(threshold, streams.iter().map(|(key, _)| key.id()).collect())
                }
            });
        }
        Ok(DetachedVerifier {
            store: self,
            streams,
            threshold,
        })
    }

    fn require_keys(&self) -> Result<(), TrustError> {
        if !self.keys.is_empty() {
            return Ok(());
        }
        let looked: Vec<_> = self
            .looked
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        Err(TrustError::NoKeys {
            looked: looked.join(", "),
        })
    }

    fn too_few(&self, threshold: usize, good: Vec<KeyId>) -> TrustError {
        TrustError::TooFew {
            needed: threshold,
            signed_by: KeyIds(good),
            trusted: KeyIds(self.key_ids()),
        }
    }
}

/// The content of a `.minisig` file beside a plain image: one signature of four lines, or several one
/// after the other.
pub struct DetachedSignatures(Vec<(Signature, minisign_verify::Signature)>);

impl DetachedSignatures {
    /// Longest file that makes sense, in bytes: callers need not fetch more.
    pub const MAX_LEN: usize = 16 * 1024;
    /// What the name of the file ends with that has them, after the whole name of the image's.
    pub const SUFFIX: &str = ".minisig";

    /// The file that has those of the image at `path`.
    #[must_use]
    pub fn beside(path: &Path) -> PathBuf {
        let mut name = path.as_os_str().to_owned();
        name.push(Self::SUFFIX);
        name.into()
    }

    /// Takes the content of the file.
    ///
    /// # Errors
    /// [`TrustError::DetachedSyntax`].
    pub fn parse(bytes: &[u8]) -> Result<Self, TrustError> {
        let wrong = || TrustError::DetachedSyntax;
        if bytes.len() > Self::MAX_LEN {
            return Err(wrong());
        }
        let text = std::str::from_utf8(bytes).map_err(|_| wrong())?;
        let lines: Vec<_> = text.lines().filter(|line| !line.is_empty()).collect();
        let mut all = Vec::new();
        for four in lines.chunks(4) {
            let signature = Signature {
                kind: SignatureKind::Minisign,
                bytes: four.join("\n").into_bytes(),
            };
            let parsed = signature.to_minisign().ok_or_else(wrong)?;
            all.push((signature, parsed));
        }
        if all.is_empty() {
            return Err(wrong());
        }
        Ok(Self(all))
    }
}

/// Checks detached signatures while the bytes of a plain image pass by.
pub struct DetachedVerifier<'a> {
    store: &'a TrustStore,
    streams: Vec<(&'a PublicKey, minisign_verify::StreamVerifier<'a>)>,
    threshold: usize,
}

impl DetachedVerifier<'_> {
    /// The next bytes of the file as it is served (not decompressed).
    pub fn update(&mut self, bytes: &[u8]) {
        for (_, stream) in &mut self.streams {
            stream.update(bytes);
        }
    }

    /// All bytes have passed: says which keys signed them.
    ///
    /// # Errors
    /// When fewer than the threshold did.
    pub fn finish(self) -> Result<Vec<KeyId>, TrustError> {
        let mut good = Vec::new();
        let mut bad = None;
        for (key, mut stream) in self.streams {
            match stream.finalize() {
                Ok(()) => good.push(key.id()),
                Err(_) => bad = Some(key.id()),
            }
        }
        match bad {
            _ if good.len() >= self.threshold.max(1) => Ok(good),
            Some(key) => Err(TrustError::BadSignature { key }),
            None => Err(self.store.too_few(self.threshold, good)),
        }
    }
}

/// The `*.pub` files of a folder in the order of their names; none when there is no folder.
fn pub_files(dir: &Path) -> Result<Vec<PathBuf>, KeyFileError> {
    let failed = |source| KeyFileError::Read {
        path: dir.to_owned(),
        source,
    };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == "pub") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
