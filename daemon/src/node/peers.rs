//! Peers: who they are, and cutting one off.

use sluice_protocol::api::{ApiError, BulkLane, Done, Failure, LeaseInfo, PeerInfo};
use sluice_protocol::ids::SiteId;
use sluice_store::catalog::{CatalogError, Lookup, PeerRecord, Reader, Role, SiteLookup};

use super::SiteNode;
use crate::clock::now_ms;
use crate::errors::OrExplain;
use crate::flow::keep_deed;
use crate::lanes::{QUIC, TLS};
use crate::{journal, pairing};

impl SiteNode {
    pub(super) fn peer_list(&self) -> Result<Vec<PeerInfo>, ApiError> {
        let reader = self.site.catalog.read().or_explain()?;
        let peers = reader.peers().or_explain()?;
        let peers = peers.iter().filter(|(_, p)| !p.revoked);
        peers.map(|(site, p)| self.peer_info(&reader, site, p)).collect()
    }

    fn peer_info(&self, reader: &Reader, site: &SiteId, peer: &PeerRecord) -> Result<PeerInfo, ApiError> {
        let (mut shared, mut leases) = (Vec::new(), Vec::new());
        let now = now_ms();
        for (space, record) in reader.spaces().or_explain()? {
            let grants = reader.grants(&space).or_explain()?;
            let granted = grants.is_some_and(|g| g.of(*site).is_some());
            for (_, snapshot, lease) in reader.leases(&space).or_explain()?.into_iter().filter(|(of, ..)| of == site) {
                if granted && lease.until_ms >= now {
                    leases.push(LeaseInfo { space: record.name.clone(), snapshot, until_ms: lease.until_ms });
                }
            }
            if granted || record.owner == *site {
                shared.push(record.name);
            }
        }
        let card = reader.card(site).or_explain()?;
        let by_tls = self.site.config.p2p.tls && card.as_ref().is_some_and(|c| !c.tls.is_empty());
        let lanes = if by_tls { &[TLS, QUIC][..] } else { &[QUIC] };
        Ok(PeerInfo {
            site: *site,
            name: peer.name.clone(),
            addresses: card.map(|c| c.quic.clone()).unwrap_or_default(),
            lanes: lanes.iter().map(ToString::to_string).collect(),
            bulk: self.site.lane.standing(*site).map(|s| BulkLane {
                lane: s.bulk.to_string(),
                why: s.why,
                tls_bytes: s.tls_bytes,
                quic_bytes: s.quic_bytes,
                saved_bytes: s.saved_bytes,
                bytes_per_s: s.bytes_per_s,
            }),
            connected: self.site.lane.connections(*site) > 0,
            last_seen_ms: peer.last_seen_ms,
            spaces: shared,
            moved_bytes: reader.counter(&format!("moved from {site}")).or_explain()?,
            leases,
        })
    }

    fn find_peer(&self, reader: &Reader, text: &str) -> Result<(SiteId, PeerRecord), ApiError> {
        let peers = reader.peers().or_explain()?;
        let mut fits = peers.into_iter().filter(|(site, p)| {
            !p.revoked && (p.name == text || (text.len() >= 4 && site.to_string().starts_with(text)))
        });
        let hint = "`sluice peer list` shows names and ids";
        match (fits.next(), fits.next()) {
            (Some(one), None) => Ok(one),
            (Some(_), Some(_)) => Err(ApiError::new(Failure::Usage, format!("several peers fit `{text}`"), hint)),
            _ => Err(ApiError::new(Failure::Error, format!("there is no peer `{text}`"), hint)),
        }
    }

    pub(super) fn peer_show(&self, text: &str) -> Result<PeerInfo, ApiError> {
        let reader = self.site.catalog.read().or_explain()?;
        let (site, peer) = self.find_peer(&reader, text)?;
        self.peer_info(&reader, &site, &peer)
    }

    /// Takes a peer's grants back in one space or in all, and cuts its connections.
    pub(super) fn peer_revoke(&self, text: &str, space: Option<String>) -> Result<Done, ApiError> {
        let reader = self.site.catalog.read().or_explain()?;
        let (site, peer) = self.find_peer(&reader, text)?;
        let only = space.map(|name| self.site.space_named(&name)).transpose()?;
        let mut taken = Vec::new();
        let written: Result<(), CatalogError> = self.site.catalog.write(|b| {
            for (id, record) in b.spaces()? {
                let named = only.as_ref().is_none_or(|(o, _)| *o == id);
                let granted = b.grants(&id)?.is_some_and(|g| g.of(site).is_some());
                if named && granted && record.role == Role::Owner {
                    pairing::revoke(b, &self.site.key, &id, site)?;
                    journal::write(b, "revoked", Some(id), Some(site), &peer.name)?;
                    taken.push(record.name);
                }
            }
            if only.is_none() {
                let cut = PeerRecord { revoked: true, last_seen_ms: Some(now_ms()), ..peer.clone() };
                b.put_peer(&site, &cut)?;
                journal::write(b, "cut off", None, Some(site), &peer.name)?;
            }
            Ok(())
        });
        written.or_explain()?;
        // Rights are gone; now the streams that were opened with them.
        self.site.lane.disconnect(site);
        for (id, record) in self.site.catalog.read().or_explain()?.spaces().or_explain()? {
            if record.role == Role::Owner {
                keep_deed(&self.site, &id, &record);
                self.host.tell_of_grants(id, site);
            }
        }
        let spaces = if taken.is_empty() { "no space".into() } else { taken.join(", ") };
        Ok(Done { done: format!("`{}` may read {spaces} no more; what it already holds stays with it", peer.name) })
    }
}
