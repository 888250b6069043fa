//! Values that the tests share: keys that are no secret, entries, sections, trees kept in memory.

use std::collections::BTreeMap;
use std::convert::Infallible;

use ed25519_dalek::{Signer, SigningKey};
use sluice_protocol::codec::{Bytes, CodecError, Document};
use sluice_protocol::grants::{Genesis, Grant, GrantSet};
use sluice_protocol::head::Head;
use sluice_protocol::ids::{BlobHash, SiteId, SnapshotId};
use sluice_protocol::manifest::{Entry, EntryKind, Section, SectionKind, SectionState};
use sluice_protocol::path::LakePath;
use sluice_protocol::signed::{Envelope, Signable, Signed};
use sluice_protocol::tree::{TreeBuilder, TreeError, TreeItem, TreeRef, read_tree};

/// A key that everybody knows.
pub fn key(n: u8) -> SigningKey {
    SigningKey::from_bytes(&[n; 32])
}

pub fn site(n: u8) -> SiteId {
    SiteId(key(n).verifying_key().to_bytes())
}

pub fn path(text: &str) -> LakePath {
    LakePath::parse(text).unwrap()
}

pub fn file(name: &str, size: u64) -> Entry {
    Entry {
        path: path(name),
        kind: EntryKind::File,
        size,
        hash: Some(BlobHash::of(name.as_bytes())),
        mode: Some(0o644),
        mtime_ns: None,
        target: None,
        unknown: Default::default(),
    }
}

pub fn section(folder: Option<&str>, shallow: bool, tree: TreeRef) -> Section {
    Section {
        kind: SectionKind::Files,
        path: folder.map(path),
        shallow,
        state: SectionState {
            table_version: None,
            params: None,
            history: None,
            opaque: false,
            unknown: Default::default(),
        },
        tree,
        unknown: Default::default(),
    }
}

pub fn genesis(owner: u8) -> Genesis {
    Genesis {
        owner: site(owner),
        name: "acme".into(),
        nonce: [9; 16],
        recovery: None,
        created_ms: 1_700_000_000_000,
        unknown: Default::default(),
    }
}

pub fn grant_set(owner: u8, seq: u64, grants: Vec<Grant>) -> GrantSet {
    GrantSet { genesis: genesis(owner), seq, grants, time_ms: 1_700_000_000_001, unknown: Default::default() }
}

/// An envelope around any value, signed with any key: what a careless or hostile site would send.
pub fn forge<T: Signable>(value: &T, key: &SigningKey) -> Vec<u8> {
    let payload = value.to_bytes();
    let signature = key.sign(&[T::DOMAIN.as_bytes(), b"\0", &payload].concat()).to_bytes();
    Envelope { payload: Bytes(payload), signature, unknown: Default::default() }.to_bytes()
}

/// The time at which the heads of these tests are looked at, in milliseconds.
pub const NOW: u64 = 1_700_000_000_000;

/// A head of writer 1 whose manifest is made up from `salt`.
pub fn head(place: (u64, u64), prev: Option<&Signed<Head>>, salt: u8) -> Signed<Head> {
    let (epoch, seq) = place;
    let head = Head {
        space: genesis(1).space_id(),
        writer: site(1),
        epoch,
        seq,
        manifest: SnapshotId([salt; 32]),
        annex: BlobHash([salt; 32]),
        grants: BlobHash([1; 32]),
        prev: prev.map(Signed::<Head>::id),
        time_ms: NOW,
        not_after_ms: NOW + 1000,
        tag: None,
        untag: None,
        unknown: Default::default(),
    };
    Signed::sign(&key(1), head)
}

/// A tree and its pages.
#[derive(Clone)]
pub struct Tree {
    pub root: TreeRef,
    pub pages: BTreeMap<BlobHash, Vec<u8>>,
}

pub fn build<T: TreeItem>(items: &[T]) -> Result<Tree, CodecError> {
    let mut pages = BTreeMap::new();
    let mut builder = TreeBuilder::new(|hash, bytes| {
        assert_eq!(hash, BlobHash::of(&bytes));
        pages.insert(hash, bytes);
    });
    for item in items {
        builder.push(item)?;
    }
    let root = builder.finish();
    Ok(Tree { root, pages })
}

impl Tree {
    /// All items, and how many pages were fetched.
    pub fn read<T: TreeItem>(&self) -> (Result<Vec<T>, TreeError<Infallible>>, usize) {
        let (mut items, mut fetched) = (Vec::new(), 0);
        let mut fetch = |hash: &BlobHash| {
            fetched += 1;
            Ok(self.pages[hash].clone())
        };
        let read = read_tree(&self.root, &mut fetch, &mut |item| {
            items.push(item);
            Ok(())
        });
        (read.map(|()| items), fetched)
    }
}
