//! Invitations and admissions: how a stranger becomes a peer with a grant.
//!
//! Invariant: a ticket admits one site. It is burned in the transaction that writes the peer and the
//! grant, so of any number of sites that present it at once exactly one gets in, and a crash leaves
//! either all of the admission or none. The secret itself is never stored.

use std::sync::Arc;

use ed25519_dalek::SigningKey;
use sluice_protocol::card::SiteCard;
use sluice_protocol::codec::{Bytes, Document};
use sluice_protocol::grants::{Grant, GrantSet, Right};
use sluice_protocol::ids::{SiteId, SpaceId, TicketId};
use sluice_protocol::messages::{
    PairRequest, REFUSED_EXPIRED, REFUSED_LATER, REFUSED_MESSAGE, REFUSED_TICKET, REFUSED_USED, Refusal,
};
use sluice_protocol::signed::Signed;
use sluice_protocol::ticket::{Ticket, TicketBody, ticket_id};
use sluice_store::catalog::{Batch, Catalog, CatalogError, PeerRecord, SiteLookup, TicketRecord};

use crate::clock::now_ms;
use crate::journal;

/// What a new ticket is for.
pub struct Invite {
    pub space: SpaceId,
    pub space_name: String,
    pub sections: Vec<String>,
    /// How long the ticket lives, in milliseconds.
    pub life_ms: u64,
    pub site: SiteId,
    pub addresses: Vec<String>,
}

/// Makes a ticket and remembers its hash.
pub fn invite(catalog: &Catalog, invite: Invite) -> Result<Ticket, CatalogError> {
    let mut secret = [0u8; 16];
    getrandom::fill(&mut secret).map_err(|e| CatalogError::Store(format!("no randomness: {e}")))?;
    let expires_ms = now_ms().saturating_add(invite.life_ms);
    let ticket = Ticket::new(TicketBody {
        secret,
        site: invite.site,
        addresses: invite.addresses,
        space: invite.space,
        space_name: invite.space_name,
        expires_ms,
        unknown: Default::default(),
    });
    let record = TicketRecord {
        space: invite.space,
        sections: invite.sections,
        expires_ms,
        used_by: None,
        unknown: Default::default(),
    };
    let id = ticket.id();
    catalog.write(|b| -> Result<(), CatalogError> {
        b.put_ticket(&id, &record)?;
        journal::write(b, "invited", Some(invite.space), None, &format!("ticket {}", id.short()))
    })?;
    Ok(ticket)
}

/// Why a site was not admitted.
enum Denied {
    Refusal(Refusal),
    Catalog(CatalogError),
}

impl From<CatalogError> for Denied {
    fn from(e: CatalogError) -> Self {
        Denied::Catalog(e)
    }
}

fn denied(code: u32, text: &str) -> Denied {
    Denied::Refusal(Refusal::new(code, text))
}

/// Admits `from` if its request holds a ticket of this site. Returns the space it may read.
pub fn admit(catalog: &Catalog, key: &SigningKey, from: SiteId, request: &PairRequest) -> Result<SpaceId, Refusal> {
    let card = Signed::<SiteCard>::from_bytes(&request.card.0)
        .ok()
        .filter(|card| card.site == from)
        .ok_or_else(|| Refusal::new(REFUSED_MESSAGE, "the card is not that of the asking site"))?;
    let id = ticket_id(&request.secret);
    let admitted = catalog.write(|b| burn(b, key, &id, request.space, &card));
    admitted.map_err(|denied| match denied {
        Denied::Refusal(refusal) => refusal,
        Denied::Catalog(e) => {
            tracing::error!(error = %e, "an admission failed");
            Refusal::new(REFUSED_LATER, "the inviting site could not write the admission down")
        }
    })
}

fn burn(
    b: &mut Batch,
    key: &SigningKey,
    id: &TicketId,
    space: SpaceId,
    card: &Signed<SiteCard>,
) -> Result<SpaceId, Denied> {
    let now = now_ms();
    let unknown = || denied(REFUSED_TICKET, "the ticket is not known here");
    let mut ticket = b.ticket(id)?.filter(|t| t.space == space).ok_or_else(unknown)?;
    match ticket.used_by {
        // The reply may have been lost: the same site may ask again.
        Some(site) if site == card.site => {}
        Some(_) => return Err(denied(REFUSED_USED, "another site has used the ticket")),
        None if now > ticket.expires_ms => return Err(denied(REFUSED_EXPIRED, "the ticket has expired")),
        None => {}
    }
    if ticket.used_by.is_some() && b.peer(&card.site)?.is_none_or(|p| p.revoked) {
        return Err(denied(REFUSED_USED, "the ticket was used, and the site was revoked since"));
    }
    let first = ticket.used_by.replace(card.site).is_none();
    b.put_ticket(id, &ticket)?;
    put_peer(b, card, now)?;
    if first {
        grant(
            b,
            key,
            &space,
            Grant { sections: ticket.sections, ..Grant::new(card.site, &card.name, &[Right::Read], None) },
        )?;
        journal::write(b, "admitted", Some(space), Some(card.site), &format!("ticket {}", id.short()))?;
    }
    Ok(space)
}

/// Remembers a peer's card; a newer card replaces an older one.
pub fn put_peer(b: &mut Batch, card: &Signed<SiteCard>, now: u64) -> Result<(), CatalogError> {
    let old = b.peer(&card.site)?;
    let known = old.as_ref().and_then(|p| Signed::<SiteCard>::from_bytes(&p.card.0).ok());
    let newest = match known {
        Some(known) if known.time_ms > card.time_ms => known.bytes().to_vec(),
        _ => card.bytes().to_vec(),
    };
    let record = PeerRecord {
        name: card.name.clone(),
        card: Bytes(newest),
        paired_ms: old.as_ref().filter(|p| !p.revoked).map_or(now, |p| p.paired_ms),
        last_seen_ms: Some(now),
        moved_bytes: old.and_then(|p| p.moved_bytes),
        revoked: false,
        unknown: Default::default(),
    };
    b.put_peer(&card.site, &record)
}

/// Adds or replaces one site's grant in a space that this site owns.
pub fn grant(b: &mut Batch, key: &SigningKey, space: &SpaceId, grant: Grant) -> Result<(), CatalogError> {
    change_grants(b, key, space, |grants| {
        grants.retain(|g| g.site != grant.site);
        grants.push(grant);
    })
}

/// Takes a site's grant away; the newest set no longer names it.
pub fn revoke(b: &mut Batch, key: &SigningKey, space: &SpaceId, site: SiteId) -> Result<(), CatalogError> {
    change_grants(b, key, space, |grants| grants.retain(|g| g.site != site))
}

fn change_grants(
    b: &mut Batch,
    key: &SigningKey,
    space: &SpaceId,
    change: impl FnOnce(&mut Vec<Grant>),
) -> Result<(), CatalogError> {
    let old = b.grants(space)?.ok_or_else(|| CatalogError::Store("the space has no grant set".into()))?;
    let mut next: GrantSet = Arc::unwrap_or_clone(old).into_value();
    change(&mut next.grants);
    next.seq += 1;
    next.time_ms = now_ms();
    // A set that no reader would take must not be signed: it would shut out everybody.
    next.check()?;
    let signed = Signed::sign(key, next);
    b.put_meta(space, signed.bytes())?;
    b.put_grants(space, &signed)
}
