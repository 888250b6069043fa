//! Spaces at this site: adding a lake, joining one, listing, removing.
//!
//! Invariant: adding and removing a space never touches a file of the lake outside `.sluice`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sluice_protocol::api::{
    ApiError, Done, Failure, GrantInfo, Invitation, Joined, ProgressSink, Role as ApiRole, Skipped, SnapshotReport,
    SpaceDetail, SpaceInfo, SpaceState, Unwatched,
};
use sluice_protocol::codec::Bytes;
use sluice_protocol::grants::{Genesis, Grant, GrantSet, Right, check_space_name};
use sluice_protocol::ids::SpaceId;
use sluice_protocol::limits::TICKET_LIFE_MS;
use sluice_protocol::manifest::History;
use sluice_protocol::messages::{Message, PairRequest, SpaceNews};
use sluice_protocol::signed::Signed;
use sluice_protocol::ticket::{Ticket, phrase};
use sluice_store::catalog::{Batch, CatalogError, Lookup, Reader, Role, SiteLookup, SpaceRecord};
use sluice_store::gc::LyingAside;
use sluice_store::lake::Lake;
use sluice_store::publish;
use sluice_store::watch::Watch;

use super::gc::aside_info;
use super::resolves::diverged;
use super::{SiteNode, usage};
use crate::clock::{now_ms, rfc3339};
use crate::errors::{OrExplain, refusal_hint};
use crate::jobs::Job;
use crate::{fork, journal, news, pairing};

/// Folder of the home in which lakes lie that were joined without `--into`.
const LAKES_FOLDER: &str = "lakes";

impl SiteNode {
    pub(super) async fn space_add(
        &self,
        name: String,
        path: String,
        history: Option<History>,
        opaque: bool,
        sink: Arc<dyn ProgressSink>,
    ) -> Result<SnapshotReport, ApiError> {
        sluice_protocol::api::check_new_space_name(&name)?;
        check_space_name(&name).map_err(|e| usage(e.to_string(), "choose a name like `acme` or `acme-2026`"))?;
        let lake = Lake::open(Path::new(&path)).or_explain()?;
        let job = self.jobs.begin_in_turn(&name, "scan", sink).await?;
        self.refuse_taken(&name, lake.root())?;
        let space = self.found(&name, lake.root(), history, opaque)?;
        let taken = self.snapshot_with(&name, None, job).await;
        self.follow.spaces_changed();
        if taken.is_err() {
            // A space without a first snapshot helps nobody: the call can be made again once mended.
            self.site.catalog.write(|b| b.remove_space(&space)).or_explain()?;
        }
        taken
    }

    /// A name and a folder belong to one space each, and no lake lies in another.
    fn refuse_taken(&self, name: &str, root: &Path) -> Result<(), ApiError> {
        if self.home.root().starts_with(root) || root.starts_with(self.home.root()) && !is_joined_lake(self, root) {
            return Err(usage(
                format!("`{}` and this site's home `{}` overlap", root.display(), self.home.root().display()),
                "keep the home outside of every lake: it holds the site's key",
            ));
        }
        for (_, record) in self.site.catalog.read().or_explain()?.spaces().or_explain()? {
            if record.name == name {
                return Err(usage(
                    format!("there is already a space `{name}`, at `{}`", record.lake),
                    format!("take its next snapshot with `sluice snapshot {name}`, or choose another name"),
                ));
            }
            let other = Path::new(&record.lake);
            if other.starts_with(root) || root.starts_with(other) {
                return Err(usage(
                    format!("`{}` overlaps the space `{}` at `{}`", root.display(), record.name, record.lake),
                    "a folder belongs to one space",
                ));
            }
        }
        Ok(())
    }

    fn found(&self, name: &str, root: &Path, history: Option<History>, opaque: bool) -> Result<SpaceId, ApiError> {
        let lake = text_of(root)?;
        let mut nonce = [0u8; 16];
        getrandom::fill(&mut nonce)
            .map_err(|e| ApiError::plain(Failure::Error, format!("the system gives no randomness: {e}")))?;
        let genesis = Genesis {
            owner: self.site.id,
            name: name.to_string(),
            nonce,
            recovery: self.site.recovery,
            created_ms: now_ms(),
            unknown: Default::default(),
        };
        let space = genesis.space_id();
        let mut grants = vec![];
        if let Some(recovery) = self.site.recovery {
            grants.push(Grant::new(recovery, "recovery", &[Right::Succeed], None));
        }
        let grants = Signed::sign(
            &self.site.key,
            GrantSet { genesis, seq: 0, grants, time_ms: now_ms(), unknown: Default::default() },
        );
        let record = SpaceRecord {
            name: name.to_string(),
            role: Role::Owner,
            lake,
            owner: self.site.id,
            history,
            opaque,
            sections: vec![],
            sources: vec![],
            frozen: None,
            held: None,
            rivals: vec![],
            phrase: None,
            follow: None,
            unknown: Default::default(),
        };
        let written: Result<(), CatalogError> = self.site.catalog.write(|b| {
            b.put_space(&space, &record)?;
            b.put_meta(&space, grants.bytes())?;
            b.put_grants(&space, &grants)?;
            journal::write(b, "space added", Some(space), None, name)
        });
        written.or_explain()?;
        Ok(space)
    }

    pub(super) fn invite(
        &self,
        name: &str,
        sections: Vec<String>,
        expires_s: Option<u64>,
    ) -> Result<Invitation, ApiError> {
        let (space, record) = self.site.space_named(name)?;
        if record.role != Role::Owner {
            return Err(usage(
                format!("`{name}` belongs to site {}, and only its owner can invite", record.owner.short()),
                "run `sluice invite` on the owner's site",
            ));
        }
        let limited = Grant { sections: sections.clone(), ..Grant::new(self.site.id, "limit", &[Right::Read], None) };
        limited
            .check()
            .map_err(|e| usage(e.to_string(), "name a section's kind or folder, as `sluice space show` lists them"))?;
        let life_ms = expires_s.map_or(TICKET_LIFE_MS, |s| s.saturating_mul(1000));
        let invite = pairing::Invite {
            space,
            space_name: record.name.clone(),
            sections,
            life_ms,
            site: self.site.id,
            addresses: self.site.lane.local_addresses().iter().map(ToString::to_string).collect(),
        };
        let ticket = pairing::invite(&self.site.catalog, invite).or_explain()?;
        Ok(Invitation {
            ticket: ticket.reveal(),
            phrase: ticket.phrase(),
            expires: rfc3339(ticket.body().expires_ms),
            space: record.name,
        })
    }

    pub(super) async fn join(
        &self,
        ticket: &str,
        into: Option<String>,
        sections: Vec<String>,
        sink: Arc<dyn ProgressSink>,
    ) -> Result<Joined, ApiError> {
        let ticket = Ticket::parse(ticket).or_explain()?;
        let body = ticket.body();
        if body.site == self.site.id {
            return Err(usage("this ticket was made by this very site", "use it on another site"));
        }
        // Held from here on: two joins at once must not both find the space unknown.
        let job = self.jobs.begin_in_turn(&body.space_name, "pair", sink).await?;
        let known = self.site.catalog.read().or_explain()?.space(&body.space).or_explain()?;
        let record = match known {
            Some(record) => self.enter_again(&ticket, record, into, sections).await?,
            None => self.enter(&ticket, into, sections, &job).await?,
        };
        let phrase = phrase(body.site, body.space, &body.secret);
        // What a first try leaves to do, following does.
        let sync = self.sync_with(&body.space, &record, false, None, None, &job).await;
        self.follow.spaces_changed();
        let sync = sync?;
        Ok(Joined { phrase, path: record.lake, sync })
    }

    /// A space that is here already: the ticket refreshes where its owner is reached and what is granted.
    async fn enter_again(
        &self,
        ticket: &Ticket,
        record: SpaceRecord,
        into: Option<String>,
        sections: Vec<String>,
    ) -> Result<SpaceRecord, ApiError> {
        check_same_target(&record, into.as_deref())?;
        let space = ticket.body().space;
        let news = self.knock(ticket).await?;
        self.write_down(&space, &news, |b| {
            // Read again: while the other site was asked, a fork may have frozen the space, or a person decided.
            let gone = || CatalogError::Refused(format!("the space `{}` was removed meanwhile", record.name));
            let mut record = b.space(&space)?.ok_or_else(gone)?;
            if !sections.is_empty() && b.live(&space)?.is_none() {
                record.sections = sections;
            }
            Ok(record)
        })
    }

    /// Is admitted by the ticket's site and writes the space down. Nothing has moved yet.
    async fn enter(
        &self,
        ticket: &Ticket,
        into: Option<String>,
        sections: Vec<String>,
        job: &Job,
    ) -> Result<SpaceRecord, ApiError> {
        let body = ticket.body();
        let (target, made) = self.prepare_target(&body.space, &body.space_name, into)?;
        let news = match self.knock(ticket).await {
            Ok(news) => news,
            Err(e) => {
                leave_nothing(&target, made);
                return Err(e);
            }
        };
        let shown = phrase(body.site, body.space, &body.secret);
        job.note(format!("paired with site {}: the phrase is {shown}", body.site.short()));
        let record = SpaceRecord {
            name: body.space_name.clone(),
            role: Role::Replica,
            lake: text_of(&target)?,
            owner: body.site,
            history: None,
            opaque: false,
            sections,
            sources: vec![body.site],
            frozen: None,
            held: None,
            rivals: vec![],
            phrase: Some(shown),
            follow: None,
            unknown: Default::default(),
        };
        self.write_down(&body.space, &news, |_| Ok(record))
    }

    fn prepare_target(&self, space: &SpaceId, name: &str, into: Option<String>) -> Result<(PathBuf, bool), ApiError> {
        let named = self.site.catalog.read().or_explain()?.spaces().or_explain()?;
        if named.iter().any(|(_, r)| r.name == name) {
            return Err(usage(
                format!("another space is already called `{name}` here"),
                "remove that one first with `sluice space remove`, or use another site",
            ));
        }
        let path = into.map_or_else(|| self.home.root().join(LAKES_FOLDER).join(name), PathBuf::from);
        let made = !path.exists();
        sluice_store::disk::make_folders("lake", &path, 0o777).map_err(|e| {
            let hint = "choose a folder that the daemon's user may write";
            ApiError::new(Failure::Error, format!("`{}` cannot be made: {e}", path.display()), hint)
        })?;
        let lake = Lake::open(&path).or_explain()?;
        let fits = self
            .refuse_taken(name, lake.root())
            .and_then(|()| publish::check_target(&lake, &self.site.catalog, space).or_explain());
        if let Err(e) = fits {
            leave_nothing(lake.root(), made);
            return Err(e);
        }
        Ok((lake.root().to_path_buf(), made))
    }

    /// Shows the ticket at the pairing door.
    async fn knock(&self, ticket: &Ticket) -> Result<SpaceNews, ApiError> {
        let body = ticket.body();
        let addresses: Vec<_> = body.addresses.iter().filter_map(|a| a.parse().ok()).collect();
        let request = PairRequest {
            secret: body.secret,
            space: body.space,
            card: Bytes(self.site.card().bytes().to_vec()),
            unknown: Default::default(),
        };
        let peer = self.site.lane.peer(body.site, &addresses);
        match peer.pair(request).await.or_explain()? {
            Message::News(news) => Ok(news),
            Message::Refused(r) => Err(ApiError {
                error: format!("site {} did not admit this site: {}", body.site.short(), r.text),
                hint: refusal_hint(r.code),
                failure: Failure::Error,
            }),
            _ => Err(ApiError::plain(Failure::Error, "the other site answered something that makes no sense")),
        }
    }

    /// Believes and stores what the inviting site said, and the space with it as `record` makes it, in one
    /// transaction.
    fn write_down(
        &self,
        space: &SpaceId,
        news: &SpaceNews,
        record: impl FnOnce(&Batch) -> Result<SpaceRecord, CatalogError>,
    ) -> Result<SpaceRecord, ApiError> {
        let now = now_ms();
        let written = self.site.catalog.write(|b| {
            let mut record = record(b)?;
            let believed = news::believe(b, space, news, now)?;
            record.owner = believed.grants().genesis.owner;
            news::store(b, space, &believed)?;
            for card in believed.cards() {
                if record.sources.contains(&card.site) || card.site == record.owner {
                    pairing::put_peer(b, card, now)?;
                }
            }
            b.put_space(space, &record)?;
            journal::write(b, "joined", Some(*space), Some(record.owner), &record.name)?;
            Ok::<_, news::NewsError>(record)
        });
        written.or_explain()
    }

    pub(super) async fn space_list(&self) -> Result<Vec<SpaceInfo>, ApiError> {
        let spaces = self.site.catalog.read().or_explain()?.spaces().or_explain()?;
        let asides = self.asides.of(&spaces).await;
        let reader = self.site.catalog.read().or_explain()?;
        let both = spaces.iter().zip(asides);
        both.map(|((id, record), aside)| self.space_info(&reader, id, record, aside)).collect()
    }

    /// `aside` is what lies aside in its lake; none when that does not answer.
    fn space_info(
        &self,
        reader: &Reader,
        space: &SpaceId,
        record: &SpaceRecord,
        aside: Option<LyingAside>,
    ) -> Result<SpaceInfo, ApiError> {
        let head = reader.newest_head(space, &record.owner).or_explain()?;
        let live = reader.live(space).or_explain()?;
        let shown = match record.role {
            Role::Owner => head.as_ref().map(|h| h.manifest),
            Role::Replica => live.as_ref().map(|l| l.snapshot),
        };
        let totals = shown.map(|id| reader.snapshot(space, &id)).transpose().or_explain()?.flatten();
        let diverged = diverged(live.as_ref());
        let held = self.held_at(reader, space, record)?;
        let (lake_silent, aside) = (aside.is_none(), aside.unwrap_or_default());
        let is_held = held.as_ref().map(|h| h.snapshot);
        let state = if self.jobs.is_busy(&record.name) {
            SpaceState::Busy
        } else if record.frozen.is_some() {
            SpaceState::Frozen
        } else {
            match (&head, &shown) {
                (None, _) | (_, None) => SpaceState::Empty,
                (Some(head), _) if head.is_stale(now_ms()) => SpaceState::Stale,
                (Some(head), Some(shown)) if head.manifest != *shown && is_held != Some(*shown) => SpaceState::Behind,
                _ if diverged.iter().any(|d| !d.detached) => SpaceState::Diverged,
                _ if live.as_ref().is_some_and(|l| !l.unproven.is_empty()) => SpaceState::Unproven,
                _ => SpaceState::Ready,
            }
        };
        Ok(SpaceInfo {
            name: record.name.clone(),
            space: *space,
            role: if record.role == Role::Owner { ApiRole::Owner } else { ApiRole::Replica },
            path: record.lake.clone(),
            state,
            snapshot: shown,
            seq: head.as_ref().filter(|h| Some(h.manifest) == shown).map(|h| h.seq),
            snapshot_time_ms: head.as_ref().filter(|h| Some(h.manifest) == shown).map(|h| h.time_ms),
            files: totals.as_ref().map_or(0, |t| t.files),
            bytes: totals.as_ref().map_or(0, |t| t.bytes),
            skipped: totals.map(|t| skipped(&t.skipped)).unwrap_or_default(),
            follow: self.follow.info(reader, space, record).or_explain()?,
            diverged,
            held,
            branches: fork::branches(reader, space, record).or_explain()?,
            kept_aside: aside_info(&aside.kept),
            quarantined: aside_info(&aside.quarantine),
            lake_silent,
        })
    }

    pub(super) async fn space_show(&self, name: &str) -> Result<SpaceDetail, ApiError> {
        let found = [self.site.space_named(name)?];
        let aside = self.asides.of(&found).await.pop().flatten();
        let [(space, record)] = found;
        let reader = self.site.catalog.read().or_explain()?;
        let info = self.space_info(&reader, &space, &record, aside)?;
        let retention = match info.lake_silent {
            true => "unavailable: the lake does not answer".into(),
            false => self.retention(&record),
        };
        let sections = match info.snapshot {
            Some(id) => self.sections_of(&reader, &space, &id)?,
            None => vec![],
        };
        let grants = reader.grants(&space).or_explain()?;
        Ok(SpaceDetail {
            info,
            owner: record.owner,
            sections,
            grants: grants.iter().flat_map(|g| &g.grants).map(grant_info).collect(),
            retention,
        })
    }

    fn retention(&self, record: &SpaceRecord) -> String {
        let (keep, grace) = (self.site.config.publish.keep_generations, self.site.config.publish.readers_grace_s);
        match (record.role, self.site.lake_of(record).map(|l| l.own().is_ok())) {
            (Role::Replica, Ok(true)) => {
                format!("the last {keep} published versions are kept, and each for {grace} s after the next")
            }
            (Role::Owner, Ok(true)) => "files of the newest snapshots are pinned where they are written once".into(),
            (_, Ok(false)) => "unavailable: nothing can be written in this lake".into(),
            (_, Err(e)) => format!("unavailable: {e}"),
        }
    }

    pub(super) async fn space_remove(&self, name: &str) -> Result<Done, ApiError> {
        let (space, record) = self.site.space_named(name)?;
        let _job = self.jobs.begin_in_turn(&record.name, "remove", Arc::new(Unwatched)).await?;
        let removed: Result<(), CatalogError> = self.site.catalog.write(|b| {
            b.remove_space(&space)?;
            journal::write(b, "space removed", Some(space), None, &record.name)
        });
        removed.or_explain()?;
        self.follow.spaces_changed();
        Ok(Done {
            done: format!(
                "`{}` is no longer a space of this site; its files at `{}` were not touched",
                record.name, record.lake
            ),
        })
    }

    /// Lets the site follow a space by itself, or no longer.
    pub(super) fn follow(&self, name: &str, on: bool) -> Result<Done, ApiError> {
        let (space, record) = self.site.space_named(name)?;
        let written: Result<(), CatalogError> = self.site.catalog.write(|b| {
            if let Some(mut record) = b.space(&space)? {
                record.follow = (!on).then_some(false);
                b.put_space(&space, &record)?;
                journal::write(b, if on { "followed" } else { "paused" }, Some(space), None, &record.name)?;
            }
            Ok(())
        });
        written.or_explain()?;
        self.follow.spaces_changed();
        let what = match (on, record.role) {
            (true, Role::Owner) => "changes in its lake are taken and told by themselves",
            (true, Role::Replica) => "new versions come by themselves",
            (false, Role::Owner) => "its lake is not watched; `sluice snapshot` takes what changed",
            (false, Role::Replica) => "nothing comes by itself; `sluice sync` brings what is new",
        };
        let off = if on && !self.site.config.follow.enabled {
            ", once the settings permit it (`follow.enabled`)"
        } else {
            ""
        };
        Ok(Done { done: format!("`{}`: {what}{off}", record.name) })
    }
}

/// Lakes that were joined without `--into` lie in the home, on purpose.
fn is_joined_lake(node: &SiteNode, root: &Path) -> bool {
    root.starts_with(node.home.root().join(LAKES_FOLDER))
}

/// Removes what preparing a target made: folders, and only while they are empty.
fn leave_nothing(target: &Path, made: bool) {
    // A folder that holds anything stays, which is all that matters here.
    let _ = std::fs::remove_dir(target.join(sluice_protocol::path::OWN_FOLDER));
    if made {
        let _ = std::fs::remove_dir(target);
    }
}

fn check_same_target(record: &SpaceRecord, into: Option<&str>) -> Result<(), ApiError> {
    let same = into.is_none_or(|into| {
        let real = Path::new(into).canonicalize();
        real.is_ok_and(|real| real == Path::new(&record.lake))
    });
    if record.role == Role::Replica && same {
        return Ok(());
    }
    Err(usage(
        format!("this site already has the space `{}`, at `{}`", record.name, record.lake),
        format!("bring it up to date with `sluice sync {}`", record.name),
    ))
}

pub(super) fn text_of(path: &Path) -> Result<String, ApiError> {
    let text = path.to_str().map(str::to_string);
    text.ok_or_else(|| usage(format!("`{}` is not UTF-8", path.display()), "choose a folder with a plain name"))
}

/// Paths and reasons as they are stored, one after the other.
pub(super) fn skipped(pairs: &[String]) -> Vec<Skipped> {
    let pairs = pairs.chunks_exact(2);
    pairs.map(|p| Skipped { path: p[0].clone(), reason: p[1].clone() }).collect()
}

fn grant_info(grant: &Grant) -> GrantInfo {
    let rights = [(Right::Read, "read"), (Right::Write, "write"), (Right::Succeed, "succeed")];
    GrantInfo {
        site: grant.site,
        name: grant.name.clone(),
        rights: rights.iter().filter(|(r, _)| grant.gives(*r, 0)).map(|(_, text)| text.to_string()).collect(),
        sections: grant.sections.clone(),
        expires_ms: grant.expires_ms,
    }
}
