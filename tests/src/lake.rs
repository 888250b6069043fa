//! Lakes that Python's own libraries make, change and read.
//!
//! Invariant: what counts as equal is decided by what those libraries see, and by bytes where no
//! library is involved; never by Sluice.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// How many differences are worth reading.
const DIFFERENCES_MAX: usize = 40;

/// A lake on disk that goes through the steps of `lake.py`.
pub struct Lake {
    root: PathBuf,
}

impl Lake {
    /// A new one; `options` go to `lake.py make`.
    pub fn make(root: PathBuf, options: &[&str]) -> Self {
        let mut args = vec!["make".to_owned(), text(&root)];
        args.extend(options.iter().map(|o| (*o).to_owned()));
        python(&args);
        Self { root }
    }

    /// A second lake with the same bytes, modes and times.
    pub fn copy_to(&self, root: PathBuf) -> Self {
        let done = Command::new("cp").arg("-a").arg(&self.root).arg(&root).status().expect("cp starts");
        assert!(done.success(), "cp -a {} {}", self.root.display(), root.display());
        Self { root }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Does one step.
    pub fn change(&self, step: &str) {
        python(&["change".to_owned(), text(&self.root), step.to_owned()]);
    }

    /// The names of all steps, in their order.
    pub fn steps() -> Vec<String> {
        python(&["steps".to_owned()]).lines().map(str::to_owned).collect()
    }

    /// What a reader sees.
    pub fn inspect(&self) -> Value {
        inspect(&self.root)
    }
}

/// What a reader sees in the lake at `root`, a source or a replica.
pub fn inspect(root: &Path) -> Value {
    let printed = python(&["inspect".to_owned(), text(root)]);
    serde_json::from_str(&printed).expect("lake.py inspect prints JSON")
}

/// Runs `lake.py` and gives what it printed. Panics when it fails, or when there is no Python for it:
/// a test that cannot look is a failed test.
pub fn python(args: &[String]) -> String {
    let interpreter = std::env::var_os("SLUICE_PYTHON").unwrap_or_else(|| {
        panic!(
            "SLUICE_PYTHON is not set: run the tests with `make test`, or `make setup` and set it to the venv's python"
        )
    });
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/lake.py");
    let done = Command::new(&interpreter)
        .arg(&script)
        .args(args)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .unwrap_or_else(|e| panic!("{interpreter:?} does not start ({e}): run `make setup`"));
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "lake.py {args:?} failed:\n{errors}");
    String::from_utf8(done.stdout).expect("lake.py prints UTF-8")
}

/// What differs between two inspections, as lines `path: left | right`. Empty means equal.
///
/// Write permission is left out, because published files are read-only; whether a file can be
/// executed is not.
pub fn differences(left: &Value, right: &Value) -> Vec<String> {
    let mut found = Vec::new();
    compare(String::new(), left, right, &mut found);
    found.truncate(DIFFERENCES_MAX);
    found
}

fn compare(at: String, left: &Value, right: &Value, found: &mut Vec<String>) {
    match (left, right) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).filter(|k| *k != "mode").collect();
            for key in keys {
                let (a, b) = (a.get(key).unwrap_or(&Value::Null), b.get(key).unwrap_or(&Value::Null));
                compare(format!("{at} > {key}"), a, b, found);
            }
        }
        _ if left != right => found.push(format!("{at}: {} | {}", short(left), short(right))),
        _ => {}
    }
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(160) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn text(path: &Path) -> String {
    path.to_str().expect("worlds have UTF-8 paths").to_owned()
}
