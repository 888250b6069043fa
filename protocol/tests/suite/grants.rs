//! Rights: who has them, for what, until when, and who may say so.

use sluice_protocol::codec::CodecError;
use sluice_protocol::grants::{Grant, GrantSet, Right, SuccessionError, check_space_name};
use sluice_protocol::limits::{GRANT_SECTIONS_MAX, NAME_BYTES_MAX, PATH_BYTES_MAX};
use sluice_protocol::signed::{Signed, SignedError};

use crate::samples::{NOW, forge, genesis, grant_set, key, site};

const RIGHTS: [Right; 3] = [Right::Read, Right::Write, Right::Succeed];

fn reader(n: u8) -> Grant {
    Grant::new(site(n), "cradle", &[Right::Read], None)
}

#[test]
fn a_right_is_what_the_grant_says_and_no_other() {
    let set = grant_set(1, 0, vec![reader(2), Grant::new(site(3), "both", &[Right::Read, Right::Write], None)]);
    let may = |n| RIGHTS.map(|r| set.allows(site(n), r, NOW));
    assert_eq!(may(2), [true, false, false]);
    assert_eq!(may(3), [true, true, false]);
    assert_eq!(may(4), [false, false, false]);
    assert_eq!(may(1), [true, true, true], "the owner needs no grant");
    assert!(!set.grants.iter().any(|g| g.site == site(1)));
}

#[test]
fn a_grant_ends_at_its_time() {
    let set = grant_set(1, 0, vec![Grant::new(site(2), "c", &[Right::Read], Some(NOW))]);
    assert!(set.allows(site(2), Right::Read, NOW));
    assert!(!set.allows(site(2), Right::Read, NOW + 1));
    assert!(set.allows(site(1), Right::Read, u64::MAX));
}

#[test]
fn a_missing_grant_is_revoked() {
    let before = Signed::sign(&key(1), grant_set(1, 4, vec![reader(2), reader(3)]));
    let after = Signed::sign(&key(1), grant_set(1, 5, vec![reader(3)]));
    assert_eq!(after.follows(&before), Ok(true));
    assert!(before.allows(site(2), Right::Read, NOW) && !after.allows(site(2), Right::Read, NOW));
    // The old set cannot be played back.
    assert_eq!(before.follows(&after), Err(SuccessionError::Older { found: 4, seen: 5 }));
}

#[test]
fn two_sets_of_one_number_are_a_fork() {
    let one = Signed::sign(&key(1), grant_set(1, 4, vec![reader(2)]));
    let other = Signed::sign(&key(1), grant_set(1, 4, vec![reader(3)]));
    assert_eq!(one.follows(&one.clone()), Ok(false));
    assert_eq!(other.follows(&one), Err(SuccessionError::Fork { seq: 4 }));
    let elsewhere = Signed::sign(&key(2), grant_set(2, 9, vec![]));
    assert_eq!(elsewhere.follows(&one), Err(SuccessionError::OtherSpace));
}

#[test]
fn sections_limit_a_grant() {
    let limited = |sections: &[&str]| Grant { sections: sections.iter().map(|s| s.to_string()).collect(), ..reader(2) };
    let cases: [(&[&str], &str, &str, bool); 14] = [
        (&[], "delta", "orders", true),
        (&["delta"], "delta", "orders", true),
        (&["delta"], "lance", "docs.lance", false),
        (&["orders"], "delta", "orders", true),
        (&["orders"], "delta", "orders/eu", true),
        (&["orders"], "delta", "orders2", false),
        (&["orders/eu"], "delta", "orders", false),
        (&["orders/eu"], "delta", "orders/eu", true),
        (&["ord"], "delta", "orders", false),
        (&["raw", "delta"], "delta", "orders", true),
        (&["."], "files", ".", true),
        (&["."], "files", "a", false),
        (&["/"], "files", "a", false),
        (&["DELTA"], "delta", "orders", false),
    ];
    for (sections, kind, folder, reaches) in cases {
        assert_eq!(limited(sections).reaches(kind, folder), reaches, "{sections:?} {kind} {folder}");
    }
}

#[test]
fn only_the_owner_of_the_genesis_can_sign() {
    let honest = Signed::sign(&key(1), grant_set(1, 0, vec![reader(2)]));
    assert_eq!(Signed::<GrantSet>::from_bytes(honest.bytes()).unwrap(), honest);
    // Another owner in the genesis means another space.
    assert_ne!(grant_set(2, 0, vec![]).space_id(), honest.space_id());
    // Site 2 signs a set of site 1's space with its own key.
    let forged = forge(&grant_set(1, 1, vec![reader(2)]), &key(2));
    assert_eq!(Signed::<GrantSet>::from_bytes(&forged), Err(SignedError::BadSignature { signer: site(1) }));
}

#[test]
#[should_panic(expected = "another site's key")]
fn signing_with_another_key_is_a_fault_of_the_program() {
    Signed::sign(&key(2), grant_set(1, 0, vec![]));
}

#[test]
#[should_panic(expected = "nobody would read")]
fn signing_what_nobody_would_read_is_one_too() {
    Signed::sign(&key(1), grant_set(1, 0, vec![reader(2), reader(2)]));
}

#[test]
fn the_id_of_a_space_covers_all_of_its_genesis() {
    let base = genesis(1);
    let id = base.space_id();
    let changed = [
        sluice_protocol::grants::Genesis { owner: site(2), ..base.clone() },
        sluice_protocol::grants::Genesis { name: "acme2".into(), ..base.clone() },
        sluice_protocol::grants::Genesis { nonce: [8; 16], ..base.clone() },
        sluice_protocol::grants::Genesis { recovery: Some(site(3)), ..base.clone() },
        sluice_protocol::grants::Genesis { created_ms: 1, ..base.clone() },
    ];
    for other in changed {
        assert_ne!(other.space_id(), id);
    }
    assert_eq!(genesis(1).space_id(), id);
}

#[test]
fn sets_that_cannot_be() {
    let bad = |grant: Grant| grant_set(1, 0, vec![grant]);
    let sections = |s: Vec<String>| Grant { sections: s, ..reader(2) };
    let sets = [
        grant_set(1, 0, vec![reader(2), reader(3), reader(2)]),
        bad(Grant { name: String::new(), ..reader(2) }),
        bad(Grant { name: "a\x1b[2J".into(), ..reader(2) }),
        bad(Grant { name: "x".repeat(NAME_BYTES_MAX + 1), ..reader(2) }),
        bad(sections(vec![String::new()])),
        bad(sections(vec!["a\nb".into()])),
        bad(sections(vec!["x".repeat(PATH_BYTES_MAX + 1)])),
        bad(sections(vec!["raw".into(); GRANT_SECTIONS_MAX + 1])),
    ];
    for set in sets {
        let read = Signed::<GrantSet>::from_bytes(&forge(&set, &key(1)));
        assert!(matches!(read, Err(SignedError::Codec(CodecError::Invalid(_) | CodecError::TooLarge { .. }))));
    }
    assert!(Signed::<GrantSet>::from_bytes(Signed::sign(&key(1), bad(sections(vec!["raw".into()]))).bytes()).is_ok());
}

#[test]
fn names_of_spaces() {
    for good in ["acme", "a", "0", "acme-2", "a.b_c", "x".repeat(NAME_BYTES_MAX).as_str()] {
        check_space_name(good).unwrap_or_else(|e| panic!("{good}: {e}"));
    }
    for bad in [
        "",
        ".",
        "..",
        ".a",
        "-a",
        "_a",
        "a/b",
        "a b",
        "Acme",
        "ä",
        "a\0",
        "a\n",
        "a\\b",
        "x".repeat(NAME_BYTES_MAX + 1).as_str(),
    ] {
        assert!(check_space_name(bad).is_err(), "{bad:?}");
    }
}
