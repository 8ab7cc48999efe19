//! The progress bar: on standard error, when that is a terminal.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use ramlift::{Input, Progress, Stream};

use crate::exit::Failure;

/// How often the bar is drawn anew.
const TICK: Duration = Duration::from_millis(100);

/// Whether a bar is to be seen: not where nobody looks.
pub(crate) fn is_visible(is_quiet: bool) -> bool {
    !is_quiet && std::io::stderr().is_terminal()
}

/// Does `work`, which takes `total` bytes, and shows how far it has come.
///
/// The work counts; a thread of its own looks at the count ten times a second,
/// so the bar costs the work nothing.
pub(crate) fn watch<T>(
    is_visible: bool,
    phase: &'static str,
    total: u64,
    work: impl FnOnce(&Progress) -> T,
) -> T {
    watch_with(is_visible, || ProgressBar::new(total).with_style(style()).with_message(phase), work)
}

/// Does `work` on what goes by, nobody knows how long.
pub(crate) fn pass<T>(is_visible: bool, work: impl FnOnce(&Progress) -> T) -> T {
    let style = ProgressStyle::with_template("{spinner} {bytes} {binary_bytes_per_sec}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_spinner());
    watch_with(is_visible, || ProgressBar::new_spinner().with_style(style), work)
}

fn watch_with<T>(
    is_visible: bool,
    bar: impl FnOnce() -> ProgressBar,
    work: impl FnOnce(&Progress) -> T,
) -> T {
    let progress = Progress::new();
    if !is_visible {
        return work(&progress);
    }
    let bar = bar();
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            while !is_done.load(Ordering::Acquire) {
                let done = progress.done();
                bar.set_position(bar.length().map_or(done, |total| done.min(total)));
                bar.tick();
                std::thread::park_timeout(TICK);
            }
        });
        let done = work(&progress);
        is_done.store(true, Ordering::Release);
        watcher.thread().unpark();
        bar.finish_and_clear();
        done
    })
}

/// Walks the stream in `input`, with a bar if it is to be seen.
pub(crate) fn index(input: &Input, is_visible: bool) -> Result<Stream<'_>, Failure> {
    watch(is_visible, "indexing", input.bytes().len() as u64, |progress| {
        input.ahead_of(progress, || Stream::parse_with(input, progress))
    })
    .map_err(Failure::input(input.path()))
}

/// The same, and with `is_salvage` what can be had of a damaged stream.
pub(crate) fn index_or_salvage(
    input: &Input,
    is_visible: bool,
    is_salvage: bool,
) -> Result<Stream<'_>, Failure> {
    if !is_salvage {
        return index(input, is_visible);
    }
    let len = input.bytes().len() as u64;
    watch(is_visible, "indexing", len, |progress| Stream::salvage(input, progress)).map_err(|error| {
        Failure::Other(format!("{}: nothing can be salvaged: {error}", input.path().display()))
    })
}

fn style() -> ProgressStyle {
    let template = "{msg:8} {wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta} left";
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
