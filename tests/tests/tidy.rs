//! Style that a compiler does not check: how files open, how long they are, what must not be in them.

use std::path::{Path, PathBuf};

/// STYLE, habit 13.
const FILE_LINES_MAX: usize = 600;
/// Vector instructions, and one call of the C library.
const UNSAFE_FILES: [&str; 2] = ["indexer/embed/src/simd.rs", "daemon/src/memory.rs"];
const CRATES: [&str; 6] = ["protocol", "store", "indexer", "web", "daemon", "tests"];

fn workspace() -> PathBuf {
    sluice_tests::folder().parent().expect("tests/ lies in the workspace").to_owned()
}

fn rust_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
        let path = entry.expect("a readable folder").path();
        if path.is_dir() && path.file_name().is_some_and(|n| n != "target") {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// What is wrong with a file, in words.
fn complaints(path: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    if !text.starts_with("//!") {
        found.push("does not open with what it is for (`//!`)".to_owned());
    }
    let lines = text.lines().count();
    if lines > FILE_LINES_MAX {
        found.push(format!("has {lines} lines, more than {FILE_LINES_MAX}"));
    }
    if path.file_stem().is_some_and(|n| ["util", "utils", "helpers", "misc", "common"].iter().any(|w| n == *w)) {
        found.push("has a name that says nothing".to_owned());
    }
    // In parts, so that this file does not complain about itself.
    for word in [concat!("FIX", "ME"), concat!("XX", "X "), concat!("unsafe", " {")] {
        let allowed = word.starts_with("unsafe") && UNSAFE_FILES.iter().any(|file| path.ends_with(file));
        if text.contains(word) && !allowed {
            found.push(format!("holds `{word}`"));
        }
    }
    found
}

#[test]
fn the_house_is_tidy() {
    let mut files = Vec::new();
    for name in CRATES {
        rust_files(&workspace().join(name), &mut files);
    }
    assert!(files.len() > 20, "the walk found the sources");
    let mut all = Vec::new();
    for path in files {
        let text = std::fs::read_to_string(&path).expect("source is UTF-8");
        let shown = path.strip_prefix(workspace()).expect("below the workspace").display().to_string();
        all.extend(complaints(&path, &text).into_iter().map(|c| format!("{shown} {c}")));
    }
    assert!(all.is_empty(), "{}", all.join("\n"));
}

#[test]
fn untidy_files_are_noticed() {
    let long = format!("//! Long.\n{}", "// line\n".repeat(FILE_LINES_MAX));
    assert_eq!(complaints(Path::new("scan.rs"), &long).len(), 1);
    assert_eq!(complaints(Path::new("utils.rs"), "//! Bits.\n").len(), 1);
    assert_eq!(complaints(Path::new("scan.rs"), "fn main() {}\n").len(), 1);
    assert_eq!(complaints(Path::new("scan.rs"), "//! Scans.\n"), Vec::<String>::new());
}

/// Crates depend in one direction, and each heavy library has one home.
#[test]
fn heavy_libraries_live_in_one_room() {
    let rooms = [
        ("redb", "store/src/catalog"),
        ("iroh", "daemon/src/lanes"),
        ("axum", "web/src"),
        ("deltalake", "indexer/src"),
        ("lance", "indexer/src"),
        ("datafusion", "indexer/src"),
    ];
    let mut files = Vec::new();
    for name in CRATES.iter().filter(|n| **n != "tests") {
        rust_files(&workspace().join(name).join("src"), &mut files);
    }
    let mut strays = Vec::new();
    for path in files {
        let text = std::fs::read_to_string(&path).expect("source is UTF-8");
        let shown = path.strip_prefix(workspace()).expect("below the workspace").display().to_string();
        for (library, room) in rooms {
            let uses = |form: String| text.lines().any(|l| l.trim_start().starts_with(&form));
            let imported = uses(format!("use {library}::")) || uses(format!("pub use {library}::"));
            if imported && !shown.starts_with(room) {
                strays.push(format!("{shown} imports {library}, whose room is {room}"));
            }
        }
    }
    assert!(strays.is_empty(), "{}", strays.join("\n"));
}

/// Calls that change a disk, as they stand in code. The disk layer names each, so that a fault can be
/// put there; one that went past it would be tested by nothing.
const DISK_CHANGES: [&str; 29] = [
    "OFlags::CREATE",
    "File::create",
    "create_new(",
    ".create(true)",
    "fs::write(",
    "fs::rename(",
    "fs::copy(",
    "fs::remove_",
    "fs::hard_link",
    "fs::create_dir",
    "fs::set_permissions",
    "DirBuilder",
    "create_dir_with",
    "rustix::fs::mkdirat",
    "rustix::fs::symlinkat",
    "rustix::fs::linkat",
    "rustix::fs::renameat",
    "rustix::fs::unlinkat",
    "rustix::fs::fchmod",
    "rustix::fs::futimens",
    "rustix::fs::fallocate",
    "rustix::fs::ftruncate",
    "rustix::fs::ioctl_ficlone",
    "rustix::fs::fsync",
    "rustix::fs::syncfs",
    ".set_len(",
    ".sync_all()",
    ".sync_data()",
    ".write_all_at(",
];

#[test]
fn only_the_disk_layer_changes_a_disk() {
    let mut files = Vec::new();
    rust_files(&workspace().join("store/src"), &mut files);
    let mut strays = Vec::new();
    for path in files {
        let shown = path.strip_prefix(workspace()).expect("below the workspace").display().to_string();
        // A folder `tests` is a test's world, as what stands last in a file is.
        if shown.starts_with("store/src/disk/") || shown.contains("/tests/") {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("source is UTF-8");
        // Tests stand last in a file, and make what they need themselves.
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for (number, line) in code.lines().enumerate() {
            let found = DISK_CHANGES.iter().find(|c| line.contains(**c));
            strays.extend(found.map(|c| format!("{shown}:{}: `{c}` goes past store/src/disk", number + 1)));
        }
    }
    assert!(strays.is_empty(), "{}", strays.join("\n"));
}
