//! The power goes: of what was written, the disk keeps what was synced and nothing else. See `shadow.c`.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tunesmith_jobs::Store;

use crate::kit::{Random, Workspace, reference};

/// Times that the power goes.
const CUTS: usize = 4;

/// Builds the library that keeps the shadow; none where there is no C compiler.
fn library(workspace: &Workspace) -> Option<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/jobs/shadow.c");
    let library = workspace.path("shadow.so");
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).arg("-ldl");
    match cc.status() {
        Err(_) => None,
        Ok(status) => {
            assert!(status.success(), "{} does not compile", source.display());
            Some(library)
        }
    }
}

/// Makes the directory of an inode again from its shadow.
fn restore(shadow: &Path, inode: u64, to: &Path) {
    fs::create_dir(to).unwrap();
    let names = fs::read_to_string(shadow.join(format!("names/{inode}"))).unwrap_or_default();
    for line in names.lines() {
        let (kind, rest) = line.split_once(' ').unwrap();
        let (inode, name) = rest.split_once(' ').unwrap();
        let path = to.join(name);
        if kind == "d" {
            restore(shadow, inode.parse().unwrap(), &path);
        } else {
            // What was never synced is empty.
            let bytes = fs::read(shadow.join("files").join(inode)).unwrap_or_default();
            fs::write(path, bytes).unwrap();
        }
    }
}

#[test]
fn a_power_cut_loses_no_job_that_was_acknowledged() {
    let mut workspace = Workspace::new();
    let Some(library) = library(&workspace) else {
        println!("skipped: there is no C compiler");
        return;
    };
    let mut random = Random(0xC07);
    for cut in 0..CUTS {
        let shadow = workspace.path(&format!("shadow-{cut}"));
        fs::create_dir_all(shadow.join("files")).unwrap();
        fs::create_dir_all(shadow.join("names")).unwrap();
        fs::create_dir(workspace.home()).unwrap();
        let variables = [
            ("LD_PRELOAD", library.as_path()),
            ("TUNESMITH_SHADOW", shadow.as_path()),
            ("TUNESMITH_SHADOW_OF", &workspace.home()),
        ];
        workspace.environment =
            variables.map(|(name, path)| (name.to_owned(), path.to_str().unwrap().to_owned())).to_vec();
        workspace.supervise();
        let ids = [workspace.create("first", &[]), workspace.create("second", &[])];
        // Into the reading of the rows, the steps of the first job, the second job, the end of both.
        std::thread::sleep(Duration::from_millis([0, 700, 1800, 4000][cut % 4] + random.below(700)));
        workspace.stop_supervising();
        workspace.kill_workers();

        let root = fs::metadata(workspace.home()).unwrap().ino();
        fs::rename(workspace.home(), workspace.path(&format!("lost-{cut}"))).unwrap();
        restore(&shadow, root, &workspace.home());
        workspace.environment.clear();
        let store = Store::open(&workspace.home()).unwrap();
        assert_eq!(store.problems().unwrap(), Vec::<String>::new());
        for id in &ids {
            store.job(id).unwrap_or_else(|e| panic!("cut {cut}: an acknowledged job is lost: {e}"));
        }
        drop(store);
        workspace.supervise();
        for id in &ids {
            let job = workspace.wait_for_end(id);
            workspace.judge(&job, reference());
        }
        workspace.stop_supervising();
        fs::rename(workspace.home(), workspace.path(&format!("done-{cut}"))).unwrap();
    }
}
