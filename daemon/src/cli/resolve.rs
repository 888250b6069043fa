//! `sluice resolve`: which side of a divergence stays, and which of an owner's histories.

use clap::Args;
use sluice_protocol::api::{
    BranchInfo, BranchStanding, DivergedSection, Done, Keep, Operation, ResolveReport, Skipped, SpaceDetail, SpaceInfo,
};

use super::context::Context;
use super::output::{clean, now_ms, since};
use super::{Ended, Result};

/// Changes of one section that people are shown.
const SHOWN_MAX: usize = 10;

/// Decide about sections that were changed here by hand, or about two histories of the owner; without a
/// choice, show what is undecided
#[derive(Debug, Args)]
pub(super) struct Resolve {
    space: String,
    /// Only this section [default: all that diverged]
    #[arg(long, requires = "keep")]
    section: Option<String>,
    /// `theirs`: the owner's version comes back; `mine`: the local files stay and are not synced any more
    #[arg(long, value_name = "theirs|mine", value_parser = side)]
    keep: Option<Keep>,
    /// Only list what would be decided
    #[arg(long, requires = "keep")]
    dry_run: bool,
    /// Go on from this head, after the owner signed two for one place; the other one is kept as evidence
    #[arg(long, value_name = "HEAD", conflicts_with_all = ["keep", "section", "dry_run"])]
    fork: Option<String>,
}

fn side(text: &str) -> std::result::Result<Keep, String> {
    match text {
        "theirs" => Ok(Keep::Theirs),
        "mine" => Ok(Keep::Mine),
        _ => Err("it is `theirs` or `mine`".into()),
    }
}

impl Resolve {
    pub(super) async fn run(self, context: &Context) -> Result<Ended> {
        let Resolve { space, section, keep, dry_run, fork } = self;
        if let Some(head) = fork {
            let answer = context.ask::<Done>(Operation::ResolveFork { space, head }).await?;
            context.print(&answer, |d| format!("{}\n", clean(&d.done)));
            return Ok(Ended::Good);
        }
        let Some(keep) = keep else {
            let answer = context.ask::<SpaceDetail>(Operation::SpaceShow { space }).await?;
            context.print(&answer, |d| undecided(&d.info, now_ms()));
            return Ok(Ended::Good);
        };
        let answer = context.ask::<ResolveReport>(Operation::Resolve { space, section, keep, dry_run }).await?;
        context.print(&answer, text);
        Ok(Ended::Good)
    }
}

/// What a person may decide about.
fn undecided(s: &SpaceInfo, now_ms: u64) -> String {
    let all = branches(&s.name, &s.branches, now_ms) + &diverged(&s.name, &s.diverged);
    if all.is_empty() { format!("{}: there is nothing to decide\n", clean(&s.name)) } else { all }
}

/// The histories of a space, as lines below a table; nothing where there is one only.
pub(super) fn branches(space: &str, branches: &[BranchInfo], now_ms: u64) -> String {
    let line = |b: &BranchInfo| {
        let standing = match b.standing {
            BranchStanding::Followed => "is followed here",
            BranchStanding::Open => "contradicts it",
            BranchStanding::SetAside => "was decided against",
        };
        let (signed, tag) =
            (since(b.time_ms, now_ms), b.tag.as_deref().map_or(String::new(), |t| format!(", {}", clean(t))));
        let (head, id) = (b.head, b.snapshot.short());
        format!("  head {head} {standing}: snapshot {id}, number {}, epoch {}, signed {signed}{tag}\n", b.seq, b.epoch)
    };
    if branches.is_empty() {
        return String::new();
    }
    let open = branches.iter().any(|b| b.standing == BranchStanding::Open);
    let (space, what) = (clean(space), if open { "frozen; " } else { "" });
    let head = format!(
        "! {space}: {what}its owner signed more than one history; `sluice resolve {space} --fork HEAD` chooses\n"
    );
    branches.iter().fold(head, |all, b| all + &line(b))
}

fn text(r: &ResolveReport) -> String {
    let space = clean(&r.space);
    if r.sections.is_empty() {
        return format!("{space}: nothing was changed by hand, there is nothing to decide\n");
    }
    let mut out = String::new();
    for s in &r.sections {
        let what = match (r.keep, r.dry_run) {
            (Keep::Theirs, false) => "the owner's version is live",
            (Keep::Theirs, true) => "the owner's version would be put back",
            (Keep::Mine, false) => "the local files stay; it is not synced any more",
            (Keep::Mine, true) => "the local files would stay",
        };
        out.push_str(&format!("{space}: section {}: {what}\n", clean(&s.section)));
        out.push_str(&changes(&s.changes, s.count));
        if let Some(kept) = &s.kept {
            out.push_str(&format!("  the other side lies in {}\n", clean(kept)));
        }
        for path in s.not_here.iter().take(SHOWN_MAX) {
            out.push_str(&format!("  ! the owner's {} is not on this disk\n", clean(path)));
        }
    }
    out
}

fn changes(changes: &[Skipped], count: u64) -> String {
    let shown = changes.iter().take(SHOWN_MAX);
    let mut out: String = shown.map(|c| format!("  {} {}\n", clean(&c.path), clean(&c.reason))).collect();
    let left = count.saturating_sub(changes.len().min(SHOWN_MAX) as u64);
    if left > 0 {
        out.push_str(&format!("  and {left} more; --json names the first hundred\n"));
    }
    out
}

/// Sections that do not follow the owner, as lines below a table.
pub(super) fn diverged(space: &str, sections: &[DivergedSection]) -> String {
    let one = |d: &DivergedSection| {
        let (space, section) = (clean(space), clean(&d.section));
        let version = d.snapshot.short();
        if d.detached {
            return format!(
                "! {space}: section {section} is this site's own since {version}; `sluice resolve {space} --section {section} --keep theirs` gives it back\n"
            );
        }
        let head = if d.gives_way {
            format!("! {space}: section {section} gives way to the owner's version at the next sync\n")
        } else {
            format!(
                "! {space}: section {section} was changed here and stays at {version}; `sluice resolve {space} --keep theirs|mine`\n"
            )
        };
        head + &changes(&d.changes, d.count)
    };
    sections.iter().map(one).collect()
}
