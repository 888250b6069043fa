//! `sluice gc`: takes away what no kept version needs.

use clap::Args;
use sluice_protocol::api::{AsideInfo, GcReport, Gone, Operation};

use super::context::Context;
use super::output::{clean, count, mib, now_ms, since};
use super::{Ended, Result};

/// Remove what no kept version needs; the daemon does it once a day by itself
#[derive(Debug, Args)]
pub(super) struct Gc {
    /// The space [default: all]
    space: Option<String>,
    /// Only say what would go
    #[arg(long)]
    dry_run: bool,
}

impl Gc {
    pub(super) async fn run(self, context: &Context) -> Result<Ended> {
        let answer = context.ask::<GcReport>(Operation::Gc { space: self.space, dry_run: self.dry_run }).await?;
        context.print(&answer, text);
        Ok(Ended::Good)
    }
}

/// What lies aside; nothing when nothing does.
pub(super) fn aside(space: &str, kept: &AsideInfo, quarantined: &AsideInfo, now_ms: u64) -> String {
    let line = |a: &AsideInfo, what: &str| {
        let Some(oldest) = a.oldest_ms else {
            let unread = format!("  ! {}: what lies {what} cannot be read\n", clean(space));
            return if a.more { unread } else { String::new() };
        };
        let least = if a.more { "at least " } else { "" };
        let files = count(a.files, "file", "files");
        format!("  {}: {least}{files}, {}, {what}, the oldest {}\n", clean(space), mib(a.bytes), since(oldest, now_ms))
    };
    line(kept, "in .sluice/kept") + &line(quarantined, "in .sluice/quarantine")
}

fn text(r: &GcReport) -> String {
    let went = if r.dry_run { "would go" } else { "went" };
    let gone = |g: &Gone| {
        let (rows, files) = (count(g.rows, "row", "rows"), count(g.files, "file", "files"));
        format!("{rows} and {files} {went}, {}", mib(g.bytes))
    };
    let mut out = String::new();
    for s in &r.spaces {
        let versions = |n| count(n, "version", "versions");
        out.push_str(&format!(
            "{}: {} kept, {} {went}; {}\n",
            clean(&s.space),
            versions(s.kept),
            versions(s.versions),
            gone(&s.gone)
        ));
        out.push_str(&aside(&s.space, &s.kept_aside, &s.quarantined, now_ms()));
        if s.aside_files > 0 {
            out.push_str(&format!("  {} of it {went}, by their age\n", count(s.aside_files, "file", "files")));
        }
        if s.aside_stuck > 0 {
            let entries = count(s.aside_stuck, "entry", "entries");
            out.push_str(&format!("  ! {entries} of it could not be removed; the daemon's log says which and why\n"));
        }
    }
    out.push_str(&format!("shared by all spaces: {}\n", gone(&r.shared)));
    out
}
