//! What a schema says, in one form for every table format.
//!
//! Invariant: the canonical text depends on names, types, nullability and order alone, and on
//! nothing that a library renames between releases; two schemas with one fingerprint hold the same
//! columns. The text is versioned: its first line is [`TEXT_VERSION`].

use std::fmt::Write as _;

use arrow::datatypes::{DataType, Field, Schema};
use sluice_protocol::annex::Dimension;

/// First line of the canonical text.
pub const TEXT_VERSION: &str = "sluice-schema 1";

/// Bytes that a value of variable length is taken to cost when the cheapest column is sought.
const VARIABLE_BYTES: u64 = 64;

/// BLAKE3 of [`canonical_text`].
pub fn fingerprint(schema: &Schema) -> [u8; 32] {
    *blake3::hash(canonical_text(schema).as_bytes()).as_bytes()
}

/// One line per column: the name with its length in bytes in front, the type, `null` or `required`.
///
/// Children of nested types stand in round brackets, in the same form. Metadata is left out:
/// writers put what they like into it.
pub fn canonical_text(schema: &Schema) -> String {
    let mut text = format!("{TEXT_VERSION}\n");
    for field in schema.fields() {
        put_field(&mut text, field);
        text.push('\n');
    }
    text
}

fn put_field(text: &mut String, field: &Field) {
    // Writing to a String cannot fail.
    let _ = write!(text, "{}:{} ", field.name().len(), field.name());
    put_type(text, field.data_type());
    text.push_str(if field.is_nullable() { " null" } else { " required" });
}

fn put_type(text: &mut String, kind: &DataType) {
    use DataType as T;
    let _ = match kind {
        T::Timestamp(unit, zone) => {
            write!(text, "timestamp[{unit:?},{}]", zone.as_deref().unwrap_or("none"))
        }
        T::Time32(unit) | T::Time64(unit) => write!(text, "time[{unit:?}]"),
        T::Duration(unit) => write!(text, "duration[{unit:?}]"),
        T::Interval(unit) => write!(text, "interval[{unit:?}]"),
        T::FixedSizeBinary(bytes) => write!(text, "binary[{bytes}]"),
        T::Decimal32(digits, scale)
        | T::Decimal64(digits, scale)
        | T::Decimal128(digits, scale)
        | T::Decimal256(digits, scale) => write!(text, "decimal[{digits},{scale}]"),
        T::FixedSizeList(item, length) => put_nested(text, &format!("list[{length}]"), [&**item]),
        T::List(item) | T::LargeList(item) | T::ListView(item) | T::LargeListView(item) => {
            put_nested(text, "list", [&**item])
        }
        T::Map(entries, _) => put_nested(text, "map", [&**entries]),
        T::Struct(fields) => put_nested(text, "struct", fields.iter().map(|f| &**f)),
        T::Union(fields, mode) => put_nested(text, &format!("union[{mode:?}]"), fields.iter().map(|(_, f)| &**f)),
        T::Dictionary(_, values) => {
            // A dictionary is a way to store the values, not another kind of value.
            put_type(text, values);
            Ok(())
        }
        T::RunEndEncoded(_, values) => {
            put_type(text, values.data_type());
            Ok(())
        }
        plain => write!(text, "{}", plain_name(plain)),
    };
}

fn put_nested<'a>(text: &mut String, name: &str, children: impl IntoIterator<Item = &'a Field>) -> std::fmt::Result {
    text.push_str(name);
    text.push('(');
    for (at, child) in children.into_iter().enumerate() {
        if at > 0 {
            text.push(',');
        }
        put_field(text, child);
    }
    text.push(')');
    Ok(())
}

/// Names of the types without parameters. The three layouts of text and of bytes hold the same
/// values, so they have one name.
fn plain_name(kind: &DataType) -> &'static str {
    use DataType as T;
    match kind {
        T::Null => "null",
        T::Boolean => "bool",
        T::Int8 => "int8",
        T::Int16 => "int16",
        T::Int32 => "int32",
        T::Int64 => "int64",
        T::UInt8 => "uint8",
        T::UInt16 => "uint16",
        T::UInt32 => "uint32",
        T::UInt64 => "uint64",
        T::Float16 => "float16",
        T::Float32 => "float32",
        T::Float64 => "float64",
        T::Date32 => "date32",
        T::Date64 => "date64",
        T::Utf8 | T::LargeUtf8 | T::Utf8View => "text",
        T::Binary | T::LargeBinary | T::BinaryView => "binary",
        _ => "other",
    }
}

/// Every vector column, nested ones with their path joined by dots.
pub fn dimensions(schema: &Schema) -> Vec<Dimension> {
    let mut found = Vec::new();
    for field in schema.fields() {
        find_dimensions(field.name().clone(), field.data_type(), &mut found);
    }
    found
}

fn find_dimensions(column: String, kind: &DataType, found: &mut Vec<Dimension>) {
    match kind {
        DataType::FixedSizeList(_, length) => {
            let dim = u32::try_from(*length).unwrap_or(0);
            found.push(Dimension { column, dim, unknown: Default::default() });
        }
        DataType::Struct(fields) => {
            for field in fields {
                find_dimensions(format!("{column}.{}", field.name()), field.data_type(), found);
            }
        }
        _ => {}
    }
}

/// Position of the column that is cheapest to read, for counting rows; `None` without columns.
pub fn cheapest_column(schema: &Schema) -> Option<usize> {
    let fields = schema.fields().iter().enumerate();
    fields.min_by_key(|(at, f)| (value_bytes(f.data_type()), *at)).map(|(at, _)| at)
}

/// About how many bytes one value takes.
fn value_bytes(kind: &DataType) -> u64 {
    if let Some(bytes) = kind.primitive_width() {
        return bytes as u64;
    }
    match kind {
        DataType::Boolean => 1,
        DataType::FixedSizeBinary(bytes) => u64::from(bytes.unsigned_abs()),
        DataType::FixedSizeList(item, length) => {
            u64::from(length.unsigned_abs()).saturating_mul(value_bytes(item.data_type()))
        }
        DataType::Struct(fields) => {
            fields.iter().fold(VARIABLE_BYTES, |sum, f| sum.saturating_add(value_bytes(f.data_type())))
        }
        _ => VARIABLE_BYTES,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;

    use super::*;

    fn vector(length: i32) -> DataType {
        let item = Field::new("item", DataType::Float32, true);
        DataType::FixedSizeList(Arc::new(item), length)
    }

    fn schema() -> Schema {
        let inner = vec![Field::new("v", vector(4), true), Field::new("n", DataType::Int8, true)];
        Schema::new(vec![
            Field::new("text", DataType::Utf8, true),
            Field::new("id", DataType::Int64, false),
            Field::new("embedding", vector(384), true),
            Field::new("extra", DataType::Struct(inner.into()), true),
        ])
    }

    #[test]
    fn the_text_is_what_the_page_says() {
        let expected = "sluice-schema 1\n\
            4:text text null\n\
            2:id int64 required\n\
            9:embedding list[384](4:item float32 null) null\n\
            5:extra struct(1:v list[4](4:item float32 null) null,1:n int8 null) null\n";
        assert_eq!(canonical_text(&schema()), expected);
    }

    #[test]
    fn names_types_nullability_and_order_count_and_metadata_does_not() {
        let base = fingerprint(&schema());
        let change = |edit: &dyn Fn(&mut Vec<Field>)| {
            let mut fields: Vec<Field> = schema().fields().iter().map(|f| f.as_ref().clone()).collect();
            edit(&mut fields);
            fingerprint(&Schema::new(fields))
        };
        assert_ne!(base, change(&|f| f[1] = f[1].clone().with_name("key")));
        assert_ne!(base, change(&|f| f[1] = f[1].clone().with_nullable(true)));
        assert_ne!(base, change(&|f| f[2] = f[2].clone().with_data_type(vector(385))));
        assert_ne!(base, change(&|f| f.swap(0, 1)));
        let note = HashMap::from([("writer".to_string(), "any".to_string())]);
        assert_eq!(base, change(&|f| f[0] = f[0].clone().with_metadata(note.clone())));
        assert_eq!(base, change(&|f| f[0] = f[0].clone().with_data_type(DataType::LargeUtf8)));
    }

    #[test]
    fn a_name_cannot_imitate_a_type() {
        let honest = Schema::new(vec![Field::new("a", DataType::Int8, true), Field::new("b", DataType::Int8, true)]);
        let sly = Schema::new(vec![Field::new("a int8 null\n1:b", DataType::Int8, true)]);
        assert_ne!(fingerprint(&honest), fingerprint(&sly));
    }

    #[test]
    fn finds_vectors_and_the_cheapest_column() {
        let found = dimensions(&schema());
        let flat: Vec<(&str, u32)> = found.iter().map(|d| (d.column.as_str(), d.dim)).collect();
        assert_eq!(flat, [("embedding", 384), ("extra.v", 4)]);
        assert_eq!(cheapest_column(&schema()), Some(1));
        assert_eq!(cheapest_column(&Schema::empty()), None);
    }
}
