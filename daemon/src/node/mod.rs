//! A running site: answers the API by sending each operation to its room.
//!
//! Invariant: this is the only implementation of [`Node`]; command line, page and other programs
//! all come through [`SiteNode::call`].

mod host;
mod peers;
mod snapshots;
mod spaces;
mod status;
mod syncs;
mod verifies;

use std::sync::{Arc, Mutex};

use sluice_protocol::api::{ApiError, Done, Failure, Node, Operation, Outcome, ProgressSink};
use sluice_store::catalog::Catalog;
use sluice_store::table::TableReader;
use tokio::sync::Notify;

use crate::config::Config;
use crate::errors::OrExplain;
use crate::home::Home;
use crate::jobs::Jobs;
use crate::lanes::{QuicConfig, QuicLane};
use crate::policy::Policy;
use crate::site::{Inner, Site};

/// A running site.
pub struct SiteNode {
    site: Site,
    home: Home,
    jobs: Jobs,
    api_url: Mutex<Option<String>>,
    stop_asked: Notify,
}

impl SiteNode {
    /// Opens the catalog and the lane of a locked home and begins to answer peers.
    pub async fn start(home: Home, config: Config) -> Result<Arc<SiteNode>, ApiError> {
        let catalog = Catalog::open(home.root()).or_explain()?;
        let lane = QuicLane::bind(QuicConfig {
            port: config.p2p.port,
            loopback: config.p2p.loopback,
            addresses: config.p2p.addresses.clone(),
            connections_per_peer: config.limits.max_connections_per_peer as usize,
            ..QuicConfig::new(home.key())
        })
        .await
        .or_explain()?;
        let site = Site::new(Inner {
            key: home.key(),
            id: home.site(),
            name: home.name().to_string(),
            recovery: Some(home.recovery()),
            catalog: catalog.clone(),
            config,
            allow_volatile: crate::home::check_media(home.root()).is_err(),
            readers: readers(),
            lane: lane.clone(),
        });
        let policy = Policy::new(catalog, site.id);
        lane.serve(Arc::new(host::SiteHost::new(site.clone(), policy))).or_explain()?;
        Ok(Arc::new(SiteNode {
            site,
            home,
            jobs: Jobs::default(),
            api_url: Mutex::new(None),
            stop_asked: Notify::new(),
        }))
    }

    /// Says where the API is reached over HTTP.
    pub fn set_api_url(&self, url: Option<String>) {
        *self.api_url.lock().expect("no panic while held") = url;
    }

    /// Returns when somebody asked the site to stop.
    pub async fn stop_asked(&self) {
        self.stop_asked.notified().await;
    }

    /// Lets running jobs come to a safe place and closes the lane.
    pub async fn stop(&self) {
        self.jobs.stop_all();
        self.site.lane.close().await;
    }
}

/// The table readers of this build.
fn readers() -> Vec<Arc<dyn TableReader>> {
    #[cfg(feature = "engine")]
    return sluice_indexer::readers();
    #[cfg(not(feature = "engine"))]
    vec![]
}

#[async_trait::async_trait]
impl Node for SiteNode {
    async fn call(&self, op: Operation, sink: Arc<dyn ProgressSink>) -> Result<Outcome, ApiError> {
        match op {
            Operation::Status => self.status().map(|s| Outcome::Status(Box::new(s))),
            Operation::Doctor => self.doctor().await.map(Outcome::Doctor),
            Operation::SpaceAdd { name, path, history, opaque } => {
                self.space_add(name, path, history, opaque, sink).await.map(Outcome::Snapshot)
            }
            Operation::SpaceList => self.space_list().map(Outcome::Spaces),
            Operation::SpaceShow { space } => self.space_show(&space).map(|s| Outcome::Space(Box::new(s))),
            Operation::SpaceRemove { space } => self.space_remove(&space).map(Outcome::Done),
            Operation::Invite { space, sections, expires_s } => {
                self.invite(&space, sections, expires_s).map(Outcome::Invite)
            }
            Operation::Join { ticket, into, sections } => {
                self.join(&ticket, into, sections, sink).await.map(Outcome::Join)
            }
            Operation::PeerList => self.peer_list().map(Outcome::Peers),
            Operation::PeerShow { peer } => self.peer_show(&peer).map(|p| Outcome::Peer(Box::new(p))),
            Operation::PeerRevoke { peer, space } => self.peer_revoke(&peer, space).map(Outcome::Done),
            Operation::SnapshotCreate { space, tag } => {
                self.snapshot_create(&space, tag, sink).await.map(Outcome::Snapshot)
            }
            Operation::SnapshotList { space } => self.snapshot_list(&space).map(Outcome::Snapshots),
            Operation::SnapshotShow { space, snapshot } => {
                self.snapshot_show(&space, snapshot).map(|s| Outcome::SnapshotDetail(Box::new(s)))
            }
            Operation::SnapshotDiff { space, from, to } => {
                self.snapshot_diff(&space, &from, to).map(Outcome::Diff)
            }
            Operation::Sync { space, dry_run } => self.sync(space, dry_run, sink).await.map(Outcome::Sync),
            Operation::Path { space, section } => self.path(&space, section).map(Outcome::Path),
            Operation::Verify { space, deep } => self.verify(&space, deep, sink).await.map(Outcome::Verify),
            Operation::Shutdown => {
                self.stop_asked.notify_one();
                Ok(Outcome::Done(Done { done: "the site is stopping".into() }))
            }
        }
    }
}

/// A usage error with a hint.
fn usage(error: impl Into<String>, hint: impl Into<String>) -> ApiError {
    ApiError::new(Failure::Usage, error, hint)
}
