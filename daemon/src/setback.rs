//! Whether this owner was set back: its home restored from a backup, its catalog repaired from an older deed.
//!
//! Such a site would sign heads at places that its peers have seen with other contents, and every copy
//! would take that for a rewritten history. So before the first head after a start the deed in the lake
//! and the peers are asked what they have seen.
//!
//! Invariant: no head is signed, by a person's command, by following or by a renewal, while the deed or a
//! peer that answered knows a later head of this site, or another one at the same place.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use sluice_protocol::api::{ApiError, Failure};
use sluice_protocol::head::Head;
use sluice_protocol::ids::SpaceId;
use sluice_protocol::signed::Signed;
use sluice_store::catalog::{SiteLookup, SpaceRecord};
use sluice_store::deed;

use crate::errors::OrExplain;
use crate::site::Site;
use crate::sync::ask;

/// When no peer answered, they are not asked again for so long.
const SILENCE_HOLDS: Duration = Duration::from_secs(60);

/// What was found out of each owned space since the start.
#[derive(Default)]
pub struct Setback(Mutex<HashMap<SpaceId, Known>>);

enum Known {
    /// A peer answered, and knows nothing later.
    InStep,
    /// Nobody answered at this time.
    Silent(Instant),
}

impl Setback {
    /// Refuses when the site was set back. Peers that cannot be reached are passed over, and asked again
    /// before a later head; the deed is always looked at.
    pub async fn check(&self, site: &Site, space: &SpaceId, record: &SpaceRecord) -> Result<(), ApiError> {
        let ask_peers = match self.known().get(space) {
            Some(Known::InStep) => return Ok(()),
            Some(Known::Silent(since)) => since.elapsed() > SILENCE_HOLDS,
            None => true,
        };
        let mine = site.catalog.read().or_explain()?.newest_head(space, &site.id).or_explain()?;
        if let Some(head) = in_deed(site, space, record).into_iter().max_by_key(|h| h.place())
            && is_ahead(&head, mine.as_ref())
        {
            return Err(refusal("the deed in its lake", &head, &record.name));
        }
        if !ask_peers {
            return Ok(());
        }
        let found = match ask::highest_known(site, space).await {
            Some((peer, head)) if is_ahead(&head, mine.as_ref()) => {
                return Err(refusal(&format!("site {}", peer.short()), &head, &record.name));
            }
            Some(_) => Known::InStep,
            None => Known::Silent(Instant::now()),
        };
        self.known().insert(*space, found);
        Ok(())
    }

    /// The site took up what was seen of it.
    pub fn is_in_step(&self, space: &SpaceId) {
        self.known().insert(*space, Known::InStep);
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<SpaceId, Known>> {
        self.0.lock().expect("no panic while held")
    }
}

/// Heads that this site signed, as the deed in the lake names them.
pub fn in_deed(site: &Site, space: &SpaceId, record: &SpaceRecord) -> Vec<Signed<Head>> {
    let deed = site.lake_of(record).ok().and_then(|lake| deed::read(&lake).ok());
    let heads = deed.into_iter().filter(|d| d.space == *space).flat_map(|d| d.heads);
    let heads = heads.filter_map(|raw| Signed::<Head>::from_bytes(&raw.0).ok());
    heads.filter(|h| h.space == *space && h.writer == site.id).collect()
}

/// Whether a head was signed after the newest that this site remembers, or instead of it.
fn is_ahead(theirs: &Signed<Head>, mine: Option<&Signed<Head>>) -> bool {
    mine.is_none_or(|mine| {
        theirs.place() > mine.place() || (theirs.place() == mine.place() && theirs.id() != mine.id())
    })
}

fn refusal(who: &str, head: &Head, space: &str) -> ApiError {
    let (epoch, seq) = head.place();
    ApiError::new(
        Failure::Error,
        format!(
            "{who} has seen a newer head of `{space}` (epoch {epoch}, seq {seq}) than this site remembers: this site was set back to an older state"
        ),
        format!(
            "`sluice space recover {space}` takes up what was seen and goes on from there; signing on from here would look like a rewritten history to every copy"
        ),
    )
}
