//! Site cards: how a site is reached and which lanes it offers, signed by itself.
//!
//! Invariant: a card only helps to find a site; it gives no right and proves no holding.

use crate::codec::{CodecError, Document, check_name};
use crate::ids::SiteId;
use crate::limits;
use crate::record;
use crate::signed::Signable;

record! {
    /// How to reach a site.
    pub struct SiteCard {
        0 => site: SiteId,
        1 => name: String,
        /// Socket addresses (`192.0.2.1:7711`, `[2001:db8::1]:7711`) of the quic lane.
        2 => quic: Vec<String>,
        /// Socket addresses of the tls lane.
        3 => tls: Vec<String>,
        /// Milliseconds since the Unix epoch; a newer card replaces an older one.
        4 => time_ms: u64,
    }
}

impl Document for SiteCard {
    const KIND: &'static str = "sluice/card";
    const VERSION: u64 = 1;
    const BYTES_MAX: usize = limits::SIGNED_BYTES_MAX;
    fn check(&self) -> Result<(), CodecError> {
        check_name("a site's name", &self.name)?;
        if self.quic.len() + self.tls.len() > limits::ADDRESSES_MAX {
            return Err(CodecError::TooLarge {
                what: "the number of addresses",
                found: (self.quic.len() + self.tls.len()) as u64,
                limit: limits::ADDRESSES_MAX as u64,
            });
        }
        let parses = |a: &String| a.parse::<std::net::SocketAddr>().is_ok();
        if !self.quic.iter().chain(&self.tls).all(parses) {
            return Err(CodecError::Invalid("a site card holds something that is no socket address".into()));
        }
        Ok(())
    }
}

impl Signable for SiteCard {
    const DOMAIN: &'static str = "sluice v1 card";
    fn signer(&self) -> SiteId {
        self.site
    }
}
