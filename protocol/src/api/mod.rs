//! The one API: what the command line, the page and other programs ask of a running site.
//!
//! Invariant: nothing else reaches into a site; the command line has no private door. Every answer
//! is plain data that serialises to JSON; every refusal is one sentence, a hint and an exit code.

mod answers;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::manifest::History;

pub use answers::*;

/// What a failure means for whoever called; also the exit code of the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// It did not work.
    Error,
    /// The call itself was wrong.
    Usage,
    /// Data failed a check; nothing was published.
    Verification,
    /// Not finished; the same call goes on where it was.
    Incomplete,
}

impl Failure {
    /// The exit code.
    pub fn exit_code(self) -> u8 {
        match self {
            Failure::Error => 1,
            Failure::Usage => 2,
            Failure::Verification => 3,
            Failure::Incomplete => 4,
        }
    }
}

/// One sentence and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{error}")]
pub struct ApiError {
    pub error: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    pub failure: Failure,
}

impl ApiError {
    /// A failure with a hint.
    pub fn new(failure: Failure, error: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { error: error.into(), hint: Some(hint.into()), failure }
    }

    /// A failure that explains itself.
    pub fn plain(failure: Failure, error: impl Into<String>) -> Self {
        Self { error: error.into(), hint: None, failure }
    }
}

/// Words that the command line reads as verbs where a space's name could stand (`sluice snapshot list`).
pub const SPACE_NAMES_RESERVED: [&str; 7] = ["add", "diff", "help", "list", "remove", "show", "untag"];

/// Refuses a new space whose name would read as a verb. A space of another owner may bear such a name
/// all the same; the command line takes it after `--`.
pub fn check_new_space_name(name: &str) -> Result<(), ApiError> {
    if SPACE_NAMES_RESERVED.contains(&name) {
        return Err(ApiError::new(
            Failure::Usage,
            format!("a space cannot be named `{name}`: it is a word of the command line"),
            "choose another name",
        ));
    }
    Ok(())
}

/// What can be asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Operation {
    Status,
    Doctor,
    SpaceAdd {
        name: String,
        path: String,
        #[serde(default)]
        history: Option<History>,
        #[serde(default)]
        opaque: bool,
    },
    SpaceList,
    SpaceShow {
        space: String,
    },
    SpaceRemove {
        space: String,
    },
    /// An owner that was set back to an older state goes on from what its peers have seen.
    SpaceRecover {
        space: String,
    },
    Invite {
        space: String,
        #[serde(default)]
        sections: Vec<String>,
        #[serde(default)]
        expires_s: Option<u64>,
    },
    Join {
        ticket: String,
        #[serde(default)]
        into: Option<String>,
        #[serde(default)]
        sections: Vec<String>,
    },
    PeerList,
    PeerShow {
        peer: String,
    },
    PeerRevoke {
        peer: String,
        #[serde(default)]
        space: Option<String>,
    },
    SnapshotCreate {
        space: String,
        #[serde(default)]
        tag: Option<String>,
    },
    SnapshotList {
        space: String,
    },
    SnapshotShow {
        space: String,
        snapshot: Option<String>,
    },
    SnapshotDiff {
        space: String,
        from: String,
        to: Option<String>,
    },
    /// Takes a tag back from the version that bears it.
    SnapshotUntag {
        space: String,
        tag: String,
    },
    Sync {
        #[serde(default)]
        space: Option<String>,
        #[serde(default)]
        dry_run: bool,
        /// A version to publish and to stay at, or `newest` to follow again.
        #[serde(default)]
        at: Option<String>,
    },
    Resolve {
        space: String,
        #[serde(default)]
        section: Option<String>,
        keep: Keep,
        #[serde(default)]
        dry_run: bool,
    },
    /// After a fork, goes on from one branch: a head's id, or its beginning.
    ResolveFork {
        space: String,
        head: String,
    },
    /// Follow a space by itself, or no longer.
    Follow {
        space: String,
        on: bool,
    },
    Path {
        space: String,
        #[serde(default)]
        section: Option<String>,
    },
    Verify {
        space: String,
        #[serde(default)]
        deep: bool,
    },
    Gc {
        #[serde(default)]
        space: Option<String>,
        #[serde(default)]
        dry_run: bool,
    },
    Shutdown,
}

/// What is answered, one variant for each kind of result. A client reads the kind that it asked for.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum Outcome {
    Status(Box<Status>),
    Doctor(Doctor),
    Snapshot(SnapshotReport),
    Snapshots(Vec<SnapshotInfo>),
    SnapshotDetail(Box<SnapshotDetail>),
    Diff(DiffReport),
    Spaces(Vec<SpaceInfo>),
    Space(Box<SpaceDetail>),
    Invite(Invitation),
    Join(Joined),
    Peers(Vec<PeerInfo>),
    Peer(Box<PeerInfo>),
    Sync(SyncReport),
    Resolve(ResolveReport),
    Path(PathAnswer),
    Verify(VerifyReport),
    Gc(GcReport),
    Done(Done),
}

/// Something a watcher may want to see while it waits.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Progress {
    /// The flow entered a stage.
    Stage { stage: String, space: String },
    /// How far the stage is; 0 in total where it is not known yet.
    Amount { stage: String, files: u64, files_total: u64, bytes: u64, bytes_total: u64 },
    /// A fact worth a line: a phrase to compare, a skipped file, a lane that fell back.
    Note { text: String },
}

/// Takes progress; must not block.
pub trait ProgressSink: Send + Sync {
    fn report(&self, progress: Progress);
}

/// Nobody watches.
pub struct Unwatched;

impl ProgressSink for Unwatched {
    fn report(&self, _: Progress) {}
}

/// A running site.
#[async_trait::async_trait]
pub trait Node: Send + Sync + 'static {
    /// Does one thing. Progress goes to `sink`; the call ends when the thing is done.
    async fn call(&self, op: Operation, sink: Arc<dyn ProgressSink>) -> Result<Outcome, ApiError>;
}
