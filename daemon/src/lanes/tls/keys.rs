//! The keys of the tls lane: TLS 1.3 in which each side shows the bare public key of its site.
//!
//! Invariant: there are no certificates, no names and no authorities. A handshake that came to its
//! end has proved one thing: that the other side holds the private key of the site it shows.

use std::sync::Arc;

use ed25519_dalek::SigningKey;
use rustls::client::AlwaysResolvesClientRawPublicKeys;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime, alg_id};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, public_key_to_spki};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible, ServerConfig,
    SignatureScheme, version,
};
use sluice_protocol::ids::SiteId;
use sluice_protocol::messages::ALPN_TLS_BLOBS;
use zeroize::Zeroizing;

/// What stands before the 32 bytes of a private key in PKCS #8 (RFC 8410, §7).
const PKCS8_ED25519: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// The settings of both ends, made once from the site's key.
#[derive(Clone)]
pub(in crate::lanes) struct Keys {
    shown: Arc<CertifiedKey>,
    provider: Arc<CryptoProvider>,
}

impl Keys {
    /// # Errors
    /// When the library does not take the key.
    pub fn new(key: &SigningKey) -> Result<Self, Error> {
        let der = Zeroizing::new([&PKCS8_ED25519[..], key.as_bytes()].concat());
        let signer = aws_lc_rs::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(der.as_slice()))?;
        let spki = spki_of(SiteId(key.verifying_key().to_bytes()));
        let shown = CertifiedKey::new(vec![CertificateDer::from(spki.to_vec())], signer);
        Ok(Self { shown: Arc::new(shown), provider: Arc::new(aws_lc_rs::default_provider()) })
    }

    /// For accepting: takes any site's key, so ask who it is before anything else.
    pub fn accepting(&self) -> Result<ServerConfig, Error> {
        let anyone = Arc::new(Shown { expected: None, provider: self.provider.clone() });
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&version::TLS13])?
            .with_client_cert_verifier(anyone)
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(self.shown.clone())));
        config.alpn_protocols = vec![ALPN_TLS_BLOBS.to_vec()];
        // A key is proved afresh by each connection; a ticket would outlive a revocation.
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    /// For dialling: takes no other key than that of `site`.
    pub fn dialling(&self, site: SiteId) -> Result<ClientConfig, Error> {
        let this_one = Arc::new(Shown { expected: Some(site), provider: self.provider.clone() });
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(this_one)
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(self.shown.clone())));
        config.alpn_protocols = vec![ALPN_TLS_BLOBS.to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        config.enable_sni = false;
        Ok(config)
    }
}

/// The site whose bare key was shown in a handshake.
pub(super) fn site_of(shown: &CertificateDer<'_>) -> Option<SiteId> {
    let key: [u8; 32] = shown.as_ref().get(shown.len().checked_sub(32)?..)?.try_into().ok()?;
    // Compared whole, so that nothing else than such a key is taken for one.
    (spki_of(SiteId(key)).as_ref() == shown.as_ref()).then_some(SiteId(key))
}

fn spki_of(site: SiteId) -> SubjectPublicKeyInfoDer<'static> {
    public_key_to_spki(&alg_id::ED25519, site.0)
}

/// Judges the key that the other side shows.
#[derive(Debug)]
struct Shown {
    /// The only site to take; any when accepting.
    expected: Option<SiteId>,
    provider: Arc<CryptoProvider>,
}

impl Shown {
    fn judge(&self, shown: &CertificateDer<'_>, more: &[CertificateDer<'_>]) -> Result<(), Error> {
        let site = site_of(shown).filter(|_| more.is_empty()).ok_or(CertificateError::BadEncoding)?;
        match self.expected {
            Some(expected) if expected != site => Err(CertificateError::NotValidForName.into()),
            _ => Ok(()),
        }
    }

    fn verify(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let spki = SubjectPublicKeyInfoDer::from(shown.as_ref());
        verify_tls13_signature_with_raw_key(message, &spki, signed, &self.provider.signature_verification_algorithms)
    }
}

/// TLS 1.2 is not offered, so nobody can sign for it.
fn tls12() -> Error {
    Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered)
}

impl ServerCertVerifier for Shown {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        more: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.judge(shown, more).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _shown: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify(message, shown, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Shown {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        shown: &CertificateDer<'_>,
        more: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.judge(shown, more).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _shown: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify(message, shown, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
