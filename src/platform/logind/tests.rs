//! logind, played by a peer that knows what it is asked for here.

use std::sync::{Arc, Mutex};

use super::*;

type Said = Arc<Mutex<Vec<String>>>;

/// `org.freedesktop.login1.Manager`.
struct Manager {
    said: Said,
    scheduled: (String, u64),
}

fn path(number: u32) -> zbus::OwnedObjectPath {
    format!("/org/freedesktop/login1/session/_{number}")
        .try_into()
        .unwrap()
}

#[zbus::interface(name = "org.freedesktop.login1.Manager")]
impl Manager {
    fn list_sessions(&self) -> Vec<ListedSession> {
        let session = |(number, user): (u32, &str)| {
            (
                number.to_string(),
                1000,
                user.to_owned(),
                String::new(),
                path(number),
            )
        };
        // The last one has ended before anyone asks for more.
        [
            (1, "root"),
            (2, "pi"),
            (3, "pi"),
            (4, "lightdm"),
            (5, "pi"),
            (6, "carol"),
            (7, "dave"),
        ]
        .map(session)
        .to_vec()
    }

    fn list_inhibitors(&self) -> Vec<ListedInhibitor> {
        let inhibitor = |(what, who, why, mode): (&str, &str, &str, &str)| {
            (
                what.to_owned(),
                who.to_owned(),
                why.to_owned(),
                mode.to_owned(),
                0,
                1,
            )
        };
        [
            ("shutdown:sleep", "apt", "packages are installed", "block"),
            ("sleep", "player", "music", "block"),
            ("shutdown", "ModemManager", "modems are told", "delay"),
            ("idle:shutdown", "editor", "unsaved text", "block-weak"),
        ]
        .map(inhibitor)
        .to_vec()
    }

    fn set_wall_message(&self, message: &str, enable: bool) {
        self.said
            .lock()
            .unwrap()
            .push(format!("wall {message} {enable}"));
    }

    fn schedule_shutdown(&mut self, kind: &str, at: u64) {
        self.said
            .lock()
            .unwrap()
            .push(format!("schedule {kind} {at}"));
        // Without `dry-`, as logind shows it.
        self.scheduled = ("reboot".to_owned(), at);
    }

    fn cancel_scheduled_shutdown(&mut self) -> bool {
        self.said.lock().unwrap().push("cancel".to_owned());
        self.scheduled = (String::new(), u64::MAX);
        true
    }

    #[zbus(property)]
    fn scheduled_shutdown(&self) -> (String, u64) {
        self.scheduled.clone()
    }
}

struct Session(&'static str, &'static str);

#[zbus::interface(name = "org.freedesktop.login1.Session")]
impl Session {
    #[zbus(property)]
    fn class(&self) -> &str {
        self.0
    }

    #[zbus(property)]
    fn state(&self) -> &str {
        self.1
    }
}

/// A connection to a logind where a shutdown is scheduled for `scheduled`; and what it is told.
async fn logind(scheduled: u64) -> (zbus::Connection, zbus::Connection, Said) {
    let said = Said::default();
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let manager = Manager {
        said: said.clone(),
        scheduled: (String::new(), scheduled),
    };
    let mut serving = zbus::connection::Builder::unix_stream(theirs)
        .server(zbus::Guid::generate())
        .p2p()
        .serve_at("/org/freedesktop/login1", manager);
    let sessions = [
        Session("user", "active"),
        Session("user", "online"),
        Session("user-early", "online"),
        Session("greeter", "online"),
        Session("manager", "active"),
        Session("user", "closing"),
    ];
    for (number, session) in (1..).zip(sessions) {
        serving = serving.serve_at(path(number), session);
    }
    let asking = zbus::connection::Builder::unix_stream(ours).p2p().build();
    let (serving, asking) = tokio::try_join!(serving.build(), asking).unwrap();
    (asking, serving, said)
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

#[tokio::test]
async fn a_user_is_who_has_a_session_of_their_own_that_is_not_about_to_end() {
    let (bus, _logind, _) = logind(0).await;
    assert_eq!(users_on(&bus).await.unwrap(), ["pi", "root"]);
}

#[tokio::test]
async fn an_inhibitor_is_what_blocks_a_shutdown() {
    let (bus, _logind, _) = logind(0).await;
    let found = inhibitors_on(&bus).await.unwrap();
    let names: Vec<_> = found
        .iter()
        .map(|inhibitor| inhibitor.who.as_str())
        .collect();
    assert_eq!(names, ["apt", "editor"]);
    assert_eq!(found[0].why, "packages are installed");
}

#[tokio::test]
async fn users_are_warned_by_a_rehearsal_which_can_be_taken_back() {
    for none in [0, u64::MAX] {
        let (bus, _logind, said) = logind(none).await;
        warn_on(&bus, "save your work", at(7)).await.unwrap();
        withdraw_on(&bus, at(7)).await.unwrap();
        let said = said.lock().unwrap();
        assert_eq!(
            *said,
            [
                "wall save your work true",
                "schedule dry-reboot 7000000",
                "cancel"
            ]
        );
    }
}

#[tokio::test]
async fn a_shutdown_that_someone_else_has_scheduled_stays() {
    let (bus, _logind, said) = logind(5_000_000).await;
    warn_on(&bus, "save your work", at(7)).await.unwrap();
    withdraw_on(&bus, at(7)).await.unwrap();
    assert_eq!(*said.lock().unwrap(), [""; 0]);
}

#[tokio::test]
async fn a_logind_that_says_nothing_is_given_up() {
    let silence = std::future::pending::<zbus::Result<()>>();
    let asked = within(Duration::from_millis(50), "inhibitors", silence).await;
    assert!(
        matches!(asked, Err(LogindError::Silent { .. })),
        "{asked:?}"
    );
}
