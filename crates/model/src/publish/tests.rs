use super::*;
use crate::test_support::assert_error;

fn fill(tmp: &Path) -> Result<()> {
    write_file(&tmp.join("known"), |out| out.write_all(b"new"))
}

#[test]
fn a_leftover_of_ones_own_is_replaced() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("out");
    fs::create_dir(root.path().join("out.tmp")).unwrap();
    fs::write(root.path().join("out.tmp/known"), "old").unwrap();
    publish_dir(&dir, &["known"], fill).unwrap();
    assert_eq!(fs::read_to_string(dir.join("known")).unwrap(), "new");
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
}

#[test]
fn files_of_another_origin_are_kept() {
    let root = tempfile::tempdir().unwrap();
    let (dir, tmp) = (root.path().join("out"), root.path().join("out.tmp"));
    fs::create_dir(&tmp).unwrap();
    fs::write(tmp.join("thesis.tex"), "years").unwrap();
    assert_error(publish_dir(&dir, &["known"], fill), &["out.tmp", "another origin"]);
    assert_eq!(fs::read_to_string(tmp.join("thesis.tex")).unwrap(), "years");
    fs::remove_dir_all(&tmp).unwrap();
    fs::write(&tmp, "a file").unwrap();
    assert_error(publish_dir(&dir, &["known"], fill), &["another origin"]);
    assert_eq!(fs::read_to_string(&tmp).unwrap(), "a file");
}

#[test]
fn paths_that_cannot_be_made() {
    let root = tempfile::tempdir().unwrap();
    assert_error(
        publish_dir(&root.path().join("no/such/parent"), &[], fill),
        &["cannot create the directory"],
    );
    assert_error(publish_dir(Path::new("/"), &[], fill), &["already exists"]);
    assert_error(publish_dir(&root.path().join("x/.."), &[], fill), &["`"]);
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
}

#[cfg(unix)]
#[test]
fn a_dangling_link_counts_as_existing() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("out");
    std::os::unix::fs::symlink("nowhere", &dir).unwrap();
    assert_error(publish_dir(&dir, &["known"], fill), &["already exists"]);
}
