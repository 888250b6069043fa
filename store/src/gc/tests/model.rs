//! The model: what each step does to the sites, and what must be true by the rules of
//! `docs/retention.md`, worked out a second time from the model's own notes.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ed25519_dalek::SigningKey;
use sluice_protocol::annex::{Annex, ChunkListRef};
use sluice_protocol::chunks::ChunkList;
use sluice_protocol::codec::Document;
use sluice_protocol::grants::{Genesis, Grant, GrantSet, Right};
use sluice_protocol::head::Head;
use sluice_protocol::ids::{BlobHash, SiteId, SnapshotId, SpaceId};
use sluice_protocol::limits::LEASES_PER_PEER_MAX;
use sluice_protocol::manifest::{Entry, Manifest};
use sluice_protocol::signed::Signed;
use sluice_protocol::tree::{Page, TreeRef, missing_pages};

use super::world::{Dice, Reach, Site, TOY_LOG, ToyReader, content};
use crate::catalog::{Catalog, CatalogError, Lookup, Role, SiteLookup, SnapshotRecord, SpaceRecord, Table};
use crate::chunk::chunk;
use crate::gc::{Collected, Retention, collect, collect_home, lease};
use crate::outboard::BLOCK_BYTES;
use crate::pins::{PinOptions, pin};
use crate::publish::{PublishOptions, publish};
use crate::scan::{Previous, ScanOptions, scan};
use crate::snapshot::manifest;
use crate::staging::Staging;
use crate::table::TableReader;
use crate::verify::{Received, verify};
use crate::watch::Silent;

const HOUR: u64 = 3_600_000;
const GRACE: u64 = 24 * HOUR;
/// Versions that the owner keeps.
const KEEP: usize = 3;
/// Different contents of files.
const CONTENTS: u64 = 24;

/// A version that the owner signed.
struct Version {
    id: SnapshotId,
    tag: Option<&'static str>,
}

pub struct Model {
    pub owner: Site,
    replica: Option<Site>,
    key: SigningKey,
    peer: SiteId,
    genesis: Genesis,
    grants_seq: u64,
    granted: bool,
    pub now: u64,
    versions: Vec<Version>,
    /// Snapshot, asked, until: what the peer leases.
    leases: Vec<(SnapshotId, u64, u64)>,
    /// What the peer is fetching.
    target: Option<Signed<Head>>,
    /// Blobs that came since the last publication.
    came: HashSet<BlobHash>,
    live: Option<SnapshotId>,
    tables: u64,
    /// How often a collection met a version that nothing but a lease kept.
    pub only_leased: u64,
}

impl Model {
    pub fn new(seed: u64) -> Self {
        let key = SigningKey::from_bytes(blake3::hash(&seed.to_le_bytes()).as_bytes());
        let me = SiteId(key.verifying_key().to_bytes());
        let genesis = Genesis {
            owner: me,
            name: "acme".into(),
            nonce: [seed as u8; 16],
            created_ms: 0,
            recovery: None,
            unknown: Default::default(),
        };
        let space = genesis.space_id();
        let mut model = Self {
            owner: Site::new(space),
            replica: Some(Site::new(space)),
            key,
            peer: SiteId([5; 32]),
            genesis,
            grants_seq: 0,
            granted: false,
            now: millis(SystemTime::now()),
            versions: vec![],
            leases: vec![],
            target: None,
            came: HashSet::new(),
            live: None,
            tables: 0,
            only_leased: 0,
        };
        add_space(&model.owner, Role::Owner, me);
        add_space(model.replica(), Role::Replica, me);
        model.grant(true);
        model
    }

    fn replica(&self) -> &Site {
        self.replica.as_ref().expect("taken only while it restarts")
    }

    /// Another space of the owner, with nothing in it.
    pub fn second_space(&self) -> SpaceId {
        let space = SpaceId([2; 32]);
        let other = SpaceRecord { lake: "/nowhere".into(), ..record(Role::Owner, SiteId([0; 32])) };
        self.owner.catalog.write(|b| b.put_space(&space, &other)).unwrap();
        space
    }

    fn grant(&mut self, granted: bool) {
        self.granted = granted;
        self.grants_seq += 1;
        let grant = Grant::new(self.peer, "peer", &[Right::Read], None);
        let set = GrantSet {
            genesis: self.genesis.clone(),
            seq: self.grants_seq,
            grants: if granted { vec![grant] } else { vec![] },
            time_ms: self.now,
            unknown: Default::default(),
        };
        let set = Signed::sign(&self.key, set);
        let space = self.owner.space;
        self.owner.catalog.write(|b| b.put_grants(&space, &set)).unwrap();
    }

    /// One step of somebody.
    pub fn step(&mut self, dice: &mut Dice) {
        self.now += dice.below(60_000);
        match dice.below(20) {
            0..=2 => self.edit(dice),
            3..=6 => {
                self.edit(dice);
                self.snapshot(None);
            }
            7 => self.snapshot(Some(["gold", "silver"][dice.below(2) as usize])),
            8 => self.ask(),
            9 => {
                self.ask();
                for _ in 0..=KEEP {
                    self.edit(dice);
                    self.snapshot(None);
                }
            }
            10..=13 => {
                self.go_on(1 + dice.below(12));
            }
            14 | 15 => self.finish(),
            16 => self.restart(dice.below(2) == 0),
            17 => self.now += dice.below(30) * HOUR,
            18 => self.collect(false),
            _ => {
                let again = !self.granted;
                self.grant(again || dice.below(3) > 0);
            }
        }
    }

    fn edit(&mut self, dice: &mut Dice) {
        for _ in 0..=dice.below(3) {
            let number = dice.below(CONTENTS);
            match dice.below(6) {
                0..=2 => self.owner.write(&format!("raw/{}", dice.below(6)), &content(number)),
                3 => drop(fs::remove_file(self.owner.at(&format!("raw/{}", dice.below(6))))),
                4 => {
                    self.tables += 1;
                    let table = format!("t{}", self.tables);
                    self.owner.write(&format!("{table}/a.parquet"), &content(number));
                    self.owner.write(&format!("{table}/b.parquet"), &content(number + 1));
                    self.owner.write(&format!("{table}/{TOY_LOG}"), b"a.parquet\nb.parquet\n");
                }
                // A vacuum: from now on only pins hold what older versions list.
                _ => drop(fs::remove_dir_all(self.owner.at(&format!("t{}", self.tables)))),
            }
        }
    }

    pub fn snapshot(&mut self, tag: Option<&'static str>) {
        let (owner, space) = (&self.owner, self.owner.space);
        let before = owner.catalog.read().unwrap().newest_head(&space, &self.genesis.owner).unwrap();
        let options = ScanOptions {
            retry_wait: Duration::ZERO,
            previous: before.as_ref().map(|h| Previous { snapshot: h.manifest, annex: h.annex }),
            ..ScanOptions::default()
        };
        let readers: [Arc<dyn TableReader>; 1] = [Arc::new(ToyReader)];
        let entries = scan(&owner.lake, &space, &owner.catalog, &options, &readers, &Silent).unwrap();
        let chunks = chunk(&owner.lake, &space, &owner.catalog, entries, &Silent).unwrap();
        let taken = manifest(&owner.lake, &space, &owner.catalog, chunks, &Silent).unwrap();
        assert_eq!(taken.skipped, vec![]);
        let changed = before.as_ref().is_none_or(|h| h.manifest != taken.id);
        if !changed && tag.is_none() {
            return;
        }
        let head = Head {
            space,
            writer: self.genesis.owner,
            epoch: 0,
            seq: before.as_ref().map_or(0, |h| h.seq + 1),
            manifest: taken.id,
            annex: taken.annex_hash,
            grants: owner.catalog.read().unwrap().grants(&space).unwrap().unwrap().blob(),
            prev: before.as_ref().map(Signed::<Head>::id),
            time_ms: self.now,
            not_after_ms: self.now + 1000 * HOUR,
            tag: tag.map(str::to_string),
            untag: None,
            unknown: Default::default(),
        };
        let head = Signed::sign(&self.key, head);
        owner
            .catalog
            .write(|b| {
                let grants = b.grants(&space)?.unwrap();
                b.put_meta(&space, grants.bytes())?;
                b.put_head(&head)?;
                b.put_snapshot(&space, &taken.id, &snapshot_record(&head))
            })
            .unwrap();
        pin(&owner.lake, &space, &owner.catalog, &taken.manifest, PinOptions { copy: true }, &Silent).unwrap();
        self.versions.push(Version { id: taken.id, tag });
    }

    /// The peer asks for news, and begins with the newest version.
    fn ask(&mut self) {
        let space = self.owner.space;
        let newest = self.owner.catalog.read().unwrap().newest_head(&space, &self.genesis.owner).unwrap();
        let Some(newest) = newest.filter(|_| self.granted) else { return };
        self.replica().catalog.write(|b| b.put_head(&newest)).unwrap();
        self.request(Some(newest.manifest));
        self.target = Some(newest);
    }

    /// The peer asks the owner for a blob.
    fn request(&mut self, asked: Option<SnapshotId>) {
        let (space, peer, now) = (self.owner.space, self.peer, self.now);
        self.owner.catalog.write(|b| lease(b, &space, &peer, asked, now, GRACE)).unwrap();
        self.leases.retain(|(id, _, until)| *until >= now && Some(*id) != asked);
        self.leases.iter_mut().for_each(|(_, _, until)| *until = now + GRACE);
        self.leases.extend(asked.map(|id| (id, now, now + GRACE)));
        self.leases.sort_by_key(|(_, asked, _)| std::cmp::Reverse(*asked));
        self.leases.truncate(LEASES_PER_PEER_MAX);
    }

    /// Versions that the owner must have whole, and how many of them only because of a lease.
    fn kept(&self) -> (BTreeSet<SnapshotId>, u64) {
        let (mut kept, mut newest, mut tags) = (BTreeSet::new(), BTreeSet::new(), HashSet::new());
        for version in self.versions.iter().rev() {
            if newest.len() < KEEP {
                newest.insert(version.id);
            }
            if version.tag.is_some_and(|tag| tags.insert(tag)) {
                kept.insert(version.id);
            }
        }
        let leased = self.leases.iter().filter(|(_, _, until)| self.granted && *until >= self.now);
        kept.extend(newest);
        let before = kept.len();
        kept.extend(leased.map(|(id, ..)| *id));
        let only_leased = (kept.len() - before) as u64;
        (kept, only_leased)
    }

    /// Fetches up to `most` pieces of the target; says whether everything is here.
    fn go_on(&mut self, most: u64) -> bool {
        let Some(target) = self.target.clone().filter(|_| self.granted) else { return false };
        let promised = self.kept().0.contains(&target.manifest);
        self.request(None);
        for _ in 0..most {
            let Some(piece) = next_piece(self.replica(), &target) else { return true };
            if !self.fetch(&piece) {
                assert!(!promised, "{piece:?} of a version that the peer leases is gone");
                self.target = None;
                return false;
            }
        }
        false
    }

    fn fetch(&mut self, piece: &Piece) -> bool {
        let space = self.owner.space;
        match piece {
            Piece::Meta(hash) => {
                let bytes = self.owner.catalog.read().unwrap().meta(&space, hash).unwrap();
                let Some(bytes) = bytes else { return false };
                self.replica().catalog.write(|b| b.put_meta(&space, &bytes)).unwrap();
            }
            Piece::Blob(hash) => {
                // An empty file needs no peer.
                let empty = (*hash == BlobHash::of(&[])).then(Vec::new);
                let Some(bytes) = empty.or_else(|| self.owner.blob(hash)) else { return false };
                assert!(self.came.insert(*hash), "{hash} arrives a second time");
                let replica = self.replica();
                let staging = Staging::open(&replica.lake, space, &replica.catalog).unwrap();
                staging.put_small(&[(*hash, bytes.into())]).unwrap();
            }
        }
        true
    }

    fn finish(&mut self) {
        if !self.go_on(10_000) {
            return;
        }
        let Some(head) = self.target.take() else { return };
        let (replica, space) = (self.replica(), self.owner.space);
        let (lake, catalog) = (&replica.lake, &replica.catalog);
        remember_lists(catalog, &space, &head);
        let received = Received { space, head: head.clone(), sections: vec![] };
        let verified = verify(lake, catalog, received, &[], &Silent).unwrap();
        publish(lake, catalog, &verified, PublishOptions::default(), &Silent).unwrap();
        catalog.write(|b| b.put_snapshot(&space, &head.manifest, &snapshot_record(&head))).unwrap();
        Staging::open(lake, space, catalog).unwrap().sweep(&|_| false).unwrap();
        self.live = Some(head.manifest);
        self.came.clear();
    }

    /// A kill and a new start; the copy may know its target again or ask anew.
    fn restart(&mut self, forget: bool) {
        let replica = self.replica.take().expect("there between steps");
        self.replica = Some(replica.restart());
        if forget {
            self.target = None;
        }
    }

    fn collect(&mut self, twice: bool) {
        let retention =
            Retention { snapshots: KEEP, grace_ms: GRACE, kept_ms: None, quarantine_ms: None, now_ms: self.now };
        for site in [&self.owner, self.replica()] {
            run(site, &retention, twice);
        }
        if !self.granted {
            // Given again, a grant brings no lease back.
            self.leases.clear();
        }
        self.check("after a collection");
    }

    /// Whatever a root reaches is there.
    fn check(&mut self, when: &str) -> Reach {
        let mut reach = Reach::default();
        let (kept, only_leased) = self.kept();
        self.only_leased += only_leased;
        for id in kept {
            reach.add(self.owner.reach(id, true, &format!("{when}, owner, version {}", id.short())));
        }
        for hash in reach.blobs.iter().filter(|(_, size)| **size > 0).map(|(hash, _)| hash) {
            assert!(self.owner.blob(hash).is_some(), "{when}: blob {hash} of a kept version is gone");
        }
        if let Some(live) = self.live {
            let here = self.replica().reach(live, true, &format!("{when}, copy, live version"));
            for hash in here.blobs.keys() {
                assert!(self.replica().blob(hash).is_some(), "{when}: blob {hash} of the live version is gone");
            }
        }
        reach
    }

    /// Grace passes, and nobody asks for anything: what is reachable is there, and nothing else.
    pub fn settle(&mut self, when: &str) {
        self.collect(false);
        self.now += GRACE + HOUR;
        self.collect(true);
        let reach = self.check(when);
        let space = self.owner.space;
        let grants = self.owner.catalog.read().unwrap().grants(&space).unwrap().unwrap().blob();
        let mut blobs: BTreeSet<BlobHash> = reach.blobs.keys().copied().collect();
        if !self.owner.keys(Table::Blobs).contains(&BlobHash::of(&[])) {
            // No bytes need no record.
            blobs.remove(&BlobHash::of(&[]));
        }
        assert!(self.owner.pins().is_subset(&blobs), "{when}: pins of nothing");
        blobs.extend(self.owner.files());
        let mut metas = reach.metas;
        metas.extend(lists_of(&self.owner));
        // A grant set is metadata only once a head named it.
        metas.extend(self.owner.keys(Table::Meta).get(&grants));
        assert_sites(&self.owner, when, &metas, &blobs);

        let replica = self.replica();
        let newest = replica.catalog.read().unwrap().newest_head(&space, &self.genesis.owner).unwrap();
        let mut reach = Reach::default();
        for id in self.live.into_iter().chain(newest.map(|h| h.manifest)) {
            reach.add(replica.reach(id, false, when));
        }
        let here = replica.keys(Table::Meta);
        let mut metas: BTreeSet<BlobHash> = reach.metas.intersection(&here).copied().collect();
        metas.extend(lists_of(replica));
        let wanted: BTreeSet<BlobHash> = reach.blobs.keys().copied().collect();
        let blobs = replica.keys(Table::Blobs);
        // Older generations and an unfinished sync hold the rest; their bytes are there.
        for hash in blobs.difference(&wanted) {
            assert!(replica.blob(hash).is_some(), "{when}: a record of {hash}, which lies nowhere");
        }
        assert_sites(replica, when, &metas, &blobs);
        assert!(replica.files().is_subset(&wanted), "{when}: records of files that are not published");
    }
}

fn run(site: &Site, retention: &Retention, twice: bool) {
    if !twice {
        collect(&site.lake, &site.space, &site.catalog, retention, false).unwrap();
        collect_home(&site.catalog, retention, &|| true, false).unwrap();
        return;
    }
    let would = collect(&site.lake, &site.space, &site.catalog, retention, true).unwrap();
    let did = collect(&site.lake, &site.space, &site.catalog, retention, false).unwrap();
    // A dry run leaves staging out.
    assert_eq!((would.kept, would.versions, would.rows), (did.kept, did.versions, did.rows));
    collect_home(&site.catalog, retention, &|| true, false).unwrap();
    let again = collect(&site.lake, &site.space, &site.catalog, retention, false).unwrap();
    assert_eq!(Collected { kept: 0, ..again }, Collected::default(), "a second run finds nothing");
}

/// The tables hold exactly this.
fn assert_sites(site: &Site, when: &str, metas: &BTreeSet<BlobHash>, blobs: &BTreeSet<BlobHash>) {
    assert_eq!(site.keys(Table::Meta), *metas, "{when}: metadata");
    assert_eq!(site.keys(Table::Blobs), *blobs, "{when}: records of blobs");
    let reader = site.catalog.read().unwrap();
    let record = |hash: &BlobHash| reader.blob(&site.space, hash).unwrap().unwrap();
    let treed = blobs.iter().filter(|hash| record(hash).size > BLOCK_BYTES).copied();
    assert_eq!(site.keys(Table::Outboards), treed.collect(), "{when}: trees");
    let listed = |hash: &BlobHash| blobs.contains(hash) && record(hash).list.is_some();
    assert!(site.keys(Table::Chunks).iter().all(listed), "{when}: chunk index");
}

/// Chunk lists that records of blobs name.
fn lists_of(site: &Site) -> BTreeSet<BlobHash> {
    let mut found = BTreeSet::new();
    let reader = site.catalog.read().unwrap();
    reader.blobs(&site.space, &mut |_, record| found.extend(record.list)).unwrap();
    found
}

/// Something that the peer asks for.
#[derive(Debug)]
enum Piece {
    Meta(BlobHash),
    Blob(BlobHash),
}

/// What a sync of this version asks for next, from what is here alone.
fn next_piece(site: &Site, head: &Signed<Head>) -> Option<Piece> {
    let r = site.catalog.read().unwrap();
    let meta = |hash: &BlobHash| r.meta(&site.space, hash).unwrap();
    let manifest: BlobHash = head.manifest.into();
    let (Some(manifest_bytes), Some(annex_bytes)) = (meta(&manifest), meta(&head.annex)) else {
        return Some(Piece::Meta(if meta(&manifest).is_none() { manifest } else { head.annex }));
    };
    let mut trees: Vec<TreeRef> =
        Manifest::from_bytes(&manifest_bytes).unwrap().sections.into_iter().map(|s| s.tree).collect();
    let entries = trees.len();
    trees.extend(Annex::from_bytes(&annex_bytes).unwrap().chunk_lists);
    for tree in &trees {
        if let Some(page) = missing_pages(tree, &mut |hash| meta(hash)).unwrap().first() {
            return Some(Piece::Meta(*page));
        }
    }
    let (mut lists, mut blobs) = (Vec::new(), Vec::new());
    for (i, tree) in trees.iter().enumerate() {
        let mut todo = vec![tree.page];
        while let Some(hash) = todo.pop() {
            let page = Page::from_bytes(&meta(&hash).unwrap()).unwrap();
            todo.extend(page.child_pages().map(|c| c.page));
            if i < entries {
                blobs.extend(page.decode_items::<Entry>().unwrap().into_iter().filter_map(|e| e.hash));
            } else {
                lists.extend(page.decode_items::<ChunkListRef>().unwrap().into_iter().map(|l| l.list));
            }
        }
    }
    let list = lists.into_iter().find(|hash| meta(hash).is_none()).map(Piece::Meta);
    list.or_else(|| blobs.into_iter().find(|hash| !r.has_blob(&site.space, hash).unwrap()).map(Piece::Blob))
}

/// As `flow` does when everything has come.
fn remember_lists(catalog: &Catalog, space: &SpaceId, head: &Signed<Head>) {
    let remembered = catalog.write(|b| -> Result<(), CatalogError> {
        let annex = Annex::from_bytes(&b.meta(space, &head.annex)?.unwrap())?;
        let mut todo: Vec<BlobHash> = annex.chunk_lists.iter().map(|t| t.page).collect();
        while let Some(hash) = todo.pop() {
            let page = Page::from_bytes(&b.meta(space, &hash)?.unwrap())?;
            todo.extend(page.child_pages().map(|c| c.page));
            for item in page.decode_items::<ChunkListRef>()? {
                let list = ChunkList::from_bytes(&b.meta(space, &item.list)?.unwrap())?;
                b.set_chunk_list(space, &item.blob, &item.list)?;
                b.index_chunks(space, &item.blob, &list)?;
            }
        }
        Ok(())
    });
    remembered.unwrap();
}

fn millis(time: SystemTime) -> u64 {
    u64::try_from(time.duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

fn record(role: Role, owner: SiteId) -> SpaceRecord {
    SpaceRecord {
        name: "acme".into(),
        role,
        lake: String::new(),
        owner,
        history: None,
        opaque: false,
        sections: vec![],
        sources: vec![],
        frozen: None,
        held: None,
        rivals: vec![],
        phrase: None,
        follow: None,
        unknown: Default::default(),
    }
}

fn add_space(site: &Site, role: Role, owner: SiteId) {
    let record = SpaceRecord { lake: site.lake.root().display().to_string(), ..record(role, owner) };
    site.catalog.write(|b| b.put_space(&site.space, &record)).unwrap();
}

fn snapshot_record(head: &Signed<Head>) -> SnapshotRecord {
    SnapshotRecord { head: head.id(), files: 0, bytes: 0, skipped: vec![], unknown: Default::default() }
}
