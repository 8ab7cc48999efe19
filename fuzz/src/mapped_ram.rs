//! mapped-ram: any bitmaps and pages, headers that fit or do not, cut or not.

use arbitrary::{Arbitrary, Result, Unstructured};
use ramlift::{BlockId, BlockOffset, Page, Progress, Stream};

use super::images::Images;
use super::look::{check_error, check_every_byte, look_through};
use super::synth::{MEM_SIZE, RAM_ID, Records, Synth, noise, str8};

/// A block: its pages, as the bitmap has them, and room before the first.
#[derive(Debug)]
struct Area {
    bits: Vec<bool>,
    gap: u8,
    is_shared: bool,
}

/// A stream, and what is done to it.
#[derive(Debug)]
struct Mapped {
    page_bits: u32,
    /// How far the stream stood from the begin of its file.
    shift: u16,
    areas: Vec<Area>,
    has_end: bool,
    /// Bytes that are put elsewhere: where, and which.
    changes: Vec<(u16, u8)>,
    cut: Option<u16>,
}

impl<'a> Arbitrary<'a> for Mapped {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let page_bits = *u.choose(&[8, 8, 9, 12])?;
        let mut areas = Vec::new();
        for _ in 0..u.int_in_range(1..=3)? {
            let mut bits = Vec::new();
            for _ in 0..u.int_in_range(1..=if page_bits == 12 { 10 } else { 140 })? {
                bits.push(u.arbitrary()?);
            }
            areas.push(Area { bits, gap: u.arbitrary()?, is_shared: u.ratio(1, 16)? });
        }
        let changes =
            if u.ratio(1, 2)? { u.arbitrary_iter()?.take(8).collect::<Result<_>>()? } else { Vec::new() };
        let (shift, has_end) = (if u.ratio(1, 4)? { u.arbitrary()? } else { 0 }, u.ratio(7, 8)?);
        Ok(Self { page_bits, shift, areas, has_end, changes, cut: u.arbitrary()? })
    }
}

impl Mapped {
    fn page(nth: usize, page: usize, len: usize) -> Vec<u8> {
        noise(1 + (nth << 16 | page) as u64, len)
    }

    fn stream(&self) -> Vec<u8> {
        let page_len = 1_usize << self.page_bits;
        let synth = Synth::machine()
            .capabilities(&["mapped-ram"])
            .target_page_bits(self.page_bits)
            .head(1, RAM_ID, "ram", 0, 4);
        let total: usize = self.areas.iter().map(|area| area.bits.len() * page_len).sum();
        let mut bytes = synth.raw((total as u64 | MEM_SIZE).to_be_bytes()).bytes();
        for (nth, area) in self.areas.iter().enumerate() {
            self.write(&mut bytes, nth, area, page_len);
        }
        let footer = [&[0x7e], RAM_ID.to_be_bytes().as_slice()].concat();
        bytes.extend([Records::new().end(), footer.clone()].concat());
        if self.has_end {
            bytes.extend([&[3], RAM_ID.to_be_bytes().as_slice(), &Records::new().end(), &footer].concat());
        }
        bytes.push(0);
        bytes
    }

    fn write(&self, bytes: &mut Vec<u8>, nth: usize, area: &Area, page_len: usize) {
        bytes.extend(str8(format!("block{nth}")));
        bytes.extend(((area.bits.len() * page_len) as u64).to_be_bytes());
        bytes.extend([1_u32.to_be_bytes().as_slice(), &(page_len as u64).to_be_bytes()].concat());
        if area.is_shared {
            return bytes.extend([0; 16]);
        }
        let bitmap_at = bytes.len() + 16;
        let bitmap_len = area.bits.len().div_ceil(64) * 8;
        let pages_at = bitmap_at + bitmap_len + usize::from(area.gap);
        for at in [bitmap_at, pages_at] {
            bytes.extend((at as u64 + u64::from(self.shift)).to_be_bytes());
        }
        let mut bitmap = vec![0_u8; bitmap_len];
        for (page, _) in area.bits.iter().enumerate().filter(|(_, bit)| self.has_end && **bit) {
            bitmap[page / 8] |= 1 << (page % 8);
        }
        bytes.extend(bitmap);
        bytes.resize(pages_at, 0);
        for (page, bit) in area.bits.iter().enumerate() {
            bytes.extend(if *bit { Self::page(nth, page, page_len) } else { vec![0; page_len] });
        }
    }
}

pub fn run(bytes: &[u8]) {
    let Ok(mapped) = Mapped::arbitrary(&mut Unstructured::new(bytes)) else { return };
    let mut stream = mapped.stream();
    check_whole(&stream, &mapped);
    for (at, byte) in &mapped.changes {
        let at = usize::from(*at) % stream.len();
        stream[at] = *byte;
    }
    if let Some(cut) = mapped.cut {
        stream.truncate(usize::from(cut) % stream.len());
    }
    match Stream::parse(&stream) {
        Ok(parsed) => {
            look_through(&parsed, &stream);
            check_every_byte(&parsed, &stream);
        }
        Err(error) => check_error(&error, &stream),
    }
    if let Ok(salvaged) = Stream::salvage(&stream, &Progress::new()) {
        look_through(&salvaged, &stream);
    }
}

/// Checks that pages are where bits say, if nothing is changed.
fn check_whole(bytes: &[u8], mapped: &Mapped) {
    let stream = Stream::parse(bytes).expect("it is a stream");
    look_through(&stream, bytes);
    let salvaged = Stream::salvage(bytes, &Progress::new()).expect("it can be salvaged");
    // Where no bitmap was written, content is what there is.
    let stream = if mapped.has_end { &stream } else { &salvaged };
    let ram = stream.ram().unwrap();
    let images = Images::scattered(ram, 2).unwrap();
    let page_len = 1_usize << mapped.page_bits;
    for (nth, area) in mapped.areas.iter().enumerate() {
        for (page, bit) in area.bits.iter().enumerate() {
            let offset = (page * page_len) as u64;
            let is_data = *bit && !area.is_shared;
            let expected = if is_data { Mapped::page(nth, page, page_len) } else { vec![0; page_len] };
            assert!(
                images.bytes(nth, offset, page_len) == expected,
                "page {page} of block {nth} of {mapped:?}"
            );
            let page = ram.page(BlockId(nth), BlockOffset(offset)).unwrap();
            assert_eq!(matches!(page, Page::Data(_)), is_data);
        }
    }
}
