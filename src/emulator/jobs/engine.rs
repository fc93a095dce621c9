//! Carries out what the schedule decides.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::job::Failure;
use super::request::{Operation, parse_condition};
use super::schedule::Action;
use crate::hub::{Hub, IfMatch};
use crate::hub_error::HubError;
use crate::methods::Call;
use crate::twin::Mode;

/// How long the engine rests when nothing is due.
const REST: Duration = Duration::from_secs(3600);

/// Runs jobs until told to stop; what is under way is given up then.
pub(crate) async fn run(hub: Arc<Hub>, stop: CancellationToken) {
    let mut tasks = JoinSet::new();
    let mut stops: HashMap<String, CancellationToken> = HashMap::new();
    loop {
        let actions = hub.jobs.step(|jobs, now| jobs.step(now));
        for action in actions {
            match action {
                Action::Select { job, condition } => {
                    let hub = hub.clone();
                    tasks.spawn_blocking(move || select(&hub, &job, &condition));
                }
                Action::Operate {
                    job,
                    device,
                    operation,
                } => {
                    let stopped = stops.entry(job.clone()).or_default().clone();
                    let hub = hub.clone();
                    tasks.spawn(async move {
                        let result = tokio::select! {
                            () = stopped.cancelled() => return,
                            result = operate(&hub, &device, &operation) => result,
                        };
                        let result = result.map_err(|error| Failure::from(&error));
                        hub.jobs
                            .change(|jobs, now| jobs.finished(&job, &device, result, now));
                    });
                }
                Action::Stop { job } => {
                    if let Some(stopped) = stops.remove(&job) {
                        stopped.cancel();
                    }
                }
            }
        }
        let next = hub.jobs.read().next_wake();
        tokio::select! {
            () = stop.cancelled() => return,
            () = hub.jobs.wake.notified() => {}
            () = tokio::time::sleep(until(next)) => {}
            Some(_) = tasks.join_next() => {}
        }
    }
}

fn until(next: Option<Timestamp>) -> Duration {
    let wait = next.map(|next| next.duration_since(Timestamp::now()));
    match wait.map(Duration::try_from) {
        None => REST,
        // It is due already.
        Some(Err(_)) => Duration::ZERO,
        // Not much longer than the clock can be trusted to run evenly.
        Some(Ok(wait)) => wait.min(REST),
    }
}

fn select(hub: &Hub, job: &str, condition: &str) {
    // It was read once before the job was taken on.
    let devices = match parse_condition(condition) {
        Ok(Some(condition)) => hub.devices_where(&condition),
        Ok(None) => hub.device_ids(),
        Err(_) => Vec::new(),
    };
    hub.jobs
        .change(|jobs, now| jobs.selected(job, devices, now));
}

/// Deals with one device; what it answered, if it was asked something.
async fn operate(
    hub: &Hub,
    device: &str,
    operation: &Operation,
) -> Result<Option<Value>, HubError> {
    hub.job_turn().await;
    match operation {
        Operation::Method(call) => {
            let answer = hub.invoke(device, &Call::parse(call)?).await?;
            let answer = json!({ "status": answer.status, "payload": answer.payload });
            Ok(Some(answer))
        }
        Operation::UpdateTwin(twin) => {
            let condition = IfMatch::parse(twin.get("etag").and_then(Value::as_str));
            hub.write_twin(device, twin, Mode::Merge, &condition)?;
            Ok(None)
        }
    }
}
