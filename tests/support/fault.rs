//! Runs the command and lets a system call of it meet a fault: see `fault.c`.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use super::cli::binary;

/// What happens before a system call.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// Nothing.
    None,
    /// The call fails with this `errno`.
    Errno(i32),
    /// So do all calls that need room on the disk from then on.
    ErrnoFrom(i32),
    /// From then on no thread is to be had: what is counted is threads, and the
    /// call for one fails with this `errno`.
    NoThread(i32),
    /// The command is sent a signal.
    Signal(i32),
    /// The file `stream` is made that long.
    Resize(u64),
}

/// How a run ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code, if it had one.
    pub code: Option<i32>,
    /// The signal that ended it, if one did.
    pub signal: Option<i32>,
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: String,
    /// How many calls it made that a fault can be before.
    pub calls: u64,
}

/// The tool, compiled once for each test binary.
fn tool() -> &'static Path {
    static TOOL: OnceLock<PathBuf> = OnceLock::new();
    TOOL.get_or_init(|| {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/fault.c");
        let tool = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fault-{}", std::process::id()));
        let cc = Command::new("cc").args(["-O1", "-o"]).arg(&tool).arg(source).status();
        assert!(cc.expect("a C compiler is there").success(), "the tool is compiled");
        tool
    })
}

/// Runs `ramlift` with `args` in `dir`, and has `fault` happen before the `nth`
/// call, the first being 1.
pub fn ramlift_with(dir: &Path, args: &[&str], nth: u64, fault: Fault) -> Ended {
    let action = match fault {
        Fault::None => "none".to_owned(),
        Fault::Errno(errno) => format!("errno:{errno}"),
        Fault::ErrnoFrom(errno) => format!("errno:{errno}+"),
        Fault::NoThread(errno) => format!("thread:{errno}"),
        Fault::Signal(signal) => format!("signal:{signal}"),
        Fault::Resize(len) => format!("resize:{}:{len}", dir.join("stream").display()),
    };
    let count = tempfile::NamedTempFile::new().expect("a temporary file can be made");
    let output = Command::new(tool())
        .arg(count.path())
        .args([nth.to_string(), action])
        .arg(binary())
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()
        .expect("the tool starts");
    let calls = fs::read_to_string(count.path()).unwrap_or_default();
    let stderr = String::from_utf8(output.stderr).expect("standard error is UTF-8");
    Ended {
        code: output.status.code(),
        signal: output.status.signal(),
        stdout: output.stdout,
        calls: calls.trim().parse().unwrap_or_else(|_| panic!("the calls are counted: {stderr}")),
        stderr,
    }
}

/// Lets `fault` happen before each call of a run in turn, until there are no
/// more. `before` makes a place for each run; `check` looks at what came of it.
pub fn at_every_call<P: AsRef<Path>>(
    args: &[&str],
    fault: Fault,
    before: impl Fn() -> P,
    mut check: impl FnMut(&P, u64, &Ended),
) -> u64 {
    for nth in 1.. {
        let place = before();
        let ended = ramlift_with(place.as_ref(), args, nth, fault);
        if ended.calls < nth {
            assert_eq!(ended.code, Some(0), "without a fault: {}", ended.stderr);
            return nth - 1;
        }
        check(&place, nth, &ended);
    }
    0
}
