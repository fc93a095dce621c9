//! From an address to a verified slot: checks the image's header, writes the slot, reads it back.
//!
//! Runs on a blocking thread, top to bottom. The signature of a manifest is verified before anything else
//! of the file is looked at. How the slot is filled: [`chunks`] for an image with a manifest, [`plain`]
//! for any other. Either way the slot's first block is written last
//! ([`crate::platform::slot_writer::SlotWriter`] sees to it), and only when all else was right.

pub mod chunks;
pub mod delta;
pub mod error;
pub mod fetch;
pub mod filling;
pub mod piece;
pub mod pipeline;
pub mod plain;
pub mod prefix;
pub mod reuse;
pub mod scan;

use std::{
    io::{self, Chain, Cursor, Read},
    ops::ControlFlow,
    sync::{Arc, Mutex},
};

use self::error::InstallError;
use super::{
    admission::{Offer, Refusal},
    meter::{Cancel, Meter},
    source::{Seen, Source, local::HandedOver},
};
use crate::{
    config::{PlainTrust, TrustConfig},
    image::{
        DetachedSignatures, Header, ImageKind, ManifestFrame, PlainError, PlainKind, TrustStore,
        VerifiedManifest, delta::OldPayload, plain::DETECT_LEN,
    },
    platform::{
        fetch::Fetcher,
        slot_writer::{SlotPart, read_back_parts},
        slots::InactiveSlot,
    },
    update::{
        digest::Sha256,
        failure::{Coded, Failure},
        machine::{Content, ImageFacts, Prepared, Written},
        request::Request,
        uri::PackageUri,
    },
};

/// What one installation works with.
pub struct Installer {
    /// Downloads.
    pub fetcher: Fetcher,
    /// The file of this device that is installed, if it was handed over.
    pub file: HandedOver,
    /// Most requests at a time.
    pub connections: usize,
    /// What was installed in the running slot, if that is known.
    pub installed: Option<OldPayload>,
    /// Whom to trust.
    pub trust: TrustConfig,
    /// Counts.
    pub meter: Arc<Meter>,
    /// The wish to stop.
    pub cancel: Cancel,
    /// The header that was inspected last, so that it is not fetched twice.
    pub inspected: Inspected,
}

/// A header that was verified, and the version of the file that it is from. Shared by the installers of one update.
pub type Inspected = Arc<Mutex<Option<(PackageUri, Header, Option<Seen>)>>>;

/// The file from its first byte, with what was read to tell its kind put back.
type Start<'a> = Chain<Cursor<Vec<u8>>, Box<dyn Read + Send + 'a>>;

impl Installer {
    /// Fetches the header of `request`'s image and verifies it. Blocks.
    ///
    /// # Errors
    /// Any reason not to trust or not to understand the image, or a download that failed.
    pub fn inspect(&self, request: &Request) -> Result<(Offer, ImageFacts), Failure> {
        let source = self.source(request, None)?;
        let (kind, mut start) = self.open(&source, Box::new(source.read_in_windows()))?;
        let kind = match kind {
            ImageKind::Manifest => {
                let verified = self.verified(&source, &mut start)?;
                source.header_ends(verified.payload_offset());
                let header = self.explain(&source, verified.read_index(&mut start))?;
                if let Some(got) = source.total().filter(|total| *total < header.file_len()) {
                    let (uri, want) = (request.uri.to_string(), header.file_len());
                    return Err(Failure::from(&InstallError::Truncated { uri, got, want }));
                }
                let manifest = header.manifest();
                let offer = Offer {
                    version: Some(manifest.version.clone()),
                    compatible: Some(manifest.compatible.clone()),
                    security_epoch: manifest.security_epoch,
                    size: Some(manifest.rootfs().size),
                    boot: manifest.boot().map(|boot| boot.size),
                    payload: Some(manifest.payload.sha256),
                };
                let facts = ImageFacts {
                    version: offer.version.clone(),
                    size: Some(manifest.payload.size),
                    boot_size: offer.boot.unwrap_or(0),
                    manifest: Some(header.digest()),
                    security_epoch: offer.security_epoch,
                };
                drop(start);
                *self.inspected.lock().expect("no panic while held") =
                    Some((request.uri.clone(), header, source.seen()));
                return Ok((offer, facts));
            }
            ImageKind::Plain(kind) => kind,
        };
        // Whatever can be known before the slot is touched.
        let store = self.trust_store()?;
        if let Some(signatures) = self.detached(&source, request)? {
            store
                .verify_detached(&signatures, self.trust.threshold)
                .map_err(|error| Failure::from(&error))?;
        }
        let size = source.total().filter(|_| kind == PlainKind::Raw);
        if let Some(size) = size {
            PlainError::check_size(size).map_err(|error| Failure::from(&error))?;
        }
        let boot_size = plain::boot_size(&source, kind, start)?;
        let offer = Offer {
            version: request.version.clone(),
            size,
            boot: (boot_size > 0).then_some(boot_size),
            ..Offer::default()
        };
        let version = offer.version.clone();
        Ok((
            offer,
            ImageFacts {
                version,
                size,
                boot_size,
                manifest: None,
                security_epoch: 0,
            },
        ))
    }

    /// Writes `prepared`'s image into `slot`; returns what must be found there. Blocks.
    ///
    /// # Errors
    /// Any failure of download, verification or medium. The slot's first block is then not in place.
    pub fn write(&self, prepared: &Prepared, slot: &InactiveSlot) -> Result<Content, Failure> {
        let request = &prepared.job.request;
        // Only the file from its first byte has the digest that a request may name.
        if let (None, Some(manifest)) = (request.sha256, prepared.image.manifest)
            && let Some((uri, header, seen)) = self.take_inspected()
            && uri == request.uri
            && header.digest() == manifest
        {
            let source = self.source(request, seen)?;
            return chunks::install(self, &source, &header, None, slot);
        }
        let source = self.source(request, None)?;
        let changed = || {
            Failure::from(&InstallError::Changed {
                uri: request.uri.to_string(),
            })
        };
        // A plain image, and a digest of the whole file, need the whole file in one go.
        let reader: Box<dyn Read + Send> = match (request.sha256, prepared.image.manifest) {
            (None, Some(_)) => Box::new(source.read_in_windows()),
            _ => Box::new(source.read(0, None)?),
        };
        match (self.open(&source, reader)?, prepared.image.manifest) {
            ((ImageKind::Manifest, start), Some(expected)) => {
                let mut start = Hashed::new(start);
                let verified = self.verified(&source, &mut start)?;
                source.header_ends(verified.payload_offset());
                let header = self.explain(&source, verified.read_index(&mut start))?;
                if header.digest() != expected {
                    return Err(changed());
                }
                let whole = request.sha256.map(|asked| (start, asked));
                chunks::install(self, &source, &header, whole, slot)
            }
            ((ImageKind::Plain(kind), start), None) => {
                let image = (kind, prepared.image.boot_size);
                plain::install(self, request, &source, image, start, slot)
            }
            _ => Err(changed()),
        }
    }

    /// Reads the slot back past the cache and compares it with what was written. Blocks.
    ///
    /// # Errors
    /// The medium cannot be read, or holds something else.
    pub fn verify(&self, written: &Written, slot: &InactiveSlot) -> Result<(), Failure> {
        let Content {
            size,
            sha256: wanted,
        } = written.content;
        let parts = parts(slot, written.image.boot_size, size)?;
        self.meter.begin(size);
        let found = read_back_parts(&parts, &mut |done| {
            self.meter.set_done(done);
            if self.cancel.check().is_ok() {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })
        .map_err(|error| Failure::from(&error))?;
        match found {
            None => Err(super::meter::stopped()),
            Some(found) if found == wanted => Ok(()),
            Some(found) => Err(Failure::from(&InstallError::ReadBack {
                slot: slot.slot().to_string(),
                found: found.to_string(),
                wanted: wanted.to_string(),
            })),
        }
    }

    fn source(&self, request: &Request, seen: Option<Seen>) -> Result<Source, Failure> {
        let (fetcher, uri) = (self.fetcher.clone(), request.uri.clone());
        let file = self.file.open(&uri)?;
        let (meter, cancel) = (self.meter.clone(), self.cancel.clone());
        Ok(Source::new(fetcher, uri, file, meter, cancel, seen))
    }

    fn take_inspected(&self) -> Option<(PackageUri, Header, Option<Seen>)> {
        self.inspected.lock().expect("no panic while held").take()
    }

    /// Tells the kind of the file that `reader` begins.
    fn open<'a>(
        &self,
        source: &Source,
        mut reader: Box<dyn Read + Send + 'a>,
    ) -> Result<(ImageKind, Start<'a>), Failure> {
        let mut head = Vec::with_capacity(DETECT_LEN);
        let read = (&mut reader).take(DETECT_LEN as u64).read_to_end(&mut head);
        read.map_err(|error| source.explain_io(&error))?;
        // A download that broke off may look like any kind.
        source.check()?;
        let kind = self.explain(source, ImageKind::detect(&head))?;
        Ok((kind, Cursor::new(head).chain(reader)))
    }

    /// Reads the manifest and verifies who signed it, before anything in it is believed.
    fn verified(
        &self,
        source: &Source,
        reader: &mut impl Read,
    ) -> Result<VerifiedManifest, Failure> {
        let frame = self.explain(source, ManifestFrame::read(reader))?;
        match frame.verify(&self.trust_store()?, self.trust.threshold) {
            Ok(verified) => Ok(verified),
            Err(error) if self.trust.allow_unsigned => {
                tracing::warn!("installing although nobody trusted signed it: {error}");
                frame
                    .accept_unsigned()
                    .map_err(|error| Failure::from(&error))
            }
            Err(error) => Err(Failure::from(&error)),
        }
    }

    fn trust_store(&self) -> Result<TrustStore, Failure> {
        let store = TrustStore::load(&self.trust.key_dirs, &self.trust.revoked_dirs)
            .map_err(|error| Failure::from(&error))?;
        for warning in store.warnings() {
            tracing::warn!("{warning}");
        }
        Ok(store)
    }

    /// The detached signatures by which a plain image is to be trusted; `None` when the request's digest
    /// is enough (`trust.plain = "digest"`), or nothing is needed.
    fn detached(
        &self,
        source: &Source,
        request: &Request,
    ) -> Result<Option<DetachedSignatures>, Failure> {
        let signed_only = self.trust.plain == PlainTrust::Signed;
        if request.sha256.is_some() && !signed_only {
            return Ok(None);
        }
        let text = source.signatures_beside(DetachedSignatures::MAX_LEN)?;
        match text {
            Some(text) => DetachedSignatures::parse(&text)
                .map(Some)
                .map_err(|error| Failure::from(&error)),
            None if signed_only => {
                let uri = request.uri.to_string();
                Err(Failure::from(&InstallError::PlainSignedOnly { uri }))
            }
            None if self.trust.allow_unsigned => {
                tracing::warn!("installing a plain image that nothing vouches for");
                Ok(None)
            }
            None => {
                let uri = request.uri.to_string();
                Err(Failure::from(&InstallError::PlainUnsigned { uri }))
            }
        }
    }

    /// An error of a parser, unless the download below it had failed: then that.
    fn explain<T, E: Coded>(&self, source: &Source, result: Result<T, E>) -> Result<T, Failure> {
        result.map_err(|error| {
            source
                .take_failure()
                .unwrap_or_else(|| Failure::from(&error))
        })
    }
}

/// The partitions of `slot` that a payload of `size` bytes goes to, of which the first `boot` are for the boot
/// partition.
fn parts(slot: &InactiveSlot, boot: u64, size: u64) -> Result<Vec<SlotPart>, Failure> {
    let rootfs = SlotPart::new(slot.path(), size.saturating_sub(boot));
    if boot == 0 {
        return Ok(vec![rootfs]);
    }
    // The configuration may have changed since the image was accepted.
    let path = slot
        .boot()
        .ok_or_else(|| Failure::from(&Refusal::NoBootPartition))?;
    Ok(vec![SlotPart::other(path, boot), rootfs])
}

/// Computes the digest of everything that is read through it.
pub struct Hashed<R> {
    reader: R,
    context: ring::digest::Context,
}

impl<R: Read> Hashed<R> {
    fn new(reader: R) -> Self {
        Self {
            reader,
            context: ring::digest::Context::new(&ring::digest::SHA256),
        }
    }

    /// Reads to the end of the file and compares its digest with the one that was asked for.
    fn expect(mut self, asked: Sha256, source: &Source) -> Result<(), Failure> {
        io::copy(&mut self, &mut io::sink()).map_err(|error| source.explain_io(&error))?;
        source.check()?;
        let found = Sha256::from_ring(&self.context.finish());
        if found == asked {
            return Ok(());
        }
        let (uri, found, asked) = (
            source.uri().to_string(),
            found.to_string(),
            asked.to_string(),
        );
        Err(Failure::from(&InstallError::DigestMismatch {
            uri,
            found,
            asked,
        }))
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.context.update(&buffer[..count]);
        Ok(count)
    }
}
