//! `sluice gc`: takes away what no kept version needs.

use clap::Args;
use sluice_protocol::api::{GcReport, Gone, Operation};

use super::context::Context;
use super::output::{clean, count, mib};
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
    }
    out.push_str(&format!("shared by all spaces: {}\n", gone(&r.shared)));
    out
}
