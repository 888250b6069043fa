//! Signed documents that were read before, by the hash of their bytes.
//!
//! A check of a signature costs as much as serving a small file, and the same grant set and the same head
//! are read for every blob that a peer asks for.
//!
//! Invariant: only what follows from the bytes alone is kept: the document, and that its signature fits.
//! Which document is in force, and what it allows now, is asked of the catalog and the clock each time.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use sluice_protocol::ids::BlobHash;
use sluice_protocol::signed::{Signable, Signed, SignedError};

/// Bytes of documents that are kept; their decoded form is a few times as large.
const BYTES_MAX: usize = 4 * 1024 * 1024;

/// See the module's page.
#[derive(Default)]
pub struct Memo(Mutex<Known>);

#[derive(Default)]
struct Known {
    documents: HashMap<(TypeId, BlobHash), Arc<dyn Any + Send + Sync>>,
    bytes: usize,
}

impl Memo {
    /// The document of these bytes, its signature checked now or before.
    pub(super) fn signed<T: Signable + Send + Sync + 'static>(
        &self,
        raw: &[u8],
    ) -> Result<Arc<Signed<T>>, SignedError> {
        let key = (TypeId::of::<T>(), BlobHash::of(raw));
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).documents.get(&key).cloned();
        if let Some(document) = known.and_then(|any| any.downcast().ok()) {
            return Ok(document);
        }
        // Not under the lock: several may check the same one at once, and get the same.
        let document = Arc::new(Signed::<T>::from_bytes(raw)?);
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.bytes + raw.len() > BYTES_MAX {
            *known = Known::default();
        }
        if raw.len() <= BYTES_MAX && known.documents.insert(key, document.clone()).is_none() {
            known.bytes += raw.len();
        }
        Ok(document)
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;
    use sluice_protocol::grants::{Genesis, GrantSet};
    use sluice_protocol::ids::SiteId;

    use super::*;

    fn set(key: &SigningKey, seq: u64) -> Signed<GrantSet> {
        let owner = SiteId(key.verifying_key().to_bytes());
        let genesis = Genesis {
            owner,
            name: "acme".into(),
            nonce: [7; 16],
            recovery: None,
            created_ms: 1,
            unknown: Default::default(),
        };
        Signed::sign(key, GrantSet { genesis, seq, grants: vec![], time_ms: 1, unknown: Default::default() })
    }

    #[test]
    fn the_same_bytes_are_checked_once_and_other_bytes_for_themselves() {
        let (memo, key) = (Memo::default(), SigningKey::from_bytes(&[3; 32]));
        let (first, second) = (set(&key, 1), set(&key, 2));
        let read = |raw: &[u8]| memo.signed::<GrantSet>(raw);
        assert!(Arc::ptr_eq(&read(first.bytes()).unwrap(), &read(first.bytes()).unwrap()));
        assert_eq!(*read(second.bytes()).unwrap(), second);
        // A signature that does not fit stays wrong, whatever was read before.
        let mut forged = first.bytes().to_vec();
        *forged.last_mut().unwrap() ^= 1;
        assert!(read(&forged).is_err());
        assert!(read(&forged).is_err());
    }
}
