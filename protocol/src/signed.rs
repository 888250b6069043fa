//! Signing: a document, who signed it, and for what.
//!
//! Invariant: the signature covers a domain of its own and the exact payload bytes, is checked with
//! `verify_strict` (no malleable or weak keys), and is checked before the payload is believed.

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};

use crate::codec::{Bytes, CodecError, Document};
use crate::ids::SiteId;
use crate::limits;
use crate::record;

/// A document that a site signs.
pub trait Signable: Document {
    /// Keeps a signature for one purpose from being used for another.
    const DOMAIN: &'static str;
    /// Whose signature it needs.
    fn signer(&self) -> SiteId;
}

record! {
    /// Payload bytes and their signature.
    pub struct Envelope {
        0 => payload: Bytes,
        1 => signature: [u8; 64],
    }
}

impl Document for Envelope {
    const KIND: &'static str = "sluice/signed";
    const VERSION: u64 = 1;
    const BYTES_MAX: usize = limits::GRANTS_BYTES_MAX + limits::SIGNED_BYTES_MAX;

    /// The signature covers the payload alone, so an envelope must hold nothing else: whoever passed
    /// it on could add a field, and the same signed thing would have two hashes.
    fn check(&self) -> Result<(), CodecError> {
        if self.unknown.is_empty() { Ok(()) } else { Err(CodecError::NotCanonical) }
    }
}

/// Why a signed document is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignedError {
    #[error(transparent)]
    Codec(#[from] CodecError),
    #[error("the signature of site {signer} does not fit")]
    BadSignature { signer: SiteId },
}

/// A document whose signature was checked; there is no other way to make one from bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed<T> {
    value: T,
    bytes: Vec<u8>,
    payload_hash: [u8; 32],
}

impl<T: Signable> Signed<T> {
    /// Signs `value` with the key of [`Signable::signer`]. Whoever puts texts of a person into
    /// `value` calls its [`Document::check`] before and says what is wrong.
    ///
    /// # Panics
    /// When the key is another one or the value does not pass its check: nobody would believe it,
    /// the signing site included, so it must never be stored.
    pub fn sign(key: &SigningKey, value: T) -> Self {
        assert_eq!(value.signer().0, key.verifying_key().to_bytes(), "signed with another site's key");
        if let Err(e) = value.check() {
            panic!("signed a {} that nobody would read: {e}", T::KIND);
        }
        let payload = value.to_bytes();
        let signature = key.sign(&message::<T>(&payload)).to_bytes();
        Self::assemble(value, payload, signature)
    }

    /// Reads an envelope and checks its signature.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SignedError> {
        let envelope = Envelope::from_bytes(bytes)?;
        let value = T::from_bytes(&envelope.payload.0)?;
        let signer = value.signer();
        let bad = |_| SignedError::BadSignature { signer };
        let key = VerifyingKey::from_bytes(&signer.0).map_err(bad)?;
        let signature = Signature::from_bytes(&envelope.signature);
        key.verify_strict(&message::<T>(&envelope.payload.0), &signature).map_err(bad)?;
        Ok(Self::assemble(value, envelope.payload.0, envelope.signature))
    }

    fn assemble(value: T, payload: Vec<u8>, signature: [u8; 64]) -> Self {
        let payload_hash = *blake3::hash(&payload).as_bytes();
        let envelope = Envelope { payload: Bytes(payload), signature, unknown: Default::default() };
        Self { value, bytes: envelope.to_bytes(), payload_hash }
    }

    /// The envelope's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// BLAKE3 of the payload, without the signature.
    pub fn payload_hash(&self) -> [u8; 32] {
        self.payload_hash
    }

    /// The document itself.
    pub fn into_value(self) -> T {
        self.value
    }
}

impl<T> std::ops::Deref for Signed<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

fn message<T: Signable>(payload: &[u8]) -> Vec<u8> {
    let mut m = Vec::with_capacity(T::DOMAIN.len() + 1 + payload.len());
    m.extend_from_slice(T::DOMAIN.as_bytes());
    m.push(0);
    m.extend_from_slice(payload);
    m
}
