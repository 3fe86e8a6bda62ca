//! Runs cases: twice, for equal bits; against f64; and with a NaN among the inputs.

use tunesmith_ops::{DeviceError, Error, Kernels};

use crate::check::{Check, Precision, Size};

/// Values of the host, one list per operand.
pub(crate) type Host = Vec<Vec<f32>>;
/// Values of the reference, one list per output.
pub(crate) type Wanted = Vec<Vec<f64>>;

/// Why a case has no result.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The operation said no, or the device failed.
    Ops(Error),
    /// It did what it must not do.
    Wrong(String),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Ops(error)
    }
}

impl Fault {
    fn text(&self) -> String {
        match self {
            Self::Ops(error) => error.to_string(),
            Self::Wrong(text) => text.clone(),
        }
    }

    /// Whether the device is done for.
    fn is_fatal(&self) -> bool {
        matches!(self, Self::Ops(Error::Device(DeviceError::Device { .. } | DeviceError::Unavailable { .. })))
    }
}

/// How far from f64 an output may be, by the roundings on its way.
///
/// For bf16 these are the numbers that the kernels were designed to (one rounding costs 1.7e-3 in relative L2): 2.5e-3
/// after one, 4e-3 after two or three, 5e-3 and 1e-2 for attention, 1e-3 for f32 results of bf16 values and 3e-3 where
/// something between was rounded. For f32 they are some three times what the CPU was measured at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Allowed {
    /// Nothing is computed.
    Exact,
    /// One rounding to the storage type.
    One,
    /// Two or three.
    Few,
    /// An output of attention.
    Forward,
    /// A gradient of attention.
    Backward,
    /// f32 from stored values.
    Full,
    /// f32 from stored values, something stored between.
    FullOfStored,
    /// f32 all the way.
    F32,
}

impl Allowed {
    pub(crate) fn of(self, precision: Precision) -> f64 {
        let (f32, bf16) = match self {
            Self::Exact => (0.0, 0.0),
            Self::One => (5e-7, 2.5e-3),
            Self::Few => (5e-7, 4e-3),
            Self::Forward => (1e-6, 5e-3),
            Self::Backward => (1e-6, 1e-2),
            Self::Full => (1e-6, 1e-3),
            Self::FullOfStored => (1.5e-6, 3e-3),
            Self::F32 => (1e-6, 1e-6),
        };
        match precision {
            Precision::F32 => f32,
            Precision::Bf16 => bf16,
        }
    }
}

/// Values under which a root mean square says little: a rounding to bf16 costs 2^-8 at most, and 1.7e-3 on the average.
const FEW_VALUES: usize = 16;
/// How much more may be off where there are so few.
const FEW_VALUES_FACTOR: f64 = 1.6;

/// Runs an operation on the device: host values in, what it wrote out.
pub(crate) type Run<'c, K> = &'c dyn Fn(&K, &[Vec<f32>]) -> Result<Host, Fault>;

/// An operation at one shape.
pub(crate) struct Case<'c, K: Kernels> {
    /// Its name in `Kernels`.
    pub(crate) op: &'static str,
    /// The shape, in words.
    pub(crate) shape: String,
    /// What it is given.
    pub(crate) inputs: Host,
    /// The operation.
    pub(crate) run: Run<'c, K>,
    /// The same in f64.
    pub(crate) want: &'c dyn Fn(&[Vec<f32>]) -> Wanted,
    /// Name of each output, and how far off it may be.
    pub(crate) outputs: &'c [(&'static str, Allowed)],
    /// Which input is made NaN, and where, for a second check.
    pub(crate) nan: Option<(usize, usize)>,
}

/// A device under test, and what was found so far.
pub(crate) struct Lab<'a, K: Kernels> {
    k: &'a K,
    precision: Precision,
    size: Size,
    pub(crate) checks: Vec<Check>,
    tell: &'a mut dyn FnMut(&Check),
    dead: bool,
}

impl<'a, K: Kernels> Lab<'a, K> {
    pub(crate) fn new(k: &'a K, precision: Precision, size: Size, tell: &'a mut dyn FnMut(&Check)) -> Self {
        Self { k, precision, size, checks: Vec::new(), tell, dead: false }
    }

    /// Whether real shapes are run too.
    pub(crate) fn is_real(&self) -> bool {
        self.size == Size::Real
    }

    pub(crate) fn precision(&self) -> Precision {
        self.precision
    }

    /// Runs a case, and where it says so the same with a NaN.
    pub(crate) fn take(&mut self, case: &Case<'_, K>) {
        if self.dead {
            return;
        }
        let found = self.compare(case).unwrap_or_else(|fault| self.fault(case, &case.shape, &fault));
        self.note(found);
        if let (Some((input, at)), false) = (case.nan, self.dead) {
            let shape = format!("{}, a NaN among them", case.shape);
            let found = self.spreads(case, &shape, input, at);
            let found = found.unwrap_or_else(|fault| self.fault(case, &shape, &fault));
            self.note(found);
        }
    }

    /// A call that the device must refuse.
    pub(crate) fn refused(
        &mut self,
        op: &'static str,
        shape: &str,
        call: impl FnOnce(&K) -> Result<Result<(), Error>, Fault>,
    ) {
        if self.dead {
            return;
        }
        let shape = shape.to_owned();
        let found = match call(self.k) {
            Ok(Err(_)) => Check::distance(op, shape, 0.0, 0.0),
            Ok(Ok(())) => Check::failed(op, shape, 0.0, "it was not refused".to_owned()),
            Err(fault) => {
                self.dead |= fault.is_fatal();
                Check::failed(op, shape, 0.0, fault.text())
            }
        };
        self.note(found);
    }

    fn note(&mut self, check: Check) {
        (self.tell)(&check);
        self.checks.push(check);
    }

    fn fault(&mut self, case: &Case<'_, K>, shape: &str, fault: &Fault) -> Check {
        self.dead |= fault.is_fatal();
        let first = case.outputs.first().map_or(0.0, |(_, allowed)| allowed.of(self.precision));
        Check::failed(case.op, shape.to_owned(), first, fault.text())
    }

    /// The output that is worst for what it may be.
    fn compare(&self, case: &Case<'_, K>) -> Result<Check, Fault> {
        let got = (case.run)(self.k, &case.inputs)?;
        let again = (case.run)(self.k, &case.inputs)?;
        let want = (case.want)(&case.inputs);
        let mut worst: Option<(f64, Check)> = None;
        for (i, (name, allowed)) in case.outputs.iter().enumerate() {
            let few = got.get(i).is_some_and(|got| got.len() < FEW_VALUES);
            let allowed = allowed.of(self.precision) * if few { FEW_VALUES_FACTOR } else { 1.0 };
            let failed = |text| Ok(Check::failed(case.op, case.shape.clone(), allowed, text));
            let (Some(got), Some(again), Some(want)) = (got.get(i), again.get(i), want.get(i)) else {
                return failed(format!("there is no {name}"));
            };
            if got.len() != want.len() {
                return failed(format!("{name} has {} values, and {} are right", got.len(), want.len()));
            }
            if got.iter().zip(again).any(|(a, b)| a.to_bits() != b.to_bits()) {
                return failed(format!("two runs give different bits of {name}"));
            }
            let mut check = Check::distance(case.op, case.shape.clone(), relative_l2(got, want), allowed);
            if !check.passed {
                check.detail = Some(farthest(name, got, want));
            }
            // Anything not exact that has to be is worse than whatever is allowed something.
            let share = if check.error == 0.0 { 0.0 } else { check.error / allowed };
            if worst.as_ref().is_none_or(|(other, _)| share > *other) {
                worst = Some((share, check));
            }
        }
        worst.map(|(_, check)| check).ok_or_else(|| Fault::Wrong("nothing was compared".to_owned()))
    }

    /// Whether a NaN reaches everything that is computed from it: counts the values that do not show it.
    fn spreads(&self, case: &Case<'_, K>, shape: &str, input: usize, at: usize) -> Result<Check, Fault> {
        let mut inputs = case.inputs.clone();
        inputs[input][at] = f32::NAN;
        let (got, want) = ((case.run)(self.k, &inputs)?, (case.want)(&inputs));
        let pairs = || got.iter().flatten().zip(want.iter().flatten());
        let hit = pairs().filter(|(_, want)| want.is_nan()).count();
        let swallowed = pairs().filter(|(got, want)| want.is_nan() && got.is_finite()).count();
        if hit == 0 {
            return Err(Fault::Wrong("the NaN reaches nothing in f64 either".to_owned()));
        }
        let mut check = Check::distance(case.op, shape.to_owned(), swallowed as f64, 0.0);
        if swallowed > 0 {
            check.detail = Some(format!("{swallowed} of {hit} values that depend on the NaN hide it"));
        }
        Ok(check)
    }
}

/// ‖got − want‖ / ‖want‖, or the distance itself from a reference of zeros; NaN if either holds one.
pub(crate) fn relative_l2(got: &[f32], want: &[f64]) -> f64 {
    let (mut distance, mut size) = (0.0, 0.0);
    for (&g, &w) in got.iter().zip(want) {
        distance += (f64::from(g) - w).powi(2);
        size += w.powi(2);
    }
    if size == 0.0 { distance.sqrt() } else { (distance / size).sqrt() }
}

/// The value that is farthest off, in words.
fn farthest(name: &str, got: &[f32], want: &[f64]) -> String {
    let off = |i: usize| {
        let d = (f64::from(got[i]) - want[i]).abs();
        if d.is_nan() { f64::INFINITY } else { d }
    };
    let worst = (0..got.len()).max_by(|&a, &b| off(a).total_cmp(&off(b)).then(b.cmp(&a)));
    worst
        .map_or_else(String::new, |i| format!("value {i} of {name} is {} where {} is right", got[i], want[i]))
}
