//! A replica comes along: it asks now and then, and at once when it hears of something new.
//!
//! Invariant: one round at a time for a space; what is heard during a round leads to one more. Asking
//! changes nothing and takes no job; only a version that is not live here does, or a live one of which
//! something is missing or damaged. What was changed by hand is left to a person, as by `sync`.

use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sluice_protocol::api::{ApiError, Failure};
use sluice_protocol::head::Head;
use sluice_protocol::ids::{SiteId, SpaceId};
use sluice_store::catalog::{LiveRecord, Lookup, SiteLookup, SpaceRecord};
use sluice_store::watch::Silent;

use super::pace::Failing;
use super::{Bell, Follow, Round};
use crate::clock::now_ms;
use crate::errors::{Explain, OrExplain};
use crate::node::SiteNode;
use crate::sync::SyncError;
use crate::sync::ask::{self, Asking};

/// Follows one space until the site stops or the space is gone.
pub(super) async fn follow(follow: Follow, node: Weak<SiteNode>, space: SpaceId) {
    let usual = Duration::from_secs(follow.site().config.follow.poll_s);
    let bell = follow.bell(&space);
    let mut hint = None;
    loop {
        let Some(strong) = node.upgrade() else { return };
        let (name, outcome) = round(&follow, &strong, &space, hint.take(), &bell).await;
        drop(strong);
        if follow.is_stopping() {
            return;
        }
        let wait = match outcome {
            Round::Gone => return,
            Round::Again => Duration::ZERO,
            Round::Good => follow.standings().good(&space, &name, usual),
            Round::Bad(failing, e) => follow.standings().bad(&space, &name, failing, &e, usual),
        };
        follow.standings().change(&space, |s| s.next_ms = Some(now_ms() + wait.as_millis() as u64));
        tokio::select! {
            () = follow.stopped() => return,
            from = bell.rung() => hint = from,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

async fn round(
    follow: &Follow,
    node: &SiteNode,
    space: &SpaceId,
    hint: Option<SiteId>,
    bell: &Bell,
) -> (String, Round) {
    let record = follow.site().catalog.read().and_then(|r| r.space(space));
    let mut record = match record.or_explain() {
        Ok(Some(record)) => record,
        Ok(None) => return (String::new(), Round::Gone),
        Err(e) => return (space.short(), Round::Bad(Failing::Wrong, e)),
    };
    if let Some(from) = hint {
        prefer(follow, space, &mut record, from);
    }
    let name = record.name.clone();
    let outcome = come_along(follow, node, space, record, bell).await.unwrap_or_else(|e| match e {
        Failed::Asking(e) => Round::Bad(how(&e), e.explain()),
        Failed::Coming(e) if e.failure == Failure::Incomplete => Round::Bad(Failing::Away, e),
        Failed::Coming(e) | Failed::Mending(e) => Round::Bad(Failing::Wrong, e),
    });
    (name, outcome)
}

enum Failed {
    Asking(SyncError),
    Coming(ApiError),
    /// What is damaged here did not come: perhaps nobody has it. Each try looks through all that is published.
    Mending(ApiError),
}

async fn come_along(
    follow: &Follow,
    node: &SiteNode,
    space: &SpaceId,
    mut record: SpaceRecord,
    bell: &Bell,
) -> Result<Round, Failed> {
    let site = follow.site();
    let heard = tokio::select! {
        () = follow.stopped() => return Ok(Round::Again),
        asked = ask::newest(site, space, &record, &Silent, Asking::default()) => Err(asked),
        from = bell.rung() => Ok(from),
    };
    let asked = match heard {
        Err(asked) => asked,
        // Whoever rings now may be reached, while the question may wait for a site that has moved away.
        // It is asked anew once, so that no ringing can keep it from ever being answered.
        Ok(from) => {
            if let Some(from) = from {
                prefer(follow, space, &mut record, from);
            }
            tokio::select! {
                () = follow.stopped() => return Ok(Round::Again),
                asked = ask::newest(site, space, &record, &Silent, Asking::default()) => asked,
            }
        }
    };
    let (source, head) = asked.map_err(Failed::Asking)?;
    let live = site.catalog.read().and_then(|r| r.live(space)).or_explain().map_err(Failed::Coming)?;
    let to_mend = bell.to_mend.load(Ordering::Relaxed);
    if !to_mend && !is_wanted(&record, live.as_ref(), &head) {
        return Ok(Round::Good);
    }
    let Some(job) = node.jobs().begin_automatic(&record.name, "ask") else {
        // A person is at it. What that leaves to do is looked at afterwards.
        tokio::select! {
            () = follow.stopped() => {}
            () = node.jobs().idle(&record.name) => {}
        }
        return Ok(Round::Again);
    };
    let stored = site.catalog.read().and_then(|r| r.space(space)).or_explain().map_err(Failed::Coming)?;
    let live = site.catalog.read().and_then(|r| r.live(space)).or_explain().map_err(Failed::Coming)?;
    if stored.is_none_or(|stored| !to_mend && !is_wanted(&stored, live.as_ref(), &head)) {
        // A person decided, or brought it, while the question was on its way.
        return Ok(Round::Again);
    }
    prefer(follow, space, &mut record, source.peer().site());
    let failed = if is_newer(&record, live.as_ref(), &head) { Failed::Coming } else { Failed::Mending };
    // What is found from here on is looked at once more.
    bell.to_mend.store(false, Ordering::Relaxed);
    let first = Some((source, head));
    let sync = node.sync_with(space, &record, false, None, first, &job).await.map_err(|e| {
        bell.to_mend.fetch_or(to_mend, Ordering::Relaxed);
        failed(e)
    })?;
    let (snapshot, moved) = (sync.snapshot.short(), sync.bytes_moved);
    tracing::info!(space = %record.name, %snapshot, seq = sync.seq, moved, mended = sync.mended, "came along");
    Ok(Round::Good)
}

/// Whether there is anything to bring: a newer version, or what is missing or damaged of the live one.
fn is_wanted(record: &SpaceRecord, live: Option<&LiveRecord>, newest: &Head) -> bool {
    live.is_some_and(LiveRecord::is_hurt) || is_newer(record, live, newest)
}

/// Whether there is a newer version, and no person holds the copy where it is.
fn is_newer(record: &SpaceRecord, live: Option<&LiveRecord>, newest: &Head) -> bool {
    record.held.is_none() && live.is_none_or(|l| l.snapshot != newest.manifest)
}

/// Asks this site first, unless it failed lately.
fn prefer(follow: &Follow, space: &SpaceId, record: &mut SpaceRecord, site: SiteId) {
    if follow.site().faults.rests(space, &site) {
        return;
    }
    record.sources.retain(|s| *s != site);
    record.sources.insert(0, site);
}

/// Whether waiting may mend it.
fn how(e: &SyncError) -> Failing {
    match e {
        SyncError::Unreachable(_)
        | SyncError::Late { .. }
        | SyncError::Lane(_)
        | SyncError::Fetch(_)
        | SyncError::Stopped => Failing::Away,
        _ => Failing::Wrong,
    }
}
