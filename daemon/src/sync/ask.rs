//! Asks the sites that may hold a space for its newest head.
//!
//! Invariant: what is returned was believed by `news` and is stored; a site that answers nothing
//! useful costs only its time-out.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use sluice_protocol::codec::Bytes;
use sluice_protocol::head::Head;
use sluice_protocol::ids::{SiteId, SpaceId};
use sluice_protocol::messages::{HeadsRequest, Message};
use sluice_protocol::signed::Signed;
use sluice_store::catalog::{SiteLookup, SpaceRecord};
use sluice_store::watch::Watch;

use super::source::Source;
use super::{SyncError, blocking};
use crate::jobs::Job;
use crate::lanes::Peer;
use crate::news;
use crate::site::Site;

/// Peers that an owner asks before it signs, and how long it waits for them.
const PEERS_ASKED_MAX: usize = 32;
/// See [`PEERS_ASKED_MAX`].
const PEER_ANSWERS_WITHIN: Duration = Duration::from_secs(2);
/// Most replies that one walk along a chain takes.
const REPLIES_MAX: usize = 2048;

/// The newest head that a reachable site knows, and that site.
pub async fn newest(
    site: &Site,
    space: &SpaceId,
    record: &SpaceRecord,
    job: &Arc<Job>,
) -> Result<(Arc<Source>, Signed<Head>), SyncError> {
    if let Some(why) = &record.frozen {
        return Err(SyncError::Manifest(format!("the space is frozen: {why}")));
    }
    let mut failures: Vec<SyncError> = Vec::new();
    for (source, addresses) in sources(site, record)? {
        let peer = site.lane.peer(source, &addresses);
        match walk(site, space, &record.owner, &peer).await {
            Ok(head) => return Ok((Arc::new(Source::new(peer)), head)),
            Err(e) => {
                job.note(e.to_string());
                failures.push(e);
            }
        }
    }
    Err(match failures.len() {
        0 => SyncError::Unreachable("no address of any is known".into()),
        1 => failures.remove(0),
        _ => {
            let all: Vec<String> = failures.iter().map(ToString::to_string).collect();
            SyncError::Unreachable(all.join("; "))
        }
    })
}

/// The highest place in this site's own chain that one of its peers has seen, among those that answer soon.
pub async fn highest_known(site: &Site, space: &SpaceId) -> Option<(SiteId, (u64, u64))> {
    let peers = {
        let reader = site.catalog.read().ok()?;
        let grants = reader.grants(space).ok()??;
        let cards = grants.grants.iter().filter_map(|g| reader.card(&g.site).ok().flatten());
        let peers = cards.map(|c| (c.site, c.quic.iter().filter_map(|a| a.parse().ok()).collect::<Vec<_>>()));
        peers.take(PEERS_ASKED_MAX).collect::<Vec<_>>()
    };
    let ask = |(id, addresses): (SiteId, Vec<SocketAddr>)| async move {
        let peer = site.lane.peer(id, &addresses);
        // With our card: whoever is asked also learns where this site is reached now.
        let said = Message::Heads(HeadsRequest {
            space: *space,
            have_epoch: None,
            have_seq: None,
            card: Some(Bytes(site.card().bytes().to_vec())),
            unknown: Default::default(),
        });
        let answer = tokio::time::timeout(PEER_ANSWERS_WITHIN, peer.message(&said)).await.ok()?.ok()?;
        let Message::News(news) = answer else { return None };
        let heads = news.heads.iter().filter_map(|raw| Signed::<Head>::from_bytes(&raw.0).ok());
        let ours = heads.filter(|h| h.space == *space && h.writer == site.id);
        ours.map(|h| (id, h.place())).max_by_key(|(_, place)| *place)
    };
    let answers = futures_util::future::join_all(peers.into_iter().map(ask)).await;
    answers.into_iter().flatten().max_by_key(|(_, place)| *place)
}

/// Sites to ask, the inviting one first, with their addresses.
fn sources(site: &Site, record: &SpaceRecord) -> Result<Vec<(SiteId, Vec<SocketAddr>)>, SyncError> {
    let reader = site.catalog.read()?;
    let mut wanted: Vec<SiteId> = record.sources.clone();
    if !wanted.contains(&record.owner) {
        wanted.push(record.owner);
    }
    let mut found = Vec::new();
    for source in wanted.into_iter().filter(|s| *s != site.id) {
        let card = reader.card(&source)?;
        let addresses = card.iter().flat_map(|c| &c.quic).filter_map(|a| a.parse().ok()).collect();
        found.push((source, addresses));
    }
    Ok(found)
}

/// Follows the chain at one peer up to its newest head.
async fn walk(site: &Site, space: &SpaceId, owner: &SiteId, peer: &Peer) -> Result<Signed<Head>, SyncError> {
    let card = Bytes(site.card().bytes().to_vec());
    for _ in 0..REPLIES_MAX {
        let stored = site.catalog.read()?.newest_head(space, owner)?;
        let request = HeadsRequest {
            space: *space,
            have_epoch: stored.as_ref().map(|h| h.epoch),
            have_seq: stored.as_ref().map(|h| h.seq),
            card: Some(card.clone()),
            unknown: Default::default(),
        };
        let news = match peer.message(&Message::Heads(request)).await? {
            Message::News(news) => news,
            Message::Refused(r) => {
                return Err(SyncError::Refused { site: peer.site(), code: r.code, text: r.text });
            }
            _ => return Err(SyncError::Confused { site: peer.site() }),
        };
        let (catalog, id) = (site.catalog.clone(), *space);
        let believed = blocking(move || Ok(news::take(&catalog, &id, &news)?)).await?;
        if !believed.more {
            let newest = site.catalog.read()?.newest_head(space, owner)?;
            return newest.ok_or(SyncError::Confused { site: peer.site() });
        }
    }
    Err(SyncError::Manifest("the chain of heads does not end".into()))
}
