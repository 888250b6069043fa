//! An owner notices changes in its lake and takes snapshots.
//!
//! Invariant: whatever changes in the lake is in a snapshot after the debounce if the watch saw it, and
//! after the rescan time if not. Changes that are seen while a snapshot is taken lead to the next one.

use std::path::PathBuf;
use std::sync::Weak;
use std::time::Duration;

use sluice_protocol::api::{ApiError, Failure};
use sluice_protocol::ids::SpaceId;
use sluice_store::catalog::SiteLookup;
use tokio::time::Instant;

use super::debounce::{Debounce, Seen};
use super::eyes::{self, Blind, Eyes};
use super::pace::{self, Failing};
use super::{Follow, Round};
use crate::clock::now_ms;
use crate::errors::OrExplain;
use crate::flow::off_reactor;
use crate::node::SiteNode;

/// Follows one space until the site stops or the space is gone.
pub(super) async fn follow(follow: Follow, node: Weak<SiteNode>, space: SpaceId, lake: PathBuf) {
    let settings = &follow.site().config.follow;
    let rescan = Duration::from_secs(settings.rescan_s);
    let mut waiting = Debounce::new(Duration::from_millis(settings.debounce_ms));
    let mut left_out = 0u32;
    let mut sight = open(&follow, &space, &lake).await;
    loop {
        waiting.clear();
        let Some(strong) = node.upgrade() else { return };
        let began = Instant::now();
        let (name, outcome) = round(&follow, &strong, &space).await;
        drop(strong);
        if follow.is_stopping() {
            return;
        }
        let wait = match outcome {
            Taken::Round(Round::Gone) => return,
            Taken::Round(Round::Again) => Duration::ZERO,
            Taken::Round(Round::Bad(failing, e)) => follow.standings().bad(&space, &name, failing, &e, rescan),
            Taken::Round(Round::Good) => {
                left_out = 0;
                follow.standings().good(&space, &name, rescan)
            }
            Taken::Partly => {
                // What was left out may be whole in a moment.
                left_out += 1;
                let usual = follow.standings().good(&space, &name, rescan);
                pace::wait(Failing::Wrong, left_out, rescan).min(usual)
            }
        };
        // A lake that takes long to look through is left alone as long as that took.
        let rested = Instant::now() + began.elapsed();
        let next = Instant::now() + wait;
        follow.standings().change(&space, |s| s.next_ms = Some(now_ms() + wait.as_millis() as u64));
        loop {
            sight = look(&follow, &space, &lake, sight, &mut waiting).await;
            let due = waiting.due().map_or(next, |d| d.max(rested).min(next));
            tokio::select! {
                () = follow.stopped() => return,
                () = tokio::time::sleep_until(due) => break,
                () = ready(&sight) => {}
            }
        }
        // A lake that could not be watched may be watched again: a limit was raised, a disk is back.
        if sight.is_none() {
            sight = open(&follow, &space, &lake).await;
        }
    }
}

/// What came of a snapshot.
enum Taken {
    Round(Round),
    /// Something was left out.
    Partly,
}

async fn round(follow: &Follow, node: &SiteNode, space: &SpaceId) -> (String, Taken) {
    let record = follow.site().catalog.read().and_then(|r| r.space(space));
    let record = match record.or_explain() {
        Ok(Some(record)) => record,
        Ok(None) => return (String::new(), Taken::Round(Round::Gone)),
        Err(e) => return (space.short(), Taken::Round(Round::Bad(Failing::Wrong, e))),
    };
    let name = record.name;
    let Some(job) = node.jobs().begin_automatic(&name, "scan") else {
        tokio::select! {
            () = follow.stopped() => {}
            () = node.jobs().idle(&name) => {}
        }
        return (name, Taken::Round(Round::Again));
    };
    let taken = match node.snapshot_with(&name, None, job).await {
        Ok(report) => {
            if report.changed {
                tracing::info!(space = %name, snapshot = %report.snapshot.short(), seq = report.seq, "a change was taken");
            }
            if report.skipped.is_empty() { Taken::Round(Round::Good) } else { Taken::Partly }
        }
        Err(e) => Taken::Round(Round::Bad(Failing::Wrong, e)),
    };
    (name, taken)
}

/// Opens the eyes on a lake; says so when that cannot be.
async fn open(follow: &Follow, space: &SpaceId, lake: &std::path::Path) -> Option<Eyes> {
    let root = lake.to_path_buf();
    let opened = off_reactor(move || Ok((Eyes::open(&root), eyes::remote(&root)))).await;
    match opened {
        Ok((Ok(eyes), remote)) => {
            tracing::debug!(lake = %lake.display(), folders = eyes.folders(), "watched");
            follow.standings().change(space, |s| {
                s.watching = true;
                s.blind = remote.map(|b| b.to_string());
            });
            Some(eyes)
        }
        Ok((Err(blind), _)) => {
            closed(follow, space, lake, &blind);
            None
        }
        Err(e) => {
            closed(follow, space, lake, &Blind::Io(std::io::Error::other(e)));
            None
        }
    }
}

fn closed(follow: &Follow, space: &SpaceId, lake: &std::path::Path, blind: &Blind) {
    follow.standings().change(space, |s| {
        if s.blind.is_none() {
            tracing::warn!(lake = %lake.display(), "{blind}");
        }
        s.watching = false;
        s.blind = Some(blind.to_string());
    });
}

async fn ready(sight: &Option<Eyes>) {
    match sight {
        Some(eyes) => eyes.ready().await,
        None => std::future::pending().await,
    }
}

/// Notes what the eyes saw. Eyes that lost something are opened anew; the scan finds the rest.
async fn look(
    follow: &Follow,
    space: &SpaceId,
    lake: &std::path::Path,
    sight: Option<Eyes>,
    waiting: &mut Debounce,
) -> Option<Eyes> {
    let mut eyes = sight?;
    let looked = off_reactor(move || {
        let seen = eyes.look();
        Ok((eyes, seen))
    });
    let (eyes, seen) = match looked.await {
        Ok((eyes, Ok(seen))) => (eyes, seen),
        Ok((_, Err(blind))) => {
            closed(follow, space, lake, &blind);
            waiting.note(Seen { lost: true, ..Seen::default() }, Instant::now());
            return None;
        }
        Err(e) => {
            closed(follow, space, lake, &Blind::Io(std::io::Error::other(e)));
            return None;
        }
    };
    waiting.note(seen, Instant::now());
    if seen.lost {
        tracing::debug!(lake = %lake.display(), "changes were lost on the way: it is looked through whole");
        drop(eyes);
        return open(follow, space, lake).await;
    }
    Some(eyes)
}

/// An automatic snapshot must not take an empty mount point for a lake that was emptied.
pub(crate) fn refuse_emptied(name: &str) -> ApiError {
    ApiError::new(
        Failure::Error,
        format!("the lake of `{name}` is empty all at once: nothing was signed, and copies keep what they have"),
        format!("mount it again; if it is meant to be empty, say so with `sluice snapshot {name}`"),
    )
}

/// An automatic snapshot must not drop a table that is only being written.
pub(crate) fn refuse_lost_table(table: &str, reason: &str) -> ApiError {
    ApiError::new(
        Failure::Incomplete,
        format!("the table `{table}` cannot be taken now, and not as it was before either: {reason}"),
        "nothing was signed, and copies keep what they have; to go on without the table, run `sluice snapshot`",
    )
}

/// An automatic snapshot must not call deleted what cannot be read and is kept nowhere.
pub(crate) fn refuse_missing(name: &str, path: &str, reason: &str) -> ApiError {
    ApiError::new(
        Failure::Incomplete,
        format!("`{path}` cannot be had now, and its bytes of the last snapshot are gone: {reason}"),
        format!(
            "nothing was signed, and copies keep what they have; to go on without it, run `sluice snapshot {name}`"
        ),
    )
}

/// An automatic snapshot must not call deleted what lies on a device that is out of sight.
pub(crate) fn refuse_unmounted(name: &str, path: &str) -> ApiError {
    ApiError::new(
        Failure::Error,
        format!(
            "`{path}` is gone together with the device that it lay on: nothing was signed, and copies keep what they have"
        ),
        format!("mount it again; if it is meant to be gone, say so with `sluice snapshot {name}`"),
    )
}
