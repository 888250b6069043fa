//! A sorted list cut into pages, with a tree of pages above it.
//!
//! Page boundaries depend only on the keys: a page ends after an item whose key hashes to a value
//! with enough trailing zero bits. So two versions of a list of a million entries that differ in one
//! item differ in one leaf and the pages above it, and nothing else has to move.
//!
//! Invariant: keys are strictly ascending across the whole tree, and every reference says how many
//! items and how much weight lie below it; reading checks both before anything is believed. A tree
//! of n items is read in at most [`pages_max`]\(n) pages, so a hostile one costs no more than its size.

use std::collections::BTreeSet;

use crate::codec::{CodecError, Dec, Document, Enc, Wire, at_most};
use crate::ids::BlobHash;
use crate::limits;
use crate::record;

/// Trailing zero bits that end a leaf: about 256 items a page. Each level above asks for as many more.
const BOUNDARY_BITS: u32 = 8;

/// Something that lies in a page.
pub trait TreeItem: Wire + Clone {
    /// What the list is sorted by.
    fn key(&self) -> &[u8];
    /// What references add up, in bytes.
    fn weight(&self) -> u64;
    /// Checks what the types cannot say.
    fn check_item(&self) -> Result<(), CodecError>;
}

record! {
    /// A page, what lies below it, and how far.
    pub struct TreeRef {
        /// The page, as a blob.
        0 => page: BlobHash,
        /// 0 for a leaf.
        1 => height: u8,
        /// Items in all leaves below.
        2 => items: u64,
        /// The sum of their weights, in bytes.
        3 => weight: u64,
    }
}

impl TreeRef {
    /// Fails when the height or a total cannot be.
    pub fn check(&self) -> Result<(), CodecError> {
        if self.height > limits::TREE_HEIGHT_MAX
            || self.items > limits::ENTRIES_MAX
            || self.weight > limits::LAKE_BYTES_MAX
        {
            return Err(CodecError::Invalid("a page tree is higher, longer or heavier than allowed".into()));
        }
        Ok(())
    }
}

record! {
    /// A child of an inner page.
    pub struct Child {
        /// The last key below.
        0 => last: crate::codec::Bytes,
        1 => tree: TreeRef,
    }
}

record! {
    /// A page: either items (height 0) or children.
    pub struct Page {
        0 => height: u8,
        /// The items, encoded one after another.
        1 => items: Vec<crate::codec::Bytes>,
        2 => children: Vec<Child>,
    }
}

impl Document for Page {
    const KIND: &'static str = "sluice/page";
    const VERSION: u64 = 1;
    const BYTES_MAX: usize = limits::PAGE_BYTES_MAX;

    fn check(&self) -> Result<(), CodecError> {
        let n = self.items.len() + self.children.len();
        let ok = if self.height == 0 {
            self.children.is_empty()
        } else {
            self.items.is_empty() && !self.children.is_empty()
        };
        if !ok || n > limits::PAGE_ITEMS_MAX {
            return Err(CodecError::Invalid("a page contradicts itself".into()));
        }
        Ok(())
    }
}

impl Page {
    /// The items of a leaf.
    pub fn decode_items<T: TreeItem>(&self) -> Result<Vec<T>, CodecError> {
        self.items
            .iter()
            .map(|raw| {
                let mut d = Dec::new(&raw.0);
                let item = T::get(&mut d)?;
                // The page's own check sees items as plain bytes, so the canonical form is checked here.
                let mut again = Enc::new(Vec::with_capacity(raw.0.len()));
                item.put(&mut again);
                if d.position() != raw.0.len() || again.writer()[..] != raw.0[..] {
                    return Err(CodecError::NotCanonical);
                }
                item.check_item()?;
                Ok(item)
            })
            .collect()
    }

    /// The pages directly below.
    pub fn child_pages(&self) -> impl DoubleEndedIterator<Item = &TreeRef> {
        self.children.iter().map(|c| &c.tree)
    }
}

/// Whether a page of the given height ends after this key.
fn ends_page(key: &[u8], height: u8) -> bool {
    let hash = blake3::derive_key("sluice v1 page boundary", key);
    let value = u64::from_le_bytes(hash[..8].try_into().expect("32 bytes hold 8"));
    value.trailing_zeros() >= BOUNDARY_BITS * (u32::from(height) + 1)
}

/// The open page of one height above the leaves.
#[derive(Default)]
struct Level {
    children: Vec<Child>,
    /// The page is full or its last key ends it; it is written when something comes after it. So a
    /// page that is alone in the end stays the root, and no page with a single child lies above it.
    ended: bool,
}

/// Builds a tree from items in ascending order; pages leave through `sink` as they are finished.
pub struct TreeBuilder<S: FnMut(BlobHash, Vec<u8>)> {
    sink: S,
    leaf: Vec<crate::codec::Bytes>,
    leaf_bytes: usize,
    leaf_weight: u64,
    items: u64,
    weight: u64,
    last_key: Option<Vec<u8>>,
    levels: Vec<Level>,
}

impl<S: FnMut(BlobHash, Vec<u8>)> TreeBuilder<S> {
    /// A builder that hands finished pages to `sink(hash, bytes)`.
    pub fn new(sink: S) -> Self {
        Self {
            sink,
            leaf: Vec::new(),
            leaf_bytes: 0,
            leaf_weight: 0,
            items: 0,
            weight: 0,
            last_key: None,
            levels: Vec::new(),
        }
    }

    /// Adds the next item; its key must be greater than all before. What no reader would take is
    /// refused here: too many items, too much weight, an item that is larger than half a page.
    pub fn push<T: TreeItem>(&mut self, item: &T) -> Result<(), CodecError> {
        item.check_item()?;
        let key = item.key();
        if self.last_key.as_deref().is_some_and(|l| key <= l) {
            return Err(CodecError::Invalid(format!(
                "the key {:?} comes twice or out of order",
                String::from_utf8_lossy(key)
            )));
        }
        let mut e = Enc::new(Vec::new());
        item.put(&mut e);
        let raw = e.into_writer();
        let (items, weight) = (self.items + 1, self.weight.saturating_add(item.weight()));
        at_most("the number of entries", items, limits::ENTRIES_MAX)?;
        at_most("the number of bytes", weight, limits::LAKE_BYTES_MAX)?;
        at_most("the size of an entry", raw.len() as u64, limits::PAGE_BYTES_MAX as u64 / 2)?;
        (self.items, self.weight) = (items, weight);
        if self.leaf_bytes + raw.len() > limits::PAGE_BYTES_MAX / 2 {
            self.end_leaf();
        }
        self.leaf_bytes += raw.len() + 8;
        self.leaf_weight = self.leaf_weight.saturating_add(item.weight());
        self.leaf.push(crate::codec::Bytes(raw));
        self.last_key = Some(key.to_vec());
        if ends_page(key, 0) || self.leaf.len() >= limits::PAGE_ITEMS_MAX {
            self.end_leaf();
        }
        Ok(())
    }

    fn end_leaf(&mut self) {
        let items = std::mem::take(&mut self.leaf);
        if items.is_empty() {
            return;
        }
        let (count, weight) = (items.len() as u64, std::mem::take(&mut self.leaf_weight));
        self.leaf_bytes = 0;
        let page = Page { height: 0, items, children: vec![], unknown: Default::default() };
        let tree = self.emit(&page, count, weight);
        let last = self.last_key.clone().unwrap_or_default();
        self.add_child(0, last, tree);
    }

    fn emit(&mut self, page: &Page, items: u64, weight: u64) -> TreeRef {
        let bytes = page.to_bytes();
        let hash = BlobHash::of(&bytes);
        (self.sink)(hash, bytes);
        TreeRef { page: hash, height: page.height, items, weight, unknown: Default::default() }
    }

    fn add_child(&mut self, level: usize, last: Vec<u8>, tree: TreeRef) {
        if self.levels.len() <= level {
            self.levels.push(Level::default());
        }
        if self.levels[level].ended {
            self.end_level(level);
        }
        let ends = ends_page(&last, level as u8 + 1);
        let open = &mut self.levels[level];
        open.children.push(Child { last: crate::codec::Bytes(last), tree, unknown: Default::default() });
        open.ended = ends || open.children.len() >= limits::PAGE_ITEMS_MAX;
    }

    fn end_level(&mut self, level: usize) {
        let Level { children, .. } = std::mem::take(&mut self.levels[level]);
        let Some(last) = children.last().map(|c| c.last.0.clone()) else {
            return;
        };
        let items = children.iter().map(|c| c.tree.items).sum();
        let weight = children.iter().map(|c| c.tree.weight).sum();
        let page = Page { height: level as u8 + 1, items: vec![], children, unknown: Default::default() };
        let tree = self.emit(&page, items, weight);
        self.add_child(level + 1, last, tree);
    }

    /// Ends all open pages and returns the root: the lowest page that has everything below it. An
    /// empty list has an empty leaf.
    pub fn finish(mut self) -> TreeRef {
        self.end_leaf();
        let mut level = 0;
        // The highest level always has a child, since a level begins with one and passes it on only
        // to the level above. So the loop ends at the latest there.
        while level < self.levels.len() {
            let top = level + 1 == self.levels.len();
            if top && self.levels[level].children.len() == 1 {
                let child = self.levels[level].children.swap_remove(0);
                return child.tree;
            }
            self.end_level(level);
            level += 1;
        }
        let page = Page { height: 0, items: vec![], children: vec![], unknown: Default::default() };
        self.emit(&page, 0, 0)
    }
}

/// Why a tree could not be read.
#[derive(Debug, thiserror::Error)]
pub enum TreeError<E: std::error::Error + 'static> {
    #[error(transparent)]
    Codec(#[from] CodecError),
    #[error("page {page} is not at hand: {source}")]
    Fetch { page: BlobHash, source: E },
}

/// Most pages that a tree of so many items is read in.
///
/// Page boundaries come from hashes, so a tree that was built has a page for some 256 items. Whoever
/// grinds keys or hand-makes pages to have many more is stopped here.
pub fn pages_max(items: u64) -> u64 {
    limits::TREE_PAGES_SPARE + items / limits::TREE_ITEMS_PER_PAGE_MIN
}

fn contradicts(page: &BlobHash) -> CodecError {
    CodecError::Invalid(format!("page {page} contradicts its reference"))
}

/// Decodes the page of `tree` and compares what the reference claims with what the page claims, so
/// that a claim of few items cannot hide many.
fn open_page(tree: &TreeRef, bytes: &[u8]) -> Result<Page, CodecError> {
    let page = Page::from_bytes(bytes)?;
    let wrong = || contradicts(&tree.page);
    if page.height != tree.height {
        return Err(wrong());
    }
    if page.height == 0 {
        return if page.items.len() as u64 == tree.items { Ok(page) } else { Err(wrong()) };
    }
    let (mut items, mut weight) = (0u64, 0u64);
    for child in page.child_pages() {
        child.check()?;
        if child.height + 1 != page.height || child.items == 0 {
            return Err(wrong());
        }
        items = items.saturating_add(child.items);
        weight = weight.saturating_add(child.weight);
    }
    if items != tree.items || weight != tree.weight {
        return Err(wrong());
    }
    Ok(page)
}

/// Reads all items of a tree in order. `fetch` returns the bytes of a page, already checked against its hash.
pub fn read_tree<T: TreeItem, E: std::error::Error>(
    root: &TreeRef,
    fetch: &mut dyn FnMut(&BlobHash) -> Result<Vec<u8>, E>,
    each: &mut dyn FnMut(T) -> Result<(), CodecError>,
) -> Result<(), TreeError<E>> {
    root.check()?;
    Walk { fetch, each, last: None, pages: 0, pages_max: pages_max(root.items) }.enter(root)
}

struct Walk<'a, T, E> {
    fetch: &'a mut dyn FnMut(&BlobHash) -> Result<Vec<u8>, E>,
    each: &'a mut dyn FnMut(T) -> Result<(), CodecError>,
    last: Option<Vec<u8>>,
    pages: u64,
    pages_max: u64,
}

impl<T: TreeItem, E: std::error::Error> Walk<'_, T, E> {
    /// Goes as deep as the tree is high, which the root's check bounds.
    fn enter(&mut self, tree: &TreeRef) -> Result<(), TreeError<E>> {
        self.pages += 1;
        at_most("the number of pages", self.pages, self.pages_max)?;
        let bytes = (self.fetch)(&tree.page).map_err(|source| TreeError::Fetch { page: tree.page, source })?;
        let page = open_page(tree, &bytes)?;
        if page.height == 0 {
            return self.leaf(tree, &page);
        }
        for child in &page.children {
            self.enter(&child.tree)?;
            if self.last.as_deref() != Some(&child.last.0[..]) {
                return Err(contradicts(&tree.page).into());
            }
        }
        Ok(())
    }

    fn leaf(&mut self, tree: &TreeRef, page: &Page) -> Result<(), TreeError<E>> {
        let items = page.decode_items::<T>()?;
        if items.iter().fold(0u64, |w, i| w.saturating_add(i.weight())) != tree.weight {
            return Err(contradicts(&tree.page).into());
        }
        for item in items {
            if self.last.as_deref().is_some_and(|l| item.key() <= l) {
                return Err(CodecError::NotCanonical.into());
            }
            self.last = Some(item.key().to_vec());
            (self.each)(item)?;
        }
        Ok(())
    }
}

/// The pages of a tree that are not here, top down, as far as the pages at hand show them.
///
/// `fetch` returns the pages that are here; a page whose bytes are missing is reported and not entered.
/// Asked again and again while pages arrive, it ends after at most [`pages_max`] of them.
pub fn missing_pages(
    root: &TreeRef,
    fetch: &mut dyn FnMut(&BlobHash) -> Option<Vec<u8>>,
) -> Result<Vec<BlobHash>, CodecError> {
    root.check()?;
    let mut missing = Vec::new();
    let mut seen = BTreeSet::new();
    let mut todo = vec![root.clone()];
    while let Some(tree) = todo.pop() {
        if !seen.insert(tree.page) {
            continue;
        }
        at_most("the number of pages", seen.len() as u64, pages_max(root.items))?;
        match fetch(&tree.page) {
            None => missing.push(tree.page),
            Some(_) if tree.height == 0 => {}
            Some(bytes) => {
                let page = open_page(&tree, &bytes)?;
                todo.extend(page.child_pages().rev().cloned());
            }
        }
    }
    Ok(missing)
}
