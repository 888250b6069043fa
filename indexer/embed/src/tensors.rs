//! Reading a safetensors file once, front to back, hashing what is read.
//!
//! Invariant: the header is checked against the file's length before anything is allocated by it, so a tensor never
//! needs more memory than the file has bytes; and the hash is that of the very bytes that were loaded.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::limits;

/// A tensor in 32-bit floats, row-major.
pub struct Tensor {
    pub shape: Vec<usize>,
    pub data: Vec<f32>,
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// An open file whose header has been checked.
pub struct TensorFile {
    path: PathBuf,
    file: File,
    hasher: blake3::Hasher,
    /// By their place in the file, which they fill without a gap.
    entries: Vec<(String, Entry)>,
}

impl TensorFile {
    /// Opens a file and checks that its header describes exactly the bytes that follow it.
    ///
    /// # Errors
    /// The file cannot be read, or is not a whole safetensors file.
    pub fn open(path: &Path) -> Result<Self> {
        let read = |source| Error::Read { file: path.to_owned(), source };
        let bad = |why: String| Error::Tensors { file: path.to_owned(), why };
        let mut file = File::open(path).map_err(read)?;
        let length = file.metadata().map_err(read)?.len();
        if length < 8 {
            return Err(bad(format!("{length} bytes are too few for a safetensors file: it was cut short")));
        }
        let mut prefix = [0; 8];
        file.read_exact(&mut prefix).map_err(read)?;
        let header_bytes = u64::from_le_bytes(prefix);
        if header_bytes > limits::HEADER_BYTES || header_bytes > length - 8 {
            return Err(bad(format!(
                "the header is said to have {header_bytes} bytes, the file has {length} and a header at most {}: \
                 it was cut short or is no safetensors file",
                limits::HEADER_BYTES
            )));
        }
        let mut header = vec![0; header_bytes as usize];
        file.read_exact(&mut header).map_err(read)?;
        let entries = parse(&header, length - 8 - header_bytes).map_err(bad)?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&prefix).update(&header);
        Ok(Self { path: path.to_owned(), file, hasher, entries })
    }

    /// The names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|(name, _)| name.as_str())
    }

    /// Reads the whole file; keeps the tensors that `wanted` names. Returns them and the file's BLAKE3 hash.
    ///
    /// # Errors
    /// The file cannot be read, or a wanted tensor is not of floats or holds a number that is none.
    pub fn read(mut self, wanted: impl Fn(&str) -> bool) -> Result<(HashMap<String, Tensor>, String)> {
        let mut found = HashMap::new();
        let mut buffer = vec![0; 1 << 20];
        for (name, entry) in std::mem::take(&mut self.entries) {
            let bytes = entry.data_offsets.1 - entry.data_offsets.0;
            if wanted(&name) {
                let tensor = self.tensor(&name, &entry, &mut buffer)?;
                found.insert(name, tensor);
            } else {
                self.pass(bytes, &mut buffer, |_| ())?;
            }
        }
        Ok((found, self.hasher.finalize().to_hex().to_string()))
    }

    fn tensor(&mut self, name: &str, entry: &Entry, buffer: &mut [u8]) -> Result<Tensor> {
        let bad = |file: &Path, why: String| Error::Tensors { file: file.to_owned(), why };
        let bytes = entry.data_offsets.1 - entry.data_offsets.0;
        let shape: Vec<usize> = entry.shape.iter().map(|&n| n as usize).collect();
        let mut data = Vec::with_capacity(shape.iter().product());
        let widen: fn(&[u8], &mut Vec<f32>) = match entry.dtype.as_str() {
            "F32" => |bytes, to| to.extend(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b))),
            "BF16" => |bytes, to| {
                to.extend(
                    bytes.as_chunks::<2>().0.iter().map(|b| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16)),
                );
            },
            "F16" => {
                |bytes, to| to.extend(bytes.as_chunks::<2>().0.iter().map(|b| half_to_f32(u16::from_le_bytes(*b))))
            }
            other => return Err(bad(&self.path, format!("`{name}` is of {other}; F32, F16 and BF16 can be loaded"))),
        };
        self.pass(bytes, buffer, |part| widen(part, &mut data))?;
        match data.iter().position(|x| !x.is_finite()) {
            Some(at) => Err(bad(&self.path, format!("`{name}` holds {} at place {at}: the file is damaged", data[at]))),
            None => Ok(Tensor { shape, data }),
        }
    }

    /// Reads and hashes the next `bytes` bytes in parts, each a multiple of four bytes but the last.
    fn pass(&mut self, mut bytes: u64, buffer: &mut [u8], mut each: impl FnMut(&[u8])) -> Result<()> {
        while bytes > 0 {
            let part = &mut buffer[..bytes.min(1 << 20) as usize];
            self.file.read_exact(part).map_err(|source| Error::Read { file: self.path.clone(), source })?;
            self.hasher.update(part);
            each(part);
            bytes -= part.len() as u64;
        }
        Ok(())
    }
}

/// The entries by their place, once they fill `data_bytes` exactly and each is as long as its shape says.
fn parse(header: &[u8], data_bytes: u64) -> std::result::Result<Vec<(String, Entry)>, String> {
    let mut object: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(header).map_err(|e| format!("the header is not JSON: {e}"))?;
    object.remove("__metadata__");
    let mut entries = Vec::with_capacity(object.len());
    for (name, value) in object {
        let entry: Entry = serde_json::from_value(value).map_err(|e| format!("the header's entry `{name}`: {e}"))?;
        entries.push((name, entry));
    }
    entries.sort_by_key(|(_, e)| e.data_offsets);
    let mut end = 0;
    for (name, entry) in &entries {
        let (from, to) = entry.data_offsets;
        if from != end || to < from || to > data_bytes {
            return Err(format!(
                "`{name}` is said to lie at {from} to {to} of {data_bytes} bytes, after one that ends at {end}"
            ));
        }
        end = to;
        let wide = match entry.dtype.as_str() {
            "BOOL" | "U8" | "I8" => 1,
            "F16" | "BF16" | "I16" | "U16" => 2,
            "F32" | "I32" | "U32" => 4,
            "F64" | "I64" | "U64" => 8,
            other => return Err(format!("`{name}` is of {other}, which is not known")),
        };
        let bytes = entry.shape.iter().try_fold(wide, |product: u64, &n| product.checked_mul(n));
        if bytes != Some(to - from) {
            return Err(format!("`{name}` has the shape {:?} of {} but {} bytes", entry.shape, entry.dtype, to - from));
        }
    }
    if end != data_bytes {
        return Err(format!("the tensors end at {end} of {data_bytes} bytes"));
    }
    Ok(entries)
}

/// An IEEE half as a float; exact.
fn half_to_f32(half: u16) -> f32 {
    let sign = u32::from(half & 0x8000) << 16;
    let exponent = u32::from(half >> 10) & 0x1f;
    let fraction = u32::from(half & 0x3ff);
    let magnitude = match exponent {
        0 => fraction as f32 * 2f32.powi(-24),
        31 => f32::from_bits(0x7f80_0000 | fraction << 13),
        _ => f32::from_bits((exponent + 112) << 23 | fraction << 13),
    };
    f32::from_bits(magnitude.to_bits() | sign)
}

#[cfg(test)]
mod tests {
    use super::half_to_f32;

    #[test]
    fn halves_are_widened_exactly() {
        for (half, float) in
            [(0x3c00, 1.0), (0xc000, -2.0), (0x7bff, 65504.0), (0x0001, 5.960_464_5e-8), (0x3555, 0.333_251_95)]
        {
            assert_eq!(half_to_f32(half), float, "{half:#x}");
        }
        assert!(half_to_f32(0x7c00).is_infinite() && half_to_f32(0x7e00).is_nan());
    }
}
