//! NF4 on the CPU and as a kernel, bit for bit against each other and against what bitsandbytes has written.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};
use tunesmith_emulator::check::values;
use tunesmith_emulator::{backends, skipped};
use tunesmith_kernels::cpu::{NF4_BLOCK, NF4_CODE, Nf4, Nf4Scales, nf4_dynamic_map};
use tunesmith_kernels::gpu::nf4::{self, nf4_dequantize};
use tunesmith_kernels::gpu::{Driver, Error, Slice, View, ViewMut};

/// The recorded tensors, where there are any.
fn reference() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folder =
        std::env::var_os("TUNESMITH_REFERENCE").map_or_else(|| "../shared/reference".into(), PathBuf::from);
    let folder = root.join(folder);
    if folder.is_dir() {
        return Some(folder);
    }
    skipped(&format!("no recorded NF4 weights at {}", folder.display()));
    None
}

fn floats(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let tensor = file.tensor(name).unwrap();
    let pairs = tensor.data().chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    match tensor.dtype() {
        Dtype::F32 => {
            tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
        }
        Dtype::BF16 => pairs.map(|b| bf16::from_bits(b).to_f32()).collect(),
        Dtype::F16 => pairs.map(|b| f16::from_bits(b).to_f32()).collect(),
        other => panic!("{name} is {other:?}"),
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// What bitsandbytes has stored under `name`.
fn stored(file: &SafeTensors<'_>, name: &str, double: bool, map: &[f32]) -> Nf4 {
    let bytes = |part: &str| file.tensor(&format!("{name}.{part}")).unwrap().data().to_vec();
    let part = |part: &str| floats(file, &format!("{name}.{part}"));
    let scales = if double {
        Nf4Scales::Double {
            codes: bytes("absmax_u8"),
            map: map.to_vec(),
            nested_absmax: part("nested_absmax"),
            offset: part("absmax_offset")[0],
        }
    } else {
        Nf4Scales::Plain { absmax: part("absmax") }
    };
    Nf4 { packed: bytes("packed"), scales }
}

fn same_bits(name: &str, ours: &Nf4, theirs: &Nf4) {
    assert_eq!(ours, theirs, "{name}");
    match (&ours.scales, &theirs.scales) {
        (Nf4Scales::Plain { absmax: a }, Nf4Scales::Plain { absmax: b }) => assert_eq!(bits(a), bits(b)),
        (
            Nf4Scales::Double { nested_absmax: a, offset: c, .. },
            Nf4Scales::Double { nested_absmax: b, offset: d, .. },
        ) => {
            assert_eq!((bits(a), c.to_bits()), (bits(b), d.to_bits()));
        }
        _ => unreachable!("the comparison above"),
    }
}

/// The kernel's output, `[rows, cols]`; checks that it left alone what lies between the rows.
fn on_device<D: Driver>(d: &D, weight: &Nf4, rows: usize, cols: usize, ld: usize, at: usize) -> Vec<bf16> {
    const OUTSIDE: bf16 = bf16::from_bits(0x1234);
    let len = at + (rows - 1) * ld + cols + 3;
    let mut out = Slice::from_host(d, &vec![OUTSIDE; len]).unwrap();
    let packed = Slice::from_host(d, &weight.packed).unwrap();
    let view = ViewMut { at, ..ViewMut::new(&mut out, rows, cols, ld) };
    match &weight.scales {
        Nf4Scales::Plain { absmax } => {
            let absmax = Slice::from_host(d, absmax).unwrap();
            let weight = nf4::Nf4 { packed: &packed, scales: nf4::Nf4Scales::Plain(&absmax) };
            nf4_dequantize(d, &weight, view).unwrap();
        }
        Nf4Scales::Double { codes, map, nested_absmax, offset } => {
            let codes = Slice::from_host(d, codes).unwrap();
            let map = Slice::from_host(d, map).unwrap();
            let nested = Slice::from_host(d, nested_absmax).unwrap();
            let scales =
                nf4::Nf4Scales::Double { codes: &codes, map: &map, nested_absmax: &nested, offset: *offset };
            nf4_dequantize(d, &nf4::Nf4 { packed: &packed, scales }, view).unwrap();
        }
    }
    let all = out.to_host(d).unwrap();
    let inside = |i: usize| i >= at && (i - at) % ld < cols && (i - at) / ld < rows;
    let outside = all.iter().enumerate().filter(|(i, _)| !inside(*i));
    assert!(outside.map(|(_, v)| v.to_bits()).all(|v| v == OUTSIDE.to_bits()), "wrote between the rows");
    all.iter().enumerate().filter(|(i, _)| inside(*i)).map(|(_, v)| *v).collect()
}

/// The kernel against the CPU, for one matrix.
fn agrees<D: Driver>(d: &D, weight: &Nf4, rows: usize, cols: usize, ld: usize, at: usize) {
    let mut right = vec![f32::NAN; rows * cols];
    weight.dequantize(rows, cols, &mut right, cols);
    let right: Vec<u16> = right.iter().map(|&v| bf16::from_f32(v).to_bits()).collect();
    let out: Vec<u16> = on_device(d, weight, rows, cols, ld, at).iter().map(|v| v.to_bits()).collect();
    assert_eq!(out, right, "[{rows}, {cols}], ld {ld}, at {at}");
}

#[test]
fn quantises_and_dequantises_as_recorded() {
    let Some(folder) = reference() else { return };
    let bytes = fs::read(folder.join("nf4/nf4_vectors.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let map = nf4_dynamic_map();
    assert_eq!(bits(&map), bits(&floats(&file, "nested_code")));
    assert_eq!(bits(&NF4_CODE), bits(&floats(&file, "code")));

    let mut count = 0;
    for name in file.names().iter().filter_map(|name| name.strip_suffix(".input")) {
        let input = floats(&file, &format!("{name}.input"));
        for (tag, double) in [("nf4", false), ("nf4_double", true)] {
            let name = format!("{name}.{tag}");
            let theirs = stored(&file, &name, double, &map);
            same_bits(&name, &Nf4::quantize(&input, double), &theirs);

            let dtype = file.tensor(&format!("{name}.dequantized")).unwrap().dtype();
            let mut ours = vec![f32::NAN; input.len()];
            theirs.dequantize(1, input.len(), &mut ours, input.len());
            ours.iter_mut().for_each(|v| match dtype {
                Dtype::BF16 => *v = bf16::from_f32(*v).to_f32(),
                Dtype::F16 => *v = f16::from_f32(*v).to_f32(),
                _ => {}
            });
            assert_eq!(bits(&ours), bits(&floats(&file, &format!("{name}.dequantized"))), "{name}");
            count += 1;
        }
    }
    assert_eq!(count, 24);
}

#[test]
fn whole_models_are_stored_as_recorded_and_made_again() {
    let Some(folder) = reference() else { return };
    let map = nf4_dynamic_map();
    let mut weights = Vec::new();
    for case in ["tiny-llama-tied", "tiny-llama-untied", "tiny-mistral-swa"] {
        let case = folder.join("cases").join(case);
        let model = fs::read(case.join("model/model.safetensors")).unwrap();
        let model = SafeTensors::deserialize(&model).unwrap();
        for (tag, double) in [("qlora_nf4", false), ("qlora_nf4_double", true)] {
            let bytes = fs::read(case.join(tag).join("nf4_weights.safetensors")).unwrap();
            let file = SafeTensors::deserialize(&bytes).unwrap();
            for name in file.names().iter().filter_map(|name| name.strip_suffix(".packed")) {
                let theirs = stored(&file, name, double, &map);
                same_bits(name, &Nf4::quantize(&floats(&model, name), double), &theirs);
                let shape = model.tensor(name).unwrap().shape().to_vec();
                weights.push((theirs, shape[0], shape[1]));
            }
        }
    }
    assert_eq!(weights.len(), 2 * (14 + 21 + 14));
    backends!(|d| {
        for (weight, rows, cols) in &weights {
            agrees(&d, weight, *rows, *cols, cols + 64, 0);
        }
    });
}

#[test]
fn the_kernel_gives_the_recorded_weights() {
    let Some(folder) = reference() else { return };
    let bytes = fs::read(folder.join("nf4/nf4_vectors.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let map = nf4_dynamic_map();
    backends!(|d| {
        for name in file.names().iter().filter_map(|name| name.strip_suffix(".input")) {
            let shape = file.tensor(&format!("{name}.input")).unwrap().shape().to_vec();
            let (rows, cols) = (shape[0], shape[1]);
            for (tag, double) in [("nf4", false), ("nf4_double", true)] {
                let name = format!("{name}.{tag}");
                // Recorded as f16, the values are not what bf16 rounds.
                if file.tensor(&format!("{name}.dequantized")).unwrap().dtype() == Dtype::F16 {
                    continue;
                }
                let right: Vec<u16> = floats(&file, &format!("{name}.dequantized"))
                    .iter()
                    .map(|&v| bf16::from_f32(v).to_bits())
                    .collect();
                let out = on_device(&d, &stored(&file, &name, double, &map), rows, cols, cols + 64, 0);
                assert_eq!(out.iter().map(|v| v.to_bits()).collect::<Vec<_>>(), right, "{name}");
            }
        }
    });
}

#[test]
fn the_kernel_agrees_with_the_cpu_on_every_shape() {
    backends!(|d| {
        for rows in [1, 7, 64, 65, 127] {
            for (cols, ld, at) in [(8, 8, 0), (72, 88, 8), (64, 67, 0), (24, 32, 5), (13, 13, 0), (1, 2, 1)] {
                let weight = values(rows as u64 * 1000 + cols as u64, rows * cols);
                for double in [false, true] {
                    agrees(&d, &Nf4::quantize(&weight, double), rows, cols, ld, at);
                }
            }
        }
        // More than one block of 8192 values, and more than 256 blocks of 64.
        agrees(&d, &Nf4::quantize(&values(5, 40 * 520), true), 40, 520, 584, 0);
    });
}

/// Rounding to bf16 hides most of what a wrong last bit would do. These magnitudes are such that it does not.
#[test]
fn fractions_are_right_to_the_last_bit() {
    let half_way = |i: u32| f32::from_bits(0x3f80_8000 + (i << 16));
    let rounded = |fraction: f32, absmax: f32| bf16::from_f32(fraction * absmax).to_bits();
    let (mut codes, mut absmax) = (Vec::new(), Vec::new());
    for (code, fraction) in NF4_CODE.into_iter().enumerate().filter(|(_, fraction)| *fraction != 0.0) {
        for neighbour in [fraction.next_up(), fraction.next_down()] {
            let around = |middle: f32| (0..32).map(move |i| f32::from_bits(middle.to_bits() - 16 + i));
            let telling = (0..128)
                .flat_map(|i| around(half_way(i) / fraction.abs()))
                .find(|&absmax| rounded(fraction, absmax) != rounded(neighbour, absmax));
            codes.extend([code as u8 * 0x11; NF4_BLOCK / 2]);
            absmax.push(telling.unwrap());
        }
    }
    let (rows, weight) = (absmax.len(), Nf4 { packed: codes, scales: Nf4Scales::Plain { absmax } });
    backends!(|d| agrees(&d, &weight, rows, NF4_BLOCK, NF4_BLOCK, 0));
}

/// A fused multiply-add makes other magnitudes, a few of which round to another bf16.
#[test]
fn magnitudes_are_rounded_twice() {
    let (map, offset) = (nf4_dynamic_map(), 0.131_f32);
    let mut telling = Vec::new();
    for nested in values(7, 4000) {
        for (code, &value) in map.iter().enumerate() {
            let (twice, once) = (value * nested + offset, value.mul_add(nested, offset));
            if bf16::from_f32(twice) != bf16::from_f32(once) {
                telling.push((code as u8, nested));
            }
        }
    }
    assert!(telling.len() > 3);
    backends!(|d| {
        for &(code, nested) in telling.iter().take(8) {
            let scales = Nf4Scales::Double {
                codes: vec![code],
                map: map.clone(),
                nested_absmax: vec![nested],
                offset,
            };
            // The last code is the whole magnitude.
            let weight = Nf4 { packed: vec![0xff; NF4_BLOCK / 2], scales };
            agrees(&d, &weight, 1, NF4_BLOCK, NF4_BLOCK, 0);
            agrees(&d, &weight, 1, NF4_BLOCK, NF4_BLOCK, 1);
        }
    });
}

#[test]
fn what_is_not_finite_stays_in_its_block() {
    let mut weight = values(3, 5 * 64);
    weight[70] = f32::NAN;
    weight[128] = f32::INFINITY;
    let stored = Nf4::quantize(&weight, false);
    let mut out = vec![0.0; weight.len()];
    stored.dequantize(5, 64, &mut out, 64);
    for (block, values) in out.chunks(NF4_BLOCK).enumerate() {
        match block {
            1 => assert!(values.iter().all(|v| v.is_nan())),
            2 => assert!(values.iter().all(|v| !v.is_finite())),
            _ => assert!(values.iter().all(|v| v.is_finite())),
        }
    }
    backends!(|d| {
        let out = on_device(&d, &stored, 5, 64, 64, 0);
        for (block, values) in out.chunks(NF4_BLOCK).enumerate() {
            assert!(values.iter().all(|v| v.is_finite() != (block == 1 || block == 2)), "block {block}");
        }
    });
}

#[test]
fn rows_of_a_matrix_can_be_apart_on_the_cpu() {
    let weight = Nf4::quantize(&values(9, 3 * 40), true);
    let (mut dense, mut apart) = (vec![0.0; 120], vec![7.0; 3 * 50 - 10]);
    weight.dequantize(3, 40, &mut dense, 40);
    weight.dequantize(3, 40, &mut apart, 50);
    for row in 0..3 {
        assert_eq!(apart[row * 50..row * 50 + 40], dense[row * 40..row * 40 + 40]);
        assert!(row == 2 || apart[row * 50 + 40..row * 50 + 50].iter().all(|v| *v == 7.0));
    }
    assert_eq!(Nf4::quantize(&[], false).packed.len(), 0);
}

#[test]
fn refuses_what_does_not_fit() {
    fn check<D: Driver>(d: &D) {
        let packed = Slice::zeros(d, 64).unwrap();
        let (two, one) = (Slice::zeros(d, 2).unwrap(), Slice::zeros(d, 1).unwrap());
        let (codes, map) = (Slice::zeros(d, 2).unwrap(), Slice::zeros(d, 256).unwrap());
        let mut out: Slice<D, bf16> = Slice::zeros(d, 128).unwrap();
        let mut refused = |rows, packed, scales, words: &str| {
            let weight = nf4::Nf4 { packed, scales };
            let result = nf4_dequantize(d, &weight, ViewMut::new(&mut out, rows, 64, 64));
            let Err(Error::Shape { detail, .. }) = result else { panic!("{words}: accepted") };
            assert!(detail.contains(words), "{detail}");
        };
        let double =
            |codes, map, nested_absmax| nf4::Nf4Scales::Double { codes, map, nested_absmax, offset: 0.0 };
        let (no_bytes, no_floats) = (Slice::zeros(d, 0).unwrap(), Slice::zeros(d, 0).unwrap());
        refused(2, &codes, nf4::Nf4Scales::Plain(&two), "needs 64 bytes of codes, there are 2");
        refused(2, &packed, nf4::Nf4Scales::Plain(&one), "needs 2 magnitudes, there are 1");
        refused(2, &packed, double(&no_bytes, &map, &one), "needs 2 codes of magnitudes");
        refused(2, &packed, double(&codes, &two, &one), "a map of 2 values");
        refused(2, &packed, double(&codes, &map, &no_floats), "needs 1 nested magnitudes");
        refused(3, &packed, nf4::Nf4Scales::Plain(&two), "not inside");
        // Nothing to do is no fault.
        let weight = nf4::Nf4 { packed: &no_bytes, scales: nf4::Nf4Scales::Plain(&no_floats) };
        nf4_dequantize(d, &weight, ViewMut::new(&mut out, 0, 64, 64)).unwrap();
        assert!(View::new(&out, 2, 64, 64).slice.to_host(d).unwrap().iter().all(|v| v.to_f32() == 0.0));
    }
    backends!(|d| check(&d));
}
