//! Page trees: what is built is read back, and a small change stays small.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use sluice_protocol::codec::{CodecError, Document};
use sluice_protocol::ids::BlobHash;
use sluice_protocol::limits::{FILE_BYTES_MAX, LAKE_BYTES_MAX, LINK_TARGET_BYTES_MAX, PAGE_BYTES_MAX, PAGE_ITEMS_MAX};
use sluice_protocol::manifest::{Entry, EntryKind};
use sluice_protocol::tree::{Page, missing_pages, pages_max};

use crate::samples::{Tree, build, file};

/// How many heights end a page after this key: docs/format.md, "Page boundaries".
fn heights_ended(key: &str) -> u32 {
    let hash = blake3::derive_key("sluice v1 page boundary", key.as_bytes());
    u64::from_le_bytes(hash[..8].try_into().unwrap()).trailing_zeros() / 8
}

fn numbered(n: u32) -> Vec<Entry> {
    (0..n).map(|i| file(&format!("f/{i:07}"), u64::from(i))).collect()
}

/// Pages of `new` that are not in `old`.
fn new_pages(old: &Tree, new: &Tree) -> usize {
    new.pages.keys().filter(|h| !old.pages.contains_key(*h)).count()
}

/// The heights and lengths of all pages, as docs/format.md says they are cut: all of one height, then the next.
fn expected_shape(entries: &[Entry]) -> Vec<Vec<usize>> {
    let mut keys: Vec<&str> = entries.iter().map(|e| e.path.as_str()).collect();
    let mut shape = Vec::new();
    loop {
        let height = shape.len() as u32;
        let (mut pages, mut last_keys, mut len) = (Vec::new(), Vec::new(), 0);
        for (i, key) in keys.iter().enumerate() {
            len += 1;
            if heights_ended(key) > height || len == PAGE_ITEMS_MAX || i + 1 == keys.len() {
                pages.push(std::mem::take(&mut len));
                last_keys.push(*key);
            }
        }
        shape.push(pages);
        if last_keys.len() <= 1 {
            return shape;
        }
        keys = last_keys;
    }
}

fn shape(tree: &Tree) -> Vec<Vec<usize>> {
    let mut levels = vec![vec![]; usize::from(tree.root.height) + 1];
    let mut row = vec![tree.root.clone()];
    while !row.is_empty() {
        let mut below = Vec::new();
        for tree_ref in &row {
            let page = Page::from_bytes(&tree.pages[&tree_ref.page]).unwrap();
            levels[usize::from(page.height)].push(page.items.len() + page.children.len());
            below.extend(page.child_pages().cloned());
        }
        row = below;
    }
    levels
}

fn check_round_trip(entries: &[Entry]) {
    let tree = build(entries).unwrap();
    let (read, fetched) = tree.read::<Entry>();
    assert_eq!(read.unwrap(), entries);
    assert_eq!(fetched, tree.pages.len());
    assert!(fetched as u64 <= pages_max(entries.len() as u64));
    assert_eq!(tree.root.items, entries.len() as u64);
    assert_eq!(tree.root.weight, entries.iter().map(|e| e.size).sum::<u64>());
    if entries.is_empty() {
        assert_eq!(shape(&tree), [[0]]);
    } else {
        assert_eq!(shape(&tree), expected_shape(entries));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn what_is_built_is_read(names in prop::collection::btree_map("d[a-z]{1,3}/f[a-z0-9]{1,8}", 0..1_000_000u64, 0..5000)) {
        let entries: Vec<Entry> = names.iter().map(|(name, size)| file(name, *size)).collect();
        check_round_trip(&entries);
    }

    #[test]
    fn one_change_changes_few_pages(at in any::<prop::sample::Index>(), name in "f/[0-9]{7}x") {
        let entries = numbered(4000);
        let old = build(&entries).unwrap();
        let levels = usize::from(old.root.height) + 1;
        let at = at.index(entries.len());

        let mut changed = entries.clone();
        changed[at].size += 1;
        prop_assert_eq!(new_pages(&old, &build(&changed).unwrap()), levels);

        let mut removed = entries.clone();
        removed.remove(at);
        let new = build(&removed).unwrap();
        prop_assert!(new_pages(&old, &new) <= usize::from(new.root.height) + 1);

        let mut inserted: BTreeMap<_, _> = entries.iter().map(|e| (e.path.clone(), e.clone())).collect();
        let one = file(&name, 7);
        inserted.insert(one.path.clone(), one);
        let inserted: Vec<Entry> = inserted.into_values().collect();
        let new = build(&inserted).unwrap();
        prop_assert!(new_pages(&old, &new) <= 2 * (usize::from(new.root.height) + 1));
    }
}

#[test]
fn small_lists() {
    for n in [0, 1, 2, 3, 100, 2047, 2048, 2049] {
        check_round_trip(&numbered(n));
    }
}

#[test]
fn a_long_list_has_several_levels() {
    let entries = numbered(200_000);
    check_round_trip(&entries);
    let old = build(&entries).unwrap();
    assert!(old.root.height >= 2, "height {}", old.root.height);
    let mut changed = entries;
    changed[123_456].size += 1;
    assert_eq!(new_pages(&old, &build(&changed).unwrap()), usize::from(old.root.height) + 1);
}

#[test]
fn a_last_key_that_ends_pages_puts_no_empty_page_on_top() {
    // Lists whose last key ends a leaf, and one whose last key ends the page above it too.
    let ends = |heights: u32| (0..).map(|i| format!("g/{i}")).find(|k| heights_ended(k) == heights).unwrap();
    for last in [ends(1), ends(2)] {
        for before in 0..3 {
            let mut entries: Vec<Entry> = (0..before).map(|i| file(&format!("a{i}"), 1)).collect();
            entries.push(file(&last, 1));
            let tree = build(&entries).unwrap();
            assert_eq!((tree.root.height, tree.pages.len()), (0, 1), "{last}");
            entries.push(file("z", 1));
            check_round_trip(&entries);
        }
    }
}

#[test]
fn a_run_without_a_boundary_is_cut_by_count() {
    let keys = (0..).map(|i| format!("{i:07}")).filter(|k| heights_ended(k) == 0).take(5000);
    let entries: Vec<Entry> = keys.map(|k| file(&k, 1)).collect();
    check_round_trip(&entries);
    let tree = build(&entries).unwrap();
    assert_eq!(shape(&tree), vec![vec![2048, 2048, 904], vec![3]]);
}

#[test]
fn long_entries_are_cut_by_size() {
    let long = format!("{}/", "n".repeat(250)).repeat(15);
    let link = |key: String| Entry {
        kind: EntryKind::Link,
        size: 0,
        hash: None,
        target: Some("t".repeat(LINK_TARGET_BYTES_MAX)),
        ..file(&key, 0)
    };
    let keys = (0..).map(|i| format!("{long}{i:07}")).filter(|k| heights_ended(k) == 0).take(5000);
    let entries: Vec<Entry> = keys.map(link).collect();
    let tree = build(&entries).unwrap();
    let leaves: Vec<usize> = shape(&tree)[0].clone();
    assert!(leaves[0] < PAGE_ITEMS_MAX && leaves[0] == leaves[1], "{leaves:?}");
    assert!(tree.pages.values().all(|p| p.len() <= PAGE_BYTES_MAX / 2 + 100));
    assert_eq!(tree.read::<Entry>().0.unwrap(), entries);
}

#[test]
fn the_order_of_insertion_is_the_order_of_keys() {
    let out_of_order = build(&[file("b", 1), file("a", 1)]);
    assert!(matches!(out_of_order, Err(CodecError::Invalid(_))));
    let twice = build(&[file("a", 1), file("a", 2)]);
    assert!(matches!(twice, Err(CodecError::Invalid(_))));
    // Bytes decide: `-` comes before `/`, and a capital before a small letter.
    assert!(build(&[file("B", 1), file("a-b", 1), file("a/b", 1), file("ä", 1)]).is_ok());
    assert!(build(&[file("a/b", 1), file("a-b", 1)]).is_err());
}

#[test]
fn what_no_reader_would_take_is_not_built() {
    let mut huge = file("a", FILE_BYTES_MAX);
    assert!(build(std::slice::from_ref(&huge)).is_ok());
    huge.size += 1;
    assert!(matches!(build(&[huge]), Err(CodecError::Invalid(_))));
    let full = LAKE_BYTES_MAX / FILE_BYTES_MAX;
    let mut entries: Vec<Entry> = (0..full).map(|i| file(&format!("{i:07}"), FILE_BYTES_MAX)).collect();
    assert_eq!(build(&entries).unwrap().root.weight, LAKE_BYTES_MAX);
    entries.push(file("z", 1));
    assert!(matches!(build(&entries), Err(CodecError::TooLarge { .. })));
}

#[test]
fn missing_pages_are_asked_for_level_by_level() {
    let tree = build(&numbered(100_000)).unwrap();
    let mut here: BTreeMap<BlobHash, Vec<u8>> = BTreeMap::new();
    let mut rounds = 0;
    loop {
        let missing = missing_pages(&tree.root, &mut |h| here.get(h).cloned()).unwrap();
        if missing.is_empty() {
            break;
        }
        assert_eq!(missing.iter().collect::<BTreeSet<_>>().len(), missing.len());
        rounds += 1;
        here.extend(missing.iter().map(|h| (*h, tree.pages[h].clone())));
    }
    assert_eq!(rounds, usize::from(tree.root.height) + 1);
    assert_eq!(here, tree.pages);
}

#[test]
fn only_changed_pages_are_missing() {
    let mut entries = numbered(20_000);
    let old = build(&entries).unwrap();
    entries[777].size += 1;
    let new = build(&entries).unwrap();
    let mut here = old.pages.clone();
    let mut fetched = 0;
    while let Some(hash) = missing_pages(&new.root, &mut |h| here.get(h).cloned()).unwrap().pop() {
        here.insert(hash, new.pages[&hash].clone());
        fetched += 1;
    }
    assert_eq!(fetched, usize::from(new.root.height) + 1);
}
