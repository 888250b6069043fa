//! Asks the sites that may hold a space for its newest head.
//!
//! Invariant: what is returned was believed by `news` and is stored; a site that answers nothing
//! useful costs only its time-out.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use sluice_protocol::codec::Bytes;
use sluice_protocol::grants::Right;
use sluice_protocol::head::Head;
use sluice_protocol::ids::{HeadId, SiteId, SnapshotId, SpaceId};
use sluice_protocol::limits::SITES_ASKED_MAX;
use sluice_protocol::messages::{HeadsRequest, Message, SpaceNews};
use sluice_protocol::signed::Signed;
use sluice_store::catalog::{CatalogError, Reader, SiteLookup, SpaceRecord};
use sluice_store::watch::Watch;
use tokio::time::Instant;

use super::source::Source;
use super::{SyncError, blocking};
use crate::clock::now_ms;
use crate::lanes::Peer;
use crate::news::{self, NewsError};
use crate::site::Site;

/// How long a site is given before the next is asked as well, and others when one has answered.
const STAGGER: Duration = Duration::from_secs(2);

/// Peers that an owner asks before it signs, and how long it waits for them.
const PEERS_ASKED_MAX: usize = 32;
/// See [`PEERS_ASKED_MAX`].
const PEER_ANSWERS_WITHIN: Duration = Duration::from_secs(2);
/// How long a site that may hold the space may take for one answer, dialling included. A site that moved
/// away in the middle of a conversation shows in no other way.
const SITE_ANSWERS_WITHIN: Duration = Duration::from_secs(30);
/// Most replies that one walk along a chain takes.
const REPLIES_MAX: usize = 2048;

/// Whom not to ask, and how.
#[derive(Clone, Copy, Default)]
pub struct Asking<'a> {
    /// They failed in this sync.
    pub except: &'a [SiteId],
    /// Whoever answers may take its time, though others are known.
    pub patient: bool,
}

/// The newest head that a reachable site knows, and that site.
///
/// The sites of the record and the owner are asked one after the other, each a moment after the one
/// before; other sites with a grant come in when none of these has answered by then. What a site of the
/// first kind says is taken at once; a third site may be behind, so that others get a little time. Sites that
/// failed lately come last, and those of `asking.except` are not asked.
pub async fn newest(
    site: &Site,
    space: &SpaceId,
    record: &SpaceRecord,
    watch: &dyn Watch,
    asking: Asking<'_>,
) -> Result<(Arc<Source>, Signed<Head>), SyncError> {
    if let Some(why) = &record.frozen {
        return Err(SyncError::Frozen(why.clone()));
    }
    let mut waiting = VecDeque::from(sources(site, space, record, asking.except)?);
    // With somebody else to turn to, nobody but the owner may dawdle.
    let others = waiting.iter().filter(|w| !w.addresses.is_empty()).count() > 1;
    let source_of = |peer: Peer| {
        if others && !asking.patient && peer.site() != record.owner {
            peer.hurry();
        }
        Arc::new(Source::new(peer))
    };
    let mut asked = FuturesUnordered::<BoxFuture<'_, Answer>>::new();
    let mut failures: Vec<SyncError> = Vec::new();
    let mut best: Option<(Peer, Signed<Head>)> = None;
    let mut next = Instant::now();
    loop {
        tokio::select! {
            biased;
            Some((source, answer)) = asked.next(), if !asked.is_empty() => match answer {
                Ok((peer, head)) if source.first => return Ok((source_of(peer), head)),
                Ok((peer, head)) => {
                    if best.as_ref().is_none_or(|(_, b)| b.place() < head.place()) {
                        best = Some((peer, head));
                    }
                    // From here on `next` is the end of the waiting for a better one.
                    next = Instant::now() + STAGGER;
                }
                Err(e) if is_fork(&e) => return Err(e),
                Err(e) => {
                    watch.note(e.to_string());
                    failures.push(e);
                    next = Instant::now();
                }
            },
            () = tokio::time::sleep_until(next), if best.is_some() || !waiting.is_empty() => {
                if best.is_some() {
                    break;
                }
                if let Some(source) = waiting.pop_front() {
                    // Third sites are asked together.
                    next = Instant::now() + if source.first { STAGGER } else { Duration::ZERO };
                    let tls = tls_addresses(&site.catalog.read()?, &source.site)?;
                    let peer = site.lane.peer_with_tls(source.site, &source.addresses, &tls);
                    let asking = async move {
                        let walked = walk(site, space, &record.owner, &peer).await;
                        (source, walked.map(|head| (peer, head)))
                    };
                    asked.push(asking.boxed());
                }
            }
            else => break,
        }
    }
    best.map(|(peer, head)| (source_of(peer), head)).ok_or_else(|| nobody(failures))
}

/// A fork has frozen the space: nobody else's word may be taken for it.
pub(super) fn is_fork(e: &SyncError) -> bool {
    use sluice_protocol::grants::SuccessionError;
    use sluice_protocol::head::ChainError;
    matches!(
        e,
        SyncError::News(NewsError::Chain(ChainError::Fork { .. }) | NewsError::Grants(SuccessionError::Fork { .. }))
    )
}

fn nobody(mut failures: Vec<SyncError>) -> SyncError {
    match failures.len() {
        0 => SyncError::Unreachable("no address of any is known".into()),
        1 => failures.remove(0),
        _ => {
            let all: Vec<String> = failures.iter().map(ToString::to_string).collect();
            SyncError::Unreachable(all.join("; "))
        }
    }
}

/// A head of a writer that is known here.
pub fn head_by_id(
    r: &Reader,
    space: &SpaceId,
    writer: &SiteId,
    id: &HeadId,
) -> Result<Option<Signed<Head>>, CatalogError> {
    let heads = r.heads_since(space, writer, (0, 0), usize::MAX)?;
    Ok(heads.into_iter().rev().find(|h| h.id() == *id))
}

/// The newest head of this site's own chain that one of its peers has seen, among those that answer soon.
pub async fn highest_known(site: &Site, space: &SpaceId) -> Option<(SiteId, Signed<Head>)> {
    let peers: Vec<_> = granted(site, space).ok()?.into_iter().take(PEERS_ASKED_MAX).collect();
    let ask = |(id, addresses): (SiteId, Vec<SocketAddr>)| async move {
        let peer = site.lane.peer(id, &addresses);
        // With our card: whoever is asked also learns where this site is reached now.
        let said = Message::Heads(HeadsRequest {
            space: *space,
            have_epoch: None,
            have_seq: None,
            held: None,
            card: Some(Bytes(site.card().bytes().to_vec())),
            unknown: Default::default(),
        });
        let answer = tokio::time::timeout(PEER_ANSWERS_WITHIN, peer.message(&said)).await.ok()?.ok()?;
        let Message::News(news) = answer else { return None };
        let heads = news.heads.iter().filter_map(|raw| Signed::<Head>::from_bytes(&raw.0).ok());
        let ours = heads.filter(|h| h.space == *space && h.writer == site.id);
        ours.map(|h| (id, h)).max_by_key(|(_, h)| h.place())
    };
    let answers = futures_util::future::join_all(peers.into_iter().map(ask)).await;
    answers.into_iter().flatten().max_by_key(|(_, h)| h.place())
}

/// Takes up what a peer has seen of this site's own chain beyond what this site remembers, with the
/// grants of that time.
pub async fn catch_up(site: &Site, space: &SpaceId, from: SiteId) -> Result<Signed<Head>, SyncError> {
    let addresses = addresses(&site.catalog.read()?, &from)?;
    walk(site, space, &site.id, &site.lane.peer(from, &addresses)).await
}

/// Sites that may read the space and whose addresses are known, this site and those cut off left out.
pub fn granted(site: &Site, space: &SpaceId) -> Result<Vec<(SiteId, Vec<SocketAddr>)>, CatalogError> {
    let reader = site.catalog.read()?;
    let Some(grants) = reader.grants(space)? else { return Ok(Vec::new()) };
    let now = now_ms();
    let mut found = Vec::new();
    for grant in grants.grants.iter().filter(|g| g.site != site.id && g.gives(Right::Read, now)) {
        if reader.peer(&grant.site)?.is_some_and(|p| p.revoked) {
            continue;
        }
        let addresses = addresses(&reader, &grant.site)?;
        if !addresses.is_empty() {
            found.push((grant.site, addresses));
        }
    }
    Ok(found)
}

fn addresses(reader: &Reader, site: &SiteId) -> Result<Vec<SocketAddr>, CatalogError> {
    let card = reader.card(site)?;
    Ok(card.iter().flat_map(|c| &c.quic).filter_map(|a| a.parse().ok()).collect())
}

/// Where its tls lane is reached.
fn tls_addresses(reader: &Reader, site: &SiteId) -> Result<Vec<SocketAddr>, CatalogError> {
    let card = reader.card(site)?;
    Ok(card.iter().flat_map(|c| &c.tls).filter_map(|a| a.parse().ok()).collect())
}

/// A site to ask.
struct Ask {
    site: SiteId,
    addresses: Vec<SocketAddr>,
    /// Named by the record, or the owner, and not resting; the others come after these.
    first: bool,
}

/// What a site that was asked said.
type Answer = (Ask, Result<(Peer, Signed<Head>), SyncError>);

/// Sites to ask, those of the record first, then the owner, then others with a grant, then those that rest.
fn sources(site: &Site, space: &SpaceId, record: &SpaceRecord, except: &[SiteId]) -> Result<Vec<Ask>, CatalogError> {
    let reader = site.catalog.read()?;
    let mut found: Vec<Ask> = Vec::new();
    for source in record.sources.iter().chain([&record.owner]).filter(|s| **s != site.id) {
        if found.iter().all(|f| f.site != *source) {
            found.push(Ask { site: *source, addresses: addresses(&reader, source)?, first: true });
        }
    }
    let others = granted(site, space)?.into_iter().filter(|(id, _)| found.iter().all(|f| f.site != *id));
    let others: Vec<_> = others.take(SITES_ASKED_MAX).collect();
    found.extend(others.into_iter().map(|(site, addresses)| Ask { site, addresses, first: false }));
    found.retain(|f| !except.contains(&f.site));
    for f in &mut found {
        f.first &= !site.faults.rests(space, &f.site);
    }
    found.sort_by_key(|f| site.faults.rests(space, &f.site));
    Ok(found)
}

/// Handles to all sites that may hold the space and whose addresses are known.
pub(super) fn sites_of(
    site: &Site,
    space: &SpaceId,
    record: &SpaceRecord,
    except: &[SiteId],
) -> Result<Vec<(SiteId, Peer)>, CatalogError> {
    let reader = site.catalog.read()?;
    let mut found = Vec::new();
    for ask in sources(site, space, record, except)?.into_iter().filter(|a| !a.addresses.is_empty()) {
        let tls = tls_addresses(&reader, &ask.site)?;
        found.push((ask.site, site.lane.peer_with_tls(ask.site, &ask.addresses, &tls)));
    }
    Ok(found)
}

/// The version that a person holds this copy at: whoever is asked keeps it for us.
fn held_version(reader: &Reader, space: &SpaceId) -> Result<Option<SnapshotId>, CatalogError> {
    let Some(record) = reader.space(space)? else { return Ok(None) };
    let mut found = None;
    if let Some(held) = record.held {
        reader.each_head(space, &record.owner, &mut |id, head| {
            if id == held {
                found = Some(head.manifest);
            }
        })?;
    }
    Ok(found)
}

/// Follows the chain at one peer up to its newest head.
pub(super) async fn walk(site: &Site, space: &SpaceId, owner: &SiteId, peer: &Peer) -> Result<Signed<Head>, SyncError> {
    for _ in 0..REPLIES_MAX {
        let stored = site.catalog.read()?.newest_head(space, owner)?;
        let mut news = news_from(site, space, peer, stored.as_ref().map(|h| h.place())).await?;
        let (catalog, id, said) = (site.catalog.clone(), *space, news.clone());
        let unclear = blocking(move || Ok(news::unclear(&catalog, &id, &said)?)).await?;
        if let Some(earlier) = unclear {
            news = news::longer(&news_from(site, space, peer, Some(earlier)).await?, news);
        }
        let (catalog, id) = (site.catalog.clone(), *space);
        let believed = blocking(move || Ok(news::take(&catalog, &id, &news)?)).await?;
        if !believed.more {
            let newest = site.catalog.read()?.newest_head(space, owner)?;
            return newest.ok_or(SyncError::Confused { site: peer.site() });
        }
    }
    Err(SyncError::Manifest("the chain of heads does not end".into()))
}

/// What a peer says of a space from a place on.
async fn news_from(
    site: &Site,
    space: &SpaceId,
    peer: &Peer,
    place: Option<(u64, u64)>,
) -> Result<SpaceNews, SyncError> {
    let said = Message::Heads(HeadsRequest {
        space: *space,
        have_epoch: place.map(|(epoch, _)| epoch),
        have_seq: place.map(|(_, seq)| seq),
        card: Some(Bytes(site.card().bytes().to_vec())),
        held: held_version(&site.catalog.read()?, space)?,
        unknown: Default::default(),
    });
    let answer = tokio::time::timeout(SITE_ANSWERS_WITHIN, peer.message(&said)).await;
    let late = |_| SyncError::Late { site: peer.site(), seconds: SITE_ANSWERS_WITHIN.as_secs() };
    match answer.map_err(late)?? {
        Message::News(news) => Ok(news),
        Message::Refused(r) => Err(SyncError::Refused { site: peer.site(), code: r.code, text: r.text }),
        _ => Err(SyncError::Confused { site: peer.site() }),
    }
}
