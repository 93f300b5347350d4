//! The image: the program asks its machine for no library that the image lacks, and what the Dockerfile names by version
//! is what the project is built with. What is tested is linked as the image's program is, by `.cargo/config.toml`.
#![expect(clippy::unwrap_used, reason = "a test that can't go on must stop loudly")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

const PROGRAM: &str = env!("CARGO_BIN_EXE_audit-consumer");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap()
}

/// `deploy/image/check-program PROGRAM PATHS..`
fn check_program(program: &str, paths: &[&str]) -> Output {
    Command::new(root().join("deploy/image/check-program")).arg(program).args(paths).output().unwrap()
}

#[track_caller]
fn check_refused(program: &str, paths: &[&str], expect: &str) {
    let output = check_program(program, paths);
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && told.contains(expect), "{program} {paths:?}: {told}");
}

/// The rest of the first line of `text` that begins with `start`.
#[track_caller]
fn behind<'a>(text: &'a str, start: &str) -> &'a str {
    let rest = text.lines().find_map(|line| line.strip_prefix(start));
    assert!(rest.is_some(), "no line begins with `{start}`");
    rest.unwrap()
}

#[test]
fn the_program_needs_no_library_that_the_image_lacks() {
    let output = check_program(PROGRAM, &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let needed = String::from_utf8(output.stdout).unwrap();
    assert!(needed.contains("libc.so.6") && needed.contains("libgcc_s.so.1"), "{needed}");
}

#[test]
fn a_program_that_needs_more_or_tells_where_it_was_built_is_refused() {
    check_refused("/bin/bash", &[], "needs libtinfo.so");
    // Dependencies' panics name their files, and the tests' build leaves their whole paths.
    check_refused(PROGRAM, &["no such path", "/registry/src/"], "holds the path /registry/src/");
    check_refused(root().join("Cargo.toml").to_str().unwrap(), &[], "Not an ELF file");
}

#[test]
fn the_dockerfile_builds_this_version_with_this_toolchain() {
    let dockerfile = read("Dockerfile");
    let toolchain = read("rust-toolchain.toml");
    let channel = behind(&toolchain, "channel = ").trim_matches('"');
    assert_eq!(behind(&dockerfile, "FROM rust:"), format!("{channel}-bookworm AS chef"));
    assert_eq!(behind(&dockerfile, "ENV RUSTUP_TOOLCHAIN="), channel);
    assert_eq!(behind(&dockerfile, "ARG VERSION="), env!("CARGO_PKG_VERSION"));
    let workflow = read(".github/workflows/ci.yml");
    assert_eq!(behind(&workflow, "    container: "), format!("rust:{channel}-bookworm"));
    // Debian 12, as the image that builds.
    let base = "gcr.io/distroless/cc-debian12:nonroot";
    assert_eq!(behind(&dockerfile, "FROM gcr.io"), base.trim_start_matches("gcr.io"));
    assert!(dockerfile.contains(&format!("base.name=\"{base}\"")), "the label names another base");
}
