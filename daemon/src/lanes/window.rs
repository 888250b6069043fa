//! Reading a served file by position with some read-ahead.
//!
//! Invariant: never reads past the length it was given, and a file that has become shorter is an
//! error of kind `UnexpectedEof`, not zeros.

use std::io;
use std::os::unix::fs::FileExt;

use super::ServedData;
use super::limits::READ_AHEAD_BYTES_MAX;

/// Smallest read from a file, in bytes.
const READ_BYTES_MIN: usize = 16 * 1024;

/// A window that moves over the data.
pub(super) struct Window {
    data: ServedData,
    len: u64,
    start: u64,
    held: Vec<u8>,
    ahead: usize,
}

impl Window {
    /// A window over the first `len` bytes of `data`.
    pub fn new(data: ServedData, len: u64) -> Self {
        Self { data, len, start: 0, held: Vec::new(), ahead: READ_BYTES_MIN }
    }

    /// Exactly `len` bytes at `at`.
    pub fn read(&mut self, at: u64, len: usize) -> io::Result<&[u8]> {
        let end = at.checked_add(len as u64).filter(|end| *end <= self.len).ok_or_else(short)?;
        if matches!(self.data, ServedData::File(_)) {
            let held_end = self.start + self.held.len() as u64;
            if at < self.start || end > held_end {
                self.refill(at, len, at == held_end)?;
            }
        }
        self.held(at, len).ok_or_else(short)
    }

    /// The same as long as they are held from an earlier [`Self::read`]: never read again.
    pub fn held(&self, at: u64, len: usize) -> Option<&[u8]> {
        let (bytes, start): (&[u8], u64) = match &self.data {
            ServedData::File(_) => (&self.held, self.start),
            ServedData::Bytes(bytes) => (bytes, 0),
        };
        let from = usize::try_from(at.checked_sub(start)?).ok()?;
        bytes.get(from..from.checked_add(len)?)
    }

    /// Reads at `at`: at least `len` bytes, and more when the file is read in order.
    fn refill(&mut self, at: u64, len: usize, in_order: bool) -> io::Result<()> {
        let ServedData::File(file) = &self.data else {
            return Err(short());
        };
        self.ahead = if in_order { (self.ahead * 2).min(READ_AHEAD_BYTES_MAX) } else { READ_BYTES_MIN };
        let left = self.len - at;
        let want = (len.max(self.ahead) as u64).min(left) as usize;
        self.held.resize(want, 0);
        self.start = at;
        let mut have = 0;
        while have < want {
            match file.read_at(&mut self.held[have..], at + have as u64) {
                Ok(0) => break,
                Ok(n) => have += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    self.held.clear();
                    return Err(e);
                }
            }
        }
        self.held.truncate(have);
        if have < len { Err(short()) } else { Ok(()) }
    }
}

fn short() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the data is shorter than its size says")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file_of(bytes: &[u8]) -> std::fs::File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn any_order_gives_the_same_bytes() {
        let bytes: Vec<u8> = (0..600_000u32).map(|i| (i % 251) as u8).collect();
        let mut file = Window::new(file_of(&bytes).into(), bytes.len() as u64);
        let mut memory = Window::new(bytes.clone().into(), bytes.len() as u64);
        for at in [0usize, 16_384, 32_768, 300_000, 5, 599_999, 0, 400_000, 416_384] {
            let len = 16_384.min(bytes.len() - at);
            assert_eq!(file.read(at as u64, len).unwrap(), &bytes[at..at + len]);
            assert_eq!(memory.read(at as u64, len).unwrap(), &bytes[at..at + len]);
        }
    }

    #[test]
    fn a_shorter_file_is_an_error() {
        let mut window = Window::new(file_of(&[7; 20_000]).into(), 40_000);
        assert_eq!(window.read(0, 16_384).unwrap(), &[7; 16_384]);
        let e = window.read(16_384, 16_384).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::UnexpectedEof);
        assert!(window.read(39_000, 2_000).is_err());
        assert!(window.read(u64::MAX, 2).is_err());
        assert_eq!(window.read(0, 0).unwrap(), b"");
    }
}
