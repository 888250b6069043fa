//! What must hold for any bytes that a peer, a file or a damaged disk hands to a decoder.
//!
//! Invariant: none of these functions panics unless the decoder broke its promise: bytes are refused,
//! or accepted and encoded again to the same bytes. `make fuzz` looks for bytes that break it; the
//! test `corpora` replays the ones that are kept.

use std::convert::Infallible;

use sluice_protocol::annex::{Annex, ChunkListRef};
use sluice_protocol::card::SiteCard;
use sluice_protocol::chunks::ChunkList;
use sluice_protocol::codec::{Dec, Document, Enc, Wire};
use sluice_protocol::grants::GrantSet;
use sluice_protocol::head::Head;
use sluice_protocol::ids::BlobHash;
use sluice_protocol::limits::PAIR_MESSAGE_BYTES_MAX;
use sluice_protocol::manifest::{Entry, Manifest};
use sluice_protocol::messages::{Message, SpaceNews};
use sluice_protocol::path::LakePath;
use sluice_protocol::signed::{Envelope, Signable, Signed};
use sluice_protocol::ticket::{Ticket, TicketBody};
use sluice_protocol::tree::{Page, TreeItem, TreeRef, missing_pages, read_tree};
use sluice_store::catalog::{
    BlobRecord, FileRecord, JournalRecord, LeaseRecord, LiveRecord, PeerRecord, SnapshotRecord, SpaceRecord,
    StagingRecord, TicketRecord,
};

/// A function that takes any bytes.
pub type Target = fn(&[u8]);

/// All of them, by the name of their corpus.
pub const TARGETS: [(&str, Target); 11] = [
    ("annex", annex),
    ("catalog_record", catalog_record),
    ("chunk_list", chunk_list),
    ("grants", grants),
    ("head", head),
    ("manifest", manifest),
    ("manifest_page", manifest_page),
    ("pairing_message", pairing_message),
    ("path", path),
    ("request", request),
    ("ticket", ticket),
];

/// Accepted bytes are the only encoding of what they say.
fn document<D: Document>(data: &[u8]) -> Option<D> {
    let value = D::from_bytes(data).ok()?;
    assert_eq!(value.to_bytes(), data, "an accepted {} has two encodings", D::KIND);
    Some(value)
}

fn signed<T: Signable>(data: &[u8]) {
    document::<Envelope>(data);
    document::<T>(data);
    if let Ok(signed) = Signed::<T>::from_bytes(data) {
        assert_eq!(signed.bytes(), data);
    }
}

/// A path of a lake, as text.
pub fn path(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(path) = LakePath::parse(text) else { return };
    assert_eq!(path.as_str(), text);
    assert!(!text.starts_with('/') && !text.contains(['\\', '\0']));
    assert!(path.names().all(|n| !n.is_empty() && n != "." && n != ".."));
    let mut encoded = Enc::new(Vec::new());
    path.put(&mut encoded);
    assert_eq!(LakePath::get(&mut Dec::new(encoded.writer())).ok(), Some(path));
}

/// A head, in an envelope or out of it.
pub fn head(data: &[u8]) {
    signed::<Head>(data);
}

/// A grant set, likewise.
pub fn grants(data: &[u8]) {
    signed::<GrantSet>(data);
}

/// A manifest's root.
pub fn manifest(data: &[u8]) {
    if let Some(manifest) = document::<Manifest>(data) {
        assert_eq!(BlobHash::from(manifest.id()), BlobHash::of(data));
    }
}

/// The root of an annex.
pub fn annex(data: &[u8]) {
    document::<Annex>(data);
}

/// A page; and a tree that consists of nothing but this page, at every level.
pub fn manifest_page(data: &[u8]) {
    let Some(page) = document::<Page>(data) else { return };
    let entries = page.decode_items::<Entry>().unwrap_or_default();
    let lists = page.decode_items::<ChunkListRef>().unwrap_or_default();
    let below = |f: fn(&TreeRef) -> u64| page.child_pages().map(f).fold(0u64, u64::saturating_add);
    let weight = entries.iter().map(TreeItem::weight).chain(lists.iter().map(TreeItem::weight));
    let root = TreeRef {
        page: BlobHash::of(data),
        items: below(|c| c.items).saturating_add(page.items.len() as u64),
        weight: weight.fold(below(|c| c.weight), u64::saturating_add),
        height: page.height,
        unknown: Default::default(),
    };
    let mut fetch = |_: &BlobHash| Ok::<_, Infallible>(data.to_vec());
    let mut last: Option<LakePath> = None;
    let _ = read_tree(&root, &mut fetch, &mut |entry: Entry| {
        assert!(last.as_ref().is_none_or(|l| *l < entry.path), "entries come in order");
        last = Some(entry.path);
        Ok(())
    });
    let _ = missing_pages(&root, &mut |_| Some(data.to_vec()));
    let _ = missing_pages(&root, &mut |_| None);
}

/// A ticket, as a person types it.
pub fn ticket(data: &[u8]) {
    document::<TicketBody>(data);
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(ticket) = Ticket::parse(text) {
        assert_eq!(ticket.reveal(), text.trim());
        assert!(!format!("{ticket:?}").contains(text.trim()), "a ticket shows itself");
    }
}

/// What a stranger may say at the pairing door.
pub fn pairing_message(data: &[u8]) {
    if data.len() <= PAIR_MESSAGE_BYTES_MAX
        && let Some(Message::Pair(request)) = document::<Message>(data)
    {
        signed::<SiteCard>(&request.card.0);
    }
}

/// What a peer may say, and the signed things in it.
pub fn request(data: &[u8]) {
    match document::<Message>(data) {
        Some(Message::Heads(asked)) => asked.card.iter().for_each(|card| signed::<SiteCard>(&card.0)),
        Some(Message::Announce(said)) => {
            signed::<Head>(&said.head.0);
            said.card.iter().for_each(|card| signed::<SiteCard>(&card.0));
        }
        Some(Message::News(SpaceNews { grants, heads, cards, .. })) => {
            signed::<GrantSet>(&grants.0);
            heads.iter().for_each(|head| signed::<Head>(&head.0));
            cards.iter().for_each(|card| signed::<SiteCard>(&card.0));
        }
        _ => {}
    }
}

/// A chunk list.
pub fn chunk_list(data: &[u8]) {
    let Ok(list) = ChunkList::from_bytes(data) else { return };
    assert_eq!(list.to_bytes(), data);
    let end = list.extents().last().map_or(0, |(at, chunk)| at + u64::from(chunk.len));
    assert_eq!(end, list.size, "the chunks make up the blob");
}

/// A row of the catalog. What was read is written so that it is read again as the same.
pub fn catalog_record(data: &[u8]) {
    fn again<T: Wire + PartialEq + std::fmt::Debug>(data: &[u8]) {
        let Ok(value) = T::get(&mut Dec::new(data)) else { return };
        let mut encoded = Enc::new(Vec::new());
        value.put(&mut encoded);
        assert_eq!(T::get(&mut Dec::new(encoded.writer())).as_ref(), Ok(&value));
    }
    again::<BlobRecord>(data);
    again::<FileRecord>(data);
    again::<JournalRecord>(data);
    again::<LeaseRecord>(data);
    again::<LiveRecord>(data);
    again::<PeerRecord>(data);
    again::<SnapshotRecord>(data);
    again::<SpaceRecord>(data);
    again::<StagingRecord>(data);
    again::<TicketRecord>(data);
}
