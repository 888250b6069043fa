//! Models for the tests: the real one that `make setup` installs, and small ones with random weights.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// The folder of all-MiniLM-L6-v2.
pub fn minilm() -> PathBuf {
    let folder = std::env::var_os("SLUICE_MODEL").map(PathBuf::from).unwrap_or_else(|| {
        panic!(
            "SLUICE_MODEL is not set: run `make test`, or `make setup` and set it to the model's folder (see Makefile)"
        )
    });
    assert!(folder.join("modules.json").is_file(), "{} holds no model: run `make setup`", folder.display());
    folder
}

/// The texts of `reference/texts.json`.
pub fn texts() -> Vec<String> {
    serde_json::from_str(include_str!("../reference/texts.json")).expect("texts.json is a list of texts")
}

/// The cosine of two vectors.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// Numbers that are the same in every run: about normal, with this deviation.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    pub fn floats(&mut self, count: usize, deviation: f32) -> Vec<f32> {
        let mut one = || {
            let bits = self.next();
            let sum: u32 = (0..4).map(|i| (bits >> (i * 16)) as u32 & 0xffff).sum();
            (sum as f32 / 65536.0 - 2.0) * 1.732 * deviation
        };
        (0..count).map(|_| one()).collect()
    }
}

/// Tensors by name, with their shapes.
pub type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Writes a safetensors file of floats.
pub fn write_tensors(to: &Path, tensors: &Tensors) {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, (shape, values)) in tensors {
        let from = data.len();
        data.extend(values.iter().flat_map(|x| x.to_le_bytes()));
        header.insert(name.clone(), json!({"dtype": "F32", "shape": shape, "data_offsets": [from, data.len()]}));
    }
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    std::fs::write(to, file).expect("the tensors are written");
}

/// A small model in a folder of its own. Its settings and tensors may be changed before it is written.
pub struct Toy {
    pub config: Value,
    pub modules: Value,
    pub pooling: Value,
    pub sentence: Value,
    pub prompts: Value,
    pub tokenizer: Value,
    pub tensors: Tensors,
    folder: tempfile::TempDir,
}

impl Toy {
    /// Random weights; `words` tokens named `w4`, `w5` and so on after the four special ones.
    pub fn new(kind: &str, hidden: usize, heads: usize, wide: usize, layers: usize, words: usize) -> Self {
        let roberta = kind == "xlm-roberta";
        let positions = if roberta { 514 } else { 512 };
        let config = json!({
            "model_type": kind, "hidden_act": "gelu", "hidden_size": hidden, "num_attention_heads": heads,
            "intermediate_size": wide, "num_hidden_layers": layers, "vocab_size": words,
            "max_position_embeddings": positions, "type_vocab_size": if roberta { 1 } else { 2 },
            "layer_norm_eps": 1e-5, "pad_token_id": if roberta { 1 } else { 0 },
        });
        let modules = json!([
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
        ]);
        Self {
            tensors: weights(hidden, wide, layers, words, positions, if roberta { 1 } else { 2 }),
            config,
            modules,
            pooling: json!({"word_embedding_dimension": hidden, "pooling_mode_mean_tokens": true}),
            sentence: json!({"max_seq_length": 512, "do_lower_case": false}),
            prompts: json!({}),
            tokenizer: tokenizer(words),
            folder: tempfile::tempdir().expect("a folder"),
        }
    }

    pub fn small() -> Self {
        Self::new("bert", 32, 4, 64, 2, 100)
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes all files and names the folder.
    pub fn write(&self) -> &Path {
        let root = self.path();
        std::fs::create_dir_all(root.join("1_Pooling")).expect("a folder");
        for (name, value) in [
            ("config.json", &self.config),
            ("modules.json", &self.modules),
            ("1_Pooling/config.json", &self.pooling),
            ("sentence_bert_config.json", &self.sentence),
            ("config_sentence_transformers.json", &self.prompts),
            ("tokenizer.json", &self.tokenizer),
        ] {
            std::fs::write(root.join(name), value.to_string()).expect("settings are written");
        }
        write_tensors(&root.join("model.safetensors"), &self.tensors);
        root
    }
}

/// A text of `count` words of the toy's vocabulary, and the numbers that its tokenizer makes of it.
pub fn sentence(random: &mut Random, count: usize, words: usize) -> (String, Vec<u32>) {
    let ids: Vec<u32> = (0..count).map(|_| 4 + (random.next() % (words as u64 - 4)) as u32).collect();
    let text: Vec<String> = ids.iter().map(|id| format!("w{id}")).collect();
    (text.join(" "), [&[0], &ids[..], &[2]].concat())
}

fn weights(hidden: usize, wide: usize, layers: usize, words: usize, positions: usize, types: usize) -> Tensors {
    let mut random = Random::new(5);
    let mut all = Tensors::new();
    let mut put = |name: String, shape: &[usize], mean: f32, deviation: f32| {
        let values = random.floats(shape.iter().product(), deviation).into_iter().map(|x| x + mean);
        all.insert(name, (shape.to_vec(), values.collect()));
    };
    for (name, rows) in [("word", words), ("position", positions), ("token_type", types)] {
        put(format!("embeddings.{name}_embeddings.weight"), &[rows, hidden], 0.0, 0.5);
    }
    let mut norms = vec!["embeddings".to_owned()];
    for at in 0..layers {
        let layer = format!("encoder.layer.{at}");
        for (name, outputs, inputs) in [
            ("attention.self.query", hidden, hidden),
            ("attention.self.key", hidden, hidden),
            ("attention.self.value", hidden, hidden),
            ("attention.output.dense", hidden, hidden),
            ("intermediate.dense", wide, hidden),
            ("output.dense", hidden, wide),
        ] {
            put(format!("{layer}.{name}.weight"), &[outputs, inputs], 0.0, 1.5 / (inputs as f32).sqrt());
            put(format!("{layer}.{name}.bias"), &[outputs], 0.0, 0.1);
        }
        norms.extend([format!("{layer}.attention.output"), format!("{layer}.output")]);
    }
    for name in norms {
        put(format!("{name}.LayerNorm.weight"), &[hidden], 1.0, 0.1);
        put(format!("{name}.LayerNorm.bias"), &[hidden], 0.0, 0.1);
    }
    all
}

/// Words between spaces; `<s>` before and `</s>` after, like XLM-RoBERTa's.
fn tokenizer(words: usize) -> Value {
    let special = ["<s>", "<pad>", "</s>", "<unk>"];
    let mut vocabulary = serde_json::Map::new();
    for (id, name) in special.iter().enumerate() {
        vocabulary.insert((*name).to_owned(), json!(id));
    }
    for id in special.len()..words {
        vocabulary.insert(format!("w{id}"), json!(id));
    }
    let added: Vec<Value> = special
        .iter()
        .enumerate()
        .map(|(id, name)| {
            json!({"id": id, "content": name, "special": true, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false})
        })
        .collect();
    let (open, close) =
        (json!({"SpecialToken": {"id": "<s>", "type_id": 0}}), json!({"SpecialToken": {"id": "</s>", "type_id": 0}}));
    let a = json!({"Sequence": {"id": "A", "type_id": 0}});
    let b = json!({"Sequence": {"id": "B", "type_id": 0}});
    json!({
        "version": "1.0", "added_tokens": added, "normalizer": null,
        // Wrong on purpose: both are to be ignored.
        "truncation": {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 1,
                    "pad_type_id": 0, "pad_token": "<pad>"},
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "decoder": null,
        "post_processor": {"type": "TemplateProcessing", "single": [open, a, close],
            "pair": [open, a, close, close, b, close],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]},
                               "</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}}},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    })
}
