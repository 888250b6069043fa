//! What sites tell each other about a space: its grants, its newest heads, who else may hold it.
//!
//! Invariant: nothing a peer says is stored before its signature, its space and its place in the
//! chain were checked, and all of one reply is stored in one transaction. A fork freezes the space.

use sluice_protocol::card::SiteCard;
use sluice_protocol::codec::Bytes;
use sluice_protocol::grants::{GrantSet, SuccessionError};
use sluice_protocol::head::{ChainError, Head, check_chain};
use sluice_protocol::ids::{HeadId, SiteId, SpaceId};
use sluice_protocol::limits::{CARDS_MAX, HEADS_PER_REPLY_MAX};
use sluice_protocol::messages::{HeadsRequest, REFUSED_GRANT, REFUSED_LATER, REFUSED_NO_HEAD, Refusal, SpaceNews};
use sluice_protocol::signed::{Signed, SignedError};
use sluice_store::catalog::{Batch, Catalog, CatalogError, SiteLookup};

use crate::clock::now_ms;
use crate::fork;
use crate::policy::{Policy, Reach};

/// Why a peer's news is not believed.
#[derive(Debug, thiserror::Error)]
pub enum NewsError {
    #[error("{what} from the peer is not believed: {cause}")]
    Signed { what: &'static str, cause: SignedError },
    #[error("the peer answered about another space")]
    OtherSpace,
    #[error(transparent)]
    Grants(#[from] SuccessionError),
    #[error("{0}")]
    Chain(#[from] ChainError),
    #[error("the peer tells of a branch (head {0}) that a person here decided against")]
    SetAside(HeadId),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

/// A peer's news after every check.
pub struct Believed {
    grants: Signed<GrantSet>,
    heads: Vec<Signed<Head>>,
    cards: Vec<Signed<SiteCard>>,
    /// The peer has more heads: ask again.
    pub more: bool,
}

impl Believed {
    /// The grant set in force.
    pub fn grants(&self) -> &Signed<GrantSet> {
        &self.grants
    }

    /// Cards of sites that may hold the space.
    pub fn cards(&self) -> &[Signed<SiteCard>] {
        &self.cards
    }
}

/// Checks a reply against what is stored of the space.
pub fn believe(b: &impl SiteLookup, space: &SpaceId, news: &SpaceNews, now: u64) -> Result<Believed, NewsError> {
    let grants = Signed::<GrantSet>::from_bytes(&news.grants.0)
        .map_err(|cause| NewsError::Signed { what: "the grant set", cause })?;
    if grants.space_id() != *space {
        return Err(NewsError::OtherSpace);
    }
    if let Some(stored) = b.grants(space)? {
        grants.follows(&stored)?;
    }
    let head =
        |raw: &Bytes| Signed::<Head>::from_bytes(&raw.0).map_err(|cause| NewsError::Signed { what: "a head", cause });
    let heads = news.heads.iter().map(head).collect::<Result<Vec<_>, _>>()?;
    let owner = grants.genesis.owner;
    if !heads.is_empty() {
        let checked = check_chain(*space, owner, b.newest_head(space, &owner)?.as_ref(), &heads, now);
        if let Err(ChainError::Fork { theirs, .. }) = &checked
            && let Some(record) = b.space(space)?
            && fork::set_aside(&record, &heads).is_some()
        {
            return Err(NewsError::SetAside(*theirs));
        }
        checked?;
    }
    // A card that does not verify is only a lost hint.
    let cards = news.cards.iter().filter_map(|raw| Signed::<SiteCard>::from_bytes(&raw.0).ok());
    let cards = cards.filter(|c| c.site == owner || grants.of(c.site).is_some()).collect();
    Ok(Believed { grants, heads, cards, more: news.more })
}

/// Stores believed news.
pub fn store(b: &mut Batch, space: &SpaceId, news: &Believed) -> Result<(), CatalogError> {
    b.put_meta(space, news.grants.bytes())?;
    b.put_grants(space, &news.grants)?;
    for head in &news.heads {
        b.put_head(head)?;
    }
    news.cards.iter().try_for_each(|card| b.put_card(card))
}

/// Checks and stores a reply in one transaction; a fork freezes the space.
pub fn take(catalog: &Catalog, space: &SpaceId, news: &SpaceNews) -> Result<Believed, NewsError> {
    let now = now_ms();
    let taken = catalog.write(|b| {
        let believed = believe(b, space, news, now)?;
        store(b, space, &believed)?;
        Ok(believed)
    });
    let told = |id: &HeadId| heads_of(news).into_iter().find(|h| h.id() == *id);
    match &taken {
        Err(NewsError::Chain(why @ ChainError::Fork { theirs, .. })) => {
            fork::freeze(catalog, space, &why.to_string(), told(theirs).as_ref())?;
        }
        Err(NewsError::Grants(why @ SuccessionError::Fork { .. })) => {
            fork::freeze(catalog, space, &why.to_string(), None)?;
        }
        Err(NewsError::SetAside(_)) => fork::note_tip(catalog, space, &heads_of(news))?,
        _ => {}
    }
    taken
}

/// From where to ask a peer again before its reply counts as a fork: a reply begins at the place of this
/// site, which may lie behind that at which a branch left that a person decided against.
pub fn unclear(catalog: &Catalog, space: &SpaceId, news: &SpaceNews) -> Result<Option<(u64, u64)>, CatalogError> {
    let reader = catalog.read()?;
    let Some(record) = reader.space(space)?.filter(|r| r.rivals.iter().any(|r| r.set_aside)) else { return Ok(None) };
    Ok(match believe(&reader, space, news, now_ms()) {
        Err(NewsError::Chain(ChainError::Fork { .. })) => {
            heads_of(news).first().and_then(|first| fork::earlier_place(&record, first))
        }
        Err(NewsError::Catalog(e)) => return Err(e),
        _ => None,
    })
}

/// A reply, begun earlier by what the same peer said of an earlier place, if the one leads to the other.
pub fn longer(earlier: &SpaceNews, mut news: SpaceNews) -> SpaceNews {
    if let Some(first) = heads_of(&news).first() {
        let mut before = heads_of(earlier);
        before.truncate(before.iter().position(|h| h.id() == first.id()).unwrap_or(before.len()));
        if before.last().is_some_and(|h| Some(h.id()) == first.prev) {
            news.heads.splice(0..0, before.iter().map(|h| Bytes(h.bytes().to_vec())));
        }
    }
    news
}

/// The heads of a reply whose signatures hold.
fn heads_of(news: &SpaceNews) -> Vec<Signed<Head>> {
    news.heads.iter().filter_map(|raw| Signed::<Head>::from_bytes(&raw.0).ok()).collect()
}

/// Answers a peer that asks for the news of a space.
pub fn answer(
    catalog: &Catalog,
    policy: &Policy,
    own_card: &Signed<SiteCard>,
    peer: SiteId,
    request: &HeadsRequest,
) -> Result<SpaceNews, Refusal> {
    let failed = |e: CatalogError| {
        tracing::error!(error = %e, "news could not be read");
        Refusal::new(REFUSED_LATER, "the site cannot read its catalog")
    };
    let r = catalog.read().map_err(failed)?;
    let space = &request.space;
    let reach: Option<Reach> = policy.reach(&r, space, peer).map_err(failed)?;
    // The same words whether the space is unknown here or not granted: presence is no news either.
    let refused = || Refusal::new(REFUSED_GRANT, "no grant lets this site read that space");
    if reach.is_none() {
        return Err(refused());
    }
    let record = r.space(space).map_err(failed)?.ok_or_else(refused)?;
    let grants = r.grants(space).map_err(failed)?.ok_or_else(refused)?;
    let have = request.have_epoch.zip(request.have_seq);
    let mut heads = match have {
        Some(place) => r.heads_since(space, &record.owner, place, HEADS_PER_REPLY_MAX + 1).map_err(failed)?,
        None => r.newest_head(space, &record.owner).map_err(failed)?.into_iter().collect(),
    };
    // A peer that is ahead of this site still learns where this site stands, and sees a fork.
    if heads.is_empty() {
        heads = r.newest_head(space, &record.owner).map_err(failed)?.into_iter().collect();
    }
    if heads.is_empty() {
        return Err(Refusal::new(REFUSED_NO_HEAD, "the space has no snapshot yet"));
    }
    let more = heads.len() > HEADS_PER_REPLY_MAX;
    heads.truncate(HEADS_PER_REPLY_MAX);
    let mut cards = vec![Bytes(own_card.bytes().to_vec())];
    let others = grants.grants.iter().map(|g| g.site).chain([record.owner]).filter(|s| *s != peer);
    for site in others.take(CARDS_MAX) {
        if let Ok(Some(card)) = r.card(&site)
            && cards.len() < CARDS_MAX
        {
            cards.push(Bytes(card.bytes().to_vec()));
        }
    }
    Ok(SpaceNews {
        grants: Bytes(grants.bytes().to_vec()),
        heads: heads.iter().map(|h| Bytes(h.bytes().to_vec())).collect(),
        cards,
        more,
        unknown: Default::default(),
    })
}
