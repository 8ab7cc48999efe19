//! The headers of a compressed dump, and where everything is.
//!
//! ```text
//! "KDUMP   "  version 6  6 × 65 bytes utsname  time  status  block_size  sub_hdr_size
//! bitmap_blocks  max_mapnr  total_ram, device, written blocks  current_cpu  nr_cpus
//! ```
//!
//! They are C structures of the guest's own kernel: numbers in its byte order,
//! longs of its length.

use crate::arch::Architecture;
use crate::error::{Error, ErrorKind, Result};
use crate::physical::{Core, Layout, Uname};

/// Version 6 has addresses of more than 2³² blocks.
const VERSION: u64 = 6;
/// What was left out, as far as makedumpfile has bits for it: zeros.
const DUMP_LEVEL: u64 = 1;

/// How numbers are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Numbers {
    is_big_endian: bool,
    is_64: bool,
}

/// Bytes in the making.
pub(super) struct Bytes {
    bytes: Vec<u8>,
    numbers: Numbers,
}

impl Numbers {
    pub(super) fn of(core: &Core) -> Self {
        let is_32 = matches!(core.architecture, Some(Architecture::I386 | Architecture::Arm));
        Self { is_big_endian: core.is_big_endian, is_64: !is_32 }
    }

    pub(super) fn bytes(self) -> Bytes {
        Bytes { bytes: Vec::new(), numbers: self }
    }

    /// Bytes of the sub header.
    fn sub_header_len(self) -> u64 {
        if self.is_64 { 104 } else { 80 }
    }
}

impl Bytes {
    pub(super) fn word_64(&mut self, word: u64) {
        self.bytes.extend(match self.numbers.is_big_endian {
            true => word.to_be_bytes(),
            false => word.to_le_bytes(),
        });
    }

    /// The low 32 bits.
    pub(super) fn word_32(&mut self, word: u64) {
        let bytes = word.to_le_bytes();
        let low = bytes.iter().take(4);
        match self.numbers.is_big_endian {
            true => self.bytes.extend(low.rev()),
            false => self.bytes.extend(low),
        }
    }

    /// A long of the guest.
    fn long(&mut self, word: u64) {
        if self.numbers.is_64 { self.word_64(word) } else { self.word_32(word) }
    }

    fn text(&mut self, text: &str, len: usize) {
        let end = self.bytes.len() + len;
        self.bytes.extend(text.bytes().take(len - 1));
        self.bytes.resize(end, 0);
    }

    pub(super) fn into_vec(self) -> Vec<u8> {
        self.bytes
    }
}

/// Where everything is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Sizes {
    pub(super) block_len: u64,
    sub_header_blocks: u64,
    /// Blocks of both bitmaps.
    bitmap_blocks: u64,
    /// Blocks of memory up to the last.
    end: u64,
    /// Descriptors.
    count: u64,
}

impl Sizes {
    /// Of a dump with `notes_len` bytes of notes, of RAM up to the block `end`, of
    /// which `count` are here.
    pub(super) fn new(
        block_len: u64,
        numbers: Numbers,
        notes_len: u64,
        end: u64,
        count: u64,
    ) -> Result<Self> {
        let bitmap_blocks = 2 * end.div_ceil(8).div_ceil(block_len);
        if u32::try_from(bitmap_blocks).is_err() {
            let what = "blocks of bitmaps, for the header of a compressed dump";
            let kind = ErrorKind::Limit { what, met: bitmap_blocks, bound: u32::MAX.into() };
            return Err(Error::new(kind));
        }
        let sub_header_blocks = (numbers.sub_header_len() + notes_len).div_ceil(block_len);
        Ok(Self { block_len, sub_header_blocks, bitmap_blocks, end, count })
    }

    /// The first bitmap or the second.
    pub(super) fn bitmap_at(&self, nth: u64) -> u64 {
        (1 + self.sub_header_blocks + nth * self.bitmap_blocks / 2) * self.block_len
    }

    pub(super) fn descriptors_at(&self) -> u64 {
        self.bitmap_at(2)
    }

    pub(super) fn data_at(&self) -> u64 {
        self.descriptors_at().saturating_add(self.count.saturating_mul(super::DESCRIPTOR))
    }
}

/// The header, the sub header and the notes.
pub(super) fn bytes(
    core: &Core,
    layout: &Layout,
    numbers: Numbers,
    sizes: &Sizes,
    status: u32,
    notes: &[u8],
) -> Vec<u8> {
    let mut bytes = numbers.bytes();
    put_header(&mut bytes, core, sizes, status);
    let end = usize::try_from(sizes.block_len).unwrap_or(0);
    bytes.bytes.resize(end, 0);
    put_sub_header(&mut bytes, core, layout, sizes, notes);
    bytes.bytes.extend_from_slice(notes);
    bytes.into_vec()
}

fn put_header(bytes: &mut Bytes, core: &Core, sizes: &Sizes, status: u32) {
    bytes.bytes.extend(b"KDUMP   ");
    bytes.word_32(VERSION);
    utsname(core).iter().for_each(|text| bytes.text(text, 65));
    // To a multiple of the long, and seconds and microseconds of a time: none.
    let time = if bytes.numbers.is_64 { 6 + 16 } else { 2 + 8 };
    bytes.bytes.resize(bytes.bytes.len() + time, 0);
    bytes.word_32(status.into());
    bytes.word_32(sizes.block_len);
    bytes.word_32(sizes.sub_header_blocks);
    bytes.word_32(sizes.bitmap_blocks);
    bytes.word_32(sizes.end.min(u32::MAX.into()));
    (0..4).for_each(|_| bytes.word_32(0));
    let status_notes = core.notes.iter().filter(|note| note.name == "CORE" && note.kind == 1);
    bytes.word_32(status_notes.count() as u64);
}

fn put_sub_header(bytes: &mut Bytes, core: &Core, layout: &Layout, sizes: &Sizes, notes: &[u8]) {
    let notes_at = sizes.block_len + bytes.numbers.sub_header_len();
    bytes.long(phys_base(core, layout));
    bytes.word_32(DUMP_LEVEL);
    bytes.word_32(0);
    (0..2).for_each(|_| bytes.long(0));
    let info = vmcoreinfo(core).filter(|info| !info.is_empty());
    // It is in the notes, as it is.
    let place = info.and_then(|info| memchr::memmem::find(notes, info));
    bytes.word_64(place.map_or(0, |place| notes_at + place as u64));
    bytes.long(place.and(info).map_or(0, |info| info.len() as u64));
    bytes.word_64(notes_at);
    bytes.long(notes.len() as u64);
    bytes.word_64(0);
    bytes.long(0);
    (0..2).for_each(|_| bytes.word_64(0));
    bytes.word_64(sizes.end);
}

/// sysname, nodename, release, version, machine, domainname. libkdumpfile goes
/// by the machine, if the system is Linux and its release and version are there.
fn utsname(core: &Core) -> [&str; 6] {
    let machine = core.architecture.map_or("", |architecture| machine(architecture, core.is_big_endian));
    match &core.uname {
        Some(Uname { sysname, nodename, release, version, machine: told }) => {
            let machine = if machine.is_empty() { told } else { machine };
            [sysname, nodename, release, version, machine, ""]
        }
        None => {
            let release = vmcoreinfo(core).and_then(|info| line(info, "OSRELEASE="));
            let system = if release.is_some() { "Linux" } else { "" };
            [system, "", release.unwrap_or_default(), "", machine, ""]
        }
    }
}

/// What `uname` calls the machine.
fn machine(architecture: Architecture, is_big_endian: bool) -> &'static str {
    match architecture {
        Architecture::I386 => "i686",
        Architecture::Ppc64 if !is_big_endian => "ppc64le",
        architecture => architecture.name(),
    }
}

fn vmcoreinfo(core: &Core) -> Option<&[u8]> {
    core.notes.iter().find(|note| note.name == "VMCOREINFO").map(|note| note.desc.as_slice())
}

/// What follows `key` in the line that begins with it.
fn line<'i>(info: &'i [u8], key: &str) -> Option<&'i str> {
    let lines = info.split(|byte| *byte == b'\n');
    let value = lines.filter_map(|line| line.strip_prefix(key.as_bytes())).next()?;
    std::str::from_utf8(value).ok()
}

/// The length of a block: the page of the guest's kernel.
pub(super) fn block_len(core: &Core) -> u64 {
    /// Pages of kernels.
    const PAGES: std::ops::RangeInclusive<u64> = 4096..=65536;
    let told = vmcoreinfo(core).and_then(|info| line(info, "PAGESIZE=")?.parse().ok());
    let told = told.filter(|len: &u64| len.is_power_of_two() && PAGES.contains(len));
    told.unwrap_or(match core.architecture {
        Some(Architecture::Loongarch64) => 16 << 10,
        // QEMU's dumps of pseries have the largest that there is; of Arm too, but
        // few kernels do.
        Some(Architecture::Ppc64) => 64 << 10,
        _ => 4 << 10,
    })
}

/// Where the kernel is, or on Arm RAM: readers that have no VMCOREINFO ask.
fn phys_base(core: &Core, layout: &Layout) -> u64 {
    let info = vmcoreinfo(core);
    let told = |key: &str| info.and_then(|info| line(info, key));
    match core.architecture {
        Some(Architecture::X86_64) => told("NUMBER(phys_base)=")
            .and_then(|number| number.parse::<i64>().ok())
            .map_or(0, i64::cast_unsigned),
        Some(Architecture::Aarch64 | Architecture::Arm) => {
            let first = layout.regions().first().map_or(0, |region| region.range.start.0);
            let told = told("NUMBER(PHYS_OFFSET)=").and_then(|number| number.strip_prefix("0x"));
            told.and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or(first)
        }
        _ => 0,
    }
}
