//! Files of guest-physical memory, read by what their formats are and by nothing
//! of ours.

use std::collections::BTreeMap;
use std::io::Read;
use std::ops::Range;

/// Bytes of a piece of memory, by its address.
pub type Memory = BTreeMap<u64, Vec<u8>>;

/// What memory is compared by: pages of 4 KiB that are not zero.
pub fn pages(memory: &Memory) -> Memory {
    let mut pages = Memory::new();
    for (at, bytes) in memory {
        for (nth, page) in bytes.chunks(4096).enumerate() {
            if page.iter().any(|byte| *byte != 0) {
                pages.insert(at + nth as u64 * 4096, page.to_vec());
            }
        }
    }
    pages
}

/// A reader of numbers of either byte order.
#[derive(Clone, Copy)]
pub struct Numbers<'b>(pub &'b [u8], pub bool);

impl<'b> Numbers<'b> {
    fn number(&self, at: usize, len: usize) -> u64 {
        let bytes = self.0[at..at + len].iter();
        let push = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
        if self.1 { bytes.fold(0, push) } else { bytes.rev().fold(0, push) }
    }

    pub fn u16(&self, at: usize) -> u64 {
        self.number(at, 2)
    }

    pub fn u32(&self, at: usize) -> u64 {
        self.number(at, 4)
    }

    pub fn u64(&self, at: usize) -> u64 {
        self.number(at, 8)
    }

    pub fn bytes(&self, at: u64, len: u64) -> &'b [u8] {
        &self.0[usize::try_from(at).unwrap()..usize::try_from(at + len).unwrap()]
    }
}

/// The segments of an ELF core of 64 bits: type, offset, address, length.
pub fn segments(file: &[u8]) -> Vec<[u64; 4]> {
    assert_eq!(&file[..5], b"\x7fELF\x02");
    let numbers = Numbers(file, file[5] == 2);
    let (at, count) = (usize::try_from(numbers.u64(32)).unwrap(), usize::try_from(numbers.u16(56)).unwrap());
    let header = |at: usize| {
        let [kind, offset, address] = [numbers.u32(at), numbers.u64(at + 8), numbers.u64(at + 24)];
        assert_eq!(numbers.u64(at + 32), numbers.u64(at + 40), "as long in the file as in memory");
        [kind, offset, address, numbers.u64(at + 32)]
    };
    (0..count).map(|nth| header(at + nth * 56)).collect()
}

pub fn elf(file: &[u8]) -> Memory {
    let loads = segments(file).into_iter().filter(|[kind, ..]| *kind == 1);
    loads
        .map(|[_, offset, address, len]| (address, Numbers(file, false).bytes(offset, len).to_vec()))
        .collect()
}

/// The notes of an ELF core, as they stand there.
pub fn notes(file: &[u8]) -> &[u8] {
    let [_, offset, _, len] = segments(file).into_iter().find(|[kind, ..]| *kind == 4).unwrap();
    Numbers(file, false).bytes(offset, len)
}

pub fn lime(file: &[u8]) -> Memory {
    let numbers = Numbers(file, false);
    let mut memory = Memory::new();
    let mut at = 0;
    while at < file.len() {
        assert_eq!((numbers.u32(at), numbers.u32(at + 4), numbers.u64(at + 24)), (0x4c69_4d45, 1, 0));
        let (first, last) = (numbers.u64(at + 8), numbers.u64(at + 16));
        let len = last + 1 - first;
        memory.insert(first, numbers.bytes(at as u64 + 32, len).to_vec());
        at += 32 + usize::try_from(len).unwrap();
    }
    memory
}

pub fn avml(file: &[u8]) -> Memory {
    let numbers = Numbers(file, false);
    let mut memory = Memory::new();
    let mut at = 0;
    while at < file.len() {
        assert_eq!((numbers.u32(at), numbers.u32(at + 4), numbers.u64(at + 24)), (0x4c4d_5641, 2, 0));
        let (first, last) = (numbers.u64(at + 8), numbers.u64(at + 16));
        let mut rest = &file[at + 32..];
        let mut bytes = vec![0; usize::try_from(last + 1 - first).unwrap()];
        snap::read::FrameDecoder::new(&mut rest).read_exact(&mut bytes).unwrap();
        let end = file.len() - rest.len();
        assert_eq!(numbers.u64(end), (end - at - 32) as u64, "the length of the frames");
        assert!(memory.keys().all(|known| *known < first), "ascending");
        memory.insert(first, bytes);
        at = end + 8;
    }
    memory
}

/// A compressed dump: what it has in its header, and memory.
pub struct Dump {
    pub memory: Memory,
    /// sysname, nodename, release, version, machine, domainname.
    pub utsname: [String; 6],
    pub block_len: u64,
    /// Blocks by the bits of the first bitmap.
    pub known: Vec<u64>,
    pub notes: Vec<u8>,
    pub vcpus: u64,
}

/// Reads one, of 64 bits or of 32.
pub fn kdump(file: &[u8], is_big_endian: bool, is_64: bool) -> Dump {
    let numbers = Numbers(file, is_big_endian);
    assert_eq!((&file[..8], numbers.u32(8)), (&b"KDUMP   "[..], 6));
    let utsname = [0, 1, 2, 3, 4, 5].map(|nth| {
        let text = file[12 + nth * 65..][..65].iter().take_while(|byte| **byte != 0);
        text.map(|byte| char::from(*byte)).collect()
    });
    let status = if is_64 { 424 } else { 412 };
    let [flags, block_len, sub_blocks, bitmap_blocks] = [0, 4, 8, 12].map(|at| numbers.u32(status + at));
    let sub = usize::try_from(block_len).unwrap();
    let (notes, end) = match is_64 {
        true => (numbers.u64(sub + 48)..numbers.u64(sub + 56), numbers.u64(sub + 96)),
        false => (numbers.u64(sub + 32)..numbers.u32(sub + 40), numbers.u64(sub + 72)),
    };
    let bitmap = |nth: u64| {
        let at = (1 + sub_blocks + nth * bitmap_blocks / 2) * block_len;
        let is_set = move |block: &u64| numbers.bytes(at + block / 8, 1)[0] >> (block % 8) & 1 != 0;
        (0..end).filter(is_set).collect::<Vec<u64>>()
    };
    let mut descriptor = usize::try_from((1 + sub_blocks + bitmap_blocks) * block_len).unwrap();
    let mut memory = Memory::new();
    for block in bitmap(1) {
        let data = numbers.bytes(numbers.u64(descriptor), numbers.u32(descriptor + 8));
        let bytes = match numbers.u32(descriptor + 12) {
            0 => data.to_vec(),
            1 => {
                let mut bytes = Vec::new();
                flate2::read::ZlibDecoder::new(data).read_to_end(&mut bytes).unwrap();
                bytes
            }
            0x20 => zstd::decode_all(data).unwrap(),
            other => panic!("flags {other:#x}"),
        };
        let packed = numbers.u32(descriptor + 12);
        assert!(packed == 0 || packed == flags, "compressed as the header says");
        assert_eq!(bytes.len() as u64, block_len);
        memory.insert(block * block_len, bytes);
        descriptor += 24;
    }
    Dump {
        memory,
        utsname,
        block_len,
        known: bitmap(0),
        notes: numbers.bytes(notes.start, notes.end).to_vec(),
        vcpus: numbers.u32(status + 36),
    }
}

/// The bytes of a range of a raw image as memory.
pub fn raw(file: &[u8], ranges: &[Range<u64>]) -> Memory {
    ranges
        .iter()
        .map(|range| (range.start, Numbers(file, false).bytes(range.start, range.end - range.start).to_vec()))
        .collect()
}
