//! Lakes that Python's own libraries make, change and read.
//!
//! Invariant: what counts as equal is decided by what those libraries see, and by bytes where no
//! library is involved; never by Sluice.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

use serde_json::{Value, json};

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
        let steps = python(&["steps".to_owned()]);
        serde_json::from_value(steps).expect("a list of names")
    }

    /// What a reader sees.
    pub fn inspect(&self) -> Value {
        inspect(&self.root)
    }
}

/// A small lake that changes in rounds, with a file that says what is true of each (`rounds.py`).
pub struct Rounds {
    root: PathBuf,
    truth: PathBuf,
}

impl Rounds {
    /// Round 0.
    pub fn begin(root: PathBuf, truth: PathBuf) -> Self {
        python(&["begin".to_owned(), text(&root), text(&truth)]);
        Self { root, truth }
    }

    /// The next round: every section changes.
    pub fn round(&self, number: u64) {
        python(&["round".to_owned(), text(&self.root), text(&self.truth), number.to_string()]);
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What readers may find: one JSON object a line.
    pub fn truth(&self) -> &Path {
        &self.truth
    }
}

/// What a reader sees in the lake at `root`, a source or a replica.
pub fn inspect(root: &Path) -> Value {
    python(&["inspect".to_owned(), text(root)])
}

/// One `lake.py serve` for the tests of this process.
struct Librarian {
    _process: Child,
    says: ChildStdin,
    hears: BufReader<ChildStdout>,
}

impl Librarian {
    /// Panics when there is no Python for it: a test that cannot look is a failed test.
    fn start() -> Self {
        let interpreter = std::env::var_os("SLUICE_PYTHON").unwrap_or_else(|| {
            panic!("SLUICE_PYTHON is not set: run `make test`, or `make setup` and set it to the environment's python")
        });
        let script = crate::folder().join("python/lake.py");
        let mut process = Command::new(&interpreter)
            .arg(&script)
            .arg("serve")
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{interpreter:?} does not start ({e}): run `make setup`"));
        let says = process.stdin.take().expect("piped");
        let hears = BufReader::new(process.stdout.take().expect("piped"));
        Self { _process: process, says, hears }
    }

    fn ask(&mut self, args: &[String]) -> Value {
        writeln!(self.says, "{}", json!(args)).expect("lake.py listens: its own words are above");
        let mut line = String::new();
        self.hears.read_line(&mut line).expect("lake.py answers");
        let mut answer: Value = serde_json::from_str(&line).expect("lake.py answers in JSON: its own words are above");
        if let Some(failure) = answer["failure"].as_str() {
            panic!("lake.py {args:?} failed:\n{failure}");
        }
        answer["answer"].take()
    }
}

/// Runs one verb of `lake.py` and gives its answer. It ends with this process, whose pipe it reads.
fn python(args: &[String]) -> Value {
    static LIBRARIAN: OnceLock<Mutex<Librarian>> = OnceLock::new();
    let librarian = LIBRARIAN.get_or_init(|| Mutex::new(Librarian::start()));
    // A failed verb of another test leaves it able to answer.
    librarian.lock().unwrap_or_else(PoisonError::into_inner).ask(args)
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
