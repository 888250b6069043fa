//! What every part of a running site shares: its key, its catalog, its readers, its lane.
//!
//! Invariant: the secret key leaves this struct only into a signature or a handshake.

use std::path::Path;
use std::sync::Arc;

use ed25519_dalek::SigningKey;
use sluice_protocol::api::{ApiError, Failure};
use sluice_protocol::card::SiteCard;
use sluice_protocol::ids::{SiteId, SpaceId};
use sluice_protocol::signed::Signed;
use sluice_store::catalog::{Catalog, SiteLookup, SpaceRecord};
use sluice_store::lake::Lake;
use sluice_store::table::TableReader;

use crate::clock::now_ms;
use crate::config::Config;
use crate::errors::OrExplain;
use crate::lanes::QuicLane;
use crate::sync::faults::Faults;
use crate::sync::shares::Shares;

/// A site's own things. Cheap to clone.
#[derive(Clone)]
pub struct Site(Arc<Inner>);

/// See [`Site`].
pub struct Inner {
    pub key: SigningKey,
    pub id: SiteId,
    pub name: String,
    /// The public half of the offline recovery key.
    pub recovery: Option<SiteId>,
    pub catalog: Catalog,
    pub config: Config,
    /// The home may lie where a restart loses it.
    pub allow_volatile: bool,
    pub readers: Vec<Arc<dyn TableReader>>,
    pub lane: QuicLane,
    /// Sources that failed lately.
    pub faults: Faults,
    /// Transfers that run at once share what may be in flight.
    pub shares: Shares,
}

impl std::ops::Deref for Site {
    type Target = Inner;
    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Site {
    /// A site of these things.
    pub fn new(inner: Inner) -> Self {
        Self(Arc::new(inner))
    }

    /// This site's card as of now.
    pub fn card(&self) -> Signed<SiteCard> {
        let addresses = self.lane.local_addresses();
        let quic = addresses.iter().map(ToString::to_string);
        Signed::sign(
            &self.key,
            SiteCard {
                site: self.id,
                name: self.name.clone(),
                quic: quic.collect(),
                tls: self.lane.tls_addresses().iter().map(ToString::to_string).collect(),
                time_ms: now_ms(),
                unknown: Default::default(),
            },
        )
    }

    /// The space of this name.
    pub fn space_named(&self, name: &str) -> Result<(SpaceId, SpaceRecord), ApiError> {
        let spaces = self.catalog.read().or_explain()?.spaces().or_explain()?;
        let names: Vec<String> = spaces.iter().map(|(_, r)| r.name.clone()).collect();
        let found = spaces.into_iter().find(|(id, r)| r.name == name || id.to_string() == name);
        found.ok_or_else(|| {
            let hint = match names.as_slice() {
                [] => "this site has no spaces yet: `sluice space add NAME PATH` or `sluice join TICKET`".into(),
                names => format!("this site knows: {}", names.join(", ")),
            };
            ApiError::new(Failure::Error, format!("there is no space `{name}`"), hint)
        })
    }

    /// The lake of a space.
    pub fn lake_of(&self, record: &SpaceRecord) -> Result<Lake, ApiError> {
        Lake::open(Path::new(&record.lake)).or_explain()
    }
}
