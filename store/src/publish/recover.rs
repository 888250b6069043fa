//! After a stop in the middle: what is on the disk and what the catalog says agree again.
//!
//! Two things can be half done. The catalog made a version live and the link still points at the one
//! before: the link follows the catalog. Files were placed for a version that did not become live:
//! they are hashed again and recorded where they lie now, so that nothing has to be fetched twice.
//!
//! Invariant: recovery never goes back. It finishes what was committed and forgets nothing else.

use std::collections::HashMap;

use sluice_protocol::ids::BlobHash;
use sluice_protocol::manifest::EntryKind;

use super::hands::{Hands, SECTIONS_FOLDER};
use super::intent::{self, Intent};
use super::old::{entries_in, section_place};
use super::{PublishError, aside, generation};
use crate::blobs::{Fit, fit_of, prove_place};
use crate::catalog::{CatalogError, Located, Lookup};
use crate::lake::Place;

/// What recovery found to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The generation that `.sluice/live` was pointed at.
    pub switched: Option<u64>,
    /// Files of an unfinished version that were found, whole, in a section folder.
    pub adopted: u64,
    /// Names at the lake's top that were missing and are there again.
    pub shown: u64,
    /// A version was begun and is not live.
    pub unfinished: bool,
}

pub(super) fn recover(hands: &Hands<'_>) -> Result<Recovered, PublishError> {
    let mut done = Recovered::default();
    let reader = hands.catalog.read()?;
    let live = reader.live(&hands.space)?;
    let intent = intent::load(&reader, &hands.space)?;
    drop(reader);
    if let Some(live) = &live {
        let shown = generation::live_number(hands)?;
        refuse_set_back(hands, live.generation, shown)?;
        if shown != Some(live.generation) {
            generation::switch(hands, live.generation)?;
            done.switched = Some(live.generation);
        }
        aside::finish(hands)?;
        done.shown = generation::show(hands, &generation::shown_names(hands, live.generation)?)?;
    }
    if let Some(intent) = &intent {
        done.unfinished = true;
        done.adopted = adopt(hands, intent)?;
    }
    Ok(done)
}

/// The link follows the catalog, never the other way: a later version in the lake, or none of the
/// catalog's, says that the catalog is of an earlier day.
fn refuse_set_back(hands: &Hands<'_>, known: u64, shown: Option<u64>) -> Result<(), PublishError> {
    let there = hands.generations.look(&known.to_string()).map_err(|e| hands.failed(".sluice/generations", e))?;
    match shown {
        Some(shown) if shown > known || (there.is_none() && shown != known) => {
            Err(PublishError::SetBack { folder: hands.lake.root().to_path_buf(), shown, known })
        }
        _ => Ok(()),
    }
}

/// Records files of the unfinished version that lie in its folders and nowhere else that we know.
fn adopt(hands: &Hands<'_>, intent: &Intent) -> Result<u64, PublishError> {
    let reader = hands.catalog.read()?;
    let mut found: HashMap<BlobHash, (u64, Vec<Located>)> = HashMap::new();
    let mut count = 0;
    for s in &intent.sections {
        let entries = entries_in(&reader, &hands.space, intent.snapshot, s.path.as_ref())?;
        for entry in entries.into_iter().flatten().filter(|e| e.kind == EntryKind::File) {
            let Some(hash) = entry.hash else { continue };
            let place = section_place(&s.folder, &entry.path)?;
            let known = reader.blob(&hands.space, &hash)?.map_or(vec![], |b| b.places);
            let recorded = known.iter().find(|at| at.place == place);
            if recorded.is_some_and(|at| fit_of(hands.lake, at) == Fit::Same) || !exists(hands, &place) {
                continue;
            }
            if let Some(print) = prove_place(hands.lake, &place, entry.size, &hash) {
                let at = Located { place, print, unknown: Default::default() };
                found.entry(hash).or_insert_with(|| (entry.size, vec![])).1.push(at);
                count += 1;
            }
        }
    }
    drop(reader);
    if count == 0 {
        return Ok(0);
    }
    // Hashing has read the system's memory; a copy that was killed before its barrier is not on the disk yet.
    hands.sections.sync_system().map_err(|e| hands.failed(SECTIONS_FOLDER, e))?;
    hands.commit("adopt", |b| {
        for (hash, (size, places)) in &found {
            for at in places {
                b.add_place(&hands.space, hash, *size, at.clone())?;
            }
        }
        Ok::<_, CatalogError>(())
    })?;
    Ok(count)
}

fn exists(hands: &Hands<'_>, place: &Place) -> bool {
    hands.lake.open_place(place).is_ok()
}
