//! Which queued job gets which device, and what the others wait for: pure.

use std::collections::BTreeMap;

use crate::store::Job;

/// What becomes of a queued job now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Choice {
    /// It starts on this device.
    Start(String),
    /// It waits, and this is why.
    Wait(String),
    /// It waits for a device that is not among those of this supervisor.
    NoDevice(String),
}

/// Gives devices to jobs in their order. A job takes the first free device of those it can use; nobody behind it gets
/// one that it waits for.
pub(super) fn plan(queue: &[&Job], devices: &[String], leases: &BTreeMap<String, String>) -> Vec<Choice> {
    let mut holders: BTreeMap<&str, &str> =
        leases.iter().map(|(device, job)| (device.as_str(), job.as_str())).collect();
    let mut waiting: Vec<Vec<&str>> = Vec::new();
    let mut choices = Vec::new();
    for job in queue {
        let usable = usable(&job.device_wanted, devices);
        if usable.is_empty() {
            choices.push(Choice::NoDevice(format!(
                "there is no device `{}` here, only {}",
                job.device_wanted,
                devices.join(", ")
            )));
            continue;
        }
        if let Some(device) = usable.iter().find(|device| !holders.contains_key(*device)) {
            holders.insert(device, &job.id);
            choices.push(Choice::Start((*device).to_owned()));
            continue;
        }
        let ahead = waiting.iter().filter(|other| other.iter().any(|device| usable.contains(device))).count();
        let names = usable.join(" or ");
        choices.push(Choice::Wait(match (ahead, usable.as_slice()) {
            (0, [device]) => {
                format!("waiting for {names}, which job {} has", holders.get(device).unwrap_or(&"?"))
            }
            (0, _) => format!("waiting for {names}, which other jobs have"),
            (1, _) => format!("waits behind 1 job for {names}"),
            (ahead, _) => format!("waits behind {ahead} jobs for {names}"),
        }));
        waiting.push(usable);
    }
    choices
}

/// The devices that a wish may be met with: for `auto` the GPUs, or the CPU where there is none.
fn usable<'a>(wanted: &str, devices: &'a [String]) -> Vec<&'a str> {
    let all = || devices.iter().map(String::as_str);
    if wanted == "auto" {
        let gpus: Vec<_> = all().filter(|device| *device != "cpu").collect();
        return if gpus.is_empty() { all().collect() } else { gpus };
    }
    all().filter(|device| *device == wanted).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Desired, State};

    fn job(id: &str, device: &str) -> Job {
        Job {
            id: id.into(),
            name: String::new(),
            state: State::Queued,
            desired: Desired::Run,
            generation: 0,
            priority: 0,
            device_wanted: device.into(),
            device: None,
            base_model: String::new(),
            training_data: String::new(),
            validation_data: None,
            spec_sha256: String::new(),
            idempotency_key: None,
            retried_from: None,
            on_finish: None,
            fence: 0,
            attempt: 0,
            micro_batch_divisor: 1,
            stalls: 0,
            checkpoint_step: None,
            reason: None,
            created_ms: 0,
            started_ms: None,
            finished_ms: None,
            progress: crate::store::Progress::default(),
            result: None,
        }
    }

    fn planned(jobs: &[(&str, &str)], devices: &[&str], leases: &[(&str, &str)]) -> Vec<String> {
        let jobs: Vec<_> = jobs.iter().map(|(id, device)| job(id, device)).collect();
        let devices: Vec<_> = devices.iter().map(|d| (*d).to_owned()).collect();
        let leases = leases.iter().map(|(d, j)| ((*d).to_owned(), (*j).to_owned())).collect();
        plan(&jobs.iter().collect::<Vec<_>>(), &devices, &leases)
            .into_iter()
            .map(|choice| match choice {
                Choice::Start(device) => format!("start {device}"),
                Choice::Wait(reason) | Choice::NoDevice(reason) => reason,
            })
            .collect()
    }

    #[test]
    fn devices_go_to_jobs_in_order_and_the_others_know_why_they_wait() {
        let jobs =
            [("a", "auto"), ("b", "cpu"), ("c", "cuda:1"), ("d", "auto"), ("e", "cuda:1"), ("f", "cuda:7")];
        let plan = planned(&jobs, &["cpu", "cuda:0", "cuda:1"], &[("cuda:0", "x")]);
        let expected = [
            "start cuda:1",
            "start cpu",
            "waiting for cuda:1, which job a has",
            "waits behind 1 job for cuda:0 or cuda:1",
            "waits behind 2 jobs for cuda:1",
            "there is no device `cuda:7` here, only cpu, cuda:0, cuda:1",
        ];
        assert_eq!(plan, expected);
    }

    #[test]
    fn auto_is_the_cpu_only_where_there_is_no_gpu() {
        assert_eq!(planned(&[("a", "auto")], &["cpu"], &[]), ["start cpu"]);
        let waits = planned(&[("a", "auto")], &["cpu", "cuda:0"], &[("cuda:0", "x")]);
        assert_eq!(waits, ["waiting for cuda:0, which job x has"]);
        let waits = planned(&[("a", "auto")], &["cuda:1", "cuda:0"], &[("cuda:0", "x"), ("cuda:1", "y")]);
        assert_eq!(waits, ["waiting for cuda:1 or cuda:0, which other jobs have"]);
    }
}
