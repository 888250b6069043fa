//! The file that a blob is put together in, and memory from which it is written fast.
//!
//! What begins and ends on a page, in the file and in memory, goes to the disk by direct I/O: the processor does
//! not copy it, and pages that other programs use stay in the cache. Everything else goes through the cache.
//!
//! Invariant: which way bytes took makes no difference to what is read, and none to when they are durable: after the
//! next sync. A file system that knows no direct I/O is written as usual.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Mode, OFlags};

use super::STAGING_FOLDER;
use crate::disk;

/// Direct I/O begins and ends at multiples of this many bytes.
const PAGE_BYTES: usize = 4096;
/// Fewer bytes are not worth a wait for the disk.
const DIRECT_BYTES_MIN: usize = 64 * 1024;

/// A part, open for writing by many threads.
pub(super) struct Part {
    file: File,
    /// The same file, written past the cache.
    direct: Option<File>,
    refused: AtomicBool,
}

impl Part {
    /// `direct`: past the cache where that goes.
    pub fn new(file: File, direct: bool) -> Self {
        let direct = if direct { open_direct(&file) } else { None };
        Self { file, direct, refused: AtomicBool::new(false) }
    }

    /// Writes all of `bytes` at `offset` (bytes).
    pub fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let whole = bytes.len() - bytes.len() % PAGE_BYTES;
        let done = match &self.direct {
            Some(direct) if whole >= DIRECT_BYTES_MIN && self.is_aligned(offset, bytes) => {
                match disk::write_all_at(STAGING_FOLDER, direct, &bytes[..whole], offset) {
                    Ok(()) => whole,
                    // It may say so only now, or after a part that ended within a page.
                    Err(e) if e.kind() == io::ErrorKind::InvalidInput => {
                        self.refused.store(true, Ordering::Relaxed);
                        0
                    }
                    Err(e) => return Err(e),
                }
            }
            _ => 0,
        };
        disk::write_all_at(STAGING_FOLDER, &self.file, &bytes[done..], offset + done as u64)
    }

    fn is_aligned(&self, offset: u64, bytes: &[u8]) -> bool {
        let in_memory = bytes.as_ptr().align_offset(PAGE_BYTES) == 0;
        in_memory && offset.is_multiple_of(PAGE_BYTES as u64) && !self.refused.load(Ordering::Relaxed)
    }
}

impl Deref for Part {
    type Target = File;

    fn deref(&self) -> &File {
        &self.file
    }
}

/// The same file once more: not by its name, which may be another file's by now.
fn open_direct(file: &File) -> Option<File> {
    let again = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC;
    rustix::fs::open(again, flags, Mode::empty()).ok().map(File::from)
}

/// Bytes that begin on a page of memory.
#[derive(Default)]
pub struct Paged {
    room: Vec<u8>,
    start: usize,
}

impl Paged {
    /// Room for `len` bytes; what is put in beyond that may begin anywhere.
    pub fn with_capacity(len: usize) -> Self {
        let mut room: Vec<u8> = Vec::with_capacity(len + PAGE_BYTES);
        // Where it cannot be said of a pointer, nothing is lost but speed.
        let start = room.as_ptr().align_offset(PAGE_BYTES).min(PAGE_BYTES);
        room.resize(start, 0);
        Self { room, start }
    }

    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        self.room.extend_from_slice(bytes);
    }
}

impl Deref for Paged {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.room[self.start..]
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn paged(bytes: &[u8]) -> Paged {
        let mut paged = Paged::with_capacity(bytes.len());
        paged.extend_from_slice(bytes);
        paged
    }

    #[test]
    fn either_way_the_same_bytes_are_read() {
        let bytes: Vec<u8> = (0..1_000_003u32).map(|i| (i % 253) as u8).collect();
        for direct in [true, false] {
            let part = Part::new(tempfile::tempfile().unwrap(), direct);
            part.set_len(bytes.len() as u64).unwrap();
            let mut at = 0usize;
            // Whole pages, a piece that ends within one, one that begins there, little, and the end.
            for len in [256 << 10, (64 << 10) + 100, 4096 - 100, 5000, 300_000, usize::MAX] {
                let piece = &bytes[at..bytes.len().min(at.saturating_add(len))];
                part.write(at as u64, &paged(piece)).unwrap();
                at += piece.len();
            }
            // Over what is in the cache, and from memory that begins anywhere.
            part.write(4096, &paged(&bytes[4096..200_000])).unwrap();
            part.write(0, &bytes[..100_000]).unwrap();
            let mut found = vec![0; bytes.len()];
            part.read_exact_at(&mut found, 0).unwrap();
            assert!(found == bytes);
        }
    }

    #[test]
    fn a_write_that_ends_within_a_page_is_gone_on_with() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::options().create_new(true).read(true).write(true).open(dir.path().join("part")).unwrap();
        let part = Part::new(file, true);
        let bytes: Vec<u8> = (0..17 * PAGE_BYTES as u32).map(|i| (i % 239) as u8).collect();
        let fault = disk::faults::inject(dir.path(), "staging.write@1=short").unwrap();
        part.write(0, &paged(&bytes)).unwrap();
        assert_eq!(fault.fired(), 1);
        let mut found = vec![0; bytes.len()];
        part.read_exact_at(&mut found, 0).unwrap();
        assert!(found == bytes);
    }

    /// Whether the cache holds the page at `offset`; reading it may wake the reading ahead, so asked once each.
    fn is_cached(file: &File, offset: u64) -> bool {
        let mut byte = [0];
        let buf = &mut [io::IoSliceMut::new(&mut byte)];
        rustix::io::preadv2(file, buf, offset, rustix::io::ReadWriteFlags::NOWAIT) == Ok(1)
    }

    #[test]
    fn large_pieces_take_no_room_in_the_cache() {
        let bytes = vec![7; 1 << 20];
        let usual = tempfile::tempfile().unwrap();
        disk::write_all_at(STAGING_FOLDER, &usual, &bytes, 0).unwrap();
        usual.sync_all().unwrap();
        rustix::fs::fadvise(&usual, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let part = Part::new(tempfile::tempfile().unwrap(), true);
        if part.direct.is_none() || is_cached(&usual, 500_000) {
            // A file system that lies in memory, or knows no direct I/O.
            return;
        }
        part.set_len(bytes.len() as u64).unwrap();
        part.write(0, &paged(&bytes)).unwrap();
        assert!(!part.refused.load(Ordering::Relaxed));
        assert!(!is_cached(&part, 500_000));
    }
}
