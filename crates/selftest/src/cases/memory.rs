//! Buffers, and copies between them and the host.

use half::{bf16, f16};
use tunesmith_ops::{FillKey, Kernels, Mat, MatMut, Stored, StoredType};

use crate::draw::values;
use crate::lab::{Allowed, Case, Lab};
use crate::placed::{Placed, Rows};
use crate::reference::rows::fill;
use crate::reference::wide;

pub(super) fn all<K: Kernels>(lab: &mut Lab<'_, K>) {
    let (rows, cols, ld, at) = (5, 7, 12, 3);
    lab.take(&Case {
        op: "memory",
        shape: format!("[{rows}, {cols}] to a device and back"),
        inputs: vec![values(1, rows * cols, 4.0)],
        run: &|k, x| {
            let mut buf = k.zeros(at + rows * ld)?;
            k.write(&x[0], MatMut { at, ..MatMut::new(&mut buf, rows, cols, ld) })?;
            let back = k.read(Mat { at, ..Mat::new(&buf, rows, cols, ld) })?;
            Ok(vec![back, k.read(Mat::new(&buf, 1, at + rows * ld, at + rows * ld))?])
        },
        want: &|x| {
            let mut whole = vec![0.0; at + rows * ld];
            for (i, row) in x[0].chunks_exact(cols).enumerate() {
                whole[at + i * ld..].iter_mut().zip(wide(row)).for_each(|(to, v)| *to = v);
            }
            vec![wide(&x[0]).collect(), whole]
        },
        outputs: &[("what was read", Allowed::Exact), ("the whole buffer", Allowed::Exact)],
        nan: None,
    });
    let n = 1000;
    lab.take(&Case {
        op: "memory",
        shape: format!("[{n}] f32 to a device and back"),
        // More digits than bf16 has.
        inputs: vec![values(2, n, 4.0).iter().map(|v| v * 1.000_1).collect()],
        run: &|k, x| {
            let mut buf = k.zeros_full(n + at)?;
            k.write_full(&x[0], &mut buf, at)?;
            Ok(vec![k.read_full(&buf)?])
        },
        want: &|x| vec![vec![0.0; at].into_iter().chain(wide(&x[0])).collect()],
        outputs: &[("the whole buffer", Allowed::Exact)],
        nan: None,
    });
    lab.take(&Case {
        op: "clear_full",
        shape: format!("[{n}]"),
        inputs: vec![values(3, n, 1.0)],
        run: &|k, x| {
            let mut buf = k.zeros_full(n)?;
            k.write_full(&x[0], &mut buf, 0)?;
            k.clear_full(&mut buf)?;
            Ok(vec![k.read_full(&buf)?])
        },
        want: &|_| vec![vec![0.0; n]],
        outputs: &[("the buffer", Allowed::Exact)],
        nan: None,
    });
    weights(lab);
}

/// The bytes of a file that holds these values.
fn bytes(of: StoredType, values: &[f32]) -> Vec<u8> {
    let one = |v: &f32| match of {
        StoredType::F32 => v.to_le_bytes().to_vec(),
        StoredType::F16 => f16::from_f32(*v).to_le_bytes().to_vec(),
        StoredType::Bf16 => bf16::from_f32(*v).to_le_bytes().to_vec(),
    };
    values.iter().flat_map(one).collect()
}

/// Weights from a file, and random ones.
fn weights<K: Kernels>(lab: &mut Lab<'_, K>) {
    let load = |k: &K, of, values: &[f32], out: MatMut<'_, K::Buf>| {
        let bytes = bytes(of, values);
        let read = |at: usize, to: &mut [u8]| {
            let from = bytes.get(at..at + to.len()).ok_or(std::io::ErrorKind::UnexpectedEof)?;
            to.copy_from_slice(from);
            Ok(())
        };
        k.load(Stored { of, read: &read }, out, &mut |_| ())
    };
    let mut shapes = vec![(5, 24), (3, 7), (1, 1)];
    if lab.is_real() {
        shapes.push((300, 4160));
    }
    for (rows, cols) in shapes {
        // As in f16, which has three digits more than bf16.
        let drawn: Vec<f32> =
            values(4, rows * cols, 1.0).iter().map(|v| f16::from_f32(v * 1.003).to_f32()).collect();
        for (of, name, exact) in [
            (StoredType::F32, "f32", false),
            (StoredType::F16, "f16", false),
            (StoredType::Bf16, "bf16", true),
        ] {
            let round = |v: &f32| if exact { bf16::from_f32(*v).to_f32() } else { *v };
            lab.take(&Case {
                op: "load",
                shape: format!("[{rows}, {cols}] of {name}"),
                inputs: vec![drawn.iter().map(round).collect()],
                run: &|k, x| {
                    let mut out = Placed::new(k, Rows::Aligned, (rows, cols), None)?;
                    load(k, of, &x[0], out.get_mut())?;
                    Ok(vec![out.read(k)?])
                },
                want: &|x| vec![wide(&x[0]).collect()],
                outputs: &[("the weights", if exact { Allowed::Exact } else { Allowed::One })],
                nan: None,
            });
        }
        let (key, std) = (FillKey { seed: 0x0123_4567_89AB_CDEF, tensor: 5 }, 0.02);
        lab.take(&Case {
            op: "fill_random",
            shape: format!("[{rows}, {cols}]"),
            inputs: vec![],
            run: &|k, _| {
                let mut out = Placed::new(k, Rows::Aligned, (rows, cols), None)?;
                k.fill_random(key, std, out.get_mut())?;
                Ok(vec![out.read(k)?])
            },
            want: &|_| vec![fill(key.seed, key.tensor, std, rows * cols)],
            outputs: &[("the weights", Allowed::One)],
            nan: None,
        });
    }
    lab.refused("load", "a NaN in a file", |k| {
        let mut out = Placed::new(k, Rows::Aligned, (1, 3), None)?;
        Ok(load(k, StoredType::F32, &[1.0, f32::NAN, 2.0], out.get_mut()))
    });
}
