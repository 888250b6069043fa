//! Which sidecar files a checkpoint names.
//!
//! Invariant: only the `sidecar` column is read, in bounded pieces; a checkpoint without that
//! column has no sidecars.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::DataType;
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::errors::Result as ParquetResult;
use parquet::file::reader::{ChunkReader, Length};
use serde::Deserialize;
use sluice_protocol::path::LakePath;
use sluice_store::table::SectionView;

use super::log::LOG_FOLDER;

/// Column and JSON key of the action that names a sidecar.
const SIDECAR: &str = "sidecar";
/// Sequential reads ask for this much at once, in bytes.
const READ_AHEAD_BYTES: usize = 256 * 1024;
/// Longest line of a JSON checkpoint, in bytes.
const LINE_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Most sidecars of one checkpoint.
const SIDECARS_MAX: usize = 100_000;

/// The sidecars of the checkpoint at `path`, below the table root.
///
/// # Errors
/// When the checkpoint cannot be read, or names a sidecar outside the log's own folder for them.
pub fn sidecars(view: &Arc<dyn SectionView>, path: &LakePath, size: u64) -> io::Result<Vec<LakePath>> {
    let file = CheckpointFile { view: view.clone(), path: path.clone(), size };
    let names = if path.as_str().ends_with(".json") {
        from_json(file)?
    } else {
        from_parquet(file).map_err(|e| io::Error::other(format!("`{path}`: {e}")))?
    };
    if names.len() > SIDECARS_MAX {
        return Err(io::Error::other(format!("`{path}` names more than {SIDECARS_MAX} sidecars")));
    }
    names.iter().map(|name| place(path, name)).collect()
}

/// A sidecar is named by its file name alone, or by its path below the log.
fn place(checkpoint: &LakePath, name: &str) -> io::Result<LakePath> {
    let file = name.strip_prefix("_delta_log/").unwrap_or(name);
    let file = file.strip_prefix("_sidecars/").unwrap_or(file);
    let refuse = |why: String| io::Error::other(format!("`{checkpoint}` names `{name}`: {why}"));
    if file.contains('/') {
        return Err(refuse("not in the folder for sidecars".to_string()));
    }
    LakePath::parse(&format!("{LOG_FOLDER}_sidecars/{file}")).map_err(|e| refuse(e.to_string()))
}

#[derive(Deserialize)]
struct JsonLine {
    sidecar: Option<JsonSidecar>,
}

#[derive(Deserialize)]
struct JsonSidecar {
    path: String,
}

fn from_json(file: CheckpointFile) -> io::Result<Vec<String>> {
    let mut lines = BufReader::with_capacity(READ_AHEAD_BYTES, FileReader { file, at: 0 });
    let mut names = Vec::new();
    loop {
        let mut line = String::new();
        if lines.by_ref().take(LINE_BYTES_MAX).read_line(&mut line)? == 0 {
            return Ok(names);
        }
        if line.trim().is_empty() {
            continue;
        }
        let parsed: JsonLine = serde_json::from_str(&line)?;
        names.extend(parsed.sidecar.map(|s| s.path));
    }
}

fn from_parquet(file: CheckpointFile) -> ParquetResult<Vec<String>> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(file)?;
    let has = |f: &Arc<arrow::datatypes::Field>| f.name() == SIDECAR;
    if !builder.schema().fields().iter().any(has) {
        return Ok(Vec::new());
    }
    let mask = ProjectionMask::columns(builder.parquet_schema(), ["sidecar.path"]);
    let mut names = Vec::new();
    for batch in builder.with_projection(mask).build()? {
        collect(&batch?, &mut names);
    }
    Ok(names)
}

fn collect(batch: &RecordBatch, names: &mut Vec<String>) {
    let Some(sidecar) = batch.column_by_name(SIDECAR).and_then(|c| c.as_struct_opt()) else {
        return;
    };
    let Some(paths) = sidecar.column_by_name("path") else { return };
    let Ok(paths) = arrow::compute::cast(paths, &DataType::Utf8) else { return };
    let paths = paths.as_string::<i32>();
    for row in 0..paths.len() {
        if sidecar.is_valid(row) && paths.is_valid(row) {
            names.push(paths.value(row).to_string());
        }
    }
}

/// One file of the view as the Parquet reader wants it.
#[derive(Clone)]
struct CheckpointFile {
    view: Arc<dyn SectionView>,
    path: LakePath,
    size: u64,
}

impl Length for CheckpointFile {
    fn len(&self) -> u64 {
        self.size
    }
}

impl ChunkReader for CheckpointFile {
    type T = BufReader<FileReader>;

    fn get_read(&self, start: u64) -> ParquetResult<Self::T> {
        let reader = FileReader { file: self.clone(), at: start };
        Ok(BufReader::with_capacity(READ_AHEAD_BYTES, reader))
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        let end = start.saturating_add(length as u64);
        Ok(self.view.read(&self.path, start..end)?)
    }
}

/// Reads on from a place in the file.
struct FileReader {
    file: CheckpointFile,
    at: u64,
}

impl Read for FileReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let end = self.file.size.min(self.at.saturating_add(buffer.len() as u64));
        if end <= self.at {
            return Ok(0);
        }
        let bytes = self.file.view.read(&self.file.path, self.at..end)?;
        buffer[..bytes.len()].copy_from_slice(&bytes);
        self.at = end;
        Ok(bytes.len())
    }
}
