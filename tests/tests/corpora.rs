//! The corpora of the fuzz targets, replayed: what once broke a decoder, or began its corpus, is
//! decoded by every run of the tests.

#[path = "../fuzz/src/lib.rs"]
mod fuzzed;

use std::path::{Path, PathBuf};

fn corpus() -> PathBuf {
    sluice_tests::folder().join("fuzz/corpus")
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    entries.map(|e| e.expect("a readable folder").path()).collect()
}

#[test]
fn every_corpus_is_replayed() {
    let mut names: Vec<String> =
        files(&corpus()).iter().map(|p| p.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    names.sort();
    assert_eq!(names, fuzzed::TARGETS.map(|(name, _)| name), "a corpus for each target, a target for each corpus");
    for (name, target) in fuzzed::TARGETS {
        let inputs = files(&corpus().join(name));
        assert!(!inputs.is_empty(), "{name} has no corpus");
        for input in inputs {
            let bytes = std::fs::read(&input).expect("a corpus is files");
            // Named here, since a panic within tells nothing of its input.
            eprintln!("{}", input.display());
            target(&bytes);
        }
    }
}

/// Near everything that is accepted, nothing panics: each input cut at every length, and with every
/// bit of its first bytes turned.
#[test]
fn what_is_near_a_corpus_breaks_nothing_either() {
    for (name, target) in fuzzed::TARGETS {
        for input in files(&corpus().join(name)) {
            let bytes = std::fs::read(&input).expect("a corpus is files");
            eprintln!("{}", input.display());
            for end in 0..bytes.len().min(2048) {
                target(&bytes[..end]);
            }
            for bit in 0..8 * bytes.len().min(512) {
                let mut turned = bytes.clone();
                turned[bit / 8] ^= 1 << (bit % 8);
                target(&turned);
            }
        }
    }
}
