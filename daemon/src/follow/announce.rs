//! Telling other sites of a new head.
//!
//! Invariant: a site tells of a head once, when it was new to it and is live here, and never back to the
//! site from which it learnt it; so a word dies out in a world where all know it. Telling is bounded in
//! time and number, and its failures cost nobody anything: who was not reached asks by itself.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt;
use sluice_protocol::codec::Bytes;
use sluice_protocol::head::Head;
use sluice_protocol::ids::SiteId;
use sluice_protocol::limits::SITES_TOLD_MAX;
use sluice_protocol::messages::{Announce, Message};
use sluice_protocol::signed::Signed;

use crate::site::Site;
use crate::sync::ask;

/// How long one site may take to hear and answer.
const TOLD_WITHIN: Duration = Duration::from_secs(15);
/// Sites that are told at once.
const AT_ONCE: usize = 16;

/// Tells every site with a grant whose address is known, but not those in `except`.
pub(super) async fn tell(site: &Site, head: &Signed<Head>, except: &[SiteId]) {
    let others = match ask::granted(site, &head.space) {
        Ok(others) => others,
        Err(e) => return tracing::warn!(error = %e, "followers are not told"),
    };
    let said = Message::Announce(Announce {
        space: head.space,
        head: Bytes(head.bytes().to_vec()),
        card: Some(Bytes(site.card().bytes().to_vec())),
        unknown: Default::default(),
    });
    let others = others.into_iter().filter(|(id, _)| !except.contains(id)).take(SITES_TOLD_MAX);
    let tell_one = |(id, addresses): (SiteId, Vec<SocketAddr>)| {
        let said = &said;
        async move {
            match tokio::time::timeout(TOLD_WITHIN, site.lane.peer(id, &addresses).message(said)).await {
                Ok(Ok(Message::Done)) => tracing::debug!(site = %id.short(), seq = head.seq, "told"),
                Ok(Ok(Message::Refused(r))) => {
                    tracing::debug!(site = %id.short(), code = r.code, text = %r.text, "it would not hear of a new head")
                }
                Ok(Ok(_)) => tracing::debug!(site = %id.short(), "it answered something that makes no sense"),
                Ok(Err(e)) => tracing::debug!(site = %id.short(), error = %e, "not told; it asks by itself"),
                Err(_) => tracing::debug!(site = %id.short(), "not told in time; it asks by itself"),
            }
        }
    };
    futures_util::stream::iter(others).for_each_concurrent(AT_ONCE, tell_one).await;
}
