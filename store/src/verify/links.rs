//! Where a link of a lake leads, decided by its text alone.
//!
//! Invariant: a link that is published leads to a place inside the lake and outside Sluice's own
//! folder, whatever else the lake holds. The text is brought into a form where every `..` comes
//! first: those climb real folders only, and everything after them goes down.

use sluice_protocol::path::{LakePath, OWN_FOLDER};

/// Why a link is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    #[error("the link `{link}` -> `{target}` leads out of the lake")]
    Outside { link: String, target: String },
    #[error("the link `{link}` -> `{target}` leads into Sluice's own folder")]
    Own { link: String, target: String },
    #[error("the link `{link}` -> `{target}` holds a name that is no path of a lake")]
    Strange { link: String, target: String },
}

/// The names, from the lake's top, that the link at lake path `link` leads to; empty is the top.
pub fn resolve(link: &LakePath, target: &str) -> Result<Vec<String>, LinkError> {
    let named = || (link.to_string(), target.to_string());
    let outside = || {
        let (link, target) = named();
        LinkError::Outside { link, target }
    };
    if target.starts_with('/') {
        return Err(outside());
    }
    let mut at: Vec<String> = link.names().map(str::to_string).collect();
    at.pop();
    for name in target.split('/') {
        match name {
            "" | "." => {}
            ".." => {
                at.pop().ok_or_else(outside)?;
            }
            name => at.push(name.to_string()),
        }
    }
    if at.first().is_some_and(|top| top.eq_ignore_ascii_case(OWN_FOLDER)) {
        let (link, target) = named();
        return Err(LinkError::Own { link, target });
    }
    if !at.is_empty() && LakePath::parse(&at.join("/")).is_err() {
        let (link, target) = named();
        return Err(LinkError::Strange { link, target });
    }
    Ok(at)
}

/// The shortest relative text that leads from folder `from` to `to`, both given by names from one top.
pub(crate) fn relative(from: &[&str], to: &[&str]) -> String {
    let shared = from.iter().zip(to).take_while(|(a, b)| a == b).count();
    let up = std::iter::repeat_n("..", from.len() - shared);
    let text: Vec<&str> = up.chain(to[shared..].iter().copied()).collect();
    if text.is_empty() { ".".to_string() } else { text.join("/") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(link: &str, target: &str) -> Result<String, LinkError> {
        resolve(&LakePath::parse(link).unwrap(), target).map(|names| names.join("/"))
    }

    #[test]
    fn links_inside_are_resolved_from_their_own_folder() {
        assert_eq!(to("a/b/l", "c"), Ok("a/b/c".into()));
        assert_eq!(to("a/b/l", "../c"), Ok("a/c".into()));
        assert_eq!(to("a/b/l", "../../c/./d"), Ok("c/d".into()));
        assert_eq!(to("a/b/l", "x/../y"), Ok("a/b/y".into()));
        assert_eq!(to("l", "."), Ok(String::new()));
        assert_eq!(to("a/l", ".."), Ok(String::new()));
    }

    #[test]
    fn links_out_are_refused() {
        for (link, target) in
            [("l", ".."), ("l", "/etc/passwd"), ("a/l", "../../x"), ("a/l", "b/../../../x"), ("a/l", "../../lake/a/x")]
        {
            assert!(matches!(to(link, target), Err(LinkError::Outside { .. })), "{link} -> {target}");
        }
        assert!(matches!(to("a/l", "../.sluice/live"), Err(LinkError::Own { .. })));
        assert!(matches!(to("l", ".SLUICE"), Err(LinkError::Own { .. })));
        assert!(matches!(to("l", "a/\u{7}"), Err(LinkError::Strange { .. })));
    }

    #[test]
    fn relative_texts_climb_first() {
        assert_eq!(relative(&["a", "b"], &["a", "c"]), "../c");
        assert_eq!(relative(&[], &["x"]), "x");
        assert_eq!(relative(&["a"], &["a"]), ".");
        assert_eq!(relative(&["a", "b"], &[]), "../..");
    }
}
