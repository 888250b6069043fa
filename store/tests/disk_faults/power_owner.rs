//! The power goes while an owner reads its lake, signs, pins and collects.
//!
//! The customer's own writing is on the record, too, and is synced by nobody but us. On each disk that a
//! loss may leave the catalog opens; every snapshot that was acknowledged and is kept can be had byte for
//! byte from the lake or its pins (I1); nothing that is recorded is a lie (I2); and a second run comes to
//! the end.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use ed25519_dalek::SigningKey;
use sluice_protocol::annex::Annex;
use sluice_protocol::chunks::ChunkList;
use sluice_protocol::codec::Document;
use sluice_protocol::head::Head;
use sluice_protocol::ids::{SiteId, SnapshotId, SpaceId};
use sluice_protocol::manifest::{Entry, Manifest};
use sluice_protocol::signed::Signed;
use sluice_protocol::tree::read_tree;
use sluice_store::catalog::{Catalog, CatalogError, Role, SiteLookup, SpaceRecord};
use sluice_store::chunk::chunk;
use sluice_store::disk::trace::record;
use sluice_store::disk::{self, Taken};
use sluice_store::gc::{Retention, collect};
use sluice_store::lake::{Lake, Place};
use sluice_store::pins::{PinOptions, pin};
use sluice_store::scan::{Previous, ScanOptions, scan};
use sluice_store::{outboard, snapshot};

use super::image::{Dice, Disk, Tape};
use super::*;

const SPACE: SpaceId = SpaceId([7; 32]);
/// Versions that a collection keeps.
const KEPT: usize = 2;
/// The room of what the customer does.
const CUSTOMER: &str = "customer";

struct Owner {
    dir: tempfile::TempDir,
    lake: Lake,
    catalog: Catalog,
    key: SigningKey,
}

impl Owner {
    fn opened(dir: tempfile::TempDir, what: &str) -> Self {
        let lake = Lake::open(&dir.path().join("lake")).unwrap();
        let catalog = Catalog::open(&dir.path().join("home")).unwrap_or_else(|e| panic!("{what}: {e}"));
        Self { dir, lake, catalog, key: SigningKey::from_bytes(&[9; 32]) }
    }

    fn new() -> Self {
        let dir = place();
        for folder in ["home", "lake"] {
            std::fs::create_dir(dir.path().join(folder)).unwrap();
        }
        Self::opened(dir, "new")
    }

    fn site(&self) -> SiteId {
        SiteId(self.key.verifying_key().to_bytes())
    }

    /// A snapshot as the flow takes it: read, made, signed, pinned.
    fn snapshot(&self) {
        let before = self.catalog.read().unwrap().newest_head(&SPACE, &self.site()).unwrap();
        let previous = before.as_ref().map(|h| Previous { snapshot: h.manifest, annex: h.annex });
        let options = ScanOptions { opaque: true, previous, ..ScanOptions::default() };
        let entries = scan(&self.lake, &SPACE, &self.catalog, &options, &[], &Silent).unwrap();
        let chunks = chunk(&self.lake, &SPACE, &self.catalog, entries, &Silent).unwrap();
        let made = snapshot::manifest(&self.lake, &SPACE, &self.catalog, chunks, &Silent).unwrap();
        let signed: Result<(), CatalogError> = self.catalog.write(|b| {
            b.put_space(&SPACE, &self.record())?;
            if before.as_ref().is_some_and(|h| h.manifest == made.id) {
                return Ok(());
            }
            b.put_head(&self.head(before.as_ref(), made.id, made.annex_hash))
        });
        signed.unwrap();
        pin(&self.lake, &SPACE, &self.catalog, &made.manifest, PinOptions { copy: true }, &Silent).unwrap();
    }

    fn head(&self, before: Option<&Signed<Head>>, manifest: SnapshotId, annex: BlobHash) -> Signed<Head> {
        let head = Head {
            space: SPACE,
            writer: self.site(),
            epoch: 0,
            seq: before.map_or(0, |h| h.seq + 1),
            manifest,
            annex,
            grants: BlobHash([0; 32]),
            prev: before.map(Signed::<Head>::id),
            time_ms: 1,
            not_after_ms: u64::MAX,
            tag: None,
            untag: None,
            unknown: Default::default(),
        };
        Signed::sign(&self.key, head)
    }

    fn record(&self) -> SpaceRecord {
        SpaceRecord {
            name: "acme".into(),
            role: Role::Owner,
            lake: "lake".into(),
            owner: self.site(),
            history: None,
            opaque: true,
            sections: vec![],
            sources: vec![],
            frozen: None,
            phrase: None,
            follow: None,
            held: None,
            rivals: vec![],
            unknown: Default::default(),
        }
    }

    fn collect(&self, what: &str) {
        let retention = Retention { snapshots: KEPT, grace_ms: 0, kept_ms: None, quarantine_ms: None, now_ms: 1 };
        collect(&self.lake, &SPACE, &self.catalog, &retention, false).unwrap_or_else(|e| panic!("{what}: {e}"));
    }

    /// The versions that were signed, oldest first.
    fn versions(&self) -> Vec<(SnapshotId, BlobHash)> {
        let mut all = Vec::new();
        let reader = self.catalog.read().unwrap();
        reader.each_head(&SPACE, &self.site(), &mut |_, h| all.push((h.manifest, h.annex))).unwrap();
        all
    }
}

/// What the customer does: names and files appear, are replaced and go; nothing is synced.
struct Customer<'a>(&'a Owner);

impl Customer<'_> {
    fn folder(&self, path: &str) -> File {
        let mut here = File::open(self.0.dir.path().join("lake")).unwrap();
        let mut at = self.0.dir.path().join("lake");
        for name in path.split('/').filter(|n| !n.is_empty()) {
            at = at.join(name);
            if !at.exists() {
                disk::make_folder(CUSTOMER, &here, name, 0o755).unwrap();
            }
            here = File::open(&at).unwrap();
        }
        here
    }

    /// Another file takes the name, as most programs do it. It looks as if written `age` seconds after 1970.
    fn puts(&self, path: &str, bytes: &[u8], age: i64) {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let folder = self.folder(folder);
        // What a cut left of an earlier try.
        let _ = disk::remove(CUSTOMER, &folder, "~");
        let file = disk::create(CUSTOMER, &folder, "~", 0o644).unwrap();
        disk::write_all_at(CUSTOMER, &file, bytes, 0).unwrap();
        disk::set_mtime(CUSTOMER, &file, age * SECOND).unwrap();
        disk::rename(CUSTOMER, (folder.as_fd(), "~"), (folder.as_fd(), name), Taken::Replace).unwrap();
    }

    fn removes(&self, path: &str) {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        disk::remove(CUSTOMER, self.folder(folder), name).unwrap();
    }

    /// What the lake is at each version.
    fn changes(&self, version: i64) {
        let commit = |n: i64| (format!("orders/_delta_log/{n:020}.json"), format!("commit {n}"));
        let (name, bytes) = commit(version);
        self.puts(&name, bytes.as_bytes(), 100 + version);
        self.puts(&format!("orders/part-{version}"), &random(version as u8, 3000), 200 + version);
        self.puts("raw/a", &random(50 + version as u8, 20_000), 300 + version);
        self.puts(&format!("raw/new/{version}"), &random(90 + version as u8, 500), 400 + version);
        match version {
            1 => self.puts("raw/big", &random(80, 100_000), 500),
            2 => self.removes("raw/new/1"),
            _ => {
                self.removes("orders/part-1");
                self.puts("raw/big", &random(81, 100_000), 501);
            }
        }
    }
}

fn tape() -> Tape {
    let owner = Owner::new();
    let start = Disk::read(owner.dir.path());
    let recording = record(owner.dir.path());
    for version in 1..=3 {
        Customer(&owner).changes(version);
        owner.snapshot();
        recording.note(&version.to_string());
    }
    recording.note("collecting");
    owner.collect("tape");
    Tape::new(start, &recording.done())
}

/// Everything that a version consists of can be read, and is what its hashes say.
fn assert_whole(owner: &Owner, version: &(SnapshotId, BlobHash), what: &str) {
    let reader = owner.catalog.read().unwrap();
    let meta = |hash: &BlobHash, name: &str| {
        let bytes = reader.meta(&SPACE, hash).unwrap();
        bytes.unwrap_or_else(|| panic!("{what}: the {name} {hash} is gone"))
    };
    let manifest = Manifest::from_bytes(&meta(&version.0.into(), "manifest")).unwrap();
    Annex::from_bytes(&meta(&version.1, "annex")).unwrap();
    for section in &manifest.sections {
        let mut files: BTreeMap<BlobHash, Entry> = BTreeMap::new();
        let mut fetch = |page: &BlobHash| Ok::<_, CatalogError>(meta(page, "page"));
        let mut each = |e: Entry| {
            files.extend(e.hash.map(|hash| (hash, e)));
            Ok(())
        };
        read_tree(&section.tree, &mut fetch, &mut each).unwrap();
        for (hash, entry) in files {
            let path = section.lake_path(&entry.path).unwrap();
            let blob = reader.blob(&SPACE, &hash).unwrap().unwrap_or_else(|| panic!("{what}: `{path}` is unknown"));
            let bytes = blob.places.iter().find_map(|at| {
                let bytes = std::fs::read(owner.lake.path_of(&at.place)).ok()?;
                (BlobHash::of(&bytes) == hash).then_some(bytes)
            });
            let bytes = bytes.unwrap_or_else(|| panic!("{what}: the bytes of `{path}` are gone: {:?}", blob.places));
            if bytes.len() as u64 > outboard::BLOCK_BYTES {
                let tree = reader.outboard(&hash).unwrap();
                assert_eq!(tree, Some(outboard::of_bytes(&bytes).1), "{what}: the tree of `{path}`");
            }
            if let Some(list) = &blob.list {
                assert_eq!(ChunkList::from_bytes(&meta(list, "chunk list")).unwrap().size, entry.size);
            }
        }
    }
}

/// No pin is anything but its blob, and no file of the lake that looks as recorded.
fn assert_records_are_true(owner: &Owner, what: &str) {
    let reader = owner.catalog.read().unwrap();
    let mut blobs = Vec::new();
    reader.blobs(&SPACE, &mut |hash, record| blobs.push((hash, record))).unwrap();
    for (hash, record) in blobs {
        for at in record.places {
            let file = owner.lake.path_of(&at.place);
            let (Ok(bytes), Ok(about)) = (std::fs::read(&file), std::fs::metadata(&file)) else { continue };
            let mtime_ns = about.mtime() * SECOND + about.mtime_nsec();
            // The inode and the change time are others on an image.
            let looks = (about.len(), mtime_ns) == (at.print.size, at.print.mtime_ns);
            if looks || matches!(at.place, Place::Own(_)) {
                assert!(BlobHash::of(&bytes) == hash, "{what}: `{}` is recorded as {hash}", at.place);
            }
        }
    }
}

/// One version with a file whose tree is a file beside the catalog.
fn tape_of_a_large_file() -> Tape {
    let owner = Owner::new();
    let start = Disk::read(owner.dir.path());
    let recording = record(owner.dir.path());
    Customer(&owner).puts("raw/huge", &random(70, 17 << 20), 600);
    owner.snapshot();
    recording.note("1");
    Tape::new(start, &recording.done())
}

/// One disk that the loss may leave, opened, looked at, and brought to the end.
fn survive(tape: &Tape, cut: usize, keep: u64, seed: u64) {
    let what = format!("cut {cut}, keep {keep}, seed {seed}");
    let disk = tape.cut(cut, keep, &mut Dice(seed));
    let notes = tape.notes(cut);
    let acknowledged = notes.iter().filter_map(|n| n.parse::<usize>().ok()).max().unwrap_or(0);
    let dir = place();
    disk.write_out(dir.path());
    let owner = Owner::opened(dir, &what);
    let versions = owner.versions();
    assert!(versions.len() >= acknowledged, "{what}: only {} of {acknowledged} heads", versions.len());
    let first = if notes.iter().any(|n| n == "collecting") { versions.len().saturating_sub(KEPT) } else { 0 };
    // Also what was signed and not pinned yet: the customer has not changed it since.
    for version in &versions[first..] {
        assert_whole(&owner, version, &what);
    }
    assert_records_are_true(&owner, &what);
    // The customer's last change is made again, whatever was left of it.
    let again = Customer(&owner);
    again.puts("raw/a", &random(99, 20_000), 900);
    owner.snapshot();
    owner.collect(&what);
    assert_records_are_true(&owner, &what);
    // The one before may never have been pinned; the newest is, and so is what was acknowledged.
    let now = owner.versions();
    let kept = now.len().saturating_sub(KEPT)..now.len();
    for (_, version) in
        now.iter().enumerate().filter(|(n, _)| kept.contains(n) && (*n < acknowledged || n + 1 == now.len()))
    {
        assert_whole(&owner, version, &format!("{what}, the second run"));
    }
}

#[test]
fn an_owners_snapshot_survives_a_power_loss_at_every_sync() {
    let tape = tape();
    let syncs = tape.syncs();
    assert!(syncs.len() > 30, "{} syncs", syncs.len());
    for (number, sync) in syncs.iter().enumerate() {
        survive(&tape, *sync, 0, number as u64 + 1);
        for keep in [0, 3, 5, 9] {
            survive(&tape, sync + 1, keep, number as u64 + 1001);
        }
    }
    survive(&tape, tape.len(), 0, 1);
    let tape = tape_of_a_large_file();
    tape.syncs().iter().for_each(|sync| survive(&tape, sync + 1, 0, *sync as u64 + 1));
}

#[test]
#[ignore = "soak: five thousand power losses of an owner, some minutes"]
fn five_thousand_power_losses_of_an_owner() {
    let tape = tape();
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    eprintln!("seed {seed}");
    let mut dice = Dice(seed | 1);
    for _ in 0..5_000 {
        let (cut, keep) = (dice.roll(tape.len() as u64 + 1) as usize, dice.roll(11));
        survive(&tape, cut, keep, dice.roll(u64::MAX - 1) + 1);
    }
}
