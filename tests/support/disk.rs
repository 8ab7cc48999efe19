//! File systems of their own, each in a file: to be filled, to lose power, to
//! have other rules. They need root, loop devices, the tools that make them and
//! a kernel that knows them; where one of these lacks, a test is passed over.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A file system in a file, mounted.
pub struct Disk {
    dir: tempfile::TempDir,
    is_mounted: bool,
}

/// Whether a command succeeds. What it says is nobody's.
pub fn succeeds(program: &str, args: &[&str]) -> bool {
    let mut command = Command::new(program);
    let silent = command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    silent.status().is_ok_and(|status| status.success())
}

impl Disk {
    /// One of `len` bytes, made by `mkfs` and its arguments, to which the file's
    /// name is added. `None`, which is said, where it cannot be had.
    pub fn new(len: u64, mkfs: &[&str]) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let mut disk = Self { dir, is_mounted: false };
        let file = File::create(disk.file()).expect("a file can be made");
        file.set_len(len).expect("and be as long as that");
        fs::create_dir(disk.path()).expect("a directory can be made");
        let name = disk.file().to_str().expect("its name is text").to_owned();
        let args: Vec<&str> = mkfs[1..].iter().copied().chain([name.as_str()]).collect();
        if succeeds(mkfs[0], &args) && disk.mount("rw") {
            return Some(disk);
        }
        eprintln!("SKIPPED: {} cannot be made or mounted here", mkfs.join(" "));
        None
    }

    /// ext4 of 64 MiB.
    pub fn ext4() -> Option<Self> {
        Self::new(64 << 20, &["mkfs.ext4", "-q", "-F"])
    }

    /// btrfs, as small as it can be.
    pub fn btrfs() -> Option<Self> {
        Self::new(128 << 20, &["mkfs.btrfs", "-q"])
    }

    /// The same, and a directory on it that takes no more than `limit`.
    pub fn with_quota(limit: &str) -> Option<(Self, PathBuf)> {
        let disk = Self::btrfs()?;
        let (root, home) = (disk.path(), disk.join("home"));
        let (above, below) = (root.to_str().unwrap(), home.to_str().unwrap());
        let is_limited = succeeds("btrfs", &["quota", "enable", above])
            && succeeds("btrfs", &["subvolume", "create", below])
            && succeeds("btrfs", &["qgroup", "limit", limit, below]);
        if !is_limited {
            eprintln!("SKIPPED: no quota of btrfs here");
        }
        is_limited.then_some((disk, home))
    }

    /// XFS, as small as it can be.
    pub fn xfs() -> Option<Self> {
        Self::new(320 << 20, &["mkfs.xfs", "-q"])
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("mounted")
    }

    /// A path on it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    fn mount(&mut self, options: &str) -> bool {
        let (file, path) = (self.file(), self.path());
        let (file, path) = (file.to_str().unwrap(), path.to_str().unwrap());
        self.is_mounted = succeeds("mount", &["-o", &format!("loop,{options}"), file, path]);
        self.is_mounted
    }

    fn unmount(&mut self) {
        if self.is_mounted {
            self.is_mounted = !succeeds("umount", &[self.path().to_str().unwrap()]);
        }
    }

    /// The same after a loss of power at this moment: mounted again with what
    /// the device had been given by now, and nothing of what memory had.
    pub fn lose_power(&mut self) {
        let copy = self.dir.path().join("copy");
        let status = Command::new("cp").arg("--sparse=always").arg(self.file()).arg(&copy).status();
        assert!(status.expect("cp starts").success(), "the disk is copied");
        self.unmount();
        fs::rename(copy, self.file()).expect("the copy takes its place");
        assert!(self.mount("rw"), "it can be mounted again");
    }

    /// Lets no byte of `content`, which is a file's, be read from the device any
    /// more. What stands before it can be.
    pub fn fail_at(&mut self, content: &[u8]) {
        self.unmount();
        let mut bytes = Vec::new();
        let mut file = File::options().read(true).write(true).open(self.file()).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_end(&mut bytes).unwrap();
        let begin = &content[..64];
        let at = bytes.chunks(1024).position(|chunk| chunk.starts_with(begin)).expect("it is on the disk");
        assert!(self.mount("ro"), "it can be mounted again");
        // The device stays as long as it was.
        file.set_len(1024 * at as u64).unwrap();
        assert!(file.read_exact_at(&mut [0], 1024 * at as u64).is_err());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.unmount();
    }
}

impl AsRef<Path> for Disk {
    fn as_ref(&self) -> &Path {
        self.dir.path()
    }
}
