//! Two heads that one owner signed for one place: what is kept of them, and what a person decides.
//!
//! The first fork that a site sees freezes the space there, and both heads are kept. A person picks the
//! branch to go on from; the other one stays as evidence, and is not believed again.
//!
//! Invariant: only signed heads of the owner are branches. A decision is one commit, names one branch, and
//! holds for the branches that were seen by then: a further one freezes the space again.

use sluice_protocol::api::{ApiError, BranchInfo, BranchStanding, Failure};
use sluice_protocol::codec::Bytes;
use sluice_protocol::head::Head;
use sluice_protocol::ids::{HeadId, SpaceId};
use sluice_protocol::limits::RIVALS_MAX;
use sluice_protocol::signed::Signed;
use sluice_store::catalog::{Batch, Catalog, CatalogError, Rival, SiteLookup, SpaceRecord};

use crate::clock::now_ms;
use crate::errors::OrExplain;
use crate::journal;

fn head_of(rival: &Rival) -> Option<Signed<Head>> {
    Signed::<Head>::from_bytes(&rival.head.0).ok()
}

fn rival(head: &Signed<Head>, set_aside: bool) -> Rival {
    Rival { head: Bytes(head.bytes().to_vec()), seen_ms: now_ms(), set_aside, tip: None, unknown: Default::default() }
}

/// Freezes a space in which two documents contradict each other; a head that does is kept.
pub fn freeze(
    catalog: &Catalog,
    space: &SpaceId,
    why: &str,
    contradicts: Option<&Signed<Head>>,
) -> Result<(), CatalogError> {
    tracing::error!(space = %space.short(), why, "a fork: the space is frozen");
    catalog.write(|b| {
        let Some(mut record) = b.space(space)? else { return Ok(()) };
        record.frozen = Some(why.to_string());
        if let Some(head) = contradicts {
            let known = record.rivals.iter().filter_map(head_of).any(|r| r.id() == head.id());
            if !known && record.rivals.len() < RIVALS_MAX {
                record.rivals.push(rival(head, false));
            }
        }
        b.put_space(space, &record)?;
        journal::write(b, "frozen", Some(*space), None, why)
    })
}

/// The branch that a person decided against and that this head belongs to: its place among the rivals.
pub fn set_aside(record: &SpaceRecord, head: &Signed<Head>) -> Option<usize> {
    let is_of = |of: Option<HeadId>| of.is_some() && (of == Some(head.id()) || of == head.prev);
    record.rivals.iter().position(|r| r.set_aside && (is_of(r.tip) || is_of(head_of(r).map(|h| h.id()))))
}

/// Remembers how far a branch that was set aside has come, so that its next head is known for what it is.
pub fn note_tip(catalog: &Catalog, space: &SpaceId, head: &Signed<Head>, tip: HeadId) -> Result<(), CatalogError> {
    let known = catalog.read()?.space(space)?;
    let is_new = |r: &SpaceRecord| set_aside(r, head).is_some_and(|at| r.rivals[at].tip != Some(tip));
    if !known.as_ref().is_some_and(is_new) {
        return Ok(());
    }
    catalog.write(|b| {
        let Some(mut record) = b.space(space)? else { return Ok(()) };
        if let Some(at) = set_aside(&record, head) {
            record.rivals[at].tip = Some(tip);
            b.put_space(space, &record)?;
        }
        Ok(())
    })
}

/// The branches of a space, the followed one first; none where there is one chain only.
pub fn branches(r: &impl SiteLookup, space: &SpaceId, record: &SpaceRecord) -> Result<Vec<BranchInfo>, CatalogError> {
    if record.rivals.is_empty() {
        return Ok(vec![]);
    }
    let followed = r.newest_head(space, &record.owner)?;
    let mut all: Vec<BranchInfo> = followed.iter().map(|h| info(h, BranchStanding::Followed)).collect();
    all.extend(record.rivals.iter().filter_map(|rival| {
        let standing = if rival.set_aside { BranchStanding::SetAside } else { BranchStanding::Open };
        Some(info(&head_of(rival)?, standing))
    }));
    Ok(all)
}

fn info(head: &Signed<Head>, standing: BranchStanding) -> BranchInfo {
    BranchInfo {
        head: head.id(),
        snapshot: head.manifest,
        epoch: head.epoch,
        seq: head.seq,
        time_ms: head.time_ms,
        tag: head.tag.clone(),
        standing,
    }
}

/// What a person decided.
pub struct Decided {
    /// The head from which the space goes on.
    pub head: Signed<Head>,
    /// Branches that are evidence from now on.
    pub set_aside: usize,
    /// The copy was held at a version of another branch, and is not any more.
    pub let_go: bool,
}

/// Goes on from the branch that `text`, a head's id or its beginning, names.
pub fn decide(catalog: &Catalog, space: &SpaceId, name: &str, text: &str) -> Result<Decided, ApiError> {
    let reader = catalog.read().or_explain()?;
    let gone = || ApiError::plain(Failure::Error, format!("the space `{name}` was removed meanwhile"));
    let record = reader.space(space).or_explain()?.ok_or_else(gone)?;
    let all = branches(&reader, space, &record).or_explain()?;
    drop(reader);
    if all.is_empty() {
        return Err(nothing_to_decide(name, &record));
    }
    let wanted = text.to_ascii_lowercase();
    let mut fits = all.iter().filter(|b| wanted.len() >= 4 && b.head.to_string().starts_with(&wanted));
    let (Some(chosen), None) = (fits.next(), fits.next()) else {
        let ids: Vec<String> = all.iter().map(|b| b.head.to_string()).collect();
        return Err(ApiError::new(
            Failure::Error,
            format!("`{name}` has no branch `{text}`, or more than one"),
            format!("name one of the heads {}; `sluice resolve {name}` shows them", ids.join(", ")),
        ));
    };
    catalog.write(|b| go_on_from(b, space, &chosen.head)).or_explain()
}

fn nothing_to_decide(name: &str, record: &SpaceRecord) -> ApiError {
    match &record.frozen {
        None => ApiError::new(
            Failure::Usage,
            format!("`{name}` has one history: there is no branch to choose"),
            format!("`sluice resolve {name}` shows what there is to decide"),
        ),
        Some(why) => ApiError::new(
            Failure::Verification,
            format!("`{name}` is frozen, and not by two heads that were kept: {why}"),
            format!("remove it with `sluice space remove {name}` and join anew; the files stay"),
        ),
    }
}

fn go_on_from(b: &mut Batch, space: &SpaceId, chosen: &HeadId) -> Result<Decided, CatalogError> {
    let gone = || CatalogError::Refused("the space or the branch is not known here any more".into());
    let mut record = b.space(space)?.ok_or_else(gone)?;
    let newest = b.newest_head(space, &record.owner)?.ok_or_else(gone)?;
    let mut let_go = false;
    let head = if newest.id() == *chosen {
        newest
    } else {
        let at = record.rivals.iter().position(|r| head_of(r).is_some_and(|h| h.id() == *chosen)).ok_or_else(gone)?;
        let head = head_of(&record.rivals.remove(at)).ok_or_else(gone)?;
        let removed = b.remove_heads_from(space, &record.owner, head.seq)?;
        b.put_head(&head)?;
        // Where the branches part: what was followed here until now becomes the evidence.
        let mut evidence = rival(removed.first().unwrap_or(&newest), true);
        evidence.tip = Some(newest.id());
        record.rivals.push(evidence);
        let_go = record.held.take_if(|held| removed.iter().any(|h| h.id() == *held)).is_some();
        head
    };
    record.frozen = None;
    record.rivals.iter_mut().for_each(|r| r.set_aside = true);
    b.put_space(space, &record)?;
    let set_aside = record.rivals.len();
    let text = format!("goes on from head {} (seq {}); {set_aside} set aside", head.id(), head.seq);
    journal::write(b, "fork resolved", Some(*space), None, &text)?;
    Ok(Decided { head, set_aside, let_go })
}
