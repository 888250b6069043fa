//! Signatures: they cover every byte, and each only its own purpose.

use ed25519_dalek::Signer;
use sluice_protocol::card::SiteCard;
use sluice_protocol::codec::{Bytes, CodecError, Document, Enc};
use sluice_protocol::grants::GrantSet;
use sluice_protocol::head::Head;
use sluice_protocol::signed::{Envelope, Signable, Signed, SignedError};

use crate::samples::{forge, grant_set, head, key, site};

fn card() -> Signed<SiteCard> {
    let card = SiteCard {
        site: site(1),
        name: "playground".into(),
        quic: vec!["192.0.2.1:7711".into()],
        tls: vec![],
        time_ms: 1,
        unknown: Default::default(),
    };
    Signed::sign(&key(1), card)
}

#[test]
fn every_flipped_bit_is_noticed() {
    let (head, grants, card) = (head((0, 0), None, 1), Signed::sign(&key(1), grant_set(1, 0, vec![])), card());
    every_flip::<Head>(head.bytes());
    every_flip::<GrantSet>(grants.bytes());
    every_flip::<SiteCard>(card.bytes());
}

fn every_flip<T: Signable>(bytes: &[u8]) {
    assert!(Signed::<T>::from_bytes(bytes).is_ok());
    for i in 0..bytes.len() {
        for bit in 0..8 {
            let mut flipped = bytes.to_vec();
            flipped[i] ^= 1 << bit;
            assert!(Signed::<T>::from_bytes(&flipped).is_err(), "byte {i} bit {bit}");
        }
        assert!(Signed::<T>::from_bytes(&bytes[..i]).is_err(), "cut at {i}");
    }
    let mut longer = bytes.to_vec();
    longer.push(0);
    assert!(Signed::<T>::from_bytes(&longer).is_err());
}

fn envelope(payload: &[u8], signature: [u8; 64]) -> Vec<u8> {
    Envelope { payload: Bytes(payload.to_vec()), signature, unknown: Default::default() }.to_bytes()
}

#[test]
fn a_signature_for_one_purpose_is_none_for_another() {
    let head = head((0, 0), None, 1).into_value();
    let payload = head.to_bytes();
    let signed = |message: Vec<u8>| envelope(&payload, key(1).sign(&message).to_bytes());
    let domain = |d: &str| signed([d.as_bytes(), b"\0", &payload].concat());
    assert!(Signed::<Head>::from_bytes(&domain("sluice v1 head")).is_ok());
    let bad = SignedError::BadSignature { signer: site(1) };
    for other in ["sluice v1 grants", "sluice v1 card", "sluice v1 head ", "", "sluice v2 head"] {
        assert_eq!(Signed::<Head>::from_bytes(&domain(other)).unwrap_err(), bad, "{other:?}");
    }
    assert_eq!(Signed::<Head>::from_bytes(&signed(payload.clone())).unwrap_err(), bad);
    let domains = [Head::DOMAIN, GrantSet::DOMAIN, SiteCard::DOMAIN];
    assert_eq!(domains, ["sluice v1 head", "sluice v1 grants", "sluice v1 card"]);
}

#[test]
fn one_kind_is_not_read_as_another() {
    let card = card();
    let wrong = |e: SignedError| matches!(e, SignedError::Codec(CodecError::WrongKind { .. }));
    assert!(wrong(Signed::<Head>::from_bytes(card.bytes()).unwrap_err()));
    assert!(wrong(Signed::<GrantSet>::from_bytes(card.bytes()).unwrap_err()));
    // A signature moved to another payload of the same kind.
    let stolen = Envelope::from_bytes(card.bytes()).unwrap().signature;
    let mut other = card.into_value();
    other.quic = vec!["198.51.100.7:7711".into()];
    let moved = envelope(&other.to_bytes(), stolen);
    assert_eq!(Signed::<SiteCard>::from_bytes(&moved).unwrap_err(), SignedError::BadSignature { signer: site(1) });
}

#[test]
fn keys_that_everybody_can_sign_for_are_refused() {
    // The neutral point: with R neutral and s zero the plain equation holds for any message.
    let mut neutral = [0u8; 32];
    neutral[0] = 1;
    let mut signature = [0u8; 64];
    signature[0] = 1;
    let mut weak = card().into_value();
    weak.site = neutral.into();
    let read = Signed::<SiteCard>::from_bytes(&envelope(&weak.to_bytes(), signature));
    assert_eq!(read.unwrap_err(), SignedError::BadSignature { signer: neutral.into() });
    // Bytes that are no point at all.
    weak.site = [0xff; 32].into();
    assert!(Signed::<SiteCard>::from_bytes(&envelope(&weak.to_bytes(), signature)).is_err());
}

#[test]
fn a_malleable_signature_is_refused() {
    // s + L is the same number to a careless verifier.
    const L: [u8; 32] = [
        0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
    ];
    let honest = Envelope::from_bytes(card().bytes()).unwrap();
    let mut signature = honest.signature;
    let mut carry = 0u16;
    for (s, l) in signature[32..].iter_mut().zip(L) {
        let sum = u16::from(*s) + u16::from(l) + carry;
        *s = sum as u8;
        carry = sum >> 8;
    }
    assert_eq!(carry, 0);
    assert!(Signed::<SiteCard>::from_bytes(&envelope(&honest.payload.0, signature)).is_err());
}

#[test]
fn nothing_rides_along_in_an_envelope() {
    let honest = Envelope::from_bytes(card().bytes()).unwrap();
    let mut e = Enc::new(Vec::new());
    e.array(3).unwrap().str("sluice/signed").unwrap().u64(1).unwrap().map(3).unwrap();
    e.u8(0).unwrap().bytes(&honest.payload.0).unwrap().u8(1).unwrap().bytes(&honest.signature).unwrap();
    e.u8(2).unwrap().str("a rider").unwrap();
    let ridden = Signed::<SiteCard>::from_bytes(&e.into_writer());
    assert_eq!(ridden.unwrap_err(), SignedError::Codec(CodecError::NotCanonical));
}

#[test]
fn ids_cover_the_payload_alone() {
    let one = head((0, 0), None, 1);
    let read = Signed::<Head>::from_bytes(one.bytes()).unwrap();
    assert_eq!((read.id(), read.payload_hash()), (one.id(), *blake3::hash(&one.to_bytes()).as_bytes()));
    assert_eq!(read.bytes(), one.bytes());
    assert_ne!(head((0, 0), None, 2).id(), one.id());
}

#[test]
fn cards_that_cannot_be() {
    let with = |change: &dyn Fn(&mut SiteCard)| {
        let mut card = card().into_value();
        change(&mut card);
        Signed::<SiteCard>::from_bytes(&forge(&card, &key(1)))
    };
    assert!(with(&|c| c.tls = vec!["[2001:db8::1]:7711".into()]).is_ok());
    assert!(with(&|c| c.quic = vec!["192.0.2.1:7711".into(); 32]).is_ok());
    assert!(with(&|c| c.quic = vec!["192.0.2.1:7711".into(); 33]).is_err());
    assert!(with(&|c| c.name = "\u{202e}x".into()).is_err());
    for address in ["", "192.0.2.1", "example.org:7711", "192.0.2.1:99999", "192.0.2.1:7711/x", "file:///x"] {
        assert!(with(&|c| c.quic = vec![address.into()]).is_err(), "{address}");
        assert!(with(&|c| c.tls = vec![address.into()]).is_err(), "{address}");
    }
}
