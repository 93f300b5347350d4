//! The door of the HTTP side: TLS, the token, and the port for probes.

use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::scene::{Daemon, Scene, wait_for};

const PATIENCE: Duration = Duration::from_secs(20);

/// A folder with what `deploy/local/certificates` makes.
fn certificates() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("door-certificates");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/local/certificates");
    assert!(Command::new(script).arg(&folder).status().unwrap().success());
    folder
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The status line of a GET by `openssl s_client`, which trusts `ca` alone; empty where no handshake succeeds.
fn get_by_tls(port: u16, path: &str, ca: &Path) -> String {
    let mut client = Command::new("openssl")
        .args(["s_client", "-quiet", "-verify_return_error", "-verify_hostname", "localhost", "-CAfile"])
        .arg(ca)
        .args(["-connect", &format!("127.0.0.1:{port}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    // It may have ended already, where it trusts nobody.
    drop(client.stdin.as_mut().unwrap().write_all(request.as_bytes()));
    let output = client.wait_with_output().unwrap();
    String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned()
}

/// The status code of a GET that brings `authorization`.
fn get_with(daemon: &Daemon, path: &str, authorization: &str) -> u16 {
    daemon.get_with(path, &format!("Authorization: {authorization}\r\n")).unwrap().0
}

#[test]
fn tls_takes_another_certificate_without_a_restart_and_probes_have_a_port_of_their_own() {
    let certificates = certificates();
    let scene = Scene::new("tls", 1);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(&scene.name);
    std::fs::create_dir_all(&folder).unwrap();
    let [certificate, key] = ["http.pem", "http.key"].map(|name| folder.join(name));
    let exchange = |name: &str| {
        for (path, suffix) in [(&key, "key"), (&certificate, "pem")] {
            // Whole or not at all: whoever connects has it read.
            let part = path.with_extension("part");
            std::fs::copy(certificates.join(format!("{name}.{suffix}")), &part).unwrap();
            std::fs::rename(&part, path).unwrap();
        }
    };
    exchange("server");
    let probes = format!("127.0.0.1:{}", free_port());
    let scene = scene
        .set("HTTP_TLS_CERTIFICATE_FILE", certificate.to_str().unwrap())
        .set("HTTP_TLS_KEY_FILE", key.to_str().unwrap())
        .set("HTTP_PROBE_ADDRESS", &probes);
    let mut daemon = scene.daemon();
    let ca = certificates.join("ca.pem");
    wait_for("an answer by tls", PATIENCE, || get_by_tls(daemon.port(), "/status", &ca) == "HTTP/1.1 200 OK");
    assert_eq!(get_by_tls(daemon.port(), "/status", &certificates.join("other-ca.pem")), "");
    assert_eq!(daemon.get("/livez"), None, "in plain text nobody answers");
    let probe = |path: &str| Daemon::get_at(probes.parse().unwrap(), path).unwrap().0;
    assert_eq!(["/livez", "/healthz", "/metrics"].map(probe), [200; 3]);
    assert_eq!(["/", "/status"].map(probe), [404; 2]);
    scene.done(&["healthcheck"]);

    // Whoever connects without a word keeps nobody waiting.
    let _silent = std::net::TcpStream::connect(("127.0.0.1", daemon.port())).unwrap();
    exchange("elsewhere");
    assert_eq!(get_by_tls(daemon.port(), "/status", &ca), "", "it is for another host now");
    std::fs::write(&certificate, "half a certifi").unwrap();
    assert_eq!(get_by_tls(daemon.port(), "/status", &ca), "");
    exchange("server");
    assert_eq!(get_by_tls(daemon.port(), "/status", &ca), "HTTP/1.1 200 OK");
    std::fs::remove_file(&key).unwrap();
    assert_eq!(get_by_tls(daemon.port(), "/status", &ca), "HTTP/1.1 200 OK", "the one before stays");
    let told = daemon.log_text().matches("the certificate of the http side stays").count();
    // Once more where a connection came between key and certificate.
    assert!((2..=3).contains(&told), "{}", daemon.log_text());
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());

    let scene = scene.set("HTTP_TLS_KEY_FILE", certificates.join("client.key").to_str().unwrap());
    let mut daemon = scene.daemon();
    assert_eq!(daemon.wait_for_end(PATIENCE).code(), Some(1));
    assert!(daemon.log_text().contains("HTTP_TLS_KEY_FILE="), "{}", daemon.log_text());
    assert!(daemon.log_text().contains("does not go with the certificate"), "{}", daemon.log_text());
}

#[test]
fn the_status_and_its_page_want_the_token_and_nothing_else_does() {
    let scene = Scene::new("token", 1);
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}.token", scene.name));
    std::fs::write(&path, "first\n").unwrap();
    let scene = scene.set("HTTP_TOKEN_FILE", path.to_str().unwrap());
    let mut daemon = scene.daemon();
    wait_for("an answer", PATIENCE, || daemon.get("/livez").is_some_and(|(code, _)| code == 200));
    assert_eq!(daemon.get("/metrics").unwrap().0, 200);
    assert!([200, 503].contains(&daemon.get("/readyz").unwrap().0));
    for path in ["/", "/status"] {
        let (code, body) = daemon.get(path).unwrap();
        assert!(code == 401 && body.contains("HTTP_TOKEN_FILE"), "{path}: {code} {body}");
        let basic = |pair: &str| format!("Basic {}", STANDARD.encode(pair));
        for wrong in ["Bearer second", "Bearer ", "Bearer firs", "Bearer first2", &basic("first:x"), "first"]
        {
            assert_eq!(get_with(&daemon, path, wrong), 401, "{path}: {wrong}");
        }
        for right in ["Bearer first", &basic("anyone:first"), &basic(":first")] {
            assert_eq!(get_with(&daemon, path, right), 200, "{path}: {right}");
        }
    }
    std::fs::write(&path, "second").unwrap();
    assert_eq!(
        ["Bearer first", "Bearer second"].map(|token| get_with(&daemon, "/status", token)),
        [401, 200]
    );
    std::fs::write(&path, "").unwrap();
    assert_eq!(get_with(&daemon, "/status", "Bearer "), 503);
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
}

#[test]
fn what_does_not_go_together_is_refused_at_the_start() {
    let certificates = certificates();
    let [certificate, key] =
        ["server.pem", "server.key"].map(|name| certificates.join(name).to_str().unwrap().to_owned());
    let scene = Scene::new("refuseddoor", 1);
    for (settings, expect) in [
        (vec![("HTTP_TLS_CERTIFICATE_FILE", &*certificate)], "goes together with HTTP_TLS_KEY_FILE"),
        (vec![("HTTP_TLS_KEY_FILE", &*key)], "goes together with HTTP_TLS_CERTIFICATE_FILE"),
        (
            vec![("HTTP_TLS_CERTIFICATE_FILE", &*certificate), ("HTTP_TLS_KEY_FILE", &*key)],
            "set HTTP_PROBE_ADDRESS, too",
        ),
        (vec![("HTTP_PROBE_ADDRESS", "0.0.0.0:8080")], "another port than HTTP_ADDRESS"),
        (vec![("HTTP_TOKEN_FILE", "/nowhere")], "HTTP_TOKEN_FILE=/nowhere: can't be read"),
    ] {
        let output = scene.command_with(&["check"], &settings);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && text.contains(expect), "{settings:?}: {text}");
    }
}
