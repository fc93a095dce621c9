//! The configurations, and the work through the devices that brings them about.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::configuration::{Configuration, Results};
use super::plan::{Plan, Status, patch};
use crate::clock;
use crate::hub::{Hub, IfMatch};
use crate::hub_error::{HubError, Kind};
use crate::query::Page;
use crate::start_error::StartError;
use crate::store;
use crate::twin::{Mode, SectionWrite, ServiceWrite};

/// Changes within this time are dealt with together.
const GATHER: Duration = Duration::from_millis(100);

/// All configurations. Its lock is taken alone or after the hub's, never before it.
pub(crate) struct ConfigurationBoard {
    state: Mutex<State>,
    /// One pass at a time, so that an older plan never overwrites a newer one.
    pass: Mutex<()>,
    file: Option<PathBuf>,
    interval: Duration,
    wake: Notify,
}

#[derive(Default)]
struct State {
    configurations: BTreeMap<String, Configuration>,
    /// Devices to look at again.
    touched: BTreeSet<String>,
    /// All devices are to be looked at again.
    all: bool,
}

impl ConfigurationBoard {
    /// With what was kept in the state directory, if there is one.
    pub(crate) fn open(directory: Option<&Path>, interval: Duration) -> Result<Self, StartError> {
        let file = directory.map(|directory| directory.join("configurations.json"));
        let kept = match &file {
            Some(file) => store::read(file)?,
            None => None,
        };
        Ok(Self {
            state: Mutex::new(State {
                configurations: kept.unwrap_or_default(),
                ..State::default()
            }),
            pass: Mutex::default(),
            file,
            interval,
            wake: Notify::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a device has changed, so that it is looked at again soon.
    pub(crate) fn touch(&self, device: &str) {
        let mut state = self.lock();
        if !state.configurations.is_empty() && !state.all {
            state.touched.insert(device.to_owned());
            self.wake.notify_one();
        }
    }

    /// Creates without `If-Match`, updates with it.
    pub(super) fn put(
        &self,
        id: &str,
        body: &Value,
        condition: &IfMatch,
    ) -> Result<Configuration, HubError> {
        let mut state = self.lock();
        let old = state.configurations.get(id);
        match (old, condition) {
            (Some(_), IfMatch::Absent) => {
                return Err(HubError::new(
                    Kind::Conflict,
                    format!("The configuration '{id}' exists already."),
                ));
            }
            (Some(old), condition) => condition.check(&old.etag, "the configuration's etag")?,
            (None, IfMatch::Absent) => {}
            (None, _) => return Err(no_configuration(id)),
        }
        let new = Configuration::from_body(id, body, old)?;
        state.configurations.insert(id.to_owned(), new.clone());
        self.changed(state);
        Ok(new)
    }

    pub(super) fn get(&self, id: &str) -> Result<Configuration, HubError> {
        let found = self.lock().configurations.get(id).cloned();
        found.ok_or_else(|| no_configuration(id))
    }

    pub(super) fn list(&self, top: usize) -> Vec<Configuration> {
        self.lock()
            .configurations
            .values()
            .take(top)
            .cloned()
            .collect()
    }

    pub(super) fn delete(&self, id: &str, condition: &IfMatch) -> Result<(), HubError> {
        let mut state = self.lock();
        let old = state.configurations.get(id);
        let old = old.ok_or_else(|| no_configuration(id))?;
        condition.check(&old.etag, "the configuration's etag")?;
        state.configurations.remove(id);
        self.changed(state);
        Ok(())
    }

    fn changed(&self, mut state: MutexGuard<'_, State>) {
        state.all = true;
        if let Some(file) = &self.file
            && let Err(error) = store::write_json(file, &state.configurations)
        {
            error!(
                "cannot save {}: {error}; changes since the last save are lost at the next start",
                file.display()
            );
        }
        self.wake.notify_one();
    }
}

fn no_configuration(id: &str) -> HubError {
    let shown: String = id.chars().take(140).collect();
    HubError::new(
        Kind::NotFound,
        format!("There is no configuration '{shown}'."),
    )
}

/// Keeps every device as the configurations want it, until told to stop.
pub(crate) async fn run(hub: Arc<Hub>, stop: CancellationToken) {
    let mut everything = true;
    loop {
        let board = hub.clone();
        let pass = tokio::task::spawn_blocking(move || board.apply_configurations(everything));
        tokio::select! {
            () = stop.cancelled() => return,
            _ = pass => {}
        }
        everything = tokio::select! {
            () = stop.cancelled() => return,
            () = hub.configurations.wake.notified() => {
                tokio::time::sleep(GATHER).await;
                false
            }
            () = tokio::time::sleep(hub.configurations.interval) => true,
        };
    }
}

impl Hub {
    /// Looks at every device, or at those that may have to change.
    pub(crate) fn apply_configurations(&self, everything: bool) {
        let board = &self.configurations;
        let _pass = board.pass.lock().unwrap_or_else(PoisonError::into_inner);
        let (plan, all, touched) = {
            let mut state = board.lock();
            let plan = Plan::new(state.configurations.values());
            let all = std::mem::take(&mut state.all) || everything;
            (plan, all, std::mem::take(&mut state.touched))
        };
        if all {
            self.device_ids()
                .iter()
                .for_each(|id| self.configure(id, &plan));
        } else {
            touched.iter().for_each(|id| self.configure(id, &plan));
        }
    }

    fn configure(&self, id: &str, plan: &Plan) {
        let mut state = self.lock();
        let state = &mut *state;
        let Some(device) = state.devices.get_mut(id) else {
            return;
        };
        let mut wanted = plan.for_twin(&*device);
        let twin = &mut device.record.twin;
        let old = &device.record.configurations;
        let patch = patch(twin.desired.values(), &old.settings, &wanted.settings);
        if patch.is_empty() && wanted == *old {
            return;
        }
        let mut push = None;
        if !patch.is_empty() {
            let write = ServiceWrite {
                tags: None,
                desired: Some(SectionWrite::Members(patch)),
            };
            match twin.write(&write, Mode::Merge, &clock::stamp()) {
                Ok(written) => push = written,
                Err(error) => {
                    warn!("a configuration cannot be applied to '{id}': {error}");
                    let of_all = wanted.statuses.values_mut();
                    of_all.for_each(|status| *status = Status::Targeted);
                    wanted.settings.clone_from(&old.settings);
                    if wanted == *old {
                        return;
                    }
                }
            }
        }
        device.record.configurations = wanted;
        if let Some(push) = push {
            self.push_desired(device, &mut state.faults, &push);
        }
        self.save_quietly(&device.record);
    }

    /// What the queries of a configuration find now.
    pub(super) fn configuration_results(&self, configuration: &Configuration) -> Results {
        let mut results = Results {
            targeted: 0,
            applied: 0,
            metrics: BTreeMap::new(),
        };
        for device in self.lock().devices.values() {
            let status = device.record.configurations.statuses.get(&configuration.id);
            results.targeted += usize::from(status.is_some());
            results.applied += usize::from(status == Some(&Status::Applied));
        }
        for (name, query) in configuration.metric_queries() {
            let (rows, _) = self.query(&query, &Page::whole());
            results.metrics.insert(name.clone(), rows.len());
        }
        results
    }
}
