//! The status page in a headless Chromium, which loads it once.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::account::PLAN;
use crate::browser::Browser;
use crate::scene::{Daemon, Scene, Stack, wait_for};
use crate::spooling::{check_drained, held_count, scene, wait_until};

/// The pairs of colours with less contrast than WCAG 2.2 AA asks of texts (4.5), as `text: ratio`.
const FAINT_TEXTS: &str = r"
    const channels = (color) => color.match(/[\d.]+/g).map(Number);
    const light = (color) => {
        const [r, g, b] = channels(color).map((c) => c / 255).map((c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = (element) => {
        for (let e = element; e; e = e.parentElement) {
            const color = getComputedStyle(e).backgroundColor, parts = channels(color);
            if (parts.length === 3 || parts[3] === 1) return color;
        }
        return 'rgb(255, 255, 255)';
    };
    const found = [];
    for (const element of document.querySelectorAll('body *:not(script):not(noscript)')) {
        if (![...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) continue;
        const style = getComputedStyle(element);
        const [a, b] = [light(element.namespaceURI.endsWith('svg') ? style.fill : style.color), light(ground(element))];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (!(ratio >= 4.5)) found.push(`${element.textContent.trim()}: ${ratio}`);
    }
    return found;
";

/// The state, in large letters.
fn headline(browser: &Browser) -> String {
    let read = browser.run("return document.getElementById('mode').innerText");
    read.as_str().unwrap().to_owned()
}

#[track_caller]
fn wait_for_headline(browser: &Browser, start: &str) {
    wait_for(&format!("the page says {start}"), Duration::from_secs(60), || {
        std::thread::sleep(Duration::from_millis(100));
        headline(browser).starts_with(start)
    });
}

/// Opens the page, and leaves a mark in its window that a reload would wipe out.
fn open(daemon: &Daemon) -> Browser {
    let browser = Browser::start();
    browser.open(&format!("http://127.0.0.1:{}/", daemon.port()));
    browser.run("window.mark = 1");
    browser
}

#[track_caller]
fn check_is_never_reloaded(browser: &Browser) {
    assert_eq!(browser.run("return window.mark"), json!(1), "the page was loaded again");
    let refused: Vec<String> =
        browser.console().into_iter().filter(|line| line.contains("Content Security Policy")).collect();
    assert!(refused.is_empty(), "the page does what its own policy forbids: {refused:?}");
}

/// Legible on a phone and on a desk, dark and light; pictures of it are kept in target/tmp.
#[track_caller]
fn check_looks(browser: &Browser, name: &str) {
    for (width, height, scheme) in
        [(360, 2_600, "dark"), (360, 2_600, "light"), (1_200, 1_300, "light"), (1_200, 1_300, "dark")]
    {
        browser.show_as(width, height, scheme);
        wait_for("it is drawn anew", Duration::from_secs(10), || {
            browser.run("return document.querySelectorAll('.plot svg[role=img][aria-label]').length")
                == json!(2)
        });
        let found_width = browser.run("return document.documentElement.scrollWidth");
        assert_eq!(found_width, json!(width), "{name} {scheme}: it must not be scrolled sideways");
        assert_eq!(browser.run(FAINT_TEXTS), json!([]), "{name} {width} {scheme}: too little contrast");
        let file = format!("status-page-{name}-{width}-{scheme}.png");
        browser.keep_picture(&Path::new(env!("CARGO_TARGET_TMPDIR")).join(file));
    }
}

#[test]
fn the_page_follows_an_outage_without_a_reload() {
    let stack = Stack::private();
    let (scene, dir) = scene(&stack, "page", 4);
    // A drain that takes some seconds: 40 commits and more, on one lane.
    let scene = scene.set("LANES", "1").set("BATCH_MAX_EVENTS", "200");
    scene.produce(&PLAN, 0, 4_000);
    let mut daemon = scene.daemon_with(&[("FAILPOINTS", "commit_in_copy=sleep(150)")]);
    let browser = open(&daemon);
    scene.wait_until_read(4_000, Duration::from_secs(60));
    wait_for_headline(&browser, "Live");
    stack.run(&["stop", "postgres", "immediate"]);
    scene.produce(&PLAN, 4_000, 12_000);
    wait_for_headline(&browser, "Spooling");
    wait_until(&daemon, "spooling", 4);
    wait_for("the spool holds what came", Duration::from_secs(60), || held_count(&scene, &dir) >= 8_000);
    wait_for("the page tells of the spool and of the error", Duration::from_secs(20), || {
        let text = browser.text();
        text.contains("records go to the spool")
            && text.contains("✗ PostgreSQL down")
            && text.contains("WARN")
    });
    check_looks(&browser, "spooling");
    // The history has a step each 5 s, and tells the mode at its end.
    std::thread::sleep(Duration::from_secs(6));
    stack.run(&["start", "postgres"]);
    wait_for_headline(&browser, "Draining");
    wait_for_headline(&browser, "Live");
    scene.wait_until_read(12_000, Duration::from_secs(60));
    check_drained(&scene, &daemon, &dir);
    check_history(&daemon, 12_000);
    wait_for("the page is up to date", Duration::from_secs(20), || {
        let read = browser.run("return document.getElementById('reasons').innerText");
        !read.as_str().unwrap().is_empty() && browser.text().contains("✓ PostgreSQL")
    });
    check_looks(&browser, "live");
    check_is_never_reloaded(&browser);
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    scene.verify().check(PLAN.totals(12_000));
}

/// What `/status` says agrees with what was stored.
#[track_caller]
fn check_history(daemon: &Daemon, record_count: u32) {
    let of = |status: &Value, name: &str| status["history"][name].as_array().unwrap().clone();
    let mut status = Value::Null;
    wait_for("the steps hold all records", Duration::from_secs(20), || {
        status = daemon.status().unwrap();
        let rates = of(&status, "stored_per_second");
        let stored = rates.iter().map(|rate| rate.as_f64().unwrap() * 5.0).sum::<f64>();
        // Steps are a little longer than 5 s, never shorter.
        stored > f64::from(record_count) * 0.8 && stored <= f64::from(record_count) * 1.01
    });
    let modes = of(&status, "mode");
    for mode in ["live", "spooling"] {
        assert!(modes.contains(&json!(mode)), "{modes:?}");
    }
    assert!(of(&status, "spooled_per_second").iter().any(|rate| rate.as_f64().unwrap() > 0.0));
    assert!(of(&status, "p99_ms").iter().any(Value::is_u64));
    let reasons = status["dead_letters_by_reason"].as_object().unwrap();
    let counted: u64 = reasons.values().map(|count| count.as_u64().unwrap()).sum();
    assert_eq!(counted, status["totals"]["dead_letters"].as_u64().unwrap());
    assert_eq!(counted, PLAN.totals(u64::from(record_count)).dead_letters);
    let lines = status["last_errors"].as_array().unwrap();
    assert!((1..=20).contains(&lines.len()), "{lines:?}");
    let is_outage = |line: &Value| line["text"].as_str().unwrap().contains("postgresql is away");
    assert!(lines.iter().any(is_outage), "{lines:?}");
}

#[test]
fn the_page_says_that_the_daemon_is_away_and_goes_on_by_itself() {
    let scene = Scene::new("pageaway", 2);
    let daemon = scene.daemon();
    let address = format!("127.0.0.1:{}", daemon.port());
    let browser = open(&daemon);
    wait_for_headline(&browser, "Live");
    daemon.kill();
    wait_for_headline(&browser, "No answer since");
    wait_for("how long ago is told", Duration::from_secs(20), || browser.text().contains(" s ago"));
    let _daemon = scene.daemon_with(&[("HTTP_ADDRESS", address.as_str())]);
    wait_for_headline(&browser, "Live");
    check_is_never_reloaded(&browser);
}
