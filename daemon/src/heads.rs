//! Heads that an owner signs without a new snapshot: a quiet space's head is renewed, a tag is taken back, grants changed.
//!
//! Invariant: such a head names the manifest of the one before it, and follows it in the chain.

use sluice_protocol::api::ApiError;
use sluice_protocol::head::{Head, Tags};
use sluice_protocol::ids::{SiteId, SpaceId};
use sluice_protocol::limits::HEAD_LIFE_MS;
use sluice_protocol::signed::Signed;
use sluice_store::catalog::{CatalogError, SiteLookup};

use crate::clock::now_ms;
use crate::errors::OrExplain;
use crate::flow::{keep_deed, off_reactor};
use crate::follow::Follow;
use crate::journal;
use crate::setback::Setback;
use crate::site::Site;
use crate::sync::ask;

/// Whether half the life of the newest head is over.
pub fn is_renewal_due(site: &Site, space: &SpaceId) -> Result<bool, CatalogError> {
    let newest = site.catalog.read()?.newest_head(space, &site.id)?;
    Ok(newest.is_some_and(|h| now_ms() >= h.time_ms.saturating_add(HEAD_LIFE_MS / 2)))
}

/// Signs the newest head of a quiet space again when half its life is over.
pub fn renew(site: &Site, space: &SpaceId) -> Result<(), CatalogError> {
    let Some(old) = site.catalog.read()?.newest_head(space, &site.id)? else { return Ok(()) };
    if now_ms() < old.time_ms.saturating_add(HEAD_LIFE_MS / 2) {
        return Ok(());
    }
    site.catalog.write(|b| {
        // A snapshot may have been signed meanwhile.
        if b.newest_head(space, &site.id)?.is_none_or(|newest| newest.id() != old.id()) {
            return Ok(());
        }
        b.put_head(&after(site, &old, &old, None))
    })
}

/// The head that follows `old` in the chain and says what `same` says.
fn after(site: &Site, same: &Head, old: &Signed<Head>, untag: Option<&str>) -> Signed<Head> {
    let now = now_ms();
    let head = Head {
        seq: old.seq + 1,
        prev: Some(old.id()),
        time_ms: now,
        not_after_ms: now.saturating_add(HEAD_LIFE_MS),
        tag: None,
        untag: untag.map(str::to_string),
        ..same.clone()
    };
    Signed::sign(&site.key, head)
}

/// Tells the other readers of a space that its grants changed: whoever was let in may be served by them at once, and whoever
/// lost its grant no longer. A head with the new grants is what they come and ask for. Nobody is told where there is
/// nobody but `of`, and nothing is signed by a site that was set back.
pub async fn tell_of_grants(
    site: &Site,
    follow: &Follow,
    setback: &Setback,
    space: &SpaceId,
    of: SiteId,
) -> Result<(), ApiError> {
    let others = ask::granted(site, space).or_explain()?.into_iter().any(|(reader, _)| reader != of);
    let record = site.catalog.read().or_explain()?.space(space).or_explain()?.filter(|r| r.frozen.is_none());
    let Some(record) = record.filter(|_| others && follow.is_enabled()) else { return Ok(()) };
    setback.check(site, space, &record).await?;
    let (me, id) = (site.clone(), *space);
    let signed = off_reactor(move || {
        let head = with_new_grants(&me, &id).or_explain()?;
        // A catalog that is made again from the deed must know it, or sign its place once more.
        head.iter().for_each(|_| keep_deed(&me, &id, &record));
        Ok(head)
    });
    signed.await?.into_iter().for_each(|head| follow.tell(head, vec![of]));
    Ok(())
}

/// Signs the newest head again when the grants have changed since.
fn with_new_grants(site: &Site, space: &SpaceId) -> Result<Option<Signed<Head>>, CatalogError> {
    site.catalog.write(|b| {
        let (Some(newest), Some(grants)) = (b.newest_head(space, &site.id)?, b.grants(space)?) else { return Ok(None) };
        let grants = b.put_meta(space, grants.bytes())?;
        if newest.grants == grants {
            return Ok(None);
        }
        let head = after(site, &Head { grants, ..(*newest).clone() }, &newest, None);
        b.put_head(&head)?;
        Ok(Some(head))
    })
}

/// A tag that was taken back.
pub struct TakenBack {
    /// The head that bore it.
    pub bore: Signed<Head>,
    /// The head that takes it back.
    pub head: Signed<Head>,
}

/// Signs a head that takes a tag back; none where no version bears it.
pub fn untag(site: &Site, space: &SpaceId, tag: &str) -> Result<Option<TakenBack>, CatalogError> {
    site.catalog.write(|b| {
        let heads = b.heads_since(space, &site.id, (0, 0), usize::MAX)?;
        let mut tags = Tags::default();
        let mut newest_first = heads.iter().rev();
        let stands = |h: &&Signed<Head>| tags.standing(h.tag.as_deref(), h.untag.as_deref()).as_deref() == Some(tag);
        let Some((newest, bore)) = heads.last().zip(newest_first.find(stands)) else { return Ok(None) };
        let head = after(site, newest, newest, Some(tag));
        b.put_head(&head)?;
        let text = format!("`{tag}` of {} (seq {}) was taken back (seq {})", bore.manifest, bore.seq, head.seq);
        journal::write(b, "untagged", Some(*space), None, &text)?;
        Ok(Some(TakenBack { bore: bore.clone(), head }))
    })
}
