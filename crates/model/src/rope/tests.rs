use super::*;

/// Expected values were computed apart in double precision from the formulas, with only 2i/d, theta^x and 1/x rounded
/// to f32 as PyTorch rounds them.
fn assert_close(found: &[f32], expected: &[(usize, f64)]) {
    for &(i, value) in expected {
        let error = (f64::from(found[i]) - value).abs() / value;
        assert!(error < 1e-6, "frequency {i}: {} instead of {value}", found[i]);
    }
}

#[test]
fn plain_and_linear() {
    let plain = Rope::default().inverse_frequencies(8);
    assert_eq!(plain.len(), 4);
    assert_close(
        &plain,
        &[(0, 1.0), (1, 0.100_000_001_490_116), (2, 0.009_999_999_776_482_6), (3, 0.001_000_000_047_497)],
    );
    let linear = Rope { theta: 1e4, scaling: RopeScaling::Linear { factor: 4.0 } }.inverse_frequencies(8);
    for (scaled, plain) in linear.iter().zip(&plain) {
        assert_eq!(scaled.to_bits(), (plain / 4.0).to_bits());
    }
}

#[test]
fn llama_3_2_with_head_size_64() {
    let scaling = RopeScaling::Llama3 {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    let found = Rope { theta: 500_000.0, scaling }.inverse_frequencies(64);
    assert_eq!(found.len(), 32);
    // 0 to 14 are kept, 15 to 17 blended, 18 to 31 divided by 32.
    assert_close(
        &found,
        &[
            (0, 1.0),
            (5, 0.128_687_381_744_384_77),
            (14, 0.003_211_446_106_433_868_4),
            (15, 0.001_290_548_027_964_718_7),
            (16, 0.000_429_556_691_894_365_85),
            (17, 9.708_286_858_481_353e-5),
            (18, 1.946_163_865_795_824_7e-5),
            (25, 1.102_883_629_755_524_5e-6),
            (31, 9.418_306_490_260_875e-8),
        ],
    );
}

#[test]
fn llama_3_1_with_head_size_128() {
    let scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    let found = Rope { theta: 500_000.0, scaling }.inverse_frequencies(128);
    assert_close(
        &found,
        &[
            (28, 0.003_211_446_106_433_868_4),
            (29, 0.002_166_570_451_785_201_3),
            (31, 0.000_856_751_463_908_073_2),
            (33, 0.000_312_693_685_457_695_3),
            (36, 7.784_655_463_183_299e-5),
            (63, 3.068_925_877_869_333e-7),
        ],
    );
}
