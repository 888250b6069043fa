//! Tickets as people carry them, and the phrase that they compare.

use proptest::prelude::*;
use sluice_protocol::codec::Document;
use sluice_protocol::ids::{SiteId, SpaceId};
use sluice_protocol::limits::{ADDRESSES_MAX, TICKET_BYTES_MAX};
use sluice_protocol::messages::{Message, PairRequest};
use sluice_protocol::ticket::{Ticket, TicketBody, TicketError, phrase, ticket_id};

fn body() -> TicketBody {
    TicketBody {
        secret: [0xa5; 16],
        site: SiteId([1; 32]),
        addresses: vec!["192.0.2.1:7711".into()],
        space: SpaceId([2; 32]),
        space_name: "acme".into(),
        expires_ms: 1,
        unknown: Default::default(),
    }
}

/// The text of a body, whether it may be or not.
fn text(body: TicketBody) -> String {
    Ticket::new(body).reveal()
}

#[test]
fn what_is_read_is_what_was_written() {
    for addresses in [vec![], vec!["[2001:db8::1]:7711".into(); ADDRESSES_MAX]] {
        let body = TicketBody { addresses, ..body() };
        let read = Ticket::parse(&text(body.clone())).unwrap();
        assert_eq!(read.body(), &body);
        assert_eq!(read.id(), ticket_id(&body.secret));
    }
}

#[test]
fn bodies_that_make_no_sense_are_unreadable() {
    let bad = [
        TicketBody { addresses: vec!["192.0.2.1:7711".into(); ADDRESSES_MAX + 1], ..body() },
        TicketBody { addresses: vec!["example.org:7711".into()], ..body() },
        TicketBody { space_name: "../x".into(), ..body() },
        TicketBody { space_name: String::new(), ..body() },
    ];
    for body in bad {
        assert!(matches!(Ticket::parse(&text(body)), Err(TicketError::Unreadable(_))));
    }
    let long = TicketBody { addresses: vec!["x".repeat(TICKET_BYTES_MAX)], ..body() };
    assert!(Ticket::parse(&text(long)).is_err());
}

#[test]
fn texts_that_are_no_ticket() {
    for text in ["", "sluice", "sluice1", "sluice2-AAAA", "SLUICE1-AAAA", "iroh-ticket", "-", "\u{202e}"] {
        assert_eq!(Ticket::parse(text), Err(TicketError::NotATicket), "{text:?}");
    }
    let good = text(body());
    let broken = [
        "sluice1-".to_string(),
        "sluice1-AAAA".into(),
        format!("{good}A"),
        format!("{good}="),
        good.replace("sluice1-", "sluice1--"),
        good.replacen('A', " ", 1),
        format!("{}\n{}", &good[..40], &good[40..]),
        format!("sluice1-{}", "A".repeat(1_000_000)),
    ];
    for text in broken {
        assert_eq!(Ticket::parse(&text), Err(TicketError::Damaged), "{:.60}", text);
    }
}

#[test]
fn a_ticket_of_a_newer_version_says_so() {
    let mut bytes = body().to_bytes();
    let version = 1 + 1 + TicketBody::KIND.len();
    assert_eq!(bytes[version], 1);
    bytes[version] = 2;
    let sum = blake3::derive_key("sluice v1 ticket check", &bytes);
    bytes.extend_from_slice(&sum[..4]);
    let text = format!("sluice1-{}", data_encoding::BASE64URL_NOPAD.encode(&bytes));
    let error = Ticket::parse(&text).unwrap_err().to_string();
    assert!(error.contains("version 2") && error.contains("up to 1"), "{error}");
}

#[test]
fn the_secret_is_in_no_debug_output() {
    let secret = body().secret;
    let request =
        PairRequest { secret, space: SpaceId([2; 32]), card: Default::default(), unknown: Default::default() };
    let shown = format!("{:?} {:?} {request:?} {:?}", Ticket::new(body()), body(), Message::Pair(request.clone()));
    let shown = shown.to_lowercase();
    assert!(!shown.contains("a5a5") && !shown.contains("165, 165"), "{shown}");
    assert!(shown.contains(&ticket_id(&secret).short()));
}

proptest! {
    #[test]
    fn every_ticket_is_one_word(secret in any::<[u8; 16]>(), site in any::<[u8; 32]>(), space in any::<[u8; 32]>(), expires_ms in any::<u64>()) {
        let body = TicketBody { secret, site: SiteId(site), space: SpaceId(space), expires_ms, ..body() };
        let text = text(body.clone());
        prop_assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-'));
        let read = Ticket::parse(&text).unwrap();
        prop_assert_eq!(read.body(), &body);
        prop_assert_eq!(read.phrase(), phrase(body.site, body.space, &secret));
    }

    #[test]
    fn a_phrase_is_five_words_that_can_be_spoken(site in any::<[u8; 32]>(), secret in any::<[u8; 16]>()) {
        let text = phrase(SiteId(site), SpaceId([2; 32]), &secret);
        let words: Vec<&str> = text.split('-').collect();
        prop_assert_eq!(words.len(), 5);
        for word in words {
            prop_assert_eq!(word.len(), 5);
            for (i, c) in word.chars().enumerate() {
                prop_assert_eq!("aiou".contains(c), i % 2 == 1, "{}", text);
                prop_assert!("bdfghjklmnprstvzaiou".contains(c));
            }
        }
    }
}
