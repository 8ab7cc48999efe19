//! What is written, on the disk: for `--sync`, and where only that tells
//! whether it could be written at all.
//!
//! A write fills the page cache; the disk has it some time later. A local file
//! system has found the room by then, and what is left to fail is the device.
//! A server may refuse the bytes for all reasons there are, and that is said
//! to whoever syncs or closes the file, and to nobody else.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::statfs;

use crate::exit::Failure;

/// File systems whose disk is somewhere else: NFS, SMB in three ages, CIFS,
/// 9P, Ceph, AFS, Coda, FUSE, Lustre, virtiofs's kin.
const REMOTE: [u64; 10] = [
    0x6969,
    0x517b,
    0xfe53_4d42,
    0xff53_4d42,
    0x0102_1997,
    0x00c3_6400,
    0x5346_414f,
    0x7375_7245,
    0x6573_5546,
    0x0bd0_0bd0,
];

/// Whether a failure to write into `directory` shows only when files are
/// synced.
pub(crate) fn is_needed(directory: &Path) -> bool {
    // The type of the number is another one on each architecture.
    statfs(directory)
        .is_ok_and(|system| u64::try_from(system.f_type).is_ok_and(|kind| REMOTE.contains(&kind)))
}

/// Waits until `files` in `root`, and the directories that they are in, are on
/// the disk.
pub(crate) fn sync(root: &Path, files: &[PathBuf]) -> Result<(), Failure> {
    for file in files {
        let path = root.join(file);
        sync_path(&path)?;
    }
    sync_directories(root, files)
}

/// Waits until it is on the disk what there is in the directories in `root` that
/// `files` are in, or were.
pub(crate) fn sync_directories(root: &Path, files: &[PathBuf]) -> Result<(), Failure> {
    let mut directories: Vec<&Path> = files.iter().flat_map(|file| file.ancestors().skip(1)).collect();
    directories.sort_unstable();
    directories.dedup();
    // Without the slash behind `root` itself.
    let place = |directory: &Path| root.join(directory).components().collect();
    let directories = directories.into_iter().map(place).filter(|path: &PathBuf| path.is_dir());
    directories.into_iter().try_for_each(|directory| sync_path(&directory))
}

/// Waits until a file, or the names in a directory, are on the disk.
fn sync_path(path: &Path) -> Result<(), Failure> {
    match File::open(path).and_then(|file| file.sync_all()) {
        // Not all file systems have something to do for a directory.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput && path.is_dir() => Ok(()),
        synced => synced.map_err(Failure::file(path)),
    }
}

/// Waits until it is on the disk that `target` is in `directory`.
pub(crate) fn sync_place(directory: &Path, target: &Path) -> Result<(), Failure> {
    sync_path(directory).map_err(|failure| {
        failure.map_text(|text| {
            format!("{text}; {} is in its place, but maybe not so on the disk", target.display())
        })
    })
}
