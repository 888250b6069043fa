//! `sluice resolve`: a person decides which side of a divergence stays.
//!
//! Invariant: the side that loses is kept below `.sluice/kept`, and the answer says where. Nothing is
//! moved before the other side is live.

use std::sync::Arc;

use sluice_protocol::api::{
    ApiError, DivergedSection, Done, Failure, Keep, ProgressSink, ResolveReport, ResolvedSection, Skipped,
};
use sluice_protocol::ids::{SnapshotId, SpaceId};
use sluice_protocol::path::OWN_FOLDER;
use sluice_store::catalog::{CatalogError, LiveRecord, LiveSection, Role, SpaceRecord};
use sluice_store::publish::{KEPT_FOLDER, keep_mine, keep_theirs};

use super::{SiteNode, usage};
use crate::clock::{now_ms, rfc3339};
use crate::errors::OrExplain;
use crate::flow::{keep_deed, look, off_reactor, recover};
use crate::jobs::Job;
use crate::{fork, journal};

impl SiteNode {
    pub(super) async fn resolve(
        &self,
        name: &str,
        section: Option<String>,
        keep: Keep,
        dry_run: bool,
        sink: Arc<dyn ProgressSink>,
    ) -> Result<ResolveReport, ApiError> {
        let (space, record) = self.site.space_named(name)?;
        if record.role == Role::Owner {
            return Err(usage(
                format!("`{name}` is owned by this site: what lies in its lake is its version"),
                format!("`sluice snapshot {name}` takes it up"),
            ));
        }
        let job = self.jobs.begin_in_turn(&record.name, "look", sink).await?;
        recover(&self.site, &space, &record).await?;
        let live = look(&self.site, &space, &record).await?.live.ok_or_else(|| {
            let hint = format!("run `sluice sync {name}` first");
            ApiError::new(Failure::Incomplete, format!("nothing of `{name}` is published here yet"), hint)
        })?;
        let chosen = choose(&live, section.as_deref(), keep)?;
        let kept = format!("{KEPT_FOLDER}/{}", rfc3339(now_ms()).replace(['-', ':'], ""));
        let mut report = ResolveReport {
            space: record.name.clone(),
            keep,
            dry_run,
            sections: chosen.iter().map(resolved).collect(),
            snapshot: Some(live.snapshot),
        };
        if dry_run || chosen.is_empty() {
            return Ok(report);
        }
        self.note_decision(&space, keep, &chosen, &kept)?;
        let folder = format!("{}/{OWN_FOLDER}/{kept}", record.lake.trim_end_matches('/'));
        match keep {
            Keep::Theirs => {
                report.snapshot = Some(self.take_theirs(&space, &record, &chosen, &kept, &job).await?);
                for (answer, section) in report.sections.iter_mut().zip(&chosen) {
                    let tops = section.taken_tops().count() as u64;
                    answer.kept = (answer.count > tops).then(|| folder.clone());
                    answer.kept = answer.kept.take().or((tops > 0).then(|| format!("{folder}.top")));
                }
            }
            Keep::Mine => self.detach(&space, &record, &chosen, &kept, &folder, &mut report).await?,
        }
        Ok(report)
    }

    /// Goes on from one of two histories that the owner signed. Nothing that is published changes by it.
    pub(super) async fn resolve_fork(
        &self,
        name: &str,
        head: &str,
        sink: Arc<dyn ProgressSink>,
    ) -> Result<Done, ApiError> {
        let (space, record) = self.site.space_named(name)?;
        if record.role == Role::Owner {
            return Err(usage(
                format!("`{name}` is owned by this site: its history is what this site signs"),
                format!("a site that was set back goes on with `sluice space recover {name}`"),
            ));
        }
        let job = self.jobs.begin_in_turn(&record.name, "decide", sink).await?;
        let (site, of, text) = (self.site.clone(), record.clone(), head.to_string());
        let decided = off_reactor(move || {
            let decided = fork::decide(&site.catalog, &space, &of.name, &text)?;
            keep_deed(&site, &space, &of);
            Ok(decided)
        })
        .await?;
        drop(job);
        self.follow.look_again(&space);
        let (id, at) = (decided.head.id().short(), &decided.head);
        let let_go = if decided.let_go { "; it is not held at an older version any more" } else { "" };
        Ok(Done {
            done: format!(
                "`{name}` goes on from head {id}, number {} in epoch {} (snapshot {}); {} kept as evidence and not believed again{let_go}",
                at.seq,
                at.epoch,
                at.manifest.short(),
                match decided.set_aside {
                    1 => "the other branch is".to_string(),
                    n => format!("{n} other branches are"),
                },
            ),
        })
    }

    fn note_decision(&self, space: &SpaceId, keep: Keep, chosen: &[LiveSection], kept: &str) -> Result<(), ApiError> {
        let side = match keep {
            Keep::Theirs => "the owner's version",
            Keep::Mine => "the local files",
        };
        let names: Vec<&str> = chosen.iter().map(LiveSection::name).collect();
        let text = format!("{} keep {side}; the other side goes to {kept}", names.join(", "));
        let noted: Result<(), CatalogError> = self.site.catalog.write(|b| {
            journal::write(b, "resolved", Some(*space), None, &text)?;
            if keep == Keep::Theirs {
                for section in chosen {
                    keep_theirs(b, space, section.path.as_ref(), kept)?;
                }
            }
            Ok(())
        });
        noted.or_explain()
    }

    /// The decision stands in the catalog; a sync carries it out.
    async fn take_theirs(
        &self,
        space: &SpaceId,
        record: &SpaceRecord,
        chosen: &[LiveSection],
        kept: &str,
        job: &Arc<Job>,
    ) -> Result<SnapshotId, ApiError> {
        let synced = self.sync_with(space, record, false, None, None, job).await.map_err(|e| {
            let hint = format!(
                "the decision stands, and the local files lie where they were until `sluice sync {}` succeeds",
                record.name
            );
            ApiError { hint: Some(e.hint.map_or(hint.clone(), |first| format!("{first}; {hint}"))), ..e }
        })?;
        let left = synced.diverged.iter().find(|d| chosen.iter().any(|c| c.name() == d.section));
        match left {
            None => Ok(synced.snapshot),
            Some(d) => Err(ApiError::new(
                Failure::Incomplete,
                format!("section `{}` was changed again meanwhile; it stays as it lies", d.section),
                format!("run `sluice resolve {}` again; what gave way lies in `{OWN_FOLDER}/{kept}`", record.name),
            )),
        }
    }

    async fn detach(
        &self,
        space: &SpaceId,
        record: &SpaceRecord,
        chosen: &[LiveSection],
        kept: &str,
        folder: &str,
        report: &mut ResolveReport,
    ) -> Result<(), ApiError> {
        for (answer, section) in report.sections.iter_mut().zip(chosen) {
            let (site, space, record) = (self.site.clone(), *space, record.clone());
            let (path, to) = (section.path.clone(), kept.to_string());
            let aside = off_reactor(move || {
                let lake = site.lake_of(&record)?;
                keep_mine(&lake, &site.catalog, &space, path.as_ref(), &to).or_explain()
            })
            .await?;
            answer.kept = (!aside.kept.is_empty()).then(|| folder.to_string());
            answer.not_here = aside.not_here;
        }
        let (site, space, record) = (self.site.clone(), *space, record.clone());
        off_reactor(move || {
            keep_deed(&site, &space, &record);
            Ok(())
        })
        .await
    }
}

/// The sections that the decision is about.
fn choose(live: &LiveRecord, wanted: Option<&str>, keep: Keep) -> Result<Vec<LiveSection>, ApiError> {
    if let Some(wanted) = wanted
        && !live.sections.iter().any(|s| s.name() == wanted)
    {
        let names: Vec<&str> = live.sections.iter().map(LiveSection::name).collect();
        let hint = format!("the sections here are: {}", names.join(", "));
        return Err(ApiError::new(Failure::Error, format!("there is no section `{wanted}`"), hint));
    }
    let named = |s: &&LiveSection| wanted.is_none_or(|w| s.name() == w);
    // A detached section is given back only when it is named, or when nothing else is to be decided.
    let open = |s: &&LiveSection| s.change_count.is_some() && !s.detached || s.gives_way.is_some();
    let undecided: Vec<LiveSection> = live.sections.iter().filter(named).filter(open).cloned().collect();
    if undecided.is_empty() && keep == Keep::Theirs {
        return Ok(live.sections.iter().filter(named).filter(|s| s.detached).cloned().collect());
    }
    Ok(undecided)
}

fn resolved(section: &LiveSection) -> ResolvedSection {
    ResolvedSection {
        section: section.name().to_string(),
        kept: None,
        changes: changes_of(section),
        count: section.change_count.unwrap_or(0),
        not_here: vec![],
    }
}

fn changes_of(section: &LiveSection) -> Vec<Skipped> {
    section.changes.iter().map(|c| Skipped { path: c.path.clone(), reason: c.what.clone() }).collect()
}

/// The sections of a live version that do not follow the owner.
pub(super) fn diverged(live: Option<&LiveRecord>) -> Vec<DivergedSection> {
    let Some(live) = live else { return vec![] };
    let not_following = live.sections.iter().filter(|s| s.stays() || s.gives_way.is_some());
    let one = |s: &LiveSection| DivergedSection {
        section: s.name().to_string(),
        detached: s.detached,
        gives_way: s.gives_way.is_some(),
        changes: changes_of(s),
        count: s.change_count.unwrap_or(0),
        snapshot: s.of.unwrap_or(live.snapshot),
    };
    not_following.map(one).collect()
}
