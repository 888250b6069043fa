//! The one path type that crosses the wire and reaches a file system.
//!
//! Invariant: a `LakePath` is relative, has at least one name, and no name in it can lead out of a
//! lake, into Sluice's own folder, or mean something special on another system. Decoding goes
//! through [`LakePath::parse`], so no other path exists inside the house.
//!
//! Each name is judged alone, wherever it stands. So every part of a path is a path again, and what
//! is allowed below a section is allowed below the lake (limits of length and depth apart).

use std::fmt;

use crate::codec::{CodecError, Dec, Enc, Wire};
use crate::limits::{PATH_BYTES_MAX, PATH_DEPTH_MAX, PATH_NAME_BYTES_MAX};

/// Sluice's own folder at the top of a lake.
pub const OWN_FOLDER: &str = ".sluice";

/// A validated path below a lake or a section, names separated by `/`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LakePath(Box<str>);

/// Why a text is no path of a lake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("the path is empty")]
    Empty,
    #[error("the path is longer than {PATH_BYTES_MAX} bytes")]
    TooLong,
    #[error("the path is deeper than {PATH_DEPTH_MAX} folders")]
    TooDeep,
    #[error("a name in the path is longer than {PATH_NAME_BYTES_MAX} bytes")]
    NameTooLong,
    #[error("the path is absolute")]
    Absolute,
    #[error("a name in the path begins like a drive")]
    Drive,
    #[error("the path holds an empty name")]
    EmptyName,
    #[error("the path holds a name of nothing but dots and blanks")]
    Dots,
    #[error("the path holds a backslash")]
    Backslash,
    #[error("the path holds a control character")]
    Control,
    #[error("the path holds a name that is reserved on some systems")]
    Reserved,
    #[error("the path leads into `{OWN_FOLDER}`")]
    OwnFolder,
    #[error("the path is not UTF-8")]
    NotUtf8,
}

impl LakePath {
    /// Checks a text.
    pub fn parse(text: &str) -> Result<Self, PathError> {
        if text.is_empty() {
            return Err(PathError::Empty);
        }
        if text.len() > PATH_BYTES_MAX {
            return Err(PathError::TooLong);
        }
        if text.starts_with('/') {
            return Err(PathError::Absolute);
        }
        if text.contains('\\') {
            return Err(PathError::Backslash);
        }
        for (depth, name) in text.split('/').enumerate() {
            if depth >= PATH_DEPTH_MAX {
                return Err(PathError::TooDeep);
            }
            check_name(name)?;
        }
        Ok(Self(text.into()))
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The names, outermost first.
    pub fn names(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('/')
    }

    /// The last name.
    pub fn file_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }

    /// Everything but the last name.
    pub fn parent(&self) -> Option<LakePath> {
        self.0.rsplit_once('/').map(|(head, _)| Self(head.into()))
    }

    /// This path with another below it.
    pub fn join(&self, below: &LakePath) -> Result<LakePath, PathError> {
        LakePath::parse(&format!("{}/{}", self.0, below.0))
    }

    /// This path with one more name.
    pub fn child(&self, name: &str) -> Result<LakePath, PathError> {
        LakePath::parse(&format!("{}/{name}", self.0))
    }

    /// The rest of this path below `folder`, or `None` when it is not below it.
    pub fn below(&self, folder: &LakePath) -> Option<LakePath> {
        let rest = self.0.strip_prefix(folder.as_str())?.strip_prefix('/')?;
        LakePath::parse(rest).ok()
    }
}

/// `C:`, and `C:x` too: it means `x` in the current folder of drive C.
fn is_drive(name: &str) -> bool {
    matches!(name.as_bytes(), [letter, b':', ..] if letter.is_ascii_alphabetic())
}

/// Whether some file system takes the name for [`OWN_FOLDER`]: another case, dots or blanks at the
/// end, a stream of it, characters that are ignored in names, the long s, or its short name.
fn is_own_folder(name: &str) -> bool {
    // Nearly every name: nothing in it is folded or ignored, and it begins like none of these.
    if name.is_ascii() && !name.starts_with(['.', 's', 'S']) {
        return false;
    }
    let name = name.split(':').next().unwrap_or(name);
    let folded: String = name.chars().filter(|c| !is_ignorable(*c)).map(fold).collect();
    let folded = folded.trim_end_matches(['.', ' ']);
    let short = folded.strip_prefix("sluice~");
    folded == OWN_FOLDER || short.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

fn fold(c: char) -> char {
    if c == 'ſ' { 's' } else { c.to_ascii_lowercase() }
}

fn is_ignorable(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

fn check_name(name: &str) -> Result<(), PathError> {
    if name.is_empty() {
        return Err(PathError::EmptyName);
    }
    // `...` and `.. ` too: some systems drop dots and blanks at the end of a name.
    if name.chars().all(|c| matches!(c, '.' | ' ')) {
        return Err(PathError::Dots);
    }
    if is_drive(name) {
        return Err(PathError::Drive);
    }
    if is_own_folder(name) {
        return Err(PathError::OwnFolder);
    }
    if name.len() > PATH_NAME_BYTES_MAX {
        return Err(PathError::NameTooLong);
    }
    if name.chars().any(|c| c.is_control()) {
        return Err(PathError::Control);
    }
    // Windows reads `NUL`, `nul.txt`, `nul:x` and `nul .tar.gz` as the device.
    let stem = name.split(['.', ':']).next().unwrap_or(name).trim_end();
    if is_reserved(stem) {
        return Err(PathError::Reserved);
    }
    Ok(())
}

fn is_reserved(stem: &str) -> bool {
    const DEVICES: [&str; 7] = ["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$", "CLOCK$"];
    if DEVICES.iter().any(|d| stem.eq_ignore_ascii_case(d)) {
        return true;
    }
    let Some((head, port)) = stem.split_at_checked(3) else { return false };
    let mut port = port.chars();
    let one = matches!(port.next(), Some('0'..='9' | '¹' | '²' | '³')) && port.next().is_none();
    one && (head.eq_ignore_ascii_case("COM") || head.eq_ignore_ascii_case("LPT"))
}

impl fmt::Display for LakePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for LakePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

impl std::str::FromStr for LakePath {
    type Err = PathError;
    fn from_str(text: &str) -> Result<Self, PathError> {
        Self::parse(text)
    }
}

impl Wire for LakePath {
    fn put(&self, e: &mut Enc) {
        crate::codec::infallible(e.str(&self.0));
    }
    fn get(d: &mut Dec<'_>) -> Result<Self, CodecError> {
        let text = d.str()?;
        Self::parse(text)
            .map_err(|e| CodecError::Invalid(format!("{:?}: {e}", text.chars().take(80).collect::<String>())))
    }
}

impl serde::Serialize for LakePath {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for LakePath {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(d)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}
