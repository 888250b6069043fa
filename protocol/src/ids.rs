//! Every identifier has a type of its own, so that a snapshot is never taken for a blob by accident.
//!
//! Invariant: an id is 32 bytes; its text is 64 lower-case hexadecimal digits.

use std::fmt;
use std::str::FromStr;

use crate::codec::{CodecError, Dec, Enc, Wire};

/// A text that is not the id it was taken for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {what}: 64 hexadecimal digits are expected")]
pub struct IdError {
    what: &'static str,
    text: String,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 32]);

        impl $name {
            /// The 32 bytes.
            pub fn as_bytes(&self) -> &[u8; 32] { &self.0 }
            /// The first ten hexadecimal digits, for people.
            pub fn short(&self) -> String { self.to_string()[..10].to_string() }
        }
        impl From<[u8; 32]> for $name {
            fn from(bytes: [u8; 32]) -> Self { Self(bytes) }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.short())
            }
        }
        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                let wrong = || IdError { what: $what, text: text.chars().take(80).collect() };
                let bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(text.as_bytes()).map_err(|_| wrong())?;
                Ok(Self(bytes.try_into().map_err(|_| wrong())?))
            }
        }
        impl Wire for $name {
            fn put(&self, e: &mut Enc) { self.0.put(e) }
            fn get(d: &mut Dec<'_>) -> Result<Self, CodecError> { Ok(Self(<[u8; 32]>::get(d)?)) }
        }
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> { s.collect_str(self) }
        }
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

id!(
    /// A site: its ed25519 public key, which is also its iroh endpoint id.
    SiteId, "a site id"
);
id!(
    /// A space: derived from its [`crate::grants::Genesis`], so it names its owner.
    SpaceId, "a space id"
);
id!(
    /// The bytes of one file: their BLAKE3 root, as `b3sum` and iroh-blobs print it.
    BlobHash, "a blob hash"
);
id!(
    /// The BLAKE3 hash of one chunk of a blob.
    ChunkHash, "a chunk hash"
);
id!(
    /// A snapshot: the BLAKE3 hash of its encoded manifest.
    SnapshotId, "a snapshot id"
);
id!(
    /// A head: the BLAKE3 hash of its signed payload.
    HeadId, "a head id"
);
id!(
    /// A ticket as the inviting site remembers it: a hash of the secret, never the secret.
    TicketId, "a ticket id"
);

impl BlobHash {
    /// The hash of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

impl ChunkHash {
    /// The hash of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

impl From<SnapshotId> for BlobHash {
    /// A manifest is itself a blob, and travels as one.
    fn from(id: SnapshotId) -> Self {
        BlobHash(id.0)
    }
}

impl From<BlobHash> for SnapshotId {
    fn from(hash: BlobHash) -> Self {
        SnapshotId(hash.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        let id = BlobHash::of(b"acme");
        assert_eq!(id.to_string().parse::<BlobHash>(), Ok(id));
        assert_eq!(id.to_string().to_uppercase().parse::<BlobHash>(), Ok(id));
        assert!("12".parse::<BlobHash>().is_err());
        assert!("zz".repeat(32).parse::<BlobHash>().is_err());
        assert_eq!(serde_json::to_string(&id).unwrap(), format!("\"{id}\""));
    }
}
