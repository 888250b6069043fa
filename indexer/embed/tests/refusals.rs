//! Models that are damaged, hostile or of another kind: each is refused by a sentence, and none ends the process.

mod support;

use std::path::Path;

use serde_json::{Value, json};
use sluice_embed::{Embedder, Kind, LoadOptions, PackedEmbedder};
use support::{Random, Toy, sentence};

fn load(root: &Path) -> Result<PackedEmbedder, String> {
    PackedEmbedder::load(root, &LoadOptions::default()).map_err(|e| e.to_string())
}

/// Changes a toy, and checks that the refusal holds all of these parts.
#[track_caller]
fn refused(change: impl FnOnce(&mut Toy), parts: &[&str]) {
    let mut toy = Toy::small();
    change(&mut toy);
    let sentence = load(toy.write()).expect_err("this is refused");
    for part in parts {
        assert!(sentence.contains(part), "{part:?} is not in: {sentence}");
    }
}

#[test]
fn a_toy_is_loaded() {
    let toy = Toy::small();
    let model = load(toy.write()).expect("nothing is wrong with it");
    let (text, ids) = sentence(&mut Random::new(1), 100, 100);
    let vectors = model.embed(&[&text], Kind::Query).expect("it embeds");
    assert_eq!(vectors.tokens, [ids.len() as u32], "the tokenizer's own truncation to 4 and padding to 64 are ignored");
}

#[test]
fn settings_that_are_not_carried_out() {
    refused(|t| t.config["model_type"] = json!("modernbert"), &["config.json", "`model_type`", "\"modernbert\""]);
    refused(|t| t.config["hidden_act"] = json!("relu"), &["config.json", "`hidden_act`", "\"relu\"", "gelu"]);
    refused(|t| t.config["position_embedding_type"] = json!("relative_key"), &["`position_embedding_type`"]);
    refused(|t| t.config["is_decoder"] = json!(true), &["`is_decoder` is true"]);
    refused(|t| t.config["hidden_size"] = json!(0), &["`hidden_size` is 0"]);
    refused(|t| t.config["hidden_size"] = json!(1u64 << 60), &["`hidden_size`"]);
    refused(|t| t.config["num_attention_heads"] = json!(5), &["`num_attention_heads` is 5", "32"]);
    refused(|t| t.config["layer_norm_eps"] = Value::Null, &["`layer_norm_eps` is null"]);
    refused(|t| t.config["quantization_config"] = json!({"bits": 4}), &["`quantization_config`"]);
    refused(|t| t.config["max_position_embeddings"] = json!(1), &["three tokens"]);
    refused(|t| t.sentence["query_length"] = json!(32), &["sentence_bert_config.json", "`query_length` is 32"]);
    refused(|t| t.sentence["novelty"] = json!(1), &["`novelty` is 1"]);
    refused(|t| t.sentence["max_seq_length"] = json!("many"), &["`max_seq_length` is \"many\""]);
    refused(
        |t| t.prompts = json!({"default_prompt_name": "query"}),
        &["config_sentence_transformers.json", "`default_prompt_name`"],
    );
    refused(|t| t.prompts = json!({"prompts": ["query: "]}), &["`prompts`"]);
}

#[test]
fn modules_and_poolings_that_are_not_carried_out() {
    refused(
        |t| t.modules[1]["type"] = json!("sentence_transformers.models.WeightedLayerPooling"),
        &["modules.json", "`type`", "WeightedLayerPooling"],
    );
    refused(|t| t.modules[2]["type"] = json!("somebody.custom.Normalizer"), &["somebody.custom.Normalizer"]);
    refused(|t| t.modules[1]["path"] = json!("../../etc"), &["`path` is \"../../etc\""]);
    refused(|t| t.modules[1]["path"] = json!("/etc"), &["`path` is \"/etc\""]);
    refused(|t| t.modules = json!([]), &["modules.json"]);
    refused(|t| t.modules = json!({"a": 1}), &["modules.json"]);
    refused(
        |t| t.pooling = json!({"pooling_mode_weightedmean_tokens": true}),
        &["1_Pooling/config.json", "`pooling_mode_weightedmean_tokens` is true"],
    );
    refused(|t| t.pooling = json!({"pooling_mode": ["mean", "cls"]}), &["2 ways of pooling"]);
    refused(|t| t.pooling = json!({}), &["0 ways of pooling"]);
    refused(
        |t| t.pooling = json!({"pooling_mode": "mean", "word_embedding_dimension": 31}),
        &["`word_embedding_dimension` is 31", "32"],
    );
    refused(|t| t.pooling = json!({"pooling_mode": "mean", "temperature": 2}), &["`temperature` is 2"]);
}

#[test]
fn tensors_that_are_not_what_the_settings_say() {
    const KEY: &str = "encoder.layer.1.attention.self.key.weight";
    refused(|t| drop(t.tensors.remove(KEY)), &["model.safetensors", KEY, "missing"]);
    refused(|t| t.tensors.get_mut(KEY).expect("it is there").0 = vec![16, 64], &[KEY, "[16, 64]", "[32, 32]"]);
    refused(|t| t.tensors.get_mut(KEY).expect("it is there").1[7] = f32::NAN, &[KEY, "NaN at place 7"]);
    refused(|t| t.tensors.get_mut(KEY).expect("it is there").1[9] = f32::INFINITY, &[KEY, "inf at place 9"]);
    refused(
        |t| drop(t.tensors.insert("encoder.layer.2.output.dense.bias".into(), (vec![1], vec![0.0]))),
        &["encoder.layer.2.output.dense.bias", "not known"],
    );
    refused(|t| t.config["vocab_size"] = json!(90), &["tokenizer.json", "99", "90"]);
    refused(|t| t.tokenizer = json!({"version": "1.0"}), &["tokenizer.json"]);
}

#[test]
fn files_that_are_missing() {
    for name in ["modules.json", "config.json", "1_Pooling/config.json", "tokenizer.json", "model.safetensors"] {
        let toy = Toy::small();
        std::fs::remove_file(toy.write().join(name)).expect("it was there");
        let sentence = load(toy.path()).expect_err("a file is missing");
        assert!(sentence.contains(name) && sentence.contains("is missing: "), "{sentence}");
    }
}

#[test]
fn settings_that_are_no_settings() {
    let toy = Toy::small();
    let root = toy.write();
    for text in ["", "[", "[1]", "nu", "\"a\"", "\u{0}"] {
        std::fs::write(root.join("config.json"), text).expect("it is written");
        let sentence = load(root).expect_err("this is no object");
        assert!(sentence.contains("config.json"), "{sentence}");
    }
    std::fs::write(root.join("config.json"), vec![b' '; (2 << 20) + 1]).expect("it is written");
    assert!(load(root).expect_err("too large").contains("more than the 1048576"));
    std::fs::write(root.join("config.json"), "[".repeat(1 << 19)).expect("it is written");
    assert!(load(root).expect_err("too deep").contains("config.json"));
}

/// The file of a toy's weights, taken apart: its header and the rest.
fn taken_apart(root: &Path) -> (Value, Vec<u8>) {
    let bytes = std::fs::read(root.join("model.safetensors")).expect("the weights are there");
    let header = u64::from_le_bytes(*bytes.first_chunk().expect("eight bytes")) as usize;
    (serde_json::from_slice(&bytes[8..8 + header]).expect("a header"), bytes[8 + header..].to_vec())
}

fn put_together(root: &Path, header: &Value, data: &[u8]) {
    let header = header.to_string();
    let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat();
    std::fs::write(root.join("model.safetensors"), bytes).expect("it is written");
}

#[test]
fn weights_that_are_cut_short() {
    let toy = Toy::small();
    let file = toy.write().join("model.safetensors");
    let whole = std::fs::read(&file).expect("the weights are there");
    for length in [0, 7, 8, 9, 100, 3000, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&file, &whole[..length]).expect("it is written");
        let sentence = load(toy.path()).expect_err("it is cut short");
        assert!(sentence.contains("model.safetensors: "), "{length}: {sentence}");
    }
    std::fs::write(&file, [&whole[..], b"x"].concat()).expect("it is written");
    assert!(load(toy.path()).expect_err("there is more").contains("the tensors end at"));
}

#[test]
fn headers_that_lie() {
    const NAME: &str = "embeddings.LayerNorm.bias";
    let toy = Toy::small();
    let root = toy.write();
    let (header, data) = taken_apart(root);
    let huge = u64::MAX;
    for (what, change) in [
        ("shape", json!({"dtype": "F32", "shape": [huge, huge], "data_offsets": [0, 128]})),
        ("shape", json!({"dtype": "F32", "shape": [1u64 << 40], "data_offsets": [0, 128]})),
        ("lie at", json!({"dtype": "F32", "shape": [32], "data_offsets": [0, huge]})),
        ("lie at", json!({"dtype": "F32", "shape": [32], "data_offsets": [128, 0]})),
        ("lie at", json!({"dtype": "F32", "shape": [31], "data_offsets": [4, 128]})),
        ("not known", json!({"dtype": "F4", "shape": [32], "data_offsets": [0, 128]})),
        ("I32", json!({"dtype": "I32", "shape": [32], "data_offsets": [0, 128]})),
        (NAME, json!({"dtype": "F32", "shape": [-1], "data_offsets": [0, 128]})),
        (NAME, json!([1, 2])),
    ] {
        let mut lying = header.clone();
        lying[NAME] = change;
        put_together(root, &lying, &data);
        let sentence = load(root).expect_err("it lies");
        assert!(sentence.contains("model.safetensors: ") && sentence.contains(what), "{what}: {sentence}");
    }
    for size in [1u64 << 24, 1 << 25, u64::MAX] {
        let bytes = [&size.to_le_bytes()[..], b"{}"].concat();
        std::fs::write(root.join("model.safetensors"), bytes).expect("it is written");
        assert!(load(root).expect_err("the header is not there").contains("the header is said to have"));
    }
}

#[test]
fn flipped_bits_never_end_the_process() {
    let toy = Toy::small();
    let root = toy.write();
    let mut random = Random::new(23);
    for name in ["config.json", "modules.json", "1_Pooling/config.json", "tokenizer.json", "model.safetensors"] {
        let whole = std::fs::read(root.join(name)).expect("it is there");
        for _ in 0..200 {
            let mut damaged = whole.clone();
            let bit = random.next() as usize % (whole.len().min(4000) * 8);
            damaged[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(root.join(name), &damaged).expect("it is written");
            if let Ok(model) = load(root) {
                let _ = model.embed(&["w7 w8"], Kind::Plain);
            }
        }
        std::fs::write(root.join(name), whole).expect("it is written");
    }
}

#[test]
fn what_version_6_writes() {
    let mut toy = Toy::small();
    for (at, kind) in [
        "base.modules.transformer.Transformer",
        "sentence_transformer.modules.pooling.Pooling",
        "base.modules.normalize.Normalize",
    ]
    .iter()
    .enumerate()
    {
        toy.modules[at]["type"] = json!(format!("sentence_transformers.{kind}"));
    }
    toy.pooling = json!({"embedding_dimension": 32, "pooling_mode": "mean", "include_prompt": true});
    toy.sentence = json!({
        "transformer_task": "feature-extraction", "module_output_name": "token_embeddings",
        "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    });
    toy.prompts = json!({
        "__version__": {"sentence_transformers": "6.2.0"}, "model_type": "SentenceTransformer", "similarity_fn_name": "cosine",
        "default_prompt_name": null, "prompts": {"query": "w50 w51 ", "document": ""},
    });
    std::fs::write(toy.path().join("tokenizer_config.json"), r#"{"model_max_length": 33}"#).expect("it is written");
    let new = load(toy.write()).expect("version 6 is read");
    assert_eq!(new.spec().max_tokens, 33);
    let old = Toy::small();
    let old = load(old.write()).expect("the old one is read");
    let vector = |model: &PackedEmbedder, text, kind| model.embed(&[text], kind).expect("it embeds").data;
    assert_eq!(vector(&new, "w9 w10", Kind::Passage), vector(&old, "w9 w10", Kind::Plain));
    assert_eq!(vector(&new, "w9 w10", Kind::Query), vector(&old, "w50 w51 w9 w10", Kind::Plain));
}

#[test]
fn a_prompt_that_is_not_pooled() {
    let mut toy = Toy::small();
    toy.prompts = json!({"prompts": {"query": "w50 w51 "}});
    toy.modules.as_array_mut().expect("a list").pop();
    let vector =
        |toy: &Toy| load(toy.write()).expect("it loads").embed(&["w9 w10"], Kind::Query).expect("it embeds").data;
    let with = vector(&toy);
    toy.pooling["include_prompt"] = json!(false);
    let without = vector(&toy);
    assert_ne!(with, without);
    // Five tokens and a mean over the last three: the rows of `<s> w50 w51` are what is left out.
    toy.pooling = json!({"pooling_mode": "lasttoken", "include_prompt": false});
    let last = vector(&toy);
    toy.pooling = json!({"pooling_mode": "cls", "include_prompt": false});
    let first = vector(&toy);
    assert!(first != last && first != without, "cls takes the first row after the prompt");
}

#[test]
fn a_dense_module() {
    let mut toy = Toy::small();
    let width = 20;
    let plain = Toy::small();
    toy.modules
        .as_array_mut()
        .expect("a list")
        .insert(2, json!({"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}));
    let folder = toy.path().join("2_Dense");
    std::fs::create_dir(&folder).expect("a folder");
    let settings = json!({"in_features": 32, "out_features": width, "bias": true, "activation_function": "torch.nn.modules.activation.Tanh"});
    std::fs::write(folder.join("config.json"), settings.to_string()).expect("it is written");
    let mut random = Random::new(9);
    let (weight, bias) = (random.floats(32 * width, 1.0), random.floats(width, 1.0));
    let tensors = [("linear.weight", vec![width, 32], weight.clone()), ("linear.bias", vec![width], bias.clone())];
    let tensors = tensors.map(|(name, shape, values)| (name.to_owned(), (shape, values))).into();
    support::write_tensors(&folder.join("model.safetensors"), &tensors);
    let model = load(toy.write()).expect("it loads");
    assert_eq!(model.spec().dim, width);
    assert!(model.spec().files.contains_key("2_Dense/model.safetensors"));
    let raw = sluice_embed::Options { normalize: Some(false), ..Default::default() };
    let inner = load(plain.write()).expect("it loads").embed_with(&["w5"], Kind::Plain, &raw).expect("it embeds").data;
    let expected = weight
        .chunks_exact(32)
        .zip(bias)
        .map(|(row, b)| (row.iter().zip(&inner).map(|(w, x)| w * x).sum::<f32>() + b).tanh());
    let found = model.embed_with(&["w5"], Kind::Plain, &raw).expect("it embeds").data;
    assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5));
}
