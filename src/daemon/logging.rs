//! The journal when systemd started us, plain lines on a terminal.
//!
//! `FWUPDATED_LOG` takes a filter like `debug` or `fwupdated::hub=debug`; the default is `info`.
//! What carries secrets as it is (the frames of a WebSocket, with the token in them) is not logged by a filter for
//! everything, `trace` or such.
//!
//! Fields of our events start with `fwupdated_`, so that none can shadow one of the journal's own.

use std::{fmt::Display, io::IsTerminal};

use tracing::{info, warn};
use tracing_subscriber::{
    EnvFilter, Layer, filter::Directive, layer::SubscriberExt, util::SubscriberInitExt,
};

use crate::hub::method::Answer;

/// Starts logging. A journal that cannot be reached is no reason not to run: then standard error is used.
pub fn start() {
    // What lies below speaks only when something is wrong.
    let default = "info,rustls=error,reqwest=warn,hyper=warn,zbus=warn";
    let filter = EnvFilter::try_from_env("FWUPDATED_LOG")
        .unwrap_or_else(|_| EnvFilter::new(default))
        .add_directive(quiet("tungstenite"))
        .add_directive(quiet("tokio_tungstenite"));
    let layer = journal().unwrap_or_else(|| {
        let terminal = std::io::stderr().is_terminal();
        tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(terminal)
            .with_target(false)
            .boxed()
    });
    tracing_subscriber::registry()
        .with(layer.with_filter(filter))
        .init();
}

/// Nothing of `target` below warnings.
fn quiet(target: &str) -> Directive {
    let directive = format!("{target}=warn");
    directive.parse().expect("it is the name of a crate")
}

/// Notes how `call` was answered; a refusal with its reason.
pub fn answered(call: impl Display, answer: &Answer) {
    let Answer { status, body } = answer;
    match (body["code"].as_str(), body["message"].as_str()) {
        (Some(code), Some(message)) => {
            warn!(code, "{call} answered with {status}: {message} [{code}]");
        }
        _ => info!("{call} answered with {status}"),
    }
}

/// The journal, if our standard error goes there (systemd.exec(5), `JOURNAL_STREAM`).
fn journal<S>() -> Option<Box<dyn Layer<S> + Send + Sync>>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    use tracing_journald::{Priority, PriorityMappings};
    if !crate::platform::service_manager::stderr_is_journal() {
        return None;
    }
    let priorities = PriorityMappings {
        info: Priority::Informational,
        debug: Priority::Debug,
        ..PriorityMappings::new()
    };
    let layer = tracing_journald::layer().ok()?;
    let layer = layer
        .with_field_prefix(None)
        .with_syslog_identifier("fwupdated".to_owned())
        .with_priority_mappings(priorities);
    Some(layer.boxed())
}
