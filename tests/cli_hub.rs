//! `fwupdatectl hub` by the real program against a scripted hub over TLS: answers that no hub gives on
//! request.

#[path = "support/skip.rs"]
mod skip;

#[path = "support/hub_stub.rs"]
mod hub_stub;

use std::{process::Stdio, time::Duration};

use hub_stub::{HubStub, Reply, refusal, twin};
use serde_json::{Value, json};
use tokio::process::Command;

/// The longest that any run of the program may take.
const LIMIT: Duration = Duration::from_secs(30);

struct Hub {
    stub: HubStub,
    dir: tempfile::TempDir,
}

struct Told {
    code: i32,
    out: String,
    err: String,
}

impl Told {
    /// The lines of standard output without their times.
    fn untimed(&self) -> Vec<&str> {
        self.out
            .lines()
            .map(|line| line.split_once("Z  ").map_or(line, |(_, rest)| rest))
            .collect()
    }

    fn json(&self) -> Vec<Value> {
        self.out
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

impl Hub {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            stub: HubStub::start(dir.path()).await,
            dir,
        }
    }

    async fn run(&self, arguments: &[&str]) -> Told {
        self.run_with(&self.stub.connection_string(), arguments)
            .await
    }

    async fn run_with(&self, connection_string: &str, arguments: &[&str]) -> Told {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fwupdatectl"));
        command
            .arg("hub")
            .args(arguments)
            .arg("--ca-file")
            .arg(&self.stub.ca_file)
            .env_clear()
            .env("FWUPDATED_HUB_CONNECTION_STRING", connection_string)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = tokio::time::timeout(LIMIT, command.output())
            .await
            .expect("it ends")
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let told = Told {
            code: output.status.code().unwrap(),
            out: text(output.stdout),
            err: text(output.stderr),
        };
        for secret in ["SharedAccess", "MDEyMzQ1", "sig="] {
            assert!(
                !told.out.contains(secret) && !told.err.contains(secret),
                "{}{}",
                told.out,
                told.err
            );
        }
        told
    }
}

fn accepted(id: &str) -> Reply {
    let payload = json!({"message": "FirmwareUpdate started", "updateId": id});
    Reply(200, Vec::new(), json!({"status": 200, "payload": payload}))
}

fn answered(status: u16, payload: Value) -> Reply {
    Reply(
        200,
        Vec::new(),
        json!({"status": status, "payload": payload}),
    )
}

fn ours(id: &str, status: &str) -> Reply {
    twin(json!({"updateId": id, "status": status}))
}

const INVOKE: [&str; 4] = [
    "invoke",
    "pi-01",
    "--uri",
    "https://store/x.img?code=hidden",
];

fn invoke<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&INVOKE[..], more].concat()
}

#[tokio::test]
async fn the_call_is_made_as_the_service_api_has_it() {
    let hub = Hub::start().await;
    hub.stub.answers([accepted("job-1")]);
    let digest = "AB".repeat(32);
    let told = hub
        .run(&invoke(&[
            "--version",
            "2.0",
            "--sha256",
            &digest,
            "--id",
            "job-1",
            "--force",
            "--response-timeout",
            "10",
            "--connect-timeout",
            "5",
        ]))
        .await;
    assert_eq!((told.code, told.err.as_str()), (0, ""));
    assert_eq!(
        told.out,
        "pi-01 answered 200: {\"message\":\"FirmwareUpdate started\",\"updateId\":\"job-1\"}\n"
    );
    let [call] = &hub.stub.seen()[..] else {
        panic!("one call")
    };
    assert_eq!(call.method, "POST");
    assert_eq!(call.uri, "/twins/pi-01/methods?api-version=2021-04-12");
    assert_eq!(call.headers["content-type"], "application/json");
    assert_eq!(
        call.body,
        json!({"methodName": "firmwareUpdate", "responseTimeoutInSeconds": 10, "connectTimeoutInSeconds": 5,
            "payload": {"fwPackageUri": "https://store/x.img?code=hidden", "fwVersion": "2.0",
                "fwPackageSha256": digest.to_lowercase(), "updateId": "job-1", "force": true}})
    );
}

#[tokio::test]
async fn device_ids_are_encoded_in_the_path() {
    let hub = Hub::start().await;
    hub.stub.twins([twin(Value::Null)]);
    assert_eq!(hub.run(&["twin", "a%b?c#d:e"]).await.code, 0);
    assert_eq!(hub.stub.seen()[0].uri.path(), "/twins/a%25b%3Fc%23d:e");
    assert_eq!(hub.run(&["twin", "../devices"]).await.code, 2);
}

#[tokio::test]
async fn an_update_is_followed_to_its_end_and_the_last_one_s_end_is_not_taken_for_it() {
    let hub = Hub::start().await;
    hub.stub.answers([accepted("new")]);
    let downloading = twin(json!({"updateId": "new", "status": "downloading",
        "progress": {"stage": "downloading", "percent": 42, "bytesDone": 42_000_000, "bytesTotal": 100_000_000}}));
    hub.stub.twins([
        ours("old", "applyComplete"),
        ours("old", "applyComplete"),
        ours("new", "waiting"),
        downloading.clone(),
        downloading,
        refusal(500, 500_001, "server error"),
        refusal(503, 503_005, "busy"),
        ours("new", "applying"),
        ours("new", "applyComplete"),
    ]);
    let told = hub.run(&invoke(&["--watch"])).await;
    assert_eq!(told.code, 0, "{}", told.err);
    assert_eq!(
        told.untimed()[1..],
        [
            "waiting",
            "downloading        42 %  42.0 MB of 100.0 MB",
            "applying",
            "applyComplete",
            "pi-01: the update is complete"
        ]
    );
    assert_eq!(
        told.err,
        "fwupdatectl: the hub cannot answer now (500): server error (500001); try again later [hub-unavailable]; still watching\n\
         fwupdatectl: the hub answers again\n"
    );
}

#[tokio::test]
async fn a_failure_is_told_with_its_reason_and_an_exit_code() {
    let hub = Hub::start().await;
    hub.stub.answers([accepted("new")]);
    let failed = twin(json!({"updateId": "new", "status": "downloadfailed",
        "error": {"code": "image-signature", "message": "no trusted key\u{1b}[2J signed it"}}));
    hub.stub.twins([ours("old", "applyFailed"), failed]);
    let told = hub.run(&invoke(&["--watch"])).await;
    assert_eq!(told.code, 1, "{}", told.err);
    assert_eq!(
        told.untimed()[1..],
        [
            "downloadfailed           no trusted key\u{fffd}[2J signed it [image-signature]",
            "pi-01: the update failed"
        ]
    );
}

#[tokio::test]
async fn a_device_of_the_samples_is_followed_by_what_changes() {
    let hub = Hub::start().await;
    hub.stub
        .answers([answered(200, json!("Firmware update started."))]);
    hub.stub.twins([
        twin(json!({"status": "apply firmware image complete", "lastFirmwareUpdate": "1"})),
        twin(json!({"status": "apply firmware image complete", "lastFirmwareUpdate": "1"})),
        twin(json!({"status": "downloading", "lastFirmwareUpdate": "1"})),
        twin(json!({"status": "download complete", "lastFirmwareUpdate": "1"})),
        twin(json!({"status": "Apply firmware image complete", "lastFirmwareUpdate": "22"})),
    ]);
    let told = hub.run(&invoke(&["--watch"])).await;
    assert_eq!(told.code, 0, "{}", told.err);
    assert_eq!(
        told.untimed()[1..4],
        [
            "downloading",
            "download complete",
            "Apply firmware image complete"
        ]
    );
}

#[tokio::test]
async fn watching_in_json_gives_one_document_per_line() {
    let hub = Hub::start().await;
    hub.stub.answers([accepted("new")]);
    hub.stub.twins([
        twin(Value::Null),
        ours("new", "waiting"),
        ours("new", "applyComplete"),
    ]);
    let told = hub.run(&invoke(&["--watch", "--json"])).await;
    let events: Vec<_> = told
        .json()
        .iter()
        .map(|event| event["event"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(events, ["answer", "change", "change", "end"]);
    assert_eq!(told.json()[0]["payload"]["updateId"], "new");
    assert_eq!(told.json()[2]["firmwareUpdate"]["status"], "applyComplete");
    assert_eq!(told.json()[3]["result"], "complete");
}

#[tokio::test]
async fn watching_stops_when_its_time_is_up_or_another_update_took_over() {
    let hub = Hub::start().await;
    hub.stub.answers([accepted("new")]);
    hub.stub.twins([ours("new", "downloading")]);
    let told = hub.run(&invoke(&["--watch", "--timeout", "1s"])).await;
    assert_eq!(told.code, 5, "{}", told.err);
    assert_eq!(
        told.untimed()[2],
        "pi-01: stopped waiting; the update may go on"
    );
    let hub = Hub::start().await;
    hub.stub.answers([accepted("new")]);
    hub.stub.twins([
        ours("new", "downloading"),
        ours("new", "downloading"),
        ours("third", "applyComplete"),
    ]);
    assert_eq!(hub.run(&invoke(&["--watch"])).await.code, 5);
}

#[tokio::test]
async fn each_refusal_has_its_words_and_exit_code() {
    let old_shape = Reply(
        401,
        Vec::new(),
        json!({"Message": "ErrorCode:IotHubUnauthorizedAccess;Unauthorized"}),
    );
    for (reply, code, words) in [
        (
            refusal(404, 404_001, "device not registered"),
            2,
            "the hub does not know the device pi-01",
        ),
        (
            refusal(404, 404_103, "Timed out waiting for device to connect."),
            3,
            "the device pi-01 is offline",
        ),
        (
            refusal(
                504,
                504_101,
                "Timed out waiting for the response from device.",
            ),
            3,
            "may have started all the same",
        ),
        (
            refusal(400, 400_004, "bad timeout"),
            2,
            "bad timeout (400004)",
        ),
        (refusal(403, 403_002, "quota"), 4, "[hub-forbidden]"),
        (refusal(503, 503_005, "busy"), 3, "[hub-unavailable]"),
        (old_shape, 4, "[hub-unauthorized]"),
        (
            answered(
                409,
                json!({"code": "update-busy", "message": "job-1 is under way"}),
            ),
            4,
            "job-1 is under way [update-busy]",
        ),
        (
            answered(400, json!({"code": "url-scheme", "message": "no"})),
            2,
            "pi-01 did not take the update: no [url-scheme]",
        ),
        (answered(501, Value::Null), 4, "did not take"),
        (
            Reply(200, Vec::new(), json!("not an answer")),
            3,
            "[hub-not-json]",
        ),
    ] {
        let hub = Hub::start().await;
        hub.stub.answers([reply.clone()]);
        let told = hub.run(&INVOKE).await;
        assert_eq!(told.code, code, "{reply:?}: {}", told.err);
        assert!(told.err.contains(words), "{reply:?}: {}", told.err);
        assert_eq!(
            hub.stub.seen().len(),
            1,
            "a call that may have reached the device is made once"
        );
    }
}

#[tokio::test]
async fn a_throttled_call_is_made_again() {
    let hub = Hub::start().await;
    let mut throttled = refusal(429, 429_001, "slow down");
    throttled.1.push(("retry-after", "0".to_owned()));
    hub.stub
        .answers([throttled.clone(), throttled, accepted("x")]);
    assert_eq!(hub.run(&INVOKE).await.code, 0);
    assert_eq!(hub.stub.seen().len(), 3);
}

#[tokio::test]
async fn a_pause_that_someone_would_notice_is_told() {
    let hub = Hub::start().await;
    let mut throttled = refusal(429, 429_001, "slow down");
    throttled.1.push(("retry-after", "2".to_owned()));
    hub.stub.answers([throttled, accepted("x")]);
    let told = hub.run(&INVOKE).await;
    assert_eq!(told.code, 0);
    assert_eq!(
        told.err,
        "fwupdatectl: the hub answers 429; trying again in 2 s\n"
    );
}

#[tokio::test]
async fn a_hub_that_throttles_for_good_is_told_after_the_last_attempt() {
    let hub = Hub::start().await;
    let mut throttled = refusal(429, 429_001, "slow down");
    throttled.1.push(("retry-after", "0".to_owned()));
    hub.stub.answers([throttled]);
    let told = hub.run(&INVOKE).await;
    assert_eq!(told.code, 3, "{}", told.err);
    assert!(
        told.err.contains("slow down (429001)") && told.err.contains("[hub-throttled]"),
        "{}",
        told.err
    );
    assert_eq!(hub.stub.seen().len(), 5);
}

#[tokio::test]
async fn a_status_that_no_http_has_is_a_refusal_and_is_shown() {
    let hub = Hub::start().await;
    let odd = json!({"status": -1, "payload": "no"});
    hub.stub.answers([Reply(200, Vec::new(), odd)]);
    let told = hub.run(&INVOKE).await;
    assert_eq!(told.code, 4, "{}", told.err);
    assert_eq!(told.out, "pi-01 answered -1: \"no\"\n");
    assert!(
        told.err.contains("did not take the update: no"),
        "{}",
        told.err
    );
}

#[tokio::test]
async fn a_device_that_reports_nothing_after_its_answer_is_told_of_once() {
    let hub = Hub::start().await;
    hub.stub
        .answers([answered(200, json!("Firmware update started."))]);
    // What an older update left there, as a device of the samples leaves it.
    hub.stub.twins([twin(json!({"status": "applyComplete"}))]);
    let told = hub.run(&invoke(&["--watch", "--timeout", "14s"])).await;
    assert_eq!(told.code, 5, "{}", told.err);
    let note = "its twin shows nothing of it yet; still watching";
    assert_eq!(told.err.matches(note).count(), 1, "{}", told.err);
    assert_eq!(
        told.untimed()[1..],
        ["pi-01: stopped waiting; the update may go on"]
    );
}

#[tokio::test]
async fn a_mistake_in_a_condition_is_shown_in_the_query_that_the_hub_saw() {
    let hub = Hub::start().await;
    hub.stub
        .answers([refusal(400, 400_004, "syntax error at character 300")]);
    for more in [&[][..], &["--json"]] {
        let told = hub
            .run(&[&["list", "--where", "tags.site ="], more].concat())
            .await;
        assert_eq!(told.code, 2, "{}", told.err);
        assert!(
            told.err.contains("character 300") && told.err.contains("WHERE tags.site = ["),
            "{}",
            told.err
        );
    }
}

#[tokio::test]
async fn a_hub_that_is_not_there_or_not_trusted_is_told() {
    let hub = Hub::start().await;
    let other = Hub::start().await;
    std::fs::copy(&other.stub.ca_file, &hub.stub.ca_file).unwrap();
    let told = hub.run(&["list"]).await;
    assert_eq!(told.code, 3);
    assert!(
        told.err.contains("the certificate of the hub localhost:")
            && told.err.contains("--ca-file")
            && told.err.contains("[hub-untrusted]"),
        "{}",
        told.err
    );
    other.stub.stop();
    tokio::time::timeout(LIMIT, async {
        while tokio::net::TcpStream::connect(other.stub.address)
            .await
            .is_ok()
        {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    let told = other.run(&["list"]).await;
    assert_eq!(told.code, 3);
    let port = other.stub.address.port();
    assert_eq!(
        told.err,
        format!(
            "fwupdatectl: cannot reach the hub localhost:{port}; check the name and the network: \
             Connection refused (os error 111) [hub-unreachable]\n"
        ),
        "the libraries' layers are not shown"
    );
    std::fs::write(&hub.stub.ca_file, "no certificate").unwrap();
    let told = hub.run(&["list"]).await;
    assert_eq!(told.code, 2);
    assert!(told.err.contains("[ca-file-empty]"), "{}", told.err);
}

#[tokio::test]
async fn a_wrong_key_is_refused() {
    let hub = Hub::start().await;
    let wrong = hub.stub.connection_string().replace("MDEy", "MDEx");
    let told = hub.run_with(&wrong, &["list"]).await;
    assert_eq!(told.code, 4);
    assert!(
        told.err
            .contains("check the policy's key and this machine's clock"),
        "{}",
        told.err
    );
}

#[tokio::test]
async fn the_connection_string_comes_from_flag_file_or_variable() {
    let hub = Hub::start().await;
    hub.stub.twins([twin(Value::Null)]);
    let file = hub.dir.path().join("service");
    std::fs::write(&file, format!("{}\n", hub.stub.connection_string())).unwrap();
    let file = file.to_str().unwrap();
    let told = hub.run_with(" ", &["list"]).await;
    assert!(
        told.code == 2 && told.err.contains("[hub-no-connection-string]"),
        "{}",
        told.err
    );
    let nonsense = "HostName=unused.invalid;SharedAccessKeyName=x;SharedAccessKey=AAAA";
    for arguments in [
        &["twin", "pi-01", "--connection-string-file", file][..],
        &[
            "--connection-string",
            &hub.stub.connection_string(),
            "twin",
            "pi-01",
        ],
    ] {
        assert_eq!(hub.run_with(nonsense, arguments).await.code, 0);
    }
    let told = hub
        .run(&["twin", "pi-01", "--connection-string-file", "/nowhere"])
        .await;
    assert!(
        told.code == 2 && told.err.contains("[hub-connection-string-file]"),
        "{}",
        told.err
    );
}

#[tokio::test]
async fn a_query_is_read_page_by_page() {
    let hub = Hub::start().await;
    let page = |rows: Value, next: Option<&str>| {
        Reply(
            200,
            next.map(|next| ("x-ms-continuation", next.to_owned()))
                .into_iter()
                .collect(),
            rows,
        )
    };
    hub.stub.answers([
        page(
            json!([{"deviceId": "a"}, {"deviceId": "b"}]),
            Some("next=="),
        ),
        refusal(503, 503_005, "busy"),
        page(json!([{"deviceId": "c"}]), None),
    ]);
    let told = hub.run(&["query", "SELECT deviceId FROM devices"]).await;
    assert_eq!(
        (told.code, told.out.as_str()),
        (
            0,
            "{\"deviceId\":\"a\"}\n{\"deviceId\":\"b\"}\n{\"deviceId\":\"c\"}\n"
        )
    );
    let seen = hub.stub.seen();
    assert_eq!(seen.len(), 3, "a read is tried again");
    assert_eq!(
        seen[0].body,
        json!({"query": "SELECT deviceId FROM devices"})
    );
    assert!(!seen[0].headers.contains_key("x-ms-continuation"));
    assert_eq!(seen[1].headers["x-ms-continuation"], "next==");
    assert_eq!(seen[2].headers["x-ms-continuation"], "next==");
}

#[tokio::test]
async fn the_list_is_a_table_of_who_runs_what() {
    let hub = Hub::start().await;
    let rows = json!([
        {"deviceId": "pi-02", "connectionState": "Disconnected"},
        {"deviceId": "pi-01", "connectionState": "Connected", "updateStatus": "applyComplete", "firmwareVersion": "1.4.0",
            "lastFirmwareUpdate": "2026-01-31T12:34:56.789Z"},
    ]);
    hub.stub.answers([Reply(200, Vec::new(), rows)]);
    let told = hub.run(&["list", "--where", "tags.site = 'lab'"]).await;
    assert_eq!(
        told.out.lines().collect::<Vec<_>>(),
        [
            "DEVICE  CONNECTION    UPDATE         VERSION  LAST UPDATED",
            "pi-01   Connected     applyComplete  1.4.0    2026-01-31T12:34:56.789Z",
            "pi-02   Disconnected  -              -        -",
        ]
    );
    let query = hub.stub.seen()[0].body["query"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        query.ends_with("FROM devices WHERE tags.site = 'lab'"),
        "{query}"
    );
    assert_eq!(
        hub.run(&["list", "--json"]).await.json()[1]["deviceId"],
        "pi-01"
    );
}

#[tokio::test]
async fn a_twin_is_shown_without_bookkeeping_or_as_it_is() {
    let hub = Hub::start().await;
    hub.stub.twins([ours("x", "waiting")]);
    let told = hub.run(&["twin", "pi-01", "--reported"]).await;
    let shown: Value = serde_json::from_str(&told.out).unwrap();
    assert_eq!(
        shown,
        json!({"iothubDM": {"firmwareUpdate": {"updateId": "x", "status": "waiting"}}, "$version": 7})
    );
    let told = hub.run(&["twin", "pi-01", "--json"]).await;
    assert!(told.out.contains("$metadata") && told.out.lines().count() == 1);
    let told = hub.run(&["twin", "pi-01", "--desired"]).await;
    assert_eq!(
        serde_json::from_str::<Value>(&told.out).unwrap(),
        json!({"$version": 1})
    );
}

#[tokio::test]
async fn on_a_terminal_a_bar_shows_the_progress_and_lines_the_stages() {
    let hub = Hub::start().await;
    hub.stub.answers([accepted("new")]);
    let downloading = |percent: u64| {
        twin(json!({"updateId": "new", "status": "downloading",
            "progress": {"stage": "downloading", "percent": percent, "bytesDone": percent * 1_000_000, "bytesTotal": 100_000_000}}))
    };
    hub.stub.twins([
        twin(Value::Null),
        downloading(10),
        downloading(55),
        downloading(90),
        ours("new", "applyComplete"),
    ]);
    let program = format!(
        "{} hub --ca-file {} {} --watch",
        env!("CARGO_BIN_EXE_fwupdatectl"),
        hub.stub.ca_file.display(),
        INVOKE.join(" ").replace('?', "\\?"),
    );
    let run = Command::new("script")
        .args(["-qefc", &program, "/dev/null"])
        .env(
            "FWUPDATED_HUB_CONNECTION_STRING",
            hub.stub.connection_string(),
        )
        .env("TERM", "xterm")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = match tokio::time::timeout(LIMIT, run).await.expect("it ends") {
        Ok(output) => output,
        Err(error) => {
            skip::skipped(format_args!(
                "no terminal to test with: script(1) from util-linux: {error}"
            ));
            return;
        }
    };
    let shown = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{shown}");
    assert!(
        shown.contains("] ") && shown.contains("55 %") && shown.contains("90.0 MB of 100.0 MB"),
        "{shown:?}"
    );
    assert!(
        shown.contains("Ctrl-C ends the watching, not the update"),
        "{shown:?}"
    );
    assert_eq!(shown.matches("Z  downloading ").count(), 1, "{shown:?}");
    assert!(
        shown.contains("Z  applyComplete") && shown.contains("pi-01: the update is complete"),
        "{shown:?}"
    );
}
