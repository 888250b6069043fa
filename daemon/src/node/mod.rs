//! A running site: answers the API by sending each operation to its room.
//!
//! Invariant: this is the only implementation of [`Node`]; command line, page and other programs
//! all come through [`SiteNode::call`].

mod aside;
mod gc;
mod host;
mod paths;
mod peers;
mod resolves;
mod snapshots;
mod spaces;
mod status;
mod syncs;
mod verifies;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use sluice_protocol::api::{ApiError, Done, Failure, Node, Operation, Outcome, ProgressSink};
use sluice_protocol::ids::SpaceId;
use sluice_store::catalog::{Catalog, Role, SiteLookup, SpaceRecord};
use sluice_store::table::TableReader;
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use crate::config::Config;
use crate::errors::OrExplain;
use crate::flow;
use crate::follow::Follow;
use crate::heads;
use crate::home::Home;
use crate::jobs::Jobs;
use crate::lanes::{QuicConfig, QuicLane};
use crate::policy::Policy;
use crate::setback::Setback;
use crate::site::{Inner, Site};

/// How long running jobs may take to come to a safe place when the site stops.
const JOBS_END_WITHIN: Duration = Duration::from_secs(20);
/// How often heads are looked at whether they must be signed again, and spaces whether they must be collected.
const TEND_EVERY: Duration = Duration::from_secs(3600);

/// A running site.
pub struct SiteNode {
    site: Site,
    home: Home,
    jobs: Jobs,
    api_url: Mutex<Option<String>>,
    stop_asked: Notify,
    setback: Arc<Setback>,
    /// Ends with the site.
    tending: AbortOnDropHandle<()>,
    host: Arc<host::SiteHost>,
    follow: Follow,
    asides: aside::Asides,
    /// The task that follows, while the site does.
    following: Mutex<Option<AbortOnDropHandle<()>>>,
}

impl SiteNode {
    /// Opens the catalog and the lane of a locked home and begins to answer peers.
    pub async fn start(home: Home, config: Config) -> Result<Arc<SiteNode>, ApiError> {
        let catalog = Catalog::open(home.root()).or_explain()?;
        let lane = QuicLane::bind(QuicConfig {
            port: config.p2p.port,
            loopback: config.p2p.loopback,
            addresses: config.p2p.addresses.clone(),
            tls: config.p2p.tls,
            caps: config.limits.caps(),
            compress: config.p2p.compress,
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
            faults: Default::default(),
            shares: Default::default(),
            lane: lane.clone(),
        });
        let policy = Policy::new(catalog, site.id);
        let follow = Follow::new(site.clone());
        let setback = Arc::new(Setback::default());
        let host = Arc::new(host::SiteHost::new(site.clone(), policy, follow.clone(), setback.clone()));
        lane.serve(host.clone()).or_explain()?;
        finish_publications(&site).await?;
        let jobs = Jobs::default();
        let tending = AbortOnDropHandle::new(tokio::spawn(tend(site.clone(), jobs.clone(), setback.clone())));
        let node = Arc::new(SiteNode {
            site,
            home,
            jobs,
            api_url: Mutex::new(None),
            stop_asked: Notify::new(),
            setback,
            tending,
            host,
            follow,
            asides: Default::default(),
            following: Mutex::default(),
        });
        *node.following.lock().expect("no panic while held") = node.follow.begin(Arc::downgrade(&node));
        Ok(node)
    }

    /// What the site is doing.
    pub(crate) fn jobs(&self) -> &Jobs {
        &self.jobs
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
        self.tending.abort();
        // First no new work, then the work that is under way.
        self.follow.stop();
        self.jobs.stop_all();
        let waited = tokio::time::timeout(JOBS_END_WITHIN, async {
            while !self.jobs.list().is_empty() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        if waited.await.is_err() {
            tracing::warn!("a job did not end in time; it goes on from what is durable when it is run again");
        }
        drop(self.following.lock().expect("no panic while held").take());
        self.site.lane.close().await;
    }
}

/// Finishes what a kill interrupted between the catalog and the live link.
async fn finish_publications(site: &Site) -> Result<(), ApiError> {
    for (space, record) in site.catalog.read().or_explain()?.spaces().or_explain()? {
        if record.role == Role::Replica
            && let Err(e) = flow::recover(site, &space, &record).await
        {
            // One lake that is not mounted must not keep the site down.
            tracing::warn!(space = %record.name, error = %e, "what is published could not be looked at");
        }
    }
    Ok(())
}

/// Signs the heads of quiet spaces again before they pass their time, and collects what nobody needs.
async fn tend(site: Site, jobs: Jobs, setback: Arc<Setback>) {
    loop {
        for (space, record) in site.catalog.read().and_then(|r| r.spaces()).unwrap_or_default() {
            if record.role == Role::Owner
                && let Err(e) = renew(&site, &space, &record, &setback).await
            {
                tracing::warn!(space = %record.name, error = %e, "a head could not be renewed");
            }
        }
        gc::gc_quiet_spaces(&site, &jobs).await;
        tokio::time::sleep(TEND_EVERY).await;
    }
}

/// Signs a head again when it is time, unless this site was set back.
async fn renew(site: &Site, space: &SpaceId, record: &SpaceRecord, setback: &Setback) -> Result<(), ApiError> {
    if !heads::is_renewal_due(site, space).or_explain()? {
        return Ok(());
    }
    setback.check(site, space, record).await?;
    let (site, space, record) = (site.clone(), *space, record.clone());
    flow::off_reactor(move || {
        heads::renew(&site, &space).or_explain()?;
        flow::keep_deed(&site, &space, &record);
        Ok(())
    })
    .await
}

/// The table readers of this build.
pub(crate) fn readers() -> Vec<Arc<dyn TableReader>> {
    #[cfg(feature = "engine")]
    return sluice_indexer::readers();
    #[cfg(not(feature = "engine"))]
    vec![]
}

#[async_trait::async_trait]
impl Node for SiteNode {
    async fn call(&self, op: Operation, sink: Arc<dyn ProgressSink>) -> Result<Outcome, ApiError> {
        match op {
            Operation::Status => self.status().await.map(|s| Outcome::Status(Box::new(s))),
            Operation::Doctor => self.doctor().await.map(Outcome::Doctor),
            Operation::SpaceAdd { name, path, history, opaque } => {
                self.space_add(name, path, history, opaque, sink).await.map(Outcome::Snapshot)
            }
            Operation::SpaceList => self.space_list().await.map(Outcome::Spaces),
            Operation::SpaceShow { space } => self.space_show(&space).await.map(|s| Outcome::Space(Box::new(s))),
            Operation::SpaceRemove { space } => self.space_remove(&space).await.map(Outcome::Done),
            Operation::SpaceRecover { space } => self.space_recover(&space, sink).await.map(Outcome::Done),
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
            Operation::SnapshotDiff { space, from, to } => self.snapshot_diff(&space, &from, to).map(Outcome::Diff),
            Operation::SnapshotUntag { space, tag } => self.snapshot_untag(&space, tag, sink).await.map(Outcome::Done),
            Operation::Sync { space, dry_run, at } => self.sync(space, dry_run, at, sink).await.map(Outcome::Sync),
            Operation::Follow { space, on } => self.follow(&space, on).map(Outcome::Done),
            Operation::Resolve { space, section, keep, dry_run } => {
                self.resolve(&space, section, keep, dry_run, sink).await.map(Outcome::Resolve)
            }
            Operation::ResolveFork { space, head } => self.resolve_fork(&space, &head, sink).await.map(Outcome::Done),
            Operation::Path { space, section } => self.path(&space, section).map(Outcome::Path),
            Operation::Verify { space, deep } => self.verify(&space, deep, sink).await.map(Outcome::Verify),
            Operation::Gc { space, dry_run } => self.gc(space, dry_run, sink).await.map(Outcome::Gc),
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
