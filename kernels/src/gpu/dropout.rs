//! Dropout with counter-based masks (`dropout.cu`).

use half::bf16;

use super::driver::{Arg, Driver};
use super::error::{Result, expect};
use super::rows::{Tiling, Wide};
use super::slice::{Slice, View, ViewMut};

/// Names the mask of one site in one optimizer step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// Seed of the run.
    pub seed: u64,
    /// Optimizer step.
    pub step: u32,
    /// Layer and linear.
    pub site: u32,
}

impl Key {
    /// The key of Philox: two words of seed and step.
    fn words(self) -> [u32; 2] {
        let stream = self.step.wrapping_add(1);
        [self.seed as u32, (self.seed >> 32) as u32 ^ stream.wrapping_mul(0x9e37_79b9)]
    }
}

/// out = m · mask, where the mask of row `t` is drawn from `key` and the row's name: 0 with probability `p`, else
/// `1 / (1 - p)`. The mask has the same bits as the CPU backend's; the product is rounded once.
///
/// # Shapes
/// - m, out: `[rows, cols]` bf16; names: `[rows, 2]` or longer
///
/// # Errors
/// If the shapes do not match, a matrix is not inside its slice, or `p` is not in [0, 1).
pub fn dropout<D: Driver>(
    d: &D,
    m: View<'_, D, bf16>,
    key: Key,
    p: f32,
    names: &Slice<D, u32>,
    out: ViewMut<'_, D, bf16>,
) -> Result<()> {
    const OP: &str = "dropout";
    expect(OP, m.rows == out.rows && m.cols == out.cols, || {
        format!("m [{}, {}] into out [{}, {}]", m.rows, m.cols, out.rows, out.cols)
    })?;
    expect(OP, names.len() / 2 >= m.rows, || format!("{} names for {} rows", names.len() / 2, m.rows))?;
    expect(OP, (0.0..1.0).contains(&p), || format!("a probability of {p} is not in [0, 1)"))?;
    m.check(OP, "m", 1)?;
    out.check(OP, "out", 1)?;
    if m.rows == 0 || m.cols == 0 {
        return Ok(());
    }
    let tiling = Tiling::new(OP, m.rows, m.cols, m.is_wide() && out.is_wide(), 1)?;
    let [key0, key1] = key.words();
    let args = [
        m.arg(d),
        Arg::I64(m.ld as i64),
        names.arg(d, 0),
        Arg::U32(key0),
        Arg::U32(key1),
        Arg::U32(key.site),
        Arg::F32(p),
        Arg::F32(1.0 / (1.0 - p)),
        out.arg(d),
        Arg::I64(out.ld as i64),
    ];
    // SAFETY: both matrices were found inside their slices and have one shape, there is a name for every row, and the
    // kernel takes these arguments.
    unsafe { tiling.launch(d, ["dropout_8", "dropout_1"], &args) }
}
