//! Named tensors in plain memory, and comparisons whose failure says which number is wrong.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors, View};

use crate::error::Error;

/// A row-major f32 tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// The elements, as many as the product of `shape`.
    pub data: Vec<f32>,
}

impl Tensor {
    /// A tensor of `shape`; an error where `data` has another length.
    pub fn new(shape: Vec<usize>, data: Vec<f32>) -> Result<Self, Error> {
        if shape.iter().product::<usize>() == data.len() {
            Ok(Self { shape, data })
        } else {
            Err(Error::Argument(format!("A tensor of shape {shape:?} cannot hold {} elements", data.len())))
        }
    }
}

/// Tensors by name, in the order of their names.
pub type Tensors = BTreeMap<String, Tensor>;

/// Integer tensors by name: shape and row-major elements.
pub type IntTensors = BTreeMap<String, (Vec<usize>, Vec<i64>)>;

/// Reads the floating point tensors (f32, f16, bf16) of a safetensors file as f32; others are an error.
pub fn read_tensors(path: &Path) -> Result<Tensors, Error> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let file = SafeTensors::deserialize(&bytes).map_err(Error::tensors(path))?;
    let mut out = Tensors::new();
    for (name, view) in file.tensors() {
        let raw = view.data();
        let data: Vec<f32> = match view.dtype() {
            Dtype::F32 => words(raw).map(f32::from_le_bytes).collect(),
            Dtype::BF16 => words(raw).map(|w| bf16::from_le_bytes(w).to_f32()).collect(),
            Dtype::F16 => words(raw).map(|w| f16::from_le_bytes(w).to_f32()).collect(),
            other => return Err(Error::reference(path, format!("tensor `{name}` has the type {other:?}"))),
        };
        out.insert(name, Tensor::new(view.shape().to_vec(), data)?);
    }
    Ok(out)
}

/// Reads all tensors of a safetensors file that holds int64 alone.
pub fn read_int_tensors(path: &Path) -> Result<IntTensors, Error> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let file = SafeTensors::deserialize(&bytes).map_err(Error::tensors(path))?;
    let mut out = IntTensors::new();
    for (name, view) in file.tensors() {
        if view.dtype() != Dtype::I64 {
            let what = format!("tensor `{name}` has the type {:?} instead of I64", view.dtype());
            return Err(Error::reference(path, what));
        }
        out.insert(name, (view.shape().to_vec(), words(view.data()).map(i64::from_le_bytes).collect()));
    }
    Ok(out)
}

/// Reads the weights of a Hugging Face folder: `model.safetensors`, or every file of `model.safetensors.index.json`.
pub fn read_model_weights(dir: &Path) -> Result<Tensors, Error> {
    let single = dir.join("model.safetensors");
    if single.is_file() {
        return read_tensors(&single);
    }
    let index_path = dir.join("model.safetensors.index.json");
    let index: Index = crate::error::read_json(&index_path)?;
    let files: std::collections::BTreeSet<&String> = index.weight_map.values().collect();
    let mut out = Tensors::new();
    for file in files {
        out.append(&mut read_tensors(&dir.join(file))?);
    }
    Ok(out)
}

#[derive(serde::Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The element type in which [`write_tensors`] stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoredType {
    /// 32-bit floats, exact.
    F32,
    /// 16-bit IEEE floats, rounded to nearest even.
    F16,
    /// bfloat16, rounded to nearest even.
    Bf16,
}

/// Writes `tensors` to a safetensors file with the metadata `format: pt` that transformers asks for.
pub fn write_tensors(path: &Path, tensors: &Tensors, stored: StoredType) -> Result<(), Error> {
    let views = tensors.iter().map(|(name, t)| (name.as_str(), Stored { tensor: t, stored }));
    let metadata = std::collections::HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(views, Some(metadata), path).map_err(Error::tensors(path))
}

/// Writes int64 tensors to a safetensors file.
pub fn write_int_tensors(path: &Path, tensors: &IntTensors) -> Result<(), Error> {
    let views = tensors.iter().map(|(name, (shape, data))| (name.as_str(), StoredInt { shape, data }));
    safetensors::serialize_to_file(views, None, path).map_err(Error::tensors(path))
}

struct Stored<'a> {
    tensor: &'a Tensor,
    stored: StoredType,
}

impl View for Stored<'_> {
    fn dtype(&self) -> Dtype {
        match self.stored {
            StoredType::F32 => Dtype::F32,
            StoredType::F16 => Dtype::F16,
            StoredType::Bf16 => Dtype::BF16,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.tensor.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let data = self.tensor.data.iter();
        Cow::Owned(match self.stored {
            StoredType::F32 => data.flat_map(|x| x.to_le_bytes()).collect(),
            StoredType::F16 => data.flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
            StoredType::Bf16 => data.flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
        })
    }

    fn data_len(&self) -> usize {
        self.tensor.data.len() * if self.stored == StoredType::F32 { 4 } else { 2 }
    }
}

struct StoredInt<'a> {
    shape: &'a [usize],
    data: &'a [i64],
}

impl View for StoredInt<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::I64
    }

    fn shape(&self) -> &[usize] {
        self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(self.data.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    fn data_len(&self) -> usize {
        self.data.len() * 8
    }
}

/// Splits bytes into words of `N`; the safetensors reader has checked that the length is a multiple.
fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
    bytes.as_chunks::<N>().0.iter().copied()
}

/// Largest absolute difference and where it is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Worst {
    /// |got - want|; NaN where either is not finite.
    pub diff: f32,
    /// Flat index of the element.
    pub index: usize,
}

/// The element of `got` farthest from `want` among those for which `counts(index)` holds; 0 where none does.
pub fn worst_where(got: &[f32], want: &[f32], counts: impl Fn(usize) -> bool) -> Worst {
    let mut worst = Worst { diff: 0.0, index: 0 };
    for (index, (g, w)) in got.iter().zip(want).enumerate().filter(|(i, _)| counts(*i)) {
        let diff = (g - w).abs();
        // Infinity minus infinity is NaN, and a NaN compares as nothing: it has to stop the search.
        if !diff.is_finite() {
            return Worst { diff: f32::NAN, index };
        }
        if diff > worst.diff {
            worst = Worst { diff, index };
        }
    }
    worst
}

/// Checks |got - want| <= `tolerance` everywhere; returns the largest difference.
pub fn assert_close(name: &str, got: &[f32], want: &[f32], tolerance: f32) -> Result<f32, Error> {
    assert_close_where(name, got, want, tolerance, |_| true)
}

/// As [`assert_close`], for the elements at which `counts(index)` holds; an error where it never holds.
pub fn assert_close_where(
    name: &str,
    got: &[f32],
    want: &[f32],
    tolerance: f32,
    counts: impl Fn(usize) -> bool,
) -> Result<f32, Error> {
    if got.len() != want.len() {
        let what = format!("`{name}` has {} elements where {} are expected", got.len(), want.len());
        return Err(Error::Mismatch(what));
    }
    if !(0..want.len()).any(&counts) {
        return Err(Error::Mismatch(format!("`{name}`: there is nothing to compare")));
    }
    let worst = worst_where(got, want, counts);
    if worst.diff <= tolerance {
        return Ok(worst.diff);
    }
    Err(Error::Mismatch(format!(
        "`{name}` differs at element {}: {} where {} is expected (difference {:e}, tolerance {tolerance:e})",
        worst.index, got[worst.index], want[worst.index], worst.diff
    )))
}

/// Checks |got - want| <= `tolerance` x max |want|; returns the largest difference over that maximum.
///
/// Where `want` is all zero, `got` has to be all zero too.
pub fn assert_close_to_max(name: &str, got: &[f32], want: &[f32], tolerance: f32) -> Result<f32, Error> {
    let top = want.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
    let worst = assert_close(name, got, want, tolerance * top)?;
    Ok(if top == 0.0 { 0.0 } else { worst / top })
}

/// Checks two logits tensors [B, T, V] at the positions whose `attention_mask` [B, T] is 1.
pub fn assert_logits_close(
    name: &str,
    got: &[f32],
    want: &[f32],
    attention_mask: &[i64],
    tolerance: f32,
) -> Result<f32, Error> {
    let positions = attention_mask.len();
    if positions == 0 || !want.len().is_multiple_of(positions) {
        let what = format!("`{name}` has {} elements, no multiple of {positions} positions", want.len());
        return Err(Error::Mismatch(what));
    }
    let vocab = want.len() / positions;
    assert_close_where(name, got, want, tolerance, |i| attention_mask[i / vocab] == 1)
}

/// Checks that both maps have the same names and shapes and that every tensor agrees within `tolerance`
/// times its reference's maximum; returns the worst such ratio and its tensor.
pub fn assert_all_close_to_max(
    what: &str,
    got: &Tensors,
    want: &Tensors,
    tolerance: f32,
) -> Result<(f32, String), Error> {
    if let Some(name) = want.keys().find(|k| !got.contains_key(*k)) {
        return Err(Error::Mismatch(format!("{what}: tensor `{name}` is missing")));
    }
    if let Some(name) = got.keys().find(|k| !want.contains_key(*k)) {
        return Err(Error::Mismatch(format!("{what}: tensor `{name}` is not expected")));
    }
    let mut worst = (0.0, String::new());
    for (name, w) in want {
        let g = &got[name];
        if g.shape != w.shape {
            let text = format!("{what}: `{name}` has shape {:?} where {:?} is expected", g.shape, w.shape);
            return Err(Error::Mismatch(text));
        }
        let ratio = assert_close_to_max(&format!("{what}: {name}"), &g.data, &w.data, tolerance)?;
        if ratio >= worst.0 {
            worst = (ratio, name.clone());
        }
    }
    Ok(worst)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_not_a_number_never_passes() {
        assert!(assert_close("x", &[f32::NAN], &[1.0], 1e9).is_err());
        assert!(assert_close("x", &[1.0], &[f32::NAN], 1e9).is_err());
        assert!(assert_close("x", &[f32::INFINITY], &[f32::INFINITY], 1e9).is_err());
        assert!(assert_close("x", &[0.0, f32::NAN, 5.0], &[0.0, 0.0, 0.0], 1e9).is_err());
    }

    #[test]
    fn the_message_names_tensor_place_and_values() {
        let message =
            assert_close("lora_A", &[1.0, 2.0, 3.5], &[1.0, 2.0, 3.0], 0.1).unwrap_err().to_string();
        for part in ["lora_A", "element 2", "3.5", "3 is expected"] {
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn an_empty_comparison_is_an_error() {
        assert!(assert_close("x", &[], &[], 1.0).is_err());
        assert!(assert_close_where("x", &[1.0], &[1.0], 1.0, |_| false).is_err());
        assert!(assert_logits_close("x", &[1.0; 4], &[1.0; 4], &[0, 0], 1.0).is_err());
    }

    #[test]
    fn padding_is_left_out_and_the_rest_is_not() {
        let want = [1.0, 1.0, 2.0, 2.0];
        assert!(assert_logits_close("x", &[1.0, 1.0, 9.0, 9.0], &want, &[1, 0], 1e-3).is_ok());
        assert!(assert_logits_close("x", &[1.0, 9.0, 2.0, 2.0], &want, &[1, 0], 1e-3).is_err());
    }

    #[test]
    fn an_all_zero_reference_asks_for_zeros() {
        assert!(assert_close_to_max("x", &[0.0, 0.0], &[0.0, 0.0], 1e-3).is_ok());
        assert!(assert_close_to_max("x", &[0.0, 1e-9], &[0.0, 0.0], 1e-3).is_err());
    }

    #[test]
    fn maps_have_to_hold_the_same_names_and_shapes() {
        let one = Tensor::new(vec![1, 2], vec![1.0, 2.0]).unwrap();
        let turned = Tensor::new(vec![2, 1], vec![1.0, 2.0]).unwrap();
        let want = Tensors::from([("a".to_owned(), one.clone())]);
        let more = Tensors::from([("a".to_owned(), one.clone()), ("b".to_owned(), one)]);
        let other = Tensors::from([("a".to_owned(), turned)]);
        assert!(assert_all_close_to_max("t", &want, &want, 1e-6).is_ok());
        assert!(assert_all_close_to_max("t", &more, &want, 1e-6).is_err());
        assert!(assert_all_close_to_max("t", &want, &more, 1e-6).is_err());
        assert!(assert_all_close_to_max("t", &other, &want, 1e-6).is_err());
    }

    #[test]
    fn tensors_survive_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.safetensors");
        // All three types hold these values exactly.
        let tensors =
            Tensors::from([("a".to_owned(), Tensor::new(vec![2, 2], vec![1.5, -2.0, 0.25, 96.0]).unwrap())]);
        for stored in [StoredType::F32, StoredType::F16, StoredType::Bf16] {
            write_tensors(&path, &tensors, stored).unwrap();
            assert_eq!(read_tensors(&path).unwrap(), tensors);
        }
        assert!(read_int_tensors(&path).is_err());
        let ints = IntTensors::from([("i".to_owned(), (vec![3], vec![-100, 0, i64::MAX]))]);
        write_int_tensors(&path, &ints).unwrap();
        assert_eq!(read_int_tensors(&path).unwrap(), ints);
        assert!(read_tensors(&path).is_err());
    }
}
