//! Signals: those that end the command, and two that tell of a fault.
//!
//! `SIGBUS` comes to a thread that touches a mapped page which is not there any
//! more: the file was shortened, or its device failed. Nothing lets that thread
//! go on, so it meets the fault again and again, until a thread that waits for
//! signals has said what happened, removed what is half written and ended the
//! process. `SIGXFSZ` only has to be caught: the write that it is about then
//! fails, and says so.

use std::ffi::c_int;
use std::fs;
use std::process::exit;
use std::thread;

use signal_hook::consts::{SIGBUS, SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;
use signal_hook::low_level;

use crate::{inputs, staging};

/// Those that are asked to end the command by somebody.
const ENDINGS: [c_int; 3] = [SIGHUP, SIGINT, SIGTERM];

/// Makes signals end the command in an orderly way. One that comes while files
/// are moved to their places waits until they are.
pub(crate) fn watch() {
    let states = States::read();
    release_sigbus(&states);
    // What is ignored from the begin shall stay so: `nohup`, a shell's `&`.
    let endings = ENDINGS.into_iter().filter(|signal| !states.ignores(*signal));
    // If a handler cannot be set, a signal leaves a directory behind whose name
    // tells what it is.
    let Ok(mut signals) = Signals::new([SIGBUS, SIGXFSZ].into_iter().chain(endings)) else { return };
    let _ = thread::Builder::new().name("signals".to_owned()).spawn(move || {
        if let Some(signal) = signals.forever().find(|signal| *signal != SIGXFSZ) {
            end(signal);
        }
    });
}

fn end(signal: c_int) -> ! {
    let code = match signal {
        SIGBUS => inputs::why_lost().report().code().into(),
        // As shells have it.
        signal => 128 + signal,
    };
    // Held until the end of the process: nothing is staged any more.
    let _staged = staging::abandon();
    exit(code)
}

/// Gives up the handler of `SIGBUS` that the standard library sets, which is
/// for stacks that overflow (on Linux that is `SIGSEGV`). A handler set on top
/// of it would have to call it, and it hands the signal back to the system
/// when it is called: the next fault would end the process. So it is called
/// once, here, where there is no fault.
fn release_sigbus(states: &States) {
    if states.catches(SIGBUS) {
        let _ = low_level::raise(SIGBUS);
    }
}

/// What the process does with signals, as `/proc/self/status` has it.
struct States {
    ignored: u64,
    caught: u64,
}

impl States {
    fn read() -> Self {
        Self::of(fs::read_to_string("/proc/self/status").ok().as_deref())
    }

    fn of(status: Option<&str>) -> Self {
        // Without `/proc` nobody can know, and the standard library does set one.
        let Some(status) = status else { return Self { ignored: 0, caught: bit(SIGBUS) } };
        let mask = |name| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok()).unwrap_or(0)
        };
        Self { ignored: mask("SigIgn:"), caught: mask("SigCgt:") }
    }

    fn ignores(&self, signal: c_int) -> bool {
        self.ignored & bit(signal) != 0
    }

    fn catches(&self, signal: c_int) -> bool {
        self.caught & bit(signal) != 0
    }
}

fn bit(signal: c_int) -> u64 {
    1 << (signal - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_read_and_without_proc_the_standard_library_is_known() {
        let states = States::of(Some("SigIgn:\t0000000000000002\nSigCgt:\t0000000000000440\n"));
        assert!(states.ignores(SIGINT) && !states.ignores(SIGBUS));
        assert!(states.catches(SIGBUS) && !states.catches(SIGINT));
        assert!(!States::of(Some("")).catches(SIGBUS));
        let unknown = States::of(None);
        assert!(unknown.catches(SIGBUS) && !unknown.ignores(SIGINT));
    }
}
