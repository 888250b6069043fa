//! Any bytes at all: a decoder never panics, and what it takes has one encoding.

use std::fmt::Debug;

use proptest::prelude::*;
use sluice_protocol::annex::Annex;
use sluice_protocol::card::SiteCard;
use sluice_protocol::chunks::ChunkList;
use sluice_protocol::codec::{CodecError, Document, Enc, Wire};
use sluice_protocol::grants::{Genesis, GrantSet};
use sluice_protocol::head::Head;
use sluice_protocol::limits::{LIST_ITEMS_MAX, UNKNOWN_FIELDS_MAX};
use sluice_protocol::manifest::{Entry, Manifest};
use sluice_protocol::messages::Message;
use sluice_protocol::record;
use sluice_protocol::signed::Envelope;
use sluice_protocol::ticket::{Ticket, TicketBody};
use sluice_protocol::tree::Page;

use crate::golden;

record! {
    /// A record that a test extends with bytes of its own.
    pub struct Plain { 0 => a: u64, 5 => list: Vec<u64> }
}

impl Document for Plain {
    const KIND: &'static str = "test/plain";
    const VERSION: u64 = 1;
    const BYTES_MAX: usize = 1 << 24;
}

/// `["test/plain", 1, { 0: 1, key: raw }]`.
fn with_field(key: u32, raw: &[u8]) -> Vec<u8> {
    let mut e = Enc::new(Vec::new());
    e.array(3).unwrap().str("test/plain").unwrap().u64(1).unwrap().map(2).unwrap();
    e.u32(0).unwrap().u64(1).unwrap().u32(key).unwrap();
    let mut bytes = e.into_writer();
    bytes.extend_from_slice(raw);
    bytes
}

fn one_encoding<D: Document + PartialEq + Debug>(bytes: &[u8]) -> Result<(), TestCaseError> {
    if let Ok(value) = D::from_bytes(bytes) {
        prop_assert_eq!(value.to_bytes(), bytes);
        prop_assert_eq!(D::from_bytes(bytes), Ok(value));
    }
    Ok(())
}

fn every_kind(bytes: &[u8]) -> Result<(), TestCaseError> {
    one_encoding::<Manifest>(bytes)?;
    one_encoding::<Annex>(bytes)?;
    one_encoding::<Head>(bytes)?;
    one_encoding::<Genesis>(bytes)?;
    one_encoding::<GrantSet>(bytes)?;
    one_encoding::<SiteCard>(bytes)?;
    one_encoding::<Envelope>(bytes)?;
    one_encoding::<TicketBody>(bytes)?;
    one_encoding::<Message>(bytes)?;
    one_encoding::<Page>(bytes)?;
    if let Ok(page) = Page::from_bytes(bytes)
        && let Ok(items) = page.decode_items::<Entry>()
    {
        for (item, raw) in items.iter().zip(&page.items) {
            let mut e = Enc::new(Vec::new());
            item.put(&mut e);
            prop_assert_eq!(&e.into_writer(), &raw.0);
        }
    }
    if let Ok(list) = ChunkList::from_bytes(bytes) {
        prop_assert_eq!(list.to_bytes(), bytes);
    }
    let text = String::from_utf8_lossy(bytes);
    prop_assert!(Ticket::parse(&text).is_err());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        every_kind(&bytes)?;
    }

    #[test]
    fn damaged_documents(which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), how in 0..5u8, with in any::<u8>()) {
        let all = golden::encodings();
        let mut bytes = all[which.index(all.len())].clone();
        let at = at.index(bytes.len());
        match how {
            0 => bytes[at] = with,
            1 => bytes.insert(at, with),
            2 => { bytes.remove(at); }
            3 => bytes.truncate(at),
            _ => bytes[at] ^= 1 << (with % 8),
        }
        every_kind(&bytes)?;
    }
}

#[test]
fn unknown_fields_must_be_canonical_too() {
    let taken: [&[u8]; 14] = [
        b"\x00",
        b"\x17",
        b"\x18\x18",
        b"\x19\x01\x00",
        b"\x1b\x00\x00\x00\x01\x00\x00\x00\x00",
        b"\x20",
        b"\x38\x18",
        b"\x43abc",
        b"\x62\xc3\xa4",
        b"\x82\x01\x02",
        b"\xa2\x01\x02\x03\x04",
        b"\xf4",
        b"\xf6",
        b"\xfb\x3f\xf8\x00\x00\x00\x00\x00\x00",
    ];
    for raw in taken {
        let bytes = with_field(9, raw);
        let plain = Plain::from_bytes(&bytes).unwrap_or_else(|e| panic!("{raw:02x?}: {e}"));
        assert_eq!((plain.unknown.len(), plain.to_bytes()), (1, bytes), "{raw:02x?}");
    }
    let refused: [&[u8]; 24] = [
        b"",
        b"\x18\x17",
        b"\x19\x00\xff",
        b"\x1a\x00\x00\xff\xff",
        b"\x1b\x00\x00\x00\x00\xff\xff\xff\xff",
        b"\x38\x17",
        b"\x58\x03abc",
        b"\x78\x01a",
        b"\x62\xff\xfe",
        b"\x98\x02\x01\x02",
        b"\xb8\x01\x01\x02",
        b"\xa2\x03\x04\x01\x02",
        b"\xa2\x01\x02\x01\x02",
        b"\x9f\xff",
        b"\x5f\x41a\xff",
        b"\x7f\x61a\xff",
        b"\xbf\xff",
        b"\xc0\x01",
        b"\xf7",
        b"\xf8\x20",
        b"\xf9\x3c\x00",
        b"\xfa\x3f\x80\x00\x00",
        b"\xff",
        b"\x1c",
    ];
    for raw in refused {
        assert!(Plain::from_bytes(&with_field(9, raw)).is_err(), "{raw:02x?}");
    }
}

#[test]
fn known_fields_must_be_canonical() {
    for raw in [&b"\x98\x01\x07"[..], b"\x81\x18\x07", b"\x80", b"\x9f\x07\xff"] {
        assert!(Plain::from_bytes(&with_field(5, raw)).is_err(), "{raw:02x?}");
    }
    assert_eq!(Plain::from_bytes(&with_field(5, b"\x81\x07")).unwrap().list, [7]);
    // keys out of order, twice, in two bytes
    assert!(Plain::from_bytes(&with_field(0, b"\x07")).is_err());
    let mut long = with_field(5, b"\x81\x07");
    let key = long.len() - 3;
    assert_eq!(long[key], 5);
    long.splice(key..=key, [0x18, 0x05]);
    assert_eq!(Plain::from_bytes(&long), Err(CodecError::NotCanonical));
}

#[test]
fn claims_are_bounded_before_memory_is_taken() {
    let too_large = |raw: &[u8]| matches!(Plain::from_bytes(&with_field(5, raw)), Err(CodecError::TooLarge { .. }));
    assert!(too_large(b"\x9a\xff\xff\xff\xff"));
    assert!(too_large(b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff"));
    let mut many = vec![0x9a];
    many.extend((LIST_ITEMS_MAX as u32 + 1).to_be_bytes());
    many.resize(many.len() + LIST_ITEMS_MAX as usize + 1, 0);
    assert!(too_large(&many));
    let unknown = |raw: &[u8]| Plain::from_bytes(&with_field(9, raw)).is_err();
    assert!(unknown(b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff"));
    assert!(unknown(b"\x5b\xff\xff\xff\xff\xff\xff\xff\xff"));
    assert!(unknown(b"\xbb\xff\xff\xff\xff\xff\xff\xff\xff"));
}

#[test]
fn a_record_has_only_so_many_unknown_fields() {
    let record = |n: usize| {
        let mut e = Enc::new(Vec::new());
        e.array(3).unwrap().str("test/plain").unwrap().u64(1).unwrap().map(n as u64 + 1).unwrap();
        e.u32(0).unwrap().u64(1).unwrap();
        for key in 0..n {
            e.u32(10 + key as u32).unwrap().u8(0).unwrap();
        }
        e.into_writer()
    };
    assert!(Plain::from_bytes(&record(UNKNOWN_FIELDS_MAX)).is_ok());
    assert!(matches!(Plain::from_bytes(&record(UNKNOWN_FIELDS_MAX + 1)), Err(CodecError::TooLarge { .. })));
}

#[test]
fn a_document_longer_than_its_limit_is_not_looked_at() {
    let long = vec![0u8; Head::BYTES_MAX + 1];
    assert!(matches!(Head::from_bytes(&long), Err(CodecError::TooLarge { .. })));
    assert!(matches!(Head::from_bytes(&long[1..]), Err(CodecError::WrongKind { .. })));
}
