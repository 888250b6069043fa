//! The sample's files that are no tables.
//!
//! Invariant: every file is a function of seed and scale, byte for byte.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::dice::Dice;
use super::{SampleError, Scale};

/// Shares of 64: adapter, CSV, text.
const ADAPTER_SHARE: u64 = 8;
const CSV_SHARE: u64 = 6;
const TEXT_SHARE: u64 = 4;
const TEXTS: u64 = 8;
/// Rank of the adapter and width of the layers it adapts, in elements.
const RANK: u64 = 16;
const WIDTH: u64 = 2048;
const CATALOG: &str = "metadata/catalog.json";

/// Writes all of them.
pub fn make(root: &Path, seed: u64, scale: Scale) -> Result<(), SampleError> {
    adapter(root, seed, scale)?;
    write(root, "raw/shipments.csv", &csv(seed, scale))?;
    for number in 0..TEXTS {
        let text = text(seed, number, scale.bytes(TEXT_SHARE) / TEXTS);
        write(root, &format!("raw/report-{number}.txt"), &text)?;
    }
    write_json(root, CATALOG, &catalog(seed, 0))?;
    let glossary = json!({ "order": "a promise to deliver", "event": "something that happened" });
    write_json(root, "metadata/glossary.json", &glossary)
}

/// Edits the catalog.
pub fn change(root: &Path, step: u32) -> Result<String, SampleError> {
    let path = root.join(CATALOG);
    let failed = |cause| SampleError::File { path: path.clone(), cause };
    let old = fs::read(&path).map_err(failed)?;
    let mut catalog: Value = serde_json::from_slice(&old).map_err(|e| failed(e.into()))?;
    catalog["revision"] = json!(u64::from(step) + 1);
    catalog["note"] = json!(Dice::new(u64::from(step), "note").words(6));
    write_json(root, CATALOG, &catalog)?;
    Ok(format!("edited {CATALOG}"))
}

fn catalog(seed: u64, revision: u64) -> Value {
    let mut dice = Dice::new(seed, "catalog");
    let entry = |name: &str, dice: &mut Dice| json!({ "name": name, "about": dice.words(8) });
    json!({
        "customer": "acme",
        "revision": revision,
        "note": "first delivery",
        "tables": [
            entry("delta/orders", &mut dice),
            entry("delta/events", &mut dice),
            entry("vectors/docs.lance", &mut dice),
        ],
    })
}

fn csv(seed: u64, scale: Scale) -> Vec<u8> {
    let mut dice = Dice::new(seed, "csv");
    let mut text = String::from("shipment,depot,weight_kg,remark\n");
    let mut number = 0u64;
    while (text.len() as u64) < scale.bytes(CSV_SHARE) {
        let depot = dice.pick(&["Aachen", "Brno", "Cork", "Dijon"]);
        let weight = dice.below(40_000);
        let remark = dice.words(5);
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{number},{depot},{weight},{remark}");
        number += 1;
    }
    text.into_bytes()
}

fn text(seed: u64, number: u64, bytes: u64) -> Vec<u8> {
    let mut dice = Dice::new(seed ^ number, "text");
    let mut text = format!("Report {number}\n\n");
    while (text.len() as u64) < bytes {
        text.push_str(&dice.words(14));
        text.push('\n');
    }
    text.into_bytes()
}

/// An adapter as PEFT writes it: a config and half-precision matrices.
fn adapter(root: &Path, seed: u64, scale: Scale) -> Result<(), SampleError> {
    let tensor_bytes = RANK * WIDTH * 2;
    let layers = (scale.bytes(ADAPTER_SHARE) / (4 * tensor_bytes)).max(1);
    let mut shapes = BTreeMap::new();
    for layer in 0..layers {
        for target in ["q_proj", "v_proj"] {
            let name = format!("base_model.model.model.layers.{layer}.self_attn.{target}");
            shapes.insert(format!("{name}.lora_A.weight"), [RANK, WIDTH]);
            shapes.insert(format!("{name}.lora_B.weight"), [WIDTH, RANK]);
        }
    }
    let mut dice = Dice::new(seed, "adapter");
    write(root, "lora/acme-style/adapter_model.safetensors", &safetensors(&shapes, &mut dice))?;
    let config = json!({
        "base_model_name_or_path": "acme/base-model",
        "bias": "none",
        "lora_alpha": 2 * RANK,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": RANK,
        "target_modules": ["q_proj", "v_proj"],
        "task_type": "CAUSAL_LM",
    });
    write_json(root, "lora/acme-style/adapter_config.json", &config)
}

/// The safetensors form: header length, JSON header padded to eight bytes, then the tensors.
fn safetensors(shapes: &BTreeMap<String, [u64; 2]>, dice: &mut Dice) -> Vec<u8> {
    let mut header = Map::new();
    let mut at = 0u64;
    for (name, shape) in shapes {
        let end = at + shape[0] * shape[1] * 2;
        let about = json!({ "dtype": "F16", "shape": shape, "data_offsets": [at, end] });
        header.insert(name.clone(), about);
        at = end;
    }
    let mut header = Value::Object(header).to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    for _ in 0..at / 2 {
        bytes.extend_from_slice(&small_half(dice.next()).to_le_bytes());
    }
    bytes
}

/// A half-precision number of the size that adapter weights have: sign and fraction at random,
/// exponents that stand for 2^-9 to 2^-6.
fn small_half(bits: u64) -> u16 {
    let bits = bits as u16;
    let exponent = 6 + ((bits >> 10) & 3);
    (bits & 0x83ff) | (exponent << 10)
}

fn write_json(root: &Path, path: &str, value: &Value) -> Result<(), SampleError> {
    write(root, path, format!("{value:#}\n").as_bytes())
}

fn write(root: &Path, path: &str, bytes: &[u8]) -> Result<(), SampleError> {
    let path = root.join(path);
    let failed = |cause| SampleError::File { path: path.clone(), cause };
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    fs::write(&path, bytes).map_err(failed)
}
