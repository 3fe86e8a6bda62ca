//! The decision on machines that are made up.

use std::cell::Cell;

use super::*;

struct Fake {
    gpus: Vec<Result<Gpu, &'static str>>,
    program: Program,
    /// What a check of the kernels finds: right or wrong, or that the device fails.
    finds: Result<bool, &'static str>,
    checked: Cell<usize>,
}

impl Machine for Fake {
    fn gpus(&self) -> Vec<Result<Gpu, CliError>> {
        let found = self.gpus.iter().cloned();
        found.map(|gpu| gpu.map_err(|why| CliError::Device(why.to_owned()))).collect()
    }

    fn program(&self) -> Program {
        self.program.clone()
    }

    fn check(&self, _: &Gpu) -> Result<Vec<Check>, CliError> {
        self.checked.set(self.checked.get() + 1);
        let passed = self.finds.map_err(|why| CliError::Device(why.to_owned()))?;
        let good = Check {
            name: "copy",
            shape: "[1, 1]".to_owned(),
            error: 0.0,
            allowed: 0.0,
            passed: true,
            detail: None,
        };
        let other = Check { name: "gemm", error: 0.5, allowed: 2.5e-3, passed, ..good.clone() };
        Ok(vec![good, other])
    }
}

fn gpu(n: usize) -> Gpu {
    Gpu {
        device: format!("cuda:{n}"),
        name: "Fake GPU".to_owned(),
        compute_capability: "9.0".to_owned(),
        driver_cuda: "13.0".to_owned(),
        memory_bytes: 1 << 37,
        multiprocessors: 132,
        cublaslt: Some("13.1.0".to_owned()),
    }
}

fn fake(gpus: Vec<Result<Gpu, &'static str>>) -> Fake {
    let program = Program { version: "1.0.0".to_owned(), file: Some((1000, 2000)) };
    Fake { gpus, program, finds: Ok(true), checked: Cell::new(0) }
}

/// What `auto` comes to, and what is said.
fn decided(machine: &Fake, home: &Path) -> (Result<String, CliError>, Vec<String>) {
    let mut said = Vec::new();
    let found = decide(machine, Some(&home.join("selftest")), &mut |text: &str| said.push(text.to_owned()));
    (found, said)
}

#[test]
fn without_a_gpu_it_is_the_cpu_and_nothing_is_said() {
    let home = tempfile::tempdir().unwrap();
    let (device, said) = decided(&fake(vec![]), home.path());
    assert_eq!((device.unwrap().as_str(), said.len()), ("cpu", 0));
    assert!(!home.path().join("selftest").exists());
}

#[test]
fn a_gpu_that_cannot_be_used_is_said_and_passed_over() {
    let home = tempfile::tempdir().unwrap();
    let old = "device `cuda:0` cannot be used: `Old GPU` has compute capability 7.0, and 8.0 is the least";
    let (device, said) = decided(&fake(vec![Err(old)]), home.path());
    assert_eq!(device.unwrap(), "cpu");
    assert_eq!(said, [format!("note: `auto` is the CPU here: {old}")]);
    let (device, said) = decided(&fake(vec![Err(old), Ok(gpu(1))]), home.path());
    assert_eq!(device.unwrap(), "cuda:1");
    assert!(said.len() == 1 && said[0].starts_with("trying every kernel on cuda:1 (Fake GPU)"), "{said:?}");
}

#[test]
fn the_first_gpu_is_tried_once() {
    let home = tempfile::tempdir().unwrap();
    let machine = fake(vec![Ok(gpu(0)), Ok(gpu(1))]);
    let (device, said) = decided(&machine, home.path());
    assert_eq!((device.unwrap().as_str(), said.len(), machine.checked.get()), ("cuda:0", 1, 1));
    let (device, said) = decided(&machine, home.path());
    assert_eq!((device.unwrap().as_str(), said.len(), machine.checked.get()), ("cuda:0", 0, 1));
    // Another GPU has its own stamp.
    assert!(!is_stamped(&machine, Some(&home.path().join("selftest")), &gpu(1)));
}

#[test]
fn another_program_gpu_or_driver_is_tried_again() {
    let other = |change: &dyn Fn(&mut Fake)| {
        let home = tempfile::tempdir().unwrap();
        decided(&fake(vec![Ok(gpu(0))]), home.path()).0.unwrap();
        let mut machine = fake(vec![Ok(gpu(0))]);
        change(&mut machine);
        decided(&machine, home.path()).0.unwrap();
        machine.checked.get()
    };
    assert_eq!(other(&|_| ()), 0);
    assert_eq!(other(&|m| m.program.version = "1.0.1".to_owned()), 1);
    assert_eq!(other(&|m| m.program.file = Some((1000, 2001))), 1);
    // One that is not known may be any.
    assert_eq!(other(&|m| m.program.file = None), 1);
    let with = |gpu: Gpu| move |m: &mut Fake| m.gpus = vec![Ok(gpu.clone())];
    assert_eq!(other(&with(Gpu { driver_cuda: "13.1".to_owned(), ..gpu(0) })), 1);
    assert_eq!(other(&with(Gpu { name: "Other GPU".to_owned(), ..gpu(0) })), 1);
    assert_eq!(other(&with(Gpu { cublaslt: None, ..gpu(0) })), 1);
}

#[test]
fn a_gpu_that_computes_wrong_numbers_is_an_error_each_time() {
    let home = tempfile::tempdir().unwrap();
    let machine = Fake { finds: Ok(false), ..fake(vec![Ok(gpu(0)), Ok(gpu(1))]) };
    for _ in 0..2 {
        let error = decided(&machine, home.path()).0.unwrap_err();
        assert_eq!((error.exit_code(), error.class(), error.code()), (69, "device", "selftest_failed"));
        let text = error.message();
        assert_eq!(
            text,
            "cuda:0 (Fake GPU) does not compute what it should: 1 of 2 checks failed, first `gemm` at [1, 1]: it is \
             5.0e-1 off, and 2.5e-3 is allowed"
        );
        let hint = error.hint().unwrap();
        assert!(hint.contains("selftest --device cuda:0") && hint.contains("--device cpu"), "{hint}");
    }
    assert_eq!(machine.checked.get(), 2, "nothing is remembered of a failure");
    let broken = Fake { finds: Err("it is gone"), ..fake(vec![Ok(gpu(0))]) };
    assert_eq!(decided(&broken, home.path()).0.unwrap_err().message(), "it is gone");
}

#[test]
fn a_stamp_that_cannot_be_read_or_written_is_none() {
    let home = tempfile::tempdir().unwrap();
    let machine = fake(vec![Ok(gpu(0))]);
    fs::create_dir(home.path().join("selftest")).unwrap();
    fs::write(home.path().join("selftest/cuda-0.json"), "{").unwrap();
    decided(&machine, home.path()).0.unwrap();
    assert_eq!(machine.checked.get(), 1);
    // A file where the folder should be.
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("selftest"), "").unwrap();
    let (device, said) = decided(&machine, home.path());
    assert_eq!(device.unwrap(), "cuda:0");
    assert!(
        said.len() == 2 && said[1].starts_with("note: that the selftest was passed is not in"),
        "{said:?}"
    );
    // No workspace at all.
    let (mut said, machine) = (0, fake(vec![Ok(gpu(0))]));
    assert_eq!(decide(&machine, None, &mut |_| said += 1).unwrap(), "cuda:0");
    assert_eq!((said, machine.checked.get()), (1, 1));
}

#[test]
fn a_passed_selftest_is_a_stamp() {
    let home = tempfile::tempdir().unwrap();
    let (machine, stamps) = (fake(vec![Ok(gpu(0))]), home.path().join("selftest"));
    stamp(&machine, Some(&stamps), &gpu(0), &mut |text| panic!("{text}"));
    let (device, said) = decided(&machine, home.path());
    assert_eq!((device.unwrap().as_str(), said.len(), machine.checked.get()), ("cuda:0", 0, 0));
}

#[test]
fn other_words_stay() {
    assert_eq!(resolve("cpu", true).unwrap(), "cpu");
    assert_eq!(resolve("cuda:7", true).unwrap(), "cuda:7");
    trust("cpu", true).unwrap();
    assert!(Program::own().file.is_some());
}
