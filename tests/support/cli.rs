//! Runs the command, and looks at what it leaves behind.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How a run of the command ended.
#[derive(Debug)]
pub struct Output {
    /// The exit code. A signal has none, and fails the test.
    pub code: i32,
    /// What it wrote to standard output: data.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error: everything else.
    pub stderr: String,
}

impl Output {
    /// Standard output as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("standard output is UTF-8")
    }

    /// Standard output as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|why| panic!("{why}: {self:?}"))
    }

    /// The same output, the exit code being this one.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stderr: {}", self.stderr);
        self
    }
}

/// Runs `ramlift` with `args` in the current directory.
pub fn ramlift<S: AsRef<OsStr>>(args: &[S]) -> Output {
    ramlift_in(Path::new("."), args)
}

/// Runs `ramlift` with `args` in `dir`.
pub fn ramlift_in<S: AsRef<OsStr>>(dir: impl AsRef<Path>, args: &[S]) -> Output {
    finish(Command::new(binary()).args(args).current_dir(dir))
}

/// Runs `ramlift` with `args` in `dir`, and lets it have `kib` KiB of address
/// space at most.
pub fn ramlift_within<S: AsRef<OsStr>>(kib: u64, dir: impl AsRef<Path>, args: &[S]) -> Output {
    let script = format!("ulimit -v {kib} && exec \"$0\" \"$@\"");
    let mut command = Command::new("sh");
    // Threads that meet in the allocator would be given 64 MiB of addresses each.
    command.env("MALLOC_ARENA_MAX", "1");
    finish(command.arg("-c").arg(script).arg(binary()).args(args).current_dir(dir))
}

/// Runs `ramlift` with `args` in `dir`, and pipes `input` into it.
pub fn ramlift_fed<S: AsRef<OsStr>>(dir: impl AsRef<Path>, args: &[S], input: &[u8]) -> Output {
    feed(Command::new(binary()).args(args).current_dir(dir), input)
}

/// The same, with `kib` KiB of address space at most, of which the allocator's
/// arenas take no part that is not used.
pub fn ramlift_fed_within<S: AsRef<OsStr>>(
    kib: u64,
    dir: impl AsRef<Path>,
    args: &[S],
    input: &[u8],
) -> Output {
    let script = format!("ulimit -v {kib} && exec \"$0\" \"$@\"");
    let mut command = Command::new("sh");
    command.arg("-c").arg(script).arg(binary()).args(args).current_dir(dir).env("MALLOC_ARENA_MAX", "1");
    feed(&mut command, input)
}

fn feed(command: &mut Command, input: &[u8]) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the command starts");
    let mut pipe = child.stdin.take().expect("its input is a pipe");
    std::thread::scope(|scope| {
        // Whoever has seen enough closes the pipe.
        scope.spawn(move || drop(pipe.write_all(input)));
        finished(child.wait_with_output().expect("the command ends"))
    })
}

/// Runs a script in a namespace where it can mount; `$0` is the command. None if
/// there is none to be had.
pub fn with_mounts(dir: &Path, script: &str) -> Option<(String, String)> {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--map-root-user", "sh", "-c", script]).arg(binary()).current_dir(dir);
    let output = command.output().ok()?;
    let [text, stderr] =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).expect("output is UTF-8"));
    if text.is_empty() {
        eprintln!("SKIPPED: nothing can be mounted here: {stderr}");
        return None;
    }
    Some((text, stderr))
}

/// The path of the command under test.
pub fn binary() -> &'static OsStr {
    OsStr::new(env!("CARGO_BIN_EXE_ramlift"))
}

fn finish(command: &mut Command) -> Output {
    finished(command.stdin(Stdio::null()).output().expect("the command starts"))
}

fn finished(output: std::process::Output) -> Output {
    let stderr = String::from_utf8(output.stderr).expect("standard error is UTF-8");
    let code = output.status.code().unwrap_or_else(|| panic!("{}: {stderr}", output.status));
    Output { code, stdout: output.stdout, stderr }
}

/// The paths of everything below `dir` that is no directory, relative to it,
/// sorted.
pub fn files_in(dir: impl AsRef<Path>) -> Vec<String> {
    let dir = dir.as_ref();
    let mut files = Vec::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(next) = pending.pop() {
        for entry in fs::read_dir(&next).expect("the directory is readable") {
            let entry = entry.expect("the entry is readable");
            if entry.file_type().expect("the entry has a type").is_dir() {
                pending.push(entry.path());
            } else {
                files.push(relative(&entry.path(), dir));
            }
        }
    }
    files.sort();
    files
}

/// The names of what stands in `dir` itself, sorted.
pub fn entries_of(dir: impl AsRef<Path>) -> Vec<String> {
    let dir = dir.as_ref();
    let entries = fs::read_dir(dir).expect("the directory is readable");
    let mut names: Vec<String> =
        entries.map(|entry| relative(&entry.expect("the entry is readable").path(), dir)).collect();
    names.sort();
    names
}

fn relative(path: &Path, dir: &Path) -> String {
    path.strip_prefix(dir).expect("the path is below the directory").to_string_lossy().into_owned()
}

/// A directory of its own with the stream in it, as `stream`.
pub struct Workplace {
    dir: tempfile::TempDir,
}

impl AsRef<Path> for Workplace {
    fn as_ref(&self) -> &Path {
        self.path()
    }
}

impl Workplace {
    /// A new directory that holds `stream` and nothing else.
    pub fn with(stream: &[u8]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        fs::write(dir.path().join("stream"), stream).expect("the stream can be written");
        Self { dir }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A path in the directory.
    pub fn join(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs `ramlift` in the directory.
    pub fn ramlift(&self, args: &[&str]) -> Output {
        ramlift_in(self.path(), args)
    }

    /// The bytes of a file.
    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.join(name)).unwrap_or_else(|why| panic!("{name}: {why}"))
    }

    /// A file as JSON.
    pub fn json(&self, name: &str) -> serde_json::Value {
        serde_json::from_slice(&self.read(name)).unwrap_or_else(|why| panic!("{name}: {why}"))
    }

    /// The bytes of a file of an output, but for what its manifest says of the
    /// run that made it.
    pub fn read_of_any_run(&self, directory: &str, file: &str) -> Vec<u8> {
        let name = format!("{directory}/{file}");
        if file != "manifest.json" {
            return self.read(&name);
        }
        let mut manifest = self.json(&name);
        manifest.as_object_mut().and_then(|manifest| manifest.remove("run")).expect("there is a run");
        manifest.to_string().into_bytes()
    }
}
