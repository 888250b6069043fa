//! Who may do what in a space, signed by its owner.
//!
//! Invariant: a right exists only while the newest grant set names it and it has not expired.
//! Knowing a hash gives no right. A space's id is derived from its genesis, so nobody but the owner
//! named there can sign its grants.

use crate::codec::{CodecError, Document, at_most, check_name, disturbs};
use crate::ids::{BlobHash, SiteId, SpaceId};
use crate::limits;
use crate::record;
use crate::signed::{Signable, Signed};

record! {
    /// The birth of a space.
    pub struct Genesis {
        0 => owner: SiteId,
        1 => name: String,
        2 => nonce: [u8; 16],
        /// The offline key that may name a successor when the owner is lost.
        3 => recovery: Option<SiteId>,
        /// Milliseconds since the Unix epoch.
        4 => created_ms: u64,
    }
}

impl Document for Genesis {
    const KIND: &'static str = "sluice/genesis";
    const VERSION: u64 = 1;
    const BYTES_MAX: usize = limits::SIGNED_BYTES_MAX;
    fn check(&self) -> Result<(), CodecError> {
        check_space_name(&self.name)
    }
}

/// A space's name is one word of `[a-z0-9._-]`, so it can be a folder, an argument and a label.
pub fn check_space_name(name: &str) -> Result<(), CodecError> {
    check_name("a space's name", name)?;
    let ok = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.'));
    if !ok || !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Err(CodecError::Invalid(format!(
            "`{name}` cannot name a space: lower-case letters, digits, `-`, `_` and `.` are allowed, beginning with a letter or digit"
        )));
    }
    Ok(())
}

impl Genesis {
    /// The id of the space that begins here.
    pub fn space_id(&self) -> SpaceId {
        SpaceId(blake3::derive_key("sluice v1 space id", &self.to_bytes()))
    }
}

/// What a grant allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    /// Receive the space.
    Read,
    /// Write the sections that the grant names.
    Write,
    /// Take over as owner, by the recovery key or when the owner says so.
    Succeed,
}

impl Right {
    fn bit(self) -> u8 {
        match self {
            Right::Read => 1,
            Right::Write => 2,
            Right::Succeed => 4,
        }
    }
}

record! {
    /// One site's rights.
    pub struct Grant {
        0 => site: SiteId,
        /// Bits: 1 read, 2 write, 4 succeed.
        1 => rights: u8,
        /// Sections (kind or folder) that the grant is limited to; empty for all.
        2 => sections: Vec<String>,
        /// Milliseconds since the Unix epoch; none for no end.
        3 => expires_ms: Option<u64>,
        /// How the owner calls the site.
        4 => name: String,
    }
}

impl Grant {
    /// A grant of the given rights on everything.
    pub fn new(site: SiteId, name: &str, rights: &[Right], expires_ms: Option<u64>) -> Self {
        Self {
            site,
            rights: rights.iter().fold(0, |bits, r| bits | r.bit()),
            sections: vec![],
            expires_ms,
            name: name.to_string(),
            unknown: Default::default(),
        }
    }

    /// Fails when a name or a section is empty, too long or would disturb a terminal.
    pub fn check(&self) -> Result<(), CodecError> {
        check_name("a grant's name", &self.name)?;
        at_most("the number of sections in a grant", self.sections.len() as u64, limits::GRANT_SECTIONS_MAX as u64)?;
        let bad = |s: &&String| s.is_empty() || s.len() > limits::PATH_BYTES_MAX || s.chars().any(disturbs);
        match self.sections.iter().find(bad) {
            None => Ok(()),
            Some(_) => Err(CodecError::Invalid("a grant names a section that cannot be".into())),
        }
    }

    /// Whether the grant gives `right` at `now_ms`.
    pub fn gives(&self, right: Right, now_ms: u64) -> bool {
        self.rights & right.bit() != 0 && self.expires_ms.is_none_or(|end| now_ms <= end)
    }

    /// Whether it reaches the section with this kind and folder.
    pub fn reaches(&self, kind: &str, folder: &str) -> bool {
        self.sections.is_empty()
            || self.sections.iter().any(|s| {
                s == kind || s == folder || folder.strip_prefix(s.as_str()).is_some_and(|r| r.starts_with('/'))
            })
    }
}

record! {
    /// All grants of a space; a newer set replaces an older one whole, so a missing grant is revoked.
    pub struct GrantSet {
        0 => genesis: Genesis,
        /// Counts up; a lower set is refused.
        1 => seq: u64,
        2 => grants: Vec<Grant>,
        /// Milliseconds since the Unix epoch.
        3 => time_ms: u64,
    }
}

impl Document for GrantSet {
    const KIND: &'static str = "sluice/grants";
    const VERSION: u64 = 1;
    const BYTES_MAX: usize = limits::GRANTS_BYTES_MAX;
    fn check(&self) -> Result<(), CodecError> {
        self.genesis.check()?;
        let mut sites = std::collections::BTreeSet::new();
        for grant in &self.grants {
            grant.check()?;
            if !sites.insert(grant.site) {
                return Err(CodecError::Invalid(format!("two grants name the site {}", grant.site)));
            }
        }
        Ok(())
    }
}

impl Signable for GrantSet {
    const DOMAIN: &'static str = "sluice v1 grants";
    fn signer(&self) -> SiteId {
        self.genesis.owner
    }
}

impl GrantSet {
    /// The space these grants are about.
    pub fn space_id(&self) -> SpaceId {
        self.genesis.space_id()
    }

    /// The grant of a site; the owner has every right without one.
    pub fn of(&self, site: SiteId) -> Option<&Grant> {
        self.grants.iter().find(|g| g.site == site)
    }

    /// Whether `site` has `right` at `now_ms`.
    pub fn allows(&self, site: SiteId, right: Right, now_ms: u64) -> bool {
        site == self.genesis.owner || self.of(site).is_some_and(|g| g.gives(right, now_ms))
    }
}

/// Why a grant set does not follow the one that is stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SuccessionError {
    #[error("the grants belong to another space")]
    OtherSpace,
    #[error("the grants (seq {found}) are older than those already seen (seq {seen})")]
    Older { found: u64, seen: u64 },
    #[error("two grant sets claim the same place (seq {seq})")]
    Fork { seq: u64 },
}

impl Signed<GrantSet> {
    /// Checks that this set may take the place of `stored`; says whether anything is new.
    ///
    /// An older set would give back what was revoked. Two sets of one number mean that the owner's
    /// key signs in two places.
    pub fn follows(&self, stored: &Signed<GrantSet>) -> Result<bool, SuccessionError> {
        if self.space_id() != stored.space_id() {
            return Err(SuccessionError::OtherSpace);
        }
        match self.seq.cmp(&stored.seq) {
            std::cmp::Ordering::Less => Err(SuccessionError::Older { found: self.seq, seen: stored.seq }),
            std::cmp::Ordering::Equal if self.payload_hash() == stored.payload_hash() => Ok(false),
            std::cmp::Ordering::Equal => Err(SuccessionError::Fork { seq: self.seq }),
            std::cmp::Ordering::Greater => Ok(true),
        }
    }

    /// The set as a blob, as heads name it.
    pub fn blob(&self) -> BlobHash {
        BlobHash::of(self.bytes())
    }
}
