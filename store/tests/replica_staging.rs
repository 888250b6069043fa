//! Staging keeps what was proven, through kills and lies, and nothing else.

mod replica_world;

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use bao_tree::BlockSize;
use bao_tree::io::outboard::PreOrderMemOutboard;
use bytes::Bytes;
use replica_world::*;
use sluice_protocol::ids::{BlobHash, ChunkHash};
use sluice_store::blobs::{BlobError, Fit, open_blob, quarantine, settle};
use sluice_store::catalog::Lookup;
use sluice_store::outboard;
use sluice_store::staging::{MOVED_TOTAL, Staged, Staging, StagingError};

const GROUP: u64 = 16 * 1024;

/// A blob and its tree, as a peer has them.
struct Peer {
    data: Vec<u8>,
    hash: BlobHash,
    /// All pairs, as they are sent.
    tree: PreOrderMemOutboard,
}

fn peer(size: usize) -> Peer {
    let data: Vec<u8> = (0..size as u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).take(size).collect();
    let tree = PreOrderMemOutboard::create(&data, BlockSize::from_chunk_log(4));
    Peer { hash: BlobHash(*tree.root.as_bytes()), data, tree }
}

impl Peer {
    /// Sends a range as a lane does: the nodes above it, then the leaves.
    fn send(&self, to: &Staged, range: Range<u64>) {
        let tree = self.tree.tree;
        for node in tree.pre_order_nodes_iter() {
            let chunks = node.chunk_range();
            let touches = chunks.start.to_bytes() < range.end && range.start < chunks.end.to_bytes();
            if let Some(index) = tree.pre_order_offset(node).filter(|_| touches) {
                let at = index as usize * 64;
                to.put_parents(&[(index, self.tree.data[at..at + 64].try_into().unwrap())]).unwrap();
            }
        }
        for (i, leaf) in self.data[range.start as usize..range.end as usize].chunks(GROUP as usize).enumerate() {
            to.write_leaf(range.start + i as u64 * GROUP, leaf).unwrap();
        }
    }

    fn size(&self) -> u64 {
        self.data.len() as u64
    }

    /// What is stored of the tree: a scan of the same bytes keeps the same.
    fn stored(&self) -> Option<Vec<u8>> {
        let (root, tree) = outboard::of_bytes(&self.data);
        assert_eq!(root, self.hash);
        (!tree.is_empty()).then_some(tree)
    }
}

fn one(range: Range<u64>) -> Vec<Range<u64>> {
    vec![range]
}

fn staging_on(world: &World, boot: &str) -> Staging {
    Staging::open_on_boot(&world.lake, world.space, &world.catalog, boot).unwrap()
}

#[test]
fn blobs_of_all_sizes_arrive_and_keep_their_tree() {
    let world = World::new();
    for size in [0usize, 1, 1024, 16_384, 16_385, 131_072, 131_073, 147_457, 1_048_576, 1_048_577, 3_000_003] {
        let blob = peer(size);
        let staged = world.staging().start(blob.hash, blob.size()).unwrap();
        blob.send(&staged, 0..blob.size());
        assert!(staged.is_complete(), "{size}");
        assert_eq!(staged.have_bytes(), blob.size());
        staged.finish().unwrap();
        let reader = world.catalog.read().unwrap();
        let found = open_blob(&world.lake, &reader, &world.space, &blob.hash).unwrap();
        assert_eq!((found.size, found.fit), (blob.size(), Fit::Same));
        let mut bytes = vec![0; size];
        found.file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == blob.data, "{size}");
        assert_eq!(reader.outboard(&blob.hash).unwrap(), blob.stored(), "{size}");
        assert!(reader.staging(&world.space, &blob.hash).unwrap().is_none());
        assert!(!world.at(&format!(".sluice/staging/{}.tree", blob.hash)).exists());
    }
}

#[test]
fn a_long_tree_goes_to_a_file_of_its_own() {
    let world = World::new();
    let blob = peer(300 << 20);
    assert!(blob.tree.data.len() > 1 << 20);
    let staged = world.staging().start(blob.hash, blob.size()).unwrap();
    blob.send(&staged, 0..blob.size());
    staged.finish().unwrap();
    assert!(world.catalog.outboard_path(&blob.hash).exists());
    assert!(world.catalog.read().unwrap().outboard(&blob.hash).unwrap() == blob.stored());
}

#[test]
fn many_threads_fill_one_blob() {
    let world = World::new();
    let blob = peer(5_000_000);
    let staged = world.staging().start(blob.hash, blob.size()).unwrap();
    let segment = 7 * GROUP;
    std::thread::scope(|s| {
        for lane in 0..6 {
            let (staged, blob) = (staged.clone(), &blob);
            s.spawn(move || {
                let mut at = lane * segment;
                while at < blob.size() {
                    blob.send(&staged, at..(at + segment).min(blob.size()));
                    if lane == 0 {
                        staged.checkpoint().unwrap();
                    }
                    at += 6 * segment;
                }
            });
        }
    });
    staged.finish().unwrap();
    assert!(settle(&world.lake, &world.catalog, &world.space, &blob.hash).unwrap());
}

#[test]
fn after_a_kill_the_received_tree_vouches_for_what_was_not_recorded() {
    let world = World::new();
    let blob = peer(4_000_000);
    let staged = staging_on(&world, "boot 1").start(blob.hash, blob.size()).unwrap();
    blob.send(&staged, 0..100 * GROUP);
    staged.checkpoint().unwrap();
    blob.send(&staged, 150 * GROUP..200 * GROUP);
    assert_eq!(staged.unsaved_bytes(), 50 * GROUP);
    drop(staged);
    let world = world.restarted();
    let again = staging_on(&world, "boot 1").start(blob.hash, blob.size()).unwrap();
    assert_eq!(again.have_bytes(), 150 * GROUP, "nothing is fetched twice");
    assert_eq!(again.missing(0..u64::MAX), [100 * GROUP..150 * GROUP, 200 * GROUP..4_000_000]);
    assert_eq!(again.missing(120 * GROUP..130 * GROUP), one(120 * GROUP..130 * GROUP));
    for range in again.missing(0..u64::MAX) {
        blob.send(&again, range);
    }
    again.finish().unwrap();
}

#[test]
fn what_is_received_is_counted_once_whatever_is_killed() {
    let mut world = World::new();
    let blob = peer(6_000_000);
    let (segment, mut pairs) = (7 * GROUP, 0);
    // Each third is saved while it arrives, and then the process dies.
    for third in 0..3 {
        let staged = staging_on(&world, "boot 1").start(blob.hash, blob.size()).unwrap();
        let ranges = staged.missing(0..(third + 1) * blob.size() / 3);
        let segments = || {
            ranges
                .iter()
                .flat_map(|r| (r.start..r.end).step_by(segment as usize).map(|at| at..(at + segment).min(r.end)))
        };
        pairs += segments().count() as u64 * 20;
        std::thread::scope(|s| {
            let sending = s.spawn(|| segments().for_each(|range| blob.send(&staged, range)));
            while !sending.is_finished() {
                staged.checkpoint().unwrap();
            }
        });
        if third == 2 {
            staged.finish().unwrap();
        }
        drop(staged);
        world = world.restarted();
    }
    let counted = world.catalog.read().unwrap().counter(MOVED_TOTAL).unwrap();
    assert!(counted >= blob.size(), "{counted} of {} bytes are counted", blob.size());
    assert!(counted <= blob.size() + 64 * pairs, "{} bytes are counted twice", counted - blob.size());

    let small: Vec<_> = (0..5u8).map(|i| Bytes::from(vec![i; 3000])).map(|b| (BlobHash::of(&b), b)).collect();
    world.staging().put_small(&small).unwrap();
    let world = world.restarted();
    assert_eq!(world.catalog.read().unwrap().counter(MOVED_TOTAL).unwrap(), counted + 15_000);
}

#[test]
fn after_a_power_loss_only_what_was_recorded_counts() {
    let world = World::new();
    let blob = peer(2_000_000);
    let staged = staging_on(&world, "boot 1").start(blob.hash, blob.size()).unwrap();
    blob.send(&staged, 0..40 * GROUP);
    staged.checkpoint().unwrap();
    blob.send(&staged, 40 * GROUP..80 * GROUP);
    drop(staged);
    let world = world.restarted();
    let again = staging_on(&world, "boot 2").start(blob.hash, blob.size()).unwrap();
    assert_eq!(again.have_bytes(), 40 * GROUP);
}

#[test]
fn unrecorded_bytes_that_were_damaged_are_not_believed() {
    let world = World::new();
    let blob = peer(2_000_000);
    let staged = staging_on(&world, "boot 1").start(blob.hash, blob.size()).unwrap();
    blob.send(&staged, 0..80 * GROUP);
    drop(staged);
    let part = world.at(&format!(".sluice/staging/{}.part", blob.hash));
    File::options().write(true).open(part).unwrap().write_all_at(b"flip", 10 * GROUP + 5).unwrap();
    let world = world.restarted();
    let again = staging_on(&world, "boot 1").start(blob.hash, blob.size()).unwrap();
    assert_eq!(again.missing(0..80 * GROUP), one(10 * GROUP..11 * GROUP));
}

#[test]
fn a_lost_part_is_not_believed_to_be_there() {
    let world = World::new();
    let blob = peer(500_000);
    let part = world.at(&format!(".sluice/staging/{}.part", blob.hash));
    for damage in ["removed", "cut", "second name"] {
        let staged = staging_on(&world, "b").start(blob.hash, blob.size()).unwrap();
        blob.send(&staged, 0..20 * GROUP);
        staged.checkpoint().unwrap();
        drop(staged);
        match damage {
            "removed" => std::fs::remove_file(&part).unwrap(),
            "cut" => File::options().write(true).open(&part).unwrap().set_len(100).unwrap(),
            _ => std::fs::hard_link(&part, world.at(".sluice/published")).unwrap(),
        }
        let again = staging_on(&world, "b").start(blob.hash, blob.size()).unwrap();
        assert_eq!(again.have_bytes(), 0, "{damage}");
        drop(again);
        // And once more: the new, empty part must not inherit the old record.
        let third = staging_on(&world, "other boot").start(blob.hash, blob.size()).unwrap();
        assert_eq!(third.have_bytes(), 0, "{damage}");
    }
}

#[test]
fn a_planted_link_is_replaced_and_not_followed() {
    let world = World::new();
    let blob = peer(50_000);
    world.staging();
    for name in ["part", "tree"] {
        let at = world.at(&format!(".sluice/staging/{}.{name}", blob.hash));
        std::os::unix::fs::symlink(world.dir.path().join("outside"), at).unwrap();
    }
    let staged = world.staging().start(blob.hash, blob.size()).unwrap();
    blob.send(&staged, 0..blob.size());
    staged.finish().unwrap();
    assert_eq!(std::fs::read(world.dir.path().join("outside")).unwrap(), b"not yours");
}

/// Copies the whole of `blob` out of a local file in chunks that fit no group.
fn copy_chunks(world: &World, blob: &Peer, to: &Staged, claim: impl Fn(&[u8]) -> ChunkHash) -> Vec<bool> {
    let at = world.dir.path().join("home/base");
    std::fs::write(&at, &blob.data).unwrap();
    let base = File::open(&at).unwrap();
    let mut done = Vec::new();
    for (i, chunk) in blob.data.chunks(50_001).enumerate() {
        let offset = i as u64 * 50_001;
        done.push(to.copy_from(&base, offset, offset, chunk.len() as u32, &claim(chunk)).unwrap());
    }
    done
}

#[test]
fn local_copies_are_hashed_as_a_whole_at_the_end() {
    let world = World::new();
    let blob = peer(1_000_000);
    let staged = world.staging().start(blob.hash, blob.size()).unwrap();
    assert!(copy_chunks(&world, &blob, &staged, ChunkHash::of).iter().all(|ok| *ok));
    assert!(staged.is_complete());
    staged.finish().unwrap();
    let tree = world.catalog.read().unwrap().outboard(&blob.hash).unwrap();
    assert_eq!(tree, blob.stored());
}

#[test]
fn a_source_that_changed_is_not_copied() {
    let world = World::new();
    let blob = peer(200_000);
    let staged = world.staging().start(blob.hash, blob.size()).unwrap();
    let done = copy_chunks(&world, &blob, &staged, |_| ChunkHash([0; 32]));
    assert!(done.iter().all(|ok| !ok));
    assert_eq!(staged.have_bytes(), 0);
    let base = File::open(world.dir.path().join("home/base")).unwrap();
    let past = staged.copy_from(&base, 199_999, 0, 2, &ChunkHash::of(b"xx")).unwrap();
    assert!(!past, "a source that is shorter now");
}

#[test]
fn a_lying_chunk_list_costs_bytes_and_never_truth() {
    for restart in [false, true] {
        let mut world = World::new();
        let (blob, wrong) = (peer(1_000_000), peer(1_000_000 - 7));
        let mut staged = world.staging().start(blob.hash, blob.size()).unwrap();
        blob.send(&staged, 0..20 * GROUP);
        // The list says these chunks belong into the blob; they do not. Some overwrite verified groups.
        std::fs::write(world.dir.path().join("home/base"), &wrong.data).unwrap();
        let base = File::open(world.dir.path().join("home/base")).unwrap();
        for to in (10 * GROUP + 100..900_000).step_by(50_000) {
            let lie = &wrong.data[7..50_007];
            assert!(staged.copy_from(&base, 7, to, 50_000, &ChunkHash::of(lie)).unwrap());
        }
        if restart {
            staged.checkpoint().unwrap();
            drop(staged);
            world = world.restarted();
            staged = world.staging().start(blob.hash, blob.size()).unwrap();
        }
        for range in staged.missing(0..u64::MAX) {
            blob.send(&staged, range);
        }
        match staged.finish() {
            Err(StagingError::WrongCopies { dropped, .. }) => assert!(dropped > 700_000, "{dropped}"),
            other => panic!("{other:?}"),
        }
        assert!(!world.catalog.read().unwrap().has_blob(&world.space, &blob.hash).unwrap());
        let left = staged.missing(0..u64::MAX);
        assert_eq!(left[0].start, 10 * GROUP, "what no copy touched stays");
        for range in left {
            blob.send(&staged, range);
        }
        staged.finish().unwrap();
    }
}

#[test]
fn incomplete_and_impossible_calls_are_named() {
    let world = World::new();
    let blob = peer(100_000);
    let staging = world.staging();
    let staged = staging.start(blob.hash, blob.size()).unwrap();
    blob.send(&staged, 0..GROUP);
    assert!(matches!(staged.finish(), Err(StagingError::Incomplete { missing, .. }) if missing == 100_000 - GROUP));
    assert!(matches!(staged.write_leaf(99_999, b"ab"), Err(StagingError::OutOfRange { .. })));
    assert!(matches!(staged.write_leaf(u64::MAX, b"ab"), Err(StagingError::OutOfRange { .. })));
    assert!(matches!(staged.put_parents(&[(6, [0; 64])]), Err(StagingError::OutOfRange { .. })));
    assert!(matches!(staged.put_parents(&[(u64::MAX, [0; 64])]), Err(StagingError::OutOfRange { .. })));
    assert!(matches!(staging.start(blob.hash, 5), Err(StagingError::OtherSize { claimed: 5, .. })));
}

#[test]
fn a_full_disk_is_said_before_anything_is_fetched() {
    let world = World::new();
    let hash = BlobHash([9; 32]);
    match world.staging().start(hash, 8 << 40) {
        Err(StagingError::DiskFull { needed, .. }) => assert_eq!(needed, 8 << 40),
        other => panic!("{:?}", other.err()),
    }
    assert_eq!(std::fs::read_dir(world.at(".sluice/staging")).unwrap().count(), 0);
}

#[test]
fn small_blobs_come_in_one_batch_and_wrong_ones_are_named() {
    let world = World::new();
    let blobs: Vec<Peer> = [0usize, 5, 16_384, 40_000, 140_000].into_iter().map(peer).collect();
    let lie = BlobHash([4; 32]);
    let batch: Vec<(BlobHash, Bytes)> = blobs.iter().map(|b| (b.hash, b.data.clone().into())).collect();
    let with_lie = [&batch[..], &[(lie, b"not that"[..].into())]].concat();
    assert!(matches!(world.staging().put_small(&with_lie), Err(StagingError::Damaged { hash }) if hash == lie));
    // A part that has a second name is not written into.
    let part = world.at(&format!(".sluice/staging/{}.part", blobs[1].hash));
    std::fs::write(&part, b"old").unwrap();
    std::fs::hard_link(&part, world.at(".sluice/published")).unwrap();
    world.staging().put_small(&batch).unwrap();
    assert_eq!(std::fs::read(world.at(".sluice/published")).unwrap(), b"old");
    let reader = world.catalog.read().unwrap();
    for blob in &blobs {
        assert!(open_blob(&world.lake, &reader, &world.space, &blob.hash).is_ok());
        assert_eq!(reader.outboard(&blob.hash).unwrap(), blob.stored());
    }
    assert!(matches!(open_blob(&world.lake, &reader, &world.space, &lie), Err(BlobError::Unknown(_))));
}

#[test]
fn what_nobody_wants_is_swept() {
    let world = World::new();
    let (kept, gone, busy) = (peer(50_000), peer(60_000), peer(70_000));
    let staging = world.staging();
    let filling = staging.start(busy.hash, busy.size()).unwrap();
    for blob in [&kept, &gone] {
        let staged = staging.start(blob.hash, blob.size()).unwrap();
        blob.send(&staged, 0..GROUP);
        staged.checkpoint().unwrap();
    }
    staging.put_small(&[(BlobHash::of(b"x"), b"x"[..].into())]).unwrap();
    assert_eq!(staging.sweep(&|hash| *hash == kept.hash).unwrap(), 2);
    let reader = world.catalog.read().unwrap();
    assert!(reader.staging(&world.space, &kept.hash).unwrap().is_some());
    assert!(reader.staging(&world.space, &gone.hash).unwrap().is_none());
    assert!(!reader.has_blob(&world.space, &BlobHash::of(b"x")).unwrap());
    busy.send(&filling, 0..busy.size());
    filling.finish().unwrap();
}

#[test]
fn a_damaged_place_is_passed_over_and_forgotten() {
    let world = World::new();
    let blob = peer(50_000);
    world.staging().put_small(&[(blob.hash, blob.data.clone().into())]).unwrap();
    let part = world.at(&format!(".sluice/staging/{}.part", blob.hash));
    let look = |world: &World| {
        let reader = world.catalog.read().unwrap();
        open_blob(&world.lake, &reader, &world.space, &blob.hash).map(|b| b.fit)
    };
    // A second name moves the change time: doubtful, and settled by hashing.
    std::fs::hard_link(&part, world.at(".sluice/second")).unwrap();
    assert_eq!(look(&world).unwrap(), Fit::Touched);
    assert!(settle(&world.lake, &world.catalog, &world.space, &blob.hash).unwrap());
    assert_eq!(look(&world).unwrap(), Fit::Same);
    File::options().write(true).open(&part).unwrap().write_all_at(b"flip", 3).unwrap();
    assert!(matches!(look(&world), Err(BlobError::Lost { .. })));
    assert!(!settle(&world.lake, &world.catalog, &world.space, &blob.hash).unwrap());
    assert!(matches!(look(&world), Err(BlobError::Unknown(_))));
}

#[test]
fn quarantine_moves_staged_bytes_out_of_use() {
    let world = World::new();
    let blob = peer(50_000);
    world.staging().put_small(&[(blob.hash, blob.data.clone().into())]).unwrap();
    let reader = world.catalog.read().unwrap();
    let place = open_blob(&world.lake, &reader, &world.space, &blob.hash).unwrap().place;
    drop(reader);
    quarantine(&world.lake, &world.catalog, &world.space, &blob.hash, &place).unwrap();
    assert!(!world.catalog.read().unwrap().has_blob(&world.space, &blob.hash).unwrap());
    assert!(world.at(&format!(".sluice/quarantine/{}", blob.hash)).exists());
    assert!(!world.at(&format!(".sluice/staging/{}.part", blob.hash)).exists());
}

#[test]
fn another_space_cannot_open_a_blob() {
    let world = World::new();
    let blob = peer(50_000);
    world.staging().put_small(&[(blob.hash, blob.data.clone().into())]).unwrap();
    let reader = world.catalog.read().unwrap();
    let other = sluice_protocol::ids::SpaceId([8; 32]);
    assert!(matches!(open_blob(&world.lake, &reader, &other, &blob.hash), Err(BlobError::Unknown(_))));
}
