//! The chain of heads, case by case. `a(n)` is the honest chain, `b(n)` one that left it.

use sluice_protocol::codec::Document;
use sluice_protocol::head::{ChainError, Head, check_chain};
use sluice_protocol::ids::SpaceId;
use sluice_protocol::limits::{CLOCK_SKEW_MS_MAX, NAME_BYTES_MAX};
use sluice_protocol::signed::Signed;

use crate::samples::{NOW, genesis, head, key, site};

type Chain = Vec<Signed<Head>>;

/// Heads 0..=last of epoch 0.
fn honest(last: u64) -> Chain {
    grow(vec![], 0, last, 1)
}

/// Continues `chain` up to the seq `last`.
fn grow(mut chain: Chain, epoch: u64, last: u64, salt: u8) -> Chain {
    for seq in chain.len() as u64..=last {
        let next = head((epoch, seq), chain.last(), salt);
        chain.push(next);
    }
    chain
}

/// Heads 0..=last that are the honest ones before `from` and others after.
fn forked(from: usize, last: u64) -> Chain {
    grow(honest(last)[..from].to_vec(), 0, last, 2)
}

fn check(stored: Option<&Signed<Head>>, chain: &[Signed<Head>]) -> Result<usize, ChainError> {
    check_chain(genesis(1).space_id(), site(1), stored, chain, NOW)
}

#[test]
fn first_contact_takes_what_hangs_together() {
    let a = honest(9);
    assert_eq!(check(None, &a), Ok(10));
    assert_eq!(check(None, &a[9..]), Ok(1));
    assert_eq!(check(None, &a[4..7]), Ok(3));
    assert_eq!(check(None, &[]), Err(ChainError::Empty));
    let gap = [a[3].clone(), a[5].clone()];
    assert_eq!(check(None, &gap), Err(ChainError::Broken { before: 3, after: 5 }));
}

#[test]
fn what_comes_after_is_taken() {
    let a = honest(9);
    for from in 0..=6 {
        assert_eq!(check(Some(&a[5]), &a[from..]), Ok(4), "from {from}");
    }
    for from in 0..=5 {
        assert_eq!(check(Some(&a[5]), &a[from..6]), Ok(0), "from {from}");
    }
    assert_eq!(check(Some(&a[0]), &a[1..2]), Ok(1));
}

#[test]
fn what_comes_before_is_a_replay() {
    let a = honest(9);
    let replayed = |seq| Err(ChainError::Replayed { epoch: 0, seq, seen_epoch: 0, seen_seq: 5 });
    assert_eq!(check(Some(&a[5]), &a[..5]), replayed(4));
    assert_eq!(check(Some(&a[5]), &a[0..1]), replayed(0));
    assert_eq!(check(Some(&a[5]), &forked(2, 4)[2..]), replayed(4));
    assert_eq!(check(Some(&a[5]), &[]), Err(ChainError::Empty));
}

#[test]
fn another_head_at_the_same_place_is_a_fork() {
    let a = honest(9);
    for from in 0..=5 {
        let b = forked(from, 5);
        let fork = ChainError::Fork { ours: a[5].id(), theirs: b[5].id(), epoch: 0, seq: 5 };
        for start in 0..=5 {
            assert_eq!(check(Some(&a[5]), &b[start..]), Err(fork.clone()), "left at {from}, from {start}");
        }
    }
}

#[test]
fn a_fork_is_seen_across_a_jump() {
    let a = honest(5);
    for from in 0..=5 {
        let b = forked(from, 9);
        for start in 0..=6 {
            let found = check(Some(&a[5]), &b[start..]);
            assert!(matches!(found, Err(ChainError::Fork { .. })), "left at {from}, from {start}: {found:?}");
        }
        // With the place right after the stored head left out nothing can be said but that.
        assert_eq!(check(Some(&a[5]), &b[7..]), Err(ChainError::Broken { before: 5, after: 7 }));
    }
    let fork = ChainError::Fork { ours: a[5].id(), theirs: forked(6, 6)[6].id(), epoch: 0, seq: 6 };
    let b = forked(3, 6);
    let seen = check(Some(&a[5]), &b[6..]).unwrap_err();
    assert_ne!(seen, fork);
    assert_eq!(seen, ChainError::Fork { ours: a[5].id(), theirs: b[6].id(), epoch: 0, seq: 6 });
}

#[test]
fn a_chain_with_a_wrong_link_is_broken() {
    let (a, b) = (honest(9), forked(4, 9));
    let mixed = [a[4].clone(), b[5].clone()];
    assert_eq!(check(None, &mixed), Err(ChainError::Broken { before: 4, after: 5 }));
    let backwards = [a[5].clone(), a[4].clone()];
    assert_eq!(check(None, &backwards), Err(ChainError::Broken { before: 5, after: 4 }));
    let twice = [a[5].clone(), a[5].clone()];
    assert_eq!(check(None, &twice), Err(ChainError::Broken { before: 5, after: 5 }));
    let jump = head((0, 7), Some(&a[5]), 1);
    assert_eq!(check(None, &[a[5].clone(), jump.clone()]), Err(ChainError::Broken { before: 5, after: 7 }));
    assert_eq!(check(Some(&a[5]), &[jump]), Err(ChainError::Broken { before: 5, after: 7 }));
}

#[test]
fn an_epoch_goes_on_where_the_chain_was() {
    let a = honest(5);
    let raised = grow(a.clone(), 1, 9, 1);
    assert_eq!(check(Some(&a[5]), &raised[6..]), Ok(4));
    assert_eq!(check(Some(&a[5]), &raised), Ok(4));
    // A site that took the raised epoch takes no head of the old one, however high.
    let old = honest(20);
    let replayed = ChainError::Replayed { epoch: 0, seq: 20, seen_epoch: 1, seen_seq: 6 };
    assert_eq!(check(Some(&raised[6]), &old), Err(replayed));
    let fallen = grow(raised.clone(), 0, 10, 1);
    assert_eq!(check(None, &fallen), Err(ChainError::Broken { before: 9, after: 10 }));
}

#[test]
fn an_epoch_raised_from_an_old_backup_is_a_fork_for_those_who_saw_more() {
    let a = honest(5);
    let raised = grow(a[..4].to_vec(), 1, 9, 1);
    for start in 0..=4 {
        let found = check(Some(&a[5]), &raised[start..]);
        assert!(matches!(found, Err(ChainError::Fork { epoch: 1, .. })), "from {start}: {found:?}");
    }
    assert!(matches!(check(Some(&a[5]), &raised[6..]), Err(ChainError::Fork { .. })));
    // Who saw only what the backup had goes on.
    assert_eq!(check(Some(&a[3]), &raised[4..]), Ok(6));
}

#[test]
fn heads_of_another_space_or_writer_are_foreign() {
    let a = honest(2);
    let other = check_chain(SpaceId([8; 32]), site(1), None, &a, NOW);
    assert_eq!(other, Err(ChainError::Foreign));
    assert_eq!(check_chain(genesis(1).space_id(), site(2), None, &a, NOW), Err(ChainError::Foreign));
    let mut foreign = a[1].clone().into_value();
    foreign.space = SpaceId([8; 32]);
    let chain = [a[0].clone(), Signed::sign(&key(1), foreign), a[2].clone()];
    assert_eq!(check(None, &chain), Err(ChainError::Foreign));
}

#[test]
fn a_clock_may_run_ahead_by_a_day() {
    let at = |time_ms| {
        let mut h = head((0, 0), None, 1).into_value();
        h.time_ms = time_ms;
        [Signed::sign(&key(1), h)]
    };
    assert_eq!(check(None, &at(NOW + CLOCK_SKEW_MS_MAX)), Ok(1));
    let ahead_ms = CLOCK_SKEW_MS_MAX + 1;
    assert_eq!(check(None, &at(NOW + ahead_ms)), Err(ChainError::FromTheFuture { ahead_ms }));
    assert!(matches!(check(None, &at(u64::MAX)), Err(ChainError::FromTheFuture { .. })));
    assert_eq!(check(None, &at(0)), Ok(1));
    let at_the_end = check_chain(genesis(1).space_id(), site(1), None, &at(u64::MAX), u64::MAX);
    assert_eq!(at_the_end, Ok(1));
}

#[test]
fn the_last_place_does_not_overflow() {
    let mut last = head((0, 1), Some(&honest(0)[0]), 1).into_value();
    last.seq = u64::MAX;
    let last = Signed::sign(&key(1), last);
    assert_eq!(check(Some(&last), std::slice::from_ref(&last)), Ok(0));
    let raised = head((1, u64::MAX), Some(&last), 1);
    assert!(check(Some(&last), std::slice::from_ref(&raised)).is_err());
    assert!(check(None, &[last, raised]).is_err());
}

#[test]
fn a_head_is_stale_after_its_time_and_not_before() {
    let h = head((0, 0), None, 1);
    assert!(!h.is_stale(h.not_after_ms));
    assert!(h.is_stale(h.not_after_ms + 1));
}

#[test]
fn the_first_head_alone_has_none_before_it_and_tags_are_names() {
    let first = head((0, 0), None, 1);
    let mut h = head((0, 1), Some(&first), 1).into_value();
    assert!(h.check().is_ok());
    for (tag, ok) in [("gold", true), ("Q3 – final", true), ("", false), ("a\nb", false), ("\u{202e}dlog", false)] {
        h.tag = Some(tag.into());
        assert_eq!(h.check().is_ok(), ok, "{tag:?}");
    }
    h.tag = Some("x".repeat(NAME_BYTES_MAX + 1));
    assert!(h.check().is_err());
    h.tag = None;
    h.prev = None;
    assert!(h.check().is_err());
    let mut f = first.into_value();
    f.prev = Some(head((0, 0), None, 9).id());
    assert!(f.check().is_err());
}
