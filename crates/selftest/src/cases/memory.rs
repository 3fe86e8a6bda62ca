//! Buffers, and copies between them and the host.

use tunesmith_ops::{Kernels, Mat, MatMut};

use crate::draw::values;
use crate::lab::{Allowed, Case, Lab};
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
}
