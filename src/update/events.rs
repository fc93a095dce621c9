//! What happens that a person may want to know: an id for each, the journal's `MESSAGE_ID`.
//!
//! An id never changes its meaning and is never used again: people look for it (`journalctl MESSAGE_ID=...`), and
//! the catalog (`systemd/fwupdated.catalog`) explains it (`journalctl -x`). A test compares the two. A line carries
//! it as the field `message_id`; what it is about stands in the fields `fwupdated_update_id`, `fwupdated_stage`,
//! `fwupdated_error_code`, `fwupdated_slot` and `fwupdated_version`.

/// Declares the ids, and the list of all.
macro_rules! events {
    ($($(#[$doc:meta])* $name:ident = $id:literal,)*) => {
        $($(#[$doc])* pub const $name: &str = $id;)*

        /// Every id there is, with its name here.
        pub const ALL: &[(&str, &str)] = &[$((stringify!($name), $name),)*];
    };
}

events! {
    /// The daemon starts.
    STARTED = "f4a91518b8646f40900d5268d9ab8b05",
    /// The daemon has stopped as it was told.
    STOPPED = "b2df73f88b2ced7764a12409f0257215",
    /// The daemon cannot run: its configuration or its state directory is of no use.
    CANNOT_RUN = "f520bb34d4a5f4edbd5dc3074f7f01ec",
    /// The running slot is known, and updates are possible.
    SLOT_FOUND = "bd52c676b32d1c26729a3b83982afad5",
    /// Something keeps updates from working, or will.
    PROBLEM_FOUND = "33c5875416c5a33aa265bcd54966649b",
    /// What was saved is lost or not understood.
    STATE_LOST = "8d0999af938cf072e6843866e1ad3347",
    /// Images that nobody signed are installed.
    UNSIGNED_ALLOWED = "54d4ea5e2c79451e9459de40ed3c32eb",
    /// The updater stands still.
    UPDATER_HANGS = "54cff13b70a341e3714f7c9a8a90bd51",

    /// The device has no identity for the hub.
    IDENTITY_MISSING = "6a09c076a1e62c9b74258590d37045a4",
    /// The hub connection stands.
    HUB_CONNECTED = "599d483f7ee2d23481cceddc98be79fc",
    /// There is no connection to the hub, which may pass.
    HUB_LOST = "6cb0242f505f11c5f4e8211461985a0b",
    /// The hub, or the device's own clock or files, are such that waiting alone will not bring a connection.
    HUB_REFUSED = "b4bc73dc4e2744542b6afad0a644cc99",

    /// A request (hub, desired property or local) was refused.
    REQUEST_REFUSED = "483b17fddd2a7c31001e9c319e110409",
    /// An update was accepted, and will go on whatever happens.
    UPDATE_ACCEPTED = "3a9a6fd60a5f3f5259505902adff0c6b",
    /// The daemon has started and goes on with an update.
    UPDATE_RESUMED = "d678c559ac8528f7ae7a3689b11d122a",
    /// An update waits until the policy lets it go on.
    UPDATE_WAITING = "ff7b805670c637b27019c962ae94fe70",
    /// The image's header is fetched and checked.
    IMAGE_CHECKED = "629d4ff6cce5d4d06aed7f19266e4aa4",
    /// The download begins, and the slot is written.
    DOWNLOAD_STARTED = "d7d095686ea69888931165358a810471",
    /// The download is at a halt and is tried again.
    DOWNLOAD_WAITS = "0913e872320344d3bbca6ef0200d0a08",
    /// Everything is on the slot, which is read back.
    DOWNLOAD_COMPLETE = "449932edc0dcbd208d63985e3e0a6d63",
    /// The slot's medium does not give back what it holds.
    MEDIUM_FAILING = "efd1603df05c0a483d235a5239f902b5",
    /// An update ended before its slot was armed.
    UPDATE_FAILED = "65dc327f21d9a23155cb20d1ce17ba5f",
    /// The slot was read back and is what was signed.
    SLOT_VERIFIED = "d852e8bbfea16dec1104cc16052d5eaa",
    /// The bootloader will boot the new slot on trial.
    SLOT_ARMED = "83f52030032b4b0bc910541dd5db334d",
    /// The device reboots into the new slot.
    REBOOTING = "1d4698143ea142d7a581425bbacdf4b3",
    /// The new slot runs on trial, and its health is looked at.
    TRIAL_BEGAN = "09bfc3ff2d87930b64d2385d9d3de07b",
    /// The trial failed.
    HEALTH_FAILED = "4e2965bcb28f51ca201693c79f0cf4ab",
    /// The new slot is healthy, and is being confirmed.
    HEALTHY = "36c11431bec2ec2d7a2ec53890e08d04",
    /// The new slot is confirmed: the update is complete.
    UPDATE_COMPLETE = "ce20a88826c3a1d1854af23b9d9bbac0",
    /// The device goes back to the old slot.
    ROLLING_BACK = "c44981ba26eea91d67c0d8733620a319",
    /// The old slot runs again: the update has failed.
    UPDATE_ROLLED_BACK = "a72a43889725f60783fa7f4d1a2657b8",

    /// Someone on the device goes back to what the other slot holds.
    GOING_BACK = "1d4247109333c7a075ed7662e9b857ed",
    /// Someone on the device confirmed the trial.
    CONFIRMED_BY_HAND = "b4b9d3ed02273821a0d103b753c202bb",
    /// Someone on the device marked the slot that does not run bad.
    SLOT_MARKED_BAD = "dde63169acf9028397e704393e109cea",
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_id_is_128_bits_in_the_journal_s_writing_and_stands_for_one_event() {
        let ids: BTreeSet<_> = ALL.iter().map(|(_, id)| id).collect();
        assert_eq!(ids.len(), ALL.len());
        let is_hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        for (name, id) in ALL {
            assert!(id.len() == 32 && id.chars().all(is_hex), "{name}");
        }
    }
}
