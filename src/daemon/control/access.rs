//! Who may have the daemon act.
//!
//! On the system bus: root, and members of the group that owns the socket, without a question; everyone else if polkit
//! says so, for the actions in `packaging/polkit/org.fwupdated1.policy`. Without polkit everyone else is refused.

use std::{
    collections::HashMap,
    ffi::CString,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use tokio::sync::Semaphore;
use tracing::info;
use zbus::{Connection, Variant, fdo, message::Flags, message::Header};

use crate::update::{
    events,
    failure::{Class, Failure, chain},
};

/// The group whose members may act; the package makes it.
const GROUP: &str = "fwupdated";
/// One at a time, so that callers who are refused cannot take the threads that the updater needs.
static LOOKUPS: Semaphore = Semaphore::const_new(1);
/// Refusals are told no more often: whoever is refused must not fill the journal, whose own limit would then leave out
/// lines of an update.
const TOLD_EVERY: Duration = Duration::from_secs(10);
/// What was told of refusals.
static TOLD: Mutex<Told> = Mutex::new(Told {
    last: None,
    left_out: 0,
});
/// CheckAuthorization's flag that lets polkit ask someone.
const ALLOW_USER_INTERACTION: u32 = 1;

/// What is asked for, as polkit knows it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Action {
    /// Start an update.
    Install,
    /// Give one up.
    Manage,
    /// Judge a slot, or go back to one.
    Mark,
}

impl Action {
    #[cfg(test)]
    pub(super) const ALL: [Self; 3] = [Self::Install, Self::Manage, Self::Mark];

    pub(super) fn id(self) -> &'static str {
        match self {
            Self::Install => "org.fwupdated1.install",
            Self::Manage => "org.fwupdated1.manage",
            Self::Mark => "org.fwupdated1.mark",
        }
    }
}

/// How it is decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Whoever could connect may act: the socket's mode has decided.
    Granted,
    /// By what the bus and polkit say of the caller.
    AsTheBusSays,
}

impl Access {
    /// # Errors
    /// `AccessDenied` with a sentence for people, or `InteractiveAuthorizationRequired` when a caller that lets polkit
    /// ask may get further.
    pub(super) async fn check(
        self,
        action: Action,
        header: &Header<'_>,
        connection: &Connection,
    ) -> fdo::Result<()> {
        if self == Self::Granted {
            return Ok(());
        }
        let denied = |why: &str| {
            let text = format!(
                "{} is not for this user: {why}; be root or in the group {GROUP}",
                action.id()
            );
            let failure = Failure::new("control-not-allowed", Class::Final, text);
            let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(before) = told.may_tell(Instant::now()) {
                info!(
                    message_id = events::REQUEST_REFUSED,
                    fwupdated_error_code = failure.code,
                    "refused on the system bus: {failure}{before}"
                );
            }
            failure.message
        };
        let Some(sender) = header.sender() else {
            return Err(fdo::Error::AccessDenied(denied("the call names no sender")));
        };
        let bus = fdo::DBusProxy::new(connection).await?;
        let uid = bus
            .get_connection_unix_user(sender.clone().into())
            .await
            .map_err(|error| fdo::Error::AccessDenied(denied(&chain(&error))))?;
        if uid == 0 || is_member(uid).await {
            return Ok(());
        }
        let interactive = header
            .primary()
            .flags()
            .contains(Flags::ALLOW_INTERACTIVE_AUTH);
        match ask_polkit(connection, sender.as_str(), action, interactive).await {
            Ok(Said::Yes) => Ok(()),
            Ok(Said::AskSomeone) => Err(fdo::Error::InteractiveAuthorizationRequired(denied(
                "polkit would have to ask someone",
            ))),
            Ok(Said::No) => Err(fdo::Error::AccessDenied(denied("polkit says no"))),
            Err(error) => {
                let why = format!("polkit cannot be asked ({})", chain(&error));
                Err(fdo::Error::AccessDenied(denied(&why)))
            }
        }
    }
}

/// When a refusal was told last, and how many were not since.
struct Told {
    last: Option<Instant>,
    left_out: u64,
}

impl Told {
    /// Whether a refusal at `now` may be told; what is to be said of those before it then.
    fn may_tell(&mut self, now: Instant) -> Option<String> {
        if self.last.is_some_and(|last| now < last + TOLD_EVERY) {
            self.left_out += 1;
            return None;
        }
        self.last = Some(now);
        Some(match std::mem::take(&mut self.left_out) {
            0 => String::new(),
            count => format!(" ({count} more since the last such line)"),
        })
    }
}

/// Whether the user is in the group, by the system's databases.
async fn is_member(uid: u32) -> bool {
    let look = move || {
        let group: Gid = Group::from_name(GROUP).ok()??.gid;
        let user = User::from_uid(Uid::from_raw(uid)).ok()??;
        let name = CString::new(user.name).ok()?;
        let groups = getgrouplist(&name, user.gid).ok()?;
        Some(groups.contains(&group))
    };
    let _turn = LOOKUPS.acquire().await;
    // Where the databases are may be far away (LDAP): not on a thread that others need.
    tokio::task::spawn_blocking(look)
        .await
        .ok()
        .flatten()
        .unwrap_or(false)
}

/// What polkit says.
enum Said {
    Yes,
    AskSomeone,
    No,
}

async fn ask_polkit(
    connection: &Connection,
    sender: &str,
    action: Action,
    interactive: bool,
) -> zbus::Result<Said> {
    let name = HashMap::from([("name", Variant::from(sender))]);
    let details = HashMap::<&str, &str>::new();
    let flags = if interactive {
        ALLOW_USER_INTERACTION
    } else {
        0
    };
    let answer = connection
        .call_method(
            Some("org.freedesktop.PolicyKit1"),
            "/org/freedesktop/PolicyKit1/Authority",
            Some("org.freedesktop.PolicyKit1.Authority"),
            "CheckAuthorization",
            &(("system-bus-name", name), action.id(), details, flags, ""),
        )
        .await?;
    let (yes, challenge, _): (bool, bool, HashMap<String, String>) = answer.body().deserialize()?;
    Ok(match (yes, challenge) {
        (true, _) => Said::Yes,
        (false, true) => Said::AskSomeone,
        (false, false) => Said::No,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_refused_again_and_again_does_not_fill_the_journal() {
        let mut told = Told {
            last: None,
            left_out: 0,
        };
        let start = Instant::now();
        let mut lines = Vec::new();
        for tenth in 0..1000 {
            lines.extend(told.may_tell(start + Duration::from_millis(100) * tenth));
        }
        assert_eq!(lines.len(), 10, "one in ten seconds");
        assert_eq!(lines[0], "");
        assert_eq!(lines[9], " (99 more since the last such line)");
    }

    #[test]
    fn polkit_s_file_has_each_action_and_lets_nobody_act_unasked() {
        let policy = include_str!("../../../packaging/polkit/org.fwupdated1.policy");
        for action in Action::ALL {
            let id = format!("<action id=\"{}\">", action.id());
            assert_eq!(policy.matches(&id).count(), 1, "{id}");
        }
        assert_eq!(policy.matches("<action id=").count(), Action::ALL.len());
        for (who, what) in [
            ("allow_any", "auth_admin"),
            ("allow_inactive", "auth_admin"),
            ("allow_active", "auth_admin"),
        ] {
            let line = format!("<{who}>{what}</{who}>");
            assert_eq!(policy.matches(&line).count(), Action::ALL.len(), "{line}");
        }
    }
}
