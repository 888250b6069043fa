//! The daemon's log, on standard error.

use std::io;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt;
use tracing_subscriber::prelude::*;

use crate::config::Log;

/// Begins logging as the settings say. A second call changes nothing.
pub(super) fn begin(log: &Log) {
    let filter = filter(&log.level);
    let layer = fmt::layer().with_writer(io::stderr).with_ansi(io::IsTerminal::is_terminal(&io::stderr()));
    let layer = if log.json { layer.json().boxed() } else { layer.boxed() };
    // Fails only when a log was begun already.
    let _ = tracing_subscriber::registry().with(layer.with_filter(filter)).try_init();
}

/// A level alone is Sluice's own; the libraries below then say only what may matter to an operator, that is warnings.
fn filter(level: &str) -> Targets {
    match level.parse::<LevelFilter>() {
        Ok(own) => Targets::new()
            .with_default(own.min(LevelFilter::WARN))
            .with_target("sluice", own)
            // It warns of each table that it opens, because it does not know the scheme of our views.
            .with_target("lance_io::object_store", own.min(LevelFilter::ERROR)),
        // A filter by target was checked when the settings were read.
        Err(_) => level.parse().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::filter;

    #[test]
    fn a_level_alone_is_ours_and_libraries_stay_quiet() {
        let info = filter("info");
        assert!(info.would_enable("sluice_daemon::jobs", &Level::INFO));
        assert!(!info.would_enable("sluice_daemon::jobs", &Level::DEBUG));
        assert!(!info.would_enable("lance::execution", &Level::INFO) && info.would_enable("iroh", &Level::WARN));
        assert!(!info.would_enable("lance_io::object_store", &Level::WARN));
        let error = filter("error");
        assert!(!error.would_enable("iroh", &Level::WARN) && error.would_enable("sluice_store", &Level::ERROR));
        let named = filter("warn,sluice_daemon=debug,lance=info");
        assert!(named.would_enable("sluice_daemon::jobs", &Level::DEBUG));
        assert!(
            named.would_enable("lance::execution", &Level::INFO) && !named.would_enable("sluice_store", &Level::INFO)
        );
    }
}
