//! The bytes of a U-Boot environment, as U-Boot's `env/common.c` and `tools/env/fw_env.c` read and write
//! them. Pure.
//!
//! ```text
//! single:     CRC32 (little endian, over data)                 data
//! redundant:  CRC32 (little endian, over data)  flags (1 byte) data
//! data:       name=value NUL name=value NUL ... NUL, then padding
//! ```
//! The CRC does not cover the flags byte. Of two good copies the one with the higher flags is newer; the
//! byte counts up and wraps from 255 to 0.

use std::fmt;

/// Bytes of the CRC.
const CRC: usize = 4;
/// Where the flags byte is in a redundant copy.
pub(super) const FLAGS_AT: u64 = CRC as u64;
/// Boolean flags: the copy in force, and one that no longer is (U-Boot, `include/env_internal.h`).
pub(super) const FLAG_ACTIVE: u8 = 1;
pub(super) const FLAG_OBSOLETE: u8 = 0;

/// The variables, in the order in which they stand.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Env {
    variables: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A name or value that no environment can hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VariableError {
    /// Names have at least one character, no `=` and no NUL.
    #[error("`{0}` is not a variable's name: it is empty, or has `=` or a NUL in it")]
    Name(String),
    /// Values have no NUL.
    #[error("the value of {0} has a NUL in it")]
    Value(String),
}

impl Env {
    /// The value of `name`; `None` when it is not set, or is not UTF-8.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.variables.iter().find(|(n, _)| n == name.as_bytes())?;
        std::str::from_utf8(value).ok()
    }

    /// Sets `name`; an empty value removes it, as in U-Boot.
    ///
    /// # Errors
    /// [`VariableError`]; nothing changes then.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), VariableError> {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(VariableError::Name(name.to_owned()));
        }
        if value.contains('\0') {
            return Err(VariableError::Value(name.to_owned()));
        }
        if value.is_empty() {
            self.remove(name);
        } else {
            self.put(name.as_bytes().to_vec(), value.as_bytes().to_vec());
        }
        Ok(())
    }

    /// Removes `name`, if it is set.
    pub fn remove(&mut self, name: &str) {
        self.variables.retain(|(n, _)| n != name.as_bytes());
    }

    /// Names and values that are UTF-8, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let text = |bytes| std::str::from_utf8(bytes).ok();
        self.variables
            .iter()
            .filter_map(move |(name, value)| Some((text(name)?, text(value)?)))
    }

    /// How many variables there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.variables.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.variables.is_empty()
    }

    fn put(&mut self, name: Vec<u8>, value: Vec<u8>) {
        match self.variables.iter_mut().find(|(n, _)| *n == name) {
            Some((_, old)) => *old = value,
            None => self.variables.push((name, value)),
        }
    }
}

impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// One copy, as it lies on the medium.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// The flags byte; 0 in a single environment.
    pub flags: u8,
    /// The variables.
    pub env: Env,
}

/// Reads a copy; `None` when its CRC does not fit.
#[must_use]
pub fn decode(bytes: &[u8], redundant: bool) -> Option<Copy> {
    let (crc, rest) = bytes.split_at_checked(CRC)?;
    let (flags, data) = if redundant {
        rest.split_first().map(|(f, d)| (*f, d))?
    } else {
        (0, rest)
    };
    if crc32fast::hash(data).to_le_bytes() != crc {
        return None;
    }
    let mut env = Env::default();
    for entry in data.split(|byte| *byte == 0) {
        if entry.is_empty() {
            break;
        }
        // An entry without `=` is no variable; U-Boot passes over it too.
        if let Some(at) = entry.iter().position(|byte| *byte == b'=') {
            env.put(entry[..at].to_vec(), entry[at + 1..].to_vec());
        }
    }
    Some(Copy { flags, env })
}

/// The bytes of a copy of `size` bytes; `None` when the variables do not fit.
#[must_use]
pub fn encode(copy: &Copy, size: usize, redundant: bool) -> Option<Vec<u8>> {
    let head = CRC + usize::from(redundant);
    let mut data = Vec::with_capacity(size);
    for (name, value) in &copy.env.variables {
        data.extend_from_slice(name);
        data.push(b'=');
        data.extend_from_slice(value);
        data.push(0);
    }
    // Two NULs end even an environment without variables.
    data.push(0);
    if copy.env.variables.is_empty() {
        data.push(0);
    }
    if head + data.len() > size {
        return None;
    }
    data.resize(size - head, 0);
    let mut bytes = crc32fast::hash(&data).to_le_bytes().to_vec();
    if redundant {
        bytes.push(copy.flags);
    }
    bytes.extend_from_slice(&data);
    Some(bytes)
}

/// What the flags byte counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlagScheme {
    /// Writes, modulo 256: everywhere but on NOR flash.
    Counter,
    /// 1 in the copy in force, 0 in the other, 255 in an erased one.
    Boolean,
}

/// Which of two good copies, by their flags, is in force: 0 or 1 (U-Boot, `env_check_redund` and
/// `tools/env/fw_env.c`).
#[must_use]
pub fn newer(flags: [u8; 2], scheme: FlagScheme) -> usize {
    match (scheme, flags) {
        (FlagScheme::Boolean, [first, second]) => {
            let replaced = first == FLAG_OBSOLETE && second == FLAG_ACTIVE;
            usize::from(replaced || (first != 255 && second == 255))
        }
        (FlagScheme::Counter, [255, 0]) => 1,
        (FlagScheme::Counter, [0, 255]) => 0,
        (FlagScheme::Counter, [first, second]) => usize::from(second > first),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn env(variables: &[(&str, &str)]) -> Env {
        let mut env = Env::default();
        for (name, value) in variables {
            env.set(name, value).unwrap();
        }
        env
    }

    #[test]
    fn a_damaged_byte_anywhere_but_in_the_flags_is_noticed() {
        let copy = Copy {
            flags: 7,
            env: env(&[("a", "1"), ("bootcmd", "run x; boot")]),
        };
        let bytes = encode(&copy, 64, true).unwrap();
        assert_eq!(decode(&bytes, true), Some(copy));
        for at in 0..bytes.len() {
            let mut torn = bytes.clone();
            torn[at] ^= 0x10;
            assert_eq!(decode(&torn, true).is_some(), at == CRC, "byte {at}");
        }
    }

    #[test]
    fn the_flags_count_up_and_wrap() {
        let newer = |flags| newer(flags, FlagScheme::Counter);
        assert_eq!(newer([1, 2]), 1);
        assert_eq!(newer([2, 1]), 0);
        assert_eq!(newer([127, 128]), 1, "unsigned");
        assert_eq!(newer([255, 0]), 1);
        assert_eq!(newer([0, 255]), 0);
        assert_eq!(newer([5, 5]), 0);
    }

    #[test]
    fn boolean_flags_are_read_as_fw_env_reads_them() {
        for (flags, expected) in [
            ([1, 0], 0),
            ([0, 1], 1),
            ([1, 1], 0),
            ([0, 0], 0),
            ([255, 1], 0),
            ([1, 255], 1),
            ([0, 255], 1),
            ([255, 255], 0),
            ([7, 1], 0),
        ] {
            assert_eq!(newer(flags, FlagScheme::Boolean), expected, "{flags:?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_and_an_exact_fit_is_not() {
        let copy = Copy {
            flags: 0,
            env: env(&[("abc", "defg")]),
        };
        // CRC 4, `abc=defg` 8, two NULs.
        assert!(encode(&copy, 13, false).is_none());
        assert_eq!(
            decode(&encode(&copy, 14, false).unwrap(), false),
            Some(copy)
        );
    }

    #[test]
    fn names_and_values_that_would_corrupt_the_format_are_refused() {
        let mut env = Env::default();
        for name in ["", "a=b", "a\0b"] {
            assert!(env.set(name, "1").is_err(), "{name:?}");
        }
        assert!(env.set("a", "1\0b=2").is_err());
        assert_eq!(env, Env::default());
    }

    proptest! {
        #[test]
        fn any_variables_survive(
            variables in proptest::collection::vec(("[a-zA-Z0-9_.#:-]{1,12}", "[^\0]{1,30}"), 0..20),
            flags: u8,
            redundant: bool,
        ) {
            let mut env = Env::default();
            for (name, value) in &variables {
                env.set(name, value).unwrap();
            }
            let copy = Copy { flags: if redundant { flags } else { 0 }, env };
            let bytes = encode(&copy, 0x2000, redundant).unwrap();
            prop_assert_eq!(bytes.len(), 0x2000);
            prop_assert_eq!(decode(&bytes, redundant), Some(copy));
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>, redundant: bool) {
            let _ = decode(&bytes, redundant);
            // With a right CRC the parser is reached.
            let mut right = crc32fast::hash(&bytes).to_le_bytes().to_vec();
            right.extend_from_slice(&bytes);
            prop_assert!(decode(&right, false).is_some());
        }
    }
}
