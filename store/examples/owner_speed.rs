//! Prints how long a first and a second snapshot of a folder take: `owner_speed LAKE HOME`.
//!
//! A measurement for people, not a test: figures depend on the machine. Writes into HOME only.

use std::path::Path;
use std::time::Instant;

use sluice_protocol::ids::SpaceId;
use sluice_store::catalog::Catalog;
use sluice_store::chunk::chunk;
use sluice_store::lake::Lake;
use sluice_store::scan::{Previous, ScanOptions, scan};
use sluice_store::snapshot::manifest;
use sluice_store::watch::Silent;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, lake, home] = args.as_slice() else { return Err("owner_speed LAKE HOME".into()) };
    let lake = Lake::open(Path::new(lake))?;
    let catalog = Catalog::open(Path::new(home))?;
    let space = SpaceId([1; 32]);
    let mut options = ScanOptions { opaque: true, ..ScanOptions::default() };
    for round in ["first", "second", "third"] {
        let start = Instant::now();
        let entries = scan(&lake, &space, &catalog, &options, &[], &Silent)?;
        let scanned = start.elapsed();
        let chunks = chunk(&lake, &space, &catalog, entries, &Silent)?;
        let read = start.elapsed();
        let snapshot = manifest(&lake, &space, &catalog, chunks, &Silent)?;
        let whole = start.elapsed();
        let s = snapshot.stats;
        let rate = s.read_bytes as f64 / 1e6 / (read - scanned).as_secs_f64();
        println!(
            "{round}: {} files, {} bytes; read {} files, {} bytes; scan {scanned:.2?}, read {:.2?} ({rate:.0} MB/s), manifest {:.2?}",
            s.files,
            s.bytes,
            s.read_files,
            s.read_bytes,
            read - scanned,
            whole - read,
        );
        options.previous = Some(Previous { snapshot: snapshot.id, annex: snapshot.annex_hash });
    }
    let peak = std::fs::read_to_string("/proc/self/status")?;
    println!("{}", peak.lines().find(|l| l.starts_with("VmHWM")).unwrap_or_default());
    Ok(())
}
