//! A headless Chromium, driven by `chromedriver` over the `WebDriver` protocol (<https://www.w3.org/TR/webdriver2/>).

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// How long Chromium may take for one command.
const PATIENCE: Duration = Duration::from_secs(180);

/// One window; closed when dropped.
#[derive(Debug)]
pub(crate) struct Browser {
    driver: Child,
    port: u16,
    session: Option<String>,
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Chromium ends with its session, and not with the driver.
        let closed = self.session.is_none() || self.ask("DELETE", "", None).is_ok();
        let killed = self.driver.kill().and_then(|()| self.driver.wait()).is_ok();
        assert!((closed && killed) || std::thread::panicking(), "chromium may still run");
    }
}

impl Browser {
    /// Starts Chromium; panics where it is not installed.
    pub(crate) fn start() -> Self {
        let mut command = Command::new("chromedriver");
        command.arg("--port=0").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut driver = command.spawn().unwrap_or_else(|error| {
            panic!("start chromedriver: {error}; `deploy/local/stack install tests` as root installs it")
        });
        let lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let said = lines.map_while(Result::ok).find(|line| line.contains("started successfully on port"));
        let said = said.unwrap_or_else(|| panic!("chromedriver did not start"));
        let port = said.trim_end_matches('.').rsplit(' ').next().unwrap().parse().unwrap();
        let mut browser = Self { driver, port, session: None };
        // Chromium has no sandbox for root; it sees our own page only.
        let arguments =
            ["--headless", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars"];
        let capabilities = json!({
            "browserName": "chrome",
            "goog:loggingPrefs": {"browser": "ALL"},
            "goog:chromeOptions": {"args": arguments},
        });
        let asked = json!({"capabilities": {"alwaysMatch": capabilities}});
        let begun = browser.ask("POST", "", Some(&asked)).unwrap_or_else(|error| panic!("{error}"));
        browser.session = Some(begun["sessionId"].as_str().unwrap().to_owned());
        browser
    }

    /// Opens an address.
    pub(crate) fn open(&self, url: &str) {
        self.done("/url", &json!({"url": url}));
    }

    /// What a script returns.
    pub(crate) fn run(&self, script: &str) -> Value {
        self.done("/execute/sync", &json!({"script": script, "args": []}))
    }

    /// What a person reads.
    pub(crate) fn text(&self) -> String {
        self.run("return document.body.innerText").as_str().unwrap().to_owned()
    }

    /// Becomes a screen of this width, in this colour scheme.
    pub(crate) fn show_as(&self, width: u32, height: u32, scheme: &str) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        self.devtools("Emulation.setDeviceMetricsOverride", &size);
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.devtools("Emulation.setEmulatedMedia", &features);
    }

    fn devtools(&self, command: &str, parameters: &Value) {
        self.done("/goog/cdp/execute", &json!({"cmd": command, "params": parameters}));
    }

    /// What the page and Chromium wrote to the console since the last question.
    pub(crate) fn console(&self) -> Vec<String> {
        let entries = self.done("/se/log", &json!({"type": "browser"}));
        let entries = entries.as_array().unwrap().iter();
        entries.map(|entry| entry["message"].as_str().unwrap().to_owned()).collect()
    }

    /// Keeps a picture of the window as PNG.
    pub(crate) fn keep_picture(&self, file: &Path) {
        let picture = self.ask("GET", "/screenshot", None).unwrap_or_else(|error| panic!("{error}"));
        std::fs::write(file, STANDARD.decode(picture.as_str().unwrap()).unwrap()).unwrap();
    }

    #[track_caller]
    fn done(&self, path: &str, body: &Value) -> Value {
        self.ask("POST", path, Some(body)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// One command, of the session once there is one.
    fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, String> {
        let session = self.session.as_ref().map(|session| format!("/{session}")).unwrap_or_default();
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = format!(
            "{method} /session{session}{path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.port,
            body.len()
        );
        let answer = exchange(self.port, &request).map_err(|error| format!("ask chromedriver: {error}"))?;
        let mut answer: Value =
            serde_json::from_str(&answer).map_err(|error| format!("{error}: {answer}"))?;
        let value = answer["value"].take();
        if value["error"].is_string() { Err(value.to_string()) } else { Ok(value) }
    }
}

/// The body of the answer, which has a length.
fn exchange(port: u16, request: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(request.as_bytes())?;
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(String::from_utf8_lossy(&body).into_owned())
}
