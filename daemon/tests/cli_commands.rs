//! The program itself: its words, its exit codes, and one daemon for each home.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

/// `sluice` for one home, in an environment that decides nothing for it.
fn sluice(home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("SLUICE") {
            command.env_remove(name);
        }
    }
    command
        .envs([("SLUICE__P2P__PORT", "0"), ("SLUICE__API__PORT", "0"), ("SLUICE_ALLOW_VOLATILE", "1")])
        .arg("--home")
        .arg(home)
        .args(args)
        .stdin(Stdio::null());
    command
}

fn run(home: &Path, args: &[&str]) -> Output {
    sluice(home, args).output().unwrap()
}

#[track_caller]
fn json(home: &Path, args: &[&str]) -> Value {
    let done = run(home, &[args, &["--json"]].concat());
    assert!(done.status.success(), "{args:?}: {done:?}");
    serde_json::from_slice(&done.stdout).unwrap()
}

/// The error, hint and exit code of a command that fails.
#[track_caller]
fn fails(command: &mut Command) -> (String, String, i32) {
    let done = command.arg("--json").output().unwrap();
    assert!(done.stdout.is_empty(), "{done:?}");
    let told: Value = serde_json::from_slice(&done.stderr).unwrap_or_else(|e| panic!("{e}: {done:?}"));
    let text = |key: &str| told[key].as_str().unwrap_or_default().to_string();
    (text("error"), text("hint"), done.status.code().unwrap())
}

/// A home that `init` made.
fn site(folder: &tempfile::TempDir) -> PathBuf {
    let home = folder.path().join("home");
    json(&home, &["init", "--name", "playground"]);
    home
}

/// A running daemon; it ends with the value.
struct Daemon {
    child: Child,
    ready: String,
}

impl Daemon {
    fn start(home: &Path) -> Self {
        let mut child = sluice(home, &["up"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut ready = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        Self { child, ready }
    }

    fn terminate(mut self) -> Option<i32> {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), rustix::process::Signal::TERM)
            .unwrap();
        self.child.wait().unwrap().code()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn init_tells_the_site_and_the_recovery_key_once() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    let made = json(&home, &["init", "--name", "playground"]);
    assert_eq!((made["site"].as_str().unwrap().len(), made["recovery_key"].as_str().unwrap().len()), (64, 64));
    let (error, hint, code) = fails(&mut sluice(&home, &["init"]));
    assert!(error.contains("there is a site") && error.contains("key was kept") && !hint.is_empty(), "{error}");
    assert_eq!(code, 1);
    let named = folder.path().join("other");
    let plain = run(&named, &["init", "--name", "cradle"]);
    let text = String::from_utf8(plain.stdout).unwrap();
    assert!(text.contains("recovery key") && text.contains("cradle"), "{text}");
}

#[test]
fn a_home_that_would_not_last_is_refused() {
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    let (error, hint, code) = fails(sluice(&folder.path().join("home"), &["init"]).env_remove("SLUICE_ALLOW_VOLATILE"));
    assert!(error.contains("would not outlive a restart") && hint.contains("--allow-volatile"), "{error} {hint}");
    assert_eq!(code, 1);
    let (_, _, code) = fails(sluice(&folder.path().join("home"), &["init"]).env("SLUICE_ALLOW_VOLATILE", "0"));
    assert_eq!(code, 1);
    assert!(!folder.path().join("home").exists());
    let flag = sluice(&folder.path().join("home"), &["init", "--allow-volatile"])
        .env_remove("SLUICE_ALLOW_VOLATILE")
        .output()
        .unwrap();
    assert!(flag.status.success());
}

#[test]
fn without_a_site_or_a_daemon_every_command_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("none");
    for verb in [&["status"][..], &["up"], &["doctor"], &["service"], &["space", "list"], &["sync"]] {
        let (error, hint, code) = fails(&mut sluice(&missing, verb));
        assert!(error.contains("there is no site") && hint.contains("sluice init"), "{verb:?}: {error}");
        assert_eq!(code, 1);
    }
    let home = site(&folder);
    let (error, hint, code) = fails(&mut sluice(&home, &["status"]));
    assert!(error.contains("is not running") && hint.contains("sluice up"), "{error}");
    assert_eq!(code, 1);
}

#[test]
fn wrong_usage_is_two_in_words_and_in_json() {
    let folder = tempfile::tempdir().unwrap();
    let home = site(&folder);
    assert_eq!(run(&home, &["fly"]).status.code(), Some(2));
    let (error, _, code) = fails(&mut sluice(&home, &["invite", "acme"]));
    assert!(code == 2 && error.contains("required"), "{error}");
    std::fs::write(home.join("config.toml"), "config_version = 1\n[p2p]\nprot = 1\n").unwrap();
    let (error, hint, code) = fails(&mut sluice(&home, &["up"]));
    assert!(code == 2 && error.contains("`p2p.prot`") && hint.contains("`p2p.port`"), "{error} {hint}");
    let (error, _, code) = fails(sluice(&home, &["up"]).env("SLUICE__API__PROT", "1"));
    assert!(code == 2, "{error}");
}

#[test]
fn a_loose_key_keeps_the_daemon_down() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let home = site(&folder);
    std::fs::set_permissions(home.join("site.key"), std::fs::Permissions::from_mode(0o640)).unwrap();
    let (error, hint, code) = fails(&mut sluice(&home, &["up"]));
    assert!(error.contains("site.key") && hint.contains("chmod 600"), "{error} {hint}");
    assert_eq!(code, 1);
}

#[test]
fn a_daemon_answers_is_alone_and_ends_cleanly() {
    let folder = tempfile::tempdir().unwrap();
    let home = site(&folder);
    let daemon = Daemon::start(&home);
    assert!(daemon.ready.starts_with("ready: site playground"), "{}", daemon.ready);

    let status = json(&home, &["status"]);
    assert_eq!(status["name"], "playground");
    assert!(status["api"].as_str().unwrap().starts_with("http://127.0.0.1:"));
    assert_eq!(status["pid"], daemon.child.id());
    let (error, _, code) = fails(&mut sluice(&home, &["up"]));
    assert!(code == 1 && error.contains("another daemon runs on the home"), "{error}");
    let doctor = json(&home, &["doctor"]);
    let contents = doctor["checks"].as_array().unwrap().iter().find(|c| c["check"] == "contents").unwrap();
    assert_eq!(contents["found"], "0 spaces, 0 blobs, 0 bytes: the site is clean");

    let (error, _, code) = fails(&mut sluice(&home, &["space", "show", "none"]));
    assert!(code == 1 && error.contains("none"), "{error}");
    let (error, _, code) = fails(&mut sluice(&home, &["space", "add", "list", "/nowhere"]));
    assert!(code == 2 && error.contains("cannot be named"), "{error}");
    let (error, _, _) = fails(&mut sluice(&home, &["space", "add", "acme", "/nowhere/at/all"]));
    assert!(error.contains("/nowhere/at/all"), "{error}");

    assert_eq!(daemon.terminate(), Some(0));
    assert!(!home.join("sluice.sock").exists());
    let again = Daemon::start(&home);
    assert!(again.ready.starts_with("ready:"), "{}", again.ready);
}

#[test]
fn a_killed_daemon_leaves_nothing_in_the_way() {
    let folder = tempfile::tempdir().unwrap();
    let home = site(&folder);
    let daemon = Daemon::start(&home);
    drop(daemon);
    let (error, _, _) = fails(&mut sluice(&home, &["status"]));
    assert!(error.contains("is not running"), "{error}");
    assert_eq!(Daemon::start(&home).terminate(), Some(0));
}

#[test]
fn a_daemon_of_a_program_ends_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let home = site(&folder);
    let mut child = sluice(&home, &["up", "--until-eof", "--json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut ready = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&ready).unwrap()["name"], "playground");
    drop(child.stdin.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn the_api_over_tcp_needs_the_token() {
    use std::io::{Read, Write};
    let folder = tempfile::tempdir().unwrap();
    let home = site(&folder);
    let _daemon = Daemon::start(&home);
    let status = json(&home, &["status"]);
    let address = status["api"].as_str().unwrap().strip_prefix("http://").unwrap().to_string();
    let get = |path: &str, token: &str| {
        let mut stream = std::net::TcpStream::connect(&address).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    let token = std::fs::read_to_string(home.join("api.token")).unwrap();
    assert!(get("/healthz", "none").starts_with("HTTP/1.1 200"));
    assert!(get("/v1/status", "none").starts_with("HTTP/1.1 401"));
    let answer = get("/v1/status", token.trim());
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("playground"), "{answer}");
}

#[test]
fn the_daemon_tells_its_service_manager() {
    let folder = tempfile::tempdir().unwrap();
    let home = site(&folder);
    let socket = std::os::unix::net::UnixDatagram::bind(folder.path().join("notify")).unwrap();
    let mut child = sluice(&home, &["up"])
        .env("NOTIFY_SOCKET", folder.path().join("notify"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut told = [0; 512];
    let n = socket.recv(&mut told).unwrap();
    assert!(
        told[..n].starts_with(b"READY=1\nSTATUS=ready: site playground"),
        "{}",
        String::from_utf8_lossy(&told[..n])
    );
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM).unwrap();
    let n = socket.recv(&mut told).unwrap();
    assert_eq!(&told[..n], b"STOPPING=1");
    assert!(child.wait().unwrap().success());
}

#[test]
fn service_prints_a_unit_for_this_home() {
    let folder = tempfile::tempdir().unwrap();
    let home = site(&folder);
    let unit = String::from_utf8(run(&home, &["service"]).stdout).unwrap();
    assert!(
        unit.contains("Type=notify")
            && unit.contains(&format!("--home \"{}\" up", home.canonicalize().unwrap().display())),
        "{unit}"
    );
    let (error, _, code) = fails(&mut sluice(&home, &["service", "--lake", "/nowhere/at/all"]));
    assert!(code == 2 && error.contains("/nowhere/at/all"), "{error}");
}

#[test]
fn a_clean_site_proves_its_emptiness_without_a_daemon() {
    let folder = tempfile::tempdir().unwrap();
    let home = site(&folder);
    let proves = |home: &Path| {
        let doctor = json(home, &["doctor"]);
        doctor["checks"]
            .as_array()
            .unwrap()
            .iter()
            .any(|c| c["found"] == "0 spaces, 0 blobs, 0 bytes: the site is clean")
    };
    assert!(proves(&home));
    assert_eq!(Daemon::start(&home).terminate(), Some(0));
    assert!(home.join("catalog.redb").exists() && proves(&home));
}

#[test]
fn completions_are_made_for_three_shells() {
    for (shell, mark) in [("bash", "complete -F"), ("zsh", "#compdef sluice"), ("fish", "complete -c sluice")] {
        let done = run(Path::new("/nowhere"), &["completions", shell]);
        let text = String::from_utf8(done.stdout).unwrap();
        assert!(done.status.success() && text.contains(mark), "{shell}");
    }
}

#[cfg(not(feature = "engine"))]
#[test]
fn the_demo_says_that_it_needs_the_engine() {
    let (error, hint, code) = fails(&mut sluice(Path::new("/nowhere"), &["demo"]));
    assert!(error.contains("without the table engine") && hint.contains("cargo build"), "{error}");
    assert_eq!(code, 1);
}
