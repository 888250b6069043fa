//! The plan against a model: files in memory, the plan carried out on them, the result compared.

use std::collections::HashMap;

use proptest::prelude::*;
use sluice_protocol::chunks::{Chunk, ChunkList, Cut};
use sluice_protocol::ids::{BlobHash, ChunkHash};
use sluice_protocol::limits::{FETCH_GAP_BYTES, GROUP_BYTES};
use sluice_protocol::plan::{BlobPlan, ChunkSource, Holdings, Plan, Rung, Wanted, coalesce, plan_blob};

/// A file that was cut into chunks of known lengths.
#[derive(Debug, Clone)]
struct Cutting {
    bytes: Vec<u8>,
    list: ChunkList,
}

/// A file made of pieces: piece `n` has its own length and bytes.
fn cutting(pieces: &[u8]) -> Cutting {
    let (mut bytes, mut chunks) = (Vec::new(), Vec::new());
    for n in pieces {
        let len = 16_384 + usize::from(*n) * 977 % 50_000;
        let mut piece = vec![0; len];
        blake3::Hasher::new().update(&[*n]).finalize_xof().fill(&mut piece);
        chunks.push(Chunk { len: len as u32, hash: ChunkHash::of(&piece) });
        bytes.extend(piece);
    }
    let list = ChunkList { cut: Cut::FastCdc, size: bytes.len() as u64, chunks };
    Cutting { bytes, list }
}

/// What the model has: whole files, and where each chunk lies in them.
#[derive(Default)]
struct Here {
    blobs: HashMap<BlobHash, Vec<u8>>,
    chunks: HashMap<ChunkHash, (u32, ChunkSource)>,
}

impl Here {
    fn add(&mut self, file: &Cutting) {
        let blob = BlobHash::of(&file.bytes);
        for (offset, chunk) in file.list.extents() {
            self.chunks.insert(chunk.hash, (chunk.len, ChunkSource { blob, offset }));
        }
        self.blobs.insert(blob, file.bytes.clone());
    }
}

impl Holdings for Here {
    fn has_blob(&self, hash: &BlobHash) -> bool {
        self.blobs.contains_key(hash)
    }
    fn chunk(&self, hash: &ChunkHash, len: u32) -> Option<ChunkSource> {
        self.chunks.get(hash).filter(|(l, _)| *l == len).map(|(_, source)| *source)
    }
}

fn wanted(bytes: &[u8], section: &str) -> Wanted {
    Wanted { hash: BlobHash::of(bytes), size: bytes.len() as u64, section: section.into() }
}

/// Carries the plan out; whoever leaves a byte alone finds 0xEE there.
fn carry_out(plan: &BlobPlan, here: &Here, source: &[u8]) -> Vec<u8> {
    if plan.rung == Rung::Link {
        return here.blobs[&plan.wanted.hash].clone();
    }
    let mut out = vec![0xEE; plan.wanted.size as usize];
    for copy in &plan.copies {
        let from = copy.from.offset as usize;
        let piece = &here.blobs[&copy.from.blob][from..from + copy.len as usize];
        assert_eq!(ChunkHash::of(piece), copy.hash);
        out[copy.to as usize..copy.to as usize + copy.len as usize].copy_from_slice(piece);
    }
    for r in &plan.fetch {
        let r = r.start as usize..r.end as usize;
        out[r.clone()].copy_from_slice(&source[r]);
    }
    out
}

/// What every plan of a blob keeps to.
fn check_shape(plan: &BlobPlan) {
    let size = plan.wanted.size;
    for r in &plan.fetch {
        assert!(r.start < r.end && r.end <= size);
        assert!(r.start % GROUP_BYTES == 0 && (r.end % GROUP_BYTES == 0 || r.end == size), "{r:?} of {size}");
    }
    let gaps = plan.fetch.windows(2).map(|w| w[1].start - w[0].end.min(w[1].start));
    assert!(gaps.into_iter().all(|gap| gap >= FETCH_GAP_BYTES), "{:?}", plan.fetch);
    assert!(plan.copies.windows(2).all(|w| w[0].to + u64::from(w[0].len) <= w[1].to));
    let mut at = 0;
    let mut pieces: Vec<(u64, u64)> = plan.fetch.iter().map(|r| (r.start, r.end)).collect();
    pieces.extend(plan.copies.iter().map(|c| (c.to, c.to + u64::from(c.len))));
    pieces.sort();
    if plan.rung != Rung::Link {
        for (start, end) in pieces {
            assert!(start <= at, "nothing brings {at}..{start}");
            at = at.max(end);
        }
        assert_eq!(at, size);
    }
    for copy in &plan.copies {
        let end = copy.to + u64::from(copy.len);
        assert!(!plan.fetch.iter().any(|f| f.start <= copy.to && end <= f.end), "copied and fetched");
    }
    match plan.rung {
        Rung::Link => assert!(plan.copies.is_empty() && plan.fetch.is_empty()),
        Rung::Chunks => assert!(!plan.copies.is_empty()),
        Rung::Fetch => assert!(plan.copies.is_empty() && plan.fetch_bytes() == size),
        Rung::Same => panic!("no blob is planned as the same section"),
    }
    assert_eq!(plan.fetch_bytes() + plan.reused_bytes(), size);
}

fn pieces(n: impl Into<prop::collection::SizeRange>) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(0..24u8, n)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn the_plan_makes_the_file(bases in prop::collection::vec(pieces(0..40), 0..3), target in pieces(0..60), with_list in any::<bool>()) {
        let mut here = Here::default();
        let known: Vec<u8> = bases.concat();
        for base in &bases {
            here.add(&cutting(base));
        }
        let target_file = cutting(&target);
        let plan = plan_blob(wanted(&target_file.bytes, "s"), with_list.then_some(&target_file.list), &here);
        check_shape(&plan);
        prop_assert!(carry_out(&plan, &here, &target_file.bytes) == target_file.bytes);
        if bases.contains(&target) {
            prop_assert_eq!(plan.rung, Rung::Link);
        } else if !with_list || !target.iter().any(|p| known.contains(p)) {
            prop_assert_eq!(plan.rung, Rung::Fetch);
        } else if target.iter().all(|p| known.contains(p)) {
            prop_assert_eq!((plan.rung, plan.fetch_bytes()), (Rung::Chunks, 0));
        }
    }

    #[test]
    fn a_long_shared_run_is_not_fetched(before in pieces(0..10), shared in pieces(40..60), after in pieces(1..10), new in 100..200u8) {
        let base = cutting(&[&before[..], &shared].concat());
        let target = cutting(&[&[new][..], &shared, &[new], &after].concat());
        let mut here = Here::default();
        here.add(&base);
        let plan = plan_blob(wanted(&target.bytes, "s"), Some(&target.list), &here);
        check_shape(&plan);
        prop_assert_eq!(plan.rung, Rung::Chunks);
        let run: u64 = cutting(&shared).list.size;
        prop_assert!(plan.reused_bytes() >= run - 2 * GROUP_BYTES, "{} of {run}", plan.reused_bytes());
        prop_assert!(carry_out(&plan, &here, &target.bytes) == target.bytes);
    }

    #[test]
    fn ranges_are_rounded_and_joined(raw in prop::collection::vec((0..5_000_000u64, 1..100_000u64), 0..40), size in 1..5_100_000u64) {
        let mut at = 0;
        let mut ranges = Vec::new();
        let mut raw = raw;
        raw.sort();
        for (start, len) in raw {
            let start = start.max(at);
            let end = (start + len).min(size);
            if start < end {
                ranges.push(start..end);
                at = end;
            }
        }
        let joined = coalesce(ranges.iter().cloned(), size);
        prop_assert!(joined.iter().all(|r| r.start < r.end && r.start % GROUP_BYTES == 0 && r.end <= size));
        prop_assert!(joined.iter().all(|r| r.end % GROUP_BYTES == 0 || r.end == size));
        prop_assert!(joined.windows(2).all(|w| w[0].end + FETCH_GAP_BYTES <= w[1].start));
        for r in &ranges {
            prop_assert!(joined.iter().any(|j| j.start <= r.start && r.end <= j.end));
        }
        // Nothing is fetched that lies farther from a wanted byte than a gap and a group.
        for j in &joined {
            let inside: Vec<_> = ranges.iter().filter(|r| j.start <= r.start && r.end <= j.end).collect();
            prop_assert!(inside[0].start - j.start < GROUP_BYTES && j.end - inside[inside.len() - 1].end < GROUP_BYTES);
            for pair in inside.windows(2) {
                prop_assert!(pair[1].start - pair[0].end < FETCH_GAP_BYTES + 2 * GROUP_BYTES);
            }
        }
    }
}

#[test]
fn an_empty_blob_needs_nothing() {
    let plan = plan_blob(wanted(b"", "s"), None, &Here::default());
    check_shape(&plan);
    assert_eq!((plan.rung, plan.fetch.len(), plan.fetch_bytes()), (Rung::Fetch, 0, 0));
}

#[test]
fn what_rounding_fetches_anyway_is_not_copied() {
    let (head, tail) = (vec![1; 60 * 1024], vec![2; 4 * 1024]);
    let bytes = [&head[..], &tail].concat();
    let chunk = |piece: &[u8]| Chunk { len: piece.len() as u32, hash: ChunkHash::of(piece) };
    let cut = |pieces: &[&[u8]]| Cutting {
        bytes: pieces.concat(),
        list: ChunkList {
            cut: Cut::FastCdc,
            size: pieces.concat().len() as u64,
            chunks: pieces.iter().map(|p| chunk(p)).collect(),
        },
    };
    let mut here = Here::default();
    here.add(&cut(&[&tail]));
    let plan = plan_blob(wanted(&bytes, "s"), Some(&cut(&[&head, &tail]).list), &here);
    check_shape(&plan);
    assert_eq!((plan.rung, plan.copies.len()), (Rung::Fetch, 0));
}

#[test]
fn a_list_of_another_size_is_not_believed() {
    let file = cutting(&[1, 2, 3]);
    let mut here = Here::default();
    here.add(&cutting(&[1, 2, 4]));
    let mut other = file.list.clone();
    other.chunks.pop();
    other.size = other.chunks.iter().map(|c| u64::from(c.len)).sum();
    let plan = plan_blob(wanted(&file.bytes, "s"), Some(&other), &here);
    check_shape(&plan);
    assert_eq!(plan.rung, Rung::Fetch);
}

#[test]
fn a_list_that_lies_costs_bytes_and_shows_at_the_end() {
    let file = cutting(&[1, 2, 3]);
    let mut here = Here::default();
    here.add(&cutting(&[7, 8]));
    let mut lie = file.list.clone();
    let seven = cutting(&[7]).list.chunks[0];
    lie.chunks[0].hash = seven.hash;
    lie.chunks[1].len = lie.chunks[1].len + lie.chunks[0].len - seven.len;
    lie.chunks[0].len = seven.len;
    let plan = plan_blob(wanted(&file.bytes, "s"), Some(&lie), &here);
    check_shape(&plan);
    let made = carry_out(&plan, &here, &file.bytes);
    assert_ne!(BlobHash::of(&made), plan.wanted.hash);
}

/// A hundred thousand chunks, every second one here: linear work, or this test would not end.
#[test]
fn a_plan_of_many_ranges_is_quick() {
    struct EverySecond;
    impl Holdings for EverySecond {
        fn has_blob(&self, _: &BlobHash) -> bool {
            false
        }
        fn chunk(&self, hash: &ChunkHash, _: u32) -> Option<ChunkSource> {
            (hash.0[0] == 0).then_some(ChunkSource { blob: BlobHash([0; 32]), offset: 0 })
        }
    }
    let chunks: Vec<Chunk> =
        (0..400_000u32).map(|i| Chunk { len: 262_144, hash: ChunkHash([(i / 2 % 2) as u8; 32]) }).collect();
    let size = chunks.len() as u64 * 262_144;
    let list = ChunkList { cut: Cut::FastCdc, size, chunks };
    let plan = plan_blob(Wanted { hash: BlobHash([1; 32]), size, section: "s".into() }, Some(&list), &EverySecond);
    assert_eq!((plan.fetch.len(), plan.copies.len()), (100_000, 200_000));
    assert_eq!(plan.fetch_bytes(), size / 2);
}

#[test]
fn totals_add_up_by_section_and_rung() {
    let mut here = Here::default();
    let base = cutting(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
    here.add(&base);
    let edited = cutting(&[30, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
    let fresh = cutting(&[40]);
    let mut plan = Plan::default();
    plan.same_section(&"old".into(), 10, 1000);
    plan.add(plan_blob(wanted(&base.bytes, "a"), None, &here));
    plan.add(plan_blob(wanted(&edited.bytes, "a"), Some(&edited.list), &here));
    plan.add(plan_blob(wanted(&fresh.bytes, "b"), Some(&fresh.list), &here));
    let total = |section: &str, rung| plan.totals[&(section.into(), rung)].clone();
    assert_eq!((total("old", Rung::Same).files, total("old", Rung::Same).bytes), (10, 1000));
    assert_eq!((total("a", Rung::Link).bytes, total("a", Rung::Link).fetch_bytes), (base.list.size, 0));
    let chunks = total("a", Rung::Chunks);
    assert!(chunks.files == 1 && chunks.fetch_bytes > 0 && chunks.fetch_bytes < chunks.bytes / 4);
    assert_eq!(total("b", Rung::Fetch).fetch_bytes, fresh.list.size);
    assert_eq!(plan.blobs.len(), 2, "a linked blob needs no transfer");
    assert_eq!(plan.fetch_bytes(), chunks.fetch_bytes + fresh.list.size);
    let all: u64 = plan.totals.values().map(|t| t.bytes).sum();
    assert_eq!(plan.fetch_bytes() + plan.reused_bytes(), all);
}

#[test]
fn rungs_are_ordered_from_cheap_to_dear() {
    let rungs = [Rung::Same, Rung::Link, Rung::Chunks, Rung::Fetch];
    assert!(rungs.is_sorted());
    assert_eq!(rungs.map(Rung::number), [0, 1, 2, 6]);
    assert_eq!(rungs.map(Rung::as_str), ["same", "link", "chunks", "fetch"]);
}
