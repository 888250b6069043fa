//! How much each of several transfers at once may have in flight: the same.
//!
//! Invariant: every transfer goes on with one request to each of its sources at least, however many there are; together they
//! have no more in flight than one alone would.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

/// The transfers of a site. Cheap to clone.
#[derive(Clone)]
pub struct Shares(Arc<watch::Sender<usize>>);

impl Default for Shares {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(0)))
    }
}

/// One of them, until it ends.
pub struct Share(Shares);

impl Shares {
    /// One more transfer.
    pub fn enter(&self) -> Share {
        self.0.send_modify(|running| *running += 1);
        Share(self.clone())
    }
}

impl Share {
    /// Whether request number `slot` of each of so many sources may be made, of `most` where there is no other transfer.
    /// Beside others the share is of all sources together.
    pub fn allows(&self, slot: usize, most: usize, sources: usize) -> bool {
        let running = *self.0.0.borrow();
        let each = if running > 1 { most / running / sources.max(1) } else { most };
        slot < each.max(1)
    }

    /// Waits until transfers begin or end.
    pub async fn changes(&self, at_most: Duration) {
        let mut running = self.0.0.subscribe();
        let _ = tokio::time::timeout(at_most, running.changed()).await;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.0.0.send_modify(|running| *running -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn they_share_alike_and_none_starves() {
        let shares = Shares::default();
        let first = shares.enter();
        assert!(first.allows(7, 8, 1) && !first.allows(8, 8, 1) && first.allows(7, 8, 3));
        let others: Vec<Share> = (0..3).map(|_| shares.enter()).collect();
        assert!(first.allows(1, 8, 1) && !first.allows(2, 8, 1) && !first.allows(1, 8, 2));
        let many: Vec<Share> = (0..20).map(|_| shares.enter()).collect();
        assert!(many[7].allows(0, 8, 5) && !many[7].allows(1, 8, 1));
        let waiting = first.changes(Duration::from_secs(60));
        let leaving = async { drop((others, many)) };
        tokio::join!(waiting, leaving);
        assert!(first.allows(7, 8, 1));
    }
}
