//! Generated streams, of any shape that QEMU can write.

use super::check;
use crate::support::cli::Workplace;
use crate::support::naive::Naive;
use crate::support::synth::{Block, Records, Synth, noise};
use proptest::prelude::*;

/// Where a stream says what its page size is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Told {
    Configuration,
    Description,
    Nowhere,
}

/// A generated stream, and what it was made from.
#[derive(Clone, Debug)]
struct Plan {
    bits: u32,
    told: Told,
    /// Whether a page of data comes before all others, if the size is not
    /// told.
    has_early_data: bool,
    has_footers: bool,
    /// Name, pages, and bytes that the last page is short of.
    blocks: Vec<(Vec<u8>, u64, u64)>,
    passes: Vec<Pass>,
    seed: u64,
}

/// Pages sent in a row: which, and in which order.
#[derive(Clone, Debug)]
struct Pass {
    block: prop::sample::Index,
    first: prop::sample::Index,
    len: u64,
    /// Distance to the next page: 1 ascends, others jump about, none descends.
    step: Option<u64>,
    content: Kind,
    /// One in so many pages is the last of its section.
    splits: u64,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Data,
    Fill(u8),
    /// Data and zeros.
    Mixed,
}

fn plans() -> impl Strategy<Value = Plan> {
    let told = prop_oneof![Just(Told::Configuration), Just(Told::Description), Just(Told::Nowhere)];
    let name = prop_oneof![
        3 => "[a-z0-9:./@]{1,20}".prop_map(String::into_bytes),
        1 => prop::collection::vec(any::<u8>(), 1..=255),
    ];
    let names = prop::collection::hash_set(name, 1..7);
    let blocks = names.prop_flat_map(|names| {
        let names: Vec<_> = names.into_iter().collect();
        names.into_iter().map(|name| (Just(name), 0u64..300, 0u64..4096)).collect::<Vec<_>>()
    });
    let passes = prop::collection::vec(passes(), 0..12);
    (8u32..=16, told, any::<[bool; 2]>(), blocks, passes, any::<u64>()).prop_map(
        |(bits, told, [has_early_data, has_footers], mut blocks, passes, seed)| {
            // The list ends with the last block that has any bytes.
            if let Some(last) = blocks.last_mut() {
                last.1 = last.1.max(1);
            }
            // Pages of few bytes in a row may look like one of many; the
            // sizes that are tried first are certain.
            let bits = if told == Told::Nowhere { [12, 13, 14, 16][bits as usize % 4] } else { bits };
            Plan { bits, told, has_early_data, has_footers, blocks, passes, seed }
        },
    )
}

fn passes() -> impl Strategy<Value = Pass> {
    let kind = prop_oneof![
        Just(Kind::Data),
        Just(Kind::Fill(0)),
        (1u8..).prop_map(Kind::Fill),
        Just(Kind::Mixed),
        Just(Kind::Mixed),
    ];
    let step = prop_oneof![3 => Just(Some(1u64)), 1 => (2u64..50).prop_map(Some), 1 => Just(None)];
    (any::<prop::sample::Index>(), any::<prop::sample::Index>(), 1u64..60, step, kind, 1u64..40).prop_map(
        |(block, first, len, step, content, splits)| Pass { block, first, len, step, content, splits },
    )
}

impl Plan {
    fn page_size(&self) -> usize {
        1 << self.bits
    }

    fn blocks(&self) -> Vec<Block> {
        let len = |pages: u64, short: u64| (pages << self.bits).saturating_sub(short % (1 << self.bits));
        let mut blocks: Vec<Block> =
            self.blocks.iter().map(|(name, pages, short)| Block::new(name, len(*pages, *short))).collect();
        // The total shares its word with flags, so lengths may be odd, but
        // not their sum.
        let total: u64 = blocks.iter().map(|block| block.used_length).sum();
        if let Some(last) = blocks.last_mut() {
            last.used_length += total.next_multiple_of(256) - total;
        }
        blocks
    }

    /// Writes the stream.
    fn write(&self) -> Vec<u8> {
        let mut stream = Synth::machine();
        match self.told {
            Told::Configuration => {
                stream = stream.target_page_bits(self.bits).described_page_size(None);
            }
            Told::Description => stream = stream.described_page_size(Some(1 << self.bits)),
            Told::Nowhere => stream = stream.described_page_size(None),
        }
        if !self.has_footers {
            stream = stream.without_footers();
        }
        let blocks = self.blocks();
        stream = stream.ram_start(&blocks);
        let mut bodies = self.bodies(&blocks);
        let last = bodies.pop().unwrap_or_default();
        stream = bodies.into_iter().fold(stream, Synth::ram_part).ram_end(last);
        match self.told {
            Told::Nowhere => stream.finish_undescribed(),
            _ => stream.finish(),
        }
    }

    fn bodies(&self, blocks: &[Block]) -> Vec<Records> {
        let size = self.page_size();
        let mut bodies = vec![Records::new()];
        let mut records = Records::new();
        let mut current = None;
        let mut seed = self.seed;
        let mut sent = std::collections::HashSet::new();
        let mut has_data = false;
        let mut push = |block: usize, offset: u64, kind: Kind, ends: bool| {
            seed = seed.wrapping_add(0x1_0001);
            // Now and then the name is written although it need not be.
            let is_named = current != Some(block) || seed.is_multiple_of(11);
            current = Some(block);
            let name = &blocks[block].idstr;
            let is_data = match kind {
                Kind::Data => true,
                Kind::Mixed => seed.is_multiple_of(3),
                Kind::Fill(_) => false,
            };
            let byte = if let Kind::Fill(byte) = kind { byte } else { 0 };
            let before = std::mem::take(&mut records);
            // No QEMU sends what changed before it has sent a page of data.
            let is_delta = !sent.insert((block, offset)) && has_data && seed % 5 < 2;
            let is_compressed = is_data && size >= 1024 && seed.is_multiple_of(7);
            has_data |= is_data;
            let new = noise(seed, 1 + seed as usize % 200);
            let far = (size - 2).saturating_sub(128 + new.len());
            let pairs = [(seed as usize % 3, &new[..1]), (far % 0x3fff, &new[..new.len() / 2 + 1])];
            let pairs = &pairs[..if size >= 1024 { seed as usize % 3 } else { seed as usize % 2 }];
            records = match (is_data, is_named) {
                _ if is_delta && is_named => before.xbzrle(name, offset, pairs),
                _ if is_delta => before.next_xbzrle(offset, pairs),
                (true, true) if is_compressed => before.compressed(name, offset, &noise(seed, size)),
                (true, false) if is_compressed => before.next_compressed(offset, &noise(seed, size)),
                (true, true) => before.data(name, offset, &noise(seed, size)),
                (true, false) => before.next_data(offset, &noise(seed, size)),
                (false, true) => before.fill(name, offset, byte),
                (false, false) => before.next_fill(offset, byte),
            };
            if ends {
                bodies.push(std::mem::take(&mut records));
            }
        };
        let filled: Vec<usize> = (0..blocks.len()).filter(|nth| blocks[*nth].used_length > 0).collect();
        // Without a page of data there is nothing to infer a size from.
        let needs_data = self.told == Told::Nowhere;
        if needs_data && self.has_early_data {
            push(filled[0], 0, Kind::Data, false);
        }
        for pass in &self.passes {
            let block = *pass.block.get(&filled);
            let pages = blocks[block].used_length.div_ceil(size as u64);
            let mut page = pass.first.index(pages as usize) as u64;
            for nth in 0..pass.len {
                push(block, page << self.bits, pass.content, nth % pass.splits == pass.splits - 1);
                page = (page + pages + pass.step.map_or(pages - 1, |step| step % pages)) % pages;
            }
        }
        // A guest without any data is half of a multifd migration.
        if !needs_data || !self.has_early_data {
            push(filled[0], 0, Kind::Data, false);
        }
        bodies.push(records);
        bodies
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(128) })]

    #[test]
    fn parallel_extraction_equals_the_naive_reader(plan in plans()) {
        check(&plan.write(), plan.page_size());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(16) })]

    #[test]
    fn the_command_extracts_what_the_naive_reader_does(plan in plans(), threads in 1u8..5) {
        let stream = plan.write();
        let naive = Naive::read(&stream, plan.page_size());
        let place = Workplace::with(&stream);
        let output = place.ramlift(&["extract", "stream", "-o", "out", "--threads", &threads.to_string()]);
        let manifest = place.json("out/manifest.json");
        let entries = manifest["blocks"].as_array().unwrap();
        prop_assert_eq!(entries.len(), naive.blocks.len());
        for (entry, (idstr, _)) in entries.iter().zip(&naive.blocks) {
            match entry["file"].as_str() {
                Some(file) => {
                    let image = place.read(&format!("out/{file}"));
                    prop_assert!(image == naive.image(idstr, plan.page_size()), "{}", file);
                }
                None => prop_assert!(naive.pages(idstr).is_empty()),
            }
        }
        let any_absent = entries.iter().any(|entry| entry["file"].is_null());
        prop_assert_eq!(output.code, if any_absent { 3 } else { 0 });
    }
}
