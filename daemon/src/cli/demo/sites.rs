//! The demo's two sites, as processes.
//!
//! Invariant: a daemon's standard input is a pipe that this process holds, and it ends when that pipe
//! ends; so even a demo that is killed leaves no daemon behind.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use sluice_protocol::api::{ApiError, Failure};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::Result;

/// How long a site may take until it is ready, on a busy machine.
const START_PATIENCE: Duration = Duration::from_secs(120);
/// How long a site may take to end.
const STOP_PATIENCE: Duration = Duration::from_secs(40);

/// Both sites.
pub(super) struct Sites {
    pub(super) playground: Site,
    pub(super) cradle: Site,
}

impl Sites {
    pub(super) async fn start(folder: &Path) -> Result<Self> {
        let playground = Site::start(folder, "playground").await?;
        let cradle = Site::start(folder, "cradle").await?;
        Ok(Self { playground, cradle })
    }

    /// Ends both as a service manager does.
    pub(super) async fn stop(self) -> Result<()> {
        self.playground.stop().await?;
        self.cradle.stop().await
    }
}

/// One site: its home and its daemon.
pub(super) struct Site {
    name: &'static str,
    home: PathBuf,
    daemon: Child,
}

impl Site {
    async fn start(folder: &Path, name: &'static str) -> Result<Self> {
        let home = folder.join(name);
        command(&home, &["init", "--name", name]).and_then_json(name).await?;
        let log = folder.join(format!("{name}.log"));
        let log_file =
            std::fs::File::create(&log).map_err(|e| failed(name, &format!("its log cannot be written: {e}")))?;
        let mut daemon = command(&home, &["up", "--until-eof", "--json"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log_file)
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| failed(name, &format!("it cannot be started: {e}")))?;
        let stdout = daemon.stdout.take().expect("the pipe was asked for");
        let mut line = String::new();
        let mut stdout = BufReader::new(stdout);
        let ready = tokio::time::timeout(START_PATIENCE, stdout.read_line(&mut line)).await;
        if !matches!(ready, Ok(Ok(1..))) {
            let told = std::fs::read_to_string(&log).unwrap_or_default();
            let last = told.lines().last().unwrap_or("it said nothing").to_string();
            return Err(failed(name, &format!("it did not become ready: {last}")));
        }
        Ok(Self { name, home, daemon })
    }

    /// Runs one command against this site, and reads its JSON.
    pub(super) async fn json(&self, args: &[&str]) -> Result<Value> {
        command(&self.home, args).and_then_json(self.name).await
    }

    async fn stop(mut self) -> Result<()> {
        drop(self.daemon.stdin.take());
        match tokio::time::timeout(STOP_PATIENCE, self.daemon.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            _ => Err(failed(self.name, "it did not end in order")),
        }
    }
}

fn failed(name: &str, what: &str) -> ApiError {
    ApiError::plain(Failure::Error, format!("the demo's site {name} failed: {what}"))
}

/// This program again, in an environment that decides nothing for it but what the demo needs: any
/// free ports, loopback addresses in tickets, and a home wherever the demo is played.
fn command(home: &Path, args: &[&str]) -> Command {
    let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("sluice"));
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("SLUICE") {
            command.env_remove(name);
        }
    }
    command
        .envs([
            ("SLUICE__P2P__PORT", "0"),
            ("SLUICE__API__PORT", "0"),
            ("SLUICE__P2P__LOOPBACK", "true"),
            // The demo takes every step itself.
            ("SLUICE__FOLLOW__ENABLED", "false"),
            ("SLUICE_ALLOW_VOLATILE", "1"),
        ])
        .arg("--home")
        .arg(home)
        .args(args)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

trait AndThenJson {
    async fn and_then_json(self, name: &str) -> Result<Value>;
}

impl AndThenJson for Command {
    /// Runs to the end; a failure is passed on as the command told it.
    async fn and_then_json(mut self, name: &str) -> Result<Value> {
        let Output { status, stdout, stderr } = self
            .arg("--json")
            .output()
            .await
            .map_err(|e| failed(name, &format!("a command cannot be started: {e}")))?;
        if !status.success() {
            let told = String::from_utf8_lossy(&stderr);
            let last = told.lines().last().unwrap_or_default();
            return Err(serde_json::from_str(last)
                .unwrap_or_else(|_| failed(name, &format!("a command ended with {status}: {last}"))));
        }
        serde_json::from_slice(&stdout).map_err(|e| failed(name, &format!("a command printed no JSON: {e}")))
    }
}
