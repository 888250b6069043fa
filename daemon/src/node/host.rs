//! What this site answers its peers.
//!
//! Invariant: every answer goes through `policy` first, and a refusal says the same words whether a
//! thing is not here or not granted. Who has no right here makes this site write nothing.

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use sluice_protocol::api::ApiError;
use sluice_protocol::card::SiteCard;
use sluice_protocol::codec::Bytes as CborBytes;
use sluice_protocol::grants::Right;
use sluice_protocol::head::Head;
use sluice_protocol::ids::{BlobHash, SiteId, SnapshotId, SpaceId};
use sluice_protocol::limits::CLOCK_SKEW_MS_MAX;
use sluice_protocol::messages::{
    Announce, Message, PairRequest, REFUSED_GRANT, REFUSED_LATER, REFUSED_MESSAGE, Refusal, SpaceNews,
};
use sluice_protocol::signed::Signed;
use sluice_store::blobs::{OpenBlob, open_blob, quarantine};
use sluice_store::catalog::{CatalogError, Lookup, Role, SiteLookup, StoredTree};
use sluice_store::chunk::{digest_file, remake_tree};
use sluice_store::lake::{Lake, Place};
use sluice_store::outboard::BLOCK_BYTES;

use crate::clock::now_ms;
use crate::errors::OrExplain;
use crate::flow::keep_deed;
use crate::follow::Follow;
use crate::lanes::{Host, ServedBlob, ServedData};
use crate::policy::Policy;
use crate::retention::{Leases, grace_ms};
use crate::setback::Setback;
use crate::site::Site;
use crate::{fork, heads, journal, news, pairing};

/// How old the word of a peer may be before it is noted that it was seen again, in milliseconds.
const SEEN_EVERY_MS: u64 = 60_000;

/// Answers peers on behalf of a site.
pub struct SiteHost {
    site: Site,
    policy: Policy,
    follow: Follow,
    setback: Arc<Setback>,
    leases: Leases,
    served_bytes: AtomicU64,
    /// Blobs that are being looked at because they could not be served.
    mending: Mutex<HashSet<BlobHash>>,
}

impl SiteHost {
    /// A host over the site's catalog and rules.
    pub fn new(site: Site, policy: Policy, follow: Follow, setback: Arc<Setback>) -> Self {
        let leases = Leases::new(site.catalog.clone(), grace_ms(&site.config));
        Self { site, policy, follow, setback, leases, served_bytes: AtomicU64::new(0), mending: Mutex::default() }
    }

    /// Bytes that were handed to the network for peers since the start, hash trees included.
    pub fn served_bytes(&self) -> u64 {
        self.served_bytes.load(Ordering::Relaxed)
    }

    fn pair(&self, from: SiteId, request: &PairRequest) -> Message {
        let admitted = pairing::admit(&self.site.catalog, &self.site.key, from, request);
        if let Ok(space) = &admitted
            && let Ok(Some(record)) = self.site.catalog.read().and_then(|r| r.space(space))
        {
            keep_deed(&self.site, space, &record);
            self.tell_of_grants(*space, from);
        }
        let answered = admitted.and_then(|space| self.first_news(&space));
        match answered {
            Ok(news) => Message::News(news),
            Err(refusal) => {
                tracing::warn!(site = %from.short(), code = refusal.code, "a site was not admitted");
                Message::Refused(refusal)
            }
        }
    }

    /// Tells the other readers of a space, off to the side, that the grants of a site changed.
    pub fn tell_of_grants(&self, space: SpaceId, of: SiteId) {
        let (site, follow, setback) = (self.site.clone(), self.follow.clone(), self.setback.clone());
        tokio::spawn(async move {
            if let Err(e) = heads::tell_of_grants(&site, &follow, &setback, &space, of).await {
                tracing::warn!(error = %e, "other readers are not told of changed grants; they hear of it when they ask");
            }
        });
    }

    /// What a new peer must know: grants and our card; the head too, if there is one.
    fn first_news(&self, space: &SpaceId) -> Result<SpaceNews, Refusal> {
        let failed = |e: CatalogError| {
            tracing::error!(error = %e, "news could not be read");
            Refusal::new(REFUSED_LATER, "the site cannot read its catalog")
        };
        let reader = self.site.catalog.read().map_err(failed)?;
        let grants = reader.grants(space).map_err(failed)?;
        let grants = grants.ok_or_else(|| Refusal::new(REFUSED_LATER, "the space is gone"))?;
        let head = reader.newest_head(space, &grants.genesis.owner).map_err(failed)?;
        let bytes = |raw: &[u8]| CborBytes(raw.to_vec());
        Ok(SpaceNews {
            grants: bytes(grants.bytes()),
            heads: head.iter().map(|h| bytes(h.bytes())).collect(),
            cards: vec![bytes(self.site.card().bytes())],
            more: false,
            unknown: Default::default(),
        })
    }

    /// A peer that has a right here spoke, and brought its card along.
    fn seen(&self, from: SiteId, card: Option<&CborBytes>) {
        let card = card.and_then(|raw| Signed::<SiteCard>::from_bytes(&raw.0).ok()).filter(|c| c.site == from);
        let Some(card) = card else { return };
        let now = now_ms();
        let noted = self.is_news(&card, now).and_then(|news| match news {
            false => Ok(()),
            true => self.site.catalog.write(|b| match b.peer(&from)? {
                Some(peer) if peer.revoked => Ok(()),
                Some(_) => pairing::put_peer(b, &card, now),
                None => b.put_card(&card),
            }),
        });
        if let Err(e) = noted {
            tracing::warn!(error = %e, "a peer's card could not be stored");
        }
    }

    /// Whether a card says something new, or what is known of the site is older than a minute: each
    /// writing costs a sync of the disk.
    fn is_news(&self, card: &SiteCard, now: u64) -> Result<bool, CatalogError> {
        let reader = self.site.catalog.read()?;
        let Some(known) = reader.card(&card.site)? else { return Ok(true) };
        let seen_ms = reader.peer(&card.site)?.map_or(Some(known.time_ms), |p| p.last_seen_ms);
        let newer = card.time_ms > known.time_ms
            && (&known.name, &known.quic, &known.tls) != (&card.name, &card.quic, &card.tls);
        Ok(newer || seen_ms.is_none_or(|seen| now >= seen.saturating_add(SEEN_EVERY_MS)))
    }

    /// A peer that may read the space is held at a version: as long as it is heard, what is here of it stays.
    fn keep_held(&self, space: SpaceId, peer: SiteId, held: SnapshotId) -> Result<(), CatalogError> {
        let reader = self.site.catalog.read()?;
        let known = reader.snapshot(&space, &held)?.is_some() && reader.has_meta(&space, &held.into())?;
        let keeps = known && self.policy.may_hold(&reader, &space, peer, held)?;
        drop(reader);
        if keeps { self.leases.asked(space, peer, Some(held)) } else { Ok(()) }
    }

    /// A peer tells of a head. Nothing of it is stored: the chain is walked when it is asked for.
    fn announced(&self, from: SiteId, announce: &Announce) -> Result<(), Refusal> {
        let later = |e: CatalogError| {
            tracing::error!(error = %e, "an announcement could not be compared");
            Refusal::new(REFUSED_LATER, "the site cannot read its catalog")
        };
        // The same words as everywhere: presence is no news.
        let refused = || Refusal::new(REFUSED_GRANT, "no grant lets this site read that space");
        let head = Signed::<Head>::from_bytes(&announce.head.0)
            .map_err(|e| Refusal::new(REFUSED_MESSAGE, format!("the head is not believed: {e}")))?;
        let reader = self.site.catalog.read().map_err(later)?;
        let record = reader.space(&announce.space).map_err(later)?.ok_or_else(refused)?;
        let (now, grants) = (now_ms(), reader.grants(&announce.space).map_err(later)?);
        if !grants.is_some_and(|g| g.allows(from, Right::Read, now)) {
            return Err(refused());
        }
        let fits = head.space == announce.space && head.writer == record.owner;
        if !fits || head.is_stale(now) || head.time_ms > now.saturating_add(CLOCK_SKEW_MS_MAX) {
            return Err(Refusal::new(REFUSED_MESSAGE, "the head is not one of this space and time"));
        }
        // Before anybody asks it: its addresses may be new.
        self.seen(from, announce.card.as_ref());
        if record.role == Role::Replica && record.frozen.is_none() {
            let stored = reader.newest_head(&announce.space, &record.owner).map_err(later)?;
            let live = reader.live(&announce.space).map_err(later)?;
            // An older head is no news. Another one at the place of the stored one is a fork: asking
            // finds it and freezes. One that is stored may still be on its way here.
            let old = stored.as_ref().is_some_and(|s| s.place() > head.place())
                || fork::is_old_news(&record, stored.as_ref(), &head);
            let known = stored.is_some_and(|s| s.id() == head.id());
            let here = known && live.is_some_and(|l| l.snapshot == head.manifest);
            self.follow.heard(&announce.space, from, !old && !here);
        }
        Ok(())
    }

    fn find(&self, peer: SiteId, hash: &BlobHash) -> Result<Option<ServedBlob>, CatalogError> {
        let reader = self.site.catalog.read()?;
        for space in self.policy.spaces_serving(&reader, peer, hash)? {
            if let Some(bytes) = reader.meta(&space, hash)? {
                let version = SnapshotId::from(*hash);
                let is_manifest = reader.snapshot(&space, &version)?.is_some();
                self.leases.asked(space, peer, is_manifest.then_some(version))?;
                return Ok(Some(in_memory(bytes)));
            }
            let Some(record) = reader.space(&space)? else { continue };
            let Ok(lake) = Lake::open_as_named(Path::new(&record.lake)) else { continue };
            let Ok(open) = open_blob(&lake, &reader, &space, hash) else { continue };
            let outboard = match open.size {
                0..=BLOCK_BYTES => ServedData::from(vec![]),
                _ => match self.tree(&space, hash, &open)? {
                    Some(StoredTree::Bytes(bytes)) => ServedData::from(bytes),
                    Some(StoredTree::File(file)) => ServedData::File(file),
                    None => continue,
                },
            };
            self.leases.asked(space, peer, None)?;
            return Ok(Some(ServedBlob { size: open.size, data: ServedData::File(open.file), outboard }));
        }
        Ok(None)
    }

    fn mending(&self) -> MutexGuard<'_, HashSet<BlobHash>> {
        self.mending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The turn to mend a blob; none while somebody else has it.
    fn turn(&self, hash: BlobHash) -> Option<Turn<'_>> {
        self.mending().insert(hash).then_some(Turn { host: self, hash })
    }

    /// Looks at a blob that could not be served. Whoever calls has its turn.
    fn look_at(&self, hash: BlobHash) {
        tracing::error!(%hash, "bytes at rest do not match their hash");
        if let Err(e) = self.set_aside(hash) {
            tracing::error!(error = %e, "a damaged blob could not be set aside");
        }
    }

    /// The tree of a blob; made again when it is gone or cannot be opened.
    fn tree(&self, space: &SpaceId, hash: &BlobHash, open: &OpenBlob) -> Result<Option<StoredTree>, CatalogError> {
        let catalog = &self.site.catalog;
        match catalog.read()?.open_outboard(hash) {
            Ok(None) | Err(CatalogError::Io { .. }) => {}
            found => return found,
        }
        // Making it costs a reading of the whole blob: whoever asks meanwhile is told that it is not here now.
        let Some(_turn) = self.turn(*hash) else { return Ok(None) };
        tracing::warn!(%hash, "the hash tree of a blob is gone: it is made again");
        match remake_tree(catalog, space, &open.file, open.size, hash) {
            Ok(true) => catalog.read()?.open_outboard(hash),
            Ok(false) => {
                self.look_at(*hash);
                Ok(None)
            }
            Err(e) => {
                tracing::error!(%hash, error = %e, "the hash tree could not be made again");
                Ok(None)
            }
        }
    }

    /// What could not be served is looked at whole. Bytes that are not the blob are set aside; when some are,
    /// they prove themselves against the hash, and the tree is made again from them.
    fn set_aside(&self, hash: BlobHash) -> Result<(), ApiError> {
        let catalog = &self.site.catalog;
        let reader = catalog.read().or_explain()?;
        let mut remade = false;
        for (space, record) in reader.spaces().or_explain()? {
            let Some(blob) = reader.blob(&space, &hash).or_explain()? else { continue };
            let lake = self.site.lake_of(&record)?;
            let mut bad = false;
            for at in blob.places {
                // Only the place that is damaged: another one may still be whole.
                if is_damaged(&lake, &at.place, blob.size, &hash) {
                    quarantine(&lake, catalog, &space, &hash, &at.place).or_explain()?;
                    bad = true;
                } else if !remade && blob.size > BLOCK_BYTES {
                    let file = lake.open_place(&at.place).ok();
                    remade = file.is_some_and(|f| remake_tree(catalog, &space, &f, blob.size, &hash).unwrap_or(false));
                }
            }
            let text = match bad {
                true => format!("blob {hash} is not what it was; it is not served any more"),
                false if remade => format!("the hash tree of blob {hash} was damaged; it was made again"),
                false => continue,
            };
            let logged = catalog.write(|b| journal::write(b, "damaged", Some(space), None, &text));
            logged.or_explain()?;
            self.follow.look_again(&space);
        }
        Ok(())
    }
}

/// Whether the bytes at a place are certainly not the blob. What cannot be read just now is no proof.
fn is_damaged(lake: &Lake, place: &Place, size: u64, hash: &BlobHash) -> bool {
    let Ok(file) = lake.open_place(place) else { return false };
    match file.metadata() {
        Ok(about) if about.len() != size => true,
        Ok(_) => digest_file(&file, size, false).is_ok_and(|d| d.hash != *hash),
        Err(_) => false,
    }
}

/// Serves a metadata blob out of memory; its tree is made on the way.
fn in_memory(bytes: Vec<u8>) -> ServedBlob {
    let (_, outboard) = sluice_store::outboard::of_bytes(&bytes);
    ServedBlob {
        size: bytes.len() as u64,
        data: ServedData::from(Bytes::from(bytes)),
        outboard: ServedData::from(outboard),
    }
}

#[async_trait::async_trait]
impl Host for SiteHost {
    fn is_paired(&self, site: SiteId) -> bool {
        self.policy.is_paired(site)
    }

    async fn on_message(&self, from: SiteId, paired: bool, message: Message) -> Message {
        // Catalog work blocks: an fsync must not hold up the reactor.
        tokio::task::block_in_place(|| match message {
            Message::Pair(request) => self.pair(from, &request),
            Message::Heads(request) if paired => {
                let card = self.site.card();
                match news::answer(&self.site.catalog, &self.policy, &card, from, &request) {
                    Ok(news) => {
                        self.seen(from, request.card.as_ref());
                        self.follow.heard_of(from);
                        if let Some(held) = request.held
                            && let Err(e) = self.keep_held(request.space, from, held)
                        {
                            tracing::error!(error = %e, "the lease of a held version could not be written");
                        }
                        let newest = news.heads.last().and_then(|raw| Signed::<Head>::from_bytes(&raw.0).ok());
                        if let Some(newest) = newest.filter(|_| !news.more) {
                            self.leases.told(request.space, from, newest.manifest);
                        }
                        Message::News(news)
                    }
                    Err(refusal) => Message::Refused(refusal),
                }
            }
            Message::Announce(announce) if paired => {
                self.announced(from, &announce).map_or_else(Message::Refused, |()| Message::Done)
            }
            _ => Message::Refused(Refusal::new(REFUSED_MESSAGE, "that message has no place here")),
        })
    }

    fn open_blob(&self, peer: SiteId, hash: BlobHash) -> Option<ServedBlob> {
        self.find(peer, &hash).unwrap_or_else(|e| {
            tracing::error!(error = %e, "a blob could not be looked up");
            None
        })
    }

    fn served(&self, _peer: SiteId, bytes: u64) {
        self.served_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn damaged(&self, hash: BlobHash) {
        // Many streams of one blob fail at once; to look at it once is enough.
        if let Some(_turn) = self.turn(hash) {
            self.look_at(hash);
        }
    }
}

/// A blob is being mended; dropping it ends the turn.
struct Turn<'a> {
    host: &'a SiteHost,
    hash: BlobHash,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.host.mending().remove(&self.hash);
    }
}
