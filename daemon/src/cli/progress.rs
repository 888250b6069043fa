//! Progress as it is seen: one bar on a terminal, plain lines elsewhere, nothing when asked for quiet.
//!
//! Invariant: progress goes to standard error, so standard output stays what was asked for; lines are
//! rare enough for a log.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use sluice_protocol::api::Progress;

use super::output::{clean, mib};

/// Shortest time between two plain lines about the same stage.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Shows progress to whoever waits.
pub(super) enum View {
    Silent,
    Lines { last: Option<(String, Instant)> },
    Bar(ProgressBar),
}

impl View {
    pub(super) fn new(silent: bool) -> Self {
        if silent {
            Self::Silent
        } else if std::io::stderr().is_terminal() {
            let bar = ProgressBar::new(0).with_style(spinner());
            bar.enable_steady_tick(Duration::from_millis(200));
            Self::Bar(bar)
        } else {
            Self::Lines { last: None }
        }
    }

    pub(super) fn show(&mut self, progress: Progress) {
        match self {
            Self::Silent => {}
            Self::Bar(bar) => on_bar(bar, progress),
            Self::Lines { last } => {
                if let Some(text) = line(last, &progress, Instant::now()) {
                    // Whoever does not read it does not want it.
                    let _ = writeln!(std::io::stderr().lock(), "{text}");
                }
            }
        }
    }

    /// Takes the bar away.
    pub(super) fn end(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

fn spinner() -> ProgressStyle {
    style("{spinner} {msg}")
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the templates are constant")
}

fn on_bar(bar: &ProgressBar, progress: Progress) {
    match progress {
        Progress::Stage { stage, space } => {
            bar.set_style(spinner());
            bar.set_message(clean(&format!("{space}: {stage}")));
        }
        Progress::Amount { stage, files, files_total, bytes, bytes_total } if bytes_total > 0 => {
            bar.set_style(style(
                "{spinner} {msg} [{bar:30}] {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left",
            ));
            bar.set_length(bytes_total);
            bar.set_position(bytes.min(bytes_total));
            bar.set_message(clean(&format!("{stage} ({})", of_total(files, files_total))));
        }
        Progress::Amount { stage, files, files_total, bytes, .. } => {
            bar.set_style(spinner());
            bar.set_message(clean(&format!("{stage}: {}, {}", of_total(files, files_total), mib(bytes))));
        }
        Progress::Note { text } => bar.println(clean(&text)),
    }
}

fn of_total(files: u64, total: u64) -> String {
    if total > 0 { format!("{files} of {total} files") } else { format!("{files} files") }
}

/// The plain line for `progress`, if it is worth one now.
fn line(last: &mut Option<(String, Instant)>, progress: &Progress, now: Instant) -> Option<String> {
    match progress {
        Progress::Stage { stage, space } => Some(clean(&format!("{space}: {stage}"))),
        Progress::Note { text } => Some(clean(text)),
        Progress::Amount { stage, files, files_total, bytes, bytes_total } => {
            let due = match last {
                Some((known, at)) if known == stage => now.duration_since(*at) >= LINE_EVERY,
                // A stage's beginning is told by its own line.
                _ => false,
            };
            if due || last.as_ref().is_none_or(|(known, _)| known != stage) {
                *last = Some((stage.clone(), now));
            }
            let total = if *bytes_total > 0 { format!(" of {}", mib(*bytes_total)) } else { String::new() };
            due.then(|| clean(&format!("{stage}: {}, {}{total}", of_total(*files, *files_total), mib(*bytes))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_gets_a_line_now_and_then() {
        let amount = |stage: &str, bytes| Progress::Amount {
            stage: stage.into(),
            files: 1,
            files_total: 2,
            bytes,
            bytes_total: 4 << 20,
        };
        let start = Instant::now();
        let mut last = None;
        let mut lines = Vec::new();
        for second in 0..25u64 {
            lines.extend(line(&mut last, &amount("transfer", second << 20), start + Duration::from_secs(second)));
        }
        assert_eq!(
            lines,
            ["transfer: 1 of 2 files, 10.0 MiB of 4.00 MiB", "transfer: 1 of 2 files, 20.0 MiB of 4.00 MiB"]
        );
        assert_eq!(line(&mut last, &amount("verify", 0), start + Duration::from_secs(60)), None);
        let note = Progress::Note { text: "compare:\u{1b}[1m x".into() };
        assert_eq!(line(&mut last, &note, start).unwrap(), "compare:\u{fffd}[1m x");
    }
}
