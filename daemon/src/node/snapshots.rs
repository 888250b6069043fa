//! Snapshots at this site: taking one, listing, showing, comparing.

use std::collections::BTreeMap;
use std::sync::Arc;

use sluice_protocol::annex::{Annex, TableFacts};
use sluice_protocol::api::{
    ApiError, DiffReport, Done, Failure, HeldAt, ProgressSink, SectionInfo, Skipped, SnapshotDetail, SnapshotInfo,
    SnapshotReport, TableInfo,
};
use sluice_protocol::codec::{Document, check_name};
use sluice_protocol::head::{Head, Tags};
use sluice_protocol::ids::{SiteId, SnapshotId, SpaceId};
use sluice_protocol::manifest::{Entry, Manifest};
use sluice_protocol::signed::Signed;
use sluice_store::catalog::{Lookup, Reader, Role, SiteLookup, SpaceRecord};

use super::gc::not_kept;
use super::{SiteNode, usage};
use crate::errors::OrExplain;
use crate::flow::{keep_deed, off_reactor, take_snapshot};
use crate::heads::{TakenBack, untag};
use crate::jobs::Job;
use crate::journal;
use crate::setback;
use crate::sync::ask;
use crate::sync::survey::entries;

/// Tags that an error names.
const TAGS_NAMED_MAX: usize = 10;
/// Heads that one listing shows.
const LISTED_MAX: usize = 100_000;

impl SiteNode {
    pub(super) async fn snapshot_create(
        &self,
        name: &str,
        tag: Option<String>,
        sink: Arc<dyn ProgressSink>,
    ) -> Result<SnapshotReport, ApiError> {
        let (_, record) = self.site.space_named(name)?;
        if record.role != Role::Owner {
            return Err(usage(
                format!("`{name}` belongs to site {}: snapshots are made there", record.owner.short()),
                format!("bring this copy up to date with `sluice sync {name}`"),
            ));
        }
        if let Some(tag) = &tag {
            check_name("a tag", tag).map_err(|e| usage(e.to_string(), "choose a tag like `v1` or `2026-11`"))?;
        }
        let job = self.jobs.begin_in_turn(&record.name, "scan", sink).await?;
        self.snapshot_with(name, tag, job).await
    }

    /// Takes a snapshot within a job that has begun.
    pub(crate) async fn snapshot_with(
        &self,
        name: &str,
        tag: Option<String>,
        job: Arc<Job>,
    ) -> Result<SnapshotReport, ApiError> {
        let (space, record) = self.site.space_named(name)?;
        self.setback.check(&self.site, &space, &record).await?;
        let (site, of, working) = (self.site.clone(), record.clone(), job.clone());
        let taken = off_reactor(move || take_snapshot(&site, &space, &of, tag, false, &working)).await?;
        if taken.signed {
            self.follow.tell(taken.head.clone(), vec![]);
        }
        self.gc_when_due(&space, &record, &job).await;
        let reader = self.site.catalog.read().or_explain()?;
        let s = &taken.snapshot;
        Ok(SnapshotReport {
            space: name.to_string(),
            snapshot: s.id,
            seq: taken.head.seq,
            files: s.manifest.entries(),
            bytes: s.stats.bytes,
            changed: taken.changed,
            read_files: s.stats.read_files,
            read_bytes: s.stats.read_bytes,
            seconds: taken.seconds,
            skipped: s.skipped.iter().map(|k| Skipped { path: k.path.clone(), reason: k.reason.clone() }).collect(),
            sections: self.sections_of(&reader, &space, &s.id)?,
        })
    }

    /// Takes up the heads that a peer has seen of this owner's chain, and signs what lies in the lake after
    /// them, in a new epoch.
    pub(super) async fn space_recover(&self, name: &str, sink: Arc<dyn ProgressSink>) -> Result<Done, ApiError> {
        let (space, record) = self.site.space_named(name)?;
        if record.role != Role::Owner {
            return Err(usage(
                format!("`{name}` belongs to site {}: only its owner can be set back", record.owner.short()),
                "run `sluice space recover` there",
            ));
        }
        let job = self.jobs.begin(&record.name, "ask", sink)?;
        let Some((peer, seen)) = self.take_up(&space, &record).await? else {
            let text = format!(
                "neither a peer that answers nor the deed in the lake has seen a newer head of `{name}` than this site: nothing was done"
            );
            return Ok(Done { done: text });
        };
        let (site, lake) = (self.site.clone(), record.clone());
        let taken = off_reactor(move || take_snapshot(&site, &space, &lake, None, true, &job)).await?;
        self.setback.is_in_step(&space);
        let text = format!(
            "from {} (epoch {}, seq {}) on: {} is number {} in epoch {}",
            peer.map_or("the deed in its lake".into(), |peer| format!("site {}", peer.short())),
            seen.epoch,
            seen.seq,
            taken.snapshot.id.short(),
            taken.head.seq,
            taken.head.epoch
        );
        let noted = self.site.catalog.write(|b| journal::write(b, "recovered", Some(space), peer, &text));
        noted.or_explain()?;
        Ok(Done { done: format!("`{name}` goes on {text}") })
    }

    /// Stores the newest head that was seen of this owner's chain: by a peer that answers, or else by the
    /// deed in the lake. None when this site's own is the newest.
    async fn take_up(
        &self,
        space: &SpaceId,
        record: &SpaceRecord,
    ) -> Result<Option<(Option<SiteId>, Signed<Head>)>, ApiError> {
        let mine = self.site.catalog.read().or_explain()?.newest_head(space, &self.site.id).or_explain()?;
        let later = |h: &Signed<Head>| Some(h.place()) > mine.as_ref().map(|m| m.place());
        let deed = setback::in_deed(&self.site, space, record).into_iter().filter(later).max_by_key(|h| h.place());
        let peer = ask::highest_known(&self.site, space).await.filter(|(_, h)| later(h));
        match (peer, deed) {
            (Some((peer, head)), deed) if deed.as_ref().is_none_or(|d| d.place() <= head.place()) => {
                ask::catch_up(&self.site, space, peer).await.or_explain()?;
                Ok(Some((Some(peer), head)))
            }
            (_, Some(head)) => {
                // Signed by this site's own key, and no peer that answers has seen a later one.
                self.site.catalog.write(|b| b.put_head(&head)).or_explain()?;
                Ok(Some((None, head)))
            }
            _ => Ok(None),
        }
    }

    pub(super) fn snapshot_list(&self, name: &str) -> Result<Vec<SnapshotInfo>, ApiError> {
        let (space, record) = self.site.space_named(name)?;
        let reader = self.site.catalog.read().or_explain()?;
        let live = self.live_snapshot(&reader, &space, &record)?;
        let heads = heads(&reader, &space, &record)?.into_iter();
        heads.map(|(head, tag)| info(&reader, &head, tag, live, record.role)).collect()
    }

    /// Takes a tag back. What a peer leases goes on, and so does a replica that is held at the version.
    pub(super) async fn snapshot_untag(
        &self,
        name: &str,
        tag: String,
        sink: Arc<dyn ProgressSink>,
    ) -> Result<Done, ApiError> {
        let (space, record) = self.site.space_named(name)?;
        if record.role != Role::Owner {
            return Err(usage(
                format!("`{name}` belongs to site {}: tags are given and taken back there", record.owner.short()),
                format!("run `sluice snapshot untag {name} {tag}` on the owner's site"),
            ));
        }
        let _job = self.jobs.begin_in_turn(&record.name, "sign", sink).await?;
        self.setback.check(&self.site, &space, &record).await?;
        let (site, of, wanted) = (self.site.clone(), record.clone(), tag.clone());
        let taken_back = off_reactor(move || {
            let done = untag(&site, &space, &wanted).or_explain()?;
            keep_deed(&site, &space, &of);
            Ok(done)
        });
        let Some(TakenBack { bore, head }) = taken_back.await? else {
            let reader = self.site.catalog.read().or_explain()?;
            let tags: Vec<String> = heads(&reader, &space, &record)?.into_iter().filter_map(|(_, tag)| tag).collect();
            let there = match tags.len() {
                0 => "no version has one".to_string(),
                _ => format!("the newest are: {}", tags[..tags.len().min(TAGS_NAMED_MAX)].join(", ")),
            };
            return Err(ApiError::new(Failure::Error, format!("there is no tag `{tag}` in `{name}`"), there));
        };
        self.follow.tell(head, vec![]);
        let (id, seq) = (bore.manifest.short(), bore.seq);
        Ok(Done { done: format!("`{tag}` is taken back from {id}, number {seq}; nothing else of the version changes") })
    }

    pub(super) fn live_snapshot(
        &self,
        reader: &Reader,
        space: &SpaceId,
        record: &SpaceRecord,
    ) -> Result<Option<SnapshotId>, ApiError> {
        Ok(match record.role {
            Role::Owner => reader.newest_head(space, &record.owner).or_explain()?.map(|h| h.manifest),
            Role::Replica => reader.live(space).or_explain()?.map(|l| l.snapshot),
        })
    }

    /// The head that a person means: an id, the beginning of one, a tag that stands, `seq` as a number, or
    /// the newest.
    pub(super) fn find_head(
        &self,
        reader: &Reader,
        space: &SpaceId,
        record: &SpaceRecord,
        text: Option<&str>,
    ) -> Result<Signed<Head>, ApiError> {
        self.find_tagged(reader, space, record, text).map(|(head, _)| head)
    }

    /// The same, with its tag.
    fn find_tagged(
        &self,
        reader: &Reader,
        space: &SpaceId,
        record: &SpaceRecord,
        text: Option<&str>,
    ) -> Result<Tagged, ApiError> {
        let mut heads = heads(reader, space, record)?.into_iter();
        let none = || {
            let what = text.map_or("there is no snapshot yet".into(), |t| format!("there is no snapshot `{t}`"));
            ApiError::new(Failure::Error, what, format!("`sluice snapshot list {}` shows them", record.name))
        };
        let Some(text) = text else { return heads.next().ok_or_else(none) };
        let fits = |(h, tag): &Tagged| {
            tag.as_deref() == Some(text)
                || h.seq.to_string() == text
                || (text.len() >= 4 && h.manifest.to_string().starts_with(&text.to_ascii_lowercase()))
        };
        heads.find(fits).ok_or_else(none)
    }

    /// The version that a replica is held at.
    pub(super) fn held_at(
        &self,
        reader: &Reader,
        space: &SpaceId,
        record: &SpaceRecord,
    ) -> Result<Option<HeldAt>, ApiError> {
        let Some(id) = record.held else { return Ok(None) };
        let head = ask::head_by_id(reader, space, &record.owner, &id).or_explain()?;
        Ok(head.map(|h| HeldAt { snapshot: h.manifest, seq: h.seq }))
    }

    pub(super) fn snapshot_show(&self, name: &str, snapshot: Option<String>) -> Result<SnapshotDetail, ApiError> {
        let (space, record) = self.site.space_named(name)?;
        let reader = self.site.catalog.read().or_explain()?;
        let live = self.live_snapshot(&reader, &space, &record)?;
        let (head, tag) = self.find_tagged(&reader, &space, &record, snapshot.as_deref())?;
        let sections = self.sections_of(&reader, &space, &head.manifest)?;
        Ok(SnapshotDetail { info: info(&reader, &head, tag, live, record.role)?, sections })
    }

    pub(super) fn snapshot_diff(&self, name: &str, from: &str, to: Option<String>) -> Result<DiffReport, ApiError> {
        let (space, record) = self.site.space_named(name)?;
        let reader = self.site.catalog.read().or_explain()?;
        let from = self.find_head(&reader, &space, &record, Some(from))?.manifest;
        let to = self.find_head(&reader, &space, &record, to.as_deref())?.manifest;
        let before = self.listing(&reader, &space, &from)?;
        let after = self.listing(&reader, &space, &to)?;
        let only = |a: &BTreeMap<String, Entry>, b: &BTreeMap<String, Entry>| {
            a.keys().filter(|path| !b.contains_key(*path)).cloned().collect()
        };
        let changed = after.iter().filter(|(path, entry)| before.get(*path).is_some_and(|old| old != *entry));
        Ok(DiffReport {
            from,
            to,
            added: only(&after, &before),
            removed: only(&before, &after),
            changed: changed.map(|(path, _)| path.clone()).collect(),
        })
    }

    /// All entries of a snapshot by their path in the lake.
    fn listing(&self, reader: &Reader, space: &SpaceId, id: &SnapshotId) -> Result<BTreeMap<String, Entry>, ApiError> {
        let mut all = BTreeMap::new();
        for section in self.manifest_of(reader, space, id)?.sections {
            for entry in entries(reader, space, &section.tree).or_explain()? {
                if let Ok(path) = section.lake_path(&entry.path) {
                    all.insert(path.as_str().to_string(), entry);
                }
            }
        }
        Ok(all)
    }

    pub(super) fn manifest_of(&self, reader: &Reader, space: &SpaceId, id: &SnapshotId) -> Result<Manifest, ApiError> {
        let raw = reader.meta(space, &(*id).into()).or_explain()?;
        raw.and_then(|raw| Manifest::from_bytes(&raw).ok()).ok_or_else(|| not_kept(&id.short()))
    }

    /// The sections of a snapshot, with what is known of their tables.
    pub(super) fn sections_of(
        &self,
        reader: &Reader,
        space: &SpaceId,
        id: &SnapshotId,
    ) -> Result<Vec<SectionInfo>, ApiError> {
        let manifest = self.manifest_of(reader, space, id)?;
        let annex = self.annex_of(reader, space, id)?;
        let live = reader.live(space).or_explain()?.filter(|l| l.snapshot == *id);
        let unproven = live.map(|l| l.unproven).unwrap_or_default();
        Ok(manifest
            .sections
            .iter()
            .map(|s| {
                let prefix = format!("{}: ", s.name());
                SectionInfo {
                    name: s.name().to_string(),
                    kind: s.kind,
                    files: s.tree.items,
                    bytes: s.tree.weight,
                    table: annex.as_ref().and_then(|a| a.facts(s.path.as_ref())).map(table_info),
                    unproven: unproven.iter().find_map(|u| u.strip_prefix(&prefix)).map(str::to_string),
                }
            })
            .collect())
    }

    /// The annex that goes with a snapshot: its head's, or that of the newest head which names it (what is
    /// published a moment ago has no totals yet).
    fn annex_of(&self, reader: &Reader, space: &SpaceId, id: &SnapshotId) -> Result<Option<Annex>, ApiError> {
        let head = reader.snapshot(space, id).or_explain()?.map(|totals| totals.head);
        let Some(record) = reader.space(space).or_explain()? else { return Ok(None) };
        let newest = reader.newest_head(space, &record.owner).or_explain()?;
        let found = match newest.filter(|h| Some(h.id()) == head || h.manifest == *id) {
            Some(head) => Some(head),
            None => {
                let all = reader.heads_since(space, &record.owner, (0, 0), LISTED_MAX).or_explain()?;
                all.into_iter().rev().find(|h| h.manifest == *id)
            }
        };
        let raw = found.map(|h| reader.meta(space, &h.annex)).transpose().or_explain()?.flatten();
        Ok(raw.and_then(|raw| Annex::from_bytes(&raw).ok()))
    }
}

/// A head, and the tag that it still gives its version.
type Tagged = (Signed<Head>, Option<String>);

/// Every head of a space's owner, newest first.
fn heads(reader: &Reader, space: &SpaceId, record: &SpaceRecord) -> Result<Vec<Tagged>, ApiError> {
    let heads = reader.heads_since(space, &record.owner, (0, 0), LISTED_MAX).or_explain()?;
    let mut tags = Tags::default();
    let tagged = |h: Signed<Head>| {
        let tag = tags.standing(h.tag.as_deref(), h.untag.as_deref());
        (h, tag)
    };
    Ok(heads.into_iter().rev().map(tagged).collect())
}

fn info(
    reader: &Reader,
    head: &Signed<Head>,
    tag: Option<String>,
    live: Option<SnapshotId>,
    role: Role,
) -> Result<SnapshotInfo, ApiError> {
    let is_live = live == Some(head.manifest);
    let owned = role == Role::Owner;
    let totals = reader.snapshot(&head.space, &head.manifest).or_explain()?;
    Ok(SnapshotInfo {
        snapshot: head.manifest,
        head: head.id(),
        epoch: head.epoch,
        seq: head.seq,
        time_ms: head.time_ms,
        tag,
        files: totals.as_ref().map_or(0, |t| t.files),
        bytes: totals.as_ref().map_or(0, |t| t.bytes),
        live: is_live,
        kept: is_live || owned && reader.has_meta(&head.space, &head.manifest.into()).or_explain()?,
    })
}

fn table_info(facts: &TableFacts) -> TableInfo {
    TableInfo {
        version: facts.version,
        versions: facts.versions.len() as u64,
        rows: facts.rows,
        dimensions: facts.dimensions.iter().map(|d| (d.column.clone(), d.dim)).collect(),
        indices: facts.indices.iter().map(|i| i.name.clone()).collect(),
    }
}
