//! What a model is: the facts that decide its vectors, and the hashes of the files that they come from.
//!
//! Invariant: two models with the same `id` were loaded from the same bytes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a text is to the search that its vector is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// What is looked for: gets the model's `query` prompt.
    Query,
    /// What is found: gets the model's `document`, `passage` or `corpus` prompt, the first that it has.
    Passage,
    /// Neither: gets the model's default prompt, which most models do not have.
    Plain,
}

/// The architecture of an encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    Bert,
    XlmRoberta,
}

/// How the vectors of a text's tokens become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pooling {
    Mean,
    Cls,
    Max,
    LastToken,
}

/// What the matrices are multiplied in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// 32 bits throughout: what the model was published for.
    F32,
    /// Weights and activations rounded to bfloat16 before each product with a weight, sums in 32 bits.
    Bf16,
}

/// The prompts of a model: what is put before a text.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prompts {
    pub by_name: BTreeMap<String, String>,
    pub default: Option<String>,
}

impl Prompts {
    /// The prompt for a kind of text, empty where the model has none.
    pub fn of(&self, kind: Kind) -> &str {
        let names: &[&str] = match kind {
            Kind::Query => &["query"],
            Kind::Passage => &["document", "passage", "corpus"],
            Kind::Plain => &[],
        };
        let named = names.iter().find_map(|name| self.by_name.get(*name));
        named.or_else(|| self.by_name.get(self.default.as_ref()?)).map_or("", String::as_str)
    }
}

/// What a loaded model is. `dim` numbers a vector; `max_tokens` include the special tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelSpec {
    /// BLAKE3 of the lines `hash  name` of `files`, in hexadecimal.
    pub id: String,
    pub family: Family,
    pub dim: usize,
    pub max_tokens: usize,
    pub layers: usize,
    pub hidden: usize,
    pub heads: usize,
    pub pooling: Pooling,
    /// Whether the model's last module makes each vector's length one.
    pub normalized: bool,
    pub prompts: Prompts,
    pub precision: Precision,
    /// BLAKE3 of each file that was read, in hexadecimal, by its path in the model's folder.
    pub files: BTreeMap<String, String>,
}

impl ModelSpec {
    /// The name of a set of files.
    pub(crate) fn id_of(files: &BTreeMap<String, String>) -> String {
        let mut hasher = blake3::Hasher::new();
        for (name, hash) in files {
            hasher.update(hash.as_bytes()).update(b"  ").update(name.as_bytes()).update(b"\n");
        }
        hasher.finalize().to_hex().to_string()
    }
}
