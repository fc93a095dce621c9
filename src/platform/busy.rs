//! A device or lock that is busy is asked for again for half a second before it counts as held. Tools that look at a device
//! (fsck, mkfs, a tool that attaches it) claim it for a moment; and what a process has just closed, or held when it was
//! killed, stays open in a child that it starts in that moment, until the child runs its program.

use std::{thread, time::Duration};

const RETRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(100);

/// Tries again as long as the error says busy, so many times and so far apart. Blocks.
pub(super) fn patiently<T, E>(
    mut attempt: impl FnMut() -> Result<T, E>,
    is_busy: impl Fn(&E) -> bool,
) -> Result<T, E> {
    for _ in 0..RETRIES {
        match attempt() {
            Err(error) if is_busy(&error) => thread::sleep(PAUSE),
            done => return done,
        }
    }
    attempt()
}
