//! Faults that tests put at the points of the disk layer. Only in builds with debug assertions.
//!
//! Settings are rules separated by `;`, each `POINTS@HIT=ACTION`. `POINTS` is a point's name or the
//! beginning of one and `*`; `HIT` counts the matching calls from 1, and with `+` behind it every
//! later one counts too; without `@HIT` every call does. Actions:
//!
//! | action | what the call does |
//! |---|---|
//! | `kill` | ends the process with SIGKILL; of a write, half is made before |
//! | `ENOSPC`, `EIO`, `EROFS` | fails with that error; of a write that fails with the first two, half is made before |
//! | `short` | a write takes half of its bytes and says so; other calls are made |
//! | `halt` | fails, and so does every later call: what a kill is for one process in a test |
//! | `log:FILE` | appends the point's name as a line to FILE, then is made |
//!
//! With `when:FILE` among the rules none of them counts or fires before FILE exists: so a test counts
//! from the command that it is about, not from the start of the process.
//!
//! `SLUICE_FAULTS` sets rules for the whole process; [`inject`] for what lies below one folder, so
//! that tests in one process do not meet.
//!
//! Invariant: without rules nothing here changes what a call does.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use rustix::io::Errno;

use super::{Effect, Room};

/// The variable with the rules for the whole process.
const VARIABLE: &str = "SLUICE_FAULTS";
/// What begins the setting that lets the rules wait for a file.
const WHEN: &str = "when:";

#[derive(Debug, Clone, PartialEq, Eq)]
enum Action {
    Kill,
    Fail(Errno),
    Short,
    Halt,
    Log(PathBuf),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    points: String,
    /// The first hit that counts; zero for all.
    first: u64,
    /// Later hits count too.
    on: bool,
    action: Action,
    hits: u64,
}

impl Rule {
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = |what: &str| format!("the fault `{text}` cannot be read: {what}");
        let (place, action) = text.split_once('=').ok_or_else(|| wrong("it has no `=`"))?;
        let (points, hit) = place.split_once('@').unwrap_or((place, "0+"));
        let plain = points.strip_suffix('*').unwrap_or(points);
        if points.is_empty() || plain.contains(|c: char| !c.is_ascii_lowercase() && c != '.' && c != '-') {
            return Err(wrong("a point is small letters, `.` and `-`, and may end in `*`"));
        }
        let first = hit.strip_suffix('+').unwrap_or(hit);
        let first = first.parse().map_err(|_| wrong("the hit is no number"))?;
        let action = match action {
            "kill" => Action::Kill,
            "ENOSPC" => Action::Fail(Errno::NOSPC),
            "EIO" => Action::Fail(Errno::IO),
            "EROFS" => Action::Fail(Errno::ROFS),
            "short" => Action::Short,
            "halt" => Action::Halt,
            other => match other.strip_prefix("log:") {
                Some(path) if !path.is_empty() => Action::Log(path.into()),
                _ => return Err(wrong("the action is none of kill, ENOSPC, EIO, EROFS, short, halt, log:FILE")),
            },
        };
        Ok(Self { points: points.to_string(), first, on: hit.ends_with('+'), action, hits: 0 })
    }

    fn is_for(&self, room: &str, what: &str) -> bool {
        let name = || room.bytes().chain([b'.']).chain(what.bytes());
        match self.points.strip_suffix('*') {
            Some(start) => name().take(start.len()).eq(start.bytes()),
            None => name().eq(self.points.bytes()),
        }
    }

    /// Counts a call; whether the rule fires.
    fn hit(&mut self) -> bool {
        self.hits += 1;
        self.hits == self.first || self.on && self.hits > self.first
    }
}

fn parse(text: &str) -> Result<Rules, String> {
    let mut rules = Rules::default();
    for setting in text.split(';').map(str::trim).filter(|t| !t.is_empty()) {
        match setting.strip_prefix(WHEN) {
            Some("") => return Err(format!("the fault `{setting}` cannot be read: it names no file")),
            Some(file) => rules.when = Some(file.into()),
            None => rules.rules.push(Rule::parse(setting)?),
        }
    }
    Ok(rules)
}

/// Rules and what became of them.
#[derive(Debug, Default)]
struct Rules {
    rules: Vec<Rule>,
    /// The file that the rules still wait for.
    when: Option<PathBuf>,
    /// Points that were passed, in their order, and where.
    passed: Vec<Passed>,
    fired: u64,
    halted: bool,
}

/// A point that was passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passed {
    /// Its name.
    pub point: String,
    /// The file, folder or name that was to change, below the folder of the rules.
    pub path: PathBuf,
}

/// What a call is to do.
enum Verdict {
    Go,
    Fail(Errno),
    Short,
    Kill,
}

impl Rules {
    fn judge(&mut self, room: &str, what: &str) -> Verdict {
        if self.halted {
            return Verdict::Fail(Errno::IO);
        }
        if self.when.as_ref().is_some_and(|file| !file.exists()) {
            return Verdict::Go;
        }
        self.when = None;
        let mut verdict = Verdict::Go;
        for rule in self.rules.iter_mut().filter(|r| r.is_for(room, what)) {
            if !rule.hit() {
                continue;
            }
            match &rule.action {
                Action::Log(path) => log(path, room, what),
                other => {
                    self.fired += 1;
                    verdict = match other {
                        Action::Fail(e) => Verdict::Fail(*e),
                        Action::Short => Verdict::Short,
                        Action::Halt => {
                            self.halted = true;
                            Verdict::Fail(Errno::IO)
                        }
                        Action::Kill | Action::Log(_) => Verdict::Kill,
                    };
                }
            }
        }
        verdict
    }
}

/// Appends a line; a log that cannot be written would make a test pass for the wrong reason.
fn log(path: &Path, room: &str, what: &str) {
    let file = File::options().create(true).append(true).open(path);
    let line = format!("{room}.{what}\n");
    file.and_then(|mut f| f.write_all(line.as_bytes())).expect("the log of the fault points can be written");
}

/// Rules for what lies below one folder; they end with this value.
#[derive(Debug)]
pub struct Injected(Arc<Scope>);

#[derive(Debug)]
pub(super) struct Scope {
    root: PathBuf,
    rules: Mutex<Rules>,
    pub(super) trace: Option<Mutex<Vec<super::trace::Done>>>,
}

static SCOPES: RwLock<Vec<Arc<Scope>>> = RwLock::new(Vec::new());
static SCOPE_COUNT: AtomicUsize = AtomicUsize::new(0);

/// Puts rules on everything below `root` until the value is dropped.
pub fn inject(root: &Path, rules: &str) -> Result<Injected, String> {
    Ok(Injected(enter(root, parse(rules)?, None)))
}

fn enter(root: &Path, rules: Rules, trace: Option<Mutex<Vec<super::trace::Done>>>) -> Arc<Scope> {
    let root = root.canonicalize().unwrap_or_else(|_| root.to_path_buf());
    let scope = Arc::new(Scope { root, rules: Mutex::new(rules), trace });
    SCOPES.write().unwrap_or_else(PoisonError::into_inner).push(scope.clone());
    SCOPE_COUNT.fetch_add(1, Ordering::SeqCst);
    scope
}

pub(super) fn enter_traced(root: &Path) -> Arc<Scope> {
    enter(root, Rules::default(), Some(Mutex::default()))
}

pub(super) fn leave(scope: &Arc<Scope>) {
    SCOPES.write().unwrap_or_else(PoisonError::into_inner).retain(|s| !Arc::ptr_eq(s, scope));
    SCOPE_COUNT.fetch_sub(1, Ordering::SeqCst);
}

impl Injected {
    /// How often a rule other than `log` fired.
    pub fn fired(&self) -> u64 {
        lock(&self.0.rules).fired
    }

    /// The points that were passed, in their order.
    pub fn passed(&self) -> Vec<Passed> {
        lock(&self.0.rules).passed.clone()
    }
}

impl Drop for Injected {
    fn drop(&mut self) {
        leave(&self.0);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The scopes that a change lies in, and where in each.
pub(super) fn scopes_of(effect: &Effect<'_>) -> Vec<(Arc<Scope>, PathBuf)> {
    if SCOPE_COUNT.load(Ordering::SeqCst) == 0 {
        return vec![];
    }
    let Some(path) = path_of(effect) else { return vec![] };
    let all = SCOPES.read().unwrap_or_else(PoisonError::into_inner);
    all.iter().filter_map(|s| Some((s.clone(), path.strip_prefix(&s.root).ok()?.to_path_buf()))).collect()
}

fn path_of(effect: &Effect<'_>) -> Option<PathBuf> {
    let (fd, name): (BorrowedFd<'_>, &str) = match *effect {
        Effect::Create(at) | Effect::Folder(at) | Effect::Symlink(_, at) | Effect::Link(_, at) => at,
        Effect::Rename(_, at, _) | Effect::Remove(at) | Effect::RemoveFolder(at) => at,
        Effect::Write(fd, ..) | Effect::Length(fd, _) | Effect::Mode(fd, _) | Effect::Time(fd, _) => (fd, ""),
        Effect::Clone(fd, _) | Effect::SyncData(fd) | Effect::SyncAll(fd) | Effect::SyncSystem(fd) => (fd, ""),
        Effect::Commit(home) => return home.canonicalize().ok(),
    };
    let path = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok()?;
    Some(if name.is_empty() { path } else { path.join(name) })
}

fn from_environment() -> Option<&'static Mutex<Rules>> {
    static RULES: OnceLock<Option<Mutex<Rules>>> = OnceLock::new();
    let read = || {
        let text = std::env::var(VARIABLE).ok().filter(|t| !t.is_empty())?;
        // What cannot be read was refused at the start, before anything was written.
        Some(Mutex::new(parse(&text).unwrap_or_default()))
    };
    RULES.get_or_init(read).as_ref()
}

/// Refuses rules in the environment that cannot be read.
pub(super) fn check_settings() -> Result<(), String> {
    match std::env::var(VARIABLE) {
        Ok(text) => parse(&text).map(|_| ()).map_err(|e| format!("{VARIABLE}: {e}")),
        Err(std::env::VarError::NotPresent) => Ok(()),
        Err(e) => Err(format!("{VARIABLE}: {e}")),
    }
}

fn judge(room: Room, effect: &Effect<'_>) -> Verdict {
    let what = effect.what();
    let mut verdict = Verdict::Go;
    if let Some(rules) = from_environment() {
        verdict = lock(rules).judge(room, what);
    }
    for (scope, path) in scopes_of(effect) {
        let mut rules = lock(&scope.rules);
        rules.passed.push(Passed { point: format!("{room}.{what}"), path });
        match rules.judge(room, what) {
            Verdict::Go => {}
            other => verdict = other,
        }
    }
    verdict
}

/// Called before every change that is no write.
pub(super) fn before(room: Room, effect: &Effect<'_>) -> io::Result<()> {
    match judge(room, effect) {
        Verdict::Go | Verdict::Short => Ok(()),
        Verdict::Fail(e) => Err(e.into()),
        Verdict::Kill => kill(),
    }
}

/// Called before every write: how many of the bytes the next call may take.
pub(super) fn allowed(room: Room, file: &File, offset: u64, bytes: &[u8]) -> io::Result<usize> {
    let half = bytes.len() / 2;
    let write_half = || rustix::io::pwrite(file, &bytes[..half], offset);
    match judge(room, &Effect::Write(file.as_fd(), offset, bytes)) {
        Verdict::Go => Ok(bytes.len()),
        Verdict::Short => Ok(half.max(1)),
        Verdict::Fail(e) => {
            if e != Errno::ROFS {
                write_half()?;
            }
            Err(e.into())
        }
        Verdict::Kill => {
            write_half()?;
            kill()
        }
    }
}

fn kill() -> ! {
    // Nothing is cleaned up after SIGKILL, and no handler runs; should it not come, waiting is all there is.
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    loop {
        std::thread::park();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk;

    #[test]
    fn rules_are_read_or_refused_with_a_sentence() {
        let rules = parse("live.replace@1=kill; staging.*@7+=EIO;*=log:/tmp/x;*@120=short").unwrap().rules;
        assert_eq!(rules.len(), 4);
        assert!(rules[1].is_for("staging", "write") && !rules[1].is_for("staging-tree", "write"));
        assert!(rules[0].is_for("live", "replace") && !rules[0].is_for("live", "remove"));
        for wrong in ["x", "=kill", "A@1=kill", "a@b=kill", "a@1=die", "a=log:", "a*b@1=kill", "when:"] {
            let told = parse(wrong).unwrap_err();
            assert!(told.contains(&format!("`{wrong}`")), "{told}");
        }
    }

    #[test]
    fn faults_stay_in_their_folder_and_end_with_their_guard() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let open = |dir: &tempfile::TempDir| File::open(dir.path()).unwrap();
        let guard = inject(a.path(), "room.create@2=ENOSPC").unwrap();
        disk::create("room", open(&a), "1", 0o600).unwrap();
        disk::create("room", open(&b), "1", 0o600).unwrap();
        let full = disk::create("room", open(&a), "2", 0o600).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        let passed = |name: &str| Passed { point: "room.create".to_string(), path: name.into() };
        assert_eq!((guard.fired(), guard.passed()), (1, vec![passed("1"), passed("2")]));
        drop(guard);
        disk::create("room", open(&a), "2", 0o600).unwrap();
    }

    #[test]
    fn rules_that_wait_for_a_file_count_from_then_on() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let file = other.path().join("now");
        let guard = inject(dir.path(), &format!("when:{};room.create@2=ENOSPC", file.display())).unwrap();
        let create = |name: &str| disk::create("room", File::open(dir.path()).unwrap(), name, 0o600);
        create("1").unwrap();
        create("2").unwrap();
        std::fs::write(&file, "").unwrap();
        create("3").unwrap();
        assert_eq!(guard.fired(), 0);
        create("4").unwrap_err();
        assert_eq!(guard.fired(), 1);
    }

    #[test]
    fn a_short_write_goes_on_and_a_failed_one_has_written_half() {
        let dir = tempfile::tempdir().unwrap();
        let file = disk::create("room", File::open(dir.path()).unwrap(), "f", 0o600).unwrap();
        let path = dir.path().join("f");
        {
            let _short = inject(dir.path(), "room.write=short").unwrap();
            disk::write_all_at("room", &file, b"12345678", 0).unwrap();
        }
        assert_eq!(std::fs::read(&path).unwrap(), b"12345678");
        let _full = inject(dir.path(), "room.write@1=ENOSPC").unwrap();
        disk::write_all_at("room", &file, b"abcdefgh", 0).unwrap_err();
        assert_eq!(std::fs::read(&path).unwrap(), b"abcd5678");
    }

    #[test]
    fn after_a_halt_nothing_reaches_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let _halt = inject(dir.path(), "room.sync@1=halt").unwrap();
        let folder = || File::open(dir.path()).unwrap();
        disk::create("room", folder(), "before", 0o600).unwrap();
        disk::sync_all("room", folder()).unwrap_err();
        disk::create("room", folder(), "after", 0o600).unwrap_err();
        assert!(!dir.path().join("after").exists());
    }
}
