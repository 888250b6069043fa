//! `sluice verify`: is what lies here still what was signed?
//!
//! Invariant: verifying changes no file. What it finds damaged is shown, the caller's exit code says so,
//! and the catalog forgets that place, so that nothing serves or reuses it.

use std::sync::Arc;
use std::time::Instant;

use sluice_protocol::api::{ApiError, Failure, Problem, ProgressSink, VerifyReport};
use sluice_protocol::ids::SpaceId;
use sluice_protocol::manifest::{Entry, EntryKind, Manifest, Section};
use sluice_store::blobs::{Fit, open_blob, quarantine};
use sluice_store::catalog::{Role, SpaceRecord};
use sluice_store::chunk::digest_file;
use sluice_store::lake::Lake;
use sluice_store::publish::look_over;
use sluice_store::verify::verify_live;
use sluice_store::watch::Watch;

use super::SiteNode;
use crate::errors::OrExplain;
use crate::flow::off_reactor;
use crate::jobs::Job;
use crate::journal;
use crate::site::Site;
use crate::sync::survey::entries;

/// Problems that one report lists.
const PROBLEMS_MAX: usize = 10_000;

impl SiteNode {
    pub(super) async fn verify(
        &self,
        name: &str,
        deep: bool,
        sink: Arc<dyn ProgressSink>,
    ) -> Result<VerifyReport, ApiError> {
        let (space, record) = self.site.space_named(name)?;
        let job = self.jobs.begin_in_turn(&record.name, "verify", sink).await?;
        let reader = self.site.catalog.read().or_explain()?;
        let snapshot = self.live_snapshot(&reader, &space, &record)?.ok_or_else(|| {
            let hint = format!("run `sluice sync {name}` first");
            ApiError::new(Failure::Incomplete, format!("there is nothing of `{name}` to verify yet"), hint)
        })?;
        let manifest = self.manifest_of(&reader, &space, &snapshot)?;
        drop(reader);
        let started = Instant::now();
        let record_role = record.role;
        let site = self.site.clone();
        let found = off_reactor(move || match record.role {
            Role::Owner => owned(&site, &space, &record, &manifest, deep, &job),
            Role::Replica => published(&site, &space, &record, deep, &job),
        })
        .await?;
        if !found.problems.is_empty() {
            self.follow.look_again(&space);
        }
        Ok(VerifyReport {
            space: name.to_string(),
            snapshot,
            ok: found.problems.is_empty(),
            deep,
            files: found.files,
            bytes: found.bytes,
            seconds: started.elapsed().as_secs_f64(),
            hint: hint(name, &record_role, &found),
            problems: found.problems,
            detached: found.detached,
        })
    }
}

/// What to do about what was found.
fn hint(name: &str, role: &Role, found: &Found) -> Option<String> {
    if found.problems.is_empty() {
        return None;
    }
    Some(match role {
        Role::Replica => format!(
            "`sluice sync {name}` fetches what is missing or damaged, and says what was changed by hand; `sluice resolve {name}` decides about that"
        ),
        Role::Owner => format!(
            "damaged bytes are not served any more: put the file back from a copy, then `sluice snapshot {name}`"
        ),
    })
}

/// What was looked at, and what was wrong.
#[derive(Default)]
struct Found {
    files: u64,
    bytes: u64,
    problems: Vec<Problem>,
    /// Files of an owner's lake that changed since the snapshot.
    moved_on: u64,
    detached: Vec<String>,
}

impl Found {
    fn problem(&mut self, path: &str, problem: impl Into<String>) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(Problem { path: path.to_string(), problem: problem.into() });
        }
    }
}

/// A replica: what is published against the manifest.
fn published(site: &Site, space: &SpaceId, record: &SpaceRecord, deep: bool, job: &Job) -> Result<Found, ApiError> {
    let lake = site.lake_of(record)?;
    let report = verify_live(&lake, &site.catalog, space, deep, &site.readers, job).or_explain()?;
    // Nothing may serve or reuse what rotted; the next sync, or following, mends it.
    for rotten in &report.rotten {
        quarantine(&lake, &site.catalog, space, &rotten.hash, &rotten.place).or_explain()?;
        note_damage(site, space, &format!("`{}` is damaged; it is not served any more", rotten.place))?;
    }
    if !report.problems.is_empty() {
        // So that what is missing is known, and following brings it back.
        look_over(&lake, &site.catalog, space).or_explain()?;
    }
    let problems = report.problems.into_iter();
    let problems = problems
        .map(|p| Problem { path: if p.path.is_empty() { p.section } else { p.path }, problem: p.what })
        .take(PROBLEMS_MAX)
        .collect();
    Ok(Found { files: report.files, bytes: report.bytes, problems, moved_on: 0, detached: report.detached })
}

fn note_damage(site: &Site, space: &SpaceId, text: &str) -> Result<(), ApiError> {
    site.catalog.write(|b| journal::write(b, "damaged", Some(*space), None, text)).or_explain()
}

/// An owner's lake: the files as they lie there against its newest snapshot.
fn owned(
    site: &Site,
    space: &SpaceId,
    record: &SpaceRecord,
    manifest: &Manifest,
    deep: bool,
    job: &Job,
) -> Result<Found, ApiError> {
    let lake = site.lake_of(record)?;
    let mut found = Found::default();
    for section in &manifest.sections {
        let listed = entries(&site.catalog.read().or_explain()?, space, &section.tree).or_explain()?;
        for entry in listed.iter().filter(|e| e.kind == EntryKind::File) {
            if job.cancelled() {
                return Err(ApiError::plain(Failure::Incomplete, "verifying was stopped"));
            }
            check(site, space, &lake, section, entry, deep, &mut found)?;
            job.amount("verify", found.files, manifest.entries(), found.bytes, manifest.bytes());
        }
    }
    if found.moved_on > 0 {
        job.note(format!("{} files changed since the snapshot: `sluice snapshot` takes them up", found.moved_on));
    }
    Ok(found)
}

fn check(
    site: &Site,
    space: &SpaceId,
    lake: &Lake,
    section: &Section,
    entry: &Entry,
    deep: bool,
    found: &mut Found,
) -> Result<(), ApiError> {
    let (Ok(path), Some(hash)) = (section.lake_path(&entry.path), entry.hash) else { return Ok(()) };
    found.files += 1;
    found.bytes += entry.size;
    let reader = site.catalog.read().or_explain()?;
    // A lake lives on after its snapshot: a file that changed is not damaged. What the snapshot still
    // claims to have, in the lake or pinned, must be it.
    match open_blob(lake, &reader, space, &hash) {
        Err(_) => found.moved_on += 1,
        Ok(open) if !deep && open.fit == Fit::Same => {}
        Ok(open) => match digest_file(&open.file, entry.size, false) {
            Ok(digest) if digest.hash == hash => {}
            Ok(_) if open.fit == Fit::Touched => found.moved_on += 1,
            Ok(_) => {
                found.problem(path.as_str(), format!("its bytes at `{}` are damaged", open.place));
                quarantine(lake, &site.catalog, space, &hash, &open.place).or_explain()?;
                note_damage(site, space, &format!("`{}` is damaged; it is not served any more", open.place))?;
            }
            Err(e) => found.problem(path.as_str(), format!("it cannot be read: {e}")),
        },
    }
    Ok(())
}
