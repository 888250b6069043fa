//! The rows about sites and spaces: heads, grants, peers, tickets, snapshots, journal.

use std::sync::Arc;

use sluice_protocol::card::SiteCard;
use sluice_protocol::codec::Document;
use sluice_protocol::grants::GrantSet;
use sluice_protocol::head::Head;
use sluice_protocol::ids::{BlobHash, HeadId, SiteId, SnapshotId, SpaceId, TicketId};
use sluice_protocol::signed::{Envelope, Signable, Signed};

use super::lookup::{Raw, decode, key2};
use super::memo::Memo;
use super::records::{JournalRecord, LeaseRecord, PeerRecord, SnapshotRecord, SpaceRecord, TicketRecord};
use super::write::encode;
use super::{Batch, CatalogError, Lookup, Reader, Table};

/// Rows of the journal that are handed out at once.
const JOURNAL_ROWS_MAX: u64 = 10_000;

fn head_key(space: &SpaceId, writer: &SiteId, place: (u64, u64)) -> Vec<u8> {
    let mut key = key2(&space.0, &writer.0);
    key.extend_from_slice(&place.0.to_be_bytes());
    key.extend_from_slice(&place.1.to_be_bytes());
    key
}

fn lease_key(space: &SpaceId, peer: &SiteId, snapshot: &SnapshotId) -> Vec<u8> {
    [space.0, peer.0, snapshot.0].concat()
}

fn signed<T: Signable + Send + Sync + 'static>(memo: &Memo, raw: &[u8]) -> Result<Arc<Signed<T>>, CatalogError> {
    memo.signed(raw).map_err(|e| CatalogError::Store(e.to_string()))
}

/// Questions about sites and spaces.
pub trait SiteLookup: Lookup {
    /// All spaces of this site.
    fn spaces(&self) -> Result<Vec<(SpaceId, SpaceRecord)>, CatalogError> {
        let mut found = Vec::new();
        self.raw_scan(Table::Spaces as usize, &[], &mut |key, raw| {
            let id = key.try_into().map_err(|_| CatalogError::Store("a space's key is damaged".into()))?;
            found.push((SpaceId(id), decode(raw)?));
            Ok(true)
        })?;
        Ok(found)
    }

    /// One space.
    fn space(&self, space: &SpaceId) -> Result<Option<SpaceRecord>, CatalogError> {
        self.raw_get(Table::Spaces as usize, &space.0)?.map(|r| decode(&r)).transpose()
    }

    /// The newest head of a writer.
    fn newest_head(&self, space: &SpaceId, writer: &SiteId) -> Result<Option<Signed<Head>>, CatalogError> {
        let raw = self.raw_last(Table::Heads as usize, &key2(&space.0, &writer.0))?;
        raw.map(|r| signed(self.raw_memo(), &r).map(Arc::unwrap_or_clone)).transpose()
    }

    /// The heads of a writer from `place` on, ascending, at most `limit`.
    fn heads_since(
        &self,
        space: &SpaceId,
        writer: &SiteId,
        place: (u64, u64),
        limit: usize,
    ) -> Result<Vec<Signed<Head>>, CatalogError> {
        let mut raws: Vec<Vec<u8>> = Vec::new();
        self.raw_scan(Table::Heads as usize, &key2(&space.0, &writer.0), &mut |key, raw| {
            let at = |i: usize| u64::from_be_bytes(key[i..i + 8].try_into().expect("a head's key has 16 bytes more"));
            if key.len() == 16 && (at(0), at(8)) >= place {
                raws.push(raw.to_vec());
            }
            Ok(raws.len() < limit)
        })?;
        raws.iter().map(|raw| signed(self.raw_memo(), raw).map(Arc::unwrap_or_clone)).collect()
    }

    /// Every head of a writer, ascending. Their signatures were checked before they were stored, and are
    /// not checked again.
    fn each_head(
        &self,
        space: &SpaceId,
        writer: &SiteId,
        each: &mut dyn FnMut(HeadId, Head),
    ) -> Result<(), CatalogError> {
        self.raw_scan(Table::Heads as usize, &key2(&space.0, &writer.0), &mut |_, raw| {
            let payload = Envelope::from_bytes(raw)?.payload.0;
            each(HeadId(BlobHash::of(&payload).0), Head::from_bytes(&payload)?);
            Ok(true)
        })
    }

    /// The versions that peers are fetching: who, which, until when.
    fn leases(&self, space: &SpaceId) -> Result<Vec<(SiteId, SnapshotId, LeaseRecord)>, CatalogError> {
        let mut found = Vec::new();
        self.raw_scan(Table::Leases as usize, &space.0, &mut |key, raw| {
            let halves = key.split_at_checked(32).and_then(|(a, b)| Some((a.try_into().ok()?, b.try_into().ok()?)));
            let (peer, snapshot) = halves.ok_or_else(|| CatalogError::Store("a lease's key is damaged".into()))?;
            found.push((SiteId(peer), SnapshotId(snapshot), decode(raw)?));
            Ok(true)
        })?;
        Ok(found)
    }

    /// The grant set in force.
    fn grants(&self, space: &SpaceId) -> Result<Option<Arc<Signed<GrantSet>>>, CatalogError> {
        self.raw_get(Table::Grants as usize, &space.0)?.map(|r| signed(self.raw_memo(), &r)).transpose()
    }

    /// The totals of a snapshot.
    fn snapshot(&self, space: &SpaceId, id: &SnapshotId) -> Result<Option<SnapshotRecord>, CatalogError> {
        let raw = self.raw_get(Table::Snapshots as usize, &key2(&space.0, &id.0))?;
        raw.map(|r| decode(&r)).transpose()
    }

    /// A paired site, revoked or not.
    fn peer(&self, site: &SiteId) -> Result<Option<PeerRecord>, CatalogError> {
        self.raw_get(Table::Peers as usize, &site.0)?.map(|r| decode(&r)).transpose()
    }

    /// All sites that were ever paired.
    fn peers(&self) -> Result<Vec<(SiteId, PeerRecord)>, CatalogError> {
        let mut found = Vec::new();
        self.raw_scan(Table::Peers as usize, &[], &mut |key, raw| {
            let id = key.try_into().map_err(|_| CatalogError::Store("a peer's key is damaged".into()))?;
            found.push((SiteId(id), decode(raw)?));
            Ok(true)
        })?;
        Ok(found)
    }

    /// The newest card of a site: a peer, or one that a peer told of.
    fn card(&self, site: &SiteId) -> Result<Option<Signed<SiteCard>>, CatalogError> {
        let of_peer = self.peer(site)?.map(|p| p.card.0);
        let told = self.setting(&format!("card {site}"))?;
        let newest =
            [of_peer, told].into_iter().flatten().filter_map(|raw| self.raw_memo().signed::<SiteCard>(&raw).ok());
        Ok(newest.max_by_key(|card| card.time_ms).map(Arc::unwrap_or_clone))
    }

    /// An invitation.
    fn ticket(&self, id: &TicketId) -> Result<Option<TicketRecord>, CatalogError> {
        self.raw_get(Table::Tickets as usize, &id.0)?.map(|r| decode(&r)).transpose()
    }

    /// The journal from number `from` on, at most the newest 10,000 rows.
    fn journal(&self, from: u64) -> Result<Vec<(u64, JournalRecord)>, CatalogError> {
        let last = self.counter("journal")?;
        let first = from.max(1).max((last + 1).saturating_sub(JOURNAL_ROWS_MAX));
        let mut found = Vec::new();
        for number in first..=last {
            if let Some(raw) = self.raw_get(Table::Journal as usize, &number.to_be_bytes())? {
                found.push((number, decode(&raw)?));
            }
        }
        Ok(found)
    }
}

impl SiteLookup for Reader {}
impl SiteLookup for Batch {}

impl Batch {
    /// Adds or replaces a space.
    pub fn put_space(&mut self, space: &SpaceId, record: &SpaceRecord) -> Result<(), CatalogError> {
        self.put(Table::Spaces, &space.0, &encode(record))
    }

    /// Adds a head; the caller has checked the chain.
    pub fn put_head(&mut self, head: &Signed<Head>) -> Result<(), CatalogError> {
        let key = head_key(&head.space, &head.writer, head.place());
        if self.raw_get(Table::Heads as usize, &key)?.is_some_and(|stands| stands != head.bytes()) {
            let (epoch, seq) = head.place();
            return Err(CatalogError::Refused(format!("another head stands at epoch {epoch}, seq {seq} already")));
        }
        self.put(Table::Heads, &key, head.bytes())
    }

    /// Removes a writer's heads from number `seq` on, whatever their epoch; returns them, ascending.
    pub fn remove_heads_from(
        &mut self,
        space: &SpaceId,
        writer: &SiteId,
        seq: u64,
    ) -> Result<Vec<Signed<Head>>, CatalogError> {
        let mut gone = self.heads_since(space, writer, (0, 0), usize::MAX)?;
        gone.retain(|head| head.seq >= seq);
        gone.iter().try_for_each(|head| self.remove(Table::Heads, &head_key(space, writer, head.place())))?;
        Ok(gone)
    }

    /// Replaces the grant set; a lower one is refused.
    pub fn put_grants(&mut self, space: &SpaceId, grants: &Signed<GrantSet>) -> Result<(), CatalogError> {
        if let Some(old) = self.grants(space)?
            && old.seq > grants.seq
        {
            return Err(CatalogError::Refused(format!(
                "the grants (seq {}) are older than those already seen (seq {})",
                grants.seq, old.seq
            )));
        }
        self.put(Table::Grants, &space.0, grants.bytes())
    }

    /// Records a snapshot's totals.
    pub fn put_snapshot(
        &mut self,
        space: &SpaceId,
        id: &SnapshotId,
        record: &SnapshotRecord,
    ) -> Result<(), CatalogError> {
        self.put(Table::Snapshots, &key2(&space.0, &id.0), &encode(record))
    }

    /// Adds or replaces a lease.
    pub fn put_lease(
        &mut self,
        space: &SpaceId,
        peer: &SiteId,
        snapshot: &SnapshotId,
        record: &LeaseRecord,
    ) -> Result<(), CatalogError> {
        self.put(Table::Leases, &lease_key(space, peer, snapshot), &encode(record))
    }

    /// Ends a lease.
    pub fn remove_lease(&mut self, space: &SpaceId, peer: &SiteId, snapshot: &SnapshotId) -> Result<(), CatalogError> {
        self.remove(Table::Leases, &lease_key(space, peer, snapshot))
    }

    /// Adds or replaces a peer.
    pub fn put_peer(&mut self, site: &SiteId, record: &PeerRecord) -> Result<(), CatalogError> {
        self.put(Table::Peers, &site.0, &encode(record))
    }

    /// Remembers how a site is reached, unless a newer card of it is known. Gives it no right.
    pub fn put_card(&mut self, card: &Signed<SiteCard>) -> Result<(), CatalogError> {
        if self.card(&card.site)?.is_some_and(|known| known.time_ms >= card.time_ms) {
            return Ok(());
        }
        self.put_setting(&format!("card {}", card.site), card.bytes())
    }

    /// Adds or replaces an invitation.
    pub fn put_ticket(&mut self, id: &TicketId, record: &TicketRecord) -> Result<(), CatalogError> {
        self.put(Table::Tickets, &id.0, &encode(record))
    }

    /// Appends to the journal; each record carries the hash of the one before.
    pub fn log(&mut self, mut record: JournalRecord) -> Result<(), CatalogError> {
        let last = self.counter("journal")?;
        let before = self.raw_get(Table::Journal as usize, &last.to_be_bytes())?;
        record.prev = before.map_or([0; 32], |raw| *blake3::hash(&raw).as_bytes());
        let number = self.add_counter("journal", 1)?;
        self.put(Table::Journal, &number.to_be_bytes(), &encode(&record))
    }
}
