//! The object of the local interface, `org.fwupdated1.Manager`: what can be read and asked of the daemon on the device.
//!
//! Its description for other programs is `packaging/dbus/org.fwupdated1.xml`, which a test compares; for people,
//! `docs/reference/d-bus.md`. The number in the names is the version: what is there keeps its meaning, and what would
//! break callers becomes `org.fwupdated2`.

use std::{os::fd::OwnedFd, path::Path, time::Duration};

use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use zbus::{Connection, fdo, interface, message::Header};

use super::access::{Access, Action};
use crate::{
    daemon::{
        control_names::PATH,
        logging::answered,
        store::Store,
        updater::{Command, Published},
    },
    hub::method::{self, Answer, Methods},
    platform::local_file::LocalFile,
    update::{
        failure::{Class, Failure},
        request::{Origin, Request},
        status::Status,
        uri::PackageUri,
    },
};

/// Most of a detached signature's bytes that a caller may hand over; longer ones are none.
const SIGNATURE_LIMIT: usize = crate::image::DetachedSignatures::MAX_LEN;

/// What costs the updater or a thread something, and everyone may ask on the bus, is answered one at a time: however
/// many ask, whoever else waits for the updater waits for one of them at most.
static READS: Semaphore = Semaphore::const_new(1);

/// The object. Cheap to clone: one for each connection.
#[derive(Clone)]
pub struct Manager {
    commands: mpsc::Sender<Command>,
    published: watch::Receiver<Published>,
    store: Store,
    access: Access,
}

impl Manager {
    /// An object that sends what it is asked to the updater, and shows what that publishes.
    pub fn new(
        commands: mpsc::Sender<Command>,
        published: watch::Receiver<Published>,
        store: Store,
    ) -> Self {
        Self {
            commands,
            published,
            store,
            access: Access::AsTheBusSays,
        }
    }

    pub(super) fn with(&self, access: Access) -> Self {
        Self {
            access,
            ..self.clone()
        }
    }

    pub(super) fn published(&self) -> watch::Receiver<Published> {
        self.published.clone()
    }
}

#[interface(name = "org.fwupdated1.Manager")]
impl Manager {
    /// Everything there is to know, as JSON (docs/reference/method.md, "Status document").
    #[zbus(property)]
    fn status(&self) -> fdo::Result<String> {
        json(&self.published.borrow().status)
    }

    /// The daemon's version.
    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> String {
        env!("CARGO_PKG_VERSION").to_owned()
    }

    /// The version of what runs; empty when unknown.
    #[zbus(property)]
    fn firmware_version(&self) -> String {
        self.shown().firmware_version
    }

    /// The slot that holds the root file system, a or b; empty when the board could not say.
    #[zbus(property)]
    fn running_slot(&self) -> String {
        self.shown().running_slot
    }

    /// Whether an update is under way.
    #[zbus(property)]
    fn busy(&self) -> bool {
        self.shown().busy
    }

    /// The id of the update under way, else of the last one; empty when there was none.
    #[zbus(property)]
    fn update_id(&self) -> String {
        self.shown().update_id
    }

    /// How far that update is: waiting, downloading, downloadComplete, applying, rebooting, trial, applyComplete,
    /// downloadFailed or applyFailed; empty when there was none.
    #[zbus(property)]
    fn stage(&self) -> String {
        self.shown().stage
    }

    /// How much of that stage is done, 0 to 100; 0 while that is not known.
    #[zbus(property)]
    fn progress(&self) -> u32 {
        self.shown().progress
    }

    /// Why that update failed, or what keeps updates from working at all: a stable code (docs/reference/errors.md); empty
    /// when nothing is wrong.
    #[zbus(property)]
    fn error_code(&self) -> String {
        self.shown().error_code
    }

    /// Whether the hub is connected.
    #[zbus(property)]
    fn hub_connected(&self) -> bool {
        self.shown().hub_connected
    }

    /// Starts an update. In: the payload of the method firmwareUpdate (docs/reference/method.md). Out, as of every
    /// method that acts: {"status": like HTTP's, "body": {"message"} or {"code", "message"}}.
    async fn install(
        &self,
        request: String,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> fdo::Result<String> {
        self.may(Action::Install, &header, connection).await?;
        let answer = match parse(&request) {
            Ok(request) => self.ask(|reply| Command::Install { request, reply }).await,
            Err(answer) => answer,
        };
        answer_to("local install", &answer)
    }

    /// Starts an update from a file that the caller opened for reading. In: its absolute path, the file, the content of
    /// the detached signature beside it (empty when there is none), and the payload as for Install without fwPackageUri.
    async fn install_file(
        &self,
        path: String,
        file: zbus::OwnedFd,
        signature: Vec<u8>,
        request: String,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> fdo::Result<String> {
        self.may(Action::Install, &header, connection).await?;
        let answer = match file_request(&path, file.into(), signature, &request) {
            Ok((request, file)) => {
                self.ask(|reply| Command::InstallFile {
                    request,
                    file,
                    reply,
                })
                .await
            }
            Err(answer) => answer,
        };
        answer_to("local install of a file", &answer)
    }

    /// Gives up the update under way, until its slot is armed.
    async fn cancel(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> fdo::Result<String> {
        self.may(Action::Manage, &header, connection).await?;
        let answer = self.ask(|reply| Command::Cancel { reply }).await;
        answer_to("local cancel", &answer)
    }

    /// Lets the update that waits go on: the one with this id, with "" whichever it is; with now without waiting for
    /// anything else.
    async fn approve(
        &self,
        update_id: String,
        now: bool,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> fdo::Result<String> {
        self.may(Action::Manage, &header, connection).await?;
        let id = Some(update_id).filter(|id| !id.is_empty());
        let ask = |reply| Command::Approve { id, now, reply };
        let answer = self.ask(ask).await;
        answer_to("local approve", &answer)
    }

    /// Puts the update that waits off, the one with this id, with "" whichever it is, for so many seconds within the
    /// policy's limit.
    async fn defer(
        &self,
        update_id: String,
        seconds: u64,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> fdo::Result<String> {
        self.may(Action::Manage, &header, connection).await?;
        let id = Some(update_id).filter(|id| !id.is_empty());
        let by = Duration::from_secs(seconds);
        let answer = self.ask(|reply| Command::Defer { id, by, reply }).await;
        answer_to("local defer", &answer)
    }

    /// Rejects the trial boot under way; without one, tries what the other slot holds, if that was confirmed once.
    async fn rollback(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> fdo::Result<String> {
        self.may(Action::Mark, &header, connection).await?;
        let answer = self.ask(|reply| Command::GoBack { reply }).await;
        answer_to("local rollback", &answer)
    }

    /// Confirms the trial boot under way by hand.
    async fn mark_good(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> fdo::Result<String> {
        self.may(Action::Mark, &header, connection).await?;
        let answer = self.ask(|reply| Command::MarkGood { reply }).await;
        answer_to("local mark-good", &answer)
    }

    /// Marks a slot bad: a, b, running or other. The one on trial is rolled back; the spare one is not booted or gone
    /// back to until it is written again; the confirmed one is refused.
    async fn mark_bad(
        &self,
        slot: String,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> fdo::Result<String> {
        self.may(Action::Mark, &header, connection).await?;
        let answer = match slot.parse() {
            Ok(which) => self.ask(|reply| Command::MarkBad { which, reply }).await,
            Err(_) => {
                let text = "a slot is named a, b, running or other";
                Answer::error(400, &Failure::new("slot-name", Class::Final, text))
            }
        };
        answer_to("local mark-bad", &answer)
    }

    /// Both slots, as a JSON list: slot, running, confirmed, triesLeft, state, version, device, size, installed.
    async fn slots(&self) -> fdo::Result<String> {
        let _turn = READS.acquire().await;
        let (reply, slots) = oneshot::channel();
        // Either end is gone only while the daemon stops.
        let _ = self.commands.send(Command::Slots { reply }).await;
        match slots.await {
            Ok(slots) => json(&slots),
            Err(_) => Err(fdo::Error::Failed(Failure::stopping().to_string())),
        }
    }

    /// The last updates, at most so many, newest first, as a JSON list of what "update" is in the status document.
    async fn history(&self, count: u32) -> fdo::Result<String> {
        let _turn = READS.acquire().await;
        let store = self.store.clone();
        let read = tokio::task::spawn_blocking(move || store.history(count as usize)).await;
        match read {
            Ok(Ok(updates)) => json(&updates),
            Ok(Err(failure)) => Err(fdo::Error::Failed(failure.to_string())),
            Err(error) => Err(fdo::Error::Failed(error.to_string())),
        }
    }
}

impl Manager {
    async fn may(
        &self,
        action: Action,
        header: &Header<'_>,
        connection: &Connection,
    ) -> fdo::Result<()> {
        self.access.check(action, header, connection).await
    }

    async fn ask(&self, command: impl FnOnce(oneshot::Sender<Answer>) -> Command) -> Answer {
        let (reply, answer) = oneshot::channel();
        let sent = self.commands.send(command(reply)).await;
        match answer.await {
            Ok(answer) if sent.is_ok() => answer,
            _ => Answer::unavailable(&Failure::stopping()),
        }
    }

    fn shown(&self) -> Shown {
        Shown::of(&self.published.borrow().status)
    }
}

/// The properties that follow from the status.
#[derive(Debug, Default, PartialEq, Eq)]
struct Shown {
    firmware_version: String,
    running_slot: String,
    busy: bool,
    update_id: String,
    stage: String,
    progress: u32,
    error_code: String,
    hub_connected: bool,
}

impl Shown {
    fn of(status: &Status) -> Self {
        let update = status.update.as_ref();
        let stage = update.and_then(|update| serde_json::to_value(update.stage).ok());
        let error = update.and_then(|update| update.error.as_ref());
        Self {
            firmware_version: status.firmware_version.clone().unwrap_or_default(),
            running_slot: status.booted_slot.map_or("", |slot| slot.name()).to_owned(),
            busy: update.is_some_and(|update| !update.stage.is_final()),
            update_id: update.map(|update| update.id.clone()).unwrap_or_default(),
            stage: stage
                .as_ref()
                .and_then(|stage| stage.as_str())
                .unwrap_or_default()
                .to_owned(),
            progress: update.map_or(0, |update| update.progress.percent().into()),
            error_code: (status.problem.as_ref().or(error))
                .map(|failure| failure.code.clone())
                .unwrap_or_default(),
            hub_connected: status.hub.connected,
        }
    }
}

/// Signals each change of what is published on `connection`, until that ends or the updater does.
pub(super) async fn tell_changes(
    connection: &Connection,
    mut published: watch::Receiver<Published>,
) -> zbus::Result<()> {
    let server = connection.object_server();
    let interface = server.interface::<_, Manager>(PATH).await?;
    let emitter = interface.signal_emitter();
    let mut before = Shown::of(&published.borrow_and_update().status);
    loop {
        tokio::select! {
            changed = published.changed() => if changed.is_err() { return Ok(()) },
            () = connection.closed() => return Ok(()),
        }
        let now = Shown::of(&published.borrow_and_update().status);
        let manager = interface.get().await;
        manager.status_changed(emitter).await?;
        if now.firmware_version != before.firmware_version {
            manager.firmware_version_changed(emitter).await?;
        }
        if now.running_slot != before.running_slot {
            manager.running_slot_changed(emitter).await?;
        }
        if now.busy != before.busy {
            manager.busy_changed(emitter).await?;
        }
        if now.update_id != before.update_id {
            manager.update_id_changed(emitter).await?;
        }
        if now.stage != before.stage {
            manager.stage_changed(emitter).await?;
        }
        if now.progress != before.progress {
            manager.progress_changed(emitter).await?;
        }
        if now.error_code != before.error_code {
            manager.error_code_changed(emitter).await?;
        }
        if now.hub_connected != before.hub_connected {
            manager.hub_connected_changed(emitter).await?;
        }
        before = now;
    }
}

/// The document is the direct method's, under the name that the samples use.
fn parse(document: &str) -> Result<Request, Answer> {
    let name = "firmwareUpdate";
    let methods = Methods {
        update_names: vec![name.to_owned()],
        allow_reboot: false,
    };
    match method::parse(&methods, name, document.as_bytes())? {
        method::Command::Update(request) => Ok(Request {
            origin: Origin::Local,
            ..request
        }),
        other => Err(Answer::internal(&format!(
            "an install request was read as {other:?}"
        ))),
    }
}

/// The request to install a file that somebody opened.
fn file_request(
    path: &str,
    fd: OwnedFd,
    signature: Vec<u8>,
    document: &str,
) -> Result<(Request, LocalFile), Answer> {
    let wrong =
        |text: &str| Answer::error(400, &Failure::new("local-file-request", Class::Final, text));
    let path = Path::new(path);
    let uri = PackageUri::file(path)
        .filter(|_| !path.to_string_lossy().contains(char::is_control))
        .ok_or_else(|| wrong("the path must be absolute and without control characters"))?;
    if signature.len() > SIGNATURE_LIMIT {
        return Err(wrong("the file beside it is too long to be a signature"));
    }
    let mut members = match serde_json::from_str(document) {
        Ok(serde_json::Value::Object(members)) => members,
        _ => return Err(wrong("the request must be a JSON object")),
    };
    // Its other members are held to the same rules as in any request.
    let stand_in = PackageUri::unknown().secret().to_string();
    members.insert("fwPackageUri".to_owned(), stand_in.into());
    let request = parse(&serde_json::Value::Object(members).to_string())?;
    let file = LocalFile::handed_over(path, fd, signature)
        .map_err(|error| Answer::error(400, &Failure::from(&error)))?;
    Ok((Request { uri, ..request }, file))
}

fn answer_to(call: &str, answer: &Answer) -> fdo::Result<String> {
    answered(call, answer);
    json(&serde_json::json!({ "status": answer.status, "body": answer.body }))
}

fn json(document: &impl serde::Serialize) -> fdo::Result<String> {
    serde_json::to_string(document).map_err(|error| fdo::Error::Failed(error.to_string()))
}

#[cfg(test)]
mod tests;
