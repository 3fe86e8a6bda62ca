//! The energy of the CPU, as Linux counts it (RAPL, through powercap), and of a GPU, as its driver does (NVML); the
//! memory of the process.

use std::fs;
use std::path::{Path, PathBuf};

/// A counter of joules, from wherever it began.
pub(crate) type Counter = Box<dyn Fn() -> Result<f64, String>>;

/// What a piece of work draws: the CPU packages, and the GPU where it computes on one. Both count everything that runs
/// on them meanwhile.
pub(crate) struct Meter {
    cpu: Result<Energy, String>,
    /// The GPU's counter and what it said at the start.
    gpu: Option<Result<(Counter, f64), String>>,
}

/// What a [`Meter`] has counted.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Spent {
    /// All that was counted.
    pub(crate) joules: Option<f64>,
    /// Whose that is: `cpu`, `gpu`.
    pub(crate) of: Vec<String>,
    /// Why all or a part of it is not known.
    pub(crate) unknown: Option<String>,
}

impl Meter {
    /// Starts counting; `gpu` is the counter of the card that computes, if one does.
    pub(crate) fn start(gpu: Option<Result<Counter, String>>) -> Self {
        let gpu = gpu.map(|counter| counter.and_then(|counter| Ok((counter()?, counter))));
        Self {
            cpu: Energy::start(),
            gpu: gpu.map(|started| started.map(|(start, counter)| (counter, start))),
        }
    }

    /// What was drawn since the start.
    pub(crate) fn spent(&self) -> Spent {
        let mut parts = vec![("cpu", self.cpu.as_ref().map_err(Clone::clone).and_then(Energy::joules))];
        if let Some(gpu) = &self.gpu {
            let since = |(counter, start): &(Counter, f64)| {
                let now = counter()?;
                // A driver that was loaded anew counts from zero.
                if now < *start { Err("its counter went back".to_owned()) } else { Ok(now - start) }
            };
            parts.push(("gpu", gpu.as_ref().map_err(Clone::clone).and_then(since)));
        }
        let mut out = Spent::default();
        let mut whys = Vec::new();
        for (of, joules) in parts {
            match joules {
                Ok(joules) => {
                    *out.joules.get_or_insert(0.0) += joules;
                    out.of.push(of.to_owned());
                }
                // On the CPU alone nothing else can be meant.
                Err(why) if self.gpu.is_none() => whys.push(why),
                Err(why) => whys.push(format!("{}: {why}", of.to_uppercase())),
            }
        }
        out.unknown = (!whys.is_empty()).then(|| whys.join("; "));
        out
    }
}

impl Spent {
    /// A sum that would say nothing, and why.
    pub(crate) fn unknown(why: &str) -> Self {
        Self { unknown: Some(why.to_owned()), ..Self::default() }
    }
}

/// `1.2 Wh of the CPU and the GPU`, with what is missing.
pub(crate) fn watt_hours(joules: f64, of: &[String], unknown: Option<&str>) -> String {
    // Results from before GPUs were counted name nobody.
    let of = if of.is_empty() { &["cpu".to_owned()] } else { of };
    let whose: Vec<String> = of.iter().map(|part| format!("the {}", part.to_uppercase())).collect();
    let missing = unknown.map(|why| format!(" (not counted: {why})")).unwrap_or_default();
    format!("{:.1} Wh of {}{missing}", joules / 3600.0, whose.join(" and "))
}

/// Counters of the CPU packages.
#[derive(Debug)]
struct Energy {
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
    fn start() -> Result<Self, String> {
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
    fn joules(&self) -> Result<f64, String> {
        let mut sum = 0;
        for Package { counter, range, start } in &self.packages {
            let now = number(counter)?;
            sum += if now >= *start { now - start } else { now + range.saturating_sub(*start) };
        }
        Ok(sum as f64 / 1e6)
    }
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

/// The memory that programs can still take, in bytes, where the system tells.
pub(crate) fn free_bytes() -> Option<u64> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
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

    fn none() -> Energy {
        Energy { packages: Vec::new() }
    }

    fn spent(joules: Option<f64>, of: &[&str], unknown: Option<&str>) -> Spent {
        Spent { joules, of: of.iter().map(|&v| v.to_owned()).collect(), unknown: unknown.map(str::to_owned) }
    }

    #[test]
    fn joules_are_known_or_the_reason_is() {
        let of = |cpu, gpu| Meter { cpu, gpu }.spent();
        let no = || Err("no".to_owned());
        assert_eq!(of(no(), None), spent(None, &[], Some("no")));
        assert_eq!(of(Ok(none()), None), spent(Some(0.0), &["cpu"], None));
        assert_eq!(
            of(no(), Some(Err("nor this".to_owned()))),
            spent(None, &[], Some("CPU: no; GPU: nor this"))
        );
        let counter = |now: f64| -> Option<Result<(Counter, f64), String>> {
            Some(Ok((Box::new(move || Ok(now)), 10.0)))
        };
        assert_eq!(of(Ok(none()), counter(17.5)), spent(Some(7.5), &["cpu", "gpu"], None));
        assert_eq!(of(no(), counter(17.5)), spent(Some(7.5), &["gpu"], Some("CPU: no")));
        assert_eq!(
            of(Ok(none()), counter(9.0)),
            spent(Some(0.0), &["cpu"], Some("GPU: its counter went back"))
        );
    }

    #[test]
    fn a_meter_counts_from_its_start() {
        let now = std::rc::Rc::new(std::cell::Cell::new(100.0));
        let seen = std::rc::Rc::clone(&now);
        let mut meter = Meter::start(Some(Ok(Box::new(move || Ok(seen.get())))));
        meter.cpu = Ok(none());
        now.set(103.0);
        assert_eq!(meter.spent().joules, Some(3.0));
        let broken = Meter::start(Some(Ok(Box::new(|| Err("blind".to_owned())))));
        assert!(broken.spent().unknown.unwrap().ends_with("GPU: blind"));
    }

    #[test]
    fn it_is_said_whose_energy_it_is() {
        let of = |parts: &[&str]| parts.iter().map(|&v| v.to_owned()).collect::<Vec<_>>();
        assert_eq!(watt_hours(7200.0, &of(&["cpu", "gpu"]), None), "2.0 Wh of the CPU and the GPU");
        assert_eq!(
            watt_hours(360.0, &of(&["gpu"]), Some("CPU: no")),
            "0.1 Wh of the GPU (not counted: CPU: no)"
        );
        assert_eq!(watt_hours(3600.0, &[], None), "1.0 Wh of the CPU");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_process_takes_memory() {
        assert!(peak_bytes().unwrap() > 1 << 20);
        assert!(free_bytes().unwrap() > 1 << 20);
    }
}
