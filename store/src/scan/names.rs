//! Names that another file system cannot tell apart.
//!
//! Linux keeps `Data` and `data`, and two spellings of `é`, as different files. Both are kept here;
//! a person is told, because a copy on another system would merge them.

use std::collections::HashMap;

use sluice_protocol::path::LakePath;
use unicode_normalization::UnicodeNormalization;

use super::walk::{Folder, Tree};
use super::{Report, Skip};

/// Notes every pair of names in one folder that differ only by case or by Unicode form.
pub(super) fn collisions(tree: &Tree, report: &mut Report) {
    for folder in &tree.0 {
        let mut seen: HashMap<String, &str> = HashMap::new();
        for name in names(tree, folder) {
            if let Some(first) = seen.insert(fold(name), name) {
                let reason = format!("its name differs from `{first}` only by case or Unicode form");
                let path = folder.path.as_ref().map_or(name.to_string(), |p| format!("{p}/{name}"));
                report.notes.push(Skip::new(path, reason));
            }
        }
    }
}

fn names<'a>(tree: &'a Tree, folder: &'a Folder) -> impl Iterator<Item = &'a str> {
    let folders = folder.folders.iter().filter_map(|i| tree.0[*i].path.as_ref()).map(LakePath::file_name);
    let files = folder.files.iter().map(|f| &*f.name);
    files.chain(folders).chain(folder.links.iter().map(|(name, _)| &**name))
}

/// What a system that ignores case and Unicode form makes of a name.
fn fold(name: &str) -> String {
    if name.is_ascii() {
        return name.to_ascii_lowercase();
    }
    name.nfc().flat_map(char::to_lowercase).nfc().collect()
}

#[cfg(test)]
mod tests {
    use super::fold;

    #[test]
    fn case_and_form_are_ignored() {
        assert_eq!(fold("Data.TXT"), fold("data.txt"));
        assert_eq!(fold("caf\u{e9}"), fold("CAFE\u{301}"));
        assert_ne!(fold("cafe"), fold("caf\u{e9}"));
    }
}
