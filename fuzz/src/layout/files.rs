//! Files of guest-physical memory, held against what is read of it by address.

use std::fs;
use std::ops::Range;
use std::path::PathBuf;

use arbitrary::{Result, Unstructured};
use ramlift::physical::{
    Avml, Compression, Core, Kdump, Note, PhysicalMemory, Plan, VirtualRange, elf, lime, progress_len, raw,
    scatter_file,
};
use ramlift::{BlockOffset, PhysicalAddress, Progress, Stream, cpu};

use super::super::images::Images;
use super::super::look::check_message;
use super::super::physical;

/// Bytes that are compared at a time.
const STEP: u64 = 4096;

/// The longest file that is read as a whole.
const WHOLE: u64 = 4 << 20;

/// The most windows of memory that are packed, and bytes that are RAM then.
const WINDOWS: u64 = 12;
const PACKED: u64 = 1 << 36;

/// A file that was written, as one of several formats has it.
struct File {
    image: Images,
    plan: Plan,
}

/// Checks a file of each format.
pub fn check(u: &mut Unstructured<'_>, stream: &Stream<'_>, memory: &PhysicalMemory<'_, '_>) -> Result<()> {
    let samples = samples(memory);
    check_lime(memory, &samples);
    check_raw(memory, &samples);
    let core = core(u, stream)?;
    check_elf(memory, &core, &samples);
    if u.ratio(1, 4)? {
        check_packed(u, memory, &core, &samples)?;
    }
    Ok(())
}

/// Addresses that are compared: the ends of regions, and the pages that are there.
fn samples(memory: &PhysicalMemory<'_, '_>) -> Vec<Range<u64>> {
    let mut samples = Vec::new();
    let page_len = memory.ram().page_size().bytes();
    for region in memory.layout().regions().iter().take(2000) {
        let Range { start, end } = region.range;
        let page = |at: u64| at..(at + STEP.min(end.0 - at));
        samples.push(page(start.0));
        let last = (region.bytes() - 1) / STEP * STEP;
        samples.push(page(start.0 + last));
        let (from, to) = (region.offset.0, region.offset.0 + region.bytes());
        let pages = memory.ram().pages(region.block).expect("it is a block");
        for run in pages.runs(BlockOffset(from), BlockOffset(to)) {
            let offsets = (0..run.pages.min(64)).map(|nth| (run.offset.0 + nth * page_len).max(from));
            samples
                .extend(offsets.filter(|offset| *offset < to).map(|offset| page(start.0 + (offset - from))));
        }
    }
    samples
}

/// What memory has at these addresses: zeros where it is not in the stream.
fn read(memory: &PhysicalMemory<'_, '_>, range: &Range<u64>) -> Vec<u8> {
    let page_len = memory.ram().page_size().bytes();
    let mut bytes = vec![0; (range.end - range.start) as usize];
    let mut at = range.start;
    while at < range.end {
        // A region can begin amid a page of its block.
        let (_, offset, left) = memory.layout().find(PhysicalAddress(at)).expect("it is in a region");
        let len = left.min(page_len - offset.0 % page_len).min(range.end - at);
        let piece = &mut bytes[(at - range.start) as usize..][..len as usize];
        let read = memory.read(PhysicalAddress(at), piece).expect("no page is encoded");
        assert!(read == 0 || read == piece.len(), "{read:#x} bytes of {len:#x} at {at:#x}");
        at += len;
    }
    bytes
}

impl File {
    /// Writes the file that `plan` is of.
    fn write(memory: &PhysicalMemory<'_, '_>, plan: Plan) -> Self {
        let (ram, layout) = (memory.ram(), memory.layout());
        assert_eq!(plan.region_offsets().len(), layout.regions().len());
        let image = Images::with_lens(vec![plan.file_len()]);
        let progress = Progress::new();
        scatter_file(ram, layout, &plan, &image, &progress).expect("it is written to memory");
        assert_eq!(progress.done(), progress_len(ram, layout), "what is told of progress");
        Self { image, plan }
    }

    fn bytes(&self, at: u64, len: u64) -> Vec<u8> {
        assert!(
            at.checked_add(len).is_some_and(|end| end <= self.plan.file_len()),
            "{at:#x} is behind the end"
        );
        self.image.bytes(0, at, len as usize)
    }

    /// The whole file, if it is short.
    fn whole(&self) -> Option<Vec<u8>> {
        (self.plan.file_len() <= WHOLE).then(|| self.bytes(0, self.plan.file_len()))
    }

    /// Checks samples of memory, which has `ranges`: address, length, place.
    fn check(&self, memory: &PhysicalMemory<'_, '_>, ranges: &[[u64; 3]], samples: &[Range<u64>]) {
        for sample in samples {
            let within = |range: &&[u64; 3]| range[0] <= sample.start && sample.end - range[0] <= range[1];
            let range = ranges.iter().find(within).unwrap_or_else(|| panic!("{sample:#x?} is nowhere"));
            let at = range[2] + (sample.start - range[0]);
            let expected = read(memory, sample);
            assert!(self.bytes(at, expected.len() as u64) == expected, "{sample:#x?} at {at:#x}");
        }
    }
}

fn check_lime(memory: &PhysicalMemory<'_, '_>, samples: &[Range<u64>]) {
    let layout = memory.layout();
    let file = File::write(memory, lime::plan(layout));
    let len = layout.bytes().saturating_add(32 * layout.regions().len() as u64);
    assert_eq!(file.plan.file_len(), len, "heads and memory, and no more");
    let mut ranges = Vec::new();
    let mut at = 0;
    for region in layout.regions() {
        let head = file.bytes(at, 32);
        let numbers = physical::Numbers(&head, false);
        assert_eq!((numbers.u32(0), numbers.u32(4), numbers.u64(24)), (0x4c69_4d45, 1, 0));
        let (first, last) = (numbers.u64(8), numbers.u64(16));
        assert_eq!((first, last), (region.range.start.0, region.range.end.0 - 1));
        ranges.push([first, last - first + 1, at + 32]);
        at += 32 + (last - first + 1);
    }
    file.check(memory, &ranges, samples);
    if let Some(whole) = file.whole() {
        assert_eq!(physical::lime(&whole).len(), ranges.len());
    }
}

fn check_raw(memory: &PhysicalMemory<'_, '_>, samples: &[Range<u64>]) {
    let layout = memory.layout();
    let file = File::write(memory, raw::plan(layout));
    assert_eq!(file.plan.file_len(), layout.regions().last().map_or(0, |region| region.range.end.0));
    let ranges: Vec<[u64; 3]> = layout
        .regions()
        .iter()
        .map(|region| [region.range.start.0, region.bytes(), region.range.start.0])
        .collect();
    file.check(memory, &ranges, samples);
}

/// What else a core file has: what the vCPUs say, and addresses of a kernel that
/// may have memory anywhere.
fn core(u: &mut Unstructured<'_>, stream: &Stream<'_>) -> Result<Core> {
    let vcpus = cpu::vcpus(stream).vcpus;
    let kind = cpu::core_kind(&vcpus);
    let mut core = Core {
        architecture: kind.map(|kind| kind.architecture),
        is_big_endian: kind.is_some_and(|kind| kind.is_big_endian),
        notes: cpu::notes(&vcpus),
        ..Core::default()
    };
    for _ in 0..u.int_in_range(0..=6)?.max(3) - 3 {
        let start = if u.ratio(3, 4)? { u.int_in_range(0..=0x2000)? << 20 } else { u.arbitrary::<u64>()? };
        let len = u.int_in_range(0..=64)? << 20;
        let memory = PhysicalAddress(start)..PhysicalAddress(start.saturating_add(len));
        core.virtual_ranges.push(VirtualRange { start: u.arbitrary::<u64>()? | 1 << 63, memory });
    }
    Ok(core)
}

fn check_elf(memory: &PhysicalMemory<'_, '_>, core: &Core, samples: &[Range<u64>]) {
    let layout = memory.layout();
    let plan = match elf::plan(layout, core) {
        Ok(plan) => plan,
        Err(error) => panic!("{} regions: {error}", layout.regions().len()),
    };
    // Each region may begin at a multiple of 2 MiB, and one that is as far behind one
    // as its address.
    let slack = (4 << 20) * layout.regions().len() as u64;
    let most = layout.bytes().saturating_add(plan.heads_len()).saturating_add(slack);
    assert!(plan.file_len() <= most, "{:#x} bytes, of {:#x}", plan.file_len(), layout.bytes());
    let file = File::write(memory, plan);
    let head = file.bytes(0, file.plan.heads_len());
    let segments = physical::segments(&head);
    let loads: Vec<[u64; 3]> = segments
        .iter()
        .filter(|segment| segment[0] == 1)
        .map(|[_, offset, address, len]| [*address, *len, *offset])
        .collect();
    for [address, len, offset] in &loads {
        let is_within = offset.checked_add(*len).is_some_and(|end| end <= file.plan.file_len());
        assert!(is_within && *len > 0, "{len:#x} bytes of {address:#x} at {offset:#x}");
    }
    file.check(memory, &loads, samples);
    let aliases = &core.virtual_ranges;
    if aliases.is_empty() {
        assert_eq!(loads.iter().map(|[_, len, _]| len).sum::<u64>(), layout.bytes());
        assert!(loads.is_sorted_by(|before, next| before[0] + before[1] <= next[0]), "{loads:x?}");
    }
    assert!(loads.len() <= layout.regions().len() * (1 + aliases.len()));
    assert_eq!(physical::notes(&head).len(), core.notes.iter().map(note_len).sum::<usize>());
    if let Some(whole) = file.whole() {
        physical::elf(&whole);
    }
}

fn note_len(note: &Note) -> usize {
    12 + (note.name.len() + 1).next_multiple_of(4) + note.desc.len().next_multiple_of(4)
}

/// A path that is this process's own.
fn path() -> PathBuf {
    std::env::temp_dir().join(format!("ramlift-fuzz-{}", std::process::id()))
}

fn check_packed(
    u: &mut Unstructured<'_>,
    memory: &PhysicalMemory<'_, '_>,
    core: &Core,
    samples: &[Range<u64>],
) -> Result<()> {
    let (ram, layout) = (memory.ram(), memory.layout());
    if layout.bytes() > PACKED || layout.regions().last().is_some_and(|region| region.range.end.0 > PACKED) {
        // Bitmaps for all of it would take more than a test has.
        drop(Kdump::new(ram, layout, core, Compression::Zstd).map_err(|error| check_message(&error)));
        return Ok(());
    }
    let avml = Avml::new(ram, layout);
    if avml.progress_len() > WINDOWS << 21 {
        return Ok(());
    }
    let (file, progress) = (path(), Progress::new());
    drop(fs::remove_file(&file));
    let written = if u.arbitrary()? {
        avml.write(&file, &progress).expect("it is written");
        assert_eq!(progress.done(), avml.progress_len());
        physical::avml(&fs::read(&file).expect("it is there"))
    } else {
        let compression = if u.arbitrary()? { Compression::Zlib } else { Compression::Zstd };
        let kdump = Kdump::new(ram, layout, core, compression).expect("it has so many blocks");
        kdump.write(&file, &progress).expect("it is written");
        assert_eq!(progress.done(), kdump.progress_len());
        let is_64 =
            !matches!(core.architecture, Some(ramlift::Architecture::I386 | ramlift::Architecture::Arm));
        let len = fs::metadata(&file).expect("it is there").len();
        assert!(len >= kdump.fixed_len() && len <= kdump.fixed_len() + (WINDOWS << 21) + (1 << 20), "{len}");
        if len > WHOLE {
            drop(fs::remove_file(&file));
            return Ok(());
        }
        physical::kdump(&fs::read(&file).expect("it is there"), core.is_big_endian, is_64).memory
    };
    drop(fs::remove_file(&file));
    for sample in samples {
        // A sample may be in two blocks of the file; what is in none is zero.
        let mut found = vec![0; (sample.end - sample.start) as usize];
        for (start, bytes) in written.range(sample.start.saturating_sub(2 << 20)..sample.end) {
            let (from, to) = (sample.start.max(*start), sample.end.min(start + bytes.len() as u64));
            if from < to {
                let part = &bytes[(from - start) as usize..(to - start) as usize];
                found[(from - sample.start) as usize..(to - sample.start) as usize].copy_from_slice(part);
            }
        }
        assert!(found == read(memory, sample), "{sample:#x?}");
    }
    // And nothing else is there.
    for (at, bytes) in &written {
        for (nth, page) in
            (0..).zip(bytes.chunks(STEP as usize)).filter(|(_, page)| page.iter().any(|b| *b != 0))
        {
            let start = at + nth * STEP;
            let met =
                samples.iter().any(|sample| sample.start < start + page.len() as u64 && start < sample.end);
            assert!(met, "{start:#x} is of no page that the stream has");
        }
    }
    Ok(())
}
