//! The oracle: a reader of RAM so plain that it can be seen to be right.
//!
//! It goes through the records one by one, as QEMU does when it loads a
//! stream, and keeps what it meets. It knows nothing of damage, devices or
//! page sizes: the last is told.

use std::collections::BTreeMap;

/// What a page holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Content {
    Fill(u8),
    Data(Vec<u8>),
}

/// What a stream holds of guest RAM.
#[derive(Default, Debug)]
pub struct Naive {
    /// Name and length, in the order of the list.
    pub blocks: Vec<(Vec<u8>, u64)>,
    /// Block, offset and content of each record, in the order of the stream.
    pub records: Vec<(Vec<u8>, u64, Content)>,
    /// Whether there is a compressed page: pages are in no order then.
    pub is_compressed: bool,
    /// For each EOS, how many records stand before it.
    pub bodies: Vec<usize>,
    /// For each MULTIFD_FLUSH, how many records stand before it.
    pub flushes: Vec<usize>,
    /// Where each record begins and ends.
    pub starts: Vec<usize>,
    pub ends: Vec<usize>,
}

impl Naive {
    /// Reads `stream` up to its first device or its end.
    pub fn read(stream: &[u8], page_size: usize) -> Self {
        let mut this = Self::default();
        let mut rest = &stream[8..];
        let flags = if page_size < 1024 { 0xff } else { 0x3ff };
        loop {
            match take(&mut rest, 1)[0] {
                0x00 | 0x04 => return this,
                0x05 => skip_subsection(&mut rest),
                0x07 => _ = counted(&mut rest, 4),
                0x08 => _ = (take(&mut rest, 2), counted(&mut rest, 2)),
                kind => {
                    take(&mut rest, 4);
                    if kind == 0x01 {
                        assert_eq!((counted(&mut rest, 1), take(&mut rest, 8)[7]), (b"ram".as_slice(), 4));
                        let mut unlisted = number(&mut rest, 8) & !0xff;
                        while unlisted > 0 {
                            this.blocks.push((counted(&mut rest, 1).to_vec(), number(&mut rest, 8)));
                            unlisted -= this.blocks[this.blocks.len() - 1].1;
                        }
                    }
                    loop {
                        let start = stream.len() - rest.len();
                        let word = number(&mut rest, 8);
                        if word == 0x10 {
                            this.bodies.push(this.records.len());
                            break;
                        }
                        if word == 0x200 {
                            this.flushes.push(this.records.len());
                            continue;
                        }
                        let name = match word & 0x20 {
                            0 => counted(&mut rest, 1).to_vec(),
                            _ => this.records[this.records.len() - 1].0.clone(),
                        };
                        let offset = word & !flags;
                        let content = match word & flags & !0x20 {
                            0x02 => Content::Fill(take(&mut rest, 1)[0]),
                            0x08 => Content::Data(take(&mut rest, page_size).to_vec()),
                            0x40 => Content::Data(this.changed(&name, offset, page_size, &mut rest)),
                            0x100 => {
                                this.is_compressed = true;
                                Content::Data(inflate(counted(&mut rest, 4)))
                            }
                            met => panic!("flags {met:#x}"),
                        };
                        this.records.push((name, offset, content));
                        this.starts.push(start);
                        this.ends.push(stream.len() - rest.len());
                    }
                    if rest.first() == Some(&0x7e) {
                        take(&mut rest, 5);
                    }
                }
            }
        }
    }

    /// The page that an XBZRLE record makes of the one before it.
    fn changed(&self, name: &[u8], offset: u64, page_size: usize, rest: &mut &[u8]) -> Vec<u8> {
        let before = self.records.iter().rev().find(|(known, at, _)| known == name && *at == offset);
        let mut page = match &before.expect("the page was sent before").2 {
            Content::Fill(byte) => vec![*byte; page_size],
            Content::Data(bytes) => bytes.clone(),
        };
        assert_eq!(take(rest, 1), [1]);
        let (mut pairs, mut at) = (counted(rest, 2), 0);
        while !pairs.is_empty() {
            at += leb128(&mut pairs);
            let len = leb128(&mut pairs);
            page[at..at + len].copy_from_slice(take(&mut pairs, len));
            at += len;
        }
        page
    }

    /// Reads what lies before `cut` of a stream that goes on behind it: the
    /// records that are whole by then, and where each one ends.
    pub fn read_until(stream: &[u8], page_size: usize, cut: usize) -> Self {
        let mut this = Self::read(stream, page_size);
        let whole = this.ends.iter().take_while(|end| **end <= cut).count();
        this.records.truncate(whole);
        this.starts.truncate(whole);
        this.ends.truncate(whole);
        this
    }

    /// The pages of a block as the last record of each has them, by offset.
    pub fn pages(&self, block: &[u8]) -> BTreeMap<u64, &Content> {
        let records = self.records.iter().filter(|(name, ..)| name == block);
        records.map(|(_, offset, content)| (*offset, content)).collect()
    }

    /// The image of a block: all of its bytes.
    pub fn image(&self, block: &[u8], page_size: usize) -> Vec<u8> {
        let (_, len) = self.blocks.iter().find(|(name, _)| name == block).expect("the block is listed");
        let mut image = vec![0; *len as usize];
        for (offset, content) in self.pages(block) {
            let page = &mut image[offset as usize..];
            let len = page_size.min(page.len());
            match content {
                Content::Fill(byte) => page[..len].fill(*byte),
                Content::Data(bytes) => page[..len].copy_from_slice(&bytes[..len]),
            }
        }
        image
    }

    /// How often the order of pages starts over, plus one.
    pub fn pass_count(&self) -> u64 {
        if self.is_compressed {
            return 1;
        }
        let place = |name: &[u8]| self.blocks.iter().position(|(known, _)| known == name);
        let order: Vec<_> = self.records.iter().map(|(name, offset, _)| (place(name), *offset)).collect();
        let starts_over = order.windows(2).filter(|pair| pair[1] <= pair[0]).count();
        starts_over as u64 + u64::from(!order.is_empty())
    }
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> &'a [u8] {
    let (head, tail) = rest.split_at(len);
    *rest = tail;
    head
}

fn number(rest: &mut &[u8], len: usize) -> u64 {
    take(rest, len).iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Bytes behind their length, which takes `width` bytes.
fn counted<'a>(rest: &mut &'a [u8], width: usize) -> &'a [u8] {
    let len = number(rest, width);
    take(rest, len as usize)
}

fn leb128(rest: &mut &[u8]) -> usize {
    match take(rest, 1)[0] {
        low @ ..0x80 => low.into(),
        low => usize::from(low & 0x7f) | usize::from(take(rest, 1)[0]) << 7,
    }
}

fn inflate(compressed: &[u8]) -> Vec<u8> {
    let mut page = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::ZlibDecoder::new(compressed), &mut page).expect("inflates");
    page
}

fn skip_subsection(rest: &mut &[u8]) {
    let name = counted(rest, 1);
    take(rest, 4);
    match name {
        b"configuration/target-page-bits" => _ = take(rest, 4),
        b"configuration/uuid" => _ = take(rest, 16),
        _ => (0..number(rest, 4)).for_each(|_| _ = counted(rest, 1)),
    }
}
