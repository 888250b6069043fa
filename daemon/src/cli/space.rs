//! `sluice space`: the lakes that this site shares or receives.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use sluice_protocol::api::{
    Done, GrantInfo, Operation, SectionInfo, SnapshotReport, SpaceDetail, SpaceInfo, check_new_space_name,
};
use sluice_protocol::manifest::History;

use super::context::{Context, absolute};
use super::output::{Table, clean, mib, now_ms, since};
use super::{Ended, Result, resolve, snapshot, status};

/// Add, list, show and remove spaces
#[derive(Debug, Subcommand)]
pub(super) enum Space {
    Add(Add),
    /// List all spaces
    List,
    /// Show one space: its sections, its grants
    Show {
        /// Name or id
        space: String,
    },
    /// Go on from what the peers have seen, at an owner that was restored from an older backup
    Recover {
        /// Name or id
        space: String,
    },
    /// Forget a space; the lake's files stay where they are
    Remove {
        /// Name or id
        space: String,
    },
}

/// Share a lake as a space; returns after the first snapshot
#[derive(Debug, Args)]
pub(super) struct Add {
    /// What the space is called everywhere: lower-case letters, digits, `-`, `_`, `.`
    name: String,
    /// The lake's folder
    path: PathBuf,
    /// Which table versions to keep: all whose files exist, the tagged ones, or the latest [default: all]
    #[arg(long, value_name = "all|tagged|latest")]
    history: Option<History>,
    /// Carry tables as plain files, without reading them: replicas show them as unproven
    #[arg(long)]
    opaque: bool,
}

impl Space {
    pub(super) async fn run(self, context: &Context) -> Result<Ended> {
        match self {
            Space::Add(add) => add.run(context).await,
            Space::List => {
                let answer = context.ask::<Vec<SpaceInfo>>(Operation::SpaceList).await?;
                context.print(&answer, |spaces| status::spaces(spaces, now_ms()));
                Ok(Ended::Good)
            }
            Space::Show { space } => {
                let answer = context.ask::<SpaceDetail>(Operation::SpaceShow { space }).await?;
                context.print(&answer, |detail| text(detail, now_ms()));
                Ok(Ended::Good)
            }
            Space::Recover { space } => {
                let answer = context.ask::<Done>(Operation::SpaceRecover { space }).await?;
                context.print(&answer, |done| format!("{}\n", clean(&done.done)));
                Ok(Ended::Good)
            }
            Space::Remove { space } => {
                let answer = context.ask::<Done>(Operation::SpaceRemove { space }).await?;
                context.print(&answer, |done| format!("{}\n", clean(&done.done)));
                Ok(Ended::Good)
            }
        }
    }
}

impl Add {
    async fn run(self, context: &Context) -> Result<Ended> {
        check_new_space_name(&self.name)?;
        let path = absolute(&self.path)?;
        let op = Operation::SpaceAdd { name: self.name, path, history: self.history, opaque: self.opaque };
        let answer = context.ask::<SnapshotReport>(op).await?;
        context.print(&answer, snapshot::report);
        Ok(snapshot::ended(&answer.value))
    }
}

fn text(detail: &SpaceDetail, now_ms: u64) -> String {
    let info = &detail.info;
    let mut out = format!(
        "{}  {} {}, {}\npath       {}\nowner      {}\nsnapshot   {}\nretention  {}\n",
        clean(&info.name),
        status::role(info.role),
        info.space.short(),
        status::state(info.state),
        clean(&info.path),
        detail.owner,
        match (info.snapshot, info.seq, info.snapshot_time_ms) {
            (Some(id), Some(seq), Some(time)) => format!("{id}, number {seq}, {}", since(time, now_ms)),
            (Some(id), ..) => id.to_string(),
            _ => "none yet".into(),
        },
        clean(&detail.retention),
    );
    out.push('\n');
    out.push_str(&sections(&detail.sections));
    if !detail.grants.is_empty() {
        out.push('\n');
        out.push_str(&grants(&detail.grants));
    }
    if let Some(h) = &info.held {
        out.push_str(&format!("held at {}, number {}\n", h.snapshot, h.seq));
    }
    out.push_str(&resolve::diverged(&info.name, &info.diverged));
    for s in &info.skipped {
        out.push_str(&format!("! {}: {}\n", clean(&s.path), clean(&s.reason)));
    }
    out
}

/// A table of sections; why some could not be proven is told below it.
pub(super) fn sections(sections: &[SectionInfo]) -> String {
    let mut table = Table::new(&["section", "kind", ">files", ">size", ">version", ">rows", "indices"]);
    let mut unproven = String::new();
    for s in sections {
        let of_table = |f: fn(&sluice_protocol::api::TableInfo) -> String| s.table.as_ref().map_or("-".into(), f);
        table.row([
            s.name.clone(),
            s.kind.to_string(),
            s.files.to_string(),
            mib(s.bytes),
            of_table(|t| t.version.to_string()),
            of_table(|t| t.rows.to_string()),
            of_table(|t| if t.indices.is_empty() { "-".into() } else { t.indices.join(", ") }),
        ]);
        if let Some(reason) = &s.unproven {
            unproven.push_str(&format!("! {} is not proven here: {}\n", clean(&s.name), clean(reason)));
        }
    }
    table.text() + &unproven
}

fn grants(grants: &[GrantInfo]) -> String {
    let mut table = Table::new(&["granted to", "site", "rights", "sections", "expires"]);
    for g in grants {
        table.row([
            g.name.clone(),
            g.site.short(),
            g.rights.join(", "),
            if g.sections.is_empty() { "all".into() } else { g.sections.join(", ") },
            g.expires_ms.map_or("never".into(), crate::clock::rfc3339),
        ]);
    }
    table.text()
}
