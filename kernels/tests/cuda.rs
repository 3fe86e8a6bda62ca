//! The CUDA driver on machines without a GPU: what it says there, and what it asks of CUDA, seen by a stand-in library
//! (`fake_cuda.c`). Each test that needs the stand-in runs [`child`] in a process of its own.

#![cfg(feature = "cuda")]
#![allow(missing_docs, unsafe_code, clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::{env, fs, thread};

use tunesmith_kernels::gpu::cuda::{Clocks, Cuda, Monitor, RESOURCES};
use tunesmith_kernels::gpu::gemm::{Factor, gemm, gemm_onto};
use tunesmith_kernels::gpu::{Arg, Driver, Error, Launch, Slice, View, ViewMut, bf16};

#[test]
fn a_machine_without_cuda_gets_a_sentence() {
    match Cuda::new(0) {
        Ok(cuda) => assert!(cuda.facts().memory > 0),
        Err(error @ Error::Unavailable { .. }) => {
            let text = error.to_string();
            assert!(text.starts_with("No CUDA device can be used: ") && text.len() > 60, "{text}");
        }
        Err(error) => panic!("{error}"),
    }
}

/// Variables of the environment.
type Settings<'a> = &'a [(&'a str, &'a str)];

#[test]
fn what_is_missing_is_said() {
    let taken = [("FAKE_MODE", "3"), ("FAKE_FAIL", "cuDevicePrimaryCtxRetain@1:46")];
    let cases: [(&str, Settings<'_>, &str); 15] = [
        (
            "open 0",
            &[("FAKE_VERSION", "12040")],
            "the NVIDIA driver supports CUDA 12.4, and this build needs 1",
        ),
        (
            "open 0",
            &[("FAKE_VERSION", "11080")],
            "the NVIDIA driver supports CUDA 11.8, and this build needs 1",
        ),
        ("open 0", &[("FAKE_INIT", "100")], "the NVIDIA driver sees no GPU. See what nvidia-smi lists"),
        ("open 0", &[("FAKE_COUNT", "0")], "the NVIDIA driver sees no GPU."),
        ("open 0", &[("FAKE_INIT", "34")], "the libcuda that was found is the stub of a toolkit."),
        (
            "open 0",
            &[("FAKE_INIT", "802")],
            "the machine is not ready for CUDA: \"system not yet initialized\" (CUDA_ERROR_SYSTEM_NOT_READY, 802). On",
        ),
        ("open 0", &[("FAKE_INIT", "803")], "libcuda is not of the version of the running kernel module: "),
        (
            "open 0",
            &[("FAKE_INIT", "804")],
            "the libcuda that was found is a toolkit's, for forward compatibility: ",
        ),
        ("open 0", &[("FAKE_INIT", "999")], "the NVIDIA driver does not start: "),
        (
            "open 0",
            &[("FAKE_MAJOR", "7"), ("FAKE_MINOR", "5")],
            "`Fake GPU` has compute capability 7.5, and 8.0 is",
        ),
        ("open 3", &[("FAKE_COUNT", "2")], "there is no device 3: the NVIDIA driver sees 2 devices."),
        (
            "open 0",
            &[("FAKE_MODE", "2")],
            "`Fake GPU` is in compute mode `prohibited`, in which no program may use it. `nvidia-smi -i 0 -c DEFAULT` ch",
        ),
        (
            "open 0",
            &taken,
            "`Fake GPU` is taken by another program, and its compute mode allows one at a time: \"CUDA-capable device(s) is/are \
             busy or unavailable\" (CUDA_ERROR_DEVICE_UNAVAILABLE, 46). Wait for that program",
        ),
        (
            "open 0",
            &[("FAKE_FAIL", "cuDevicePrimaryCtxRetain@1:2")],
            "the 134.2 MB of `Fake GPU` are in use by other programs, and not even a context fits: \"out of memory\" (",
        ),
        (
            "open 0",
            &[("FAKE_FAIL", "cuStreamCreate@1:2"), ("FAKE_OTHERS", "130000000")],
            "its memory is used up, with 4.2 MB of 134.2 MB free: cuStreamCreate failed with \"out of memory\" (CUDA_ERROR_OUT",
        ),
    ];
    for (what, env, expected) in cases {
        let Some(out) = run(what, env) else { return };
        assert!(out.contains(&format!("No CUDA device can be used: {expected}")), "{what} {env:?}: {out}");
    }
}

#[test]
fn a_library_that_is_no_driver_is_not_called() {
    let Some(out) = run("open 0", &[("FAKE_FOLDER", "none")]) else { return };
    let expected =
        "No CUDA device can be used: the libcuda that was found is no NVIDIA driver: it lacks the driver's";
    assert!(out.contains(expected), "{out}");
}

#[test]
fn kernels_for_other_architectures_are_named() {
    let Some(out) = run("launch", &[("FAKE_PARAMS", "8,4,4,8,4"), ("FAKE_FAIL", "cuModuleLoadData@1+:209")])
    else {
        return;
    };
    let expected = "No CUDA device can be used: this build has kernels for ";
    assert!(out.contains(expected) && out.contains("and none for the device: \"no kernel image"), "{out}");
}

/// What a context that is broken answers from then on, to every call and in every order, is an error, and nothing else.
#[test]
fn a_device_that_failed_says_so_and_is_left_in_peace() {
    let wait = "cuStreamSynchronize reported \"an illegal memory access was encountered\" (CUDA_ERROR_ILLEGAL_ADDRESS, 700), after \
                kernel `";
    for (fail, expected) in [
        (
            "cuLaunchKernel@1:719",
            "` reported \"unspecified launch failure\" (CUDA_ERROR_LAUNCH_FAILED, 719); this process",
        ),
        ("cuLaunchKernel@1:719", "The GPU failed: "),
        ("cuStreamSynchronize@1:700", wait),
        (
            "cuLaunchKernel@1~:214",
            "reported CUBLAS_STATUS_EXECUTION_FAILED (13) and the driver \"uncorrectable ECC",
        ),
        ("cuLaunchKernel@1~:214", "(CUDA_ERROR_ECC_UNCORRECTABLE, 214), after kernel `"),
        (
            "cublasLtMatmul@1:13",
            "the product [2, 2] x [2, 2] reported CUBLAS_STATUS_EXECUTION_FAILED (13), after kernel `",
        ),
        ("cuMemcpyHtoDAsync_v2@4:719", "cuMemcpyHtoDAsync reported \"unspecified"),
        // Nonsense is a bug, and breaks nothing.
        ("cuLaunchKernel@1:1", "` failed: \"some error\" (CUDA_ERROR, 1)"),
    ] {
        let Some(out) = run("fail", &[("FAKE_DUMB", "1"), ("FAKE_PARAMS", "8"), ("FAKE_FAIL", fail)]) else {
            return;
        };
        assert!(
            out.contains(expected.trim_start_matches('`')) && out.contains("all dropped"),
            "{fail}: {out}"
        );
    }
}

#[test]
fn a_machine_without_cublaslt_gets_a_sentence() {
    let Some(out) = run("open 0", &[("FAKE_WITHOUT_LT", "1")]) else { return };
    let expected =
        "No CUDA device can be used: cuBLASLt (libcublasLt.so.13) is not found. Install it with `pip install";
    // Where a real one lies, it is found.
    assert!(out.contains(expected) || out.contains("opened"), "{out}");
}

#[test]
fn a_device_is_set_up_used_and_taken_down() {
    let Some(out) = run("use", &[]) else { return };
    assert!(out.contains("all done"), "{out}");
    // Of the four candidates the second fails and the third is the fastest: tried four times each, then used. Products
    // that add are tried on memory of their own.
    assert!(out.contains("product by 1\nproduct by 3\nproduct by 4\nproduct by 3\n"), "{out}");
}

#[test]
fn launches_pass_what_they_are_given() {
    let Some(out) = run("launch", &[("FAKE_PARAMS", "8,4,4,8,4")]) else { return };
    let expected = "launch 3,2,1 128 65536 123456789abcdef0 ffffffff 7 fffffffffffffffe 3f800000";
    assert!(out.contains(expected), "{out}");
    assert!(out.contains("its parameters take [8, 4, 4, 8, 4] bytes, the arguments [8, 4]"), "{out}");
    assert!(out.contains("no_such_kernel failed: this build has no kernel of that name"), "{out}");
}

#[test]
fn no_memory_is_said_in_numbers() {
    let Some(out) = run("exhaust", &[("FAKE_MEMORY", "50000000"), ("FAKE_OTHERS", "999")]) else { return };
    let expected = "Not enough device memory: 20.0 MB could not be allocated; of 50.0 MB this process holds 33.6 MB, the driver \
                    and other programs 999 bytes, and 16.4 MB are free";
    assert!(out.contains(expected), "{out}");
    let Some(out) = run("exhaust", &[("FAKE_FAIL", "cuMemAllocAsync@2:2")]) else { return };
    assert!(
        out.contains("there was room"),
        "what the pool holds is given back, and it is tried again: {out}"
    );
}

#[test]
fn the_meters_of_a_gpu_are_read() {
    let (none, old) = (("FAKE_NVML", "none"), ("FAKE_NVML", "old"));
    let read = "power Ok(512.345), energy Ok(2.5), temperature Ok(61), clocks Ok(Clocks { multiprocessors: 1755, memory: 3201 }), \
                slowed by Ok([\"the power limit\", \"heat, by the driver\"]), 20 processes, the last Ok([(118, Some(18000)), (119, None)])";
    for setting in [("", ""), ("FAKE_NVML_NO_BUS", "1")] {
        let Some(out) = run("meters 0", &[setting]) else { return };
        assert!(out.contains(read), "{setting:?}: {out}");
    }
    let Some(out) = run("meters 0", &[old]) else { return };
    let lacking =
        "the NVIDIA driver's NVML has no nvmlDeviceGetTotalEnergyConsumption; a newer driver has it";
    assert!(out.contains("power Ok(512.345)") && out.contains(lacking), "{out}");
    assert!(out.contains("slowed by Ok([\"the power limit\"])"), "{out}");
    let Some(out) = run("meters 0", &[("FAKE_NVML_BLIND", "1")]) else { return };
    assert!(
        out.contains("this GPU or its driver does not tell (nvmlDeviceGetTotalEnergyConsumption)"),
        "{out}"
    );
    assert!(out.contains("temperature Ok(61)"), "{out}");

    // A device that NVML does not have, a driver that is not there, no NVML: each is a reason.
    let Some(out) = run("meters 1", &[("FAKE_COUNT", "2")]) else { return };
    assert!(out.contains("no meters: nvmlDeviceGetHandleByUUID failed: Not Found (6)"), "{out}");
    let Some(out) = run("meters 0", &[("FAKE_NVML_INIT", "9")]) else { return };
    assert!(out.contains("no meters: nvmlInit_v2 failed: Driver Not Loaded (9)"), "{out}");
    let Some(out) = run("meters 0", &[("FAKE_INIT", "100")]) else { return };
    assert!(out.contains("no meters: the NVIDIA driver sees no GPU"), "{out}");
    let Some(out) = run("meters 0", &[none]) else { return };
    // Where a real one lies, it is found, and knows nothing of the stand-in's GPU.
    assert!(out.contains("no meters: "), "{out}");
}

/// Runs [`child`] against the stand-in and returns what both said, or nothing where it cannot be built.
fn run(what: &str, settings: &[(&str, &str)]) -> Option<String> {
    static FAKE: LazyLock<Option<PathBuf>> = LazyLock::new(build);
    let without_lt = settings.iter().any(|(name, _)| *name == "FAKE_WITHOUT_LT");
    let root = FAKE.as_ref()?;
    let named = settings.iter().find(|(name, _)| *name == "FAKE_FOLDER").map(|(_, folder)| *folder);
    let folder = root.join(named.unwrap_or(if without_lt { "driver" } else { "both" }));
    let meters = settings.iter().find(|(name, _)| *name == "FAKE_NVML").map_or("new", |(_, which)| *which);
    let folders = env::join_paths([folder, root.join("nvml").join(meters)]).unwrap();
    let exe = env::current_exe().unwrap();
    let mut command = Command::new(exe);
    command.args(["child", "--exact", "--ignored", "--nocapture"]).env("LD_LIBRARY_PATH", folders);
    command.env("TUNESMITH_CHILD", what);
    command.envs(settings.iter().copied().filter(|(name, _)| !name.is_empty()));
    let out = command.output().unwrap();
    let out = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.contains("test result: ok"), "{what}: {out}");
    assert!(!out.contains("fake:"), "{what}: {out}");
    if named.is_some() || settings.iter().any(|(name, _)| *name == "FAKE_DUMB") {
        return Some(out);
    }
    let nothing = "left: contexts 0 streams 0 events 0 modules 0 pinned 0 handles 0 descriptors 0";
    assert!(
        out.lines().filter(|line| line.starts_with("left:")).all(|line| line == nothing),
        "{what}: {out}"
    );
    assert!(out.trim_end().ends_with(nothing), "{what}: {out}");
    Some(out)
}

fn build() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fake_cuda");
    let _ = fs::remove_dir_all(&root);
    fs::create_dir_all(root.join("driver")).unwrap();
    fs::create_dir_all(root.join("both")).unwrap();
    let library = root.join("driver/libcuda.so");
    let compile = |source: &str, library: &Path, more: &[&str]| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(source);
        fs::create_dir_all(library.parent().unwrap()).unwrap();
        let mut command = Command::new("cc");
        command.args(["-shared", "-fPIC", "-O1"]).args(more).arg("-o").arg(library).arg(source);
        command.status().is_ok_and(|status| status.success())
    };
    let meters = |age: &str| root.join("nvml").join(age).join("libnvidia-ml.so.1");
    let built = compile("fake_cuda.c", &library, &[])
        && compile("fake_nvml.c", &meters("new"), &[])
        && compile("fake_nvml.c", &meters("old"), &["-DOLD"]);
    if !built {
        eprintln!("skipped: no C compiler");
        return None;
    }
    fs::create_dir_all(root.join("none")).unwrap();
    fs::write(root.join("none.c"), "int nothing;\n").unwrap();
    let none = [root.join("none/libcuda.so"), root.join("none.c")];
    assert!(Command::new("cc").args(["-shared", "-fPIC", "-o"]).args(none).status().unwrap().success());
    // One file under two names is one library with one state.
    for name in ["libcuda.so", "libcublasLt.so"] {
        std::os::unix::fs::symlink(&library, root.join("both").join(name)).unwrap();
    }
    Some(root)
}

#[test]
#[ignore = "run by the other tests, in a process of its own"]
fn child() {
    let what = env::var("TUNESMITH_CHILD").unwrap_or_default();
    match what.as_str() {
        "use" => {
            upload_clear_download();
            rows_with_gaps();
            read_later();
            memory_is_counted();
            products();
            println!("all done");
        }
        "launch" => launches(),
        _ if what.starts_with("meters ") => meters(what["meters ".len()..].parse().unwrap()),
        "exhaust" => {
            let slice = Slice::<_, u8>::uninit(&Cuda::new(0).unwrap(), 20_000_000);
            println!("{}", slice.map_or_else(|e| e.to_string(), |_| "there was room".into()));
        }
        "fail" => fail(),
        _ => {
            let Some(ordinal) = what.strip_prefix("open ") else { return };
            println!(
                "{}",
                Cuda::new(ordinal.parse().unwrap()).map_or_else(|e| e.to_string(), |_| "opened".into())
            );
        }
    }
}

fn meters(ordinal: usize) {
    // Without a context, and through an open device.
    let monitors =
        [Monitor::open(ordinal), Cuda::new(ordinal).map_err(|e| e.to_string()).and_then(|d| d.monitor())];
    assert_eq!(monitors[0].is_ok(), monitors[1].is_ok());
    for monitor in monitors {
        let monitor = match monitor {
            Ok(monitor) => monitor,
            Err(why) => {
                println!("no meters: {why}");
                continue;
            }
        };
        let before = monitor.energy();
        let energy = monitor.energy().and_then(|now| before.map(|before| now - before));
        let clocks: Result<Clocks, String> = monitor.clocks();
        print!("power {:?}, energy {energy:?}, ", monitor.power());
        print!(
            "temperature {:?}, clocks {clocks:?}, slowed by {:?}, ",
            monitor.temperature(),
            monitor.slowdowns()
        );
        let processes = monitor.processes();
        let count = processes.as_ref().map_or(0, Vec::len);
        let last = processes.map(|all| all[all.len() - 2..].to_vec());
        println!("{count} processes, the last {last:?}");
    }
}

/// Bytes that differ from their neighbours and from those 256 away.
fn bytes(len: usize, salt: usize) -> Vec<u8> {
    (0..len).map(|i| (i.wrapping_mul(31) ^ (i >> 8) ^ salt) as u8).collect()
}

fn upload_clear_download() {
    let d = Cuda::new(0).unwrap();
    assert_eq!(d.limits().multiprocessors, 132);
    assert_eq!(d.facts().capability, (9, 0));
    // More than the ring of page-locked memory holds, in pieces that end anywhere, from host memory that is written
    // over at once: the device copies late.
    let mut s = Slice::<_, u8>::zeros(&d, 45_000_000).unwrap();
    let mut at = 0;
    for (i, len) in [5, 8_388_609, 3_000_001, 20_000_000, 1, 9_000_000, 4_000_000].into_iter().enumerate() {
        let mut piece = bytes(len, i);
        s.write(&d, at, &piece).unwrap();
        piece.fill(0xaa);
        at += len;
    }
    let all = s.to_host(&d).unwrap();
    let mut at = 0;
    for (i, len) in [5, 8_388_609, 3_000_001, 20_000_000, 1, 9_000_000, 4_000_000].into_iter().enumerate() {
        assert!(all[at..at + len] == bytes(len, i), "piece {i}");
        at += len;
    }
    assert!(all[at..].iter().all(|&v| v == 0));
    // Many small ones, as in a step.
    for i in 0..3000_usize {
        let value = i as u32;
        s.write(&d, 4 * i, &value.to_le_bytes()).unwrap();
    }
    assert_eq!(s.read(&d, 4 * 2999..4 * 3000).unwrap(), 2999_u32.to_le_bytes());

    let (mut from, mut to) = (d.alloc(1000).unwrap(), d.alloc(1000).unwrap());
    d.upload(&bytes(1000, 9), &mut from, 0).unwrap();
    d.copy(&from, &mut to).unwrap();
    let mut copied = vec![0; 1000];
    d.download(&to, 0, &mut copied).unwrap();
    assert_eq!(copied, bytes(1000, 9));
    d.copy(&from, &mut d.alloc(999).unwrap()).unwrap_err();
    drop((from, to));

    // From another thread, where no context is current; dropped there too, after the driver itself.
    let clone = d.clone();
    drop(d);
    thread::spawn(move || {
        s.clear(&clone).unwrap();
        assert!(s.read(&clone, 0..1000).unwrap().iter().all(|&v| v == 0));
        clone.synchronize().unwrap();
        drop(clone);
        drop(s);
    })
    .join()
    .unwrap();
}

/// Rows through the ring that a closure fills: whole ones, ones longer than a piece, and a stop on the way.
fn rows_with_gaps() {
    let d = Cuda::new(0).unwrap();
    for (rows, cols, gap) in
        [(1, 7, 0), (5, 3000, 11), (3000, 4096, 64), (2, 9_000_000, 5), (1000, 20_001, 0)]
    {
        let (ld, at) = (cols + gap, 3);
        let host = bytes(rows * cols, rows);
        let mut out = Slice::<_, u8>::zeros(&d, at + rows * ld).unwrap();
        let view = ViewMut { slice: &mut out, at, rows, cols, ld };
        let mut most = 0;
        let fill = &mut |from: usize, piece: &mut [u8]| {
            most = most.max(piece.len());
            piece.copy_from_slice(&host[from..from + piece.len()]);
            ControlFlow::Continue(())
        };
        view.fill_with(&d, fill).unwrap();
        assert!(most <= 8 << 20);
        let mut expected = vec![0; at + rows * ld];
        for (row, values) in host.chunks(cols).enumerate() {
            expected[at + row * ld..][..cols].copy_from_slice(values);
        }
        assert!(out.to_host(&d).unwrap() == expected, "[{rows}, {cols}] with gaps of {gap}");
    }
    let mut out = Slice::<_, u8>::zeros(&d, 20 << 20).unwrap();
    let view = ViewMut::new(&mut out, 1, 20 << 20, 20 << 20);
    let fill = &mut |from: usize, piece: &mut [u8]| {
        piece.fill(1);
        if from == 0 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    view.fill_with(&d, fill).unwrap();
    let out = out.to_host(&d).unwrap();
    assert!(out[..8 << 20].iter().all(|&v| v == 1) && out[8 << 20..].iter().all(|&v| v == 0));
}

/// Values that are read late are those of when they were asked for, whatever is written to them since and in whichever
/// order they are waited for; buffers are used again, also those that nobody waited for.
fn read_later() {
    let d = Cuda::new(0).unwrap();
    let mut s = Slice::<_, u8>::zeros(&d, 100_000).unwrap();
    for round in 0..200_usize {
        let pieces: [usize; 3] = [1 + round, 70_000 + round, 3];
        let queued: Vec<_> = pieces
            .iter()
            .enumerate()
            .map(|(i, &len)| {
                s.write(&d, i, &bytes(len, round + i)).unwrap();
                s.read_later(&d, i..i + len).unwrap()
            })
            .collect();
        s.clear(&d).unwrap();
        for (i, later) in queued.into_iter().enumerate().rev() {
            if (round + i) % 5 != 0 {
                assert!(later.wait(&d).unwrap() == bytes(pieces[i], round + i), "round {round}, piece {i}");
            }
        }
    }
    assert!(s.read_later(&d, 7..7).unwrap().wait(&d).unwrap().is_empty());
    assert!(s.read_later(&d, 99_999..100_001).is_err());
    // The values may be gone by then, and so may every other user of the device.
    s.write(&d, 0, &[5, 6, 7]).unwrap();
    let later = s.read_later(&d, 0..3).unwrap();
    let clone = d.clone();
    drop((s, d));
    let values = thread::spawn(move || later.wait(&clone).unwrap()).join().unwrap();
    assert_eq!(values, [5, 6, 7]);
    let d = Cuda::new(0).unwrap();
    let s = Slice::<_, u8>::zeros(&d, 8).unwrap();
    let never = s.read_later(&d, 0..8).unwrap();
    drop((s, d));
    drop(never);
}

fn memory_is_counted() {
    let d = Cuda::new(0).unwrap();
    let at_rest = d.memory().unwrap().used;
    let s = Slice::<_, f32>::uninit(&d, 1000).unwrap();
    assert_eq!(d.memory().unwrap().used, at_rest + 4000);
    let seen = d.device_memory().unwrap().unwrap();
    assert_eq!((seen.used, seen.free + seen.used), (at_rest + 4000, seen.total));
    drop(s);
    let now = d.memory().unwrap();
    assert_eq!((now.used, now.peak >= at_rest + 4000), (at_rest, true));
    d.forget_peak().unwrap();
    assert_eq!(d.memory().unwrap().peak, at_rest);
    let (value, took) = d.time(|_| Ok(5)).unwrap();
    assert_eq!((value, took.as_nanos()), (5, 0));
}

fn products() {
    let d = Cuda::new(0).unwrap();
    d.set_gemm_trials(true);
    for (m, n, k) in [(5, 7, 3), (1, 4, 6), (4, 1, 1), (3, 2, 0)] {
        for flags in 0..8 {
            let (ta, tb, full) = (flags & 1 != 0, flags & 2 != 0, flags & 4 != 0);
            for (alpha, beta) in [(1.0, 0.0), (0.5, 1.0), (-2.0, 0.25)] {
                if full {
                    product::<f32>(&d, (m, n, k), (ta, tb), (alpha, beta), |v| v, |v| v);
                } else {
                    product::<bf16>(&d, (m, n, k), (ta, tb), (alpha, beta), bf16::from_f32, bf16::to_f32);
                }
            }
        }
    }
    let ones = |n: usize| Slice::from_host(&d, &vec![bf16::ONE; n]).unwrap();
    let (a, b, onto, mut out) = (ones(6), ones(8), ones(12), ones(12));
    let (fa, fb) = (Factor::new(View::new(&a, 3, 2, 2)), Factor::new(View::new(&b, 2, 4, 4)));
    gemm_onto(&d, fa, fb, View::new(&onto, 3, 4, 4), ViewMut::new(&mut out, 3, 4, 4)).unwrap();
    assert_eq!(onto.to_host(&d).unwrap(), [bf16::ONE; 12]);
    assert_eq!(out.to_host(&d).unwrap(), [bf16::from_f32(3.0); 12]);
    // Trying candidates takes memory for products that add, and none of it counts.
    let peak = d.memory().unwrap().peak;
    d.set_gemm_trials(false);
    product::<bf16>(&d, (9, 9, 9), (false, false), (1.0, 0.0), bf16::from_f32, bf16::to_f32);
    assert!(d.memory().unwrap().peak < peak + 4096);
}

fn product<T: tunesmith_kernels::gpu::gemm::Output>(
    d: &Cuda,
    (m, n, k): (usize, usize, usize),
    (ta, tb): (bool, bool),
    (alpha, beta): (f32, f32),
    from: fn(f32) -> T,
    to: fn(T) -> f32,
) {
    // Small whole numbers: every sum is exact. Leading dimensions and offsets that are multiples of nothing.
    let value = |i: usize| (i * 7 % 11) as f32 - 5.0;
    let ((ar, ac), (br, bc)) = (if ta { (k, m) } else { (m, k) }, if tb { (n, k) } else { (k, n) });
    let (lda, ldb, ldc) = (ac + 3, bc + 1, n + 5);
    let (ata, atb, at) = (3, 4, 10);
    let host = |len: usize| (0..len).map(|i| bf16::from_f32(value(i))).collect::<Vec<_>>();
    let (ha, hb) = (host(ata + ar * lda), host(atb + br * ldb));
    let hc: Vec<T> = (0..at + m * ldc).map(|i| from(value(i + 4))).collect();
    let (a, b) = (Slice::from_host(d, &ha).unwrap(), Slice::from_host(d, &hb).unwrap());
    let mut c = Slice::from_host(d, &hc).unwrap();
    let va = View { slice: &a, at: ata, rows: ar, cols: ac, ld: lda };
    let vb = View { slice: &b, at: atb, rows: br, cols: bc, ld: ldb };
    let fa = if ta { Factor::new(va).t() } else { Factor::new(va) };
    let fb = if tb { Factor::new(vb).t() } else { Factor::new(vb) };
    let vc = ViewMut { slice: &mut c, at, rows: m, cols: n, ld: ldc };
    gemm(d, alpha, fa, fb, beta, vc).unwrap();

    let out = c.to_host(d).unwrap();
    for i in 0..at + m * ldc {
        let (row, col) = (i.saturating_sub(at) / ldc, i.saturating_sub(at) % ldc);
        let mut expected = to(hc[i]);
        if i >= at && col < n {
            let sum: f32 = (0..k)
                .map(|p| {
                    let x = if ta { ha[ata + p * lda + row] } else { ha[ata + row * lda + p] };
                    let y = if tb { hb[atb + col * ldb + p] } else { hb[atb + p * ldb + col] };
                    x.to_f32() * y.to_f32()
                })
                .sum();
            expected = to(from(alpha * sum + beta * expected));
        }
        assert_eq!(to(out[i]), expected, "[{m}, {n}, {k}] {ta} {tb} {alpha} {beta}: value {i}");
    }
}

fn launches() {
    let d = Cuda::new(0).unwrap();
    let kernel = RESOURCES.lines().nth(1).unwrap().split(' ').next().unwrap();
    let args = [Arg::Address(0x1234_5678_9abc_def0), Arg::I32(-1), Arg::U32(7), Arg::I64(-2), Arg::F32(1.0)];
    let launch = Launch { kernel, grid: [3, 2, 1], threads: 128, shared: 65_536, args: &args };
    // SAFETY: the stand-in looks at the arguments and at nothing that they name.
    unsafe {
        if let Err(error @ Error::Unavailable { .. }) = d.launch(&launch) {
            println!("{error}");
            return;
        }
        d.launch(&launch).unwrap();
        println!("{}", d.launch(&Launch { args: &args[..2], ..launch }).unwrap_err());
        println!("{}", d.launch(&Launch { kernel: "no_such_kernel", ..launch }).unwrap_err());
    }
}

/// Uploads, launches a kernel, multiplies and waits, until something fails; then tries it all again and drops everything.
fn fail() {
    let d = Cuda::new(0).unwrap();
    let held = Slice::from_host(&d, &[bf16::ONE; 4]).unwrap();
    let mut out = Slice::<_, bf16>::zeros(&d, 4).unwrap();
    let kernel = RESOURCES.lines().nth(1).unwrap().split(' ').next().unwrap();
    let mut work = || -> Result<(), Error> {
        let other = Slice::from_host(&d, &[bf16::ONE; 4])?;
        let args = [Arg::Address(0x100)];
        // SAFETY: the stand-in looks at the argument and at nothing that it names.
        unsafe { d.launch(&Launch { kernel, grid: [1, 1, 1], threads: 32, shared: 0, args: &args })? };
        let (a, b) = (Factor::new(View::new(&held, 2, 2, 2)), Factor::new(View::new(&other, 2, 2, 2)));
        gemm(&d, 1.0, a, b, 0.0, ViewMut::new(&mut out, 2, 2, 2))?;
        let _ = Slice::from_host(&d, &[bf16::ONE; 4])?;
        let _ = Slice::from_host(&d, &[bf16::ONE; 4])?;
        d.synchronize()
    };
    let first = work().unwrap_err();
    println!("{first}");
    let again = work();
    let broken = !env::var("FAKE_FAIL").unwrap().contains("Matmul") && matches!(first, Error::Device { .. });
    assert_eq!(again.is_err(), broken, "{again:?}");
    if broken {
        assert!(matches!(again, Err(Error::Device { .. })), "{again:?}");
        assert!(matches!(d.alloc(10), Err(Error::Device { .. })));
        assert!(held.read(&d, 0..4).is_err());
    }
    drop(d);
    drop((held, out));
    println!("all dropped");
}
