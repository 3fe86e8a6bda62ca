//! Compiles `cuda/*.cu` into one fatbin each and writes a table that embeds them. Only with feature `cuda`.
//!
//! What was compiled once is kept in the cache folder (`TUNESMITH_CACHE`, else `~/.cache/tunesmith`), by a hash of all that it is
//! made from, so that a fresh clone compiles only what changed. Beside each fatbin lies what ptxas said of it, and `kernels.txt` sums that up: registers and spills by kernel and
//! architecture. `TUNESMITH_CUDA_ARCHS` narrows the architectures, as in `80,90a` or `89,90+ptx`;
//! `TUNESMITH_NVCC_FLAGS` adds flags, as in `-lineinfo` for profilers.

// A build script talks to cargo on its standard output.
#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs, thread};

/// Machine code for the cards of the last four generations before Blackwell, and PTX for what comes after them.
const ARCHITECTURES: &str = "80,86,89,90a,90+ptx";
const FLAGS: &[&str] = &["-fatbin", "-O3", "-std=c++17", "-Xptxas", "-v", "-Xfatbin", "-compress-all"];

type Result<T> = std::result::Result<T, String>;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    if let Err(message) = build() {
        for line in message.lines() {
            println!("cargo::error={line}");
        }
    }
}

fn build() -> Result<()> {
    println!("cargo::rerun-if-changed=cuda");
    for name in
        ["NVCC", "CUDA_HOME", "CUDA_PATH", "TUNESMITH_CACHE", "TUNESMITH_CUDA_ARCHS", "TUNESMITH_NVCC_FLAGS"]
    {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let nvcc = find_nvcc()?;
    println!("cargo::rerun-if-changed={}", nvcc.display());
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo gave no OUT_DIR")?);

    let (sources, headers) = sources()?;
    let kept = cache().map(|cache| cache.join("fatbins"));
    let compiler = Compiler { version: version(&nvcc)?, nvcc, targets: targets(), headers, out, kept };
    let reports = in_parallel(&sources, |source| compiler.compile(source))?;
    write_table(&compiler, &sources, &reports)
}

struct Compiler {
    nvcc: PathBuf,
    version: String,
    targets: Vec<String>,
    headers: String,
    out: PathBuf,
    /// Where fatbins of other builds are, if this user has a cache folder.
    kept: Option<PathBuf>,
}

impl Compiler {
    /// Compiles one file unless this build folder or the cache has it, and returns what ptxas said.
    fn compile(&self, source: &Path) -> Result<String> {
        let fatbin = self.out.join(name(source)).with_extension("fatbin");
        let (report, stamp) = (fatbin.with_extension("ptxas"), fatbin.with_extension("stamp"));
        let key = self.key(source)?;
        if fatbin.exists() && fs::read_to_string(&stamp).is_ok_and(|old| old == key) {
            return read(&report);
        }
        let kept = self.kept.as_ref().map(|kept| kept.join(format!("{}-{key}", name(source))));
        if let Some(said) = kept.as_ref().and_then(|kept| take(kept, &fatbin)) {
            write(&report, &said)?;
            write(&stamp, &key)?;
            return Ok(said);
        }
        let mut command = Command::new(&self.nvcc);
        command.args(FLAGS).args(&self.targets).arg("-o").arg(&fatbin).arg(source);
        let output = command.output().map_err(|e| format!("{} cannot be run: {e}", self.nvcc.display()))?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.success() {
            let told = said.lines().filter(|line| !line.contains("ptxas info") && !line.trim().is_empty());
            let told = told.take(20).collect::<Vec<_>>().join("\n");
            return Err(format!("nvcc cannot compile {}:\n{told}", source.display()));
        }
        write(&report, &said)?;
        write(&stamp, &key)?;
        if let Some(kept) = kept {
            // A cache that cannot be written costs time and nothing else.
            let _ = keep(&kept, &fatbin, &said);
        }
        Ok(said)
    }

    /// Changes with everything that the fatbin is made from.
    fn key(&self, source: &Path) -> Result<String> {
        let mut hasher = DefaultHasher::new();
        (&self.version, &self.targets, FLAGS, &self.headers, read(source)?).hash(&mut hasher);
        Ok(format!("{:016x}", hasher.finish()))
    }
}

/// Takes a fatbin out of the cache, with what ptxas said of it.
fn take(kept: &Path, fatbin: &Path) -> Option<String> {
    let said = fs::read_to_string(kept.join("ptxas")).ok()?;
    fs::copy(kept.join("fatbin"), fatbin).ok()?;
    Some(said)
}

/// Puts a fatbin into the cache: a folder made aside and renamed, so that another build sees all of it or nothing.
fn keep(kept: &Path, fatbin: &Path, said: &str) -> std::io::Result<()> {
    let aside = kept.with_extension(format!("tmp{}", std::process::id()));
    fs::create_dir_all(&aside)?;
    fs::copy(fatbin, aside.join("fatbin"))?;
    fs::write(aside.join("ptxas"), said)?;
    fs::rename(&aside, kept).or_else(|_| fs::remove_dir_all(&aside))
}

/// The folder for what outlives clones and build folders.
fn cache() -> Option<PathBuf> {
    let given = env::var_os("TUNESMITH_CACHE").filter(|v| !v.is_empty()).map(PathBuf::from);
    given.or_else(|| Some(Path::new(&env::var_os("HOME")?).join(".cache/tunesmith")))
}

/// `NVCC`, the toolkit that the environment names, `PATH`, then the folder of `scripts/cuda-toolkit.sh`.
fn find_nvcc() -> Result<PathBuf> {
    if let Some(nvcc) = env::var_os("NVCC").filter(|v| !v.is_empty()) {
        let nvcc = PathBuf::from(nvcc);
        return if nvcc.is_file() {
            Ok(nvcc)
        } else {
            Err(format!("NVCC is {}: no such file", nvcc.display()))
        };
    }
    let mut folders: Vec<PathBuf> = Vec::new();
    folders
        .extend(["CUDA_HOME", "CUDA_PATH"].iter().filter_map(env::var_os).map(|v| Path::new(&v).join("bin")));
    folders.extend(env::var_os("PATH").iter().flat_map(env::split_paths));
    folders.push(PathBuf::from("/usr/local/cuda/bin"));
    folders.extend(cache().map(|cache| cache.join("cuda/current/bin")));
    folders.into_iter().map(|folder| folder.join("nvcc")).find(|nvcc| nvcc.is_file()).ok_or_else(|| {
        "feature `cuda` needs nvcc: run scripts/cuda-toolkit.sh, or set CUDA_HOME to a CUDA toolkit".into()
    })
}

fn version(nvcc: &Path) -> Result<String> {
    let output = Command::new(nvcc).arg("--version").output();
    let output = output.map_err(|e| format!("{} cannot be run: {e}", nvcc.display()))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The toolkit's major version: a driver of that CUDA version or newer can load what it makes.
fn major(version: &str) -> Result<u32> {
    let digits = version.split("release ").nth(1).and_then(|rest| rest.split('.').next());
    digits.and_then(|v| v.parse().ok()).ok_or_else(|| format!("nvcc tells no version: {version}"))
}

/// What the environment can choose of the flags.
fn targets() -> Vec<String> {
    let list = env::var("TUNESMITH_CUDA_ARCHS").ok().filter(|v| !v.trim().is_empty());
    let list = list.as_deref().unwrap_or(ARCHITECTURES);
    let target = |arch: &str| match arch.strip_suffix("+ptx") {
        Some(arch) => format!("-gencode=arch=compute_{arch},code=compute_{arch}"),
        None => format!("-gencode=arch=compute_{arch},code=sm_{arch}"),
    };
    let added = env::var("TUNESMITH_NVCC_FLAGS").unwrap_or_default();
    let targets = list.split(',').map(str::trim).filter(|arch| !arch.is_empty()).map(target);
    targets.chain(added.split_whitespace().map(String::from)).collect()
}

/// What the flags make code for, as in `sm_80, sm_90a, compute_90`.
fn architectures(flags: &[String]) -> String {
    let codes = flags.iter().filter_map(|flag| flag.rsplit_once("code="));
    codes.map(|(_, code)| code).map(|code| code.trim_matches(['[', ']', '"'])).collect::<Vec<_>>().join(", ")
}

/// The `.cu` files, and the text of all headers.
fn sources() -> Result<(Vec<PathBuf>, String)> {
    let folder = PathBuf::from("cuda");
    let entries = fs::read_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.sort();
    let mut headers = String::new();
    for header in files.iter().filter(|file| file.extension().is_some_and(|v| v == "cuh")) {
        headers += &read(header)?;
    }
    files.retain(|file| file.extension().is_some_and(|v| v == "cu"));
    Ok((files, headers))
}

/// As many calls at a time as cargo allows jobs, the longest files first.
fn in_parallel(sources: &[PathBuf], compile: impl Fn(&Path) -> Result<String> + Sync) -> Result<Vec<String>> {
    let mut order: Vec<usize> = (0..sources.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(length(&sources[i])));
    let jobs = env::var("NUM_JOBS").ok().and_then(|v| v.parse().ok()).unwrap_or(2_usize).max(1);
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        while let Some(&i) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
            done.push((i, compile(&sources[i])));
        }
        done
    };
    let mut done: Vec<(usize, Result<String>)> = thread::scope(|scope| {
        let threads: Vec<_> = (0..jobs.min(sources.len())).map(|_| scope.spawn(work)).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).flatten().collect()
    });
    if done.len() != sources.len() {
        return Err("a compile thread died".into());
    }
    done.sort_by_key(|(i, _)| *i);
    done.into_iter().map(|(_, report)| report).collect()
}

/// Bytes of a file and of the headers that it names.
fn length(source: &Path) -> usize {
    let text = fs::read_to_string(source).unwrap_or_default();
    let named = text.lines().filter_map(|line| line.strip_prefix("#include \"")?.strip_suffix('"'));
    let header = |name: &str| fs::metadata(source.with_file_name(name)).map_or(0, |v| v.len() as usize);
    text.len() + named.map(header).sum::<usize>()
}

/// What ptxas tells of one kernel on one architecture.
struct Usage {
    kernel: String,
    architecture: String,
    registers: u32,
    /// Bytes of local memory that registers were moved to and from.
    spills: u32,
    /// Bytes of local memory in all.
    stack: u32,
}

fn usages(report: &str) -> Vec<Usage> {
    let mut out: Vec<Usage> = Vec::new();
    let number = |line: &str, before: &str| -> u32 {
        let words = line.split(before).next().unwrap_or_default();
        words.rsplit(' ').find(|v| !v.is_empty()).and_then(|v| v.parse().ok()).unwrap_or(0)
    };
    for line in report.lines() {
        let quoted: Vec<&str> = line.split('\'').collect();
        if line.contains("Compiling entry function") && quoted.len() >= 4 {
            let (kernel, architecture) = (quoted[1].to_owned(), quoted[3].to_owned());
            out.push(Usage { kernel, architecture, registers: 0, spills: 0, stack: 0 });
        } else if let Some(usage) = out.last_mut() {
            if line.contains("bytes spill stores") {
                usage.stack = number(line, " bytes stack frame");
                usage.spills = number(line, " bytes spill stores") + number(line, " bytes spill loads");
            } else if line.contains(" registers") {
                usage.registers = number(line, " registers");
            }
        }
    }
    out
}

/// `fatbins.rs` for `src/gpu/cuda`, and `kernels.txt` for people.
fn write_table(compiler: &Compiler, sources: &[PathBuf], reports: &[String]) -> Result<()> {
    let mut table = format!("pub(super) const TOOLKIT: u32 = {};\n", major(&compiler.version)?);
    let _ = writeln!(table, "const ARCHITECTURES: &str = {:?};", architectures(&compiler.targets));
    table += "const FATBINS: &[Fatbin] = &[\n";
    let mut text = String::from("kernel architecture registers spilled_bytes stack_bytes\n");
    let mut owner: BTreeMap<String, String> = BTreeMap::new();
    for (source, report) in sources.iter().zip(reports) {
        let file = name(source);
        for line in report.lines().filter(|line| line.contains("warning") || line.contains("Potential")) {
            println!("cargo::warning={file}.cu: {line}");
        }
        let mut kernels = Vec::new();
        for usage in usages(report) {
            let Usage { kernel, architecture, registers, spills, stack } = usage;
            if spills > 0 {
                println!("cargo::warning={file}.cu: `{kernel}` spills {spills} bytes on {architecture}");
            }
            let _ = writeln!(text, "{kernel} {architecture} {registers} {spills} {stack}");
            if !kernels.contains(&kernel) {
                kernels.push(kernel);
            }
        }
        for kernel in &kernels {
            if let Some(other) = owner.insert(kernel.clone(), file.clone()) {
                return Err(format!("kernel `{kernel}` is in {other}.cu and in {file}.cu"));
            }
        }
        let image = format!("include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{file}.fatbin\"))");
        let _ = writeln!(
            table,
            "    Fatbin {{ file: {file:?}, kernels: &{kernels:?}, image: &Aligned(*{image}) }},"
        );
    }
    table += "];\n";
    write(&compiler.out.join("kernels.txt"), &text)?;
    write(&compiler.out.join("fatbins.rs"), &table)
}

fn name(source: &Path) -> String {
    source.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
}
