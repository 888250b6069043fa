//! One real site: a home, a `sluice up` process, and commands that are run against it.
//!
//! Invariant: the process dies with the value, and what it printed is shown when the test fails.

use std::ffi::OsStr;
use std::fs::File;
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::{wait, world};

/// How long a site may take until it answers, on a busy machine with a debug build.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long a command may take that goes on only while another site lives.
const COMMAND_LIMIT: Duration = Duration::from_secs(120);
/// How much of a log is shown after a failure.
const LOG_LINES_SHOWN: usize = 80;

/// What one command printed and returned.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command line, for messages.
    pub line: String,
    /// The exit code; -1 when a signal ended it.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// Itself, if the exit code is `code`; panics with everything printed otherwise.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code, code, "exit code of `{}`\n{}\n{}", self.line, self.stdout, self.stderr);
        self
    }

    /// Itself, if it succeeded.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.expect_code(0)
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|e| panic!("`{}` printed no JSON ({e}): {self:#?}", self.line))
    }

    /// The last line of standard error as the JSON of a failure: its sentence and its hint.
    #[track_caller]
    pub fn failure(&self) -> (String, String) {
        let line = self.stderr.lines().last().unwrap_or_default();
        let value: Value = serde_json::from_str(line)
            .or_else(|_| serde_json::from_str(&self.stderr))
            .unwrap_or_else(|e| panic!("`{}` explains nothing in JSON ({e}): {self:#?}", self.line));
        let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
        (text("error"), text("hint"))
    }
}

/// A site with its home; its process, if it is up.
pub struct Site {
    name: String,
    home: PathBuf,
    log: PathBuf,
    p2p_port: u16,
    process: Option<Child>,
    /// More environment for the process and the commands.
    variables: Vec<(String, String)>,
    /// A command line that the process, and it alone, is started by; it must end in `exec`.
    wrapper: Vec<String>,
}

impl Site {
    /// Makes a home in `dir` with `sluice init`.
    #[track_caller]
    pub fn init(dir: &Path, name: &str) -> Self {
        let site = Self {
            name: name.to_owned(),
            home: dir.join(name),
            log: dir.join(format!("{name}.log")),
            p2p_port: free_port(),
            process: None,
            variables: Vec::new(),
            wrapper: Vec::new(),
        };
        site.run(["init", "--name", name]).ok();
        site
    }

    /// Sets a variable for everything that is run from now on.
    pub fn set(&mut self, key: &str, value: &str) {
        self.variables.push((key.to_owned(), value.to_owned()));
    }

    /// Starts the process by this command line from now on; the program and its arguments follow it.
    pub fn wrap(&mut self, wrapper: &[&str]) {
        self.wrapper = wrapper.iter().map(|w| (*w).to_owned()).collect();
    }

    /// The command line of the process, with its wrapper.
    fn up(&self) -> Command {
        let inner = self.command(["up"]);
        let Some((program, args)) = self.wrapper.split_first() else { return inner };
        let mut outer = Command::new(program);
        outer.args(args).arg(inner.get_program()).args(inner.get_args());
        for (key, value) in inner.get_envs() {
            match value {
                Some(value) => outer.env(key, value),
                None => outer.env_remove(key),
            };
        }
        outer
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn home(&self) -> &Path {
        &self.home
    }

    /// The port on which peers reach it, the same after a restart.
    pub fn p2p_port(&self) -> u16 {
        self.p2p_port
    }

    /// Starts the process and waits until it answers.
    #[track_caller]
    pub fn start(&mut self) {
        assert!(self.try_start(), "{} ended at once: {}", self.name, self.log_tail());
    }

    /// Starts the process and waits until it answers, or ends: then `false`.
    #[track_caller]
    pub fn try_start(&mut self) -> bool {
        assert!(self.process.is_none(), "{} is up already", self.name);
        let log = File::options().create(true).append(true).open(&self.log).expect("a log file");
        let child = self
            .up()
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("sluice starts");
        self.process = Some(child);
        let what = format!("{} to answer (log: {})", self.name, self.log.display());
        wait::until(&what, START_LIMIT, || {
            if self.has_ended() {
                return Some(false);
            }
            (self.run(["status", "--json"]).code == 0).then_some(true)
        })
    }

    /// Whether a process is there that was not waited for; it may have been killed meanwhile.
    pub fn is_up(&self) -> bool {
        self.process.is_some()
    }

    /// Whether the process ended by itself; then there is none any more.
    pub fn has_ended(&mut self) -> bool {
        // A command may hear of the end before the system has cleared the process away.
        let gone = |p: &mut Child| {
            let ended = |p: &mut Child| p.try_wait().expect("a child can be asked").is_some();
            (0..5).any(|_| {
                ended(p) || {
                    std::thread::sleep(Duration::from_millis(10));
                    false
                }
            })
        };
        let ended = self.process.as_mut().is_none_or(gone);
        if ended {
            self.process = None;
        }
        ended
    }

    /// Runs one command against this site: `sluice --home HOME …`.
    pub fn run<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, args: I) -> Output {
        let mut command = self.command(args);
        finish(&mut command)
    }

    /// Runs one command for as long as `other` lives; none when it was given up because that site ended.
    /// The work that it asked for may go on within this site.
    #[track_caller]
    pub fn run_beside(&self, other: &mut Site, args: &[&str]) -> Option<Output> {
        let mut command = self.command(args);
        let line = format!("{command:?}");
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("sluice starts");
        let mut ended = || child.try_wait().expect("a child can be asked").is_some();
        let finished = wait::until(&line, COMMAND_LIMIT, || (ended() || other.has_ended()).then(&mut ended));
        if !finished {
            child.kill().expect("a child can be killed");
        }
        let done = child.wait_with_output().expect("a command ends");
        finished.then(|| output(line, done))
    }

    /// Runs one command and gives its JSON; `--json` is added.
    #[track_caller]
    pub fn json<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, args: I) -> Value {
        self.run(with_json(args)).ok().json()
    }

    /// Runs a command that fails with `code`, and gives its sentence and its hint.
    #[track_caller]
    pub fn fails<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, code: i32, args: I) -> (String, String) {
        self.run(with_json(args)).expect_code(code).failure()
    }

    /// A command line of this site that the caller starts.
    pub fn command<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, args: I) -> Command {
        let mut command = sluice();
        command.arg("--home").arg(&self.home).args(args);
        command.env("SLUICE__P2P__PORT", self.p2p_port.to_string()).env("SLUICE__API__PORT", "0");
        // Most tests take every step themselves; those that follow say so with `set`.
        command.env("SLUICE__FOLLOW__ENABLED", "false");
        command.envs(self.variables.iter().map(|(k, v)| (k, v)));
        command
    }

    /// A ticket for a space, for reading.
    #[track_caller]
    pub fn invite(&self, space: &str) -> String {
        let invitation = self.json(["invite", space, "--read"]);
        invitation["ticket"].as_str().expect("invite --json has `ticket`").to_owned()
    }

    /// Ends the process as a power cut would.
    #[track_caller]
    pub fn kill9(&mut self) {
        let mut child = self.process.take().expect("the site is up");
        child.kill().expect("a child can be killed");
        child.wait().expect("a killed child ends");
    }

    /// `kill9`, when there is a process.
    pub fn kill9_if_up(&mut self) {
        if !self.has_ended() {
            self.kill9();
        }
    }

    /// Asks the process to end, as systemd does, and waits for it. Gives its exit code.
    #[track_caller]
    pub fn stop(&mut self) -> Option<i32> {
        let mut child = self.process.take().expect("the site is up");
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("a child can be signalled");
        let status = wait::until("the site to end", START_LIMIT, || child.try_wait().expect("a child can be asked"));
        status.code()
    }

    /// The most memory that the process ever had, in bytes.
    #[track_caller]
    pub fn peak_bytes(&self) -> u64 {
        let id = self.process.as_ref().expect("the site is up").id();
        let text = std::fs::read_to_string(format!("/proc/{id}/status")).expect("a process has a status");
        let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:")).expect("Linux tells the peak");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number of KiB");
        kib << 10
    }

    /// Stops the process where it is, as a very slow machine would; `go_on` lets it run again.
    #[track_caller]
    pub fn pause(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    /// Ends `pause`.
    #[track_caller]
    pub fn go_on(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    #[track_caller]
    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(self.process.as_ref().expect("the site is up"));
        rustix::process::kill_process(pid, signal).expect("a child can be signalled");
    }

    /// `kill9`, then `start`.
    #[track_caller]
    pub fn restart(&mut self) {
        self.kill9();
        self.start();
    }

    /// What the process printed last.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n")
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(mut child) = self.process.take() {
            // Nothing can be done about a child that is gone already.
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- log of {} ---\n{}\n---", self.name, self.log_tail());
        }
    }
}

/// `sluice`, without a home, in an environment that decides nothing for it.
pub fn sluice() -> Command {
    let mut command = Command::new(binary());
    for (key, _) in std::env::vars_os() {
        if key.to_string_lossy().starts_with("SLUICE") {
            command.env_remove(key);
        }
    }
    command.env("SLUICE_ALLOW_VOLATILE", "1").stdin(Stdio::null());
    command
}

/// Runs a command to its end.
pub fn finish(command: &mut Command) -> Output {
    let line = format!("{command:?}");
    let done = command.output().unwrap_or_else(|e| panic!("{line} does not start: {e}"));
    output(line, done)
}

/// What a process of ours that ended printed and returned.
pub fn output(line: String, done: std::process::Output) -> Output {
    Output {
        line,
        code: done.status.code().unwrap_or(-1),
        stdout: String::from_utf8(done.stdout).expect("sluice prints UTF-8"),
        stderr: String::from_utf8(done.stderr).expect("sluice prints UTF-8"),
    }
}

fn with_json<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(args: I) -> Vec<std::ffi::OsString> {
    let mut args: Vec<_> = args.into_iter().map(|a| a.as_ref().to_owned()).collect();
    args.push("--json".into());
    args
}

/// The program under test: `SLUICE_BIN`, or the one that was built beside the tests.
fn binary() -> PathBuf {
    let path = match std::env::var_os("SLUICE_BIN") {
        Some(path) => PathBuf::from(path),
        None => world::target_dir().join("sluice"),
    };
    assert!(
        path.is_file(),
        "{} is missing: build it with `cargo build --workspace --bin sluice`, or run `make test`",
        path.display()
    );
    path
}

/// A port that is free for both protocols now. Another program could take it before the site does;
/// the site then says so and the test fails with that sentence.
fn free_port() -> u16 {
    wait::until("a free port", START_LIMIT, || {
        let udp = UdpSocket::bind("0.0.0.0:0").ok()?;
        let port = udp.local_addr().ok()?.port();
        TcpListener::bind(("0.0.0.0", port)).ok().map(|_| port)
    })
}
