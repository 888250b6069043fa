//! Bringing spaces up to date.

use std::sync::Arc;

use sluice_protocol::api::{ApiError, Failure, Progress, ProgressSink, RungLine, Skipped, SpaceSync, SyncReport};
use sluice_protocol::ids::SpaceId;
use sluice_protocol::plan::Plan;
use sluice_store::catalog::{Lookup, Role, SiteLookup, SpaceRecord};

use super::{SiteNode, usage};
use crate::errors::OrExplain;
use crate::flow::{describe, receive};
use crate::jobs::Job;

impl SiteNode {
    pub(super) async fn sync(
        &self,
        name: Option<String>,
        dry_run: bool,
        sink: Arc<dyn ProgressSink>,
    ) -> Result<SyncReport, ApiError> {
        let spaces = match name {
            Some(name) => vec![self.replica_named(&name)?],
            None => self.replicas()?,
        };
        let mut reports = Vec::new();
        let mut failed: Vec<(String, ApiError)> = Vec::new();
        // One space that fails must not keep the others from coming.
        for (space, record) in &spaces {
            match self.sync_one(space, record, dry_run, sink.clone()).await {
                Ok(report) => {
                    if spaces.len() > 1 {
                        sink.report(Progress::Note {
                            text: format!("{}: {} is here", record.name, report.snapshot.short()),
                        });
                    }
                    reports.push(report);
                }
                Err(e) => failed.push((record.name.clone(), e)),
            }
        }
        match (failed.len(), spaces.len()) {
            (0, _) => Ok(SyncReport { spaces: reports }),
            (1, 1) => Err(failed.remove(0).1),
            (n, of) => Err(together(n, of, failed)),
        }
    }

    fn replica_named(&self, name: &str) -> Result<(SpaceId, SpaceRecord), ApiError> {
        let (space, record) = self.site.space_named(name)?;
        if record.role == Role::Owner {
            return Err(usage(
                format!("`{name}` is owned by this site: there is nothing to bring here"),
                format!("`sluice snapshot {name}` makes a new version; the other sites sync it"),
            ));
        }
        Ok((space, record))
    }

    fn replicas(&self) -> Result<Vec<(SpaceId, SpaceRecord)>, ApiError> {
        let spaces = self.site.catalog.read().or_explain()?.spaces().or_explain()?;
        let replicas: Vec<_> = spaces.into_iter().filter(|(_, r)| r.role == Role::Replica).collect();
        if replicas.is_empty() {
            let hint = "join one with `sluice join TICKET`";
            return Err(ApiError::new(Failure::Error, "this site has joined no space", hint));
        }
        Ok(replicas)
    }

    pub(super) async fn sync_one(
        &self,
        space: &SpaceId,
        record: &SpaceRecord,
        dry_run: bool,
        sink: Arc<dyn ProgressSink>,
    ) -> Result<SpaceSync, ApiError> {
        let job = self.jobs.begin_in_turn(&record.name, "ask", sink).await?;
        self.sync_with(space, record, dry_run, &job).await
    }

    /// Syncs within a job that has begun.
    pub(crate) async fn sync_with(
        &self,
        space: &SpaceId,
        record: &SpaceRecord,
        dry_run: bool,
        job: &Arc<Job>,
    ) -> Result<SpaceSync, ApiError> {
        let before = self.site.catalog.read().or_explain()?.live(space).or_explain()?;
        if dry_run {
            let d = describe(&self.site, space, record, job).await?;
            let changed = before.is_none_or(|l| l.snapshot != d.head.manifest);
            return Ok(SpaceSync {
                space: record.name.clone(),
                snapshot: d.head.manifest,
                seq: d.head.seq,
                published: false,
                dry_run: true,
                changed,
                bytes_moved: d.plan.fetch_bytes(),
                bytes_reused: d.plan.reused_bytes(),
                rsync_bytes: d.rsync_bytes,
                seconds: 0.0,
                rungs: lines(&d.plan),
                unproven: vec![],
            });
        }
        let arrived = receive(&self.site, space, record, job).await?;
        self.gc_when_due(space, record, job).await;
        let d = &arrived.described;
        if arrived.published.snapshot != d.head.manifest {
            return Err(ApiError::plain(Failure::Error, "another version was published than the one that arrived"));
        }
        let changed = before.is_none_or(|l| l.snapshot != d.head.manifest);
        if changed {
            // Whoever cannot reach the owner may reach this site. The owner knows its own heads.
            self.follow.tell(d.head.clone(), vec![record.owner, d.from_site()]);
        }
        let unproven = arrived.unproven.iter().map(|text| {
            let (path, reason) = text.split_once(": ").unwrap_or((text, ""));
            Skipped { path: path.into(), reason: reason.into() }
        });
        Ok(SpaceSync {
            space: record.name.clone(),
            snapshot: d.head.manifest,
            seq: d.head.seq,
            published: true,
            dry_run: false,
            changed,
            bytes_moved: arrived.moved_bytes,
            bytes_reused: d.plan.reused_bytes(),
            rsync_bytes: d.rsync_bytes,
            seconds: arrived.seconds,
            rungs: lines(&d.plan),
            unproven: unproven.collect(),
        })
    }
}

/// Several spaces' failures as one error: every name with its sentence, and the gravest exit code.
fn together(n: usize, of: usize, failed: Vec<(String, ApiError)>) -> ApiError {
    let gravity = |f: &Failure| match f {
        Failure::Verification => 3,
        Failure::Error => 2,
        Failure::Incomplete => 1,
        Failure::Usage => 0,
    };
    let all: Vec<String> = failed.iter().map(|(name, e)| format!("`{name}`: {e}")).collect();
    let gravest = failed.into_iter().map(|(_, e)| e).max_by_key(|e| gravity(&e.failure));
    let (hint, failure) = gravest.map_or((None, Failure::Error), |e| (e.hint, e.failure));
    ApiError { error: format!("{n} of {of} spaces failed: {}", all.join("; ")), hint, failure }
}

/// The plan as lines, by section and rung.
fn lines(plan: &Plan) -> Vec<RungLine> {
    let totals = plan.totals.iter().map(|((section, rung), total)| RungLine {
        rung: rung.number(),
        how: rung.as_str().to_string(),
        section: section.clone(),
        files: total.files,
        bytes: total.bytes,
        fetch_bytes: total.fetch_bytes,
    });
    totals.collect()
}
