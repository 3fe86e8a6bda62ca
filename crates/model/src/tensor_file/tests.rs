use super::*;
use crate::test_support::{assert_error, counting_file, safetensors_bytes};

fn open(bytes: &[u8]) -> (tempfile::TempDir, Result<TensorFile>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    std::fs::write(&path, bytes).unwrap();
    let file = TensorFile::open(&path);
    (dir, file)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn rows_land_at_their_stride() {
    let (_dir, file) = open(&counting_file(&[("pad", &[5]), ("w", &[4, 3])]));
    let file = file.unwrap();
    let mut out = vec![-1.0; 2 * 5 + 3];
    file.read_f32_into("w", &[4, 3], 1..4, &mut out, 5).unwrap();
    assert_eq!(out, [8., 9., 10., -1., -1., 11., 12., 13., -1., -1., 14., 15., 16.]);
    file.read_f32_into("w", &[4, 3], 2..2, &mut [], 5).unwrap();
    let mut vector = vec![0.0; 5];
    file.read_f32_into("pad", &[5], 0..1, &mut vector, 5).unwrap();
    assert_eq!(vector, [0., 1., 2., 3., 4.]);
    assert_eq!(file.read_f32("pad").unwrap(), vector);
}

#[test]
fn a_buffer_that_does_not_fit_is_refused() {
    let (_dir, file) = open(&counting_file(&[("w", &[4, 3])]));
    let file = file.unwrap();
    let mut out = vec![0.0; 11];
    assert_error(file.read_f32_into("w", &[4, 3], 0..4, &mut out, 3), &["do not fit"]);
    assert_error(file.read_f32_into("w", &[4, 3], 0..3, &mut out, 2), &["do not fit"]);
    assert_error(file.read_f32_into("w", &[4, 3], 3..5, &mut out, 3), &["do not fit"]);
    #[allow(clippy::reversed_empty_ranges)]
    let reversed = 3..2;
    assert_error(file.read_f32_into("w", &[4, 3], reversed, &mut out, 3), &["do not fit"]);
    let message =
        assert_error(file.read_f32_into("w", &[3, 4], 0..3, &mut out, 4), &["`w`", "[4, 3]", "[3, 4]"]);
    assert!(message.contains("a.safetensors"));
    assert_error(file.read_f32("v"), &["`v`", "missing", "a.safetensors"]);
}

#[test]
fn half_types_are_raised_exactly_across_chunks() {
    // More than one chunk, with a column count that divides neither the chunk nor the conversion block.
    let (rows, columns) = (911, 701);
    let count = rows * columns;
    let values: Vec<f32> = (0..count).map(|i| ((i * 7919) % 4093) as f32 / 16.0 - 100.0).collect();
    let f16s: Vec<u8> = values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect();
    let bf16s: Vec<u8> = values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect();
    let size = count * 2;
    let header = format!(
        r#"{{"b":{{"dtype":"BF16","shape":[{rows},{columns}],"data_offsets":[{size},{end}]}},
            "h":{{"dtype":"F16","shape":[{rows},{columns}],"data_offsets":[0,{size}]}}}}"#,
        end = 2 * size
    );
    assert!(size > CHUNK);
    let (_dir, file) = open(&safetensors_bytes(&header, &[f16s, bf16s].concat()));
    let file = file.unwrap();
    let stride = columns + 3;
    let mut out = vec![7.0; (rows - 1) * stride + columns];
    for (name, rounded) in [
        ("h", values.iter().map(|&v| f16::from_f32(v).to_f32()).collect::<Vec<_>>()),
        ("b", values.iter().map(|&v| bf16::from_f32(v).to_f32()).collect()),
    ] {
        assert_eq!(bits(&file.read_f32(name).unwrap()), bits(&rounded), "{name}");
        file.read_f32_into(name, &[rows, columns], 0..rows, &mut out, stride).unwrap();
        for row in 0..rows {
            let found = &out[row * stride..][..columns];
            assert_eq!(bits(found), bits(&rounded[row * columns..][..columns]), "{name} row {row}");
            assert!(row + 1 == rows || out[row * stride + columns..][..3] == [7.0; 3], "{name} row {row}");
        }
    }
}

#[test]
fn special_half_values() {
    let words: [u16; 6] = [0x0000, 0x8000, 0x0001, 0x7bff, 0x7c00, 0xfc00];
    let data: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    let header = r#"{"h":{"dtype":"F16","shape":[6],"data_offsets":[0,12]}}"#;
    let (_dir, file) = open(&safetensors_bytes(header, &data));
    let expected = [0.0, -0.0, 2f32.powi(-24), 65504.0, f32::INFINITY, f32::NEG_INFINITY];
    assert_eq!(bits(&file.unwrap().read_f32("h").unwrap()), bits(&expected));
}

#[test]
fn other_dtypes_and_empty_tensors() {
    let header = r#"{"e":{"dtype":"F32","shape":[0,4],"data_offsets":[0,0]},
        "i":{"dtype":"I64","shape":[2],"data_offsets":[0,16]}}"#;
    let (_dir, file) = open(&safetensors_bytes(header, &[0; 16]));
    let file = file.unwrap();
    assert_error(file.read_f32("i"), &["`i`", "I64", "BF16"]);
    assert!(file.read_f32("e").unwrap().is_empty());
    assert_eq!(file.names(), ["e", "i"]);
}

#[test]
fn hostile_headers() {
    let good = counting_file(&[("w", &[4, 3])]);
    let one = |fields: &str| safetensors_bytes(&format!(r#"{{"w":{{{fields}}}}}"#), &[0; 48]);
    let mut huge = good.clone();
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let mut beyond = good.clone();
    beyond[..8].copy_from_slice(&10_000u64.to_le_bytes());
    let mut stray = good.clone();
    stray.push(0);
    let deep = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty file", vec![], "only 0 bytes"),
        ("seven bytes", vec![0; 7], "only 7 bytes"),
        ("header beyond the limit", huge, "limit"),
        ("header beyond the file", beyond, "truncated"),
        ("cut data", good[..good.len() - 1].to_vec(), "truncated"),
        ("cut header", good[..20].to_vec(), "truncated"),
        ("stray bytes", stray, "stray bytes"),
        ("no JSON", safetensors_bytes("hello", &[]), "damaged"),
        ("no object", safetensors_bytes("[1]", &[]), "damaged"),
        ("nested to death", safetensors_bytes(&deep, &[]), "damaged"),
        ("not UTF-8", [&2u64.to_le_bytes()[..], &[0xff, 0xfe]].concat(), "damaged"),
        ("beyond the end", one(r#""dtype":"F32","shape":[4,4],"data_offsets":[0,64]"#), "truncated"),
        (
            "bytes do not fit the shape",
            one(r#""dtype":"F32","shape":[4,3],"data_offsets":[0,40]"#),
            "damaged",
        ),
        ("end before start", one(r#""dtype":"F32","shape":[4,3],"data_offsets":[48,0]"#), "damaged"),
        ("hole at the start", one(r#""dtype":"F32","shape":[2],"data_offsets":[40,48]"#), "damaged"),
        ("negative offset", one(r#""dtype":"F32","shape":[12],"data_offsets":[-1,47]"#), "damaged"),
        ("negative shape", one(r#""dtype":"F32","shape":[-12],"data_offsets":[0,48]"#), "damaged"),
        (
            "product overflows",
            one(r#""dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,48]"#),
            "damaged",
        ),
        (
            "offsets near 2^64",
            one(r#""dtype":"F32","shape":[4611686018427387903],"data_offsets":[0,18446744073709551612]"#),
            "damaged",
        ),
        ("unknown dtype", one(r#""dtype":"F31","shape":[12],"data_offsets":[0,48]"#), "damaged"),
        ("no offsets", one(r#""dtype":"F32","shape":[12]"#), "damaged"),
        (
            "overlap",
            safetensors_bytes(
                r#"{"a":{"dtype":"F32","shape":[8],"data_offsets":[0,32]},
                    "b":{"dtype":"F32","shape":[8],"data_offsets":[16,48]}}"#,
                &[0; 48],
            ),
            "damaged",
        ),
    ];
    for (what, bytes, word) in cases {
        let (_dir, file) = open(&bytes);
        let message = assert_error(file, &[word, "a.safetensors"]);
        assert!(message.len() < 400, "{what}: {message}");
    }
}

#[test]
fn things_that_are_no_file() {
    let dir = tempfile::tempdir().unwrap();
    assert_error(TensorFile::open(dir.path()), &["not a regular file"]);
    assert_error(TensorFile::open(&dir.path().join("none")), &["cannot open", "none"]);
}

#[test]
fn a_file_cut_while_it_is_open_is_an_error() {
    let (dir, file) = open(&counting_file(&[("w", &[4, 3])]));
    let path = dir.path().join("a.safetensors");
    let length = std::fs::metadata(&path).unwrap().len();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(length - 10).unwrap();
    assert_error(file.unwrap().read_f32("w"), &["cannot read", "a.safetensors"]);
}
