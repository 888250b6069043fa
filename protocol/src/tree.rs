//! A sorted list cut into pages, with a tree of pages above it.
//!
//! Page boundaries depend only on the keys: a page ends after an item whose key hashes to a value
//! with enough trailing zero bits. So two versions of a list of a million entries that differ in one
//! item differ in one leaf and the pages above it, and nothing else has to move.
//!
//! Invariant: keys are strictly ascending across the whole tree, and every reference says how many
//! items and how much weight lie below it; reading checks both before anything is believed.

use std::collections::BTreeSet;

use crate::codec::{CodecError, Dec, Document, Enc, Wire};
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
        if self.height > limits::TREE_HEIGHT_MAX || self.items > limits::ENTRIES_MAX {
            return Err(CodecError::Invalid(
                "a page tree is higher or longer than allowed".into(),
            ));
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
                if d.position() != raw.0.len() {
                    return Err(CodecError::NotCanonical);
                }
                item.check_item()?;
                Ok(item)
            })
            .collect()
    }

    /// The pages directly below.
    pub fn child_pages(&self) -> impl Iterator<Item = &TreeRef> {
        self.children.iter().map(|c| &c.tree)
    }
}

/// Whether a page of the given height ends after this key.
fn ends_page(key: &[u8], height: u8) -> bool {
    let hash = blake3::derive_key("sluice v1 page boundary", key);
    let value = u64::from_le_bytes(hash[..8].try_into().expect("32 bytes hold 8"));
    value.trailing_zeros() >= BOUNDARY_BITS * (u32::from(height) + 1)
}

struct Level {
    children: Vec<Child>,
}

/// Builds a tree from items in ascending order; pages leave through `sink` as they are finished.
pub struct TreeBuilder<S: FnMut(BlobHash, Vec<u8>)> {
    sink: S,
    leaf: Vec<crate::codec::Bytes>,
    leaf_bytes: usize,
    leaf_weight: u64,
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
            last_key: None,
            levels: Vec::new(),
        }
    }

    /// Adds the next item; its key must be greater than all before.
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
        let page = Page {
            height: 0,
            items,
            children: vec![],
            unknown: Default::default(),
        };
        let tree = self.emit(&page, count, weight);
        self.add_child(0, tree);
    }

    fn emit(&mut self, page: &Page, items: u64, weight: u64) -> TreeRef {
        let bytes = page.to_bytes();
        let hash = BlobHash::of(&bytes);
        (self.sink)(hash, bytes);
        TreeRef {
            page: hash,
            height: page.height,
            items,
            weight,
            unknown: Default::default(),
        }
    }

    fn add_child(&mut self, level: usize, tree: TreeRef) {
        if self.levels.len() <= level {
            self.levels.push(Level { children: vec![] });
        }
        let last = self.last_key.clone().unwrap_or_default();
        let height = level as u8 + 1;
        let ends = ends_page(&last, height);
        let children = &mut self.levels[level].children;
        children.push(Child {
            last: crate::codec::Bytes(last),
            tree,
            unknown: Default::default(),
        });
        if ends || children.len() >= limits::PAGE_ITEMS_MAX {
            self.end_level(level);
        }
    }

    fn end_level(&mut self, level: usize) {
        let children = std::mem::take(&mut self.levels[level].children);
        if children.is_empty() {
            return;
        }
        let items = children.iter().map(|c| c.tree.items).sum();
        let weight = children
            .iter()
            .fold(0u64, |w, c| w.saturating_add(c.tree.weight));
        let page = Page {
            height: level as u8 + 1,
            items: vec![],
            children,
            unknown: Default::default(),
        };
        let tree = self.emit(&page, items, weight);
        self.add_child(level + 1, tree);
    }

    /// Ends all open pages and returns the root; an empty list has an empty leaf.
    pub fn finish(mut self) -> TreeRef {
        if self.last_key.is_none() {
            let page = Page {
                height: 0,
                items: vec![],
                children: vec![],
                unknown: Default::default(),
            };
            return self.emit(&page, 0, 0);
        }
        self.end_leaf();
        let mut level = 0;
        loop {
            let alone = self.levels[level].children.len() <= 1
                && self.levels[level + 1..].iter().all(|l| l.children.is_empty());
            if alone && let Some(child) = self.levels[level].children.pop() {
                return child.tree;
            }
            self.end_level(level);
            level += 1;
        }
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

/// Reads all items of a tree in order. `fetch` returns the bytes of a page, already checked against its hash.
pub fn read_tree<T: TreeItem, E: std::error::Error>(
    root: &TreeRef,
    fetch: &mut dyn FnMut(&BlobHash) -> Result<Vec<u8>, E>,
    each: &mut dyn FnMut(T) -> Result<(), CodecError>,
) -> Result<(), TreeError<E>> {
    let mut last = None;
    walk(root, fetch, &mut last, each)
}

fn walk<T: TreeItem, E: std::error::Error>(
    tree: &TreeRef,
    fetch: &mut dyn FnMut(&BlobHash) -> Result<Vec<u8>, E>,
    last: &mut Option<Vec<u8>>,
    each: &mut dyn FnMut(T) -> Result<(), CodecError>,
) -> Result<(), TreeError<E>> {
    tree.check()?;
    let bytes = fetch(&tree.page).map_err(|source| TreeError::Fetch {
        page: tree.page,
        source,
    })?;
    let page = Page::from_bytes(&bytes)?;
    let wrong = || CodecError::Invalid(format!("page {} contradicts its reference", tree.page));
    if page.height != tree.height {
        return Err(wrong().into());
    }
    if page.height == 0 {
        let items = page.decode_items::<T>()?;
        let weight = items.iter().fold(0u64, |w, i| w.saturating_add(i.weight()));
        if items.len() as u64 != tree.items || weight != tree.weight {
            return Err(wrong().into());
        }
        for item in items {
            if last.as_deref().is_some_and(|l| item.key() <= l) {
                return Err(CodecError::NotCanonical.into());
            }
            *last = Some(item.key().to_vec());
            each(item)?;
        }
        return Ok(());
    }
    // Totals are compared before descending, so a claim of few items cannot hide many.
    let items = page.child_pages().fold(0u64, |n, c| n.saturating_add(c.items));
    let weight = page.child_pages().fold(0u64, |n, c| n.saturating_add(c.weight));
    if items != tree.items || weight != tree.weight {
        return Err(wrong().into());
    }
    for child in &page.children {
        if child.tree.height + 1 != page.height || child.tree.items == 0 {
            return Err(wrong().into());
        }
        walk(&child.tree, fetch, last, each)?;
        if last.as_deref() != Some(&child.last.0[..]) {
            return Err(wrong().into());
        }
    }
    Ok(())
}

/// The pages of a tree that `has` does not know, top down, as far as the pages at hand show them.
///
/// `fetch` returns the pages that are here; a page whose bytes are missing is reported and not entered.
pub fn missing_pages(
    root: &TreeRef,
    fetch: &mut dyn FnMut(&BlobHash) -> Option<Vec<u8>>,
) -> Result<Vec<BlobHash>, CodecError> {
    let mut missing = Vec::new();
    let mut seen = BTreeSet::new();
    let mut todo = vec![root.clone()];
    while let Some(tree) = todo.pop() {
        tree.check()?;
        if !seen.insert(tree.page) {
            continue;
        }
        match fetch(&tree.page) {
            None => missing.push(tree.page),
            Some(_) if tree.height == 0 => {}
            Some(bytes) => {
                let page = Page::from_bytes(&bytes)?;
                if page.height != tree.height {
                    return Err(CodecError::Invalid(format!(
                        "page {} contradicts its reference",
                        tree.page
                    )));
                }
                todo.extend(page.child_pages().filter(|c| c.height < page.height).cloned());
            }
        }
    }
    Ok(missing)
}
