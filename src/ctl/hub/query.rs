//! `fwupdatectl hub list` and `hub query`: questions about the whole fleet.

use clap::Args;
use serde_json::Value;

use super::{client::HubClient, fault::HubError};
use crate::ctl::{
    exit,
    output::{clean, line, table},
};

/// The hub's own limit for rows in a page is higher for some queries; this is allowed for all.
const PAGE_SIZE: u32 = 100;

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Only devices that meet this condition, such as "tags.site = 'lab'"
    #[arg(long = "where", value_name = "CONDITION")]
    condition: Option<String>,
    /// Print one JSON row per line instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct QueryArgs {
    /// The query
    query: String,
}

/// The columns of the list: heading, name in the answer, path in the twin.
const COLUMNS: [(&str, &str, &str); 5] = [
    ("DEVICE", "deviceId", "deviceId"),
    ("CONNECTION", "connectionState", "connectionState"),
    (
        "UPDATE",
        "updateStatus",
        "properties.reported.iothubDM.firmwareUpdate.status",
    ),
    (
        "VERSION",
        "firmwareVersion",
        "properties.reported.iothubDM.firmwareVersion",
    ),
    (
        "LAST UPDATED",
        "lastFirmwareUpdate",
        "properties.reported.iothubDM.firmwareUpdate.lastFirmwareUpdate",
    ),
];

pub(super) async fn list(client: &HubClient, arguments: ListArgs) -> Result<u8, HubError> {
    let query = list_query(arguments.condition.as_deref());
    let explain = |error| match error {
        // The hub counts characters in a query that the user did not write.
        HubError::BadRequest { said } => HubError::BadRequest {
            said: format!("{said}, in: {query}"),
        },
        error => error,
    };
    if arguments.json {
        return print_rows(client, &query).await.map_err(explain);
    }
    let mut rows = Vec::new();
    let mut page = None;
    loop {
        let page_now = client.query(&query, page.as_deref(), PAGE_SIZE).await;
        let (more, next) = page_now.map_err(explain)?;
        rows.extend(more.iter().map(cells));
        if next.is_none() {
            break;
        }
        page = next;
    }
    rows.sort();
    table(&COLUMNS.map(|(heading, ..)| heading), &rows)
        .iter()
        .for_each(line);
    Ok(exit::OK)
}

fn list_query(condition: Option<&str>) -> String {
    let columns = COLUMNS.map(|(_, name, path)| match name == path {
        true => name.to_owned(),
        false => format!("{path} AS {name}"),
    });
    let condition = condition
        .map(|condition| format!(" WHERE {condition}"))
        .unwrap_or_default();
    format!("SELECT {} FROM devices{condition}", columns.join(", "))
}

fn cells(row: &Value) -> Vec<String> {
    let cell = |(_, name, _): &(&str, &str, &str)| match &row[name] {
        Value::Null => "-".to_owned(),
        Value::String(text) => clean(text).into_owned(),
        other => clean(&other.to_string()).into_owned(),
    };
    COLUMNS.iter().map(cell).collect()
}

pub(super) async fn query(client: &HubClient, arguments: QueryArgs) -> Result<u8, HubError> {
    print_rows(client, &arguments.query).await
}

/// Prints each row as it comes: a fleet may be larger than memory.
async fn print_rows(client: &HubClient, query: &str) -> Result<u8, HubError> {
    let mut page = None;
    loop {
        let (rows, next) = client.query(query, page.as_deref(), PAGE_SIZE).await?;
        rows.iter().for_each(|row| line(row.to_string()));
        if next.is_none() {
            return Ok(exit::OK);
        }
        page = next;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_list_asks_for_its_columns_and_the_condition() {
        let query = list_query(Some("tags.site = 'lab'"));
        assert!(query.starts_with("SELECT deviceId, connectionState, properties.reported.iothubDM.firmwareUpdate.status AS updateStatus, "), "{query}");
        assert!(
            query.ends_with(" FROM devices WHERE tags.site = 'lab'"),
            "{query}"
        );
    }

    #[test]
    fn what_a_device_never_reported_is_a_dash() {
        let row = json!({"deviceId": "pi", "connectionState": "Connected", "updateStatus": null, "firmwareVersion": "1\u{7}"});
        assert_eq!(cells(&row), ["pi", "Connected", "-", "1\u{fffd}", "-"]);
    }
}
