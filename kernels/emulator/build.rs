//! Compiles the kernels as C++ together with the emulator.
//!
//! A file of kernels is preprocessed first: the text names its kernels (`KERNEL` leaves a constant for each), and its
//! hash tells whether an object from an earlier build still holds.

use std::collections::hash_map::DefaultHasher;
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, thread};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// What `KERNEL` leaves in the preprocessed text before the kernel's name.
const MARK: &str = "constexpr unsigned emulated_threads_of_";

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Cargo shows this stream when a build script fails: the compiler's own words, line by line.
            #[allow(clippy::print_stderr)]
            {
                eprintln!("{error}");
            }
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<()> {
    println!("cargo:rustc-check-cfg=cfg(emulator)");
    for path in ["build.rs", "cpp", "broken", "../cuda"] {
        println!("cargo:rerun-if-changed={path}");
    }
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let cuda = root.join("../cuda").canonicalize()?;

    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(2).debug(true).warnings(false).cargo_warnings(false);
    build.flag("-ffp-contract=off").flag("-fno-strict-aliasing").flag("-Wno-unknown-pragmas");
    // A fault leaves a fiber by longjmp, which the checks of some distributions' C library take for a mistake.
    build.flag("-U_FORTIFY_SOURCE");
    build.define("TUNESMITH_EMULATOR", None).include(&cuda).include(root.join("cpp"));
    // The hooks into every memory access are GCC's, and elsewhere the emulator has never run.
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|found| found == value);
    let here = is("CARGO_CFG_TARGET_OS", "linux") && is("CARGO_CFG_TARGET_ARCH", "x86_64");
    let compiler = build.try_get_compiler().ok().filter(|compiler| {
        let answers = || compiler.to_command().arg("--version").output();
        here && compiler.is_like_gnu() && answers().is_ok_and(|out| out.status.success())
    });
    let Some(_) = compiler else {
        println!(
            "cargo:warning=The CUDA kernels are not tested here: their emulator needs g++ on x86-64 Linux."
        );
        return Ok(());
    };

    // The compiler calls the emulator on every memory access (cpp/watch.cpp).
    let mut kernels = build.clone();
    kernels.flag("-fsanitize=thread").flag_if_supported("--param=tsan-instrument-func-entry-exit=0");
    kernels.flag("-fsanitize=alignment,bounds,integer-divide-by-zero,shift,signed-integer-overflow");
    kernels.flag("-fsanitize-recover=all");
    let compiler = kernels.try_get_compiler()?;

    let mut sources = files(&cuda, "cu")?;
    sources.extend(files(&root.join("broken"), "cu")?);
    let objects = compile_all(&compiler.to_command(), &sources, &out)?;
    let names: Vec<String> = sources.iter().map(|source| table(source)).collect();
    let tables = out.join("tables.cpp");
    fs::write(&tables, list(&names))?;
    build
        .files(files(&root.join("cpp"), "cpp")?)
        .file(tables)
        .objects(objects)
        .try_compile("tunesmith_emulator")?;
    println!("cargo:rustc-cfg=emulator");
    Ok(())
}

fn files(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut out = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == extension) {
            out.push(path);
        }
    }
    out.sort();
    Ok(out)
}

/// The name of a file's table of kernels.
fn table(source: &Path) -> String {
    let folder = source.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    format!("emulated_{folder}_{}", source.file_stem().unwrap_or_default().to_string_lossy())
}

/// An object for each file of kernels, as many at a time as there are processors.
fn compile_all(compiler: &Command, sources: &[PathBuf], out: &Path) -> Result<Vec<PathBuf>> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        while let Some(source) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
            done.push(compile_kernels(compiler, source, out)?);
        }
        Ok(done)
    };
    let count = thread::available_parallelism().map_or(1, usize::from).min(sources.len());
    let done: Vec<Result<Vec<PathBuf>>> = thread::scope(|scope| {
        let running: Vec<_> = (0..count).map(|_| scope.spawn(work)).collect();
        running
            .into_iter()
            .map(|one| one.join().unwrap_or_else(|_| Err("a compiling thread died".into())))
            .collect()
    });
    let mut objects = done.into_iter().collect::<Result<Vec<_>>>()?.concat();
    // The order in which they were done must not change the library.
    objects.sort();
    Ok(objects)
}

fn compile_kernels(compiler: &Command, source: &Path, out: &Path) -> Result<PathBuf> {
    let preprocessed = run(compiler, &["-x", "c++", "-E"], source, None)?;
    let text = String::from_utf8_lossy(&preprocessed);
    let mut rows = String::new();
    let mut count = 0;
    for part in text.split(MARK).skip(1) {
        let name = part.split(|c: char| !(c.is_alphanumeric() || c == '_')).next().unwrap_or_default();
        let _ = writeln!(rows, "    emulated_kernel(\"{name}\", emulated_threads_of_{name}, &{name}),");
        count += 1;
    }
    let table = table(source);
    // What a file defines stays its own, whatever other files call theirs; the headers have to come before that.
    let mut wrapper = String::from("#include \"mma.cuh\"\n");
    let _ = writeln!(wrapper, "namespace {{\n#include \"{}\"\n}}", source.display());
    if count == 0 {
        let _ = writeln!(wrapper, "extern const EmulatedTable {table} = {{nullptr, 0}};");
    } else {
        let _ = writeln!(wrapper, "static const EmulatedKernel emulated_kernels[] = {{\n{rows}}};");
        let _ = writeln!(wrapper, "extern const EmulatedTable {table} = {{emulated_kernels, {count}}};");
    }

    let mut hash = DefaultHasher::new();
    (&preprocessed, &wrapper, format!("{compiler:?}")).hash(&mut hash);
    let object = out.join(format!("{table}-{:016x}.o", hash.finish()));
    if !object.exists() {
        for old in fs::read_dir(out)? {
            let old = old?.path();
            let name = old.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with(&format!("{table}-")) {
                fs::remove_file(old)?;
            }
        }
        let file = out.join(format!("{table}.cpp"));
        fs::write(&file, wrapper)?;
        // Renamed when complete: a build that was stopped must not leave an object that the next one takes up.
        let unfinished = object.with_extension("unfinished");
        run(compiler, &["-c"], &file, Some(&unfinished))?;
        fs::rename(unfinished, &object)?;
    }
    Ok(object)
}

/// The compiler's output, or its complaints as the error.
fn run(compiler: &Command, flags: &[&str], source: &Path, object: Option<&Path>) -> Result<Vec<u8>> {
    let mut command = Command::new(compiler.get_program());
    command.args(compiler.get_args()).args(flags);
    for (name, value) in compiler.get_envs() {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    if let Some(object) = object {
        command.arg("-o").arg(object);
    }
    let output = command.arg(source).output()?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(format!("{} does not compile:\n{}", source.display(), String::from_utf8_lossy(&output.stderr)).into())
}

/// The table of tables, which ties every object to the emulator so that the linker drops none.
fn list(tables: &[String]) -> String {
    let mut out = String::from("#include \"emulator.h\"\n");
    for table in tables {
        let _ = writeln!(out, "extern const EmulatedTable {table};");
    }
    out.push_str("extern const EmulatedTable* const emulated_tables[] = {");
    for table in tables {
        let _ = write!(out, "&{table}, ");
    }
    let _ = write!(out, "nullptr}};\nextern const unsigned emulated_table_count = {};\n", tables.len());
    out
}
