//! The names of all settings, taken from the defaults themselves.
//!
//! Invariant: a key is known here exactly if [`super::Config`] has it, because the list is made by
//! writing the defaults out.

use figment::value::{Dict, Value};

use super::Config;

/// A key that is not known, and the known one nearest to it.
type Unknown = (String, Option<String>);

/// Every setting, as `table.key`.
fn known() -> Vec<String> {
    let mut keys = Vec::new();
    let defaults = toml::Table::try_from(Config::default()).expect("the defaults are plain values");
    for (name, value) in defaults {
        match value {
            toml::Value::Table(table) => keys.extend(table.keys().map(|key| format!("{name}.{key}"))),
            _ => keys.push(name),
        }
    }
    keys
}

/// Whether `key` is a setting.
pub(super) fn is_known(key: &str) -> bool {
    known().iter().any(|k| k == key)
}

/// Checks a file's keys.
pub(super) fn check(file: &toml::Table) -> Result<(), Unknown> {
    let known = known();
    let tables: Vec<&str> = known.iter().filter_map(|k| k.split_once('.')).map(|(table, _)| table).collect();
    for (name, value) in file {
        if !tables.contains(&name.as_str()) {
            if known.contains(name) {
                continue;
            }
            let near = nearest_of(name, tables.iter().copied().chain(known.iter().map(String::as_str)));
            return Err((name.clone(), near));
        }
        // A table's name with a plain value is told by its type later.
        let Some(table) = value.as_table() else { continue };
        for key in table.keys() {
            let full = format!("{name}.{key}");
            if !known.contains(&full) {
                let near = nearest(&full);
                return Err((full, near));
            }
        }
    }
    Ok(())
}

/// The known key nearest to `key`, if one is near.
pub(super) fn nearest(key: &str) -> Option<String> {
    let known = known();
    let same_word = || {
        // The right word in the wrong table.
        let word = key.rsplit('.').next()?;
        known.iter().find(|k| k.rsplit('.').next() == Some(word)).cloned()
    };
    nearest_of(key, known.iter().map(String::as_str)).or_else(same_word)
}

fn nearest_of<'a>(key: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    let (distance, near) = known.map(|k| (distance(key, k), k)).min()?;
    // A third of the letters may differ; more is another word.
    (distance * 3 <= key.len().max(near.len())).then(|| near.to_string())
}

/// How many letters must be changed, added or taken away (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    // Names are short; a long one is cut, since it is far from all anyway.
    for (i, x) in a.chars().take(128).enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let changed = corner + usize::from(x != *y);
            corner = row[j + 1];
            row[j + 1] = changed.min(corner + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// Puts a value under `table.key`. Only for known keys.
pub(super) fn put(all: &mut Dict, key: &str, value: Value) {
    let Some((table, key)) = key.split_once('.') else {
        all.insert(key.to_string(), value);
        return;
    };
    let slot = all.entry(table.to_string()).or_insert_with(|| Value::from(Dict::new()));
    if let Value::Dict(_, inner) = slot {
        inner.insert(key.to_string(), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_and_far() {
        assert_eq!(nearest("p2p.prot").as_deref(), Some("p2p.port"));
        assert_eq!(nearest("api.keep_generations").as_deref(), Some("publish.keep_generations"));
        assert_eq!(nearest("weather.tomorrow"), None);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
    }
}
