//! What lies aside in the lakes, for people who look at a space.
//!
//! A lake may be a network folder whose server is gone: a call into it then waits for as long as that.
//!
//! Invariant: a lake that does not answer holds up nobody for longer than the patience given, neither
//! the executor nor another space, and keeps one worker at most.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sluice_protocol::ids::SpaceId;
use sluice_protocol::limits::ASIDE_NAMES_SHOWN_MAX;
use sluice_store::catalog::SpaceRecord;
use sluice_store::gc::{LyingAside, lying_aside};
use sluice_store::lake::Lake;
use tokio::sync::Mutex as Turn;

/// How long a lake may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Looks at lakes, at each once at a time.
#[derive(Clone)]
pub(super) struct Asides {
    patience: Duration,
    turns: Arc<Mutex<HashMap<SpaceId, Arc<Turn<()>>>>>,
}

impl Default for Asides {
    fn default() -> Self {
        Self { patience: PATIENCE, turns: Arc::default() }
    }
}

impl Asides {
    /// What lies aside in each of these spaces, all looked at together; none where the lake does not answer.
    pub async fn of(&self, spaces: &[(SpaceId, SpaceRecord)]) -> Vec<Option<LyingAside>> {
        let look = |(space, record): &(SpaceId, SpaceRecord)| {
            let (this, space, root) = (self.clone(), *space, PathBuf::from(&record.lake));
            tokio::spawn(async move { this.look(space, move || in_lake(root)).await })
        };
        let looks: Vec<_> = spaces.iter().map(look).collect();
        let mut found = Vec::with_capacity(looks.len());
        for look in looks {
            found.push(look.await.ok().flatten());
        }
        found
    }

    async fn look(&self, space: SpaceId, work: impl FnOnce() -> LyingAside + Send + 'static) -> Option<LyingAside> {
        let turn = self.turns.lock().unwrap_or_else(PoisonError::into_inner).entry(space).or_default().clone();
        let looked = async {
            let turn = turn.lock_owned().await;
            let work = move || {
                let found = work();
                drop(turn);
                found
            };
            tokio::task::spawn_blocking(work).await.ok()
        };
        tokio::time::timeout(self.patience, looked).await.ok().flatten()
    }
}

/// A lake that is not there now has nothing to show.
fn in_lake(root: PathBuf) -> LyingAside {
    Lake::open(&root).map(|lake| lying_aside(&lake, ASIDE_NAMES_SHOWN_MAX)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_lake_that_hangs_keeps_one_worker_and_no_other_space() {
        let asides = Asides { patience: Duration::from_millis(50), ..Default::default() };
        let (hung, well) = (SpaceId([1; 32]), SpaceId([2; 32]));
        let begun = Arc::new(AtomicUsize::new(0));
        let (answer, server) = mpsc::channel::<()>();
        let counts = begun.clone();
        let hangs = move || {
            counts.fetch_add(1, Ordering::SeqCst);
            server.recv().ok();
            LyingAside::default()
        };
        assert_eq!(asides.look(hung, hangs).await, None);
        for _ in 0..3 {
            let counts = begun.clone();
            let again = move || {
                counts.fetch_add(1, Ordering::SeqCst);
                LyingAside::default()
            };
            assert_eq!(asides.look(hung, again).await, None);
        }
        assert_eq!(begun.load(Ordering::SeqCst), 1, "who asks again waits for the first look");
        let patient = Asides { patience: Duration::from_secs(60), ..asides };
        assert!(patient.look(well, LyingAside::default).await.is_some());
        answer.send(()).unwrap();
        assert!(patient.look(hung, LyingAside::default).await.is_some(), "it is looked at again once it answers");
    }
}
