//! THE FORMAT of images, pure over `Read` and `Write`: manifest, chunk index, signatures, build.
//! Described for implementers in `docs/reference/image-format.md`.
//!
//! Reading, on a device or anywhere (see [`header`] for why in this order):
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # use fwupdated::image::{ChunkDecoder, ManifestFrame, TrustStore};
//! # use std::io::Read;
//! # let mut file = std::fs::File::open("image.zst")?;
//! let trust = TrustStore::load(&["/etc/fwupdated/keys.d".into()], &[])?;
//! let header = ManifestFrame::read(&mut file)?.verify(&trust, 1)?.read_index(&mut file)?;
//! let (mut decoder, mut raw) = (ChunkDecoder::new(), Vec::new());
//! let mut before = Vec::new(); // The last `max_prefix` bytes of it are enough.
//! for chunk in header.chunks() {
//!     let mut frame = vec![0; chunk.frame_len as usize];
//!     file.read_exact(&mut frame)?;
//!     let prefix = &before[before.len() - chunk.prefix_len as usize..];
//!     decoder.decode_chunk(&chunk, prefix, &frame, &mut raw)?;
//!     before.extend_from_slice(&raw);
//!     // `raw` belongs at `chunk.raw_offset`, and a trusted key has signed for it.
//! }
//! # Ok(()) }
//! ```
//!
//! | file | for |
//! |---|---|
//! | [`limits`] | every limit, checked before anything is allocated |
//! | [`header`] | manifest frame, proof of its signature, index |
//! | [`manifest`], [`index`] | what they say |
//! | [`cut`] | where chunks end |
//! | [`chunk`], [`check`] | one chunk; the whole file |
//! | [`trust`], [`public_key`], [`signature`], [`signing`] | who may sign; checking; making |
//! | [`mod@build`] | making an image |
//! | [`find`] | chunks of an image in other bytes |
//! | [`plan`] | which chunks a device needs, and the requests that bring them |
//! | [`plain`] | images without a manifest: raw, gzip, xz, bzip2, zstd |
//! | [`archive`], [`sparse`] | update archives of rpi-image-gen: tar files with Android sparse images |

pub mod archive;
pub mod build;
pub mod check;
pub mod chunk;
pub mod cut;
pub mod delta;
pub mod error;
pub mod find;
mod frame;
mod group;
pub mod header;
pub mod index;
pub mod limits;
pub mod manifest;
pub mod plain;
pub mod plan;
pub mod public_key;
pub mod signature;
pub mod signing;
pub mod sparse;
pub mod trust;

pub use build::{BuildOptions, BuiltImage, Part, build, chunk_size_for, sign_again};
pub use check::check_payload;
pub use chunk::{ChunkDecoder, check_digest};
pub use cut::Cutter;
pub use error::ImageError;
pub use header::{Header, ManifestFrame, VerifiedManifest};
pub use index::{ChunkDigest, ChunkEntry, ChunkIndex, Chunks};
pub use manifest::{Chunking, Manifest, PartitionImage};
pub use plain::{ImageKind, PlainError, PlainKind, plain_decoder};
pub use plan::{Missing, Plan, Repeat, Run};
pub use public_key::{KeyFileError, KeyId, PublicKey};
pub use signature::{Signature, SignatureKind, Signatures};
pub use signing::{SigningError, SigningKey};
pub use trust::{DetachedSignatures, DetachedVerifier, TrustError, TrustStore};
