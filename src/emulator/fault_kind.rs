//! The kinds of faults: the table of their names, what each takes and what it does. `GET /emulator` and the
//! parser both read it, so that nothing can be listed that is not understood.

/// The kinds of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FaultKind {
    Drop,
    ForgetSession,
    ExpireTokens,
    Outage,
    Down,
    Up,
    RefuseConnects,
    CloseConnects,
    FailSubscribes,
    DropAfterPackets,
    DelayTwinAnswers,
    SwallowTwinAnswers,
    FailTwinReads,
    FailTwinPatches,
    CorruptTwins,
    DropBeforePatch,
    DropAfterPatch,
    SwallowDesired,
    RepeatDesired,
    StaleDesired,
    CorruptDesired,
    DelayMethods,
    SwallowMethodAnswers,
    FailRegistrations,
    FailRequests,
    Impostor,
    Chaos,
    Calm,
}

/// How a kind is written and what it does.
pub(crate) struct Row {
    pub(crate) kind: FaultKind,
    pub(crate) name: &'static str,
    /// The parameter that a value right after the name is for, if it takes one.
    pub(crate) main: Option<&'static str>,
    /// The others.
    pub(crate) more: &'static [&'static str],
    pub(crate) does: &'static str,
}

const fn row(
    kind: FaultKind,
    name: &'static str,
    main: Option<&'static str>,
    more: &'static [&'static str],
    does: &'static str,
) -> Row {
    Row {
        kind,
        name,
        main,
        more,
        does,
    }
}

const COUNT: Option<&str> = Some("count");
const DEVICE: &[&str] = &["device"];
const STATUS: &[&str] = &["status", "retry-after", "device"];

/// Every kind, in the order in which they are listed.
pub(crate) const TABLE: &[Row] = &[
    row(
        FaultKind::Drop,
        "drop",
        None,
        DEVICE,
        "close the connection, or every one",
    ),
    row(
        FaultKind::ForgetSession,
        "forget-session",
        None,
        DEVICE,
        "the next connection has no subscriptions",
    ),
    row(
        FaultKind::ExpireTokens,
        "expire-tokens",
        None,
        &[],
        "every token used so far is expired, at once",
    ),
    row(
        FaultKind::Outage,
        "outage",
        Some("seconds"),
        &[],
        "go away, come back by itself",
    ),
    row(FaultKind::Down, "down", None, &[], "go away until ..."),
    row(FaultKind::Up, "up", None, &[], "... told to come back"),
    row(
        FaultKind::RefuseConnects,
        "refuse-connects",
        COUNT,
        &["code", "device"],
        "refuse CONNECTs with this CONNACK code (1 to 5; 3 unless given)",
    ),
    row(
        FaultKind::CloseConnects,
        "close-connects",
        COUNT,
        DEVICE,
        "close instead of a CONNACK",
    ),
    row(
        FaultKind::FailSubscribes,
        "fail-subscribes",
        COUNT,
        DEVICE,
        "answer SUBSCRIBE with a failure",
    ),
    row(
        FaultKind::DropAfterPackets,
        "drop-after-packets",
        COUNT,
        DEVICE,
        "close when so many packets more came in",
    ),
    row(
        FaultKind::DelayTwinAnswers,
        "delay-twin-answers",
        Some("milliseconds"),
        &["count", "device"],
        "answer twin requests late; 0 ends it",
    ),
    row(
        FaultKind::SwallowTwinAnswers,
        "swallow-twin-answers",
        COUNT,
        DEVICE,
        "carry out the request, lose the answer",
    ),
    row(
        FaultKind::FailTwinReads,
        "fail-twin-reads",
        COUNT,
        STATUS,
        "refuse twin reads (429 unless a status is given)",
    ),
    row(
        FaultKind::FailTwinPatches,
        "fail-twin-patches",
        COUNT,
        STATUS,
        "refuse reported patches (429 unless a status is given)",
    ),
    row(
        FaultKind::CorruptTwins,
        "corrupt-twins",
        COUNT,
        DEVICE,
        "answer twin reads with what is no JSON",
    ),
    row(
        FaultKind::DropBeforePatch,
        "drop-before-patch",
        COUNT,
        DEVICE,
        "close instead of applying a patch",
    ),
    row(
        FaultKind::DropAfterPatch,
        "drop-after-patch",
        COUNT,
        DEVICE,
        "apply a patch, close instead of answering",
    ),
    row(
        FaultKind::SwallowDesired,
        "swallow-desired",
        COUNT,
        DEVICE,
        "lose pushes of desired properties",
    ),
    row(
        FaultKind::RepeatDesired,
        "repeat-desired",
        COUNT,
        DEVICE,
        "push desired properties twice",
    ),
    row(
        FaultKind::StaleDesired,
        "stale-desired",
        COUNT,
        DEVICE,
        "push the desired change before once more, after the new one",
    ),
    row(
        FaultKind::CorruptDesired,
        "corrupt-desired",
        COUNT,
        DEVICE,
        "push what is no JSON",
    ),
    row(
        FaultKind::DelayMethods,
        "delay-methods",
        Some("milliseconds"),
        &["count", "device"],
        "send method requests late; 0 ends it",
    ),
    row(
        FaultKind::SwallowMethodAnswers,
        "swallow-method-answers",
        COUNT,
        DEVICE,
        "lose what the device answers",
    ),
    row(
        FaultKind::FailRegistrations,
        "fail-registrations",
        COUNT,
        STATUS,
        "refuse requests to provisioning (429 unless a status is given)",
    ),
    row(
        FaultKind::FailRequests,
        "fail-requests",
        COUNT,
        &["status", "retry-after"],
        "refuse service calls over REST (429 unless a status is given)",
    ),
    row(
        FaultKind::Impostor,
        "impostor",
        Some("milliseconds"),
        &["seconds", "device"],
        "a second client with the device's identity, which connects each so many milliseconds (for 10 seconds unless given); 0 ends it",
    ),
    row(
        FaultKind::Chaos,
        "chaos",
        Some("milliseconds"),
        &["seconds", "seed"],
        "one fault after another by chance, about each so many milliseconds, such that a right device recovers; 0 ends it",
    ),
    row(
        FaultKind::Calm,
        "calm",
        None,
        DEVICE,
        "end every fault in force",
    ),
];

impl FaultKind {
    pub(crate) fn row(self) -> &'static Row {
        TABLE
            .iter()
            .find(|row| row.kind == self)
            .expect("every kind is in the table")
    }

    /// Its name, as it is written.
    pub(crate) fn name(self) -> &'static str {
        self.row().name
    }
}

impl Row {
    /// Name and parameters as in a query: `refuse-connects?count=N[&code=N][&device=ID]`.
    pub(crate) fn usage(&self) -> String {
        let mut text = self.name.to_owned();
        let value = |name: &str| if name == "device" { "ID" } else { "N" };
        if let Some(main) = self.main {
            text.push_str(&format!("?{main}=N"));
        }
        for (at, name) in self.more.iter().enumerate() {
            let first = at == 0 && self.main.is_none();
            text.push_str(&format!(
                "[{}{name}={}]",
                if first { '?' } else { '&' },
                value(name)
            ));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_each_kind_and_each_name_once() {
        for row in TABLE {
            assert_eq!(row.kind.row().name, row.name);
            assert_eq!(
                TABLE.iter().filter(|other| other.name == row.name).count(),
                1
            );
        }
        assert_eq!(TABLE[0].usage(), "drop[?device=ID]");
        let refuse = FaultKind::RefuseConnects.row().usage();
        assert_eq!(refuse, "refuse-connects?count=N[&code=N][&device=ID]");
    }
}
