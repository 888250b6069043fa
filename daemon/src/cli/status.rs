//! `sluice status`: how the site stands.

use std::io::IsTerminal;
use std::time::Duration;

use clap::Args;
use sluice_protocol::api::{self, Alert, JobInfo, Operation, PeerInfo, Role, SpaceInfo, SpaceState};

use super::context::Context;
use super::gc::aside;
use super::output::{Table, ago, clean, count, mib, now_ms, per_second, since};
use super::resolve::{branches, diverged};
use super::{Ended, Result, output};

/// Time between two looks of `--watch`.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// Show spaces, peers and what is going on
#[derive(Debug, Args)]
pub(super) struct Status {
    /// Show it again every second, until interrupted
    #[arg(long, conflicts_with = "json")]
    watch: bool,
}

impl Status {
    pub(super) async fn run(self, context: &Context) -> Result<Ended> {
        if !self.watch {
            let answer = context.ask::<api::Status>(Operation::Status).await?;
            context.print(&answer, |status| text(status, now_ms()));
            return Ok(Ended::Good);
        }
        loop {
            let status = context.client().ask::<api::Status>(&Operation::Status, &mut |_| {}).await?;
            let clear = if std::io::stdout().is_terminal() { "\x1b[H\x1b[2J" } else { "" };
            output::print(&format!("{clear}{}", text(&status, now_ms())));
            tokio::select! {
                () = tokio::time::sleep(WATCH_EVERY) => {}
                // The end of a watch is no failure.
                _ = tokio::signal::ctrl_c() => return Ok(Ended::Good),
            }
        }
    }
}

fn text(status: &api::Status, now_ms: u64) -> String {
    let mut out = format!(
        "{}  {}  version {}, process {}\nhome   {}\nAPI    {}\npeers  reach it at {}\n",
        clean(&status.name),
        status.site.short(),
        clean(&status.version),
        status.pid,
        clean(&status.home),
        status.api.as_deref().map_or("closed".into(), clean),
        if status.listening.is_empty() { "no address".into() } else { clean(&status.listening.join(", ")) },
    );
    let mut part = |text: String| {
        if !text.is_empty() {
            out.push('\n');
            out.push_str(&text);
        }
    };
    part(spaces(&status.spaces, now_ms));
    part(peers(&status.peers, now_ms));
    part(jobs(&status.jobs, now_ms));
    part(format!(
        "moved {}, reused {} since this site was made\n",
        mib(status.moved_bytes_total),
        mib(status.reused_bytes_total)
    ));
    part(status.caps.iter().map(|cap| format!("capped at {}\n", clean(cap))).collect());
    part(alerts(&status.alerts, now_ms));
    out
}

fn alerts(alerts: &[Alert], now_ms: u64) -> String {
    let line = |a: &Alert| {
        let space = a.space.as_ref().map_or(String::new(), |s| format!(", {}", clean(s)));
        format!("! {}{space}: {}\n", since(a.time_ms, now_ms), clean(&a.text))
    };
    alerts.iter().map(line).collect()
}

/// The word for a role.
pub(super) fn role(role: Role) -> &'static str {
    match role {
        Role::Owner => "owner",
        Role::Replica => "replica",
    }
}

/// The word for a state.
pub(super) fn state(state: SpaceState) -> &'static str {
    match state {
        SpaceState::Empty => "empty",
        SpaceState::Busy => "busy",
        SpaceState::Ready => "ready",
        SpaceState::Unproven => "unproven",
        SpaceState::Behind => "behind",
        SpaceState::Stale => "stale",
        SpaceState::Frozen => "frozen",
        SpaceState::Diverged => "diverged",
    }
}

/// A table of spaces; how many files were left out is told below it.
pub(super) fn spaces(spaces: &[SpaceInfo], now_ms: u64) -> String {
    if spaces.is_empty() {
        return "no spaces yet: `sluice space add NAME PATH` or `sluice join TICKET`\n".into();
    }
    let mut table = Table::new(&["space", "role", "state", ">files", ">size", "snapshot", ">age", "follows", "path"]);
    let mut skipped = String::new();
    for s in spaces {
        table.row([
            s.name.clone(),
            role(s.role).into(),
            state(s.state).into(),
            s.files.to_string(),
            mib(s.bytes),
            s.snapshot.map_or("-".into(), |id| id.short()),
            s.snapshot_time_ms.map_or("-".into(), |t| ago(t, now_ms)),
            followed(s, now_ms),
            s.path.clone(),
        ]);
        if let Some(trouble) = s.follow.trouble.as_ref().filter(|_| s.follow.following) {
            skipped.push_str(&format!("! {}: {}\n", clean(&s.name), clean(trouble)));
        }
        if let Some(h) = &s.held {
            skipped.push_str(&format!("! {}: held at {}, number {}\n", clean(&s.name), h.snapshot.short(), h.seq));
        }
        if s.state == SpaceState::Frozen {
            skipped.push_str(&branches(&s.name, &s.branches, now_ms));
        }
        skipped.push_str(&diverged(&s.name, &s.diverged));
        if s.lake_silent {
            skipped.push_str(&format!("! {}: the lake at {} does not answer\n", clean(&s.name), clean(&s.path)));
        }
        skipped.push_str(&aside(&s.name, &s.kept_aside, &s.quarantined, now_ms));
        if !s.skipped.is_empty() {
            let paths = count(s.skipped.len() as u64, "path is", "paths are");
            skipped.push_str(&format!(
                "! {}: {paths} not in the newest snapshot as they were; `sluice space show {}`\n",
                clean(&s.name),
                clean(&s.name)
            ));
        }
    }
    table.text() + &skipped
}

/// In a few words, whether a space follows and how well.
pub(super) fn followed(space: &SpaceInfo, now_ms: u64) -> String {
    let f = &space.follow;
    let step = match f.in_step_ms {
        _ if f.behind_versions > 0 => format!("{} behind", count(f.behind_versions, "version", "versions")),
        Some(time) => format!("in step {}", since(time, now_ms)),
        None => "not in step yet".into(),
    };
    match (f.following, space.role) {
        (false, _) => "no".into(),
        (true, Role::Owner) if !f.watching => format!("by timer, {step}"),
        (true, _) => step,
    }
}

/// A table of peers; nothing when there are none.
pub(super) fn peers(peers: &[PeerInfo], now_ms: u64) -> String {
    if peers.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&["peer", "site", "now", "seen", "spaces", ">moved"]);
    for p in peers {
        table.row([
            p.name.clone(),
            p.site.short(),
            if p.connected { format!("connected ({})", p.lanes.join(", ")) } else { "away".into() },
            p.last_seen_ms.map_or("never".into(), |t| ago(t, now_ms)),
            p.spaces.join(", "),
            mib(p.moved_bytes),
        ]);
    }
    table.text()
}

/// How fast a stage goes, and how long the rest of it takes.
fn pace(job: &JobInfo) -> String {
    match (job.bytes_per_s, job.left_s) {
        (Some(rate), Some(left)) => format!(", {}, about {} left", per_second(rate, 1.0), ago(0, left.max(2) * 1000)),
        (Some(_), None) => ", nothing moves".into(),
        (None, _) => String::new(),
    }
}

fn jobs(jobs: &[JobInfo], now_ms: u64) -> String {
    let of = |done: String, total: Option<String>| total.map_or(done.clone(), |t| format!("{done} of {t}"));
    let line = |j: &JobInfo| {
        format!(
            "> {}: {} for {}, {} files, {}{}\n",
            clean(&j.space),
            clean(&j.stage),
            ago(j.since_ms, now_ms),
            of(j.files.to_string(), (j.files_total > 0).then(|| j.files_total.to_string())),
            of(mib(j.bytes), (j.bytes_total > 0).then(|| mib(j.bytes_total))),
            pace(j),
        )
    };
    jobs.iter().map(line).collect()
}
