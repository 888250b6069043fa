//! `sluice sync`: brings a replica to its owner's newest version.

use clap::Args;
use sluice_protocol::api::{Failure, HeldAt, Operation, SpaceSync, SyncReport};

use super::context::Context;
use super::output::{Table, clean, count, mib, per_second, seconds};
use super::resolve::diverged;
use super::{Ended, Result};

/// Bring the newest version of a space here, or of all spaces
#[derive(Debug, Args)]
pub(super) struct Sync {
    /// The space [default: every one that is received here]
    space: Option<String>,
    /// Only print how each byte would come
    #[arg(long)]
    dry_run: bool,
    /// Publish this version (an id, a tag or a number) and stay there; `newest` follows the owner again
    #[arg(long, value_name = "SNAPSHOT", requires = "space")]
    at: Option<String>,
}

impl Sync {
    pub(super) async fn run(self, context: &Context) -> Result<Ended> {
        let op = Operation::Sync { space: self.space, dry_run: self.dry_run, at: self.at };
        let answer = context.ask::<SyncReport>(op).await?;
        context.print(&answer, |report| match report.spaces.as_slice() {
            [] => "no space is received here: `sluice join TICKET`\n".into(),
            spaces => text(spaces),
        });
        // What was skipped is told by the exit code too.
        let skipped = answer.value.spaces.iter().flat_map(|s| &s.diverged).any(|d| !d.detached);
        Ok(if skipped { Ended::With(Failure::Verification) } else { Ended::Good })
    }
}

/// What was moved and what was not.
pub(super) fn text(spaces: &[SpaceSync]) -> String {
    spaces.iter().map(one).collect()
}

fn one(s: &SpaceSync) -> String {
    let name = clean(&s.space);
    let mended = match (s.mended, s.dry_run) {
        (0, _) => String::new(),
        (n, false) => format!("mended: {}\n", count(n, "file", "files")),
        (n, true) => format!("would mend: {}\n", count(n, "file", "files")),
    };
    let tail = held(s) + &diverged(&s.space, &s.diverged);
    if !s.changed && !s.dry_run {
        return format!("{name}: nothing new, {} is live\n{mended}{tail}", s.snapshot.short());
    }
    let mut out = if s.dry_run {
        format!("{name}: would bring {}, number {}\n", s.snapshot.short(), s.seq)
    } else {
        format!(
            "{name}: {} is live, number {}\nmoved {} in {} ({}), reused {}; rsync would have moved {}\n",
            s.snapshot.short(),
            s.seq,
            mib(s.bytes_moved),
            seconds(s.seconds),
            per_second(s.bytes_moved, s.seconds),
            mib(s.bytes_reused),
            mib(s.rsync_bytes),
        )
    };
    if s.dry_run && !s.rungs.is_empty() {
        let mut table = Table::new(&[">rung", "how", "section", ">files", ">size", ">to fetch"]);
        for r in &s.rungs {
            table.row([
                r.rung.to_string(),
                r.how.clone(),
                r.section.clone(),
                r.files.to_string(),
                mib(r.bytes),
                mib(r.fetch_bytes),
            ]);
        }
        out.push_str(&table.text());
    }
    out.push_str(&mended);
    for u in &s.unproven {
        out.push_str(&format!("! {} is not proven here: {}\n", clean(&u.path), clean(&u.reason)));
    }
    out + &tail
}

fn held(s: &SpaceSync) -> String {
    let line = |h: &HeldAt| format!("held at {}, number {}; `--at newest` follows again\n", h.snapshot.short(), h.seq);
    s.held.as_ref().map_or(String::new(), line)
}
