//! What is made of a stream for debuggers: registers, the layout of memory, the
//! guest's kernel.

mod linux;
mod tables;
mod windows;

use arbitrary::Unstructured;
use ramlift::guest::{Depth, Evidence, Linux, VmcoreInfo, Windows, kernel_ranges};
use ramlift::physical::{Core, Layout, LayoutHints, PhysicalMemory, VirtualRange, elf};
use ramlift::{ErrorKind, PhysicalAddress, Stream, cpu};

use super::cpu::look_at_vcpus;
use super::layout::check_layout;
use super::look::{check_error, check_message, check_text};

/// Choices: a guest with a kernel of Linux or of Windows in its memory.
pub fn run(bytes: &[u8]) {
    let mut u = Unstructured::new(bytes);
    // What is left of a plan when the choices end is run as well.
    let _ = match u.ratio(2, 3) {
        Ok(true) => linux::run(&mut u),
        _ => windows::run(&mut u),
    };
}

/// Looks at all of it.
pub fn look_at_guest(stream: &Stream<'_>) {
    look_at_vcpus(stream);
    let Some(ram) = stream.ram() else { return };
    let Ok(layout) = Layout::derive(stream, &LayoutHints::default()) else { return };
    check_layout(ram, &layout);
    let memory = PhysicalMemory::new(ram, &layout);
    let mut page = [0; 5000];
    for region in layout.regions() {
        for at in [region.range.start.0, region.range.end.0 - 1] {
            drop(memory.read(PhysicalAddress(at), &mut page));
        }
    }
    look_at_kernels(stream, memory, &[Depth::Everything]);
}

/// All that there are.
const DEPTHS: [Depth; 3] = [Depth::PlainStarts, Depth::Starts, Depth::Everything];

/// What was found of a guest's kernel.
struct Found {
    /// At each depth.
    linux: Vec<Option<Linux>>,
    ranges: Vec<VirtualRange>,
    windows: Option<Windows>,
}

/// Looks for kernels; checks what is found by what memory has there.
fn look_at_kernels(stream: &Stream<'_>, memory: PhysicalMemory<'_, '_>, depths: &[Depth]) -> Found {
    let mut found = Found { linux: Vec::new(), ranges: Vec::new(), windows: None };
    for depth in depths {
        let linux = Linux::find(stream, memory, *depth).unwrap_or_else(|error| {
            check_message(&error);
            None
        });
        linux.iter().for_each(|linux| check_linux(memory, linux));
        found.linux.push(linux);
    }
    if let Some(Some(linux)) = found.linux.last() {
        match kernel_ranges(&memory, linux) {
            Ok(ranges) => found.ranges = ranges,
            Err(error) => check_message(&error),
        }
        check_ranges(memory, &found.ranges);
    }
    found.windows = Windows::find(stream, memory).unwrap_or_else(|error| {
        check_message(&error);
        None
    });
    found.windows.iter().for_each(|windows| check_windows(stream, memory, windows));
    found
}

fn read<const N: usize>(memory: PhysicalMemory<'_, '_>, at: u64) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    (memory.read(PhysicalAddress(at), &mut bytes).ok()? == N).then_some(bytes)
}

/// Checks that it is text, that it stands where it is said to, and that whatever is
/// taken for the kernel's is confirmed by one in memory.
fn check_linux(memory: PhysicalMemory<'_, '_>, linux: &Linux) {
    let info = &linux.vmcoreinfo;
    assert_eq!(VmcoreInfo::parse(info.text().as_bytes()).as_ref(), Some(info));
    let mut there = vec![0; info.text().len()];
    assert_eq!(memory.read(linux.at, &mut there).expect("it was read"), there.len());
    assert_eq!(there, info.text().as_bytes());
    let parts = linux.uts.iter().flat_map(|uts| [&uts.nodename, &uts.release, &uts.version, &uts.machine]);
    parts.chain(&linux.banner).filter(|text| !text.is_empty()).for_each(|text| check_text(text));
    assert_eq!(linux.evidence == Evidence::Kernel, linux.uts.is_some());
    assert_eq!(linux.uts.is_some(), linux.image_offset().is_some());
    let Some((uts, offset)) = linux.uts.as_ref().zip(linux.image_offset()) else {
        assert!(linux.banner.is_none(), "a banner of no kernel");
        return;
    };
    assert_eq!(uts.release, info.os_release());
    let name = info.symbol("init_uts_ns").expect("it is confirmed by it").wrapping_sub(offset);
    let head: [u8; 8 + 6] = read(memory, name).expect("it was read");
    assert!([0, 4, 8].iter().any(|at| head[*at..].starts_with(b"Linux\0")), "no Linux at {name:#x}");
    if let Some(banner) = &linux.banner {
        assert!(banner.contains(uts.release.as_str()) && banner.ends_with(&uts.version), "{banner}");
    }
}

/// Checks that ranges ascend, and that a core file has no more of them than memory
/// has.
fn check_ranges(memory: PhysicalMemory<'_, '_>, ranges: &[VirtualRange]) {
    assert!(ranges.is_sorted_by_key(|range| range.start));
    ranges.iter().for_each(|range| assert!(range.memory.start < range.memory.end, "{range:x?}"));
    let core = Core { virtual_ranges: ranges.to_vec(), ..Core::default() };
    match elf::plan(memory.layout(), &core) {
        Ok(plan) => {
            let regions = memory.layout().regions();
            let most = memory.layout().bytes() + plan.heads_len() + (4 << 20) * regions.len() as u64;
            assert!(plan.file_len() <= most, "{:#x} bytes", plan.file_len());
        }
        Err(error) => {
            assert!(matches!(error.kind(), ErrorKind::Limit { .. }), "{error}");
            check_message(&error);
        }
    }
}

/// Checks that a kernel is where it is said to be, and has the code that a vCPU
/// enters it by.
fn check_windows(stream: &Stream<'_>, memory: PhysicalMemory<'_, '_>, windows: &Windows) {
    let range = windows.base..windows.base + windows.image_len;
    let vcpus = cpu::vcpus(stream).vcpus;
    assert!(vcpus.iter().any(|vcpu| vcpu.register("lstar").is_some_and(|lstar| range.contains(&lstar))));
    assert!(windows.base.is_multiple_of(4096) && windows.page_tables.0.is_multiple_of(4096));
    assert_eq!(read(memory, windows.at.0), Some(*b"MZ"));
    let five = vcpus.iter().any(|vcpu| vcpu.register("cr4").is_some_and(|cr4| cr4 >> 12 & 1 != 0));
    let walks = [4, 5].map(|levels| tables::walk(memory, windows.page_tables.0, windows.base, levels));
    assert!(walks[0] == Some(windows.at.0) || five && walks[1] == Some(windows.at.0), "{walks:x?}");
    windows.pdb.iter().for_each(|pdb| assert!(pdb.guid.len() == 32 && pdb.name.len() < 256));
    let texts = windows.pdb.iter().map(|pdb| &pdb.name).chain(&windows.build_lab);
    texts.filter(|text| !text.is_empty()).for_each(|text| check_text(text));
    if let Some(kdbg) = windows.kdbg {
        assert!(range.contains(&kdbg.address), "{kdbg:x?}");
    }
}

/// A stream that was made up, with its memory.
fn with_memory(bytes: &[u8], is_whole: bool, look: impl FnOnce(&Stream<'_>, PhysicalMemory<'_, '_>)) {
    let stream = match Stream::parse(bytes) {
        Ok(stream) => stream,
        Err(error) => {
            assert!(!is_whole, "{error}");
            return check_error(&error, bytes);
        }
    };
    let Some(ram) = stream.ram() else { return };
    let layout = Layout::derive(&stream, &LayoutHints::default()).expect("there are no hints");
    check_layout(ram, &layout);
    look(&stream, PhysicalMemory::new(ram, &layout));
}
