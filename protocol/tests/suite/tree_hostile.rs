//! Pages that somebody made by hand: refused, and cheaply.

use std::convert::Infallible;

use sluice_protocol::codec::{Bytes, CodecError, Document, Enc, Wire};
use sluice_protocol::ids::BlobHash;
use sluice_protocol::limits::{ENTRIES_MAX, LAKE_BYTES_MAX, PAGE_ITEMS_MAX, TREE_HEIGHT_MAX};
use sluice_protocol::manifest::Entry;
use sluice_protocol::tree::{Child, Page, TreeError, TreeRef, missing_pages, pages_max};

use crate::samples::{Tree, build, file};

fn raw(entry: &Entry) -> Bytes {
    let mut e = Enc::new(Vec::new());
    entry.put(&mut e);
    Bytes(e.into_writer())
}

fn leaf(entries: &[Entry]) -> Page {
    Page { height: 0, items: entries.iter().map(raw).collect(), children: vec![], unknown: Default::default() }
}

fn child(last: &str, tree: &TreeRef) -> Child {
    Child { last: Bytes(last.into()), tree: tree.clone(), unknown: Default::default() }
}

/// Pages as they are handed in, whatever they claim.
#[derive(Default)]
struct Forge(std::collections::BTreeMap<BlobHash, Vec<u8>>);

impl Forge {
    fn put(&mut self, page: &Page, items: u64, weight: u64) -> TreeRef {
        let bytes = page.to_bytes();
        let hash = BlobHash::of(&bytes);
        self.0.insert(hash, bytes);
        TreeRef { page: hash, height: page.height, items, weight, unknown: Default::default() }
    }

    fn leaf(&mut self, entries: &[Entry]) -> TreeRef {
        self.put(&leaf(entries), entries.len() as u64, entries.iter().map(|e| e.size).sum())
    }

    /// An inner page that tells the truth about its references.
    fn inner(&mut self, children: Vec<Child>) -> TreeRef {
        let height = children[0].tree.height + 1;
        let items = children.iter().map(|c| c.tree.items).sum();
        let weight = children.iter().map(|c| c.tree.weight).sum();
        let page = Page { height, items: vec![], children, unknown: Default::default() };
        self.put(&page, items, weight)
    }

    /// Reads the tree; returns why not, after how many pages.
    fn refuse(&self, root: &TreeRef) -> (CodecError, usize) {
        let tree = Tree { root: root.clone(), pages: self.0.clone() };
        match tree.read::<Entry>() {
            (Err(TreeError::Codec(e)), fetched) => (e, fetched),
            (other, _) => panic!("not refused: {:?}", other.map(|items| items.len())),
        }
    }
}

#[test]
fn a_reference_must_tell_the_truth() {
    let mut forge = Forge::default();
    let entries = [file("a", 3), file("b", 4)];
    let good = forge.leaf(&entries);
    let lies = [
        TreeRef { items: 1, ..good.clone() },
        TreeRef { items: 3, ..good.clone() },
        TreeRef { weight: 6, ..good.clone() },
        TreeRef { height: 1, ..good.clone() },
    ];
    for lie in &lies {
        assert!(matches!(forge.refuse(lie).0, CodecError::Invalid(_)), "{lie:?}");
        let above = forge.inner(vec![child("b", lie)]);
        assert!(matches!(forge.refuse(&above).0, CodecError::Invalid(_)), "{lie:?}");
    }
    let above = forge.inner(vec![child("b", &good)]);
    for lie in [
        TreeRef { items: 3, ..above.clone() },
        TreeRef { weight: 8, ..above.clone() },
        TreeRef { height: 2, ..above.clone() },
        TreeRef { height: 0, ..above.clone() },
    ] {
        assert!(matches!(forge.refuse(&lie), (CodecError::Invalid(_), 1)), "{lie:?}");
    }
    let wrong_key = forge.inner(vec![child("c", &good)]);
    assert!(matches!(forge.refuse(&wrong_key).0, CodecError::Invalid(_)));
}

#[test]
fn roots_beyond_the_limits_are_not_fetched() {
    let forge = Forge::default();
    let page = BlobHash([0; 32]);
    let root = TreeRef { page, height: 0, items: 1, weight: 1, unknown: Default::default() };
    for root in [
        TreeRef { height: TREE_HEIGHT_MAX + 1, ..root.clone() },
        TreeRef { items: ENTRIES_MAX + 1, ..root.clone() },
        TreeRef { weight: LAKE_BYTES_MAX + 1, ..root.clone() },
    ] {
        assert!(matches!(forge.refuse(&root), (CodecError::Invalid(_), 0)), "{root:?}");
        assert!(missing_pages(&root, &mut |_| panic!("looked up")).is_err());
    }
}

#[test]
fn keys_ascend_within_and_across_pages() {
    let mut forge = Forge::default();
    for keys in [["b", "a"], ["a", "a"]] {
        let root = forge.leaf(&keys.map(|k| file(k, 1)));
        assert_eq!(forge.refuse(&root).0, CodecError::NotCanonical);
    }
    let (ab, b, c) =
        (forge.leaf(&[file("a", 1), file("b", 1)]), forge.leaf(&[file("b", 1)]), forge.leaf(&[file("c", 1)]));
    for children in [
        vec![child("b", &ab), child("b", &b)],
        vec![child("c", &c), child("b", &ab)],
        vec![child("c", &c), child("c", &c)],
    ] {
        let root = forge.inner(children);
        assert_eq!(forge.refuse(&root).0, CodecError::NotCanonical);
    }
}

#[test]
fn pages_that_contradict_themselves() {
    let mut forge = Forge::default();
    let good = forge.leaf(&[file("a", 1)]);
    let item = raw(&file("a", 1));
    let page = |height, items: Vec<Bytes>, children| Page { height, items, children, unknown: Default::default() };
    let bad = [
        page(0, vec![], vec![child("a", &good)]),
        page(1, vec![item.clone()], vec![child("a", &good)]),
        page(1, vec![item.clone()], vec![]),
        page(1, vec![], vec![]),
        page(0, vec![item; PAGE_ITEMS_MAX + 1], vec![]),
        page(1, vec![], vec![child("a", &good); PAGE_ITEMS_MAX + 1]),
    ];
    for page in bad {
        assert!(matches!(Page::from_bytes(&page.to_bytes()), Err(CodecError::Invalid(_))));
        let root = forge.put(&page, 1, 1);
        assert!(matches!(forge.refuse(&root), (CodecError::Invalid(_), 1)));
    }
    // A child that claims nothing below it, and one of another height.
    let nothing = forge.leaf(&[]);
    for children in [vec![child("", &nothing), child("a", &good)], vec![child("a", &good), child("a", &nothing)]] {
        let root = forge.inner(children);
        assert!(matches!(forge.refuse(&root), (CodecError::Invalid(_), 1)));
    }
    let one_up = forge.inner(vec![child("a", &good)]);
    let c = forge.leaf(&[file("c", 1)]);
    let uneven = page(2, vec![], vec![child("a", &one_up), child("c", &c)]);
    let root = forge.put(&uneven, 2, 2);
    assert!(matches!(forge.refuse(&root), (CodecError::Invalid(_), 1)));
}

#[test]
fn items_must_be_canonical_and_sound() {
    let mut forge = Forge::default();
    let good = raw(&file("a", 1)).0;
    let mut trailing = good.clone();
    trailing.push(0);
    // the field 2 (size 1) written in two bytes
    let size = good.windows(2).position(|w| w == [0x02, 0x01]).unwrap() + 1;
    let mut long = good.clone();
    long.splice(size..=size, [0x18, 0x01]);
    for item in [trailing, long, good[..good.len() - 1].to_vec(), vec![]] {
        let page = Page { height: 0, items: vec![Bytes(item)], children: vec![], unknown: Default::default() };
        let root = forge.put(&page, 1, 1);
        assert!(matches!(forge.refuse(&root).0, CodecError::NotCanonical | CodecError::Malformed(_)));
    }
    let mut no_hash = file("a", 1);
    no_hash.hash = None;
    let root = forge.leaf(&[no_hash]);
    assert!(matches!(forge.refuse(&root).0, CodecError::Invalid(_)));
}

/// The same page two thousand times at each height: 2048^8 visits if one believes it.
#[test]
fn a_tree_that_repeats_itself_ends_at_once() {
    let mut forge = Forge::default();
    let mut tree = forge.leaf(&[file("a", 1)]);
    let mut repeats = 0;
    while tree.height < TREE_HEIGHT_MAX {
        let times = (PAGE_ITEMS_MAX as u64).min(ENTRIES_MAX / tree.items);
        repeats += times - 1;
        tree = forge.inner(vec![child("a", &tree); times as usize]);
    }
    assert!(repeats > 3000 && tree.items > ENTRIES_MAX / 2);
    let (error, fetched) = forge.refuse(&tree);
    assert_eq!(error, CodecError::NotCanonical);
    assert!(fetched <= usize::from(TREE_HEIGHT_MAX) + 2, "{fetched}");
    let mut looked_up = 0;
    let missing = missing_pages(&tree, &mut |h| {
        looked_up += 1;
        forge.0.get(h).cloned()
    });
    assert_eq!((missing, looked_up), (Ok(vec![]), usize::from(TREE_HEIGHT_MAX) + 1));
}

/// One item a page, and a tower of pages above each.
#[test]
fn a_tree_of_too_many_pages_is_left() {
    let mut forge = Forge::default();
    let mut children = Vec::new();
    for i in 0..200 {
        let name = format!("{i:04}");
        let mut tree = forge.leaf(&[file(&name, 1)]);
        while tree.height < 7 {
            tree = forge.inner(vec![child(&name, &tree)]);
        }
        children.push(child(&name, &tree));
    }
    let root = forge.inner(children);
    let (error, fetched) = forge.refuse(&root);
    assert!(matches!(error, CodecError::TooLarge { what: "the number of pages", .. }));
    assert_eq!(fetched as u64, pages_max(200));
    let mut looked_up = 0;
    let missing = missing_pages(&root, &mut |h| {
        looked_up += 1;
        forge.0.get(h).cloned()
    });
    assert!(matches!(missing, Err(CodecError::TooLarge { .. })));
    assert_eq!(looked_up, pages_max(200));
}

/// A peer that hands out ever new pages is left after a bounded number of them.
#[test]
fn missing_pages_cannot_go_on_for_ever() {
    let mut counter = 0u64;
    let mut invent = |_: &BlobHash| {
        let mut fresh = |items| {
            counter += 1;
            let page = BlobHash(*blake3::hash(&counter.to_le_bytes()).as_bytes());
            TreeRef { page, height: 7, items, weight: 0, unknown: Default::default() }
        };
        let children = (0..1000).map(|i| child(&format!("{i:04}"), &fresh(1))).collect();
        Some(Page { height: 8, items: vec![], children, unknown: Default::default() }.to_bytes())
    };
    let root = TreeRef { page: BlobHash([1; 32]), height: 8, items: 1000, weight: 0, unknown: Default::default() };
    assert!(missing_pages(&root, &mut invent).is_err());
    assert!(counter < 10_000);
}

#[test]
fn a_caller_that_says_stop_is_heard() {
    let tree = build(&[file("a", 1), file("b", 1)]).unwrap();
    let mut seen = 0;
    let stopped = sluice_protocol::tree::read_tree::<Entry, Infallible>(
        &tree.root,
        &mut |h| Ok(tree.pages[h].clone()),
        &mut |_| {
            seen += 1;
            Err(CodecError::Invalid("enough".into()))
        },
    );
    assert!(stopped.is_err());
    assert_eq!(seen, 1);
}
