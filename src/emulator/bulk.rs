//! `POST /devices`: up to a hundred devices created, changed or deleted in one request, each on its own. A
//! device that fails has an entry in the answer and stands in no other's way.

use std::collections::HashMap;

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use serde_json::{Value, json};

use crate::hub::{Hub, IfMatch};
use crate::hub_error::{HubError, Kind};
use crate::policies::Right;
use crate::rest::{App, Body, Caller, json_response};
use crate::twin::{Mode, ServiceWrite, Twin};

/// The most devices of one request.
const DEVICES: usize = 100;

/// The route.
pub(crate) async fn update_registry(
    caller: Caller,
    State(app): State<App>,
    body: Body,
) -> Result<Response, HubError> {
    caller.may(Right::RegistryWrite)?;
    let body = body.json()?;
    let items = body
        .as_array()
        .filter(|items| !items.is_empty())
        .ok_or_else(|| HubError::argument("The body must be an array of 1 to 100 devices."))?;
    if items.len() > DEVICES {
        return Err(HubError::new(
            Kind::TooManyDevices,
            format!("{} devices at once; the limit is {DEVICES}.", items.len()),
        ));
    }
    let errors = app.hub.update_registry(items);
    let result = json!({ "isSuccessful": errors.is_empty(), "errors": errors, "warnings": [] });
    if errors.is_empty() {
        return Ok(json_response(StatusCode::OK, &result));
    }
    // The answer has the same form, and not that of an error.
    let mut response = json_response(StatusCode::BAD_REQUEST, &result);
    let name = HeaderValue::from_static(Kind::BulkRegistryOperationFailure.name());
    response.headers_mut().insert("iothub-errorcode", name);
    Ok(response)
}

impl Hub {
    /// Carries out each item; an entry for each that failed.
    fn update_registry(&self, items: &[Value]) -> Vec<Value> {
        let id = |item: &Value| item["id"].as_str().unwrap_or_default().to_owned();
        let mut times: HashMap<String, u32> = HashMap::new();
        for item in items {
            *times.entry(id(item)).or_default() += 1;
        }
        let failure = |item: &Value| {
            let id = id(item);
            let result = match times.get(&id) {
                Some(2..) => Err(HubError::new(
                    Kind::DeviceDefinedMultipleTimes,
                    format!("The device '{id}' is in the request more than once."),
                )),
                _ => self.update_one(&id, item),
            };
            result.err().map(|error| {
                json!({
                    "deviceId": id,
                    "errorCode": error.kind().name(),
                    "errorStatus": error.message(),
                    "moduleId": null,
                    "operation": item.get("importMode"),
                })
            })
        };
        items.iter().filter_map(failure).collect()
    }

    fn update_one(&self, id: &str, item: &Value) -> Result<(), HubError> {
        if id.is_empty() {
            return Err(HubError::argument("Each device needs an 'id'."));
        }
        if item.get("moduleId").is_some_and(|module| !module.is_null()) {
            return Err(HubError::argument("This emulator has no modules."));
        }
        let etag = |name: &str| {
            let members = item.as_object().into_iter().flatten();
            let named = members.filter(|(member, _)| member.eq_ignore_ascii_case(name));
            let etag = named.filter_map(|(_, etag)| etag.as_str()).next();
            etag.map(|etag| IfMatch::parse(Some(etag)))
                .ok_or_else(|| HubError::argument(format!("This 'importMode' needs '{name}'.")))
        };
        // Python sends these words as the service writes them, Node most of them with capitals.
        let mode = item["importMode"].as_str().unwrap_or_default();
        match mode.to_ascii_lowercase().as_str() {
            "create" => self.create_with_twin(id, item),
            "update" => self.put_device(id, item, &IfMatch::Any).map(|_| ()),
            "updateifmatchetag" => self.put_device(id, item, &etag("eTag")?).map(|_| ()),
            "delete" => self.delete_device(id, &IfMatch::Any),
            "deleteifmatchetag" => self.delete_device(id, &etag("eTag")?),
            "updatetwin" => self
                .write_twin(id, item, Mode::Merge, &IfMatch::Any)
                .map(|_| ()),
            "updatetwinifmatchetag" => self
                .write_twin(id, item, Mode::Merge, &etag("twinETag")?)
                .map(|_| ()),
            _ => Err(HubError::argument(
                "'importMode' must be create, update, updateIfMatchETag, delete, deleteIfMatchETag, updateTwin \
                 or updateTwinIfMatchETag.",
            )),
        }
    }

    fn create_with_twin(&self, id: &str, item: &Value) -> Result<(), HubError> {
        let write = ServiceWrite::parse(item)?;
        // Tried on a twin of its own first, so that no device is left behind without its twin.
        Twin::new("").write(&write, Mode::Merge, "")?;
        self.put_device(id, item, &IfMatch::Absent)?;
        if write != ServiceWrite::default() {
            self.write_twin(id, item, Mode::Merge, &IfMatch::Any)?;
        }
        Ok(())
    }
}
