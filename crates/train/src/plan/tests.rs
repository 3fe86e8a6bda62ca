use std::fmt::Write as _;
use std::fs;

use serde_json::json;
use tunesmith_model::peft::LoraConfig;
use tunesmith_model::{AdapterLayout, ModelConfig};
use tunesmith_ops::Storage;

use super::*;

/// Sizes of Llama-3-8B and Llama-3.2-1B: vocabulary, width, inner width, layers, query heads, key heads, tied.
const LLAMA_8B: (usize, usize, usize, usize, usize, usize, bool) = (128_256, 4096, 14_336, 32, 32, 8, false);
const LLAMA_1B: (usize, usize, usize, usize, usize, usize, bool) = (128_256, 2048, 8192, 16, 32, 8, true);

fn footprint_of(
    sizes: (usize, usize, usize, usize, usize, usize, bool),
    lora: &LoraConfig,
    storage: Storage,
) -> Footprint {
    let (vocab, width, inner, layers, heads, kv_heads, tied) = sizes;
    let dir = tempfile::tempdir().unwrap();
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "vocab_size": vocab, "hidden_size": width,
        "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "tie_word_embeddings": tied,
    });
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let config = ModelConfig::from_dir(dir.path()).unwrap();
    let layout = AdapterLayout::new(&config, &lora.resolve(layers).unwrap());
    Footprint::new(&config, &layout, storage)
}

fn footprint(sizes: (usize, usize, usize, usize, usize, usize, bool)) -> Footprint {
    footprint_of(sizes, &LoraConfig::default(), Storage::DEVICE)
}

fn small() -> Footprint {
    footprint((500, 64, 160, 6, 4, 2, false))
}

/// A request with nothing special.
fn request<'a>(
    footprint: &'a Footprint,
    lengths: &'a Lengths,
    config: &'a TrainConfig,
    budget: Budget,
) -> Request<'a> {
    Request { footprint, lengths, config, dropout: false, divisor: 1, generation: 0, budget }
}

fn exactly(bytes: u64) -> Budget {
    Budget { bytes, reserve: 0 }
}

/// Rows as support tickets have them: most short, some long.
fn tickets(longest: usize) -> Lengths {
    (0..1000).map(|i| if i % 50 == 0 { longest } else { longest.min(100 + i * 37 % 500) }).collect()
}

/// `none x20, mlp x12` from the last layer on.
fn modes(keep: &[Keep]) -> String {
    let mut text = String::new();
    for (i, chunk) in keep.chunk_by(|a, b| a == b).rev().enumerate() {
        let _ = write!(text, "{}{} x{}", if i == 0 { "" } else { ", " }, word(chunk[0]), chunk.len());
    }
    text
}

#[test]
fn the_published_cards_have_these_plans() {
    let mut text = String::new();
    for (name, sizes, batch, longest) in [
        ("Llama-3-8B, 64 rows of 100 to 2,048 tokens a step", LLAMA_8B, 64, 2048),
        ("Llama-3-8B, 8 rows of 100 to 8,192 tokens a step", LLAMA_8B, 8, 8192),
        ("Llama-3.2-1B, 64 rows of 100 to 2,048 tokens a step", LLAMA_1B, 64, 2048),
    ] {
        let _ = writeln!(text, "{name}");
        let (footprint, lengths) = (footprint(sizes), tickets(longest));
        let config = TrainConfig { batch_size: batch, ..TrainConfig::default() };
        for gib in [8_u64, 12, 16, 24, 40, 48, 80, 141] {
            // As nvidia-smi names them: 24 GB are 24 GiB, and 141 are decimal.
            let bytes = if gib == 141 { 143_771 << 20 } else { gib << 30 };
            let budget = Budget::of_card(bytes, None);
            let line = match plan(&request(&footprint, &lengths, &config, budget)) {
                Ok(plan) => format!(
                    "{} tokens, {} a step, {}, {:+.0} % compute, {:.3} of the ideal time, {} of {}",
                    plan.cut.capacity,
                    plan.micro_batches,
                    modes(&plan.cut.keep),
                    100.0 * plan.extra_compute,
                    plan.slowdown,
                    rounded(plan.items.needed()),
                    rounded(budget.bytes),
                ),
                Err(shortage) => format!(
                    "does not fit: {} needed, {} there",
                    rounded(shortage.items.needed()),
                    rounded(shortage.available)
                ),
            };
            let _ = writeln!(text, "  {gib:>3} GB  {line}");
        }
    }
    let want = include_str!("cards.txt");
    assert!(text == want, "the plans have changed; if that is meant, cards.txt is now\n{text}");
}

#[test]
fn more_memory_is_never_slower_and_what_fits_at_the_tightest_has_a_plan() {
    let lora = LoraConfig { lora_dropout: 0.1, ..LoraConfig::default() };
    for storage in [Storage::DEVICE, Storage::CPU] {
        let footprint = footprint_of((500, 64, 160, 6, 4, 2, false), &lora, storage);
        for (batch, rows, longest) in [(8, 0, 300), (8, 2, 300), (64, 0, 900), (3, 0, 40)] {
            let (lengths, config) = (
                tickets(longest),
                TrainConfig { batch_size: batch, micro_batch_size: rows, ..TrainConfig::default() },
            );
            let at = |bytes| {
                let budget = exactly(bytes);
                plan(&Request { dropout: true, ..request(&footprint, &lengths, &config, budget) })
            };
            let least = at(0).unwrap_err();
            assert!(at(least.items.needed() - 1).is_err(), "the shortage says too much");
            let mut before = f64::INFINITY;
            for step in 0..200 {
                let bytes = least.items.needed() + (step << 15);
                let plan = at(bytes).unwrap_or_else(|e| panic!("{bytes}: {e}"));
                assert!(plan.items.needed() <= bytes, "more than there is");
                assert!(plan.slowdown <= before, "{bytes} bytes are slower");
                before = plan.slowdown;
                let keep = &plan.cut.keep;
                assert!(keep.is_sorted_by(|a, b| a >= b), "the last layers keep most: {keep:?}");
                let rows = plan.cut.capacity.next_multiple_of(storage.row_padding);
                let kept = footprint.training(rows, keep, true);
                assert_eq!(kept, plan.items.activations + plan.items.shared);
            }
            // With all the memory there is, nothing is computed again and no step is cut for its sake.
            let plan = at(u64::MAX / 4).unwrap();
            assert_eq!((plan.extra_compute, modes(&plan.cut.keep).as_str()), (0.0, "none x6"));
        }
    }
}

#[test]
fn the_choice_of_modes_is_the_best_there_is() {
    let footprint = small();
    let (tokens, keys) = (100, 50.0);
    let all =
        |n: usize| -> Vec<Keep> { (0..6).map(|layer| keep::KEEPS[n / 4_usize.pow(layer) % 4]).collect() };
    let every: Vec<(u64, f64)> = (0..4096)
        .map(|n| (footprint.training(tokens, &all(n), false), keep::again(&footprint, &all(n), keys)))
        .collect();
    let most = footprint.training(tokens, &[Keep::All; 6], false);
    for part in 0..60 {
        let room = most * part / 55;
        let best = every.iter().filter(|(bytes, _)| *bytes <= room).map(|(_, again)| *again);
        let best = best.min_by(f64::total_cmp);
        let chosen = keep::choose(&footprint, tokens, false, room, keys);
        match (best, chosen) {
            (Some(best), Some(chosen)) => {
                assert!((chosen.again - best).abs() <= 1e-9 * best, "{room}: {chosen:?}, best {best}");
                assert!(footprint.training(tokens, &chosen.keep, false) <= room);
            }
            (None, None) => {}
            (best, chosen) => panic!("{room} bytes: {chosen:?}, {best:?}"),
        }
    }
}

#[test]
fn layers_below_the_lowest_update_keep_least_and_cost_nothing() {
    let lora =
        LoraConfig { layers_to_transform: serde_json::from_str("[4, 5]").unwrap(), ..LoraConfig::default() };
    let footprint = footprint_of((500, 64, 160, 6, 4, 2, false), &lora, Storage::DEVICE);
    let room = footprint.training(100, &[Keep::All; 6], false) * 7 / 10;
    let chosen = keep::choose(&footprint, 100, false, room, 50.0).unwrap();
    assert_eq!((&chosen.keep[4..], chosen.again), (&[Keep::All; 2][..], 0.0));
    assert!(chosen.keep[..4].iter().all(|keep| *keep > Keep::All), "{chosen:?}");
}

#[test]
fn wishes_are_kept() {
    let (footprint, lengths) = (small(), tickets(300));
    let budget = exactly(1 << 30);
    let with = |config: TrainConfig| plan(&request(&footprint, &lengths, &config, budget)).unwrap();
    let free = with(TrainConfig::default());
    assert_eq!((free.cut.rows, free.cut.capacity, free.cut.tokens), (None, 2400, 2400), "the largest step");
    let rows = with(TrainConfig { micro_batch_size: 2, ..TrainConfig::default() });
    assert_eq!((rows.cut.rows, rows.cut.capacity, rows.micro_batches), (Some(2), 600, 4));
    assert!(rows.why.contains("micro-batches of 2 rows"), "{}", rows.why);
    for (recompute, name) in
        [(Recompute::Mlp, "mlp x6"), (Recompute::Min2, "min2 x6"), (Recompute::Min, "min x6")]
    {
        let plan = with(TrainConfig { recompute, ..TrainConfig::default() });
        assert_eq!(modes(&plan.cut.keep), name);
        assert!(plan.extra_compute > 0.1 && plan.extra_compute < 0.4, "{}", plan.extra_compute);
    }
    // What was told to be kept is kept, and fewer tokens are taken instead.
    let tight = exactly(free.items.needed() - free.items.activations / 2);
    let config = TrainConfig { recompute: Recompute::None, ..TrainConfig::default() };
    let plan = plan(&request(&footprint, &lengths, &config, tight)).unwrap();
    assert!(plan.cut.capacity < 2400 && plan.extra_compute == 0.0, "{plan:?}");
}

#[test]
fn memory_that_ran_out_makes_micro_batches_smaller() {
    let (footprint, lengths, config) = (small(), tickets(300), TrainConfig::default());
    let budget = exactly(1 << 30);
    let at =
        |divisor| plan(&Request { divisor, ..request(&footprint, &lengths, &config, budget) }).unwrap().cut;
    assert_eq!((at(1).capacity, at(2).capacity, at(4).capacity), (2400, 1200, 600));
    assert_eq!(at(64).capacity, 300, "never less than a row");
    let config = TrainConfig { micro_batch_size: 4, ..config };
    let at =
        |divisor| plan(&Request { divisor, ..request(&footprint, &lengths, &config, budget) }).unwrap().cut;
    assert_eq!((at(2).rows, at(2).capacity), (Some(2), 600));
    // Where there is room for one row only, a retry still has a plan: the least there is.
    let tight = plan(&request(&footprint, &lengths, &config, exactly(0))).unwrap_err().items.needed();
    let one = TrainConfig { micro_batch_size: 1, ..config };
    let least = plan(&Request { divisor: 8, ..request(&footprint, &lengths, &one, exactly(tight)) }).unwrap();
    assert!(least.items.needed() <= tight);
}

#[test]
fn on_the_cpu_nothing_changes_unless_a_limit_says_so() {
    let footprint = footprint_of((500, 64, 160, 6, 4, 2, false), &LoraConfig::default(), Storage::CPU);
    for (longest, divisor, rows, want) in [
        (300, 1, 0, (2048, 2048)),
        (300, 2, 0, (1024, 1024)),
        (5000, 1, 0, (2048, 5000)),
        (40, 1, 3, (2048, 120)),
    ] {
        let (lengths, config) =
            (tickets(longest), TrainConfig { micro_batch_size: rows, ..TrainConfig::default() });
        let asked = Request { divisor, ..request(&footprint, &lengths, &config, Budget::of_host(None)) };
        let plan = plan(&asked).unwrap();
        assert_eq!((plan.cut.tokens, plan.cut.capacity), want, "{longest} {divisor} {rows}");
        assert_eq!(plan.cut, MicroBatches::usual(&config, &lengths, 6, divisor));
    }
    let (lengths, config) = (tickets(300), TrainConfig::default());
    let at = |limit| plan(&request(&footprint, &lengths, &config, Budget::of_host(limit)));
    let all = at(None).unwrap();
    assert!(!Budget::of_host(None).is_bounded() && Budget::of_host(Some(1)).is_bounded());
    assert_eq!(at(Some(all.items.needed())).unwrap(), all);
    let less = at(Some(all.items.needed() * 2 / 3)).unwrap();
    assert!(less.cut != all.cut && less.items.needed() <= all.items.needed() * 2 / 3);
    assert!(at(Some(1 << 20)).unwrap_err().to_string().contains("1048576 bytes"));
}

#[test]
fn texts_that_are_generated_count_where_they_take_more_than_the_training() {
    let (footprint, lengths, config) = (small(), tickets(40), TrainConfig::default());
    let with =
        |generation, budget| plan(&Request { generation, ..request(&footprint, &lengths, &config, budget) });
    let none = with(0, exactly(1 << 30)).unwrap();
    assert_eq!(with(1000, exactly(1 << 30)).unwrap().items.needed(), none.items.needed());
    let cache = 1 << 28;
    assert!(with(cache, exactly(1 << 30)).unwrap().items.needed() > cache);
    let shortage = with(cache, exactly(none.items.needed())).unwrap_err();
    assert!(shortage.to_string().contains("the cache of the longest preview 256.0 MiB"), "{shortage}");
    assert!(shortage.advice().contains("preview.max_new_tokens"));
}

#[test]
fn a_shortage_says_what_is_needed_what_there_is_and_what_to_do() {
    let (footprint, lengths) = (footprint(LLAMA_8B), tickets(8192));
    let config = TrainConfig { recompute: Recompute::None, micro_batch_size: 4, ..TrainConfig::default() };
    let budget = Budget::of_card(24 << 30, None);
    let shortage = plan(&request(&footprint, &lengths, &config, budget)).unwrap_err();
    let said = shortage.to_string();
    for part in [format!("({} bytes) are needed", shortage.items.needed()), "can be had".to_owned()] {
        assert!(said.contains(&part), "{part:?} is not in {said}");
    }
    let advice = shortage.advice();
    for way in
        ["`train.recompute = \"auto\"`", "leave `train.micro_batch_size` out", "data.max_seq_length = "]
    {
        assert!(advice.contains(way), "{way:?} is not in {advice}");
    }
    // What it says would fit does.
    let fits: Lengths = [shortage.fits.unwrap()].into_iter().collect();
    assert!(plan(&request(&footprint, &fits, &config, budget)).is_ok());
    let budget = Budget::of_card(12 << 30, None);
    let shortage = plan(&request(&footprint, &lengths, &config, budget)).unwrap_err();
    assert_eq!(shortage.fits, None);
    assert!(shortage.advice().contains("a smaller base model"));
}
