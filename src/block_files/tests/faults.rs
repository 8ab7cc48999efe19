//! Disks that are full and quotas that are used up, met on each way into a file:
//! also on the one past the cache, which the first to notice is.

#[allow(dead_code, unreachable_pub, reason = "a part of it will do")]
#[path = "../../../tests/support/disk.rs"]
mod disk;

use std::io::ErrorKind::{QuotaExceeded, StorageFull};
use std::path::Path;

use disk::{Disk, succeeds};

use super::*;

/// Writes more than there is room for into `dir` each way, and checks that the
/// failure says why, and of which file.
fn check_refused(dir: &Path, kind: std::io::ErrorKind) {
    let bytes = stream(WINDOW_LEN * 12 / 4096);
    let stream = Stream::parse(&bytes).unwrap();
    let ram = stream.ram().unwrap();
    for way in [Way::Cached, Way::Short, Way::Direct] {
        let path = dir.join("ram");
        let files = BlockFiles::create(ram, [(BlockId(0), path.clone())]).unwrap();
        files.pace.fix(way);
        let error = scatter(ram, &[BlockId(0)], &files, &Progress::new()).unwrap_err();
        let ErrorKind::Io { path: named, source } = error.kind() else { panic!("{way:?}: {error}") };
        assert_eq!((named, source.kind()), (&path, kind), "{way:?}");
        drop(files);
        std::fs::remove_file(path).unwrap();
        // What is removed is free some time later.
        assert!(succeeds("sync", &["-f", dir.to_str().unwrap()]));
    }
}

#[test]
fn a_disk_that_is_full_is_met_on_each_way() {
    let none = ["mkfs.ext4", "-q", "-F"];
    if let Some(disk) = Disk::new(16 << 20, &none) {
        check_refused(&disk.path(), StorageFull);
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    if !succeeds("mount", &["-t", "tmpfs", "-o", "size=8M", "tmpfs", path]) {
        eprintln!("SKIPPED: no tmpfs can be mounted here");
        return;
    }
    check_refused(dir.path(), StorageFull);
    assert!(succeeds("umount", &[path]));
}

#[test]
fn a_quota_that_is_used_up_is_met_on_each_way() {
    let Some((_disk, home)) = Disk::with_quota("8M") else { return };
    check_refused(&home, QuotaExceeded);
}
