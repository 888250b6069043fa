//! What a site answers: plain data, one struct for each kind of result.
//!
//! Invariant: fields are only added, with a default; a client of last year reads an answer of today.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{HeadId, SiteId, SnapshotId, SpaceId};
use crate::manifest::SectionKind;

/// Milliseconds since the Unix epoch.
pub type TimeMs = u64;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Owner,
    Replica,
}

/// How a space stands at this site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SpaceState {
    /// Nothing arrived or was taken yet.
    Empty,
    /// Work is going on.
    Busy,
    /// The newest version that is known here is published, and proven.
    Ready,
    /// Published, but a table could not be opened by this build.
    Unproven,
    /// A newer version is known and not yet here.
    Behind,
    /// The newest head has passed its time.
    Stale,
    /// Two heads claim the same place: nothing is taken until a person decides.
    Frozen,
    /// A section was changed here by hand and stays as it lies until a person decides.
    Diverged,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// The URL of the API on loopback; none when it is closed.
    pub api: Option<String>,
    pub site: SiteId,
    pub name: String,
    pub version: String,
    pub home: String,
    pub pid: u32,
    /// Socket addresses on which peers are served.
    pub listening: Vec<String>,
    pub spaces: Vec<SpaceInfo>,
    pub peers: Vec<PeerInfo>,
    /// What is going on now.
    pub jobs: Vec<JobInfo>,
    /// Bytes received from peers since the site was made, across restarts.
    pub moved_bytes_total: u64,
    /// Bytes of new versions that were here already, likewise.
    pub reused_bytes_total: u64,
    /// Bytes handed to the network for peers since the daemon started, hash trees included.
    #[serde(default)]
    pub served_bytes_total: u64,
    /// The caps that hold bulk data back now, in words.
    #[serde(default)]
    pub caps: Vec<String>,
    /// Newest last: things a person should know.
    pub alerts: Vec<Alert>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Alert {
    pub time_ms: TimeMs,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub space: Option<String>,
    pub text: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JobInfo {
    pub space: String,
    pub stage: String,
    pub files: u64,
    pub files_total: u64,
    pub bytes: u64,
    pub bytes_total: u64,
    pub since_ms: TimeMs,
    /// Nobody asked for it: the site follows a change.
    #[serde(default)]
    pub automatic: bool,
    /// Bytes in a second of this stage, of the last half minute; none before there is something to go by.
    #[serde(default)]
    pub bytes_per_s: Option<u64>,
    /// Seconds that the rest of this stage takes at that rate; none while nothing moves.
    #[serde(default)]
    pub left_s: Option<u64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SpaceInfo {
    pub name: String,
    pub space: SpaceId,
    pub role: Role,
    pub path: String,
    pub state: SpaceState,
    pub snapshot: Option<SnapshotId>,
    pub seq: Option<u64>,
    pub snapshot_time_ms: Option<TimeMs>,
    pub files: u64,
    pub bytes: u64,
    /// Files that the newest snapshot left out, with their reasons.
    pub skipped: Vec<Skipped>,
    /// Whether and how well the site follows the space by itself.
    #[serde(default)]
    pub follow: FollowInfo,
    /// Sections of a replica that do not follow the owner's newest version.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub diverged: Vec<DivergedSection>,
    /// The version that a replica is held at, instead of the newest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<HeldAt>,
    /// The owner's contradicting histories, the followed one first; empty where there is one only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub branches: Vec<BranchInfo>,
    /// The losing sides of decisions that lie in `.sluice/kept`.
    #[serde(default)]
    pub kept_aside: AsideInfo,
    /// Damaged bytes that lie in `.sluice/quarantine`.
    #[serde(default)]
    pub quarantined: AsideInfo,
    /// The lake's folder does not answer, as a network folder whose server is gone: what lies aside in it is not known.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lake_silent: bool,
}

/// What lies below `.sluice` for people: the losing sides of decisions, or damaged bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AsideInfo {
    pub files: u64,
    pub bytes: u64,
    /// Since when the oldest file lies there.
    #[serde(default)]
    pub oldest_ms: Option<TimeMs>,
    /// There is more than was counted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
}

/// One of several histories that an owner signed for one space.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BranchInfo {
    pub head: HeadId,
    pub snapshot: SnapshotId,
    pub epoch: u64,
    pub seq: u64,
    pub time_ms: TimeMs,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    pub standing: BranchStanding,
}

/// What became of a branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BranchStanding {
    /// The one that this site had first, or that a person chose.
    Followed,
    /// Nobody has decided yet.
    Open,
    /// A person decided against it; it is kept as evidence.
    SetAside,
}

/// How a space is followed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FollowInfo {
    /// The owner takes snapshots, a replica comes along, without being told.
    pub following: bool,
    /// Why it is not followed, or not well: paused, no watch on the folders, a failure that repeats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// Owner: changes are noticed as they happen. Without, only the rescan timer finds them.
    #[serde(default)]
    pub watching: bool,
    /// When the newest version that can be known was last seen to be the one here.
    #[serde(default)]
    pub in_step_ms: Option<TimeMs>,
    /// Versions between the one that is live here and the newest that is known; 0 in step.
    #[serde(default)]
    pub behind_versions: u64,
    /// Time between the signing of these two, in milliseconds.
    #[serde(default)]
    pub behind_ms: u64,
    /// When the owner looks through the lake next, or the replica asks next.
    #[serde(default)]
    pub next_ms: Option<TimeMs>,
}

/// A published section that was changed by hand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DivergedSection {
    pub section: String,
    /// A person decided for the local files: the section is the site's own.
    pub detached: bool,
    /// A person decided for the owner's version: it comes with the next sync.
    pub gives_way: bool,
    /// The first changes, by lake path; `count` says how many there are.
    pub changes: Vec<Skipped>,
    pub count: u64,
    /// The version that the section was published from.
    pub snapshot: SnapshotId,
}

/// A version that a replica is held at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldAt {
    pub snapshot: SnapshotId,
    pub seq: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SpaceDetail {
    #[serde(flatten)]
    pub info: SpaceInfo,
    pub owner: SiteId,
    pub sections: Vec<SectionInfo>,
    pub grants: Vec<GrantInfo>,
    /// Whether old versions can be kept on this file system, and if not why.
    pub retention: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SectionInfo {
    pub name: String,
    pub kind: SectionKind,
    pub files: u64,
    pub bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<TableInfo>,
    /// Why the section's contents could not be proven here; none when they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unproven: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableInfo {
    pub version: u64,
    pub versions: u64,
    pub rows: u64,
    pub dimensions: BTreeMap<String, u32>,
    pub indices: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GrantInfo {
    pub site: SiteId,
    pub name: String,
    pub rights: Vec<String>,
    pub sections: Vec<String>,
    pub expires_ms: Option<TimeMs>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    pub path: String,
    pub reason: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SnapshotReport {
    pub space: String,
    pub snapshot: SnapshotId,
    pub seq: u64,
    pub files: u64,
    pub bytes: u64,
    /// Whether this is another snapshot than the one before.
    pub changed: bool,
    /// Files and bytes that had to be read.
    pub read_files: u64,
    pub read_bytes: u64,
    pub seconds: f64,
    pub skipped: Vec<Skipped>,
    pub sections: Vec<SectionInfo>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SnapshotInfo {
    pub snapshot: SnapshotId,
    pub head: HeadId,
    pub epoch: u64,
    pub seq: u64,
    pub time_ms: TimeMs,
    pub tag: Option<String>,
    pub files: u64,
    pub bytes: u64,
    /// Whether this one is live here.
    pub live: bool,
    /// Whether it is kept here: at its owner so that it can be shown and fetched, at a replica live.
    #[serde(default)]
    pub kept: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SnapshotDetail {
    #[serde(flatten)]
    pub info: SnapshotInfo,
    pub sections: Vec<SectionInfo>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DiffReport {
    pub from: SnapshotId,
    pub to: SnapshotId,
    pub added: Vec<String>,
    pub removed: Vec<String>,
    pub changed: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Invitation {
    pub ticket: String,
    pub phrase: String,
    /// RFC 3339, UTC.
    pub expires: String,
    pub space: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Joined {
    pub phrase: String,
    pub path: String,
    #[serde(flatten)]
    pub sync: SpaceSync,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PeerInfo {
    pub site: SiteId,
    pub name: String,
    pub addresses: Vec<String>,
    pub lanes: Vec<String>,
    pub connected: bool,
    pub last_seen_ms: Option<TimeMs>,
    /// Spaces that the two sites share.
    pub spaces: Vec<String>,
    pub moved_bytes: u64,
    /// How bulk data comes from there; none before the first transfer since the daemon started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bulk: Option<BulkLane>,
    /// Versions that stay here because the peer fetches them or is held at them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leases: Vec<LeaseInfo>,
}

/// A version that stays for a peer's sake.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LeaseInfo {
    /// The space's name.
    pub space: String,
    pub snapshot: SnapshotId,
    pub until_ms: TimeMs,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BulkLane {
    /// The lane that the next transfer takes: `tls` or `quic`.
    pub lane: String,
    /// Why this one, in one sentence.
    pub why: String,
    /// Bytes of files that came over each lane since the daemon started.
    pub tls_bytes: u64,
    pub quic_bytes: u64,
    /// Bytes of these that compression spared the line.
    #[serde(default)]
    pub saved_bytes: u64,
    /// Bytes per second of the last run of transfers.
    pub bytes_per_s: Option<u64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SyncReport {
    pub spaces: Vec<SpaceSync>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SpaceSync {
    /// The space's name.
    pub space: String,
    pub snapshot: SnapshotId,
    pub seq: u64,
    pub published: bool,
    pub dry_run: bool,
    /// Whether there was anything new.
    pub changed: bool,
    /// Bytes received for this version, framing and proofs included.
    pub bytes_moved: u64,
    pub bytes_reused: u64,
    /// What `rsync -a` would have moved at least: whole-file changes, with its delta for files of the same name where known.
    pub rsync_bytes: u64,
    pub seconds: f64,
    pub rungs: Vec<RungLine>,
    /// Sections published without being opened here, with the reason.
    pub unproven: Vec<Skipped>,
    /// Published files that were missing or damaged here and are whole again, and names that were missing at the lake's top.
    #[serde(default)]
    pub mended: u64,
    /// Sections that stay as they lie because they were changed by hand.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub diverged: Vec<DivergedSection>,
    /// The version that the space is held at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<HeldAt>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RungLine {
    pub rung: u8,
    pub how: String,
    pub section: String,
    pub files: u64,
    pub bytes: u64,
    pub fetch_bytes: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PathAnswer {
    pub path: String,
    pub snapshot: SnapshotId,
    /// Tables below the path (as they lie there, `.` for itself) and their versions in this snapshot. A table that only
    /// grows gets later versions in the same folder: who needs one moment of several tables opens these.
    #[serde(default)]
    pub tables: BTreeMap<String, u64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VerifyReport {
    pub space: String,
    pub snapshot: SnapshotId,
    pub ok: bool,
    pub deep: bool,
    pub files: u64,
    pub bytes: u64,
    pub seconds: f64,
    pub problems: Vec<Problem>,
    /// What to do about the problems.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Sections that are the site's own and were not checked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub detached: Vec<String>,
}

/// Which side of a divergence stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// The owner's version.
    Theirs,
    /// The local files.
    Mine,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ResolveReport {
    pub space: String,
    pub keep: Keep,
    pub dry_run: bool,
    /// Empty when nothing had diverged.
    pub sections: Vec<ResolvedSection>,
    /// The version that is live afterwards.
    pub snapshot: Option<SnapshotId>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ResolvedSection {
    pub section: String,
    /// The folder that the losing side lies in; none when there was nothing of it, or in a dry run.
    pub kept: Option<String>,
    /// The first changes; `count` says how many there are.
    pub changes: Vec<Skipped>,
    pub count: u64,
    /// Files whose losing version is not on this disk.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_here: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    pub path: String,
    pub problem: String,
}

/// What was collected, or would be.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GcReport {
    pub dry_run: bool,
    pub spaces: Vec<SpaceGc>,
    /// What no space needs any more: trees and values beside the catalog.
    pub shared: Gone,
}

/// One space of a [`GcReport`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SpaceGc {
    pub space: String,
    /// Versions that are kept.
    pub kept: u64,
    /// Versions that went.
    pub versions: u64,
    #[serde(flatten)]
    pub gone: Gone,
    /// What lay in `.sluice/kept` before; `aside_files` of it and of the quarantine went.
    #[serde(default)]
    pub kept_aside: AsideInfo,
    /// What lay in `.sluice/quarantine` before.
    #[serde(default)]
    pub quarantined: AsideInfo,
    #[serde(default)]
    pub aside_files: u64,
    /// Entries that are old enough to go and could not be removed.
    #[serde(default)]
    pub aside_stuck: u64,
}

#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Gone {
    /// Rows of the catalog.
    pub rows: u64,
    /// Files: pins, staged parts, values beside the catalog.
    pub files: u64,
    /// Bytes that are free again.
    pub bytes: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Doctor {
    pub ok: bool,
    pub checks: Vec<Check>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    Good,
    Warning,
    Bad,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Check {
    pub check: String,
    pub health: Health,
    pub found: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Done {
    pub done: String,
}
