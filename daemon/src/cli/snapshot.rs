//! `sluice snapshot`: versions of a space.
//!
//! `sluice snapshot acme` takes one; `sluice snapshot list acme` and its siblings look at them,
//! and `sluice snapshot untag` takes a tag back. A space
//! of another owner that is named like a verb is taken after `--`: `sluice snapshot -- list`.

use clap::{Args, Subcommand};
use sluice_protocol::api::{DiffReport, Done, Failure, Operation, SnapshotDetail, SnapshotInfo, SnapshotReport};

use super::context::Context;
use super::output::{Table, ago, clean, count, mib, now_ms, seconds};
use super::{Ended, Result, space};

/// Most files of one kind that `diff` names to people.
const DIFF_LINES_MAX: usize = 200;

/// Take a snapshot of a space, or list, show and compare snapshots
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true, arg_required_else_help = true)]
pub(super) struct Snapshot {
    /// The space to take a snapshot of
    #[arg(required = true)]
    space: Option<String>,
    /// A name for this version
    #[arg(long, value_name = "TAG")]
    tag: Option<String>,
    #[command(subcommand)]
    look: Option<Look>,
}

#[derive(Debug, Subcommand)]
enum Look {
    /// List the snapshots of a space
    List { space: String },
    /// Show what a snapshot holds
    Show {
        space: String,
        /// Id, the beginning of one, or a tag [default: the newest]
        snapshot: Option<String>,
    },
    /// Show which files differ between two snapshots
    Diff {
        space: String,
        /// Id, the beginning of one, or a tag
        from: String,
        /// Likewise [default: the newest]
        to: Option<String>,
    },
    /// Take a tag back; its version goes with `gc` when nothing else keeps it
    Untag { space: String, tag: String },
}

impl Snapshot {
    pub(super) async fn run(self, context: &Context) -> Result<Ended> {
        match (self.look, self.space) {
            (Some(Look::List { space }), _) => {
                let answer = context.ask::<Vec<SnapshotInfo>>(Operation::SnapshotList { space }).await?;
                context.print(&answer, |all| list(all, now_ms()));
                Ok(Ended::Good)
            }
            (Some(Look::Show { space, snapshot }), _) => {
                let answer = context.ask::<SnapshotDetail>(Operation::SnapshotShow { space, snapshot }).await?;
                context.print(&answer, |d| {
                    format!("{}\n{}", list(std::slice::from_ref(&d.info), now_ms()), space::sections(&d.sections))
                });
                Ok(Ended::Good)
            }
            (Some(Look::Diff { space, from, to }), _) => {
                let answer = context.ask::<DiffReport>(Operation::SnapshotDiff { space, from, to }).await?;
                context.print(&answer, diff);
                Ok(Ended::Good)
            }
            (Some(Look::Untag { space, tag }), _) => {
                let answer = context.ask::<Done>(Operation::SnapshotUntag { space, tag }).await?;
                context.print(&answer, |d| format!("{}\n", clean(&d.done)));
                Ok(Ended::Good)
            }
            (None, space) => {
                let space = space.expect("clap demands the space where no verb is given");
                let answer = context.ask::<SnapshotReport>(Operation::SnapshotCreate { space, tag: self.tag }).await?;
                context.print(&answer, report);
                Ok(ended(&answer.value))
            }
        }
    }
}

/// A snapshot that left files out is not the whole lake: it counts as not finished.
pub(super) fn ended(report: &SnapshotReport) -> Ended {
    if report.skipped.is_empty() { Ended::Good } else { Ended::With(Failure::Incomplete) }
}

/// What a snapshot took.
pub(super) fn report(r: &SnapshotReport) -> String {
    let mut out = format!(
        "{}: snapshot {}, number {}{}\n{}, {}; read {}, {} in {}\n\n{}",
        clean(&r.space),
        r.snapshot.short(),
        r.seq,
        if r.changed { "" } else { ", the same as before" },
        count(r.files, "file", "files"),
        mib(r.bytes),
        count(r.read_files, "file", "files"),
        mib(r.read_bytes),
        seconds(r.seconds),
        space::sections(&r.sections),
    );
    for s in &r.skipped {
        out.push_str(&format!("! {}: {}\n", clean(&s.path), clean(&s.reason)));
    }
    if !r.skipped.is_empty() {
        out.push_str(&format!(
            "! {} not taken as they are now; mend and take the snapshot again\n",
            count(r.skipped.len() as u64, "path was", "paths were")
        ));
    }
    out
}

fn list(all: &[SnapshotInfo], now_ms: u64) -> String {
    if all.is_empty() {
        return "no snapshots yet\n".into();
    }
    let mut table = Table::new(&["snapshot", ">epoch", ">number", ">age", ">files", ">size", "tag", "here"]);
    for s in all {
        table.row([
            s.snapshot.short(),
            s.epoch.to_string(),
            s.seq.to_string(),
            ago(s.time_ms, now_ms),
            s.files.to_string(),
            mib(s.bytes),
            s.tag.clone().unwrap_or_default(),
            match (s.live, s.kept) {
                (true, _) => "live".into(),
                (false, true) => "kept".into(),
                (false, false) => String::new(),
            },
        ]);
    }
    table.text()
}

fn diff(d: &DiffReport) -> String {
    let mut out = format!(
        "from {} to {}: {} added, {} removed, {} changed\n",
        d.from.short(),
        d.to.short(),
        d.added.len(),
        d.removed.len(),
        d.changed.len()
    );
    for (mark, paths) in [('+', &d.added), ('-', &d.removed), ('~', &d.changed)] {
        for path in paths.iter().take(DIFF_LINES_MAX) {
            out.push_str(&format!("{mark} {}\n", clean(path)));
        }
        if paths.len() > DIFF_LINES_MAX {
            out.push_str(&format!("{mark} and {} more; --json names all\n", paths.len() - DIFF_LINES_MAX));
        }
    }
    out
}
