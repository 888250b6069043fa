//! Collecting what no kept version needs: when somebody asks, and once a day by itself.
//!
//! Invariant: a space is collected within a job, so never while another job changes it; values that
//! spaces share go only while no other job runs.

use std::sync::Arc;

use sluice_protocol::api::{ApiError, AsideInfo, Failure, GcReport, Gone, ProgressSink, SpaceGc};
use sluice_protocol::ids::SpaceId;
use sluice_store::catalog::{Lookup, SiteLookup, SpaceRecord};
use sluice_store::gc::{Aside, Collected, collect, collect_home};
use sluice_store::watch::Watch;

use super::SiteNode;
use crate::clock::now_ms;
use crate::errors::OrExplain;
use crate::flow::off_reactor;
use crate::jobs::{Job, Jobs};
use crate::journal;
use crate::retention::retention;
use crate::site::Site;

/// Milliseconds between two collections of a space that nobody asked for.
const GC_EVERY_MS: u64 = 24 * 3_600_000;

impl SiteNode {
    pub(super) async fn gc(
        &self,
        name: Option<String>,
        dry_run: bool,
        sink: Arc<dyn ProgressSink>,
    ) -> Result<GcReport, ApiError> {
        let spaces = match name {
            Some(name) => vec![self.site.space_named(&name)?],
            None => self.site.catalog.read().or_explain()?.spaces().or_explain()?,
        };
        let (site, jobs) = (self.site.clone(), self.jobs.clone());
        off_reactor(move || {
            let mut report = GcReport { dry_run, spaces: vec![], shared: Gone::default() };
            let mut failed = None;
            for (space, record) in &spaces {
                let turn = jobs.begin_in_turn(&record.name, "gc", sink.clone());
                let job = tokio::runtime::Handle::current().block_on(turn);
                // One space that fails must not keep the others from being collected.
                match job.and_then(|job| one(&site, space, record, dry_run, &job)) {
                    Ok(done) => report.spaces.push(done),
                    Err(e) => failed = failed.or(Some(e)),
                }
            }
            report.shared = shared(&site, &jobs, None, dry_run)?;
            failed.map_or(Ok(report), Err)
        })
        .await
    }

    /// Collects a space whose day is over, within a job that has done its work. What fails is noted: it
    /// must not spoil the work.
    pub(super) async fn gc_when_due(&self, space: &SpaceId, record: &SpaceRecord, job: &Arc<Job>) {
        let (site, jobs, space, record, job) =
            (self.site.clone(), self.jobs.clone(), *space, record.clone(), job.clone());
        let collected = off_reactor(move || {
            if is_due(&site, &space)? {
                job.stage("gc");
                one(&site, &space, &record, false, &job)?;
                shared(&site, &jobs, Some(&record.name), false)?;
            }
            Ok(())
        });
        if let Err(e) = collected.await {
            tracing::warn!(error = %e, "old versions stay for now");
        }
    }
}

/// Collects the spaces whose day is over and in which nothing is going on.
pub(super) async fn gc_quiet_spaces(site: &Site, jobs: &Jobs) {
    let (site, jobs) = (site.clone(), jobs.clone());
    let collected = off_reactor(move || {
        let mut any = false;
        for (space, record) in site.catalog.read().or_explain()?.spaces().or_explain()? {
            if !is_due(&site, &space)? {
                continue;
            }
            // A busy space is collected when its job is done.
            let Some(job) = jobs.begin_automatic(&record.name, "gc") else { continue };
            match one(&site, &space, &record, false, &job) {
                Ok(_) => any = true,
                Err(e) => tracing::warn!(space = %record.name, error = %e, "old versions stay for now"),
            }
        }
        if any {
            shared(&site, &jobs, None, false)?;
        }
        Ok(())
    });
    if let Err(e) = collected.await {
        tracing::warn!(error = %e, "what no version needs stays for now");
    }
}

fn key(space: &SpaceId) -> String {
    format!("gc/{space}")
}

/// Whether a day has passed since the last collection; the first day begins when this is first asked.
fn is_due(site: &Site, space: &SpaceId) -> Result<bool, ApiError> {
    let raw = site.catalog.read().or_explain()?.setting(&key(space)).or_explain()?;
    let last = raw.and_then(|raw| raw.try_into().ok()).map(u64::from_le_bytes);
    if last.is_none() {
        site.catalog.write(|b| b.put_setting(&key(space), &now_ms().to_le_bytes())).or_explain()?;
    }
    Ok(last.is_some_and(|last| now_ms() >= last.saturating_add(GC_EVERY_MS)))
}

fn one(site: &Site, space: &SpaceId, record: &SpaceRecord, dry_run: bool, job: &Job) -> Result<SpaceGc, ApiError> {
    let lake = site.lake_of(record)?;
    let collected = collect(&lake, space, &site.catalog, &retention(&site.config), dry_run).or_explain()?;
    if !dry_run {
        let mut text = format!(
            "{} versions, {} rows and {} files went, {} of them from what lay aside; {} bytes",
            collected.versions, collected.rows, collected.files, collected.aside_files, collected.bytes
        );
        if collected.aside_stuck > 0 {
            text.push_str(&format!("; {} old entries aside could not be removed", collected.aside_stuck));
        }
        let noted = site.catalog.write(|b| {
            b.put_setting(&key(space), &now_ms().to_le_bytes())?;
            if collected.rows + collected.files + collected.aside_stuck > 0 {
                journal::write(b, "gc", Some(*space), None, &text)
            } else {
                Ok(())
            }
        });
        noted.or_explain()?;
        if collected.versions + collected.aside_stuck > 0 {
            job.note(text);
        }
    }
    let Collected { kept, versions, aside, aside_files, aside_stuck, .. } = collected;
    Ok(SpaceGc {
        space: record.name.clone(),
        kept,
        versions,
        gone: gone(collected),
        kept_aside: aside_info(&aside.kept),
        quarantined: aside_info(&aside.quarantine),
        aside_files,
        aside_stuck,
    })
}

/// What lies aside, for a person.
pub(super) fn aside_info(aside: &Aside) -> AsideInfo {
    AsideInfo { files: aside.files, bytes: aside.bytes, oldest_ms: aside.oldest_ms, more: aside.more }
}

/// What no space needs any more. `own` is the space whose job this is part of.
fn shared(site: &Site, jobs: &Jobs, own: Option<&str>, dry_run: bool) -> Result<Gone, ApiError> {
    let alone = || jobs.list().iter().all(|job| Some(job.space.as_str()) == own);
    let collected = collect_home(&site.catalog, &retention(&site.config), &alone, dry_run);
    Ok(gone(collected.or_explain()?))
}

fn gone(c: Collected) -> Gone {
    Gone { rows: c.rows, files: c.files, bytes: c.bytes }
}

/// Says in one sentence that a version is not here, and what to do.
pub(super) fn not_kept(snapshot: &str) -> ApiError {
    ApiError::new(
        Failure::Error,
        format!("snapshot {snapshot} is not kept here: its list of files went, or never came"),
        "`sluice snapshot list SPACE` marks the versions that are kept; at the owner a tag keeps one for ever",
    )
}
