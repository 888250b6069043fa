//! `sluice sync`: brings a replica to its owner's newest version.

use clap::Args;
use sluice_protocol::api::{Operation, SpaceSync, SyncReport};

use super::context::Context;
use super::output::{Table, clean, mib, per_second, seconds};
use super::{Ended, Result};

/// Bring the newest version of a space here, or of all spaces
#[derive(Debug, Args)]
pub(super) struct Sync {
    /// The space [default: every one that is received here]
    space: Option<String>,
    /// Only print how each byte would come
    #[arg(long)]
    dry_run: bool,
}

impl Sync {
    pub(super) async fn run(self, context: &Context) -> Result<Ended> {
        let op = Operation::Sync { space: self.space, dry_run: self.dry_run };
        let answer = context.ask::<SyncReport>(op).await?;
        context.print(&answer, |report| match report.spaces.as_slice() {
            [] => "no space is received here: `sluice join TICKET`\n".into(),
            spaces => text(spaces),
        });
        Ok(Ended::Good)
    }
}

/// What was moved and what was not.
pub(super) fn text(spaces: &[SpaceSync]) -> String {
    spaces.iter().map(one).collect()
}

fn one(s: &SpaceSync) -> String {
    let name = clean(&s.space);
    if !s.changed && !s.dry_run {
        return format!("{name}: nothing new, {} is live\n", s.snapshot.short());
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
    for u in &s.unproven {
        out.push_str(&format!("! {} is not proven here: {}\n", clean(&u.path), clean(&u.reason)));
    }
    out
}
