//! Fills a slot from an image with a manifest: from what it holds itself, from the running slot, then from the
//! network.
//!
//! Four stages work off one list of missing chunks, each leaving less to the next: [`super::scan`] finds
//! what is in place, [`super::reuse`] copies what the device has elsewhere, [`super::delta`] makes what a static
//! delta can, and [`super::fetch`] downloads the rest. Every chunk is verified by its signed digest before it is
//! written, wherever it comes from.

use super::{Hashed, Installer, Start, delta, fetch, filling::Filling, reuse, scan};
use crate::{
    daemon::source::Source,
    image::Header,
    platform::slots::InactiveSlot,
    update::{digest::Sha256, failure::Failure, machine::Content},
};

/// Writes what is missing. `whole`: the file, read up to its first chunk, and the digest that all of it must have.
///
/// # Errors
/// Any failure of download, verification or medium.
pub fn install(
    installer: &Installer,
    source: &Source,
    header: &Header,
    whole: Option<(Hashed<Start<'_>>, Sha256)>,
    slot: &InactiveSlot,
) -> Result<Content, Failure> {
    let mut filling = Filling::open(installer, header, slot)?;
    scan::scan(&mut filling)?;
    reuse::reuse(&mut filling, slot.running())?;
    match whole {
        // A digest of the whole file can only be checked by reading the whole file.
        Some((mut file, asked)) => {
            fetch::from_stream(&mut filling, source, &mut file)?;
            file.expect(asked, source)?;
        }
        None => {
            delta::apply(&mut filling, source, slot.running())?;
            fetch::fetch(&mut filling, source, installer.connections)?;
        }
    }
    filling.finish()?;
    let payload = &header.manifest().payload;
    Ok(Content {
        size: payload.size,
        sha256: payload.sha256,
    })
}
