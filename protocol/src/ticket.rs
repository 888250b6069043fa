//! Tickets: one-time, expiring invitations, and the phrase that both sides compare.
//!
//! Invariant: a ticket is one word of `[A-Za-z0-9_-]`, carries its own checksum so that a damaged
//! one is told from a refused one, and its secret is never printed, logged or stored by anyone but
//! the person who carries it.

use std::fmt;

use data_encoding::BASE64URL_NOPAD;
use zeroize::Zeroize;

use crate::codec::{CodecError, Document};
use crate::ids::{SiteId, SpaceId, TicketId};
use crate::limits;
use crate::record;

const PREFIX: &str = "sluice1-";
const CHECK_BYTES: usize = 4;

record! {
    secret
    /// What a ticket says. `Debug` hides the secret.
    pub struct TicketBody {
        0 => secret: [u8; 16],
        /// The inviting site.
        1 => site: SiteId,
        /// Its socket addresses on the quic lane.
        2 => addresses: Vec<String>,
        3 => space: SpaceId,
        4 => space_name: String,
        /// Milliseconds since the Unix epoch.
        5 => expires_ms: u64,
    }
}

impl fmt::Debug for TicketBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = ticket_id(&self.secret).short();
        f.debug_struct("TicketBody")
            .field("id", &id)
            .field("site", &self.site)
            .field("space", &self.space)
            .field("expires_ms", &self.expires_ms)
            .finish_non_exhaustive()
    }
}

impl Document for TicketBody {
    const KIND: &'static str = "sluice/ticket";
    const VERSION: u64 = 1;
    const BYTES_MAX: usize = limits::TICKET_BYTES_MAX;
    fn check(&self) -> Result<(), CodecError> {
        crate::grants::check_space_name(&self.space_name)?;
        let parses = |a: &String| a.parse::<std::net::SocketAddr>().is_ok();
        if self.addresses.len() > limits::ADDRESSES_MAX || !self.addresses.iter().all(parses) {
            return Err(CodecError::Invalid("the ticket's addresses make no sense".into()));
        }
        Ok(())
    }
}

/// An invitation. `Debug` hides the secret; [`Ticket::reveal`] is the only way to its text.
#[derive(Clone, PartialEq, Eq)]
pub struct Ticket(TicketBody);

/// Why a text is no ticket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    #[error("this is not a Sluice ticket")]
    NotATicket,
    #[error("the ticket is damaged: a character is missing or wrong")]
    Damaged,
    #[error("the ticket cannot be read: {0}")]
    Unreadable(CodecError),
}

impl Ticket {
    /// A ticket of these parts.
    pub fn new(body: TicketBody) -> Self {
        Self(body)
    }

    /// What it says.
    pub fn body(&self) -> &TicketBody {
        &self.0
    }

    /// The text to hand over.
    pub fn reveal(&self) -> String {
        let mut bytes = self.0.to_bytes();
        let check = check(&bytes);
        bytes.extend_from_slice(&check);
        format!("{PREFIX}{}", BASE64URL_NOPAD.encode(&bytes))
    }

    /// Reads a text; blanks around it are forgiven.
    pub fn parse(text: &str) -> Result<Self, TicketError> {
        let code = text.trim().strip_prefix(PREFIX).ok_or(TicketError::NotATicket)?;
        if code.len() > 2 * limits::TICKET_BYTES_MAX {
            return Err(TicketError::Damaged);
        }
        let bytes = BASE64URL_NOPAD.decode(code.as_bytes()).map_err(|_| TicketError::Damaged)?;
        if bytes.len() < CHECK_BYTES {
            return Err(TicketError::Damaged);
        }
        let (body, sum) = bytes.split_at(bytes.len() - CHECK_BYTES);
        if check(body) != sum {
            return Err(TicketError::Damaged);
        }
        TicketBody::from_bytes(body).map(Self).map_err(TicketError::Unreadable)
    }

    /// What the inviting site stores.
    pub fn id(&self) -> TicketId {
        ticket_id(&self.0.secret)
    }

    /// The phrase both sides show.
    pub fn phrase(&self) -> String {
        phrase(self.0.site, self.0.space, &self.0.secret)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.secret.zeroize();
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ticket({})", self.id().short())
    }
}

/// The id under which a secret is remembered.
pub fn ticket_id(secret: &[u8; 16]) -> TicketId {
    TicketId(blake3::derive_key("sluice v1 ticket id", secret))
}

fn check(bytes: &[u8]) -> [u8; CHECK_BYTES] {
    let sum = blake3::derive_key("sluice v1 ticket check", bytes);
    sum[..CHECK_BYTES].try_into().expect("32 bytes hold 4")
}

/// Five pronounceable words (80 bits) that stand for the inviting site, the space and this ticket.
///
/// The joining side computes it from the key that the connection proved, not from the ticket alone,
/// so somebody in the middle shows another phrase.
pub fn phrase(site: SiteId, space: SpaceId, secret: &[u8; 16]) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("sluice v1 phrase");
    hasher.update(&site.0);
    hasher.update(&space.0);
    hasher.update(secret);
    let bytes = hasher.finalize();
    let words: Vec<String> = bytes.as_bytes()[..10].chunks_exact(2).map(word).collect();
    words.join("-")
}

/// Sixteen bits as consonant-vowel-consonant-vowel-consonant (the proquint scheme).
fn word(pair: &[u8]) -> String {
    const CONSONANTS: &[u8; 16] = b"bdfghjklmnprstvz";
    const VOWELS: &[u8; 4] = b"aiou";
    let bits = u16::from_be_bytes([pair[0], pair[1]]);
    let c = |shift: u16| CONSONANTS[usize::from(bits >> shift & 0xf)] as char;
    let v = |shift: u16| VOWELS[usize::from(bits >> shift & 0x3)] as char;
    [c(12), v(10), c(6), v(4), c(0)].iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket() -> Ticket {
        Ticket::new(TicketBody {
            secret: [7; 16],
            site: SiteId([1; 32]),
            addresses: vec!["192.0.2.1:7711".into(), "[2001:db8::1]:7711".into()],
            space: SpaceId([2; 32]),
            space_name: "acme".into(),
            expires_ms: 1_800_000_000_000,
            unknown: Default::default(),
        })
    }

    #[test]
    fn one_word_and_back() {
        let text = ticket().reveal();
        assert!(text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-'), "{text}");
        assert_eq!(Ticket::parse(&format!("  {text}\n")).unwrap(), ticket());
    }

    #[test]
    fn every_single_damage_is_named() {
        let text = ticket().reveal();
        for i in PREFIX.len()..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[i] = if bytes[i] == b'A' { b'B' } else { b'A' };
            let damaged = String::from_utf8(bytes).unwrap();
            assert_eq!(Ticket::parse(&damaged), Err(TicketError::Damaged), "position {i}");
            assert_eq!(Ticket::parse(&text[..i]), Err(TicketError::Damaged), "cut at {i}");
        }
        assert_eq!(Ticket::parse("hello"), Err(TicketError::NotATicket));
    }

    #[test]
    fn the_secret_stays_out_of_debug() {
        let shown = format!("{:?} {:?}", ticket(), ticket().body());
        assert!(!shown.contains("7, 7") && !shown.contains("0707"), "{shown}");
    }

    #[test]
    fn the_phrase_depends_on_each_part() {
        let base = phrase(SiteId([1; 32]), SpaceId([2; 32]), &[7; 16]);
        assert_eq!(base, ticket().phrase());
        assert_ne!(base, phrase(SiteId([3; 32]), SpaceId([2; 32]), &[7; 16]));
        assert_ne!(base, phrase(SiteId([1; 32]), SpaceId([3; 32]), &[7; 16]));
        assert_ne!(base, phrase(SiteId([1; 32]), SpaceId([2; 32]), &[8; 16]));
    }
}
