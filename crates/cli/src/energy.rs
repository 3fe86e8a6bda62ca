//! The energy of the CPU, as Linux counts it (RAPL, through powercap), and the memory of the process.

use std::fs;
use std::path::{Path, PathBuf};

/// Counters of the CPU packages.
#[derive(Debug)]
pub(crate) struct Energy {
    packages: Vec<Package>,
}

#[derive(Debug)]
struct Package {
    counter: PathBuf,
    /// Where the counter starts again, in microjoules.
    range: u64,
    start: u64,
}

impl Energy {
    /// Starts counting, or says why that cannot be done.
    pub(crate) fn start() -> Result<Self, String> {
        Self::start_in(Path::new("/sys/class/powercap"))
    }

    fn start_in(dir: &Path) -> Result<Self, String> {
        let none = || "this machine has no energy counters that can be read (RAPL)".to_owned();
        let mut packages = Vec::new();
        for entry in fs::read_dir(dir).map_err(|_| none())?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            // `intel-rapl:0` is a package; `intel-rapl:0:1` a part of one, counted in it already.
            let package = name.strip_prefix("intel-rapl:").is_some_and(|n| !n.contains(':'));
            if !package {
                continue;
            }
            let counter = entry.path().join("energy_uj");
            let start = number(&counter)?;
            let range = number(&entry.path().join("max_energy_range_uj"))?;
            packages.push(Package { counter, range, start });
        }
        if packages.is_empty() { Err(none()) } else { Ok(Self { packages }) }
    }

    /// Joules since the start.
    pub(crate) fn joules(&self) -> Result<f64, String> {
        let mut sum = 0;
        for Package { counter, range, start } in &self.packages {
            let now = number(counter)?;
            sum += if now >= *start { now - start } else { now + range.saturating_sub(*start) };
        }
        Ok(sum as f64 / 1e6)
    }
}

/// Joules of the CPU since `energy` started counting, or why they are not known: nothing counts those of a GPU.
pub(crate) fn joules_of(device: &str, energy: Result<Energy, String>) -> (Option<f64>, Option<String>) {
    let joules = match device {
        "cpu" | "auto" => energy.and_then(|energy| energy.joules()),
        gpu => Err(format!("the energy of `{gpu}` is not measured")),
    };
    (joules.as_ref().ok().copied(), joules.err())
}

fn number(path: &Path) -> Result<u64, String> {
    let text = fs::read_to_string(path).map_err(|e| {
        format!("`{}` cannot be read ({})", path.display(), tunesmith_jobs::dir::io_words(&e))
    })?;
    text.trim().parse().map_err(|_| format!("`{}` holds no number", path.display()))
}

/// The most memory that the process has taken so far, in bytes, where the system tells.
pub(crate) fn peak_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn packages_are_summed_and_counters_may_start_again() {
        let dir = tempfile::tempdir().unwrap();
        let set = |name: &str, energy: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("energy_uj"), energy).unwrap();
            fs::write(path.join("max_energy_range_uj"), "10000000\n").unwrap();
        };
        assert!(Energy::start_in(dir.path()).unwrap_err().contains("no energy counters"));
        set("intel-rapl", "5\n");
        set("intel-rapl:0", "9000000\n");
        set("intel-rapl:1", "1000000\n");
        set("intel-rapl:0:0", "1\n");
        let energy = Energy::start_in(dir.path()).unwrap();
        set("intel-rapl:0", "2000000\n");
        set("intel-rapl:1", "1500000\n");
        set("intel-rapl:0:0", "9000000\n");
        assert_eq!(energy.joules(), Ok(3.5));
        set("intel-rapl:1", "none");
        assert!(energy.joules().unwrap_err().ends_with("holds no number"));
        assert!(Energy::start_in(&dir.path().join("nowhere")).is_err());
    }

    #[test]
    fn joules_are_known_or_the_reason_is() {
        let (joules, why) = joules_of("cuda:1", Energy::start());
        assert_eq!((joules, why.as_deref()), (None, Some("the energy of `cuda:1` is not measured")));
        assert_eq!(joules_of("cpu", Err("no".to_owned())), (None, Some("no".to_owned())));
        assert_eq!(joules_of("auto", Ok(Energy { packages: Vec::new() })), (Some(0.0), None));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_process_takes_memory() {
        assert!(peak_bytes().unwrap() > 1 << 20);
    }
}
