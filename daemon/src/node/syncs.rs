//! Bringing spaces up to date.

use std::sync::Arc;

use sluice_protocol::api::{ApiError, Failure, Progress, ProgressSink, RungLine, Skipped, SpaceSync, SyncReport};
use sluice_protocol::ids::{SnapshotId, SpaceId};
use sluice_protocol::plan::Plan;
use sluice_store::catalog::{CatalogError, Lookup, Role, SiteLookup, SpaceRecord};
use sluice_store::watch::Watch;

use super::resolves::diverged;
use super::{SiteNode, usage};
use crate::errors::OrExplain;
use crate::flow::{Described, describe, receive};
use crate::jobs::Job;
use crate::journal;
use crate::sync::ask::{self, Asking};
use crate::sync::turns::Answered;

/// What `--at` is called for following the owner again.
const NEWEST: &str = "newest";

impl SiteNode {
    pub(super) async fn sync(
        &self,
        name: Option<String>,
        dry_run: bool,
        at: Option<String>,
        sink: Arc<dyn ProgressSink>,
    ) -> Result<SyncReport, ApiError> {
        if at.is_some() && name.is_none() {
            return Err(usage("a version belongs to one space", "name the space: `sluice sync SPACE --at SNAPSHOT`"));
        }
        let spaces = match name {
            Some(name) => vec![self.replica_named(&name)?],
            None => self.replicas()?,
        };
        let mut reports = Vec::new();
        let mut failed: Vec<(String, ApiError)> = Vec::new();
        // One space that fails must not keep the others from coming.
        for (space, record) in &spaces {
            match self.sync_one(space, record, dry_run, at.as_deref(), sink.clone()).await {
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
        at: Option<&str>,
        sink: Arc<dyn ProgressSink>,
    ) -> Result<SpaceSync, ApiError> {
        let job = self.jobs.begin_in_turn(&record.name, "ask", sink).await?;
        self.sync_with(space, record, dry_run, at, None, &job).await
    }

    /// Syncs within a job that has begun; `at` is a version to stay at, or `newest` to follow again; `first` is a
    /// source that was asked just now.
    pub(crate) async fn sync_with(
        &self,
        space: &SpaceId,
        record: &SpaceRecord,
        dry_run: bool,
        at: Option<&str>,
        first: Option<Answered>,
        job: &Arc<Job>,
    ) -> Result<SpaceSync, ApiError> {
        let before = self.site.catalog.read().or_explain()?.live(space).or_explain()?;
        let record = self.record_at(space, record, at, job).await?;
        if dry_run {
            let d = describe(&self.site, space, &record, job).await?;
            let report = self.report(space, &record, &d, before.map(|l| l.snapshot))?;
            let bytes_moved = d.plan.fetch_bytes();
            return Ok(SpaceSync { dry_run: true, bytes_moved, mended: d.standing.to_mend, ..report });
        }
        let arrived = receive(&self.site, space, &record, first, job).await.inspect_err(|e| {
            tracing::warn!(space = %record.name, owner = %record.owner.short(), error = %e, "no new version was taken");
        })?;
        self.gc_when_due(space, &record, job).await;
        let d = &arrived.described;
        if arrived.published.snapshot != d.head.manifest {
            return Err(ApiError::plain(Failure::Error, "another version was published than the one that arrived"));
        }
        let changed = before.as_ref().is_none_or(|l| l.snapshot != d.head.manifest);
        if changed && record.held.is_none() {
            // Whoever cannot reach the owner may reach this site. The owner knows its own heads.
            self.follow.tell(d.head.clone(), vec![record.owner, d.from_site()]);
        }
        if at.is_some() {
            self.stay_at(space, &record)?;
        }
        for (name, by) in &arrived.published.held_back {
            if name != by {
                job.note(format!("section `{name}` waits: `{by}` was changed here and has its place"));
            }
        }
        let unproven = arrived.unproven.iter().map(|text| {
            let (path, reason) = text.split_once(": ").unwrap_or((text, ""));
            Skipped { path: path.into(), reason: reason.into() }
        });
        Ok(SpaceSync {
            published: true,
            bytes_moved: arrived.moved_bytes,
            seconds: arrived.seconds,
            unproven: unproven.collect(),
            mended: d.standing.to_mend,
            ..self.report(space, &record, d, before.map(|l| l.snapshot))?
        })
    }

    /// What a description says; the caller fills in what was done.
    fn report(
        &self,
        space: &SpaceId,
        record: &SpaceRecord,
        d: &Described,
        before: Option<SnapshotId>,
    ) -> Result<SpaceSync, ApiError> {
        let reader = self.site.catalog.read().or_explain()?;
        Ok(SpaceSync {
            space: record.name.clone(),
            snapshot: d.head.manifest,
            seq: d.head.seq,
            published: false,
            dry_run: false,
            changed: before != Some(d.head.manifest),
            bytes_moved: 0,
            bytes_reused: d.plan.reused_bytes(),
            rsync_bytes: d.rsync_bytes,
            seconds: 0.0,
            rungs: lines(&d.plan),
            unproven: vec![],
            mended: 0,
            diverged: diverged(reader.live(space).or_explain()?.as_ref()),
            held: self.held_at(&reader, space, record)?,
        })
    }

    /// The space's record, held at the version that is asked for.
    async fn record_at(
        &self,
        space: &SpaceId,
        record: &SpaceRecord,
        at: Option<&str>,
        job: &Arc<Job>,
    ) -> Result<SpaceRecord, ApiError> {
        // Read again within the job: a person may have decided, or removed the space, while this call waited.
        let stored = self.site.catalog.read().or_explain()?.space(space).or_explain()?;
        let gone = || ApiError::plain(Failure::Error, format!("the space `{}` was removed meanwhile", record.name));
        let mut record = SpaceRecord { sources: record.sources.clone(), ..stored.ok_or_else(gone)? };
        match at {
            None => {}
            Some(NEWEST) => record.held = None,
            Some(text) => {
                let find = || {
                    let reader = self.site.catalog.read().or_explain()?;
                    self.find_head(&reader, space, &record, Some(text))
                };
                let head = match find() {
                    Ok(head) => head,
                    // Perhaps it is one that the owner made since.
                    Err(_) => {
                        job.stage("ask");
                        ask::newest(&self.site, space, &record, &**job, Asking::default()).await.or_explain()?;
                        find()?
                    }
                };
                record.held = Some(head.id());
            }
        }
        Ok(record)
    }

    /// Remembers where a person wants the replica to stay, once that version is live.
    fn stay_at(&self, space: &SpaceId, record: &SpaceRecord) -> Result<(), ApiError> {
        let stored: Result<(), CatalogError> = self.site.catalog.write(|b| {
            let Some(mut stored) = b.space(space)?.filter(|s| s.held != record.held) else { return Ok(()) };
            stored.held = record.held;
            b.put_space(space, &stored)?;
            let text = record.held.map_or("the newest version".to_string(), |head| format!("head {head}"));
            journal::write(b, "held", Some(*space), None, &format!("stays at {text}"))
        });
        stored.or_explain()
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
        section: section.to_string(),
        files: total.files,
        bytes: total.bytes,
        fetch_bytes: total.fetch_bytes,
    });
    totals.collect()
}
