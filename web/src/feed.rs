//! Progress on its way to one watcher.
//!
//! Invariant: reporting never blocks and memory is bounded. Of amounts a slow watcher gets the newest
//! of each stage; stages and notes keep their order, and when too many wait the loss is itself told.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use sluice_protocol::api::{Progress, ProgressSink};
use tokio::sync::Notify;

use crate::EVENTS_WAITING_MAX;

#[derive(Default)]
struct Waiting {
    events: VecDeque<Progress>,
    lost: u64,
}

/// A bounded queue of progress for one watcher.
#[derive(Default)]
pub(crate) struct Feed {
    waiting: Mutex<Waiting>,
    wake: Notify,
}

impl Feed {
    /// Resolves once something waits, or at once when something came since the last look.
    pub(crate) async fn changed(&self) {
        self.wake.notified().await;
    }

    /// Takes everything that waits.
    pub(crate) fn take(&self) -> Vec<Progress> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let mut events: Vec<Progress> = waiting.events.drain(..).collect();
        let lost = std::mem::take(&mut waiting.lost);
        if lost > 0 {
            events.push(Progress::Note {
                text: format!("{lost} events were left out here: this watcher read too slowly"),
            });
        }
        events
    }
}

impl ProgressSink for Feed {
    fn report(&self, progress: Progress) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Progress::Amount { stage, .. } = &progress {
            waiting.events.retain(|e| !matches!(e, Progress::Amount { stage: s, .. } if s == stage));
        }
        if waiting.events.len() < EVENTS_WAITING_MAX {
            waiting.events.push_back(progress);
        } else {
            waiting.lost += 1;
        }
        drop(waiting);
        self.wake.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amount(stage: &str, bytes: u64) -> Progress {
        Progress::Amount { stage: stage.into(), files: 0, files_total: 0, bytes, bytes_total: 0 }
    }

    fn texts(events: &[Progress]) -> Vec<String> {
        events.iter().map(|e| serde_json::to_string(e).unwrap()).collect()
    }

    #[test]
    fn amounts_collapse_and_notes_keep_their_order() {
        let feed = Feed::default();
        feed.report(Progress::Note { text: "a".into() });
        for i in 0..10_000 {
            feed.report(amount("scan", i));
            feed.report(amount("chunk", i));
        }
        feed.report(Progress::Note { text: "b".into() });
        let events = texts(&feed.take());
        assert_eq!(events.len(), 4, "{events:?}");
        assert!(events[0].contains("\"a\"") && events[3].contains("\"b\""));
        assert!(events[1].contains("9999") && events[2].contains("9999"));
        assert!(feed.take().is_empty());
    }

    #[test]
    fn a_flood_of_notes_is_bounded_and_told() {
        let feed = Feed::default();
        for i in 0..EVENTS_WAITING_MAX + 7 {
            feed.report(Progress::Note { text: i.to_string() });
        }
        let events = feed.take();
        assert_eq!(events.len(), EVENTS_WAITING_MAX + 1);
        assert!(texts(&events).last().unwrap().contains("7 events were left out"));
    }
}
