//! Following: an owner takes snapshots of what changes, tells its followers, and they come along.
//!
//! ```text
//! owner     eyes / rescan timer → debounce → snapshot → tell
//! replica   heard / poll timer  → ask → sync → tell those who may not reach the owner
//! ```
//!
//! One task for each space; a supervisor keeps tasks and spaces the same. The tasks hold the site
//! weakly and end with it.
//!
//! Invariant: following does nothing that a person could not do with `snapshot` and `sync`, in the same
//! jobs, and a person's command goes before it. Nothing that follows is needed for safety: every word may
//! be lost, every task killed, and the next round finds what there is to do.

mod announce;
mod debounce;
mod eyes;
mod owner;
mod pace;
mod replica;
mod standing;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use sluice_protocol::api::{Alert, ApiError, FollowInfo};
use sluice_protocol::head::Head;
use sluice_protocol::ids::{SiteId, SpaceId};
use sluice_protocol::signed::Signed;
use sluice_store::catalog::{CatalogError, Lookup, Reader, Role, SiteLookup, SpaceRecord};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::node::SiteNode;
use crate::site::Site;
use announce::Tellers;
use pace::Failing;
use standing::Standings;

pub(crate) use owner::{refuse_emptied, refuse_lost_table, refuse_missing, refuse_unmounted};

/// How often the supervisor compares spaces with tasks, and looks at this machine's addresses.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Versions that are counted when a copy is behind.
const BEHIND_COUNTED_MAX: u64 = 1000;

/// What one round came to.
enum Round {
    Good,
    /// Somebody else was at work: look again at once.
    Again,
    Bad(Failing, ApiError),
    /// The space is not here any more.
    Gone,
}

/// Wakes the task of a replica. Any number of rings during a round lead to one more.
#[derive(Default)]
struct Bell {
    notify: Notify,
    from: Mutex<Option<SiteId>>,
    /// Something published was found not to be as it should: one sync looks it all over, whatever is new.
    to_mend: AtomicBool,
}

impl Bell {
    fn ring(&self, from: Option<SiteId>) {
        if from.is_some() {
            *self.from.lock().expect("no panic while held") = from;
        }
        self.notify.notify_one();
    }

    /// Waits for a ring; tells who may have something new.
    async fn rung(&self) -> Option<SiteId> {
        self.notify.notified().await;
        self.from.lock().expect("no panic while held").take()
    }
}

/// The following of a site; clones are the same.
#[derive(Clone)]
pub struct Follow(Arc<Inner>);

struct Inner {
    site: Site,
    bells: Mutex<HashMap<SpaceId, Arc<Bell>>>,
    standings: Standings,
    spaces_changed: Notify,
    stop: CancellationToken,
    telling: Tellers,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Follow {
    /// The following of `site`; nothing runs before [`Follow::begin`].
    pub fn new(site: Site) -> Self {
        Self(Arc::new(Inner {
            site,
            bells: Mutex::default(),
            standings: Standings::default(),
            spaces_changed: Notify::new(),
            stop: CancellationToken::new(),
            telling: Tellers::default(),
        }))
    }

    /// Begins to follow the site's spaces, if the settings want it. Ends with the handle.
    pub fn begin(&self, node: Weak<SiteNode>) -> Option<AbortOnDropHandle<()>> {
        let supervise = supervise(self.clone(), node);
        self.is_enabled().then(|| AbortOnDropHandle::new(tokio::spawn(supervise)))
    }

    /// No new round begins from here on, and nobody is told any more.
    pub fn stop(&self) {
        self.0.stop.cancel();
    }

    /// Spaces were added or removed, or are followed or not since now.
    pub fn spaces_changed(&self) {
        self.0.spaces_changed.notify_one();
    }

    /// A peer told of a head. `new`: this site does not have it yet. The word of one that failed lately as a
    /// source does not end the waiting after a failure, else it could keep this site busy with itself.
    pub fn heard(&self, space: &SpaceId, from: SiteId, new: bool) {
        if self.site().faults.rests(space, &from) {
            if new && !self.standings().is_failing(space) {
                self.bell(space).ring(None);
            }
        } else if new || self.standings().is_failing(space) {
            self.bell(space).ring(Some(from));
        }
    }

    /// There is something to do that does not wait for the poll: what is published was found missing or
    /// damaged, or a person decided.
    pub fn look_again(&self, space: &SpaceId) {
        let bell = self.bell(space);
        bell.to_mend.store(true, Ordering::Relaxed);
        bell.ring(None);
    }

    /// A peer spoke: whoever waits to reach it again need not wait any longer.
    pub fn heard_of(&self, from: SiteId) {
        let spaces = self.0.site.catalog.read().and_then(|r| r.spaces()).unwrap_or_default();
        let waits = |(space, record): &(SpaceId, SpaceRecord)| {
            record.role == Role::Replica && record.owner == from && self.standings().is_failing(space)
        };
        spaces.iter().filter(|s| waits(s)).for_each(|(space, _)| self.bell(space).ring(Some(from)));
    }

    /// Tells other sites of a head, off to the side.
    pub fn tell(&self, head: Signed<Head>, except: Vec<SiteId>) {
        if !self.is_enabled() || self.is_stopping() {
            return;
        }
        self.0.telling.tell(&self.0.site, &self.0.stop, head, except);
    }

    /// How a space is followed, for `status`.
    pub fn info(&self, reader: &Reader, space: &SpaceId, record: &SpaceRecord) -> Result<FollowInfo, CatalogError> {
        let (behind_versions, behind_ms) = behind(reader, space, record)?;
        let off = self.why_not(record);
        let standing = if off.is_none() { self.standings().of(space) } else { Default::default() };
        Ok(FollowInfo {
            following: off.is_none(),
            trouble: off.or_else(|| standing.trouble()),
            watching: standing.watching,
            in_step_ms: standing.in_step_ms,
            behind_versions,
            behind_ms,
            next_ms: standing.next_ms,
        })
    }

    /// What a person should know: one alert for each space whose following fails.
    pub fn alerts(&self, spaces: &[(SpaceId, SpaceRecord)]) -> Vec<Alert> {
        let followed = spaces.iter().filter(|(_, r)| self.why_not(r).is_none());
        let alerts = followed.filter_map(|(space, record)| {
            let standing = self.standings().of(space);
            let failure = standing.alert()?;
            let text = format!("cannot be followed: {}", failure.text);
            Some(Alert { time_ms: failure.since_ms, space: Some(record.name.clone()), text })
        });
        alerts.collect()
    }

    fn why_not(&self, record: &SpaceRecord) -> Option<String> {
        if !self.is_enabled() {
            return Some("the settings say so (`follow.enabled`)".into());
        }
        (record.follow == Some(false)).then(|| format!("paused; `sluice follow {} --on` goes on", record.name))
    }

    /// Whether this site follows at all.
    pub fn is_enabled(&self) -> bool {
        self.0.site.config.follow.enabled
    }

    fn is_stopping(&self) -> bool {
        self.0.stop.is_cancelled()
    }

    async fn stopped(&self) {
        self.0.stop.cancelled().await;
    }

    fn site(&self) -> &Site {
        &self.0.site
    }

    fn standings(&self) -> &Standings {
        &self.0.standings
    }

    fn bell(&self, space: &SpaceId) -> Arc<Bell> {
        self.0.bells.lock().expect("no panic while held").entry(*space).or_default().clone()
    }

    fn forget(&self, space: &SpaceId) {
        self.0.bells.lock().expect("no panic while held").remove(space);
        self.0.telling.forget(space);
        self.standings().forget(space);
    }
}

/// How many versions, and how much time between their signing, what is live lacks of what is known.
fn behind(reader: &Reader, space: &SpaceId, record: &SpaceRecord) -> Result<(u64, u64), CatalogError> {
    if record.role == Role::Owner {
        return Ok((0, 0));
    }
    let (Some(live), Some(newest)) = (reader.live(space)?, reader.newest_head(space, &record.owner)?) else {
        return Ok((0, 0));
    };
    if live.snapshot == newest.manifest {
        return Ok((0, 0));
    }
    let from = (0, newest.seq.saturating_sub(BEHIND_COUNTED_MAX));
    let heads = reader.heads_since(space, &record.owner, from, BEHIND_COUNTED_MAX as usize + 1)?;
    let at = heads.iter().rev().find(|h| h.manifest == live.snapshot);
    Ok(match at {
        Some(at) => (newest.seq - at.seq, newest.time_ms.saturating_sub(at.time_ms)),
        None => (heads.len() as u64, 0),
    })
}

/// Keeps one task for each space that is to be followed, and watches this machine's addresses.
async fn supervise(follow: Follow, node: Weak<SiteNode>) {
    let mut tasks: HashMap<SpaceId, (SpaceRecord, AbortOnDropHandle<()>)> = HashMap::new();
    let mut addresses = follow.site().lane.local_addresses();
    loop {
        match follow.site().catalog.read().and_then(|r| r.spaces()) {
            Ok(spaces) => reconcile(&follow, &node, &spaces, &mut tasks),
            Err(e) => tracing::warn!(error = %e, "the spaces to follow cannot be read"),
        }
        tokio::select! {
            () = follow.stopped() => break,
            () = follow.0.spaces_changed.notified() => {}
            () = tokio::time::sleep(LOOK_EVERY) => moved(&follow, &mut addresses),
        }
    }
    // Rounds that are under way end by themselves: their jobs are told to stop.
    for (_, task) in tasks.into_values() {
        let _ = task.await;
    }
}

fn reconcile(
    follow: &Follow,
    node: &Weak<SiteNode>,
    spaces: &[(SpaceId, SpaceRecord)],
    tasks: &mut HashMap<SpaceId, (SpaceRecord, AbortOnDropHandle<()>)>,
) {
    let wanted = |space: &SpaceId| spaces.iter().find(|(s, r)| s == space && follow.why_not(r).is_none());
    tasks.retain(|space, (before, task)| {
        let same = wanted(space).is_some_and(|(_, now)| now.lake == before.lake && now.role == before.role);
        if !same {
            follow.forget(space);
        }
        same && !task.is_finished()
    });
    for (space, record) in spaces {
        if follow.why_not(record).is_some() || tasks.contains_key(space) {
            continue;
        }
        let (follow, node, space) = (follow.clone(), node.clone(), *space);
        let task = match record.role {
            Role::Owner => tokio::spawn(owner::follow(follow, node, space, PathBuf::from(&record.lake))),
            Role::Replica => tokio::spawn(replica::follow(follow, node, space)),
        };
        tasks.insert(space, (record.clone(), AbortOnDropHandle::new(task)));
    }
}

/// When this machine's addresses changed, the network may be back for us, and others look for us in vain.
fn moved(follow: &Follow, addresses: &mut Vec<SocketAddr>) {
    let now = follow.site().lane.local_addresses();
    if now == *addresses {
        return;
    }
    tracing::info!(addresses = ?now, "this site is reached elsewhere now");
    *addresses = now;
    let Ok(reader) = follow.site().catalog.read() else { return };
    for (space, record) in reader.spaces().unwrap_or_default() {
        match record.role {
            Role::Replica => follow.bell(&space).ring(None),
            // The head is known; the card that comes with it is not.
            Role::Owner => {
                if let Ok(Some(head)) = reader.newest_head(&space, &record.owner) {
                    follow.tell(head, vec![]);
                }
            }
        }
    }
}
