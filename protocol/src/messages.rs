//! What sites say to each other on the pairing door and the control stream.
//!
//! A message is a document with a `u32` little-endian length in front. Bulk bytes do not travel
//! here: they use the iroh-blobs wire protocol.
//!
//! Invariant: a length is compared with [`limits::MESSAGE_BYTES_MAX`] before anything is read.

use std::fmt;

use crate::codec::{Bytes, CodecError, Dec, Document, Enc, Wire, disturbs, infallible};
use crate::ids::{SnapshotId, SpaceId};
use crate::limits;
use crate::record;

/// Admits a site that holds a ticket; the only thing an unpaired site can talk to.
pub const ALPN_PAIR: &[u8] = b"sluice/pair/1";
/// Heads, grants, cards: for paired sites.
pub const ALPN_CONTROL: &[u8] = b"sluice/control/1";
/// Blobs, in the wire protocol of iroh-blobs: for paired sites, each request checked against grants.
pub const ALPN_BLOBS: &[u8] = b"/iroh-bytes/4";
/// The same in frames, which may be packed.
pub const ALPN_QUIC_BLOBS: &[u8] = b"sluice/blobs-quic/1";
/// The same on the tls lane, in frames.
pub const ALPN_TLS_BLOBS: &[u8] = b"sluice/blobs-tls/1";

record! {
    secret
    /// A ticket holder asks to be admitted. `Debug` hides the secret.
    pub struct PairRequest {
        0 => secret: [u8; 16],
        1 => space: SpaceId,
        /// The asking site's signed card.
        2 => card: Bytes,
    }
}

impl fmt::Debug for PairRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ticket = crate::ticket::ticket_id(&self.secret).short();
        f.debug_struct("PairRequest").field("ticket", &ticket).field("space", &self.space).finish_non_exhaustive()
    }
}

record! {
    /// A peer asks for what is new in a space.
    pub struct HeadsRequest {
        0 => space: SpaceId,
        /// The place of the newest head the asker stored.
        1 => have_epoch: Option<u64>,
        2 => have_seq: Option<u64>,
        /// The asker's signed card, when it changed.
        3 => card: Option<Bytes>,
        /// The version that the asker is held at by a person, and wants to be kept.
        4 => held: Option<SnapshotId>,
    }
}

record! {
    /// A peer says that a space has a newer head.
    pub struct Announce {
        0 => space: SpaceId,
        /// The signed head.
        1 => head: Bytes,
        /// The signed card of the site that speaks: where it is reached now.
        2 => card: Option<Bytes>,
    }
}

record! {
    /// What a peer needs to know about a space.
    pub struct SpaceNews {
        /// The signed grant set.
        0 => grants: Bytes,
        /// Signed heads, ascending, from the stored one (or the newest alone at first contact).
        1 => heads: Vec<Bytes>,
        /// Signed cards of sites that may hold the space.
        2 => cards: Vec<Bytes>,
        /// Older heads were left out of this reply: ask again from the last one.
        3 => more: bool,
    }
}

record! {
    /// A refusal that a person can read.
    pub struct Refusal {
        /// One of the `REFUSED_*` codes.
        0 => code: u32,
        1 => text: String,
    }
}

/// The ticket is unknown, damaged or for another space.
pub const REFUSED_TICKET: u32 = 1;
/// The ticket has expired.
pub const REFUSED_EXPIRED: u32 = 2;
/// Another site has used the ticket.
pub const REFUSED_USED: u32 = 3;
/// No grant allows this.
pub const REFUSED_GRANT: u32 = 4;
/// The message was not understood.
pub const REFUSED_MESSAGE: u32 = 5;
/// The site is too busy or failed; the same call may succeed later.
pub const REFUSED_LATER: u32 = 6;
/// There is no snapshot yet, or its head is stale.
pub const REFUSED_NO_HEAD: u32 = 7;

impl Refusal {
    /// A refusal with a code and one sentence.
    pub fn new(code: u32, text: impl Into<String>) -> Self {
        let mut text: String = text.into();
        text = text.chars().map(|c| if disturbs(c) { ' ' } else { c }).collect();
        while text.len() > limits::TEXT_BYTES_MAX {
            text.pop();
        }
        Self { code, text, unknown: Default::default() }
    }
}

/// Everything that is said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    Pair(PairRequest),
    Heads(HeadsRequest),
    Announce(Announce),
    News(SpaceNews),
    Refused(Refusal),
    Done,
}

impl Wire for Message {
    fn put(&self, e: &mut Enc) {
        infallible(e.array(2));
        let tag = match self {
            Message::Pair(_) => 1,
            Message::Heads(_) => 2,
            Message::Announce(_) => 3,
            Message::News(_) => 4,
            Message::Refused(_) => 5,
            Message::Done => 6,
        };
        infallible(e.u8(tag));
        match self {
            Message::Pair(m) => m.put(e),
            Message::Heads(m) => m.put(e),
            Message::Announce(m) => m.put(e),
            Message::News(m) => m.put(e),
            Message::Refused(m) => m.put(e),
            Message::Done => {
                infallible(e.map(0));
            }
        }
    }

    fn get(d: &mut Dec<'_>) -> Result<Self, CodecError> {
        if d.array()? != Some(2) {
            return Err(CodecError::NotCanonical);
        }
        Ok(match d.u8()? {
            1 => Message::Pair(Wire::get(d)?),
            2 => Message::Heads(Wire::get(d)?),
            3 => Message::Announce(Wire::get(d)?),
            4 => Message::News(Wire::get(d)?),
            5 => Message::Refused(Wire::get(d)?),
            6 if d.map()? == Some(0) => Message::Done,
            other => return Err(CodecError::Invalid(format!("message {other} is unknown"))),
        })
    }
}

impl Document for Message {
    const KIND: &'static str = "sluice/message";
    const VERSION: u64 = 1;
    const BYTES_MAX: usize = limits::MESSAGE_BYTES_MAX;

    fn check(&self) -> Result<(), CodecError> {
        let short = |b: &Bytes| b.0.len() <= limits::SIGNED_BYTES_MAX;
        let ok = match self {
            Message::Pair(p) => short(&p.card),
            Message::Heads(h) => h.have_epoch.is_some() == h.have_seq.is_some() && h.card.iter().all(short),
            Message::Announce(a) => short(&a.head) && a.card.iter().all(short),
            Message::News(n) => {
                n.heads.len() <= limits::HEADS_PER_REPLY_MAX
                    && n.cards.len() <= limits::CARDS_MAX
                    && n.heads.iter().chain(&n.cards).all(short)
            }
            Message::Refused(r) => r.text.len() <= limits::TEXT_BYTES_MAX && !r.text.chars().any(disturbs),
            Message::Done => true,
        };
        if ok { Ok(()) } else { Err(CodecError::Invalid("a message holds more than it may".into())) }
    }
}
