//! When a change that was noticed leads to a snapshot. Pure: the clock is an argument.
//!
//! Invariant: a change that counts is taken after a quiet time, and under writing without end after
//! [`LONGEST`] quiet times, never later. A committed table version waits for a quarter of that; files of a
//! table that no version names yet have no quiet time, only the longest.

use std::time::Duration;

use tokio::time::Instant;

/// Quiet times that a change waits at most.
const LONGEST: u32 = 30;
/// The part of a quiet time that a committed version waits.
const COMMIT_PART: u32 = 4;

/// What was noticed since the last look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// A table got a new version.
    pub commit: bool,
    /// A plain file or a folder changed.
    pub data: bool,
    /// Something changed inside a table, without a new version.
    pub inner: bool,
    /// Only rights or times of a file changed.
    pub modes: bool,
    /// Changes were lost on the way: anything may have changed.
    pub lost: bool,
}

impl Seen {
    /// Everything that either has.
    pub(super) fn and(self, other: Seen) -> Seen {
        Seen {
            commit: self.commit || other.commit,
            data: self.data || other.data,
            inner: self.inner || other.inner,
            modes: self.modes || other.modes,
            lost: self.lost || other.lost,
        }
    }
}

/// Changes that wait for their snapshot.
#[derive(Debug)]
pub(super) struct Debounce {
    quiet: Duration,
    data: Option<Span>,
    commit: Option<Span>,
    inner: Option<Instant>,
    lost: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Span {
    first: Instant,
    last: Instant,
}

impl Span {
    fn note(slot: &mut Option<Span>, now: Instant) {
        let first = slot.map_or(now, |s| s.first);
        *slot = Some(Span { first, last: now });
    }

    fn due(&self, quiet: Duration) -> Instant {
        (self.last + quiet).min(self.first + quiet * LONGEST)
    }
}

impl Debounce {
    pub(super) fn new(quiet: Duration) -> Self {
        Self { quiet, data: None, commit: None, inner: None, lost: None }
    }

    /// Takes note of what was seen at `now`.
    pub(super) fn note(&mut self, seen: Seen, now: Instant) {
        if seen.data || seen.modes {
            Span::note(&mut self.data, now);
        }
        if seen.commit {
            Span::note(&mut self.commit, now);
        }
        if seen.inner {
            self.inner.get_or_insert(now);
        }
        if seen.lost {
            self.lost.get_or_insert(now);
        }
    }

    /// When the snapshot is due; none while nothing waits for one.
    pub(super) fn due(&self) -> Option<Instant> {
        let data = self.data.map(|s| s.due(self.quiet));
        let commit = self.commit.map(|s| s.due(self.quiet / COMMIT_PART));
        let inner = self.inner.map(|first| first + self.quiet * LONGEST);
        [data, commit, inner, self.lost].into_iter().flatten().min()
    }

    /// A snapshot begins now, and takes all of it.
    pub(super) fn clear(&mut self) {
        *self = Self::new(self.quiet);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Duration = Duration::from_secs(1);
    const DATA: Seen = Seen { commit: false, data: true, inner: false, modes: false, lost: false };
    const COMMIT: Seen = Seen { commit: true, data: false, ..DATA };
    const INNER: Seen = Seen { inner: true, data: false, ..DATA };

    #[test]
    fn a_change_waits_for_quiet_but_not_for_ever() {
        let start = Instant::now();
        let mut waiting = Debounce::new(QUIET);
        assert_eq!(waiting.due(), None);
        waiting.note(DATA, start);
        assert_eq!(waiting.due(), Some(start + QUIET));
        for tenth in 1..1000 {
            waiting.note(DATA, start + QUIET / 10 * tenth);
        }
        assert_eq!(waiting.due(), Some(start + QUIET * LONGEST), "a writer without end is taken all the same");
        waiting.clear();
        assert_eq!(waiting.due(), None);
    }

    #[test]
    fn a_committed_version_goes_first_and_its_files_alone_wait() {
        let start = Instant::now();
        let mut waiting = Debounce::new(QUIET);
        waiting.note(INNER, start);
        assert_eq!(waiting.due(), Some(start + QUIET * LONGEST));
        waiting.note(INNER, start + QUIET);
        assert_eq!(waiting.due(), Some(start + QUIET * LONGEST));
        waiting.note(COMMIT, start + QUIET);
        assert_eq!(waiting.due(), Some(start + QUIET + QUIET / COMMIT_PART));
        waiting.note(Seen { lost: true, ..INNER }, start + QUIET);
        assert_eq!(waiting.due(), Some(start + QUIET));
    }
}
