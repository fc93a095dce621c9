//! Archives and sparse images that are made here: what comes out, and what is refused. Ones of other tools: see
//! `tests/plain_images.rs`.

use proptest::prelude::*;

use super::*;
use crate::image::sparse::MAGIC;

/// A chunk of a sparse image of blocks of 4096 bytes.
#[derive(Debug, Clone)]
enum Chunk {
    Raw(Vec<u8>),
    Fill([u8; 4], u32),
    Hole(u32),
    Crc,
}

const BLOCK_SIZE: u32 = 4096;

fn raw_of(chunks: &[Chunk]) -> Vec<u8> {
    let mut raw = Vec::new();
    for chunk in chunks {
        match chunk {
            Chunk::Raw(bytes) => raw.extend_from_slice(bytes),
            Chunk::Fill(four, blocks) => {
                for _ in 0..blocks * BLOCK_SIZE / 4 {
                    raw.extend_from_slice(four);
                }
            }
            Chunk::Hole(blocks) => raw.resize(raw.len() + (blocks * BLOCK_SIZE) as usize, 0),
            Chunk::Crc => {}
        }
    }
    raw
}

fn sparse(chunks: &[Chunk]) -> Vec<u8> {
    let blocks = u32::try_from(raw_of(chunks).len()).unwrap() / BLOCK_SIZE;
    let count = u32::try_from(chunks.len()).unwrap();
    let mut bytes = MAGIC.to_le_bytes().to_vec();
    for half in [1_u16, 0, 28, 12] {
        bytes.extend(half.to_le_bytes());
    }
    for word in [BLOCK_SIZE, blocks, count, 0] {
        bytes.extend(word.to_le_bytes());
    }
    for (number, chunk) in chunks.iter().enumerate() {
        let (kind, blocks, content) = match chunk {
            Chunk::Raw(raw) => (0xcac1_u16, raw.len() as u32 / BLOCK_SIZE, raw.clone()),
            Chunk::Fill(four, blocks) => (0xcac2, *blocks, four.to_vec()),
            Chunk::Hole(blocks) => (0xcac3, *blocks, vec![]),
            Chunk::Crc => {
                let crc = crc32fast::hash(&raw_of(&chunks[..number]));
                (0xcac4, 0, crc.to_le_bytes().to_vec())
            }
        };
        bytes.extend(kind.to_le_bytes());
        bytes.extend([0; 2]);
        bytes.extend(blocks.to_le_bytes());
        bytes.extend((12 + content.len() as u32).to_le_bytes());
        bytes.extend(content);
    }
    bytes
}

fn header(name: &str, size: &[u8; 12], kind: u8) -> [u8; BLOCK] {
    let mut header = [0; BLOCK];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[124..136].copy_from_slice(size);
    header[148..156].fill(b' ');
    header[156] = kind;
    header[257..265].copy_from_slice(b"ustar  \0");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

fn octal(size: usize) -> [u8; 12] {
    format!("{size:011o}\0").into_bytes().try_into().unwrap()
}

fn tar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, content) in members {
        bytes.extend(header(name, &octal(content.len()), b'0'));
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    }
    bytes.resize(bytes.len() + 2 * BLOCK, 0);
    bytes.resize(bytes.len().next_multiple_of(20 * BLOCK), 0);
    bytes
}

fn unpack(bytes: &[u8]) -> io::Result<(u64, Vec<u8>)> {
    let mut payload = payload(bytes)?;
    let mut raw = Vec::new();
    payload.bytes.read_to_end(&mut raw)?;
    Ok((payload.boot, raw))
}

/// The reason of a refusal.
fn refused(bytes: &[u8]) -> String {
    let error = unpack(bytes).unwrap_err();
    PlainError::of(&error)
        .expect("a reason of ours")
        .to_string()
}

fn some_chunks() -> Vec<Chunk> {
    vec![
        Chunk::Raw(vec![7; 2 * BLOCK_SIZE as usize]),
        Chunk::Hole(3),
        Chunk::Crc,
        Chunk::Fill(*b"abcd", 2),
        Chunk::Raw(vec![1; BLOCK_SIZE as usize]),
        Chunk::Crc,
    ]
}

#[test]
fn a_partition_image_comes_out_as_it_is() {
    let image = [[3; BLOCK], [0; BLOCK]].concat();
    assert_eq!(unpack(&image).unwrap(), (0, image));
}

#[test]
fn an_archive_gives_the_boot_partition_and_then_the_root_file_system() {
    let (boot, system) = (vec![5; 1024], some_chunks());
    let bytes = tar(&[("boot", &boot), ("system", &sparse(&system))]);
    let raw = [boot.clone(), raw_of(&system)].concat();
    assert_eq!(unpack(&bytes).unwrap(), (1024, raw));
    let alone = tar(&[("./system", &sparse(&system))]);
    assert_eq!(unpack(&alone).unwrap(), (0, raw_of(&system)));
}

#[test]
fn a_size_from_eight_gibibytes_on_is_binary() {
    let mut size = [0; 12];
    size[0] = 0x80;
    size[4..].copy_from_slice(&(9_u64 << 30).to_be_bytes());
    let head = header("system", &size, b'0');
    assert_eq!(size_in(&head).unwrap(), 9 << 30);
    let bytes = [&head[..], &[9; BLOCK]].concat();
    assert!(refused(&bytes).contains("cut off"));
}

#[test]
fn an_archive_of_anything_else_is_refused() {
    let system = sparse(&some_chunks());
    let (boot, odd) = (vec![5; 1024], vec![5; 1000]);
    for (members, why) in [
        (&[("etc", &boot[..])][..], "something else"),
        (&[("system", &system), ("boot", &boot)], "more than"),
        (&[("boot", &boot), ("boot", &boot)], "more than"),
        (&[("system", &system), ("system", &system)], "more than"),
        (&[("boot", &boot)], "`system` is missing"),
        (&[("boot", &odd), ("system", &system)], "whole sectors"),
        (&[("system", &odd)], "multiple of 512"),
        (&[("system", b"")], "multiple of 512"),
    ] {
        let found = refused(&tar(members));
        assert!(found.contains(why), "{why}: {found}");
    }
    let link = header("system", &octal(0), b'2');
    assert!(refused(&link).contains("regular file"));
    let mut damaged = tar(&[("system", &boot)]);
    damaged[0] = b'S';
    assert!(refused(&damaged).contains("damaged"));
    let mut more = tar(&[("system", &boot)]);
    more.push(1);
    assert!(refused(&more).contains("bytes follow"));
}

#[test]
fn each_length_of_a_sparse_image_is_checked() {
    let change = |at: usize, bytes: &[u8]| {
        let mut image = sparse(&some_chunks());
        image[at..at + bytes.len()].copy_from_slice(bytes);
        refused(&tar(&[("system", &image)]))
    };
    // Of the file's header: version, lengths of headers, of a block, blocks, chunks.
    assert!(change(4, &[2]).contains("version"));
    assert!(change(8, &[27]).contains("headers"));
    assert!(change(10, &[11]).contains("headers"));
    assert!(change(12, &[0, 0]).contains("blocks have no length"));
    assert!(change(12, &[2, 16]).contains("blocks have no length"));
    assert!(change(16, &[9]).contains("fewer blocks"));
    assert!(change(16, &[7]).contains("more blocks"));
    assert!(change(20, &[5]).contains("longer than its image"));
    assert!(change(20, &[7]).contains("cut off"));
    // Of the first chunk: kind, blocks, length.
    assert!(change(28, &[0xc5]).contains("unknown kind"));
    assert!(change(32, &[1]).contains("length that it says"));
    assert!(change(36, &[0]).contains("length that it says"));
    // A byte of its content.
    assert!(change(50, &[8]).contains("checksum"));
    let image = sparse(&some_chunks());
    for length in [3, 20, 28, 35, 1000, image.len() - 1] {
        let found = unpack(&tar(&[("system", &image[..length])]));
        assert!(found.is_err(), "{length} bytes");
    }
}

fn chunk() -> impl Strategy<Value = Chunk> {
    let block = BLOCK_SIZE as usize;
    prop_oneof![
        (any::<u8>(), 0_usize..3).prop_map(move |(byte, n)| Chunk::Raw(vec![byte; n * block])),
        (any::<[u8; 4]>(), 0_u32..3).prop_map(|(four, n)| Chunk::Fill(four, n)),
        (0_u32..4).prop_map(Chunk::Hole),
        Just(Chunk::Crc),
    ]
}

proptest! {
    #[test]
    fn what_was_packed_comes_out(
        mut boot in proptest::collection::vec(chunk(), 0..6),
        mut system in proptest::collection::vec(chunk(), 0..6),
    ) {
        boot.push(Chunk::Hole(1));
        system.push(Chunk::Fill(*b"last", 1));
        let bytes = tar(&[("boot", &sparse(&boot)), ("system", &sparse(&system))]);
        let (boot, system) = (raw_of(&boot), raw_of(&system));
        let size = boot.len() as u64;
        prop_assert_eq!(unpack(&bytes).unwrap(), (size, [boot, system].concat()));
    }

    #[test]
    fn a_cut_off_archive_is_never_taken_for_a_whole_one(part in 0.0..1.0) {
        let whole = tar(&[("boot", &[5; 1024]), ("system", &sparse(&some_chunks()))]);
        // Without the zeros at its end it is whole still: they only fill up.
        let content = whole.iter().rposition(|byte| *byte != 0).unwrap();
        let cut = 512 + ((content - 512) as f64 * part) as usize;
        prop_assert!(unpack(&whole[..cut]).is_err(), "{cut} of {content} bytes");
    }

    #[test]
    fn no_byte_that_is_turned_gets_by_a_panic(at in 0_usize..20_000, bits in 1_u8..) {
        let mut bytes = tar(&[("boot", &[5; 1024]), ("system", &sparse(&some_chunks()))]);
        let at = at % bytes.len();
        bytes[at] ^= bits;
        let limit = 1 << 20;
        if let Ok(payload) = payload(&bytes[..]) {
            let _ = io::copy(&mut payload.bytes.take(limit), &mut io::sink());
        }
    }
}
