//! A headless Chromium, driven over its own debugging protocol: what a page shows, logs and asks for.
//!
//! The protocol, not WebDriver: it tells of every request and every line of the console, and needs no driver
//! program of the very version of the browser.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{WebSocketStream, client_async, tungstenite::Message};

use super::rig::PATIENCE;

/// Whether there is a Chromium; without one it says `SKIPPED`, or fails with `PAGE_TEST=required`.
pub(crate) fn is_there_or_skip(what: &str) -> bool {
    let found = Command::new(PROGRAM)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !found {
        let required = std::env::var_os("PAGE_TEST").is_some_and(|value| value == "required");
        assert!(
            !required,
            "{PROGRAM} is missing; tests/setup.sh installs it"
        );
        super::skipped(format_args!("{what}: {PROGRAM} is missing"));
    }
    found
}

const PROGRAM: &str = "chromium";
/// No sandbox, because tests may run as root in a container; nothing that asks for the internet by itself.
const FLAGS: [&str; 10] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
];

/// A browser with one page.
pub(crate) struct Browser {
    program: Child,
    _profile: TempDir,
    socket: WebSocketStream<TcpStream>,
    session: Value,
    last_id: u64,
    /// Errors and warnings of the console, and exceptions.
    pub(crate) complaints: Vec<String>,
    /// The address of each request of the page.
    pub(crate) requests: Vec<String>,
}

impl Browser {
    /// Starts it and opens `url`.
    pub(crate) async fn open(url: &str) -> Self {
        let profile = tempfile::tempdir().unwrap();
        let program = Command::new(PROGRAM)
            .args(FLAGS)
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("Chromium starts");
        let (port, path) = debugging_address(profile.path()).await;
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let address = format!("ws://127.0.0.1:{port}{path}");
        let (socket, _) = client_async(address, stream).await.unwrap();
        let mut browser = Self {
            program,
            _profile: profile,
            socket,
            session: Value::Null,
            last_id: 0,
            complaints: Vec::new(),
            requests: Vec::new(),
        };
        let target = browser
            .call("Target.createTarget", json!({ "url": "about:blank" }))
            .await;
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = browser.call("Target.attachToTarget", attach).await;
        browser.session = attached["sessionId"].clone();
        for domain in ["Runtime", "Log", "Network", "Page"] {
            browser.call(&format!("{domain}.enable"), json!({})).await;
        }
        browser.call("Page.navigate", json!({ "url": url })).await;
        let loaded = "location.protocol !== 'about:' && document.readyState === 'complete'";
        browser.until("the page", loaded).await;
        browser
    }

    /// Calls the protocol; notes what the page did meanwhile.
    pub(crate) async fn call(&mut self, method: &str, params: Value) -> Value {
        self.last_id += 1;
        let mut request = json!({ "id": self.last_id, "method": method, "params": params });
        if self.session.is_string() {
            request["sessionId"] = self.session.clone();
        }
        let request = Message::text(request.to_string());
        self.socket.send(request).await.unwrap();
        let answer = timeout(PATIENCE, async {
            loop {
                let message = self.socket.next().await.expect("Chromium lives").unwrap();
                let Message::Text(text) = message else {
                    continue;
                };
                let message: Value = serde_json::from_str(&text).unwrap();
                if message["id"] == self.last_id {
                    return message;
                }
                self.note(&message);
            }
        });
        let answer = answer
            .await
            .unwrap_or_else(|_| panic!("{method}: no answer"));
        assert!(answer.get("error").is_none(), "{method}: {answer}");
        answer["result"].clone()
    }

    fn note(&mut self, event: &Value) {
        let params = &event["params"];
        match event["method"].as_str().unwrap_or_default() {
            "Network.requestWillBeSent" => {
                let url = params["request"]["url"].as_str().unwrap_or_default();
                self.requests.push(url.to_owned());
            }
            "Runtime.exceptionThrown" => self.complaints.push(params.to_string()),
            "Runtime.consoleAPICalled"
                if ["error", "warning", "assert"]
                    .contains(&params["type"].as_str().unwrap_or_default()) =>
            {
                self.complaints.push(params["args"].to_string());
            }
            "Log.entryAdded"
                if ["error", "warning"]
                    .contains(&params["entry"]["level"].as_str().unwrap_or_default()) =>
            {
                self.complaints.push(params["entry"].to_string());
            }
            _ => {}
        }
    }

    /// The value of a JavaScript expression; a promise's, when it is one.
    pub(crate) async fn eval(&mut self, expression: &str) -> Value {
        let params =
            json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        let answer = self.call("Runtime.evaluate", params).await;
        let exception = &answer["exceptionDetails"];
        assert!(exception.is_null(), "{expression}: {exception}");
        answer["result"]["value"].clone()
    }

    /// The text of the first element that `selector` finds; null when there is none.
    pub(crate) async fn text(&mut self, selector: &str) -> Value {
        self.eval(&format!(
            "document.querySelector({})?.textContent",
            json!(selector)
        ))
        .await
    }

    /// Clicks the first element that `selector` finds.
    pub(crate) async fn click(&mut self, selector: &str) {
        self.eval(&format!(
            "document.querySelector({}).click()",
            json!(selector)
        ))
        .await;
    }

    /// Presses and releases a key, as a keyboard would.
    pub(crate) async fn press(&mut self, key: &str) {
        for kind in ["keyDown", "keyUp"] {
            let mut params =
                json!({ "type": kind, "key": key, "windowsVirtualKeyCode": key_code(key) });
            if kind == "keyDown" && key.chars().count() == 1 {
                params["text"] = key.into();
            }
            self.call("Input.dispatchKeyEvent", params).await;
        }
    }

    /// Waits until an expression is true of the page.
    pub(crate) async fn until(&mut self, what: &str, expression: &str) {
        let began = Instant::now();
        while self.eval(&format!("Boolean({expression})")).await != true {
            if began.elapsed() > PATIENCE {
                let page = self.eval("document.body.innerText").await;
                panic!(
                    "{what}: not after {PATIENCE:?}; complaints: {:?}; the page:\n{}",
                    self.complaints,
                    page.as_str().unwrap_or_default()
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

fn key_code(key: &str) -> u32 {
    match key {
        "Tab" => 9,
        "Enter" | "\r" => 13,
        "Escape" => 27,
        _ => 0,
    }
}

/// Port and path of the debugging protocol, which Chromium writes into its profile.
async fn debugging_address(profile: &Path) -> (u16, String) {
    let file = profile.join("DevToolsActivePort");
    let began = Instant::now();
    loop {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        if let Some((port, path)) = text.split_once('\n')
            && let Ok(port) = port.parse()
            && path.starts_with("/devtools/")
        {
            return (port, path.trim_end().to_owned());
        }
        assert!(began.elapsed() < PATIENCE, "Chromium does not come up");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
