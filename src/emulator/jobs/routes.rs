//! `/jobs/v2`.

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::{get, post, put};
use serde::Deserialize;
use serde_json::Value;

use super::job::Job;
use super::request::Request;
use crate::hub_error::HubError;
use crate::policies::Right;
use crate::rest::{App, Body, Caller, json_response, page_of, paged};

/// The routes below `/jobs/v2`.
pub(crate) fn router() -> Router<App> {
    Router::new()
        .route("/jobs/v2/query", get(list))
        .route("/jobs/v2/{id}", put(create).get(read))
        .route("/jobs/v2/{id}/cancel", post(cancel))
}

async fn create(
    caller: Caller,
    State(app): State<App>,
    Path(id): Path<String>,
    body: Body,
) -> Result<Response, HubError> {
    caller.may(Right::ServiceConnect)?;
    let request = Request::parse(&id, &body.json()?)?;
    let limit = app.hub.lock().job_limit();
    let limit = limit.unwrap_or(app.hub.jobs.limit);
    let job = app.hub.jobs.change(|jobs, now| {
        let job = jobs.create(request, limit, now)?;
        Ok::<Value, HubError>(job.document())
    })?;
    Ok(json_response(StatusCode::OK, &job))
}

async fn read(
    caller: Caller,
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Response, HubError> {
    caller.may(Right::ServiceConnect)?;
    let job = app.hub.jobs.read().get(&id)?.document();
    Ok(json_response(StatusCode::OK, &job))
}

async fn cancel(
    caller: Caller,
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Response, HubError> {
    caller.may(Right::ServiceConnect)?;
    let job = app.hub.jobs.change(|jobs, now| {
        let job = jobs.cancel(&id, now)?;
        Ok::<Value, HubError>(job.document())
    })?;
    Ok(json_response(StatusCode::OK, &job))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wanted {
    job_type: Option<String>,
    job_status: Option<String>,
}

impl Wanted {
    fn check(&self) -> Result<(), HubError> {
        let known = |given: &Option<String>, names: &[&str], what: &str| match given {
            Some(name) if !name.is_empty() && !names.contains(&name.as_str()) => Err(
                HubError::argument(format!("'{what}' must be one of {}.", names.join(", "))),
            ),
            _ => Ok(()),
        };
        let types = [
            "unknown",
            "export",
            "import",
            "scheduleDeviceMethod",
            "scheduleUpdateTwin",
        ];
        let statuses = [
            "unknown",
            "enqueued",
            "queued",
            "scheduled",
            "running",
            "completed",
            "failed",
            "cancelled",
        ];
        known(&self.job_type, &types, "jobType")?;
        known(&self.job_status, &statuses, "jobStatus")
    }

    fn includes(&self, job: &Job) -> bool {
        let is = |given: &Option<String>, actual: &Value| match given.as_deref() {
            None | Some("") => true,
            Some(name) => actual == name,
        };
        is(&self.job_type, &job.head.request.operation.kind().into())
            && is(&self.job_status, &serde_json::json!(job.head.status))
    }
}

async fn list(
    caller: Caller,
    State(app): State<App>,
    Query(wanted): Query<Wanted>,
    headers: HeaderMap,
) -> Result<Response, HubError> {
    caller.may(Right::ServiceConnect)?;
    wanted.check()?;
    let names = (wanted.job_type.as_deref(), wanted.job_status.as_deref());
    let page = page_of(&headers, &format!("{names:?}"))?;
    let jobs = app.hub.job_documents(|job| wanted.includes(job));
    let (jobs, more) = page.cut(None, jobs.into_iter());
    Ok(paged(jobs, more, "JobResponse"))
}
