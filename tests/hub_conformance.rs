//! The real daemon against *a hub*: the emulator, or a real IoT Hub.
//!
//! ```text
//! cargo test --test hub_conformance                           the emulator, started for it
//! FWUPDATED_CONFORMANCE_HUB='HostName=...' cargo test ...     the hub that this service connection string names
//! ... -- --include-ignored                                    also what takes more than five minutes
//! ```
//!
//! Nothing here asks for more than every hub has: the service's REST calls, and MQTT for devices. What must go wrong
//! goes wrong by such means too: a device is disabled, its key changes, a second client takes its identity, a relay of
//! the suite's own cuts the connection. Where hubs differ, or nothing that is published says what they do, a test
//! accepts what it meets and notes it; the notes are printed at the end.
//!
//! Each test registers a device of its own, named `fwupdated-conformance-...`, and deletes it, also when it fails.

mod support;

#[path = "hub_conformance/client.rs"]
mod client;
#[path = "hub_conformance/connections.rs"]
mod connections;
#[path = "hub_conformance/desired.rs"]
mod desired;
#[path = "hub_conformance/fleet.rs"]
mod fleet;
#[path = "hub_conformance/hub.rs"]
mod hub;
#[path = "hub_conformance/identity.rs"]
mod identity;
#[path = "hub_conformance/methods.rs"]
mod methods;
#[path = "hub_conformance/notes.rs"]
mod notes;
#[path = "hub_conformance/probe_refusals.rs"]
mod probe_refusals;
#[path = "hub_conformance/probe_services.rs"]
mod probe_services;
#[path = "hub_conformance/probe_sessions.rs"]
mod probe_sessions;
#[path = "hub_conformance/relay.rs"]
mod relay;
#[path = "hub_conformance/scene.rs"]
mod scene;
#[path = "hub_conformance/service.rs"]
mod service;
#[path = "hub_conformance/updates.rs"]
mod updates;

use std::{
    process::ExitCode,
    sync::{Arc, OnceLock},
};

use libtest_mimic::{Arguments, Trial};
use tokio::runtime::Runtime;

use hub::Hub;

/// Tests that run at a time, unless the caller says otherwise: they mostly wait.
const AT_A_TIME: usize = 6;

/// The runtime that everything shares, and the hub, which is there once a test asks for it.
struct Suite {
    runtime: Runtime,
    hub: OnceLock<Arc<Hub>>,
}

impl Suite {
    fn hub(&self) -> Arc<Hub> {
        let hub = self
            .hub
            .get_or_init(|| Arc::new(self.runtime.block_on(Hub::find())));
        Arc::clone(hub)
    }

    /// Deletes what is left at the hub, whatever came in between, and says what was seen there.
    fn finish(&self) {
        if let Some(hub) = self.hub.get() {
            self.runtime.block_on(hub.leave_no_trace());
            hub.print_notes();
        }
    }
}

/// A test out of a function `async fn(Arc<Hub>)` that says in its name what must hold.
macro_rules! claim {
    ($suite:ident, $module:ident::$name:ident) => {{
        let suite = Arc::clone(&$suite);
        Trial::test(stringify!($name), move || {
            let hub = suite.hub();
            suite.runtime.block_on($module::$name(hub));
            Ok(())
        })
    }};
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(AT_A_TIME);
    let suite = Arc::new(Suite {
        runtime: Runtime::new().expect("threads can be started"),
        hub: OnceLock::new(),
    });
    // A real hub takes up to 20 minutes for what the emulator does at once.
    let elsewhere = std::env::var_os(support::rig::HUB_VARIABLE).is_some();
    // The longest first: the others fill the time beside them.
    let claims = vec![
        claim!(suite, connections::a_silent_connection_is_noticed_and_made_again),
        claim!(suite, updates::a_slot_that_is_not_healthy_is_rolled_back_and_said),
        claim!(suite, connections::an_update_goes_on_without_the_hub_and_its_end_arrives),
        claim!(suite, connections::another_client_with_the_same_identity_is_named_and_survived),
        claim!(suite, updates::an_update_shows_each_stage_in_order_and_queries_find_its_end),
        claim!(suite, fleet::a_job_drives_an_update),
        claim!(suite, desired::a_desired_version_reaches_a_device_that_was_offline_and_is_installed_once),
        claim!(suite, desired::the_newest_of_several_desired_versions_wins_and_a_bad_one_is_not_tried_again),
        claim!(suite, identity::a_disabled_device_waits_its_longest_step_and_comes_back_when_enabled),
        claim!(suite, identity::a_device_moves_from_its_primary_to_its_secondary_key),
        claim!(suite, identity::a_wrong_key_is_refused_in_words_that_do_not_show_it),
        claim!(suite, connections::a_reset_connection_is_made_again_with_everything_that_was_missed),
        claim!(suite, connections::a_device_that_stops_says_goodbye_and_one_that_starts_goes_on),
        claim!(suite, methods::a_payload_in_any_of_the_samples_forms_starts_the_update_and_a_wrong_one_gets_400),
        claim!(suite, methods::overlapping_calls_each_get_their_own_answer_while_an_update_runs),
        claim!(suite, methods::a_call_waits_for_a_device_that_comes_later),
        claim!(suite, updates::a_download_that_fails_says_why_and_the_next_update_takes_the_error_away),
        claim!(suite, updates::an_update_can_be_cancelled_until_its_slot_is_armed),
        claim!(suite, probe_refusals::what_a_hub_tells_a_client_that_it_refuses),
        claim!(suite, probe_sessions::what_a_hub_keeps_of_a_session_and_what_ends_a_connection),
        claim!(suite, probe_services::what_a_hub_answers_to_unusual_calls_of_a_service),
        claim!(suite, probe_refusals::how_soon_a_hub_ends_the_connection_of_a_device_that_it_no_longer_wants),
        claim!(suite, identity::a_token_is_renewed_without_a_lost_call_or_a_warning).with_ignored_flag(true),
        claim!(suite, fleet::a_configuration_drives_an_update).with_ignored_flag(elsewhere),
    ];
    let interrupted = suite.runtime.spawn({
        let suite = Arc::clone(&suite);
        async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                if let Some(hub) = suite.hub.get() {
                    hub.leave_no_trace().await;
                }
                std::process::exit(130);
            }
        }
    });
    let conclusion = libtest_mimic::run(&arguments, claims);
    interrupted.abort();
    suite.finish();
    conclusion.exit_code()
}
