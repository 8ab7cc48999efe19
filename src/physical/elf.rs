//! ELF core files of guest-physical memory, for crash, drgn, gdb,
//! volatility3 and whoever else opens a `vmcore`.
//!
//! ```text
//! ELF header | program headers | notes | gap | memory | gap | memory
//!              PT_NOTE first, then one PT_LOAD a range: p_paddr = address,
//!              p_vaddr = 0, p_filesz = p_memsz, p_align = 0; p_offset a multiple
//!              of 4 KiB, and of 2 MiB + p_paddr from 2 MiB of memory on
//! ```
//!
//! Zero pages are holes of the file, not missing from it: readers pass over a
//! segment that is longer in memory than in the file. Program headers stand
//! right behind the ELF header, where LeechCore looks for them. Ranges that
//! follow each other in memory and in the file are one segment.
//!
//! Source followed: QEMU `dump/dump.c`, `include/elf.h`.

use std::ops::Range;

use object::Endianness;
use object::elf;
use object::write::elf::{FileHeader, ProgramHeader, Writer};

use crate::arch::Architecture;
use crate::error::{Error, ErrorKind, Result};
use crate::extract::WINDOW_LEN;
use crate::physical::{Layout, Plan};
use crate::units::PhysicalAddress;

/// What segments begin at multiples of, in the file.
const ALIGN: u64 = 4096;

/// `p_align` of memory, as QEMU has it: crash takes a file with another for one
/// of netdump, whose kernel KASLR has not moved.
const LOAD_ALIGN: u64 = 0;

/// The most program headers: from 65535 on their number is elsewhere, where
/// no reader of cores looks.
const SEGMENTS: usize = 0xfffe;

/// A note: something about the guest that is not in its memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Note {
    /// Whose kind it is: `CORE`, `QEMU`, `VMCOREINFO`.
    pub name: &'static str,
    /// Its kind, `n_type`.
    pub kind: u32,
    /// What it says.
    pub desc: Vec<u8>,
}

/// Virtual addresses at which the guest's kernel has memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VirtualRange {
    /// The first virtual address.
    pub start: u64,
    /// What is there.
    pub memory: Range<PhysicalAddress>,
}

/// What a guest's kernel calls itself, as `uname` says it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Uname {
    /// The system: `Linux`.
    pub sysname: String,
    /// The host's name.
    pub nodename: String,
    /// The kernel's release.
    pub release: String,
    /// The kernel's build: `#1 SMP …`.
    pub version: String,
    /// The kind of machine.
    pub machine: String,
}

/// What a core file tells beside memory.
#[derive(Clone, Default, Debug)]
pub struct Core {
    /// The guest's architecture; `EM_NONE`, little-endian, if it is unknown.
    pub architecture: Option<Architecture>,
    /// The byte order of the file, which is that of the guest's kernel.
    pub is_big_endian: bool,
    /// In the order that they stand in.
    pub notes: Vec<Note>,
    /// What the kernel calls itself: the head of a compressed dump has it.
    pub uname: Option<Uname>,
    /// Segments more, by virtual address, of memory that has one by physical
    /// address already: what gdb reads by.
    pub virtual_ranges: Vec<VirtualRange>,
}

/// The ELF core file of `layout`.
///
/// # Errors
/// [`ErrorKind::Limit`] if the memory is in more ranges than an ELF file has
/// segments.
pub fn plan(layout: &Layout, core: &Core) -> Result<Plan> {
    let notes = notes(core);
    let ranges = ranges(layout);
    // A guest's tables can show all of many ranges many times: no more of them are
    // made up than a file has segments.
    let aliases = core.virtual_ranges.iter().flat_map(|alias| alias.in_ram(&ranges));
    let aliases: Vec<VirtualRange> = aliases.take(SEGMENTS).collect();
    let count = 1 + ranges.len() + aliases.len();
    if count > SEGMENTS {
        let what = "ranges of guest-physical memory, for the segments of an ELF file";
        let kind = ErrorKind::Limit { what, met: count as u64, bound: SEGMENTS as u64 };
        return Err(Error::new(kind));
    }
    let notes_at = 64 + 56 * count as u64;
    let mut plan = Plan::starting_at(notes_at.saturating_add(notes.len() as u64));
    for region in layout.regions() {
        // Of regions that are one range only the first may leave a gap.
        let nth = ranges.binary_search_by_key(&region.range.start, |range| range.start).ok();
        let range = nth.and_then(|nth| ranges.get(nth));
        let (align, phase) = range.map_or((ALIGN, 0), placing);
        plan.push_region(region.bytes(), align, phase);
    }
    // Looked up: there can be 65,534 segments, and more regions.
    let offset_of = |at: PhysicalAddress| {
        let behind = layout.regions().partition_point(|region| region.range.start <= at);
        let nth = behind.checked_sub(1)?;
        let (region, offset) = layout.regions().get(nth).zip(plan.region_offsets().get(nth))?;
        offset.checked_add(at.0 - region.range.start.0)
    };
    let offset_of = |at| offset_of(at).unwrap_or(0);
    let note =
        segment(elf::PT_NOTE, notes_at, 0, PhysicalAddress(0)..PhysicalAddress(0), notes.len() as u64, 4);
    let loads = ranges.iter().map(|range| {
        segment(
            elf::PT_LOAD,
            offset_of(range.start),
            0,
            range.clone(),
            range.end.0 - range.start.0,
            LOAD_ALIGN,
        )
    });
    let aliases = aliases.iter().map(|alias| {
        let memory = &alias.memory;
        let len = memory.end.0 - memory.start.0;
        segment(elf::PT_LOAD, offset_of(memory.start), alias.start, memory.clone(), len, LOAD_ALIGN)
    });
    let segments: Vec<ProgramHeader> = std::iter::once(note).chain(loads).chain(aliases).collect();
    plan.put_head(0, [headers(core, &segments)?, notes].concat());
    Ok(plan)
}

impl VirtualRange {
    /// The parts of it that are RAM, which is at `ranges`, by ascending address.
    fn in_ram(&self, ranges: &[Range<PhysicalAddress>]) -> impl Iterator<Item = Self> {
        let first = ranges.partition_point(|range| range.end <= self.memory.start);
        let within = ranges.get(first..).unwrap_or_default().iter();
        within.take_while(|range| range.start < self.memory.end).filter_map(|range| {
            let start = range.start.max(self.memory.start);
            let memory = start..range.end.min(self.memory.end);
            let skipped = start.0 - self.memory.start.0;
            let is_there = memory.start < memory.end;
            is_there.then(|| Self { start: self.start.wrapping_add(skipped), memory })
        })
    }
}

/// The ranges of memory: those of regions that follow each other are one.
/// A segment's length in the file is that in memory, so all but the last
/// region of a range has to be a multiple of what regions begin at.
fn ranges(layout: &Layout) -> Vec<Range<PhysicalAddress>> {
    let mut ranges: Vec<Range<PhysicalAddress>> = Vec::new();
    for region in layout.regions() {
        match ranges.last_mut() {
            Some(last) if last.end == region.range.start && is_aligned(last) => last.end = region.range.end,
            _ => ranges.push(region.range.clone()),
        }
    }
    ranges
}

/// Where in the file a range may begin: at a multiple of the first, and the
/// second behind it. A long one is as far behind a multiple of a window as its
/// address is, so that windows of the scatter begin at 2 MiB of the file: the page
/// cache takes them in larger pieces, and sooner.
fn placing(range: &Range<PhysicalAddress>) -> (u64, u64) {
    let start = range.start.0;
    let is_long = range.end.0 - start >= WINDOW_LEN;
    if is_long && start.is_multiple_of(ALIGN) { (WINDOW_LEN, start % WINDOW_LEN) } else { (ALIGN, 0) }
}

fn is_aligned(range: &Range<PhysicalAddress>) -> bool {
    (range.end.0 - range.start.0).is_multiple_of(ALIGN)
}

fn segment(
    p_type: elf::ProgramType,
    p_offset: u64,
    p_vaddr: u64,
    memory: Range<PhysicalAddress>,
    len: u64,
    p_align: u64,
) -> ProgramHeader {
    let p_flags = elf::ProgramFlags(0);
    ProgramHeader {
        p_type,
        p_flags,
        p_offset,
        p_vaddr,
        p_paddr: memory.start.0,
        p_filesz: len,
        p_memsz: len,
        p_align,
    }
}

/// The ELF header and the program headers.
fn headers(core: &Core, segments: &[ProgramHeader]) -> Result<Vec<u8>> {
    let endianness = if core.is_big_endian { Endianness::Big } else { Endianness::Little };
    let machine = core.architecture.map(|architecture| elf::Machine(architecture.e_machine()));
    let mut bytes = Vec::new();
    let mut writer = Writer::new(endianness, true, &mut bytes);
    writer.reserve_file_header();
    writer.reserve_program_headers(u32::try_from(segments.len()).unwrap_or(u32::MAX));
    let header = FileHeader {
        e_type: elf::ET_CORE,
        e_machine: machine.unwrap_or(elf::EM_NONE),
        ..FileHeader::default()
    };
    let refused = |error: object::write::Error| {
        Error::new(ErrorKind::Unsupported { feature: format!("an ELF file of this memory: {error}") })
    };
    writer.write_file_header(&header).map_err(refused)?;
    writer.write_align_program_headers();
    segments.iter().for_each(|segment| writer.write_program_header(segment));
    Ok(bytes)
}

/// The notes one behind the other:
///
/// ```text
/// 32 bits: length of the name, with its NUL; length of what it says; kind
/// name, to a multiple of 4; what it says, to a multiple of 4
/// ```
pub(super) fn notes(core: &Core) -> Vec<u8> {
    let word = |value: usize| match (u32::try_from(value).unwrap_or(u32::MAX), core.is_big_endian) {
        (value, true) => value.to_be_bytes(),
        (value, false) => value.to_le_bytes(),
    };
    let mut bytes = Vec::new();
    for note in &core.notes {
        bytes.extend(word(note.name.len() + 1));
        bytes.extend(word(note.desc.len()));
        bytes.extend(word(usize::try_from(note.kind).unwrap_or(0)));
        for part in [note.name.as_bytes(), &[0]] {
            bytes.extend_from_slice(part);
        }
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes.extend_from_slice(&note.desc);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}
