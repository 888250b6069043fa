//! Tells a deletion from a device that is out of sight.
//!
//! The catalog knows on which device each file was read, the scan on which device each folder lies now.
//! A file that is gone from a folder of another device than its own went with a mount, or lies below
//! one. Devices get new numbers, too (a restart, another disk): then some file of the old number lies
//! where it lay, as long and as old as it was.
//!
//! Invariant: nothing is opened here, and a lake whose devices are what they were costs one pass over
//! its records.

use std::collections::{BTreeMap, BTreeSet};

use sluice_protocol::ids::SpaceId;
use sluice_protocol::path::LakePath;

use super::find;
use crate::catalog::{CatalogError, Lookup, Reader};
use crate::scan::{Entries, What};

/// The first recorded file that is gone together with its device.
pub(super) fn unmounted(reader: &Reader, space: &SpaceId, entries: &Entries) -> Result<Option<LakePath>, CatalogError> {
    // By the device that a file was on and the one that its folder is on now.
    let mut lost: BTreeMap<(u64, u64), LakePath> = BTreeMap::new();
    let mut renamed: BTreeSet<(u64, u64)> = BTreeSet::new();
    reader.files(space, &mut |path, record| {
        let moved = (record.print.dev, entries.devices.above(&path));
        if moved.0 == moved.1 {
            return;
        }
        match find(entries, &path).map(|i| &i.what) {
            None => {
                lost.entry(moved).or_insert(path);
            }
            // What is kept as it was has no device.
            Some(What::File { print, .. }) if print.dev != 0 => {
                if (print.size, print.mtime_ns) == (record.print.size, record.print.mtime_ns) {
                    renamed.insert(moved);
                }
            }
            Some(_) => {}
        }
    })?;
    Ok(lost.into_iter().find(|(moved, _)| !renamed.contains(moved)).map(|(_, path)| path))
}
