//! Which kind a folder is, from the names in it.
//!
//! Invariant: a pure function of names, so every site finds the same sections in the same layout.
//! What no rule knows is `files` and travels all the same.

use crate::manifest::SectionKind;

/// What a folder directly holds.
#[derive(Debug, Clone, Copy)]
pub struct FolderNames<'a> {
    /// The folder's own name.
    pub name: &'a str,
    /// Names of folders in it.
    pub folders: &'a [&'a str],
    /// Names of files in it.
    pub files: &'a [&'a str],
}

/// The kind that the folder's contents prove, if any. Such a folder is a section with all that lies below.
pub fn kind_by_contents(folder: FolderNames<'_>) -> Option<SectionKind> {
    let has_folder = |n: &str| folder.folders.contains(&n);
    let has_file = |n: &str| folder.files.contains(&n);
    let any_file = |suffix: &str| folder.files.iter().any(|f| f.ends_with(suffix));
    if has_folder("_delta_log") {
        return Some(SectionKind::Delta);
    }
    if has_folder("_versions") && (has_folder("data") || folder.name.ends_with(".lance")) {
        return Some(SectionKind::Lance);
    }
    if has_file("adapter_config.json") {
        return Some(SectionKind::Lora);
    }
    if has_file("modules.json") || (has_file("config.json") && any_file(".safetensors")) {
        return Some(SectionKind::Model);
    }
    if any_file(".faiss") {
        return Some(SectionKind::Faiss);
    }
    None
}

/// The kind that a folder's name suggests when nothing inside proves another.
pub fn kind_by_name(name: &str) -> SectionKind {
    match name.to_ascii_lowercase().as_str() {
        "raw" => SectionKind::Raw,
        "parquet" => SectionKind::Parquet,
        "faiss" => SectionKind::Faiss,
        "lora" | "loras" | "adapters" => SectionKind::Lora,
        "models" | "model" => SectionKind::Model,
        "params" | "parameters" | "installation_params" => SectionKind::Params,
        "metadata" => SectionKind::Metadata,
        "knowledge" | "prompts" | "patterns" | "bpmn" => SectionKind::Knowledge,
        "handlers" | "parsers" => SectionKind::Handlers,
        "logs" | "log" => SectionKind::Logs,
        _ => SectionKind::Files,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(name: &str, folders: &[&str], files: &[&str]) -> Option<SectionKind> {
        kind_by_contents(FolderNames { name, folders, files })
    }

    #[test]
    fn layouts() {
        assert_eq!(kind("orders", &["_delta_log"], &["a.parquet"]), Some(SectionKind::Delta));
        assert_eq!(kind("docs.lance", &["_versions", "data"], &[]), Some(SectionKind::Lance));
        assert_eq!(kind("docs.lance", &["_versions"], &[]), Some(SectionKind::Lance));
        assert_eq!(kind("x", &["_versions"], &[]), None);
        assert_eq!(kind("style", &[], &["adapter_config.json"]), Some(SectionKind::Lora));
        assert_eq!(kind("e5", &["1_Pooling"], &["modules.json"]), Some(SectionKind::Model));
        assert_eq!(kind("idx", &[], &["index.faiss", "metadata.parquet"]), Some(SectionKind::Faiss));
        assert_eq!(kind("misc", &["a"], &["config.json"]), None);
        assert_eq!(kind_by_name("RAW"), SectionKind::Raw);
        assert_eq!(kind_by_name("misc"), SectionKind::Files);
    }
}
