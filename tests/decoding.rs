//! The key/value cache against the whole forward pass, and the edges of the attention window.

#![allow(
    clippy::unwrap_used,
    reason = "clippy.toml allows it inside test functions; helpers of tests are the same"
)]

mod common;

use common::tiny_model::{TARGETS, TinyModel, config, specs};
use common::{Engine, load, logits};
use tunesmith_testkit::spec::{Family, ModelSpec};
use tunesmith_testkit::tensors::assert_close;
use tunesmith_testkit::tiny::{self, Random};

/// Between the cache and the whole pass: the same sums in another order.
const LOGITS: f32 = 1e-4;

fn ids(spec: &ModelSpec, len: usize, seed: u64) -> Vec<u32> {
    let mut random = Random::new(seed);
    (0..len).map(|_| random.below(spec.vocab_size) as u32).collect()
}

/// With an adapter, so that its part of the cached pass is checked too.
fn engines() -> Vec<(TinyModel, Engine)> {
    let models = specs().into_iter().map(|spec| TinyModel::new(spec, 41));
    models
        .map(|m| {
            let engine = m.with_random_lora(&TARGETS, 3, 6.0).0;
            (m, engine)
        })
        .collect()
}

#[test]
fn token_by_token_equals_the_whole_text() {
    let mut worst = 0f32;
    for (model, mut engine) in engines() {
        let text = ids(&model.spec, 37, 1);
        let want = logits(&mut engine, &[&text]);
        let vocab = model.spec.vocab_size;
        let mut cache = engine.cache(text.len(), 1).unwrap();
        for (t, id) in text.iter().enumerate() {
            let got = engine.decode(&mut cache, &[*id]).unwrap();
            let name = format!("position {t}");
            worst = worst.max(assert_close(&name, &got, &want[t * vocab..][..vocab], LOGITS).unwrap());
            assert_eq!(cache.len(), t + 1);
        }
    }
    eprintln!("cache against whole pass: {worst:.0e}");
}

#[test]
fn a_prompt_in_pieces_equals_the_whole_prompt() {
    for (model, mut engine) in engines() {
        let text = ids(&model.spec, 41, 2);
        let vocab = model.spec.vocab_size;
        let want = logits(&mut engine, &[&text]);
        let want = &want[(text.len() - 1) * vocab..];
        for chunk in [1, 2, 3, 7, 40, 41, 1000] {
            let mut cache = engine.cache(text.len(), chunk).unwrap();
            let got = engine.decode(&mut cache, &text).unwrap();
            assert_close(&format!("pieces of {chunk}"), &got, want, LOGITS).unwrap();
        }
        // Pieces as calls, of every length.
        let mut cache = engine.cache(text.len() + 9, 16).unwrap();
        let mut at = 0;
        for n in [1, 5, 17, 2, 16] {
            let got = engine.decode(&mut cache, &text[at..at + n]).unwrap();
            at += n;
            if at == text.len() {
                assert_close("pieces as calls", &got, want, LOGITS).unwrap();
            }
        }
        assert_eq!(at, text.len());
    }
}

#[test]
fn a_truncated_cache_goes_on_as_if_nothing_had_followed() {
    for (model, mut engine) in engines() {
        let (text, other) = (ids(&model.spec, 20, 3), ids(&model.spec, 20, 4));
        let mut cache = engine.cache(40, 8).unwrap();
        engine.decode(&mut cache, &text).unwrap();
        engine.decode(&mut cache, &other[..15]).unwrap();
        cache.truncate(text.len());
        let got = engine.decode(&mut cache, &other[..6]).unwrap();
        let mut fresh = engine.cache(40, 8).unwrap();
        engine.decode(&mut fresh, &text).unwrap();
        assert_eq!(got, engine.decode(&mut fresh, &other[..6]).unwrap());
        cache.truncate(0);
        assert!(cache.is_empty());
        let again = engine.decode(&mut cache, &text).unwrap();
        let mut fresh = engine.cache(40, 8).unwrap();
        assert_eq!(again, engine.decode(&mut fresh, &text).unwrap());
    }
}

#[test]
fn a_cache_says_when_it_is_full_and_stays_usable() {
    let (model, mut engine) = engines().remove(0);
    let text = ids(&model.spec, 11, 5);
    let mut cache = engine.cache(10, 4).unwrap();
    let message = engine.decode(&mut cache, &text).unwrap_err().to_string();
    assert!(message.contains("11 tokens") && message.contains("10"), "{message}");
    let got = engine.decode(&mut cache, &text[..10]).unwrap();
    let mut fresh = engine.cache(10, 10).unwrap();
    assert_close("after the error", &got, &engine.decode(&mut fresh, &text[..10]).unwrap(), LOGITS).unwrap();
    engine.decode(&mut cache, &text[..1]).unwrap_err();
    engine.decode(&mut fresh, &[]).unwrap_err();
}

#[test]
fn merged_and_unmerged_adapters_decode_alike() {
    for (model, mut engine) in engines() {
        let text = ids(&model.spec, 12, 6);
        let plain = logits(&mut engine, &[&text]);
        engine.merge_adapter().unwrap();
        let merged = logits(&mut engine, &[&text]);
        assert_close("merged", &merged, &plain, LOGITS).unwrap();
        let base = logits(&mut load(model.path(), None), &[&text]);
        assert_close("base", &base, &plain, 100.0 * LOGITS).unwrap_err();
        // A merged adapter is gone: merging once more changes nothing.
        engine.merge_adapter().unwrap();
        assert_eq!(logits(&mut engine, &[&text]), merged);
    }
}

fn windowed(window: Option<usize>) -> ModelSpec {
    ModelSpec { family: Family::Mistral, sliding_window: window, num_hidden_layers: 1, ..ModelSpec::tiny() }
}

/// In a model of one block, position i hears of token j exactly when i - W < j <= i. Long enough to cross the tiles of
/// the attention kernel.
#[test]
fn the_window_ends_where_it_should() {
    let len = 150;
    for window in [1, 2, 3, 16, 31, 32, 33, 63, 64, 65, 127, 149, 150, 151, 4096] {
        let spec = windowed(Some(window));
        let model = TinyModel::new(spec, 8);
        let mut engine = load(model.path(), None);
        let text = ids(&model.spec, len, 7);
        let vocab = model.spec.vocab_size;
        let before = logits(&mut engine, &[&text]);
        for j in [0, 1, 40, 64] {
            let mut changed = text.clone();
            changed[j] = (changed[j] + 1) % vocab as u32;
            let after = logits(&mut engine, &[&changed]);
            for i in 0..len {
                let same = before[i * vocab..][..vocab] == after[i * vocab..][..vocab];
                let hears = j <= i && i < j + window;
                assert_eq!(same, !hears, "window {window}: position {i}, token {j}");
            }
        }
    }
}

/// A window that no text reaches is no window, whatever the kernel does with it.
#[test]
fn a_wide_window_equals_none() {
    let weights = tiny::weights(&windowed(None), 8).unwrap();
    let text = ids(&windowed(None), 70, 9);
    let of = |window| {
        let model = TinyModel::with_weights(windowed(window), weights.clone());
        let lora = tiny::lora(&model.spec, &TARGETS, 2, 4.0, 3).unwrap();
        logits(&mut model.engine(&config(&TARGETS, 2, 4.0), &lora), &[&text])
    };
    let none = of(None);
    for window in [70, 71, u32::MAX as usize] {
        assert_close(&format!("window {window}"), &of(Some(window)), &none, 1e-6).unwrap();
    }
    assert_close("window 69", &of(Some(69)), &none, 1e-6).unwrap_err();
}

#[test]
fn an_id_outside_the_vocabulary_is_an_error() {
    for (model, mut engine) in engines() {
        let vocab = model.spec.vocab_size as u32;
        for bad in [vocab, vocab + 1, u32::MAX] {
            let mut cache = engine.cache(8, 8).unwrap();
            let message = engine.decode(&mut cache, &[1, 2, bad]).unwrap_err().to_string();
            assert!(message.contains(&bad.to_string()) && message.contains(&vocab.to_string()), "{message}");
            assert_eq!(cache.len(), 0, "what was refused is not in the cache");
        }
        let mut cache = engine.cache(8, 8).unwrap();
        engine.decode(&mut cache, &[vocab - 1]).unwrap();
    }
}
