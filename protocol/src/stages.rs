//! In which order the files of a section may become visible.
//!
//! Invariant: a pure function of section kind and path, so that the publisher needs no format
//! library. A file that names others comes in a later stage than the files it names.

use crate::manifest::SectionKind;
use crate::path::LakePath;

/// The stage of a file: lower is placed and made durable first.
///
/// `rank` orders kinds of files, `version` orders within a rank what must appear one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stage {
    pub rank: u8,
    pub version: u64,
}

/// What happens to a file that a newer version names again with other bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replace {
    /// The file is written once: other bytes mean another table, so the section gets a new folder.
    Never,
    /// A pointer that its format replaces by rename.
    Pointer,
}

const DATA: u8 = 0;

fn stage(rank: u8) -> Stage {
    Stage { rank, version: 0 }
}

/// The stage of `path` (below the section root) in a section of this kind.
pub fn stage_of(kind: SectionKind, path: &LakePath) -> Stage {
    match kind {
        SectionKind::Delta => delta(path),
        SectionKind::Lance => lance(path),
        _ => named_last(path),
    }
}

/// Whether other bytes under the same path are a change in place.
pub fn replace_of(kind: SectionKind, path: &LakePath) -> Replace {
    let pointer = kind == SectionKind::Delta && path.as_str() == "_delta_log/_last_checkpoint";
    if pointer { Replace::Pointer } else { Replace::Never }
}

/// Whether a section of this kind may grow inside its folder when a version only adds files.
pub fn grows_in_place(kind: SectionKind) -> bool {
    kind.is_table()
}

/// Whether the file's modification time is part of the snapshot and restored on a replica.
pub fn keeps_mtime(kind: SectionKind, path: &LakePath) -> bool {
    match kind {
        // delta-rs takes version times from the mtime of commit files.
        SectionKind::Delta => delta_commit(path).is_some(),
        // Old times on data without a manifest would let Lance's cleanup remove it.
        SectionKind::Lance => false,
        _ => true,
    }
}

/// Whether the file is written once under its name, so that a hard link keeps its bytes.
pub fn write_once(kind: SectionKind, path: &LakePath) -> bool {
    match kind {
        SectionKind::Delta => replace_of(kind, path) == Replace::Never,
        SectionKind::Lance => !path.as_str().starts_with("_refs/"),
        _ => false,
    }
}

/// Files that a replica makes itself instead of copying.
pub fn is_regenerated(kind: SectionKind, path: &LakePath) -> bool {
    kind == SectionKind::Lance && path.file_name() == "latest_version_hint.json"
}

/// The version of a Delta commit file.
pub fn delta_commit(path: &LakePath) -> Option<u64> {
    let name = path.as_str().strip_prefix("_delta_log/")?;
    digits(name.strip_suffix(".json")?)
}

fn digits(text: &str) -> Option<u64> {
    let all = text.len() == 20 && text.bytes().all(|b| b.is_ascii_digit());
    if all { text.parse().ok() } else { None }
}

fn delta(path: &LakePath) -> Stage {
    let Some(name) = path.as_str().strip_prefix("_delta_log/") else {
        return stage(DATA);
    };
    if name.starts_with("_sidecars/") {
        return stage(1);
    }
    if name == "_last_checkpoint" {
        return stage(4);
    }
    if name.contains(".checkpoint") {
        return stage(3);
    }
    // `N.json`, `N.crc` and `N.M.compacted.json` appear with their (last) version.
    let version = name.split('.').take_while(|part| digits(part).is_some()).filter_map(digits).last();
    match version {
        Some(version) => Stage { rank: 2, version },
        None => stage(2),
    }
}

fn lance(path: &LakePath) -> Stage {
    match path.names().next() {
        Some("_transactions") => stage(1),
        Some("_versions") => Stage { rank: 2, version: lance_version(path.file_name()) },
        Some("_refs") => stage(3),
        // A branch is a dataset of its own below `tree/<branch>/`.
        Some("tree") => match path.as_str() {
            p if p.contains("/_transactions/") => stage(1),
            p if p.contains("/_versions/") => Stage { rank: 2, version: lance_version(path.file_name()) },
            _ => stage(DATA),
        },
        _ => stage(DATA),
    }
}

/// The version of `_versions/*.manifest`: V2 names count down from `u64::MAX`, V1 names count up.
fn lance_version(name: &str) -> u64 {
    let stem = name.strip_suffix(".manifest").unwrap_or(name);
    match stem.parse::<u64>() {
        Ok(n) if stem.len() == 20 => u64::MAX - n,
        Ok(n) => n,
        Err(_) => u64::MAX,
    }
}

/// Plain sections: files first, then the file that names them.
fn named_last(path: &LakePath) -> Stage {
    const NAMES_OTHERS: [&str; 6] = [
        "adapter_config.json",
        "index.faiss",
        "manifest.json",
        "modules.json",
        "model.safetensors.index.json",
        "checksums.sha256",
    ];
    if NAMES_OTHERS.contains(&path.file_name()) { stage(1) } else { stage(DATA) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(kind: SectionKind, paths: &[&str]) {
        let stages: Vec<Stage> = paths.iter().map(|p| stage_of(kind, &LakePath::parse(p).unwrap())).collect();
        assert!(stages.is_sorted(), "{paths:?} {stages:?}");
        assert!(stages.first() < stages.last());
    }

    #[test]
    fn delta_commits_follow_their_data_and_each_other() {
        order(
            SectionKind::Delta,
            &[
                "part-0001.parquet",
                "_change_data/cdc-1.parquet",
                "deletion_vector_1.bin",
                "_delta_log/_sidecars/a.parquet",
                "_delta_log/00000000000000000000.json",
                "_delta_log/00000000000000000001.crc",
                "_delta_log/00000000000000000001.json",
                "_delta_log/00000000000000000010.json",
                "_delta_log/00000000000000000010.checkpoint.parquet",
                "_delta_log/_last_checkpoint",
            ],
        );
    }

    #[test]
    fn lance_manifests_come_ascending_after_data() {
        let v = |n: u64| format!("_versions/{:020}.manifest", u64::MAX - n);
        order(
            SectionKind::Lance,
            &[
                "data/a.lance",
                "_deletions/1.arrow",
                "_indices/x/index.idx",
                "_transactions/1-a.txn",
                &v(1),
                &v(2),
                &v(300),
                "_refs/tags/gold.json",
            ],
        );
        order(SectionKind::Lance, &["data/a.lance", "_versions/1.manifest", "_versions/2.manifest"]);
    }

    #[test]
    fn the_naming_file_comes_last() {
        order(SectionKind::Lora, &["adapter_model.safetensors", "adapter_config.json"]);
        order(SectionKind::Faiss, &["embeddings.parquet", "index.faiss"]);
    }

    #[test]
    fn times_and_links() {
        let p = |s: &str| LakePath::parse(s).unwrap();
        assert!(keeps_mtime(SectionKind::Delta, &p("_delta_log/00000000000000000001.json")));
        assert!(!keeps_mtime(SectionKind::Delta, &p("part-1.parquet")));
        assert!(!keeps_mtime(SectionKind::Lance, &p("data/a.lance")));
        assert!(keeps_mtime(SectionKind::Raw, &p("a.txt")));
        assert!(!write_once(SectionKind::Delta, &p("_delta_log/_last_checkpoint")));
        assert!(write_once(SectionKind::Lance, &p("data/a.lance")));
    }
}
