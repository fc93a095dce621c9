//! The emulator's page in a real browser: what a person sees, live; `http`: what others get from its port.
//!
//! Without Chromium the tests that need it say `SKIPPED: ...`; with `PAGE_TEST=required` they fail instead.

#[path = "emulator_page/http.rs"]
mod http;
#[path = "emulator_page/plain_device.rs"]
mod plain_device;
mod support;

use std::{path::Path, time::Instant};

use iothub_emulator::{Emulator, Options};
use plain_device::PlainDevice;
use serde_json::{Value, json};
use support::{
    browser::{self, Browser},
    image_server::ImageServer,
    rig::{DEVICE, Device, PATIENCE, Rig, make_key, noise},
};

const MIB: usize = 1 << 20;

async fn emulator(devices: &[&str]) -> Emulator {
    fwupdated::platform::tls::install_provider();
    let options = devices
        .iter()
        .fold(Options::default(), |options, id| options.device(id));
    start(Options {
        page_port: Some(0),
        ..options
    })
    .await
}

async fn start(options: Options) -> Emulator {
    Emulator::start(options).await.expect("the emulator starts")
}

fn page_url(emulator: &Emulator) -> String {
    emulator.ready().page_url.clone().expect("there is a page")
}

/// No error in the console, nothing asked for but of the page's own server.
fn assert_clean(browser: &Browser, url: &str) {
    assert!(browser.complaints.is_empty(), "{:#?}", browser.complaints);
    assert!(browser.requests.len() > 5, "{:?}", browser.requests);
    for request in &browser.requests {
        assert!(request.starts_with(url), "{request} is outside of {url}");
    }
}

/// A hub with a page, an image server and a key, as [`Rig::start`] without one.
async fn rig(dir: &Path) -> Rig {
    fwupdated::platform::tls::install_provider();
    let emulator = start(Options {
        page_port: Some(0),
        state: Some(dir.join("hub")),
        ..Options::default().device(DEVICE)
    })
    .await;
    let service = dir.join("service-connection-string");
    std::fs::write(&service, &emulator.ready().service_connection_string).unwrap();
    Rig {
        dir: dir.to_owned(),
        emulator,
        server: ImageServer::start(),
        key: make_key(dir),
        service,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_watches_an_update_of_the_real_daemon_from_start_to_end() {
    if !browser::is_there_or_skip("the emulator's page with the daemon") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let rig = rig(dir.path()).await;
    let url = page_url(&rig.emulator);
    let mut browser = Browser::open(&url).await;
    let row = format!("tr[data-id='{DEVICE}']");
    let state = format!("document.querySelector(\"{row} .connection .state\")?.textContent");
    browser
        .until(
            "a device that never came",
            &format!("{state} === '○ not connected'"),
        )
        .await;

    let mut device = Device::new(
        &rig,
        &dir.path().join("device"),
        16 * MIB as u64,
        "1.0.0",
        "",
    );
    device.boot();
    device.until_connected(&rig).await;
    browser
        .until("connected", &format!("{state} === '● connected'"))
        .await;
    browser.click(&format!("{row} a")).await;
    browser
        .until(
            "the twin",
            "document.querySelector('#reported [data-path=fwupdated]')",
        )
        .await;

    // What flashes by is kept by a look at each frame.
    browser
        .eval(
            "window.seen = { bar: [], marks: {}, cards: [] };
            (function look() {
              const last = (list, value) => { if (value !== undefined && list.at(-1) !== value) list.push(value); };
              const card = document.querySelector('#updates .card');
              last(seen.cards, card?.querySelector('.word').textContent);
              const bar = card?.querySelector('progress');
              if (bar?.hasAttribute('value') && card.dataset.phase === 'running') {
                last(seen.bar, `${card.querySelector('.word').textContent} ${bar.value}`);
              }
              for (const line of document.querySelectorAll('#reported [data-change][data-path]')) {
                const marks = (seen.marks[line.dataset.path] ??= []);
                last(marks, line.dataset.change);
              }
              requestAnimationFrame(look);
            })()",
        )
        .await;
    let image = rig.build("1.1.0", noise(12 * MIB, 7), &[]);
    let uri = rig.serve(&image);
    // So that the download takes some seconds, which is what the bar is for.
    rig.server.throttle(Some(4 * MIB as u64));
    let (status, body) = rig.invoke(json!({ "fwPackageUri": uri })).await;
    assert_eq!(status, 200, "{body}");
    device
        .until_final(&rig, body["updateId"].as_str().unwrap())
        .await;
    browser
        .until(
            "the end",
            "document.querySelector('#updates .word')?.textContent === '✓ applyComplete'",
        )
        .await;

    let stages =
        "[...document.querySelectorAll('#stages .state')].map((word) => word.textContent.slice(2))";
    browser
        .until("the last stage", &format!("{stages}.length === 5"))
        .await;
    assert_eq!(
        browser.eval(stages).await,
        json!([
            "waiting",
            "downloading",
            "downloadComplete",
            "applying",
            "applyComplete"
        ])
    );
    // The page asks for the twin once it hears of a change, so the twin comes a moment after the stages.
    browser
        .until(
            "the new version in the twin",
            "seen.marks['iothubDM.firmwareVersion']",
        )
        .await;
    let seen = browser.eval("seen").await;
    let bar: Vec<f64> = seen["bar"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|value| value.as_str()?.strip_prefix("▸ downloading ")?.parse().ok())
        .collect();
    assert!(bar.len() >= 3 && bar.is_sorted(), "the bar moves: {seen}");
    let cards = seen["cards"].as_array().unwrap();
    assert!(cards.contains(&json!("▸ downloading")), "{seen}");
    assert_eq!(cards.last().unwrap(), "✓ applyComplete", "{seen}");
    let marks = |path: &str| seen["marks"][path].clone();
    assert_eq!(marks("iothubDM.firmwareUpdate")[0], "added", "{seen}");
    assert!(
        marks("iothubDM.firmwareUpdate.status")
            .as_array()
            .unwrap()
            .contains(&json!("changed")),
        "{seen}"
    );
    assert_eq!(
        marks("iothubDM.firmwareVersion"),
        json!(["changed"]),
        "{seen}"
    );
    assert_eq!(browser.text(&format!("{row} .firmware")).await, "1.1.0");

    let packets = browser.text("#wire").await;
    assert!(
        packets.as_str().unwrap().contains("$iothub/twin/"),
        "{packets}"
    );
    device.stop();
    browser
        .until("disconnected", &format!("{state} === '○ not connected'"))
        .await;
    assert_clean(&browser, &url);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changed_in_a_twin_is_marked_for_a_while_and_then_no_more() {
    if !browser::is_there_or_skip("the emulator's page") {
        return;
    }
    let emulator = emulator(&["sensor"]).await;
    let url = page_url(&emulator);
    let device = PlainDevice::connect(&emulator, "sensor").await;
    device
        .report(
            &emulator,
            json!({ "kept": 1, "room": { "light": "off", "door": "shut" } }),
        )
        .await;
    let mut browser = Browser::open(&format!("{url}#/sensor")).await;
    browser
        .until(
            "the twin",
            "document.querySelector('#reported [data-path=\"room.door\"]')",
        )
        .await;
    let marked = "[...document.querySelectorAll('#detail [data-change][data-path]')]
        .map((line) => [line.dataset.path, line.dataset.change, line.querySelector('.sign').textContent])";
    assert_eq!(
        browser.eval(marked).await,
        json!([]),
        "nothing is new at first"
    );

    let patch = json!({ "room": { "light": "<b>on</b>", "door": null, "heat": 21 } });
    device.report(&emulator, patch).await;
    browser
        .until("marks", &format!("{marked}.length === 3"))
        .await;
    assert_eq!(
        browser.eval(marked).await,
        json!([
            ["room.door", "removed", "−"],
            ["room.heat", "added", "+"],
            ["room.light", "changed", "~"]
        ])
    );
    assert_eq!(
        browser.text("#reported [data-path='room.light']").await,
        "~\"light\": \"<b>on</b>\"",
        "what a device says is text, never markup"
    );
    emulator
        .patch_desired("sensor", &json!({ "limit": 5 }))
        .unwrap();
    browser
        .until(
            "a desired property",
            "document.querySelector('#desired [data-change=added]')",
        )
        .await;
    assert_eq!(browser.text("#desired-version").await, "version 2");
    browser
        .until("no marks", &format!("{marked}.length === 0"))
        .await;
    let lines = browser.text("#reported").await;
    assert!(!lines.as_str().unwrap().contains("door"), "{lines}");
    assert_clean(&browser, &url);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_dropped_from_the_page_is_shown_to_go_and_to_come_back() {
    if !browser::is_there_or_skip("the emulator's page") {
        return;
    }
    let emulator = emulator(&["sensor"]).await;
    let url = page_url(&emulator);
    let _device = PlainDevice::connect(&emulator, "sensor").await;
    let mut browser = Browser::open(&format!("{url}#/sensor")).await;
    browser
        .until(
            "connected",
            "document.querySelector('#detail-state').textContent === '● connected'",
        )
        .await;
    browser
        .until(
            "its facts",
            "document.querySelector('#detail-facts').textContent.includes('1 connection ')",
        )
        .await;
    browser.click("#drop").await;
    browser
        .until(
            "again connected",
            "document.querySelector('#detail-facts').textContent.includes('2 connections')",
        )
        .await;
    assert_eq!(emulator.connections("sensor"), 2);

    browser.click("#outage").await;
    browser
        .until("an outage", "!document.querySelector('#down').hidden")
        .await;
    browser
        .until(
            "gone",
            "document.querySelector('#detail-state').textContent === '○ not connected'",
        )
        .await;
    browser.click("#up").await;
    browser
        .until(
            "back",
            "document.querySelector('#detail-state').textContent === '● connected'",
        )
        .await;
    browser
        .until("no outage", "document.querySelector('#down').hidden")
        .await;
    assert_clean(&browser, &url);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_devices_are_listed_filtered_sorted_and_reached_by_keyboard() {
    if !browser::is_there_or_skip("the emulator's page") {
        return;
    }
    let ids: Vec<_> = (0..1000).map(|n| format!("pi-{n}")).collect();
    let ids: Vec<_> = ids.iter().map(String::as_str).collect();
    let emulator = emulator(&ids).await;
    let url = page_url(&emulator);
    let device = PlainDevice::connect(&emulator, "pi-777").await;
    let update =
        json!({ "status": "downloading", "progress": { "percent": 40, "bytesTotal": 10 } });
    let patch = json!({ "iothubDM": { "firmwareUpdate": update, "firmwareVersion": "9.9.9" } });
    device.report(&emulator, patch).await;

    let mut browser = Browser::open(&url).await;
    browser
        .until(
            "all devices",
            "document.querySelector('#devices-count').textContent === '1,000 devices'",
        )
        .await;
    let shown = "[...document.querySelectorAll('#devices tbody tr')].map((row) => row.dataset.id)";
    let first = browser.eval(shown).await;
    assert_eq!(first.as_array().unwrap().len(), 100, "a page at a time");
    assert_eq!(first[99], "pi-99", "numbers count as numbers");
    assert_eq!(browser.text("#page-number").await, "Page 1 of 10");
    browser.click("#next").await;
    assert_eq!(browser.eval(shown).await[0], "pi-100");

    // By keyboard: `/`, a word, Tab to the list, Enter.
    browser.press("/").await;
    for key in ["7", "7", "7"] {
        browser.press(key).await;
    }
    assert_eq!(browser.eval(shown).await, json!(["pi-777"]));
    assert_eq!(browser.text("#devices-count").await, "1 of 1,000 devices");
    let focused = "document.activeElement.closest('tr')?.dataset.id";
    for _ in 0..20 {
        if browser.eval(focused).await == "pi-777" {
            break;
        }
        browser.press("Tab").await;
    }
    assert_eq!(browser.eval(focused).await, "pi-777");
    browser.press("\r").await;
    browser
        .until(
            "its twin",
            "document.querySelector('#reported [data-path=\"iothubDM.firmwareVersion\"]')",
        )
        .await;
    browser.press("Escape").await;
    assert_eq!(
        browser
            .eval("document.querySelector('#detail').hidden")
            .await,
        true
    );
    assert_eq!(
        browser.eval(focused).await,
        "pi-777",
        "back where it came from"
    );

    let set = |selector: &str, value: &str, event: &str| {
        format!(
            "(() => {{ const field = document.querySelector('{selector}'); field.value = '{value}';
            field.dispatchEvent(new Event('{event}', {{ bubbles: true }})); }})()"
        )
    };
    browser
        .eval(&set("#filter", "no such device", "input"))
        .await;
    assert_eq!(browser.text("#none").await, "No device matches the filter.");
    browser.eval(&set("#filter", "", "input")).await;
    browser.eval(&set("#show", "running", "change")).await;
    assert_eq!(browser.eval(shown).await, json!(["pi-777"]));
    browser.eval(&set("#show", "all", "change")).await;
    browser
        .click("#devices th[data-sort=firmware] button")
        .await;
    browser
        .click("#devices th[data-sort=firmware] button")
        .await;
    assert_eq!(browser.eval(shown).await[0], "pi-777");
    let sorted =
        "document.querySelector('#devices th[data-sort=firmware]').getAttribute('aria-sort')";
    assert_eq!(browser.eval(sorted).await, "descending");
    let bar = "document.querySelector('#updates progress').getAttribute('aria-label')";
    assert_eq!(browser.eval(bar).await, "Update of pi-777: downloading");
    assert_clean(&browser, &url);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_goes_on_by_itself_when_the_emulator_comes_back_on_the_same_port() {
    if !browser::is_there_or_skip("the emulator's page") {
        return;
    }
    let first = emulator(&["before"]).await;
    let url = page_url(&first);
    let port = url.trim_end_matches('/').rsplit_once(':').unwrap().1;
    let port = port.parse().unwrap();
    let mut browser = Browser::open(&url).await;
    browser
        .until("the device", "document.querySelector('tr[data-id=before]')")
        .await;
    assert_clean(&browser, &url);

    let began = Instant::now();
    first.stop().await;
    assert!(
        began.elapsed() < PATIENCE / 2,
        "an open page holds up no stop"
    );
    browser
        .until(
            "gone",
            "document.querySelector('#live').textContent === '○ Reconnecting'",
        )
        .await;
    let _second = start(Options {
        page_port: Some(port),
        ..Options::default().device("after")
    })
    .await;
    browser
        .until(
            "live again",
            "document.querySelector('#live').textContent === '● Live'",
        )
        .await;
    browser
        .until(
            "the new hub's device",
            "document.querySelector('tr[data-id=after]')",
        )
        .await;
    assert_eq!(browser.text("tr[data-id=before]").await, Value::Null);
    // The browser itself complains of the connections that were refused meanwhile, and of nothing else.
    for complaint in &browser.complaints {
        assert!(complaint.contains("net::ERR_"), "{complaint}");
    }
}
