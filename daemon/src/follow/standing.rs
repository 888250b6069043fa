//! How each followed space stands, for `status`, `doctor` and the log.
//!
//! Invariant: a space has at most one failure that is told, with the time at which it began; a success
//! takes it away. Nothing here outlives the process.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use sluice_protocol::api::ApiError;
use sluice_protocol::ids::SpaceId;

use super::pace::{self, Failing};
use crate::clock::now_ms;

/// Failures in a row after which a source that is away is worth an alert.
const AWAY_TOLD_AFTER: u32 = 2;

/// What is known of one space.
#[derive(Debug, Clone, Default)]
pub(super) struct Standing {
    /// All folders of the lake are watched.
    pub watching: bool,
    /// Why they are not, or what the watch misses.
    pub blind: Option<String>,
    /// Milliseconds since the Unix epoch, as all times here.
    pub in_step_ms: Option<u64>,
    pub next_ms: Option<u64>,
    pub failure: Option<Failure>,
    failures: u32,
}

/// Failures in a row.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub since_ms: u64,
    pub text: String,
    failing: Failing,
}

impl Standing {
    /// The failure, once it is worth a person's time.
    pub(super) fn alert(&self) -> Option<&Failure> {
        let after = |f: &&Failure| f.failing == Failing::Wrong || self.failures >= AWAY_TOLD_AFTER;
        self.failure.as_ref().filter(after)
    }

    /// What keeps the space from being followed well.
    pub(super) fn trouble(&self) -> Option<String> {
        let failure = self.alert().map(|f| f.text.clone());
        failure.or_else(|| self.blind.clone())
    }
}

/// All spaces.
#[derive(Default)]
pub(super) struct Standings(Mutex<HashMap<SpaceId, Standing>>);

impl Standings {
    fn all(&self) -> MutexGuard<'_, HashMap<SpaceId, Standing>> {
        self.0.lock().expect("no panic while held")
    }

    pub(super) fn of(&self, space: &SpaceId) -> Standing {
        self.all().get(space).cloned().unwrap_or_default()
    }

    pub(super) fn change(&self, space: &SpaceId, change: impl FnOnce(&mut Standing)) {
        change(self.all().entry(*space).or_default());
    }

    pub(super) fn forget(&self, space: &SpaceId) {
        self.all().remove(space);
    }

    /// Whether the last round of the space failed.
    pub(super) fn is_failing(&self, space: &SpaceId) -> bool {
        self.all().get(space).is_some_and(|s| s.failure.is_some())
    }

    /// The space is in step. Returns how long to wait until the next look.
    pub(super) fn good(&self, space: &SpaceId, name: &str, usual: Duration) -> Duration {
        self.change(space, |s| {
            if let Some(failure) = s.failure.take() {
                tracing::info!(space = name, after = %failure.text, "the space is followed again");
            }
            s.failures = 0;
            s.in_step_ms = Some(now_ms());
        });
        pace::jittered(usual)
    }

    /// A round failed. Returns how long to wait until the next try.
    pub(super) fn bad(
        &self,
        space: &SpaceId,
        name: &str,
        failing: Failing,
        error: &ApiError,
        usual: Duration,
    ) -> Duration {
        let mut failures = 1;
        self.change(space, |s| {
            let same = s.failure.as_ref().is_some_and(|f| f.failing == failing);
            if same {
                tracing::debug!(space = name, %error, "still not followed");
            } else {
                tracing::warn!(space = name, %error, "the space cannot be followed now; it is tried again");
                s.failures = 0;
            }
            let since_ms = s.failure.as_ref().filter(|_| same).map_or_else(now_ms, |f| f.since_ms);
            s.failure = Some(Failure { since_ms, text: error.error.clone(), failing });
            s.failures = s.failures.saturating_add(1);
            failures = s.failures;
        });
        pace::jittered(pace::wait(failing, failures, usual))
    }
}

#[cfg(test)]
mod tests {
    use sluice_protocol::api::Failure as Code;

    use super::*;

    const SPACE: SpaceId = SpaceId([1; 32]);
    const USUAL: Duration = Duration::from_secs(60);

    #[test]
    fn one_failure_is_told_once_and_taken_away_by_success() {
        let standings = Standings::default();
        let away = ApiError::plain(Code::Error, "nobody answers");
        for told in [false, true, true] {
            standings.bad(&SPACE, "acme", Failing::Away, &away, USUAL);
            assert_eq!(standings.of(&SPACE).alert().is_some(), told);
        }
        let since = standings.of(&SPACE).failure.unwrap().since_ms;
        standings.bad(&SPACE, "acme", Failing::Away, &away, USUAL);
        assert_eq!(standings.of(&SPACE).failure.unwrap().since_ms, since, "one failure, told from its beginning");
        standings.bad(&SPACE, "acme", Failing::Wrong, &ApiError::plain(Code::Verification, "diverged"), USUAL);
        assert_eq!(standings.of(&SPACE).alert().unwrap().text, "diverged");
        standings.good(&SPACE, "acme", USUAL);
        assert!(!standings.is_failing(&SPACE) && standings.of(&SPACE).in_step_ms.is_some());
    }
}
