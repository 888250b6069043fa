//! Messages: each comes back as it was, and none is longer than it may be.

use sluice_protocol::codec::{Bytes, CodecError, Document, Enc};
use sluice_protocol::ids::{SnapshotId, SpaceId};
use sluice_protocol::limits::{
    ADDRESSES_MAX, CARDS_MAX, GRANTS_BYTES_MAX, HEADS_PER_REPLY_MAX, MESSAGE_BYTES_MAX, NAME_BYTES_MAX,
    PAIR_MESSAGE_BYTES_MAX, SIGNED_BYTES_MAX, TEXT_BYTES_MAX,
};
use sluice_protocol::messages::{
    ALPN_BLOBS, ALPN_CONTROL, ALPN_PAIR, Announce, HeadsRequest, Message, PairRequest, REFUSED_GRANT, Refusal,
    SpaceNews,
};
use sluice_protocol::signed::Signed;

use crate::samples::{head, key, site};

fn read(m: &Message) -> Result<Message, CodecError> {
    Message::from_bytes(&m.to_bytes())
}

fn bytes(n: usize) -> Bytes {
    Bytes(vec![7; n])
}

fn pair(card: usize) -> Message {
    Message::Pair(PairRequest {
        secret: [1; 16],
        space: SpaceId([2; 32]),
        card: bytes(card),
        unknown: Default::default(),
    })
}

fn heads(have: (Option<u64>, Option<u64>), card: Option<usize>) -> Message {
    Message::Heads(HeadsRequest {
        space: SpaceId([2; 32]),
        have_epoch: have.0,
        have_seq: have.1,
        card: card.map(bytes),
        held: card.map(|n| SnapshotId([n as u8; 32])),
        unknown: Default::default(),
    })
}

fn announce(head: usize) -> Message {
    Message::Announce(Announce { space: SpaceId([2; 32]), head: bytes(head), card: None, unknown: Default::default() })
}

fn news(grants: usize, heads: usize, cards: usize, each: usize) -> Message {
    Message::News(SpaceNews {
        grants: bytes(grants),
        heads: vec![bytes(each); heads],
        cards: vec![bytes(each); cards],
        more: true,
        unknown: Default::default(),
    })
}

fn refused(text: &str) -> Message {
    Message::Refused(Refusal { code: REFUSED_GRANT, text: text.into(), unknown: Default::default() })
}

#[test]
fn what_may_be_said() {
    let all = [
        pair(0),
        pair(SIGNED_BYTES_MAX),
        heads((None, None), None),
        heads((Some(0), Some(0)), Some(SIGNED_BYTES_MAX)),
        heads((Some(u64::MAX), Some(u64::MAX)), Some(1)),
        announce(SIGNED_BYTES_MAX),
        news(1, 0, 0, 0),
        news(1, HEADS_PER_REPLY_MAX, CARDS_MAX, 1),
        refused("no grant lets this site read that space"),
        refused(&"x".repeat(TEXT_BYTES_MAX)),
        Message::Done,
    ];
    for message in all {
        assert_eq!(read(&message), Ok(message));
    }
}

#[test]
fn what_may_not() {
    let all = [
        pair(SIGNED_BYTES_MAX + 1),
        heads((Some(1), None), None),
        heads((None, Some(1)), None),
        heads((None, None), Some(SIGNED_BYTES_MAX + 1)),
        announce(SIGNED_BYTES_MAX + 1),
        news(1, HEADS_PER_REPLY_MAX + 1, 0, 1),
        news(1, 0, CARDS_MAX + 1, 1),
        news(1, 1, 0, SIGNED_BYTES_MAX + 1),
        news(1, 0, 1, SIGNED_BYTES_MAX + 1),
        refused(&"x".repeat(TEXT_BYTES_MAX + 1)),
        refused("a\x1b]0;title\x07"),
        refused("two\nlines"),
        refused("\u{202e}desrever"),
    ];
    for message in all {
        assert!(matches!(read(&message), Err(CodecError::Invalid(_))), "{message:.200?}");
    }
    assert!(matches!(read(&news(MESSAGE_BYTES_MAX, 0, 0, 0)), Err(CodecError::TooLarge { .. })));
}

#[test]
fn unknown_messages_and_odd_ones() {
    let made = |tag: u8, body: &[u8]| {
        let mut e = Enc::new(Vec::new());
        e.array(3).unwrap().str("sluice/message").unwrap().u64(1).unwrap().array(2).unwrap().u8(tag).unwrap();
        let mut bytes = e.into_writer();
        bytes.extend_from_slice(body);
        Message::from_bytes(&bytes)
    };
    assert_eq!(made(6, b"\xa0"), Ok(Message::Done));
    for (tag, body) in [
        (0, &b"\xa0"[..]),
        (7, b"\xa0"),
        (255, b"\xa0"),
        (6, b"\xa1\x00\x00"),
        (6, b"\x80"),
        (1, b"\xa0"),
        (2, b"\xa0"),
        (6, b""),
    ] {
        assert!(made(tag, body).is_err(), "{tag} {body:?}");
    }
}

#[test]
fn a_refusal_is_one_harmless_line() {
    let refusal = Refusal::new(REFUSED_GRANT, format!("a\nb\x1b[2J{}", "ä".repeat(TEXT_BYTES_MAX)));
    assert!(refusal.text.starts_with("a b [2Jä") && refusal.text.len() <= TEXT_BYTES_MAX);
    assert!(read(&Message::Refused(refusal)).is_ok());
}

#[test]
fn the_largest_honest_reply_fits_a_message() {
    let first = head((0, 0), None, 1);
    let mut longest = head((u64::MAX, 1), Some(&first), 1).into_value();
    (longest.seq, longest.time_ms, longest.not_after_ms) = (u64::MAX, u64::MAX, u64::MAX);
    longest.tag = Some("x".repeat(NAME_BYTES_MAX));
    let head_bytes = Signed::sign(&key(1), longest).bytes().len();
    let card = sluice_protocol::card::SiteCard {
        site: site(1),
        name: "x".repeat(NAME_BYTES_MAX),
        quic: vec!["[2001:db8:1111:2222:3333:4444:5555:6666]:65535".into(); ADDRESSES_MAX],
        tls: vec![],
        time_ms: u64::MAX,
        unknown: Default::default(),
    };
    let card_bytes = Signed::sign(&key(1), card).bytes().len();
    let together = GRANTS_BYTES_MAX + HEADS_PER_REPLY_MAX * (head_bytes + 3) + CARDS_MAX * (card_bytes + 3) + 1000;
    assert!(together <= MESSAGE_BYTES_MAX, "{together}");
    assert!(pair(SIGNED_BYTES_MAX).to_bytes().len() <= PAIR_MESSAGE_BYTES_MAX);
}

#[test]
fn the_doors_have_names() {
    assert_eq!([ALPN_PAIR, ALPN_CONTROL, ALPN_BLOBS], [&b"sluice/pair/1"[..], b"sluice/control/1", b"/iroh-bytes/4"]);
}
