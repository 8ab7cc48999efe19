//! Whole streams made up from any bytes: what a live guest's could be, as wild as
//! QEMU's rules let it be.

use std::collections::BTreeSet;

use arbitrary::{Arbitrary, Result, Unstructured};

use super::synth::{Block, Records, Synth, noise};

/// Page records that a stream has at most, and bytes of their pages: what is made
/// of them takes time.
const RECORDS: usize = 400;
const PAGES_LEN: u64 = 512 << 10;

/// Pages of a block, by the shape of the image that they make: less than a
/// window of the scatter, and some of them.
const PAGES: [u64; 6] = [1, 2, 16, 130, 513, 1100];

/// A stream to be written.
#[derive(Debug)]
pub struct Plan {
    page_bits: u32,
    has_footers: bool,
    /// Says the page size in the description alone.
    is_described: bool,
    blocks: Vec<(String, u64)>,
    sections: Vec<Vec<Record>>,
    devices: usize,
    has_commands: bool,
}

/// A page record.
#[derive(Clone, Debug)]
struct Record {
    block: usize,
    page: u64,
    is_named: bool,
    content: Content,
}

#[derive(Clone, Debug)]
enum Content {
    Fill(u8),
    Noise(u64),
    /// A page of data with one byte that differs from its others, or none.
    Data(u8, Option<u16>),
    Compressed(u8),
    /// Bytes to keep, bytes to put behind them.
    Delta(Vec<(u16, u16)>),
}

impl<'a> Arbitrary<'a> for Plan {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let page_bits = *u.choose(&[12, 12, 12, 8, 10, 13, 16])?;
        let has_footers = u.ratio(7, 8)?;
        let is_described = page_bits == 12 && u.ratio(1, 4)?;
        let count = u.int_in_range(1..=4)?;
        let page_len = 1_u64 << page_bits;
        let mut blocks = Vec::new();
        for nth in 0..count {
            let pages = *u.choose(&PAGES)?;
            // 64 KiB pages: no more bytes than others have.
            let pages = if page_bits == 16 { pages.min(130) } else { pages };
            let short = if u.ratio(1, 8)? { u.int_in_range(1..=page_len / 256)? * 256 % page_len } else { 0 };
            blocks.push((
                format!("{}{nth}", u.choose(&["pc.ram", "0000:00:02.0/vga.vram", "b"])?),
                pages * page_len - short,
            ));
        }
        let mut maker = Maker {
            page_len,
            blocks: &blocks,
            sent: BTreeSet::new(),
            left: RECORDS.min((PAGES_LEN / page_len) as usize),
            last: None,
        };
        let mut sections = Vec::new();
        for _ in 0..u.int_in_range(1..=5)? {
            sections.push(maker.section(u)?);
        }
        let devices = u.int_in_range(0..=3)?;
        let devices = if is_described { devices.max(1) } else { devices };
        Ok(Self {
            page_bits,
            has_footers,
            is_described,
            sections,
            devices,
            has_commands: u.arbitrary()?,
            blocks,
        })
    }
}

impl Plan {
    /// A stream as QEMU writes it of a guest that runs: it goes over all pages of
    /// all blocks, then over some of them again and again, in ascending order, and
    /// names a block where it changes.
    pub fn of_guest(u: &mut Unstructured<'_>) -> Result<Self> {
        let page_bits = *u.choose(&[12, 12, 8, 10])?;
        let page_len = 1_u64 << page_bits;
        let mut blocks = Vec::new();
        for nth in 0..u.int_in_range(1..=3)? {
            blocks.push((format!("block{nth}"), u.choose(&[1, 2, 16, 40])? * page_len));
        }
        let mut sections = vec![Vec::new()];
        for pass in 0..u.int_in_range(1..=3)? {
            for (block, (_, len)) in blocks.iter().enumerate() {
                for page in 0..len / page_len {
                    if pass > 0 && u.ratio(1, 2)? {
                        continue;
                    }
                    if u.ratio(1, 20)? {
                        sections.push(Vec::new());
                    }
                    let content = match u.int_in_range(0..=2)? {
                        0 => Content::Noise(pass << 16 | (block as u64) << 8 | page),
                        1 => Content::Fill(u.arbitrary()?),
                        _ => Content::Fill(0),
                    };
                    sections.last_mut().expect("there is one").push(Record {
                        block,
                        page,
                        is_named: false,
                        content,
                    });
                }
            }
        }
        let mut last = None;
        for record in sections.iter_mut().flatten() {
            record.is_named = last.replace(record.block) != Some(record.block);
        }
        let (has_footers, devices) = (u.ratio(7, 8)?, u.int_in_range(1..=3)?);
        Ok(Self {
            page_bits,
            has_footers,
            is_described: false,
            blocks,
            sections,
            devices,
            has_commands: false,
        })
    }
}

/// Makes records up.
struct Maker<'b> {
    page_len: u64,
    blocks: &'b [(String, u64)],
    /// Pages that a delta can be of.
    sent: BTreeSet<(usize, u64)>,
    left: usize,
    last: Option<(usize, u64)>,
}

impl Maker<'_> {
    fn section(&mut self, u: &mut Unstructured<'_>) -> Result<Vec<Record>> {
        let mut records = Vec::new();
        while self.left > 0 && !u.is_empty() && u.ratio(15, 16)? {
            let block = match self.last {
                Some((block, _)) if u.ratio(3, 4)? => block,
                _ => u.choose_index(self.blocks.len())?,
            };
            let pages = self.blocks[block].1.div_ceil(self.page_len);
            let next = self.last.filter(|(last, _)| *last == block).map_or(0, |(_, page)| page + 1);
            let page = if u.ratio(3, 4)? { next % pages } else { u.int_in_range(0..=pages - 1)? };
            let content = self.content(u, block, page)?;
            let is_named = self.last.is_none_or(|(last, _)| last != block) || u.ratio(1, 16)?;
            let run = if u.ratio(1, 4)? { u.int_in_range(1..=40)? } else { 1 };
            for nth in 0..run {
                let page = (page + nth) % pages;
                if self.left == 0
                    || matches!(content, Content::Delta(_)) && !self.sent.contains(&(block, page))
                {
                    break;
                }
                records.push(Record {
                    block,
                    page,
                    is_named: is_named && nth == 0,
                    content: content.of(nth),
                });
                self.sent.insert((block, page));
                self.last = Some((block, page));
                self.left -= 1;
            }
        }
        Ok(records)
    }

    fn content(&self, u: &mut Unstructured<'_>, block: usize, page: u64) -> Result<Content> {
        Ok(match u.int_in_range(0..=9)? {
            0..=2 => Content::Fill(0),
            3 => Content::Fill(u.arbitrary()?),
            4..=5 => Content::Noise(u.arbitrary::<u16>()?.into()),
            6 => Content::Data(u.arbitrary()?, u.arbitrary()?),
            7 if self.page_len >= 1024 => Content::Compressed(u.arbitrary()?),
            _ if self.sent.contains(&(block, page)) => self.delta(u)?,
            _ => Content::Data(0, None),
        })
    }

    fn delta(&self, u: &mut Unstructured<'_>) -> Result<Content> {
        let mut pairs = Vec::new();
        let mut at = 0;
        for _ in 0..u.int_in_range(0..=3)? {
            let first = u16::from(!pairs.is_empty());
            let keep =
                if u.ratio(1, 2)? { u.int_in_range(first..=100)? } else { u.int_in_range(first..=5000)? };
            let take = u.int_in_range(1..=200)?;
            at += u64::from(keep) + u64::from(take);
            if at > self.page_len {
                break;
            }
            pairs.push((keep, take));
        }
        Ok(Content::Delta(pairs))
    }
}

impl Content {
    /// The same for the nth page of a run: noise is another for each.
    fn of(&self, nth: u64) -> Self {
        match self {
            Self::Noise(seed) => Self::Noise(seed + nth * 0x1_0000),
            other => other.clone(),
        }
    }
}

impl Plan {
    pub fn page_len(&self) -> u64 {
        1 << self.page_bits
    }

    /// The stream.
    pub fn stream(&self) -> Vec<u8> {
        let blocks: Vec<Block> = self.blocks.iter().map(|(name, len)| Block::new(name, *len)).collect();
        let mut stream = Synth::machine().described_page_size(Some(self.page_len()));
        if !self.has_footers {
            stream = stream.without_footers();
        }
        if !self.is_described {
            stream = stream.target_page_bits(self.page_bits);
        }
        if self.has_commands {
            stream = stream.command(3, &[0, 0, 0, 1]);
        }
        stream = stream.ram_start(&blocks);
        for (nth, section) in self.sections.iter().enumerate() {
            let records = section.iter().fold(Records::new(), |records, record| self.write(records, record));
            let is_last = nth + 1 == self.sections.len();
            stream = if is_last { stream.ram_end(records) } else { stream.ram_part(records) };
            if self.has_commands && nth == 0 {
                stream = stream.command(11, &[]);
            }
        }
        for id in 0..self.devices as u32 {
            let fields = r#"{"name": "ticks", "type": "uint32", "size": 4}"#;
            stream = stream.device(10 + id, &format!("device{id}"), &noise(id.into(), 4), fields);
        }
        if self.devices > 0 { stream.finish() } else { stream.finish_undescribed() }
    }

    fn write(&self, records: Records, record: &Record) -> Records {
        let len = self.page_len() as usize;
        let name = &self.blocks[record.block].0;
        let offset = record.page << self.page_bits;
        let page = match &record.content {
            Content::Fill(byte) if record.is_named => return records.fill(name, offset, *byte),
            Content::Fill(byte) => return records.next_fill(offset, *byte),
            Content::Delta(pairs) => return delta(records, record.is_named.then_some(name), offset, pairs),
            Content::Noise(seed) => noise(*seed, len),
            Content::Compressed(byte) => vec![*byte; len],
            Content::Data(byte, other) => {
                let mut page = vec![*byte; len];
                if let Some(other) = other {
                    page[usize::from(*other) % len] ^= 0x55;
                }
                page
            }
        };
        match (&record.content, record.is_named) {
            (Content::Compressed(_), true) => records.compressed(name, offset, &page),
            (Content::Compressed(_), false) => records.next_compressed(offset, &page),
            (_, true) => records.data(name, offset, &page),
            (_, false) => records.next_data(offset, &page),
        }
    }
}

fn delta(records: Records, name: Option<&String>, offset: u64, pairs: &[(u16, u16)]) -> Records {
    let new: Vec<Vec<u8>> = pairs
        .iter()
        .map(|(keep, take)| noise(u64::from(*keep) << 8 | u64::from(*take), usize::from(*take)))
        .collect();
    let pairs: Vec<(usize, &[u8])> =
        pairs.iter().zip(&new).map(|((keep, _), new)| (usize::from(*keep), new.as_slice())).collect();
    match name {
        Some(name) => records.xbzrle(name, offset, &pairs),
        None => records.next_xbzrle(offset, &pairs),
    }
}
