//! `LakePath` against committed corpora and against what proptest finds.

use proptest::prelude::*;
use sluice_protocol::codec::{CodecError, Dec, Enc, Wire};
use sluice_protocol::limits::{PATH_BYTES_MAX, PATH_DEPTH_MAX, PATH_NAME_BYTES_MAX};
use sluice_protocol::path::{LakePath, PathError};

#[path = "../../fixtures/paths/escapes.rs"]
mod escapes;
use escapes::unescape;

const REFUSED: &str = include_str!("../../fixtures/paths/refused.txt");
const ACCEPTED: &str = include_str!("../../fixtures/paths/accepted.txt");

fn lines(corpus: &str) -> impl Iterator<Item = &str> {
    corpus.lines().filter(|l| !l.is_empty() && !l.starts_with('#'))
}

/// The path as it would come from a peer.
fn on_the_wire(bytes: &[u8]) -> Vec<u8> {
    let mut e = Enc::new(Vec::new());
    e.bytes(bytes).unwrap();
    let mut wire = e.into_writer();
    wire[0] |= 0x20; // a byte string and a text differ in one bit of the first byte
    wire
}

#[test]
fn every_hostile_text_is_refused_for_its_reason_and_on_the_wire() {
    let mut count = 0;
    for line in lines(REFUSED) {
        let (reason, text) = line.split_once('\t').unwrap();
        let bytes = unescape(text);
        count += 1;
        let wire = on_the_wire(&bytes);
        let decoded = LakePath::get(&mut Dec::new(&wire));
        match std::str::from_utf8(&bytes) {
            Ok(path) => {
                let error = LakePath::parse(path).expect_err(line);
                assert_eq!(format!("{error:?}"), reason, "{line}");
                assert!(matches!(decoded, Err(CodecError::Invalid(_))), "{line}");
            }
            Err(_) => {
                assert_eq!(reason, "NotUtf8", "{line}");
                assert!(matches!(decoded, Err(CodecError::Malformed(_))), "{line}");
            }
        }
    }
    assert!(count >= 300, "the corpus shrank to {count}");
}

#[test]
fn every_odd_but_honest_text_is_accepted_as_it_is() {
    let mut count = 0;
    for line in lines(ACCEPTED) {
        let text = String::from_utf8(unescape(line)).unwrap();
        let path = LakePath::parse(&text).unwrap_or_else(|e| panic!("{line}: {e}"));
        assert_eq!(path.as_str(), text);
        let wire = on_the_wire(text.as_bytes());
        assert_eq!(LakePath::get(&mut Dec::new(&wire)), Ok(path), "{line}");
        count += 1;
    }
    assert!(count >= 180, "the corpus shrank to {count}");
}

#[test]
fn limits_hold_to_the_byte() {
    let name = "x".repeat(PATH_NAME_BYTES_MAX);
    assert!(LakePath::parse(&name).is_ok());
    assert_eq!(LakePath::parse(&format!("{name}x")), Err(PathError::NameTooLong));
    let longest = format!("{}{}", format!("{name}/").repeat(15), "y".repeat(PATH_BYTES_MAX - 15 * 256 - 1));
    assert_eq!(longest.len(), PATH_BYTES_MAX - 1);
    assert!(LakePath::parse(&longest).is_ok());
    assert_eq!(LakePath::parse(&format!("{longest}/z")), Err(PathError::TooLong));
    let deepest = "d/".repeat(PATH_DEPTH_MAX - 1) + "d";
    let path = LakePath::parse(&deepest).unwrap();
    assert_eq!(path.child("e"), Err(PathError::TooDeep));
}

#[test]
fn walking_up_and_down() {
    let path = LakePath::parse("a/b/c.txt").unwrap();
    let folder = path.parent().unwrap();
    assert_eq!((folder.as_str(), path.file_name()), ("a/b", "c.txt"));
    assert_eq!(path.below(&folder).unwrap().as_str(), "c.txt");
    assert_eq!(LakePath::parse("ab/c").unwrap().below(&LakePath::parse("a").unwrap()), None);
    assert_eq!(path.below(&path), None);
    assert_eq!(LakePath::parse("a").unwrap().parent(), None);
    assert_eq!(folder.child("../x"), Err(PathError::Dots));
    assert_eq!(folder.child(""), Err(PathError::EmptyName));
    assert_eq!(folder.child(".sluice"), Err(PathError::OwnFolder));
}

/// Texts of the characters that matter, so that the rules are hit often.
fn spiky() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "a", "B", "/", "/", ".", "..", " ", ":", "\\", "\0", "\n", "~1", "con", "NUL", "com1", "¹", "sluice",
        ".sluice", "ſ", "\u{200c}", "ä", "=", "%", "😀", "x.txt",
    ]);
    prop::collection::vec(piece, 0..12).prop_map(|v| v.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn what_parses_is_kept_and_safe(text in prop_oneof![spiky(), any::<String>()]) {
        let Ok(path) = LakePath::parse(&text) else { return Ok(()) };
        prop_assert_eq!(path.as_str(), &text);
        prop_assert_eq!(LakePath::parse(path.as_str()), Ok(path.clone()));
        prop_assert!(!text.starts_with('/') && !text.ends_with('/') && !text.contains(['\\', '\0', '\n']));
        prop_assert!(path.names().all(|n| !n.is_empty() && n != "." && n != ".." && !n.eq_ignore_ascii_case(".sluice")));
        prop_assert_eq!(serde_json::from_str::<LakePath>(&serde_json::to_string(&path).unwrap()).unwrap(), path);
    }

    #[test]
    fn every_part_of_a_path_is_a_path(text in spiky()) {
        let Ok(path) = LakePath::parse(&text) else { return Ok(()) };
        let mut above = path.parent();
        while let Some(folder) = above {
            let below = path.below(&folder).expect("a part of a path is a path");
            prop_assert_eq!(folder.join(&below).unwrap(), path.clone());
            above = folder.parent();
        }
        for name in path.names() {
            prop_assert!(LakePath::parse(name).is_ok(), "{}", name);
        }
    }

    #[test]
    fn joining_two_paths_gives_a_path(a in spiky(), b in spiky()) {
        if let (Ok(a), Ok(b)) = (LakePath::parse(&a), LakePath::parse(&b)) {
            let joined = a.join(&b).unwrap();
            prop_assert_eq!(joined.below(&a), Some(b));
        }
    }
}
