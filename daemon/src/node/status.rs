//! What the site says of itself.

use std::path::PathBuf;

use sluice_protocol::api::{Alert, ApiError, Check, Doctor, Health, Status};
use sluice_protocol::ids::SpaceId;
use sluice_store::catalog::{BlobRecord, Lookup, Reader, Role, SiteLookup, SpaceRecord};
use sluice_store::staging::MOVED_TOTAL;

use super::SiteNode;
use crate::doctor::{Contents, Daemon, Patient, advise, contents_check, examine, good, report};
use crate::errors::OrExplain;
use crate::flow::off_reactor;
use crate::sync::transfer::REUSED_TOTAL;

/// Alerts that `status` shows.
const ALERTS_MAX: usize = 20;
/// Rows of the journal that are looked through for them.
const JOURNAL_TAIL: u64 = 2000;

impl SiteNode {
    pub(super) async fn status(&self) -> Result<Status, ApiError> {
        let spaces = self.space_list().await?;
        let reader = self.site.catalog.read().or_explain()?;
        Ok(Status {
            api: self.api_url.lock().expect("no panic while held").clone(),
            site: self.site.id,
            name: self.site.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_string(),
            home: self.home.root().display().to_string(),
            pid: std::process::id(),
            listening: self.site.lane.local_addresses().iter().map(ToString::to_string).collect(),
            spaces,
            peers: self.peer_list()?,
            jobs: self.jobs.list(),
            moved_bytes_total: reader.counter(MOVED_TOTAL).or_explain()?,
            reused_bytes_total: reader.counter(REUSED_TOTAL).or_explain()?,
            served_bytes_total: self.host.served_bytes(),
            caps: self.site.config.limits.caps().in_words(),
            alerts: self.alerts(&reader)?,
        })
    }

    /// The same examination as without a daemon, and what the catalog holds.
    pub(super) async fn doctor(&self) -> Result<Doctor, ApiError> {
        let spaces = self.site.catalog.read().or_explain()?.spaces().or_explain()?;
        let lakes: Vec<(String, PathBuf)> =
            spaces.iter().map(|(_, r)| (r.name.clone(), PathBuf::from(&r.lake))).collect();
        let daemon = Daemon::Up {
            pid: std::process::id(),
            p2p: self.site.lane.local_addresses().iter().map(ToString::to_string).collect(),
            api: self.api_url.lock().expect("no panic while held").clone(),
        };
        let contents = self.contents(&spaces)?;
        let followed = self.followed(&spaces)?;
        let (home, site) = (self.home.root().to_path_buf(), self.site.clone());
        off_reactor(move || {
            let patient = Patient {
                home: &home,
                config: &site.config,
                allow_volatile: site.allow_volatile,
                lakes: &lakes,
                daemon,
            };
            let mut checks = examine(&patient);
            checks.extend(followed);
            checks.push(contents_check(contents));
            Ok(report(checks))
        })
        .await
    }

    /// How well each space is followed.
    fn followed(&self, spaces: &[(SpaceId, SpaceRecord)]) -> Result<Vec<Check>, ApiError> {
        let reader = self.site.catalog.read().or_explain()?;
        let one = |(space, record): &(SpaceId, SpaceRecord)| {
            let info = self.follow.info(&reader, space, record).or_explain()?;
            let check = format!("following of {}", record.name);
            Ok(match (info.following, info.trouble) {
                (true, Some(trouble)) => {
                    let advice =
                        "raise fs.inotify.max_user_watches where that is the limit; see docs/operations.md, Following";
                    advise(&check, Health::Warning, trouble, advice)
                }
                (true, None) if record.role == Role::Owner => good(&check, "changes are noticed as they happen"),
                (true, None) => good(&check, "new versions come by themselves"),
                (false, why) => good(&check, format!("off: {}", why.unwrap_or_default())),
            })
        };
        spaces.iter().map(one).collect()
    }

    fn contents(&self, spaces: &[(SpaceId, SpaceRecord)]) -> Result<Contents, ApiError> {
        let reader = self.site.catalog.read().or_explain()?;
        let mut contents = Contents { spaces: spaces.len() as u64, blobs: 0, bytes: 0 };
        for (space, _) in spaces {
            let mut count = |_, blob: BlobRecord| {
                contents.blobs += 1;
                contents.bytes += blob.size;
            };
            reader.blobs(space, &mut count).or_explain()?;
        }
        Ok(contents)
    }

    fn alerts(&self, reader: &Reader) -> Result<Vec<Alert>, ApiError> {
        let last = reader.counter("journal").or_explain()?;
        let rows = reader.journal(last.saturating_sub(JOURNAL_TAIL)).or_explain()?;
        let mut alerts = Vec::new();
        for (_, row) in rows.into_iter().rev().filter(|(_, r)| matches!(r.what.as_str(), "frozen" | "damaged")) {
            let space = row.space.map(|id| reader.space(&id)).transpose().or_explain()?.flatten();
            if row.what == "frozen" && space.as_ref().is_some_and(|s| s.frozen.is_none()) {
                // A person has decided since.
                continue;
            }
            alerts.push(Alert { time_ms: row.time_ms, space: space.map(|s| s.name), text: row.text });
            if alerts.len() >= ALERTS_MAX {
                break;
            }
        }
        alerts.reverse();
        alerts.extend(self.follow.alerts(&reader.spaces().or_explain()?));
        Ok(alerts)
    }
}
