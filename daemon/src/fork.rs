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
use sluice_protocol::limits::{HEADS_PER_REPLY_MAX, RIVALS_MAX};
use sluice_protocol::signed::Signed;
use sluice_store::catalog::{Batch, Catalog, CatalogError, Rival, SiteLookup, SpaceRecord};

use crate::clock::now_ms;
use crate::errors::OrExplain;
use crate::journal;

fn head_of(rival: &Rival) -> Option<Signed<Head>> {
    Signed::<Head>::from_bytes(&rival.head.0).ok()
}

fn rival(head: &Signed<Head>, set_aside: bool) -> Rival {
    let head = Bytes(head.bytes().to_vec());
    Rival { head, seen_ms: now_ms(), set_aside, tip: None, tip_seq: None, unknown: Default::default() }
}

/// Keeps a head that nobody has decided about. Where there are too many, the branch that was set aside first
/// gives way: without the new one there would be no choice left.
fn keep(rivals: &mut Vec<Rival>, head: &Signed<Head>) {
    if rivals.iter().filter_map(head_of).any(|r| r.id() == head.id()) {
        return;
    }
    let decided = rivals.iter().enumerate().filter(|(_, r)| r.set_aside);
    if rivals.len() >= RIVALS_MAX
        && let Some(oldest) = decided.min_by_key(|(_, r)| r.seen_ms).map(|(at, _)| at)
    {
        rivals.remove(oldest);
    }
    if rivals.len() < RIVALS_MAX {
        rivals.push(rival(head, false));
    }
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
            keep(&mut record.rivals, head);
        }
        b.put_space(space, &record)?;
        journal::write(b, "frozen", Some(*space), None, why)
    })
}

/// The branch that a person decided against and to which these heads, each the next of the one before,
/// belong: its place among the rivals.
pub fn set_aside(record: &SpaceRecord, heads: &[Signed<Head>]) -> Option<usize> {
    let touches = |of: Option<HeadId>| of.is_some() && heads.iter().any(|h| of == Some(h.id()) || of == h.prev);
    record.rivals.iter().position(|r| r.set_aside && (touches(r.tip) || touches(head_of(r).map(|h| h.id()))))
}

/// From where to ask a peer again whose heads, from `first` on, fork off: an answer that begins there shows
/// whether they belong to a branch that was set aside. None where no such branch is in reach of one answer.
pub fn earlier_place(record: &SpaceRecord, first: &Head) -> Option<(u64, u64)> {
    let in_reach = |seq: &u64| *seq < first.seq && first.seq - *seq <= HEADS_PER_REPLY_MAX as u64;
    let places = record.rivals.iter().filter(|r| r.set_aside).filter_map(|r| {
        let head = head_of(r)?;
        // A later head of a branch has its epoch or a later one, so that nothing is left out.
        let seq = Some(head.seq).filter(in_reach).or(r.tip_seq.filter(in_reach))?;
        Some((head.epoch, seq))
    });
    places.min()
}

/// Whether a head that a peer tells of unasked is one of a branch that was set aside, as far as that was seen.
/// Asking about it would bring nothing, however often it is told. Another one at a place up to there, which does
/// not follow ours, may be taken for one of it: then the next round finds it.
pub fn is_old_news(record: &SpaceRecord, followed: Option<&Signed<Head>>, head: &Signed<Head>) -> bool {
    let followed = followed.map(Signed::<Head>::id);
    if followed == Some(head.id()) || followed.is_some() && followed == head.prev {
        return false;
    }
    let is_seen = |r: &Rival| {
        let from = head_of(r).map(|h| h.seq);
        from.is_some_and(|from| from <= head.seq) && r.tip_seq.is_some_and(|to| head.seq <= to)
    };
    set_aside(record, std::slice::from_ref(head)).is_some() || record.rivals.iter().any(|r| r.set_aside && is_seen(r))
}

/// Remembers how far a branch that was set aside has come, so that its next head is known for what it is.
/// What was seen of it does not get less.
pub fn note_tip(catalog: &Catalog, space: &SpaceId, heads: &[Signed<Head>]) -> Result<(), CatalogError> {
    let Some(newest) = heads.last() else { return Ok(()) };
    let moves = |record: &SpaceRecord| {
        set_aside(record, heads).filter(|at| {
            let rival = &record.rivals[*at];
            rival.tip_seq.or(head_of(rival).map(|h| h.seq)).is_none_or(|seen| seen < newest.seq)
        })
    };
    if catalog.read()?.space(space)?.as_ref().and_then(moves).is_none() {
        return Ok(());
    }
    catalog.write(|b| {
        let Some(mut record) = b.space(space)? else { return Ok(()) };
        if let Some(at) = moves(&record) {
            record.rivals[at].tip = Some(newest.id());
            record.rivals[at].tip_seq = Some(newest.seq);
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
        let (removed, parting) = make_room(b, &record, &head)?;
        b.put_head(&head)?;
        // Its first head is followed from now on: it tells one branch from the other no more.
        record.rivals.retain(|r| head.prev.is_none() || head_of(r).map(|h| h.id()) != head.prev);
        // What was followed here until now becomes the evidence.
        if let Some(parting) = parting {
            let mut evidence = rival(&parting, true);
            (evidence.tip, evidence.tip_seq) = (Some(newest.id()), Some(newest.seq));
            record.rivals.push(evidence);
        }
        let_go = record.held.take_if(|held| removed.contains(held)).is_some();
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

/// Takes out of the chain what the chosen head does not follow. Returns the heads that went, and the first of
/// them that is certainly of the other branch.
fn make_room(
    b: &mut Batch,
    record: &SpaceRecord,
    chosen: &Signed<Head>,
) -> Result<(Vec<HeadId>, Option<Signed<Head>>), CatalogError> {
    let (space, owner) = (&chosen.space, &record.owner);
    let mut removed = b.remove_heads_from(space, owner, chosen.seq)?;
    let mut parting = removed.first().cloned();
    let remains = b.newest_head(space, owner)?.map(|h| h.id());
    if remains.is_some() && remains != chosen.prev {
        // The branches parted earlier, nobody knows where: a chain may begin anywhere, and holds one branch.
        let earlier = b.remove_heads_from(space, owner, 0)?;
        parting = parting.or_else(|| earlier.last().cloned());
        removed.extend(earlier);
    }
    Ok((removed.iter().map(Signed::<Head>::id).collect(), parting))
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;
    use sluice_protocol::ids::{BlobHash, SiteId, SnapshotId};
    use sluice_store::catalog::Role;

    use super::*;

    const SPACE: SpaceId = SpaceId([1; 32]);

    fn next(before: Option<&Signed<Head>>, branch: u8) -> Signed<Head> {
        let key = SigningKey::from_bytes(&[7; 32]);
        let head = Head {
            space: SPACE,
            writer: SiteId(key.verifying_key().to_bytes()),
            epoch: 0,
            seq: before.map_or(0, |h| h.seq + 1),
            manifest: SnapshotId([branch; 32]),
            annex: BlobHash::of(&[branch]),
            grants: BlobHash::of(b"grants"),
            prev: before.map(Signed::<Head>::id),
            time_ms: 1,
            not_after_ms: 2,
            tag: None,
            untag: None,
            unknown: Default::default(),
        };
        Signed::sign(&key, head)
    }

    /// A branch of `count` heads behind `from`.
    fn branch(from: &Signed<Head>, branch: u8, count: usize) -> Vec<Signed<Head>> {
        let mut heads = vec![next(Some(from), branch)];
        (1..count).for_each(|_| heads.push(next(heads.last(), branch)));
        heads
    }

    fn record(rivals: Vec<Rival>) -> SpaceRecord {
        SpaceRecord {
            name: "acme".into(),
            role: Role::Replica,
            lake: "/lake".into(),
            owner: next(None, 0).writer,
            history: None,
            opaque: false,
            sections: vec![],
            sources: vec![],
            frozen: None,
            held: None,
            rivals,
            phrase: None,
            follow: None,
            unknown: Default::default(),
        }
    }

    #[test]
    fn what_was_seen_of_a_branch_does_not_get_less() {
        let dir = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(dir.path()).unwrap();
        let old = branch(&next(None, 0), 1, 6);
        catalog.write(|b| b.put_space(&SPACE, &record(vec![rival(&old[0], true)]))).unwrap();
        let tip = |told: &[Signed<Head>]| {
            note_tip(&catalog, &SPACE, told).unwrap();
            let record = catalog.read().unwrap().space(&SPACE).unwrap().unwrap();
            (record.rivals[0].tip, record.rivals[0].tip_seq)
        };
        let at = |head: &Signed<Head>| (Some(head.id()), Some(head.seq));
        assert_eq!(tip(&old[..4]), at(&old[3]));
        assert_eq!(tip(&old[..2]), at(&old[3]), "an older answer");
        assert_eq!(tip(&old[4..]), at(&old[5]), "its first head follows what was seen");
        assert_eq!(tip(&branch(&old[5], 2, 9)[1..]), at(&old[5]), "nothing leads from one to the other");
    }

    #[test]
    fn a_full_list_of_rivals_takes_an_open_one() {
        let root = next(None, 0);
        let mut rivals: Vec<Rival> = (0..RIVALS_MAX as u8).map(|i| rival(&next(Some(&root), i), true)).collect();
        for (at, rival) in rivals.iter_mut().enumerate() {
            rival.seen_ms = 100 + (at as u64 + 5) % RIVALS_MAX as u64;
        }
        let (oldest, open) = (rivals[3].clone(), next(Some(&root), 100));
        keep(&mut rivals, &open);
        keep(&mut rivals, &open);
        assert_eq!(rivals.len(), RIVALS_MAX);
        assert!(!rivals.contains(&oldest) && rivals.iter().filter(|r| !r.set_aside).count() == 1);
        // Nobody decided about any of these: none gives way.
        rivals.iter_mut().for_each(|r| r.set_aside = false);
        let before = rivals.clone();
        keep(&mut rivals, &next(Some(&root), 101));
        assert_eq!(rivals, before);
    }

    #[test]
    fn a_head_of_a_branch_that_was_set_aside_is_no_news() {
        let root = next(None, 0);
        let (new, old) = (branch(&root, 1, 9), branch(&root, 2, 9));
        let mut rival = rival(&old[0], true);
        (rival.tip, rival.tip_seq) = (Some(old[6].id()), Some(old[6].seq));
        let mut record = record(vec![rival]);
        let is_old = |record: &SpaceRecord, head| is_old_news(record, Some(&new[3]), head);
        // The last one follows what was seen.
        assert!(old[..8].iter().all(|h| is_old(&record, h)));
        assert!(!is_old(&record, &old[8]));
        assert!(!is_old(&record, &new[4]) && !is_old(&record, &new[8]));
        record.rivals[0].set_aside = false;
        assert!(old.iter().all(|h| !is_old(&record, h)), "nobody decided");
    }

    #[test]
    fn a_peer_is_asked_again_from_where_one_answer_leads_here() {
        let old = branch(&next(None, 0), 1, 2 * HEADS_PER_REPLY_MAX);
        let mut rivals = vec![rival(&old[0], true)];
        let place = |rivals: &[Rival], first: &Signed<Head>| earlier_place(&record(rivals.to_vec()), first);
        assert_eq!(place(&rivals, &old[9]), Some((0, 1)));
        assert_eq!(place(&rivals, &old[0]), None);
        let far = HEADS_PER_REPLY_MAX + 3;
        assert_eq!(place(&rivals, &old[far]), None);
        (rivals[0].tip, rivals[0].tip_seq) = (Some(old[7].id()), Some(old[7].seq));
        assert_eq!(place(&rivals, &old[far]), Some((0, old[7].seq)));
        rivals[0].set_aside = false;
        assert_eq!(place(&rivals, &old[9]), None, "nobody decided");
    }
}
