//! Made streams that are damaged: no page is wrong and nothing says so.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use arbitrary::{Arbitrary, Result, Unstructured};
use ramlift::{BlockOffset, Progress, Stream};

use super::differential::same;
use super::look::look_through;
use super::naive::{Content, Naive};
use super::plan::Plan;
use super::synth::noise;

/// What is done to a stream, and where.
#[derive(Debug)]
struct Damage {
    place: Range<usize>,
    how: How,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum How {
    Overwritten(u8),
    Zeros,
    Removed,
}

impl Damage {
    fn of(u: &mut Unstructured<'_>, naive: &Naive) -> Result<Self> {
        let (first, last) = (naive.starts[0], *naive.ends.last().expect("there are records"));
        let start = match u.arbitrary()? {
            true => naive.starts[u.choose_index(naive.starts.len())?] + u.int_in_range(0..=12)?,
            false => u.int_in_range(first..=last)?,
        };
        let longest = *u.choose(&[16, 300, 5000, 40_000])?;
        let start = start.min(last - 1);
        let end = (start + u.int_in_range(1..=longest)?).min(last);
        Ok(Self { place: start..end, how: u.arbitrary()? })
    }

    fn apply(&self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        match self.how {
            How::Overwritten(seed) => {
                bytes[self.place.clone()].copy_from_slice(&noise(seed.into(), self.place.len()));
            }
            How::Zeros => bytes[self.place.clone()].fill(0),
            How::Removed => drop(bytes.drain(self.place.clone())),
        }
        bytes
    }
}

pub fn run(bytes: &[u8]) {
    let mut u = Unstructured::new(bytes);
    let Ok(seed) = u.bytes(16).map(<[u8]>::to_vec) else { return };
    let Ok(plan) = Plan::of_guest(&mut u) else { return };
    let stream = plan.stream();
    let naive = Naive::read(&stream, plan.page_len() as usize);
    if naive.records.is_empty() {
        return;
    }
    let damage = Damage::of(&mut Unstructured::new(&seed), &naive).expect("zeros follow the end");
    check(&stream, &naive, &damage, plan.page_len());
}

fn check(bytes: &[u8], naive: &Naive, damage: &Damage, page_len: u64) {
    let bad = damage.apply(bytes);
    let Ok(stream) = Stream::salvage(&bad, &Progress::new()) else { return };
    look_through(&stream, &bad);
    // A change that leaves a stream, if another one, cannot be seen.
    if Stream::parse(&bad).is_ok() && stream.losses().is_empty() {
        return;
    }
    assert!(!stream.losses().is_empty(), "{damage:?}");
    // Nor what leaves one up to somewhere behind.
    let longest_record = page_len + 300;
    if stream.losses()[0].offset.0 > damage.place.start as u64 + longest_record {
        return;
    }
    let Some(ram) = stream.ram().filter(|ram| ram.page_size().bytes() == page_len) else { return };
    let lost = stream.losses().iter().rev().find(|loss| loss.is_in_ram).map(|loss| loss.offset);
    let touched: BTreeSet<(&[u8], u64)> = (0..naive.records.len())
        .filter(|nth| naive.starts[*nth] < damage.place.end && naive.ends[*nth] > damage.place.start)
        .map(|nth| (naive.records[nth].0.as_slice(), naive.records[nth].1))
        .collect();
    let mut copies: BTreeMap<(&[u8], u64), Vec<&Content>> = BTreeMap::new();
    for (block, offset, content) in &naive.records {
        copies.entry((block, *offset)).or_default().push(content);
    }
    for (id, block, pages) in ram.blocks() {
        let name = block.idstr.as_bytes();
        let truth = naive.pages(name);
        for offset in (0..block.used_length).step_by(page_len as usize) {
            let at = pages.last_record(BlockOffset(offset));
            let is_right = match truth.get(&offset) {
                Some(content) => same(ram, id, offset, content),
                None => at.is_none(),
            };
            let is_doubtful = || {
                let is_it = |row: &&ramlift::DoubtfulPage| {
                    let pages = row.offset.0..row.offset.0 + row.pages * page_len;
                    row.block == id && pages.contains(&offset)
                };
                stream.doubtful_pages().iter().any(|page| is_it(&page))
            };
            let is_stale = || match (at, lost) {
                (Some(at), Some(lost)) => {
                    let had = copies.get(&(name, offset)).into_iter().flatten();
                    at < lost && had.into_iter().any(|copy| same(ram, id, offset, copy))
                }
                (None, lost) => lost.is_some(),
                _ => false,
            };
            assert!(
                is_right || touched.contains(&(name, offset)) || is_doubtful() || is_stale(),
                "{damage:x?}: {} {offset:#x}, by {at:?}, is wrong and nothing says it: {:?}; doubtful are {:?}; it had {:?}",
                block.idstr,
                stream.losses(),
                stream.doubtful_pages(),
                history(naive, name, offset)
            );
        }
    }
}

/// Where the records of a page begin and end, and the first byte of each content.
fn history(naive: &Naive, block: &[u8], offset: u64) -> Vec<(usize, usize, u8)> {
    let records = naive.records.iter().zip(naive.starts.iter().zip(&naive.ends));
    let of_page = records.filter(|((name, at, _), _)| name == block && *at == offset);
    let first = |content: &Content| match content {
        Content::Fill(byte) => *byte,
        Content::Data(bytes) => bytes[0],
    };
    of_page.map(|((.., content), (start, end))| (*start, *end, first(content))).collect()
}
