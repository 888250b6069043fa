//! How things are said to people.
//!
//! Invariant: text that came from elsewhere (names, paths, sentences of peers) is shown without
//! control characters, so it cannot move the cursor, recolour or forge a line.

use std::io::Write;
use std::process::ExitCode;

use sluice_protocol::api::ApiError;

/// Writes to standard output. A reader that went away (`| head`) is no failure of ours.
pub(super) fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes());
    let _ = out.flush();
}

/// Tells a failure, and gives its exit code.
pub(super) fn failed(error: &ApiError, json: bool) -> ExitCode {
    let text = if json {
        serde_json::to_string(error).expect("an error is plain text")
    } else {
        let hint = error.hint.as_ref().map(|h| format!("\nhint: {}", clean(h))).unwrap_or_default();
        format!("error: {}{hint}", clean(&error.error))
    };
    let _ = writeln!(std::io::stderr().lock(), "{text}");
    ExitCode::from(error.failure.exit_code())
}

/// The text without control characters and without marks that turn its direction.
pub(super) fn clean(text: &str) -> String {
    let disturbs = |c: char| {
        c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if disturbs(c) { '\u{fffd}' } else { c }).collect()
}

/// A size in MiB.
pub(super) fn mib(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    match bytes {
        0 => "0 MiB".into(),
        1..=10_485 => "<0.01 MiB".into(),
        _ if mib < 10.0 => format!("{mib:.2} MiB"),
        _ => format!("{mib:.1} MiB"),
    }
}

/// A rate.
pub(super) fn per_second(bytes: u64, seconds: f64) -> String {
    if seconds < 0.001 { "-".into() } else { format!("{:.1} MiB/s", bytes as f64 / f64::from(1 << 20) / seconds) }
}

/// One thing or several.
pub(super) fn count(n: u64, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

/// How long ago, from milliseconds since the Unix epoch.
pub(super) fn ago(time_ms: u64, now_ms: u64) -> String {
    let seconds = now_ms.saturating_sub(time_ms) / 1000;
    match seconds {
        0..=1 => "now".into(),
        2..=119 => format!("{seconds} s"),
        120..=7_199 => format!("{} min", seconds / 60),
        7_200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// The same, as an adverb.
pub(super) fn since(time_ms: u64, now_ms: u64) -> String {
    match ago(time_ms, now_ms).as_str() {
        "now" => "just now".into(),
        time => format!("{time} ago"),
    }
}

/// Seconds for people.
pub(super) fn seconds(s: f64) -> String {
    if s < 10.0 { format!("{s:.2} s") } else { format!("{s:.0} s") }
}

/// Lines of aligned columns under their names. A name that begins with `>` is a column of numbers.
pub(super) struct Table {
    columns: Vec<(&'static str, bool)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(columns: &[&'static str]) -> Self {
        let column = |name: &&'static str| name.strip_prefix('>').map_or((*name, false), |n| (n, true));
        Self { columns: columns.iter().map(column).collect(), rows: Vec::new() }
    }

    pub(super) fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(N, self.columns.len());
        self.rows.push(cells.iter().map(|c| clean(c)).collect());
    }

    pub(super) fn text(&self) -> String {
        let names: Vec<String> = self.columns.iter().map(|(name, _)| name.to_uppercase()).collect();
        let width = |i: usize| self.rows.iter().chain([&names]).map(|r| r[i].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let mut out = String::new();
        for row in [&names].into_iter().chain(&self.rows) {
            let mut line = String::new();
            for (i, cell) in row.iter().enumerate() {
                let pad = " ".repeat(widths[i] - cell.chars().count());
                let (before, after) = if self.columns[i].1 { (pad.as_str(), "") } else { ("", pad.as_str()) };
                line.push_str(&format!("{before}{cell}{after}  "));
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

/// Now, in milliseconds since the Unix epoch.
pub(super) fn now_ms() -> u64 {
    crate::clock::now_ms()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_is_tamed() {
        assert_eq!(clean("a\u{1b}[2Jb\nc\u{202e}d"), "a\u{fffd}[2Jb\u{fffd}c\u{fffd}d");
        assert_eq!(clean("Größe 東京"), "Größe 東京");
    }

    #[test]
    fn sizes_and_times() {
        assert_eq!([mib(0), mib(1), mib(1 << 20), mib(50 << 20)], ["0 MiB", "<0.01 MiB", "1.00 MiB", "50.0 MiB"]);
        assert_eq!(
            [ago(0, 500), ago(0, 5_000), ago(0, 600_000), ago(0, 86_400_000), ago(9, 0)],
            ["now", "5 s", "10 min", "24 h", "now"]
        );
    }

    #[test]
    fn columns_align_whatever_the_letters() {
        let mut table = Table::new(&["name", ">files", "path"]);
        table.row(["größe".into(), "7".into(), "/a".into()]);
        table.row(["b".into(), "12345".into(), "".into()]);
        assert_eq!(table.text(), "NAME   FILES  PATH\ngröße      7  /a\nb      12345\n");
    }
}
