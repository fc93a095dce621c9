//! Who may have the daemon act.
//!
//! On the system bus: root, and members of the group that owns the socket, without a question; everyone else if polkit
//! says so, for the actions in `packaging/polkit/org.fwupdated1.policy`. Without polkit everyone else is refused.

use std::{collections::HashMap, ffi::CString};

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
            info!(
                message_id = events::REQUEST_REFUSED,
                fwupdated_error_code = failure.code,
                "refused on the system bus: {failure}"
            );
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
