//! `fwupdatectl hub twin`: a device's twin.

use clap::Args;
use serde_json::Value;

use super::{client::HubClient, fault::HubError};
use crate::ctl::{
    exit,
    output::{clean, line},
};

#[derive(Debug, Args)]
pub(super) struct TwinArgs {
    /// The device
    #[arg(value_parser = super::device_id)]
    device: String,
    /// Only what the device reports
    #[arg(long)]
    reported: bool,
    /// Only what is desired of the device
    #[arg(long, conflicts_with = "reported")]
    desired: bool,
    /// Print it as the hub sends it, on one line
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(client: &HubClient, arguments: TwinArgs) -> Result<u8, HubError> {
    let twin = client.twin(&arguments.device).await?;
    let part = match (arguments.reported, arguments.desired) {
        (true, _) => &twin["properties"]["reported"],
        (_, true) => &twin["properties"]["desired"],
        _ => &twin,
    };
    if arguments.json {
        line(part.to_string());
    } else {
        pretty(part).iter().for_each(line);
    }
    Ok(exit::OK)
}

/// Indented, without the hub's bookkeeping.
fn pretty(twin: &Value) -> Vec<String> {
    let text = serde_json::to_string_pretty(&without_metadata(twin)).unwrap_or_default();
    text.lines().map(|line| clean(line).into_owned()).collect()
}

fn without_metadata(value: &Value) -> Value {
    match value {
        Value::Object(members) => members
            .iter()
            .filter(|(name, _)| *name != "$metadata")
            .map(|(name, value)| (name.clone(), without_metadata(value)))
            .collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_hub_s_bookkeeping_is_left_out_and_nothing_else() {
        let twin = json!({"properties": {"reported": {"a": [{"b": 1}], "$metadata": {"$lastUpdated": ""}, "$version": 3}}});
        let shown: Value = pretty(&twin).concat().parse().unwrap();
        assert_eq!(
            shown,
            json!({"properties": {"reported": {"a": [{"b": 1}], "$version": 3}}})
        );
    }
}
