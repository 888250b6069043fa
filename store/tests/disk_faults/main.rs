//! A disk that fails under a replica: the power goes, or a call returns an error.
//!
//! Both tests take a first version and a change through staging, verification and publishing, with
//! files that come in batches, one that comes group by group, a table that grows and a copy.

mod errors;
mod image;
mod power;
mod power_owner;
#[path = "../replica_world/mod.rs"]
mod replica_world;

use bao_tree::io::outboard::PreOrderMemOutboard;
use replica_world::*;
use sluice_protocol::ids::BlobHash;
use sluice_protocol::manifest::SectionKind::{Delta, Raw};
use sluice_store::blobs::GROUPS;
use sluice_store::catalog::Lookup;
use sluice_store::lake::Place;
use sluice_store::publish::{PublishError, publish};
use sluice_store::staging::{Paged, Staging, StagingError};
use sluice_store::verify::{VerifyError, verify};
use sluice_store::watch::Silent;

const SECOND: i64 = 1_000_000_000;
const LEAF: usize = 16 * 1024;

fn random(seed: u8, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut out);
    out
}

fn table(commits: usize) -> Vec<Item> {
    let mut items = vec![file("_delta_log/_last_checkpoint", format!("{commits}"))];
    for i in 0..commits {
        items.push(file(&format!("part-{i}"), random(i as u8, 3000)));
        items.push(file(&format!("_delta_log/{i:020}.json"), format!("commit {i}")).at(i as i64 * SECOND));
    }
    items
}

fn one() -> Vec<Part> {
    vec![
        loose(None, vec![file("README", "one").at(SECOND)]),
        part("orders", Delta, table(1)),
        part("raw", Raw, vec![file("d/same", random(90, 20_000)).at(3), file("big", large(1)), link("l", "d/same")]),
    ]
}

fn two() -> Vec<Part> {
    vec![
        loose(None, vec![file("README", "two").at(2 * SECOND)]),
        part("orders", Delta, table(3)),
        // The same bytes with another time are a copy, not a link.
        part("raw", Raw, vec![file("d/same", random(90, 20_000)).at(4), file("big", large(2)), link("l", "big")]),
    ]
}

/// A file that is staged group by group.
fn large(version: u8) -> Vec<u8> {
    random(100 + version, 150_000)
}

/// The root of a blob and all its pairs, as a peer sends them.
fn tree_to_send(bytes: &[u8]) -> (BlobHash, Vec<u8>) {
    let tree = PreOrderMemOutboard::create(bytes, GROUPS);
    (BlobHash(*tree.root.as_bytes()), tree.data)
}

/// Fills a large blob as transfer does, with a checkpoint on the way.
fn fill(staging: &Staging, bytes: &[u8]) -> Result<(), StagingError> {
    let (hash, tree) = tree_to_send(bytes);
    let staged = staging.start(hash, bytes.len() as u64)?;
    for (i, pair) in tree.chunks(64).enumerate() {
        staged.put_parents(&[(i as u64, pair.try_into().unwrap())])?;
    }
    for range in staged.missing(0..u64::MAX) {
        let mut at = range.start as usize;
        while at < range.end as usize {
            // The first piece is long enough to go past the cache.
            let end = (at + if at == 0 { 4 * LEAF } else { LEAF }).min(range.end as usize);
            let mut piece = Paged::with_capacity(end - at);
            piece.extend_from_slice(&bytes[at..end]);
            staged.write_leaf(at as u64, &piece)?;
            at = end;
            if at / LEAF == 5 {
                staged.checkpoint()?;
            }
        }
    }
    staged.finish()
}

/// Everything that a version needs arrives, is verified and published; or the sentence of the error.
fn try_bring(world: &World, version: u8) -> Result<(), String> {
    let parts = if version == 1 { one() } else { two() };
    let bytes = large(version);
    let told = |e: &dyn std::fmt::Display| e.to_string();
    // A blob that is found gone on the way is fetched again, as a next sync would.
    for _ in 0..8 {
        let received = world.try_announce(&parts).map_err(|e| told(&e))?;
        let staging = Staging::open(&world.lake, world.space, &world.catalog).map_err(|e| told(&e))?;
        staging.adopt().map_err(|e| told(&e))?;
        let reader = world.catalog.read().map_err(|e| told(&e))?;
        if !reader.has_blob(&world.space, &BlobHash::of(&bytes)).map_err(|e| told(&e))? {
            fill(&staging, &bytes).map_err(|e| told(&e))?;
        }
        drop(reader);
        world.try_deliver(&parts).map_err(|e| told(&e))?;
        let verified = match verify(&world.lake, &world.catalog, received, &[], &Silent) {
            Err(VerifyError::MissingBlobs { .. }) => continue,
            other => other.map_err(|e| told(&e))?,
        };
        match publish(&world.lake, &world.catalog, &verified, Default::default(), &Silent) {
            Ok(_) => return Ok(()),
            Err(PublishError::BlobGone { .. }) => {}
            Err(e) => return Err(told(&e)),
        }
    }
    Err(format!("version {version} does not come to an end"))
}

fn bring(world: &World, version: u8) {
    try_bring(world, version).unwrap_or_else(|e| panic!("version {version}: {e}"));
}

/// Every file that the catalog calls a blob is that blob, or gone; no record vouches for other bytes.
fn assert_no_lie(world: &World, what: &str) {
    let reader = world.catalog.read().unwrap();
    let mut blobs = Vec::new();
    reader.blobs(&world.space, &mut |hash, record| blobs.push((hash, record))).unwrap();
    for (hash, record) in blobs {
        for at in record.places {
            let Place::Own(path) = &at.place else { continue };
            // A pointer is replaced before the commit that says so; the record does not fit the new file's inode.
            if path.file_name() == "_last_checkpoint" {
                continue;
            }
            let Ok(bytes) = std::fs::read(world.at(".sluice").join(path.as_str())) else { continue };
            assert!(BlobHash::of(&bytes) == hash, "{what}: `{path}` is recorded as {hash} and holds other bytes");
        }
    }
}

/// Images lie in memory where they can: syncing them proves nothing.
fn place() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}
