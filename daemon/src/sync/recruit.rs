//! Further sources for a transfer that has much to fetch: every site that may read the space and answers.
//!
//! One that does not answer is asked again later, as long as the transfer goes on: it may not have heard yet that this site
//! was let in.
//!
//! Invariant: whoever helps was asked for the newest head like a first source, so what it says was believed or refused by the
//! same rules; and it must keep the pace of one among others, unless it is the owner.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, FuturesUnordered};
use futures_util::{FutureExt, StreamExt};
use sluice_protocol::ids::{SiteId, SpaceId};
use sluice_store::catalog::{CatalogError, SpaceRecord};

use super::crew::MEMBERS_MAX;
use super::source::Source;
use super::{SyncError, ask};
use crate::lanes::Peer;
use crate::site::Site;

/// Less than this is not worth dialling others for, in bytes.
const WORTH_BYTES: u64 = 16 * 1024 * 1024;
/// How long after its first answer a site that cannot help is asked again; doubled each time.
const AGAIN_FIRST: Duration = Duration::from_secs(1);
/// See [`AGAIN_FIRST`].
const AGAIN_MAX: Duration = Duration::from_secs(60);

/// What comes of asking.
pub enum Recruit {
    /// It helps.
    Source(Arc<Source>),
    /// All were asked once. Some may come later.
    AllAsked,
    /// One of them told of another history of the owner.
    Fork(SyncError),
}

/// Sites as they answer.
pub type Recruits = BoxStream<'static, Recruit>;

/// A site that was asked, how often, and what it said.
type Asked = (SiteId, Peer, u32, Result<(), SyncError>);

struct Asking {
    site: Site,
    space: SpaceId,
    owner: SiteId,
    asked: FuturesUnordered<BoxFuture<'static, Asked>>,
    /// Sites that have not answered once.
    open: usize,
    ready: VecDeque<Recruit>,
}

/// The sites that have the space but those that had their turn in this sync; none where `bytes` are few.
pub fn others(
    site: &Site,
    space: &SpaceId,
    record: &SpaceRecord,
    had_turns: &[SiteId],
    bytes: u64,
) -> Result<Recruits, CatalogError> {
    let mut known = match bytes < WORTH_BYTES {
        true => Vec::new(),
        false => ask::sites_of(site, space, record, had_turns)?,
    };
    known.retain(|(id, _)| !site.faults.rests(space, id));
    known.truncate(MEMBERS_MAX - 1);
    let mut asking = Asking {
        site: site.clone(),
        space: *space,
        owner: record.owner,
        asked: FuturesUnordered::new(),
        open: known.len(),
        ready: VecDeque::new(),
    };
    if known.is_empty() {
        asking.ready.push_back(Recruit::AllAsked);
    }
    known.into_iter().for_each(|(id, peer)| asking.ask(id, peer, 0));
    Ok(stream::unfold(asking, |mut asking| async move { Some((asking.next().await?, asking)) }).boxed())
}

impl Asking {
    fn ask(&mut self, id: SiteId, peer: Peer, times: u32) {
        let (site, space, owner) = (self.site.clone(), self.space, self.owner);
        let asked = async move {
            if let Some(before) = times.checked_sub(1) {
                tokio::time::sleep(AGAIN_FIRST.saturating_mul(1 << before.min(6)).min(AGAIN_MAX)).await;
            }
            let walked = ask::walk(&site, &space, &owner, &peer).await;
            (id, peer, times, walked.map(drop))
        };
        self.asked.push(asked.boxed());
    }

    async fn next(&mut self) -> Option<Recruit> {
        loop {
            if let Some(ready) = self.ready.pop_front() {
                return Some(ready);
            }
            let (id, peer, times, said) = self.asked.next().await?;
            match said {
                Ok(()) => {
                    if id != self.owner {
                        peer.hurry();
                    }
                    self.ready.push_back(Recruit::Source(Arc::new(Source::new(peer))));
                }
                Err(e) if ask::is_fork(&e) => self.ready.push_back(Recruit::Fork(e)),
                Err(e) => {
                    tracing::debug!(site = %id.short(), error = %e, "a site does not help yet");
                    self.ask(id, peer, times + 1);
                }
            }
            if times == 0 {
                self.open -= 1;
                if self.open == 0 {
                    self.ready.push_back(Recruit::AllAsked);
                }
            }
        }
    }
}
