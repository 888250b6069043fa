//! Telling other sites of a new head.
//!
//! One task for each space tells; a newer word takes the place of an older one that is still being told.
//!
//! Invariant: a site tells of a head once, when it was new to it and is live here, and never back to the
//! site from which it learnt it; so a word dies out in a world where all know it. Telling is bounded in
//! time and number, and its failures cost nobody anything: who was not reached asks by itself.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use sluice_protocol::codec::Bytes;
use sluice_protocol::head::Head;
use sluice_protocol::ids::{SiteId, SpaceId};
use sluice_protocol::limits::SITES_TOLD_MAX;
use sluice_protocol::messages::{Announce, Message};
use sluice_protocol::signed::Signed;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::site::Site;
use crate::sync::ask;

/// How long one site may take to hear and answer.
const TOLD_WITHIN: Duration = Duration::from_secs(15);
/// Sites that are told at once.
const AT_ONCE: usize = 16;

/// A site and where it is reached.
type Listener = (SiteId, Vec<SocketAddr>);

/// A head, and the sites that need not be told of it.
#[derive(Clone)]
struct Word {
    head: Signed<Head>,
    except: Vec<SiteId>,
}

/// The tasks that tell, one for each space of which there was anything to tell.
#[derive(Default)]
pub(super) struct Tellers(Mutex<HashMap<SpaceId, watch::Sender<Word>>>);

impl Tellers {
    /// Tells of a head, off to the side: the newest one that is known wins.
    pub fn tell(&self, site: &Site, stop: &CancellationToken, head: Signed<Head>, except: Vec<SiteId>) {
        let word = Word { head, except };
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(teller) = all.get(&word.head.space).filter(|teller| !teller.is_closed()) {
            teller.send_if_modified(|last| {
                let newer = last.head.place() <= word.head.place();
                if newer {
                    *last = word;
                }
                newer
            });
            return;
        }
        let space = word.head.space;
        let (teller, words) = watch::channel(word);
        all.insert(space, teller);
        let (site, stop) = (site.clone(), stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = keep_telling(&site, words) => {}
            }
        });
    }

    /// Nobody is told of this space any more.
    pub fn forget(&self, space: &SpaceId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(space);
    }
}

/// Tells each word that comes. Those who did not answer the last time are told last, and a newer word
/// does not wait for them.
async fn keep_telling(site: &Site, mut words: watch::Receiver<Word>) {
    let mut silent = HashSet::new();
    for turn in 0.. {
        let word = words.borrow_and_update().clone();
        match ask::granted(site, &word.head.space) {
            Err(e) => tracing::warn!(error = %e, "followers are not told"),
            Ok(all) => {
                let chosen = chosen(all, &word.except, turn);
                silent.retain(|id| chosen.iter().any(|(of, _)| of == id));
                let (last, first): (Vec<_>, Vec<_>) = chosen.into_iter().partition(|(id, _)| silent.contains(id));
                tell(site, &word.head, first, &mut silent).await;
                tokio::select! {
                    () = tell(site, &word.head, last, &mut silent) => {}
                    changed = words.changed() => match changed {
                        // Seen again below.
                        Ok(()) => words.mark_changed(),
                        Err(_) => return,
                    },
                }
            }
        }
        if words.changed().await.is_err() {
            return;
        }
    }
}

/// Whom to tell: where there are too many, others each turn.
fn chosen(mut all: Vec<Listener>, except: &[SiteId], turn: usize) -> Vec<Listener> {
    all.retain(|(id, _)| !except.contains(id));
    if all.len() > SITES_TOLD_MAX {
        let from = turn.wrapping_mul(SITES_TOLD_MAX) % all.len();
        all.rotate_left(from);
        all.truncate(SITES_TOLD_MAX);
    }
    all
}

/// Tells these sites of a head, and notes who answered and who did not.
async fn tell(site: &Site, head: &Signed<Head>, listeners: Vec<Listener>, silent: &mut HashSet<SiteId>) {
    let said = Message::Announce(Announce {
        space: head.space,
        head: Bytes(head.bytes().to_vec()),
        card: Some(Bytes(site.card().bytes().to_vec())),
        unknown: Default::default(),
    });
    let said = &said;
    let tell_one = |(id, addresses): Listener| async move {
        let answer = tokio::time::timeout(TOLD_WITHIN, site.lane.peer(id, &addresses).message(said)).await;
        let answered = matches!(&answer, Ok(Ok(_)));
        match answer {
            Ok(Ok(Message::Done)) => tracing::debug!(site = %id.short(), seq = head.seq, "told"),
            Ok(Ok(Message::Refused(r))) => {
                tracing::debug!(site = %id.short(), code = r.code, text = %r.text, "it would not hear of a new head")
            }
            Ok(Ok(_)) => tracing::debug!(site = %id.short(), "it answered something that makes no sense"),
            Ok(Err(e)) => tracing::debug!(site = %id.short(), error = %e, "not told; it asks by itself"),
            Err(_) => tracing::debug!(site = %id.short(), "not told in time; it asks by itself"),
        }
        (id, answered)
    };
    let mut answers = futures_util::stream::iter(listeners).map(tell_one).buffer_unordered(AT_ONCE);
    while let Some((id, answered)) = answers.next().await {
        if answered {
            silent.remove(&id);
        } else {
            silent.insert(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_there_are_too_many_each_has_its_turn() {
        let site = |n: usize| {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&(n as u64).to_be_bytes());
            SiteId(id)
        };
        let all = || (0..600).map(|n| (site(n), vec![])).collect::<Vec<Listener>>();
        let mut told = HashSet::new();
        for turn in 0..3 {
            let now = chosen(all(), &[site(3)], turn);
            assert_eq!(now.len(), SITES_TOLD_MAX);
            told.extend(now.into_iter().map(|(id, _)| id));
        }
        assert_eq!(told.len(), 599, "all but the one that knows");
        assert!(!told.contains(&site(3)));
        let few = || all().into_iter().take(5).collect::<Vec<_>>();
        assert_eq!(chosen(few(), &[], 7), few(), "a few need no turns");
    }
}
