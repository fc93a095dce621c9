//! The update archive of Raspberry Pi's image tool (`rpi-image-gen`, layout `image-rota`): a tar file, mostly compressed,
//! whose member `system` is a root file system and whose member `boot`, if there is one, is its boot partition; each raw or
//! an Android sparse image.
//!
//! [`payload`] tells such an archive from a partition image and gives the raw bytes of either, boot partition first, as a
//! stream of bounded memory. Guarantees: every length is checked against the one that was announced, `Ok(0)` means that
//! the archive was complete, and no member is passed over: what is not understood is refused.
//! Source of the format: tar(5) of libarchive ("ustar" and GNU headers).

use std::io::{self, Chain, Cursor, Read};

use super::{limits::SECTOR, plain::PlainError, sparse::Sparse};

/// A tar file consists of blocks of so many bytes.
const BLOCK: usize = 512;
/// The member with the boot partition, and the one with the root file system, which comes last.
const BOOT: &str = "boot";
const SYSTEM: &str = "system";

/// The raw bytes for a slot.
pub struct Payload<R> {
    /// How many of them, from the first, are for the slot's boot partition.
    pub boot: u64,
    /// All of them.
    pub bytes: Bytes<R>,
}

/// A stream that begins with bytes that were read before.
type Replayed<R> = Chain<Cursor<Vec<u8>>, R>;

/// Raw bytes: a partition image as it is, or an archive's members one after the other.
pub enum Bytes<R> {
    /// A partition image.
    Image(Replayed<R>),
    /// An update archive.
    Archive(Box<Archive<R>>),
}

/// Looks at the beginning of what a plain image decompresses to.
///
/// # Errors
/// Those of `reader`; else [`PlainError::of`] tells the reason.
pub fn payload<R: Read>(mut reader: R) -> io::Result<Payload<R>> {
    let mut first = Vec::with_capacity(BLOCK);
    (&mut reader).take(BLOCK as u64).read_to_end(&mut first)?;
    let is_archive = first.len() == BLOCK && &first[257..262] == b"ustar";
    let reader = Cursor::new(first).chain(reader);
    if !is_archive {
        let bytes = Bytes::Image(reader);
        return Ok(Payload { boot: 0, bytes });
    }
    let archive = Archive::open(reader)?;
    Ok(Payload {
        boot: archive.boot,
        bytes: Bytes::Archive(Box::new(archive)),
    })
}

impl<R: Read> Read for Bytes<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Image(image) => image.read(buffer),
            Self::Archive(archive) => archive.read(buffer),
        }
    }
}

/// An archive, within one of its members.
pub struct Archive<R> {
    /// Raw bytes of the boot partition.
    boot: u64,
    /// The member that is read; `None` after the last one.
    member: Option<Member<R>>,
    /// Raw bytes so far.
    raw: u64,
}

/// A member: its content, and the zeros that fill up its last block.
struct Member<R> {
    is_boot: bool,
    content: Sparse<io::Take<Replayed<R>>>,
    padding: u64,
}

impl<R: Read> Archive<R> {
    fn open(reader: Replayed<R>) -> io::Result<Self> {
        let first = next_member(reader)?.ok_or_else(|| refuse("it is empty"))?;
        let boot = match first.is_boot {
            false => 0,
            true => {
                let size = first.content.size();
                if size == 0 || !size.is_multiple_of(SECTOR) {
                    return Err(refuse("`boot` is not whole sectors"));
                }
                size
            }
        };
        Ok(Self {
            boot,
            member: Some(first),
            raw: 0,
        })
    }

    /// Goes on behind a member that was read to its end.
    fn next(&mut self, member: Member<R>) -> io::Result<()> {
        let is_boot = member.is_boot;
        let content = member.content.into_inner();
        if content.limit() > 0 {
            return Err(refuse("a member is longer than its image"));
        }
        let mut rest = content.into_inner();
        io::copy(&mut (&mut rest).take(member.padding), &mut io::sink())?;
        match next_member(rest)? {
            Some(next) if is_boot && !next.is_boot => self.member = Some(next),
            Some(_) => return Err(refuse("it holds more than `boot` and then `system`")),
            None if is_boot => return Err(refuse("`system` is missing")),
            None => {}
        }
        Ok(())
    }
}

impl<R: Read> Read for Archive<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.member {
            let read = member.content.read(buffer)?;
            self.raw += read as u64;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            let member = self.member.take().expect("just looked at");
            self.next(member)?;
            if self.member.is_none() {
                // What is behind the boot partition is the root file system.
                PlainError::check_size(self.raw - self.boot).map_err(invalid)?;
            }
        }
        Ok(0)
    }
}

/// Reads a header and begins its member. At the end of the archive, everything is read to the end of the file.
fn next_member<R: Read>(mut reader: Replayed<R>) -> io::Result<Option<Member<R>>> {
    let mut header = [0; BLOCK];
    if let Err(error) = reader.read_exact(&mut header) {
        return Err(match error.kind() {
            io::ErrorKind::UnexpectedEof => refuse("it is cut off"),
            _ => error,
        });
    }
    if header == [0; BLOCK] {
        return end(reader).map(|()| None);
    }
    let size = size_in(&header)?;
    let name = header[..100]
        .split(|byte| *byte == 0)
        .next()
        .unwrap_or_default();
    let name = name.strip_prefix(b"./").unwrap_or(name);
    let is_boot = match std::str::from_utf8(name) {
        Ok(BOOT) => true,
        Ok(SYSTEM) => false,
        _ => return Err(refuse("it holds something else than `boot` and `system`")),
    };
    // '0' or NUL; a link has no content, and a directory none that we want.
    if !matches!(header[156], b'0' | 0) {
        return Err(refuse("a member is no regular file"));
    }
    let content = Sparse::open(reader.take(size), size)?;
    Ok(Some(Member {
        is_boot,
        content,
        padding: size.next_multiple_of(BLOCK as u64) - size,
    }))
}

/// The size that a header announces, in octal digits or, from 8 GiB on, in binary. The header's checksum is checked.
fn size_in(header: &[u8; BLOCK]) -> io::Result<u64> {
    let octal = |field: &[u8]| {
        let text = std::str::from_utf8(field).ok()?;
        u64::from_str_radix(text.trim_matches([' ', '\0']), 8).ok()
    };
    // The checksum is computed with blanks in its own place.
    let sum: u64 = (0_usize..)
        .zip(header)
        .map(|(at, byte)| {
            if (148..156).contains(&at) {
                32
            } else {
                u64::from(*byte)
            }
        })
        .sum();
    let field = &header[124..136];
    let size = match field[0] {
        0x80 => {
            let [high @ .., _, _, _, _, _, _, _, _] = &field[1..] else {
                unreachable!("the field has 12 bytes")
            };
            let low = u64::from_be_bytes(field[4..].try_into().expect("8 bytes"));
            high.iter().all(|byte| *byte == 0).then_some(low)
        }
        _ => octal(field),
    };
    // So that nothing computed from it overflows.
    let size = size.filter(|size| *size <= 1 << 60);
    match (size, octal(&header[148..156])) {
        (Some(size), Some(found)) if found == sum => Ok(size),
        _ => Err(refuse("a header in it is damaged")),
    }
}

/// Behind the last member there are zeros, and nothing else.
fn end(mut reader: impl Read) -> io::Result<()> {
    let mut block = [0; 4096];
    loop {
        let read = match reader.read(&mut block) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if block[..read].iter().any(|byte| *byte != 0) {
            return Err(refuse("bytes follow its end"));
        }
    }
}

fn refuse(why: &'static str) -> io::Error {
    invalid(PlainError::Archive(why))
}

fn invalid(error: PlainError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests;
