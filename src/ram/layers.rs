//! Extents as they come, the newer ones over the older.
//!
//! A pass over a block ascends, the next pass starts over. So extents are
//! kept in *runs*, each sorted and without overlaps, newest last. An extent
//! that does not ascend starts a run. A run is laid over the one before it as
//! soon as it has reached half its length, so every order of extents costs
//! n log n in all, as a merge sort does, and one run is left at the end.
//!
//! Where nearly every page has an extent of its own, a *table* with a place
//! for each page is shorter, and takes what comes at once:
//!
//! ```text
//! page 0                       table's end                  the last page met
//!  ├── table: 10 bytes a page ──┤── runs: 24 bytes an extent ──┤
//! ```
//!
//! It is made when extents number a quarter of the pages up to the last one
//! met, so memory follows what was met: at most 16 bytes for each of these
//! pages, while the table is made, and never more than a constant for an
//! extent, whatever the stream claims.

use std::ops::Range;

use super::extent::{Content, Extent, Run, find, overlay};
use crate::units::{TargetPageSize, index};

/// Extents below which there is no table.
const TABLE_MIN: usize = 1024;

/// Pages up to the last one met, for each extent, below which there is one.
const PAGES_PER_EXTENT: u64 = 4;

/// Extents of one block, as they come.
#[derive(Default, Debug)]
pub(super) struct Layers {
    table: Table,
    /// What is behind the table. Each at least twice as long as the next, but
    /// for the last two.
    runs: Vec<Run>,
}

impl Layers {
    /// Lays an extent over all that came before.
    #[inline]
    pub(super) fn push(&mut self, extent: Extent, page_size: TargetPageSize) {
        if extent.page < self.table.len() {
            return self.push_to_table(extent, page_size);
        }
        match self.runs.last_mut() {
            Some(run) if run.last().is_none_or(|last| last.end() <= extent.page) => {
                if !run.last_mut().is_some_and(|last| last.absorb(&extent, page_size)) {
                    self.push_apart(extent, page_size);
                }
            }
            _ => self.start_run(extent, page_size),
        }
    }

    fn push_to_table(&mut self, extent: Extent, page_size: TargetPageSize) {
        let end = self.table.len();
        if extent.end() <= end {
            self.table.put(&extent, page_size);
        } else {
            self.table.put(&extent.slice(extent.page, end, page_size), page_size);
            self.push(extent.slice(end, extent.end(), page_size), page_size);
        }
    }

    /// Puts an extent behind the last run.
    fn push_apart(&mut self, extent: Extent, page_size: TargetPageSize) {
        // Room for more is looked for as rarely as a vector grows.
        let is_full = self.runs.last().is_none_or(|run| run.len() == run.capacity());
        if is_full && self.make_table(extent.end(), page_size) {
            self.push(extent, page_size);
        } else if let Some(run) = self.runs.last_mut() {
            run.push(extent);
        }
    }

    #[cold]
    fn start_run(&mut self, first: Extent, page_size: TargetPageSize) {
        if self.make_table(first.end(), page_size) {
            return self.push(first, page_size);
        }
        while let [.., older, newer] = self.runs.as_slice() {
            if older.len() / 2 > newer.len() {
                break;
            }
            self.merge_last_two(page_size);
        }
        self.runs.push(vec![first]);
    }

    fn merge_last_two(&mut self, page_size: TargetPageSize) {
        if let (Some(newer), Some(older)) = (self.runs.pop(), self.runs.pop()) {
            self.runs.push(overlay(older, newer, page_size));
        }
    }

    /// Makes a table of all pages up to `end` and those that the runs have, if
    /// it is worth it. A table that there is, is made longer by an eighth or
    /// more.
    fn make_table(&mut self, end: u64, page_size: TargetPageSize) -> bool {
        let extents: usize = self.runs.iter().map(Vec::len).sum();
        let known = self.table.len();
        if extents < TABLE_MIN || (extents as u64) < known / 8 {
            return false;
        }
        let ends = self.runs.iter().filter_map(|run| run.last()).map(Extent::end);
        let end = ends.fold(end, u64::max);
        let Some(len) = index(end).filter(|_| end - known <= extents as u64 * PAGES_PER_EXTENT) else {
            return false;
        };
        self.table.grow(len);
        for run in std::mem::take(&mut self.runs) {
            run.iter().for_each(|extent| self.table.put(extent, page_size));
        }
        true
    }

    /// The extent of the last record of a page, or a part of it.
    pub(super) fn find(&self, page: u64) -> Option<Extent> {
        self.table.find(page).or_else(|| self.runs.iter().rev().find_map(|run| find(run, page)))
    }

    /// Whether any extent has one of `pages`.
    pub(super) fn has_any(&self, pages: &Range<u64>) -> bool {
        let in_run = |run: &Run| {
            let first = run.partition_point(|extent| extent.end() <= pages.start);
            run.get(first).is_some_and(|extent| extent.page < pages.end)
        };
        // No pages are in the midst of an extent, too.
        !pages.is_empty() && (self.table.has_any(pages) || self.runs.iter().any(in_run))
    }

    /// What is left once all are laid over each other.
    pub(super) fn finish(mut self, page_size: TargetPageSize) -> Extents {
        while self.runs.len() > 1 {
            self.merge_last_two(page_size);
        }
        let mut run = self.runs.pop().unwrap_or_default();
        run.shrink_to_fit();
        Extents { table: self.table, run, page_size }
    }
}

/// The extents of one block, each page in one of them at most.
#[derive(Debug)]
pub(super) struct Extents {
    table: Table,
    /// What is behind the table.
    run: Run,
    page_size: TargetPageSize,
}

impl Extents {
    /// The extent that has a page, or a part of it.
    pub(super) fn find(&self, page: u64) -> Option<Extent> {
        self.table.find(page).or_else(|| find(&self.run, page))
    }

    /// All of them, ascending.
    pub(super) fn iter(&self) -> ExtentsIn<'_> {
        self.within(0..u64::MAX)
    }

    /// Those that have any of `pages`, ascending, cut to these.
    pub(super) fn within(&self, pages: Range<u64>) -> ExtentsIn<'_> {
        let first = self.run.partition_point(|extent| extent.end() <= pages.start);
        let run = self.run.get(first..).unwrap_or_default();
        ExtentsIn { table: &self.table, run, pages, page_size: self.page_size }
    }

    /// Adds extents of pages that are in none.
    pub(super) fn add(self, more: impl IntoIterator<Item = Extent>) -> Self {
        let page_size = self.page_size;
        let mut layers = Layers { table: self.table, runs: vec![self.run] };
        more.into_iter().for_each(|extent| layers.push(extent, page_size));
        layers.finish(page_size)
    }

    /// Replaces the content of all.
    pub(super) fn replace(&mut self, with: impl Fn(Content) -> Content) {
        let contents = self.table.contents.iter_mut().flatten();
        let contents = contents.chain(self.run.iter_mut().map(|extent| &mut extent.content));
        contents.for_each(|content| *content = with(*content));
    }
}

/// Extents in a range of pages.
#[derive(Clone, Debug)]
pub(super) struct ExtentsIn<'r> {
    table: &'r Table,
    run: &'r [Extent],
    /// The pages that are left.
    pages: Range<u64>,
    page_size: TargetPageSize,
}

impl Iterator for ExtentsIn<'_> {
    type Item = Extent;

    fn next(&mut self) -> Option<Extent> {
        if let Some(extent) = self.table.next_in(&self.pages, self.page_size) {
            self.pages.start = extent.end();
            return Some(extent);
        }
        let (extent, rest) = self.run.split_first().filter(|(extent, _)| extent.page < self.pages.end)?;
        self.run = rest;
        let (from, to) = (extent.page.max(self.pages.start), extent.end().min(self.pages.end));
        self.pages.start = to;
        Some(extent.slice(from, to, self.page_size))
    }
}

/// The place of each page, from page 0 on.
#[derive(Default, Debug)]
struct Table {
    payloads: Vec<u64>,
    /// `None` for pages that were not met.
    contents: Vec<Option<Content>>,
}

impl Table {
    #[inline]
    fn len(&self) -> u64 {
        self.payloads.len() as u64
    }

    fn grow(&mut self, len: usize) {
        self.payloads.reserve_exact(len.saturating_sub(self.payloads.len()));
        self.payloads.resize(len, 0);
        self.contents.reserve_exact(len.saturating_sub(self.contents.len()));
        self.contents.resize(len, None);
    }

    /// Takes an extent in, all of whose pages have a place.
    fn put(&mut self, extent: &Extent, page_size: TargetPageSize) {
        let stride = extent.stride(page_size);
        let pages = index(extent.page).zip(index(extent.end())).map_or(0..0, |(from, to)| from..to);
        let payloads = self.payloads.get_mut(pages.clone()).unwrap_or_default();
        let contents = self.contents.get_mut(pages).unwrap_or_default();
        for (nth, (payload, content)) in (0..).zip(payloads.iter_mut().zip(contents)) {
            *payload = extent.payload + nth * stride;
            *content = Some(extent.content);
        }
    }

    #[inline]
    fn find(&self, page: u64) -> Option<Extent> {
        let at = index(page)?;
        let content = (*self.contents.get(at)?)?;
        Some(Extent::page(page, *self.payloads.get(at)?, content))
    }

    fn has_any(&self, pages: &Range<u64>) -> bool {
        let pages = pages.start..pages.end.min(self.len());
        let pages = index(pages.start).zip(index(pages.end)).map_or(0..0, |(from, to)| from..to);
        self.contents.get(pages).is_some_and(|contents| contents.iter().any(Option::is_some))
    }

    /// The first extent in a range, as long as it goes on.
    fn next_in(&self, pages: &Range<u64>, page_size: TargetPageSize) -> Option<Extent> {
        let end = pages.end.min(self.len());
        let mut extent = (pages.start..end).find_map(|page| self.find(page))?;
        while extent.end() < end {
            let Some(next) = self.find(extent.end()) else { break };
            if !extent.absorb(&next, page_size) {
                break;
            }
        }
        Some(extent)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const SIZE: TargetPageSize = TargetPageSize::KIB_4;

    /// Pages one by one, the last record of each.
    type Pages = BTreeMap<u64, (u64, Content)>;

    fn pages(extents: impl Iterator<Item = Extent>) -> Pages {
        let pages = |extent: Extent| {
            (extent.page..extent.end())
                .map(move |page| (page, (extent.payload_of(page, SIZE), extent.content)))
        };
        extents.flat_map(pages).collect()
    }

    fn check(extents: &[Extent], ranges: &[Range<u64>]) -> Extents {
        let mut layers = Layers::default();
        let mut expected = Pages::new();
        for extent in extents {
            layers.push(*extent, SIZE);
            expected.extend(pages(std::iter::once(*extent)));
        }
        for range in ranges {
            assert_eq!(layers.has_any(range), expected.range(range.clone()).next().is_some());
        }
        for page in (0..20_000).step_by(7) {
            let found = layers.find(page).map(|extent| (extent.payload_of(page, SIZE), extent.content));
            assert_eq!(found, expected.get(&page).copied(), "page {page}");
        }
        let settled = layers.finish(SIZE);
        assert_eq!(pages(settled.iter()), expected);
        for range in ranges {
            let expected =
                expected.range(range.clone()).map(|(page, what)| (*page, *what)).collect::<Pages>();
            assert_eq!(pages(settled.within(range.clone())), expected);
        }
        settled
    }

    fn extent() -> impl Strategy<Value = Extent> {
        let content = prop_oneof![
            any::<u8>().prop_map(Content::Fill),
            Just(Content::Data),
            Just(Content::Packed),
            Just(Content::Image)
        ];
        let page = prop_oneof![8 => 0..12_000_u64, 1 => (0..12_000_u64).prop_map(|page| page << 30)];
        (page, 1..6_u32, content, 0..1_u64 << 40).prop_map(|(page, count, content, payload)| {
            let count = if content == Content::Image { 1 } else { count };
            Extent { page, payload, count, content }
        })
    }

    fn range() -> impl Strategy<Value = Range<u64>> {
        (0..14_000_u64, 0..3_000_u64).prop_map(|(start, len)| start..start + len)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn the_last_extent_of_each_page_stays(
            extents in prop::collection::vec(extent(), 0..9_000),
            ranges in prop::collection::vec(range(), 20),
        ) {
            check(&extents, &ranges);
        }
    }

    fn scattered(count: u64) -> Vec<Extent> {
        let page = |nth: u64| Extent::page(nth * 7919 % count, nth * 4104, Content::Data);
        (0..count).map(page).collect()
    }

    #[test]
    fn pages_in_no_order_have_a_table() {
        let settled = check(&scattered(10_007), &[0..50, 9_000..20_000]);
        assert!(settled.table.len() == 10_007 && settled.run.is_empty());
    }

    #[test]
    fn a_table_grows_with_what_is_met_behind_it() {
        let mut extents = scattered(2_003);
        extents.extend(scattered(8_009).iter().map(|extent| Extent { page: extent.page + 2_003, ..*extent }));
        extents.push(Extent { page: 0, payload: 9, count: 12_000, content: Content::Fill(0) });
        let settled = check(&extents, &[1_000..4_000, 0..1]);
        assert!(settled.table.len() > 9_000);
    }

    #[test]
    fn what_is_far_behind_makes_no_table() {
        let far = (0..5_000).map(|nth| Extent::page((nth * 7919 % 5_003) << 20, nth, Content::Data));
        let settled = check(&far.collect::<Vec<_>>(), &[]);
        assert_eq!((settled.table.len(), settled.run.len()), (0, 5_000));
    }

    #[test]
    fn a_table_does_not_reach_for_a_page_far_behind() {
        let mut extents = scattered(4_001);
        extents.extend((0..2_000).map(|nth| Extent::page((1 << 50) + nth * 2, nth, Content::Data)));
        assert!(check(&extents, &[0..1 << 51, 9_000..1 << 50]).table.len() <= 4_001);
    }

    #[test]
    fn an_ascending_pass_is_one_extent() {
        let pass = |_| (0..5_000).map(|page| Extent::page(page, page * 4104, Content::Data));
        let settled = check(&(0..3).flat_map(pass).collect::<Vec<_>>(), &[7..7, 7..8]);
        assert_eq!((settled.table.len(), settled.run.len()), (0, 1));
    }
}
