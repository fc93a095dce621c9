//! `fwupdatectl hub invoke`: start an update by direct method and, with `--watch`, tell each change of
//! the twin until the update has ended. Outages of the hub in between are told and survived.

use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout_at};

use super::{
    client::{HubClient, MethodCall},
    fault::HubError,
    progress::{Meaning, Seen, Snapshot, Tracker},
};
use crate::{
    ctl::{exit, output::clean, progress::Display},
    daemon::control_names::{Answer, InstallRequest},
    update::{
        digest::Sha256,
        failure::{Coded, chain},
        status::iso_millis,
    },
};

/// Pause between two looks at the twin.
const POLL_PAUSE: Duration = Duration::from_millis(500);

/// After this long a device that reports nothing is told of.
const SILENCE: Duration = Duration::from_secs(10);

/// The longest pause while the hub does not answer.
const OUTAGE_PAUSE_MAX: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub(super) struct InvokeArgs {
    /// The device
    #[arg(value_parser = super::device_id)]
    device: String,
    /// The image's address, https://
    #[arg(long, value_name = "URL")]
    uri: crate::ctl::UriArgument,
    /// The version that the image must have
    #[arg(long, value_name = "VERSION")]
    version: Option<String>,
    /// The digest of the file at URL, 64 hex digits
    #[arg(long, value_name = "HEX")]
    sha256: Option<Sha256>,
    /// A name for this update; the device makes one when absent
    #[arg(long)]
    id: Option<String>,
    /// Do not wait for the device's policy, and forget that this image was rolled back before; no check is skipped
    #[arg(long)]
    force: bool,
    /// The method's name
    #[arg(long, value_name = "NAME", default_value = "firmwareUpdate")]
    method: String,
    /// Seconds that the device may take to answer
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(5..=300))]
    response_timeout: u64,
    /// Seconds to wait for the device to come online
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=300))]
    connect_timeout: u64,
    /// Go on until the update has ended; the exit code tells how
    #[arg(long)]
    watch: bool,
    /// With --watch: stop waiting after this long
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = super::super::duration)]
    timeout: Duration,
    /// Print one JSON document per line instead of text
    #[arg(long)]
    json: bool,
}

/// What is told on standard output, as text or JSON.
struct Teller<'a> {
    device: &'a str,
    json: bool,
    display: Display,
}

impl Teller<'_> {
    fn event(&self, event: &str, mut document: Value, text: Option<String>) {
        if self.json {
            document["event"] = json!(event);
            document["time"] = json!(iso_millis(Timestamp::now()));
            document["deviceId"] = json!(self.device);
            self.display.line(document.to_string());
        } else if let Some(text) = text {
            self.display.line(clean(&text));
        }
    }

    fn change(&mut self, snapshot: &Snapshot) {
        if self.json {
            self.event(
                "change",
                json!({"firmwareUpdate": snapshot.section()}),
                None,
            );
        } else {
            self.display.show(snapshot.view());
        }
    }

    fn end(&self, result: &str, text: String) {
        self.event("end", json!({"result": result}), Some(text));
    }
}

pub(super) async fn run(client: &HubClient, arguments: InvokeArgs) -> Result<u8, HubError> {
    let InvokeArgs {
        device,
        uri,
        version,
        sha256,
        id,
        force,
        ..
    } = &arguments;
    let request = InstallRequest {
        fw_package_uri: uri.0.clone()?,
        fw_version: version.clone(),
        fw_package_sha256: *sha256,
        update_id: id.clone(),
        force: *force,
    };
    let deadline = Instant::now() + arguments.timeout;
    // What the twin says before the call is what an older update left there.
    let before = match arguments.watch {
        true => Snapshot::of(&client.twin(device).await?),
        false => Snapshot::default(),
    };
    let call = MethodCall {
        name: &arguments.method,
        payload: serde_json::to_value(&request).unwrap_or_default(),
        response_timeout: Duration::from_secs(arguments.response_timeout),
        connect_timeout: Duration::from_secs(arguments.connect_timeout),
    };
    let answer = client.invoke(device, &call).await?;
    let mut teller = Teller {
        device,
        json: arguments.json,
        display: Display::new(),
    };
    teller.event(
        "answer",
        json!({"status": answer.status, "payload": answer.payload}),
        Some(format!(
            "{device} answered {}: {}",
            answer.status, answer.payload
        )),
    );
    let answer = Answer {
        // A status that is none of HTTP's is no acceptance, whatever it is.
        status: u16::try_from(answer.status).unwrap_or_default(),
        body: answer.payload,
    };
    if !answer.accepted() {
        teller.display.note(clean(&format!(
            "{device} did not take the update: {}",
            answer.text()
        )));
    }
    if !answer.accepted() || !arguments.watch {
        return Ok(exit::for_answer(answer.status));
    }
    if teller.display.is_interactive() {
        teller
            .display
            .note("Ctrl-C ends the watching, not the update");
    }
    let tracker = Tracker::new(answer.update_id().map(str::to_owned), before);
    watch(client, tracker, &mut teller, deadline).await
}

async fn watch(
    client: &HubClient,
    mut tracker: Tracker,
    teller: &mut Teller<'_>,
    deadline: Instant,
) -> Result<u8, HubError> {
    let device = teller.device;
    let mut shown = Snapshot::default();
    let mut outage_pause = None;
    let mut silent_until = Some(Instant::now() + SILENCE);
    loop {
        let Ok(twin) = timeout_at(deadline, client.twin_once(device)).await else {
            break;
        };
        let pause = match twin {
            Err(error @ HubError::DeviceNotFound { .. }) => return Err(error),
            Err(error) => {
                if outage_pause.is_none() {
                    let text = format!("{} [{}]; still watching", chain(&error), error.code());
                    teller.display.note(clean(&text));
                }
                let pause = outage_pause.map_or(POLL_PAUSE, |pause: Duration| pause * 2);
                *outage_pause.insert(pause.min(OUTAGE_PAUSE_MAX))
            }
            Ok(twin) => {
                if outage_pause.take().is_some() {
                    teller.display.note("the hub answers again");
                }
                let now = Snapshot::of(&twin);
                match tracker.see(&now) {
                    Seen::Nothing => {
                        if silent_until
                            .take_if(|until| *until <= Instant::now())
                            .is_some()
                        {
                            let text = format!(
                                "{device} took the update, and its twin shows nothing of it yet; still watching"
                            );
                            teller.display.note(clean(&text));
                        }
                    }
                    Seen::Superseded(by) => {
                        teller.end("superseded", format!("{device}: another update ({by}) took over; how this one ended is not known"));
                        return Ok(exit::UNDECIDED);
                    }
                    Seen::State(meaning) => {
                        silent_until = None;
                        if now.section() != shown.section() {
                            teller.change(&now);
                            shown = now;
                        }
                        match meaning {
                            Meaning::UnderWay => {}
                            Meaning::Complete => {
                                teller.end("complete", format!("{device}: the update is complete"));
                                return Ok(exit::OK);
                            }
                            Meaning::Failed => {
                                teller.end("failed", format!("{device}: the update failed"));
                                return Ok(exit::FAILED);
                            }
                        }
                    }
                }
                POLL_PAUSE
            }
        };
        if timeout_at(deadline, sleep(pause)).await.is_err() {
            break;
        }
    }
    teller.end(
        "undecided",
        format!("{device}: stopped waiting; the update may go on"),
    );
    Ok(exit::UNDECIDED)
}
