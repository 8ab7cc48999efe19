//! Runs of pages without the holes of the file that they stand in.
//!
//! A bit of a mapped-ram bitmap costs an eighth of a byte, and a file that was
//! shared nothing at all: pages that lie in a row can be a hole of terabytes.

use super::{PageRun, Ram, RunContent};
use crate::bytes::Bytes;
use crate::units::{BlockOffset, index};

/// Bytes in a row that are worth the question whether they are a hole.
const ASKED_LEN: u64 = 1 << 20;

/// The parts of a run that may be other than zeros.
pub(crate) fn filled_parts<'r>(
    ram: &'r Ram<'_>,
    run: PageRun<'r>,
) -> impl Iterator<Item = PageRun<'r>> + use<'r> {
    let page_len = ram.page_size().bytes();
    let bytes = bytes_of(ram, &run).filter(|bytes| bytes.len() as u64 >= ASKED_LEN);
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == run.pages {
            return None;
        }
        let (first, end) = match &bytes {
            Some(bytes) => {
                let data = bytes.next_data(index(done * page_len)?)?;
                (data.start as u64 / page_len, (data.end as u64).div_ceil(page_len))
            }
            None => (0, run.pages),
        };
        let first = first.max(done);
        done = end.clamp(first, run.pages);
        Some(part_of(&run, first, done, page_len))
    })
}

/// The bytes of pages that lie in a row.
fn bytes_of<'a>(ram: &Ram<'a>, run: &PageRun<'_>) -> Option<Bytes<'a>> {
    let page_len = ram.page_size().bytes();
    let RunContent::Data { first, stride } = run.content else { return None };
    let bytes = ram.sources().bytes_from(first).filter(|_| stride == page_len)?;
    bytes.part(0..index(run.pages.checked_mul(page_len)?)?.min(bytes.len()))
}

/// The pages of a run from `first` to before `end`.
fn part_of<'r>(run: &PageRun<'r>, first: u64, end: u64, page_len: u64) -> PageRun<'r> {
    let skipped = first * page_len;
    let content = match run.content {
        RunContent::Data { first, stride } if stride == page_len => {
            RunContent::Data { first: first.checked_add(skipped).unwrap_or(first), stride }
        }
        content => content,
    };
    PageRun { offset: BlockOffset(run.offset.0 + skipped), pages: end - first, content }
}
