//! Keeps the import direction of the modules, and the purity of `model`.
#![expect(clippy::unwrap_used, reason = "a test that can't go on must stop loudly")]

use std::fs;
use std::path::{Path, PathBuf};

/// The rows of the table in `src/lib.rs`: a module imports only from rows above its own, never from its own row.
const ROWS: &[&[&str]] = &[
    &["model"],
    &["config", "failpoint", "native", "observe"],
    &["kafka"],
    &["outlet", "source", "spool", "store"],
    &["pipeline", "projector", "relay"],
    &["http"],
    &["app"],
    &["cli"],
];

/// What `model` never names.
const IMPURE: &[&str] = &[
    "tokio",
    "rdkafka",
    "sqlx",
    "tracing",
    "std::fs",
    "std::env",
    "std::net::Tcp",
    "Instant::now",
    "SystemTime",
    "rand::",
];

fn files(path: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn row_of(module: &str) -> Option<usize> {
    ROWS.iter().position(|row| row.contains(&module))
}

/// The source files with the name of their top-level module.
fn sources() -> Vec<(String, PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    files(&root, &mut found);
    found
        .into_iter()
        .map(|path| {
            let first = path.strip_prefix(&root).unwrap().components().next().unwrap();
            let module = first.as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned();
            let text = fs::read_to_string(&path).unwrap();
            (module, path, text)
        })
        .collect()
}

/// The modules that `line` imports from this crate.
fn imports(line: &str) -> Vec<&str> {
    let code = line.split("//").next().unwrap_or_default();
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = code.get(at + 7..).unwrap_or_default();
        let names = rest.strip_prefix('{').and_then(|rest| rest.split('}').next()).unwrap_or(rest);
        let is_list = rest.starts_with('{');
        for name in names.split(',').take(if is_list { usize::MAX } else { 1 }) {
            let end =
                name.trim().find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(name.trim().len());
            found.extend(name.trim().get(..end));
        }
    }
    found
}

#[test]
fn a_module_imports_only_from_rows_above_its_own() {
    let mut checked_count = 0;
    for (module, path, text) in sources() {
        if module == "main" || module == "lib" {
            continue;
        }
        let own = row_of(&module).unwrap_or_else(|| panic!("{module} stands in no row"));
        for (number, line) in text.lines().enumerate() {
            for import in imports(line).into_iter().filter(|import| *import != module) {
                checked_count += 1;
                let row =
                    row_of(import).unwrap_or_else(|| panic!("{}:{}: {import}?", path.display(), number + 1));
                assert!(row < own, "{}:{}: {module} imports {import}", path.display(), number + 1);
            }
        }
    }
    assert!(checked_count > 50, "only {checked_count} imports were seen");
}

#[test]
fn the_model_is_pure() {
    let shipped = sources()
        .into_iter()
        .filter(|(_, path, _)| !path.iter().any(|part| part.to_string_lossy().starts_with("tests")));
    for (module, path, text) in shipped {
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        for line in code.filter(|_| module == "model") {
            for word in IMPURE {
                assert!(!line.contains(word), "{}: {line}", path.display());
            }
        }
    }
}

#[test]
fn unsafe_code_stands_in_one_file() {
    let with_unsafe: Vec<PathBuf> = sources()
        .into_iter()
        .filter(|(_, _, text)| text.contains("unsafe {"))
        .map(|(_, path, _)| path)
        .collect();
    assert!(matches!(with_unsafe.as_slice(), [only] if only.ends_with("src/native.rs")), "{with_unsafe:?}");
}
