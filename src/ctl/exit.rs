//! The exit codes of `fwupdatectl`. Scripts rely on them: `docs/reference/exit-codes.md` lists them, and
//! none ever changes its meaning.

/// Done, and what was asked about is well.
pub const OK: u8 = 0;
/// What was asked about failed: the update, the verification.
pub const FAILED: u8 = 1;
/// Wrong usage or input: arguments, configuration, connection string, an unknown device, an answer 400.
pub const USAGE: u8 = 2;
/// The daemon, the hub or the device cannot be reached, or does not answer.
pub const UNREACHABLE: u8 = 3;
/// Understood and refused: no permission, busy, forbidden by policy, unknown method.
pub const REFUSED: u8 = 4;
/// Stopped waiting while the outcome was still open.
pub const UNDECIDED: u8 = 5;
/// The reader of the output went away (as a shell reports SIGPIPE).
pub const BROKEN_PIPE: u8 = 141;

/// The exit code for an answer in the manner of HTTP, whoever gave it.
#[must_use]
pub fn for_answer(status: u16) -> u8 {
    match status {
        200..300 => OK,
        400 => USAGE,
        _ => REFUSED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_lists_each_code() {
        let page = include_str!("../../docs/reference/exit-codes.md");
        let listed: Vec<u8> = page
            .lines()
            .filter_map(|line| line.strip_prefix("| ")?.split(' ').next()?.parse().ok())
            .collect();
        assert_eq!(
            listed,
            [
                OK,
                FAILED,
                USAGE,
                UNREACHABLE,
                REFUSED,
                UNDECIDED,
                BROKEN_PIPE
            ]
        );
    }
}
