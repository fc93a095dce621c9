//! The journal when systemd started us, plain lines on a terminal.
//!
//! `FWUPDATED_LOG` takes a filter like `debug` or `fwupdated::hub=debug`; the default is `info`.
//! What carries secrets as it is (the frames of a WebSocket, with the token in them) is not logged by a filter for
//! everything, `trace` or such.
//!
//! Fields of our events start with `fwupdated_`, so that none can shadow one of the journal's own; but for
//! `message_id`, which is one ([`crate::update::events`]). They are the journal's alone: what a line says stands in its
//! text. What is said while an update is worked on carries the update's id ([`within`]).

use std::{fmt, fmt::Display, io::IsTerminal};

use tracing::{Span, error_span, field::Field, info, warn};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{Directive, FilterExt, filter_fn},
    fmt::format,
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use crate::{hub::method::Answer, update::events};

/// What is logged unless `FWUPDATED_LOG` says otherwise: what lies below speaks only when something is wrong.
pub const DEFAULT_FILTER: &str = "info,rustls=error,reqwest=warn,hyper=warn,zbus=warn";

/// Starts logging. A journal that cannot be reached is no reason not to run: then standard error is used.
pub fn start() {
    let filter = EnvFilter::try_from_env("FWUPDATED_LOG")
        .unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER))
        .add_directive(quiet("tungstenite"))
        .add_directive(quiet("tokio_tungstenite"));
    let registry = tracing_subscriber::registry();
    if let Some(journal) = journal() {
        registry.with(journal.with_filter(filter)).init();
        return;
    }
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .fmt_fields(format::debug_fn(plain));
    // What a span adds is the journal's.
    let filter = filter.and(filter_fn(|what| what.is_event()));
    registry.with(lines.with_filter(filter)).init();
}

/// A field in a plain line, where those for the journal are left out.
fn plain(out: &mut format::Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    match field.name() {
        "message" => write!(out, "{value:?}"),
        "message_id" => Ok(()),
        name if name.starts_with("fwupdated_") => Ok(()),
        name => write!(out, " {name}={value:?}"),
    }
}

/// What belongs to `update` is said within this: the journal then shows it among the lines of the update.
/// Without one it changes nothing.
#[must_use]
pub fn within(update: Option<&str>) -> Span {
    // At the level of errors, so that whatever is logged has it.
    update.map_or_else(Span::none, |id| {
        error_span!("update", fwupdated_update_id = id)
    })
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
            warn!(
                message_id = events::REQUEST_REFUSED,
                fwupdated_error_code = code,
                "{call} answered with {status}: {message} [{code}]"
            );
        }
        _ => info!(
            fwupdated_update_id = body["updateId"].as_str(),
            "{call} answered with {status}"
        ),
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
