//! Random weights, encoded here and by candle-transformers: the geometry of multilingual-e5-large with fewer layers and
//! words, and one that is no multiple of anything.

mod support;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{bert, xlm_roberta};
use sluice_embed::{Embedder, Family, Kind, LoadOptions, Options, PackedEmbedder, Precision};
use support::{Random, Toy, cosine, sentence};

fn variables(toy: &Toy) -> VarBuilder<'static> {
    let tensors = toy.tensors.iter().map(|(name, (shape, values))| {
        let tensor = Tensor::from_vec(values.clone(), shape.clone(), &Device::Cpu).expect("a tensor");
        (name.clone(), tensor)
    });
    VarBuilder::from_tensors(tensors.collect(), DType::F32, &Device::Cpu)
}

/// The mean of a text's rows, made of length one, by candle.
fn mean(rows: &Tensor) -> Vec<f32> {
    let mean = rows.squeeze(0).and_then(|rows| rows.mean(0)).and_then(|mean| mean.to_vec1::<f32>()).expect("rows");
    let length = mean.iter().map(|x| x * x).sum::<f32>().sqrt();
    mean.into_iter().map(|x| x / length).collect()
}

/// Compares texts of these lengths with what `oracle` makes of their tokens.
fn compare(toy: &Toy, words: usize, lengths: &[usize], oracle: impl Fn(&Tensor, &Tensor) -> Tensor) {
    let mut random = Random::new(11);
    let sentences: Vec<_> = lengths.iter().map(|&n| sentence(&mut random, n, words)).collect();
    let texts: Vec<&str> = sentences.iter().map(|(text, _)| text.as_str()).collect();
    for (precision, least) in [(Precision::F32, 0.999_999), (Precision::Bf16, 0.999)] {
        let options = LoadOptions { precision, ..LoadOptions::default() };
        let model = PackedEmbedder::load(toy.path(), &options).expect("the toy loads");
        let found = model.embed(&texts, Kind::Plain).expect("it embeds");
        for ((_, ids), vector) in sentences.iter().zip(found.rows()) {
            let ids = Tensor::new(&ids[..], &Device::Cpu).and_then(|t| t.unsqueeze(0)).expect("tokens");
            let expected = mean(&oracle(&ids, &ids.zeros_like().expect("types")));
            let cosine = cosine(vector, &expected);
            assert!(cosine >= least, "{precision:?}: {cosine} for {} tokens", ids.elem_count());
        }
    }
}

#[test]
fn the_geometry_of_e5_large() {
    let words = 400;
    let toy = Toy::new("xlm-roberta", 1024, 16, 4096, 2, words);
    toy.write();
    let config = xlm_roberta::Config {
        hidden_size: 1024,
        layer_norm_eps: 1e-5,
        attention_probs_dropout_prob: 0.0,
        hidden_dropout_prob: 0.0,
        num_attention_heads: 16,
        position_embedding_type: "absolute".into(),
        intermediate_size: 4096,
        hidden_act: candle_nn::Activation::Gelu,
        num_hidden_layers: 2,
        vocab_size: words,
        max_position_embeddings: 514,
        type_vocab_size: 1,
        pad_token_id: 1,
    };
    let oracle = xlm_roberta::XLMRobertaModel::new(&config, variables(&toy)).expect("the oracle loads");
    compare(&toy, words, &[1, 3, 17, 100, 510], |ids, types| {
        let mask = ids.ones_like().expect("a mask");
        oracle.forward(ids, &mask, types, None, None, None).expect("the oracle encodes")
    });
    let spec = PackedEmbedder::load(toy.path(), &LoadOptions::default()).expect("the toy loads").spec().clone();
    assert_eq!((spec.family, spec.dim, spec.max_tokens), (Family::XlmRoberta, 1024, 512));
}

#[test]
fn a_geometry_that_fits_no_register() {
    let words = 77;
    let toy = Toy::new("bert", 60, 3, 101, 3, words);
    toy.write();
    let mut config: bert::Config = serde_json::from_value({
        let mut config = toy.config.clone();
        config["hidden_dropout_prob"] = 0.0.into();
        config["initializer_range"] = 0.02.into();
        config
    })
    .expect("the oracle reads the settings");
    config.hidden_act = bert::HiddenAct::Gelu;
    let oracle = bert::BertModel::load(variables(&toy), &config).expect("the oracle loads");
    let lengths = [1, 2, 4, 5, 6, 7, 14, 15, 16, 62, 63, 100, 200];
    compare(&toy, words, &lengths, |ids, types| oracle.forward(ids, types, None).expect("the oracle encodes"));
}

#[test]
fn ways_of_pooling() {
    let mut toy = Toy::small();
    toy.modules.as_array_mut().expect("a list").pop();
    let (text, _) = sentence(&mut Random::new(3), 9, 100);
    let mut vector = |key: &str| {
        toy.pooling = serde_json::json!({ key: true });
        let model = PackedEmbedder::load(toy.write(), &LoadOptions::default()).expect("the toy loads");
        assert!(!model.spec().normalized);
        model.embed_with(&[&text], Kind::Plain, &Options::default()).expect("it embeds").data
    };
    let all = [
        vector("pooling_mode_mean_tokens"),
        vector("pooling_mode_cls_token"),
        vector("pooling_mode_max_tokens"),
        vector("pooling_mode_lasttoken"),
    ];
    for (i, a) in all.iter().enumerate() {
        for b in &all[..i] {
            assert_ne!(a, b, "each way gives another vector");
        }
    }
    let largest = &all[2];
    for other in [&all[0], &all[1], &all[3]] {
        assert!(other.iter().zip(largest).all(|(x, top)| x <= &(top + 1e-6)), "nothing is above the maximum");
    }
}
