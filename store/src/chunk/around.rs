//! Reads files without washing what other programs use out of the page cache.
//!
//! A run that reads little leaves its pages in the cache: a peer asks for these bytes soon. One that reads more than
//! a quarter of the memory that the system could give goes around it. A long file is read by direct I/O, which
//! neither uses the cache nor changes it; only one that seems to lie in the cache is read from there. A short
//! one is read as usual, and dropped behind unless it was in the cache before.
//!
//! Invariant: what others hold in the cache stays there. The bytes that are read are the same either way, and where
//! the system offers none of this, files are read as usual.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::num::NonZero;
use std::os::unix::fs::FileExt;

use rustix::fs::{Advice, OFlags};
use rustix::io::ReadWriteFlags;

use super::digest::{PAGE_BYTES, WINDOW_BYTES};

/// A run that reads more than one part in this many of the free memory reads around the cache.
const SHARE: u64 = 4;
/// Places at which a long file is looked for in the cache.
const LOOKS: u64 = 4;
/// Each lies this far behind its part's beginning, where no reading ahead that somebody began goes on.
const LOOK_AT: u64 = 1_234_567;

/// Whether so many bytes would push out what others use.
pub(super) fn is_much(bytes: u64) -> bool {
    let told = std::fs::read_to_string("/proc/meminfo").ok();
    told.as_deref().and_then(available).is_some_and(|free| bytes > free / SHARE)
}

/// The bytes that the system could give to a new program without swapping.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// How one file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Through the cache, and left there.
    Cached,
    /// Through the cache, and dropped again unless it was there.
    Dropped,
    /// Past the cache.
    Direct,
}

impl Way {
    /// How to read a file of `size` bytes around the cache.
    pub fn around(file: &File, size: u64) -> Self {
        if size <= WINDOW_BYTES as u64 {
            return Way::Dropped;
        }
        // One page at each place, and no more than that if it is not there.
        advise(file, Advice::Random);
        let there = |look: u64| cached(file, &mut [0], size / LOOKS * look + LOOK_AT % (size / LOOKS)) == Some(1);
        if (0..LOOKS).all(there) {
            advise(file, Advice::Normal);
            return Way::Cached;
        }
        Way::Direct
    }

    /// Fills `buf` from `offset` (bytes) on; `UnexpectedEof` when the file ends before.
    pub fn read(self, file: &File, buf: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Way::Cached => file.read_exact_at(buf, offset),
            Way::Dropped => read_and_drop(file, buf, offset),
            Way::Direct => {
                let whole = buf.len() - buf.len() % PAGE_BYTES;
                let done = read_direct(file, &mut buf[..whole], offset);
                // The end of a file, and whatever this file system cannot do.
                read_and_drop(file, &mut buf[done..], offset + done as u64)
            }
        }
    }
}

/// Reads past the cache as far as that goes, and says how far.
fn read_direct(file: &File, buf: &mut [u8], offset: u64) -> usize {
    let Ok(flags) = rustix::fs::fcntl_getfl(file) else { return 0 };
    if rustix::fs::fcntl_setfl(file, flags | OFlags::DIRECT).is_err() {
        return 0;
    }
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // Read once more, as usual: if it is the disk, it says so again.
            Err(_) => break,
        }
    }
    // The descriptor is ours alone. Should it stay direct, what follows fails and says so.
    let _ = rustix::fs::fcntl_setfl(file, flags);
    done
}

fn read_and_drop(file: &File, buf: &mut [u8], offset: u64) -> io::Result<()> {
    let Some(cached) = cached(file, buf, offset) else { return file.read_exact_at(buf, offset) };
    if cached == buf.len() {
        return Ok(());
    }
    file.read_exact_at(&mut buf[cached..], offset + cached as u64)?;
    if let Some(len) = NonZero::new(buf.len() as u64) {
        // Only advice: a system that does not take it has read the bytes all the same.
        let _ = rustix::fs::fadvise(file, offset, Some(len), Advice::DontNeed);
    }
    Ok(())
}

fn advise(file: &File, advice: Advice) {
    // Only advice, too.
    let _ = rustix::fs::fadvise(file, 0, None, advice);
}

/// Reads what is in the cache from `offset` on and says how much that was; none when the system cannot say.
fn cached(file: &File, buf: &mut [u8], offset: u64) -> Option<usize> {
    match rustix::io::preadv2(file, &mut [IoSliceMut::new(buf)], offset, ReadWriteFlags::NOWAIT) {
        Ok(read) => Some(read),
        Err(rustix::io::Errno::AGAIN) => Some(0),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = PAGE_BYTES;
    /// Every so many pages one is looked for: the system may bring a few behind one that is not there.
    const STRIDE: usize = 61;
    const LONG: usize = 3 * WINDOW_BYTES + 5000;

    /// How many of the pages that are looked for are in the cache, in percent.
    fn resident(file: &File, len: usize) -> usize {
        let pages: Vec<usize> = (0..len.div_ceil(PAGE)).step_by(STRIDE).rev().collect();
        let there = |page: &usize| cached(file, &mut [0], (page * PAGE) as u64) == Some(1);
        pages.iter().filter(|page| there(page)).count() * 100 / pages.len()
    }

    /// Leaves the first `warm` bytes of the file in the cache, and nothing else of it there or on its way.
    fn leave(file: &File, len: usize, warm: usize) {
        file.read_exact_at(&mut vec![0; len], 0).unwrap();
        rustix::fs::fadvise(file, warm as u64, None, Advice::DontNeed).unwrap();
    }

    /// Reads as a run does: in windows, into memory that begins on a page.
    fn read_all(file: &File, len: usize) -> Vec<u8> {
        let way = Way::around(file, len as u64);
        let mut room = vec![0; WINDOW_BYTES + PAGE];
        let start = room.as_ptr().align_offset(PAGE);
        let mut bytes = Vec::new();
        while bytes.len() < len {
            let piece = (len - bytes.len()).min(WINDOW_BYTES);
            way.read(file, &mut room[start..start + piece], bytes.len() as u64).unwrap();
            bytes.extend_from_slice(&room[start..start + piece]);
        }
        bytes
    }

    #[test]
    fn the_cache_is_afterwards_as_it_was() {
        for len in [300 * PAGE + 5, LONG] {
            let bytes: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&bytes, 0).unwrap();
            file.sync_all().unwrap();
            leave(&file, len, 0);
            if resident(&file, len) > 50 {
                // A file system that lies in memory: there is no cache in front of it.
                assert!(read_all(&file, len) == bytes);
                continue;
            }
            for warm in [0, len / 2, len] {
                if warm == len / 2 && len < WINDOW_BYTES {
                    // Of a short file that was there in part, none stays.
                    continue;
                }
                leave(&file, len, warm);
                assert!(read_all(&file, len) == bytes);
                let (before, after) = (warm * 100 / len, resident(&file, len));
                assert!(after.abs_diff(before) <= 15, "{len} bytes: {before} % were in the cache, {after} % are");
            }
        }
    }

    /// Memory that begins anywhere is no place for direct I/O, but for the same bytes.
    #[test]
    fn what_the_system_does_not_offer_is_not_needed() {
        let file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..50_000).map(|i| (i % 249) as u8).collect();
        file.write_all_at(&bytes, 0).unwrap();
        for (len, offset) in [(20_000, 3), (8192, 4096), (1, 49_999), (50_000, 0), (0, 50_000)] {
            for way in [Way::Cached, Way::Dropped, Way::Direct] {
                let mut found = vec![0; len + 1];
                way.read(&file, &mut found[1..], offset).unwrap();
                assert!(found[1..] == bytes[offset as usize..][..len], "{way:?}, {len} at {offset}");
            }
        }
    }

    #[test]
    fn a_shorter_file_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 5000], 0).unwrap();
        for (len, offset) in [(5001, 0), (1, 5000), (10, 4995), (8192, 0)] {
            for way in [Way::Cached, Way::Dropped, Way::Direct] {
                let error = way.read(&file, &mut vec![0; len], offset).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
            }
        }
    }

    #[test]
    fn memory_is_found_in_what_the_system_says() {
        let told = "MemTotal:       24000000 kB\nMemFree:          100 kB\nMemAvailable:    2048 kB\nBuffers: 5 kB\n";
        assert_eq!(available(told), Some(2 << 20));
        assert_eq!(available("MemTotal: 5 kB\n"), None);
        assert!(!is_much(0) && is_much(u64::MAX));
    }
}
