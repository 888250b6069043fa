//! Rows of the sample's tables.
//!
//! Invariant: a batch is a function of its seed, its first id and its length.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, FixedSizeListArray, Float32Array, Float64Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use arrow::error::ArrowError;

use super::dice::Dice;

/// Length of the vectors in `vectors/docs.lance`, in elements.
pub const DIM: usize = 384;
/// Neighbourhoods that the vectors lie in.
pub const CENTRES: usize = 8;
/// Regions of the orders: partition values as customers have them.
const REGIONS: [&str; 4] = ["north", "south coast", "île-de-france", "50%: mixed"];
/// 2024-01-01, in microseconds since the Unix epoch.
const FIRST_DAY_US: i64 = 1_704_067_200_000_000;

fn ids(first: u64, rows: u64) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values((first..first + rows).map(|id| id as i64)))
}

fn times(first: u64, rows: u64) -> ArrayRef {
    let times = (first..first + rows).map(|id| FIRST_DAY_US + id as i64 * 17_000_000);
    Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC"))
}

fn texts(rows: u64, one: impl FnMut(u64) -> String) -> ArrayRef {
    Arc::new(StringArray::from_iter_values((0..rows).map(one)))
}

fn amounts(rows: u64, dice: &mut Dice) -> ArrayRef {
    let amounts = (0..rows).map(|_| dice.below(1_000_000) as f64 / 100.0);
    Arc::new(Float64Array::from_iter_values(amounts))
}

fn time_type() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

/// Orders, about 80 bytes each on disk.
pub fn orders(seed: u64, first: u64, rows: u64) -> Result<RecordBatch, ArrowError> {
    let mut dice = Dice::new(seed ^ first, "orders");
    let schema = Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("region", DataType::Utf8, true),
        Field::new("customer", DataType::Utf8, true),
        Field::new("amount", DataType::Float64, true),
        Field::new("placed", time_type(), true),
        Field::new("reference", DataType::Utf8, true),
    ]);
    let columns = vec![
        ids(first, rows),
        texts(rows, |_| dice.pick(&REGIONS).to_string()),
        texts(rows, |at| format!("acme-{:05}", (first + at) % 4093)),
        amounts(rows, &mut dice),
        times(first, rows),
        texts(rows, |_| dice.hex(48)),
    ];
    RecordBatch::try_new(Arc::new(schema), columns)
}

/// Events, about 80 bytes each on disk.
pub fn events(seed: u64, first: u64, rows: u64) -> Result<RecordBatch, ArrowError> {
    let mut dice = Dice::new(seed ^ first, "events");
    let schema = Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("kind", DataType::Utf8, true),
        Field::new("value", DataType::Float64, true),
        Field::new("seen", time_type(), true),
        Field::new("trace", DataType::Utf8, true),
    ]);
    let columns = vec![
        ids(first, rows),
        texts(rows, |_| dice.pick(&["click", "view", "return"]).to_string()),
        amounts(rows, &mut dice),
        times(first, rows),
        texts(rows, |_| dice.hex(56)),
    ];
    RecordBatch::try_new(Arc::new(schema), columns)
}

/// Documents with a vector each, about 1,700 bytes.
pub fn docs(seed: u64, first: u64, rows: u64) -> Result<RecordBatch, ArrowError> {
    let mut dice = Dice::new(seed ^ first, "docs");
    let centres = centres(seed);
    let mut values = Vec::with_capacity(rows as usize * DIM);
    for _ in 0..rows {
        let centre = dice.below(CENTRES as u64) as usize * DIM;
        values.extend(centres[centre..centre + DIM].iter().map(|c| c + 0.3 * dice.signed()));
    }
    let vectors = vectors(values)?;
    let schema = Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("text", DataType::Utf8, true),
        Field::new("vector", arrow::array::Array::data_type(&vectors).clone(), true),
    ]);
    let columns = vec![ids(first, rows), texts(rows, |_| dice.words(24)), Arc::new(vectors)];
    RecordBatch::try_new(Arc::new(schema), columns)
}

/// The middles of the neighbourhoods, `CENTRES` × `DIM`, row by row.
pub fn centres(seed: u64) -> Vec<f32> {
    let mut dice = Dice::new(seed, "centres");
    (0..CENTRES * DIM).map(|_| dice.signed()).collect()
}

/// Numbers as vectors of `DIM` elements.
pub fn vectors(values: Vec<f32>) -> Result<FixedSizeListArray, ArrowError> {
    let item = Arc::new(Field::new("item", DataType::Float32, true));
    FixedSizeListArray::try_new(item, DIM as i32, Arc::new(Float32Array::from(values)), None)
}
