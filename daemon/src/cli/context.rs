//! What every command needs: the home, the form of the output, a way to ask the daemon.
//!
//! Invariant: a command that is interrupted leaves the daemon's work alone and says so.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value;
use sluice_protocol::api::{ApiError, Failure, Operation};

use super::progress::View;
use super::{Global, Result, output};
use crate::client::Client;

/// The checked global options.
pub(super) struct Context {
    pub(super) home: PathBuf,
    pub(super) json: bool,
    pub(super) quiet: bool,
    pub(super) allow_volatile: bool,
}

/// An answer: as the daemon gave it, and read.
pub(super) struct Answer<T> {
    raw: Value,
    pub(super) value: T,
}

impl Context {
    pub(super) fn new(global: &Global) -> Result<Self> {
        let home = match &global.home {
            Some(home) if home.as_os_str().is_empty() => {
                return Err(ApiError::new(
                    Failure::Usage,
                    "the home is named by an empty text",
                    "give a folder to --home or SLUICE_HOME",
                ));
            }
            Some(home) => home.clone(),
            None => default_home()?,
        };
        let home = std::path::absolute(&home)
            .map_err(|e| ApiError::plain(Failure::Error, format!("the current folder is gone: {e}")))?;
        Ok(Self { home, json: global.json, quiet: global.quiet, allow_volatile: global.allow_volatile })
    }

    pub(super) fn client(&self) -> Client {
        Client::new(&self.home)
    }

    /// Does one operation and shows its progress.
    pub(super) async fn ask<T: DeserializeOwned>(&self, op: Operation) -> Result<Answer<T>> {
        let client = self.client();
        let mut view = View::new(self.quiet || (self.json && !std::io::stderr().is_terminal()));
        let mut watch = |progress| view.show(progress);
        let called = tokio::select! {
            called = client.call(&op, &mut watch) => called,
            _ = tokio::signal::ctrl_c() => Err(ApiError::new(
                Failure::Incomplete,
                "this command was interrupted; the site goes on with the work",
                "`sluice status --watch` shows how far it is",
            )),
        };
        view.end();
        let raw = called?;
        let value = serde_json::from_value(raw.clone()).map_err(|e| {
            ApiError::new(
                Failure::Error,
                format!("the site's answer has another shape than expected ({e})"),
                "the daemon and this command should be of the same version",
            )
        })?;
        Ok(Answer { raw, value })
    }

    /// Prints an answer: as JSON, or as `human` says it.
    pub(super) fn print<T>(&self, answer: &Answer<T>, human: impl FnOnce(&T) -> String) {
        self.print_value(&answer.raw, || human(&answer.value));
    }

    /// Prints a value that no daemon gave.
    pub(super) fn print_value(&self, value: &Value, human: impl FnOnce() -> String) {
        if self.json {
            output::print(&format!("{value}\n"));
        } else {
            output::print(&human());
        }
    }
}

/// `$XDG_DATA_HOME/sluice`, or `~/.local/share/sluice`.
fn default_home() -> Result<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    absolute("XDG_DATA_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
        .map(|data| data.join("sluice"))
        .ok_or_else(|| {
            ApiError::new(Failure::Usage, "no home is named and HOME is not set", "name one with --home or SLUICE_HOME")
        })
}

/// A path on this side of the socket, as the daemon understands it: absolute, and UTF-8.
pub(super) fn absolute(path: &Path) -> Result<String> {
    let absolute = std::path::absolute(path)
        .map_err(|e| ApiError::plain(Failure::Usage, format!("`{}` is no path: {e}", path.display())))?;
    absolute.into_os_string().into_string().map_err(|path| {
        ApiError::new(
            Failure::Usage,
            format!("the path {path:?} is not UTF-8"),
            "rename the folder, or link to it by another name",
        )
    })
}

/// Runs a question to its end. Work on other threads that nobody waits for any more is left behind.
pub(super) fn block_on<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime on this thread needs nothing but file descriptors");
    let output = runtime.block_on(future);
    runtime.shutdown_background();
    output
}
