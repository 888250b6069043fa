//! The daemon's log, on standard error.

use std::io;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt;
use tracing_subscriber::prelude::*;

use crate::config::Log;

/// Begins logging as the settings say. A second call changes nothing.
pub(super) fn begin(log: &Log) {
    // The level was checked when the settings were read.
    let filter: Targets = log.level.parse().unwrap_or_default();
    let layer = fmt::layer().with_writer(io::stderr).with_ansi(io::IsTerminal::is_terminal(&io::stderr()));
    let layer = if log.json { layer.json().boxed() } else { layer.boxed() };
    // Fails only when a log was begun already.
    let _ = tracing_subscriber::registry().with(layer.with_filter(filter)).try_init();
}
