//! The boot loader: the environment read, and written, by U-Boot's rules (`env/common.c`, `env_check_redund`), with
//! nothing of the daemon's own reader. What its variables mean: `script.rs`.

use std::collections::BTreeMap;

/// Bytes of one copy: CRC-32 (little endian, of the data), flags, data.
pub(crate) const COPY: usize = 0x4000;
const HEADER: usize = 5;

/// The variables.
pub(crate) type Variables = BTreeMap<String, String>;

/// The flags and the variables of one copy, if its CRC is right.
pub(crate) fn decode(copy: &[u8]) -> Option<(u8, Variables)> {
    if crc32fast::hash(&copy[HEADER..]).to_le_bytes() != copy[..4] {
        return None;
    }
    let text = &copy[HEADER..];
    let end = text.windows(2).position(|pair| pair == [0, 0])?;
    let variables = std::str::from_utf8(&text[..end]).ok()?;
    let variables = variables
        .split('\0')
        .filter_map(|variable| variable.split_once('='));
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    Some((copy[4], variables.collect()))
}

/// Both copies, where they are good.
pub(crate) fn copies(bytes: &[u8]) -> [Option<(u8, Variables)>; 2] {
    [decode(&bytes[..COPY]), decode(&bytes[COPY..2 * COPY])]
}

/// The environment that U-Boot uses, and which copy it is; `None`: it would use its compiled-in defaults.
pub(crate) fn read(bytes: &[u8]) -> Option<(usize, Variables)> {
    match copies(bytes) {
        [None, None] => None,
        [Some((_, first)), None] => Some((0, first)),
        [None, Some((_, second))] => Some((1, second)),
        // The flags count up, and start again at 0 after 255.
        [Some((first_flags, first)), Some((second_flags, second))] => {
            let second_is_newer = match (first_flags, second_flags) {
                (255, 0) => true,
                (0, 255) => false,
                _ => second_flags > first_flags,
            };
            Some(if second_is_newer {
                (1, second)
            } else {
                (0, first)
            })
        }
    }
}

/// One copy with these variables.
pub(crate) fn encode(variables: &Variables, flags: u8) -> Vec<u8> {
    let mut copy = vec![0; HEADER];
    for (name, value) in variables {
        copy.extend_from_slice(format!("{name}={value}\0").as_bytes());
    }
    copy.resize(COPY, 0);
    let crc = crc32fast::hash(&copy[HEADER..]).to_le_bytes();
    copy[..4].copy_from_slice(&crc);
    copy[4] = flags;
    copy
}

/// The write that puts `variables` in force: where, and what.
pub(crate) fn save(bytes: &[u8], variables: &Variables) -> (u64, Vec<u8>) {
    let (index, _) = read(bytes).expect("what is changed was read before");
    let flags = bytes[index * COPY + 4].wrapping_add(1);
    let other = 1 - index;
    ((other * COPY) as u64, encode(variables, flags))
}
