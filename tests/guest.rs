//! What runs in the guest: VMCOREINFO found in memory and believed or not, and
//! the virtual addresses that it leads to.

mod support;

use ramlift::guest::{Depth, Evidence, Linux, kernel_ranges};
use ramlift::physical::{Layout, PhysicalMemory, Region, VirtualRange};
use ramlift::{BlockId, BlockOffset, ErrorKind, PhysicalAddress, Stream};
use support::cli::{Workplace, ramlift_fed};
use support::hostile::in_time;
use support::kernel::{
    BANNER, IMAGE, IMAGE_LEN, INFO, KERNEL_OFFSET, LINEAR, LINEAR_ARM, Memory, PAGE, PHYS_BASE, RAM_LEN,
    RELEASE, STEXT, STEXT_ARM, TABLES, image, info, info_arm, info_page, note, with_circles, with_tables,
    with_tables_arm,
};
use support::physical;
use support::synth::{Block, Records, Synth, noise};
use support::vcpu::Vcpu;

/// The layout of a guest whose memory is the first block, in a row from 0 on.
fn in_a_row(len: u64) -> Layout {
    let range = PhysicalAddress(0)..PhysicalAddress(len);
    let region = Region { range, block: BlockId(0), offset: BlockOffset(0), derived: "test".into() };
    Layout::from_regions(vec![region]).unwrap()
}

fn find_in(stream: &[u8], len: u64, depth: Depth) -> Option<Linux> {
    let stream = Stream::parse(stream).unwrap();
    let layout = in_a_row(len);
    Linux::find(&stream, PhysicalMemory::new(stream.ram().unwrap(), &layout), depth).unwrap()
}

fn find(memory: &Memory, depth: Depth) -> Option<Linux> {
    find_in(&memory.stream().finish(), RAM_LEN, depth)
}

#[test]
fn a_kernel_tells_where_it_is() {
    let memory = image().put(INFO, info(RELEASE).as_bytes());
    for depth in [Depth::PlainStarts, Depth::Starts, Depth::Everything] {
        let linux = find(&memory, depth).unwrap();
        assert_eq!((linux.evidence, linux.at.0), (Evidence::Kernel, INFO));
        assert_eq!(linux.vmcoreinfo.text(), info(RELEASE));
        assert_eq!(linux.vmcoreinfo.kernel_offset(), Some(KERNEL_OFFSET));
        assert_eq!(linux.phys_base().map(u64::cast_signed), Some(PHYS_BASE));
        assert_eq!(linux.image_start(), Some(PhysicalAddress(IMAGE)));
        assert_eq!(linux.banner.as_deref(), Some(BANNER));
        let uts = linux.uts.unwrap();
        assert_eq!((uts.nodename.as_str(), uts.release.as_str()), ("synth-host", RELEASE));
        assert_eq!((uts.version.as_str(), uts.machine.as_str()), ("#1 SMP 2026", "x86_64"));
    }
}

#[test]
fn the_note_of_it_is_as_good() {
    let memory = image().put(INFO, &note(&info(RELEASE)));
    let linux = find(&memory, Depth::PlainStarts).unwrap();
    assert_eq!((linux.evidence, linux.at.0), (Evidence::Kernel, INFO + 24));
}

#[test]
fn what_speaks_of_another_kernel_does_not_count() {
    // Those of kernels that ran before, on both sides of the present one's.
    let old = info("5.10.0-old");
    let memory = image()
        .put(0x10_0000, old.as_bytes())
        .put(INFO, info(RELEASE).as_bytes())
        .put(0x1f0_0000, old.as_bytes());
    let linux = find(&memory, Depth::Starts).unwrap();
    assert_eq!((linux.evidence, linux.at.0), (Evidence::Kernel, INFO));
}

#[test]
fn alone_it_counts_for_less_and_the_lowest_first() {
    let old = info("5.10.0-old");
    let memory = Memory::default().put(INFO, old.as_bytes()).put(0x1f0_0000, old.as_bytes());
    let linux = find(&memory, Depth::Starts).unwrap();
    assert_eq!((linux.evidence, linux.at.0), (Evidence::Itself, INFO));
    assert_eq!((&linux.banner, &linux.uts, linux.image_offset()), (&None, &None, None));
}

#[test]
fn older_kernels_have_it_anywhere() {
    let memory = image().put(INFO + 0x320, info(RELEASE).as_bytes());
    assert_eq!(find(&memory, Depth::Starts), None);
    assert_eq!(find(&memory, Depth::Everything).unwrap().at.0, INFO + 0x320);
}

/// A kernel up to 4.9: it has VMCOREINFO in its image, and does not say where
/// that is. A vCPU enters it by page tables at `cr3`.
fn old_kernel(cr3: u64) -> Vec<u8> {
    let text = info(RELEASE).replace("NUMBER(phys_base)", "NUMBER(other)");
    let memory = with_tables().put(IMAGE + 0x10_2320, text.as_bytes());
    let vcpu = Vcpu { lstar: STEXT + 0x40, cr3, ..Vcpu::default() };
    vcpu.put(memory.stream(), 0).finish()
}

#[test]
fn older_kernels_are_found_where_vcpus_enter_them() {
    // Page tables of the kernel, and those that it has for programs.
    for cr3 in [TABLES, TABLES | 0x1001] {
        for depth in [Depth::PlainStarts, Depth::Starts, Depth::Everything] {
            let linux = find_in(&old_kernel(cr3), RAM_LEN, depth).unwrap();
            assert_eq!((linux.evidence, linux.at.0), (Evidence::Kernel, IMAGE + 0x10_2320));
            assert_eq!(linux.phys_base().map(u64::cast_signed), Some(PHYS_BASE));
            assert_eq!(linux.banner.as_deref(), Some(BANNER));
        }
    }
    assert_eq!(find_in(&old_kernel(RAM_LEN), RAM_LEN, Depth::Starts), None);
}

#[test]
fn older_kernels_have_the_note_and_virtual_addresses_too() {
    let place = Workplace::with(&old_kernel(TABLES));
    let args = ["extract", "stream", "--format", "elf", "--vaddr", "--map", "pc.ram@0"];
    place.ramlift(&args).expect_code(0);
    let elf = place.read("stream.elf");
    let [kind, at, _, _, len] = segments(&elf)[0];
    assert_eq!(kind, 4);
    let notes = &elf[at as usize..][..len as usize];
    assert!(notes.windows(10).any(|part| part == b"VMCOREINFO"));
    assert_eq!(segments(&elf)[3][2..], [STEXT, IMAGE, IMAGE_LEN]);
}

#[test]
fn vcpus_that_lead_in_circles_find_nothing() {
    // All of what a kernel can map is the same page, full of what begins as
    // VMCOREINFO does.
    let text = "OSRELEASE=1\nPAGESIZE=4096\nSYMBOL(x)=1\n".repeat(99);
    let memory = with_circles().put(INFO + 1, &text.as_bytes()[..4096 - 512]);
    let large = |memory: Memory, nth: u64| memory.word(TABLES + 2 * PAGE + 8 * nth, INFO | 3);
    let memory = (0..512).fold(memory, large).word(TABLES + 8 * 511, (TABLES + PAGE) | 3);
    let memory = (0..512).fold(memory, |memory, nth| {
        memory
            .word(TABLES + PAGE + 8 * nth, (TABLES + 3 * PAGE) | 3)
            .word(TABLES + 3 * PAGE + 8 * nth, (TABLES + 2 * PAGE) | 3)
    });
    for cr3 in [TABLES, TABLES + 2 * PAGE] {
        let stream = (0..100).fold(memory.stream(), |stream, nth| {
            Vcpu { lstar: STEXT, cr3: cr3 | u64::from(nth), ..Vcpu::default() }.put(stream, nth)
        });
        assert_eq!(in_time(|| find_in(&stream.finish(), RAM_LEN, Depth::PlainStarts)), None);
    }
}

#[test]
fn it_may_reach_into_the_next_page() {
    let memory = image().put(INFO + PAGE - 100, info(RELEASE).as_bytes());
    assert_eq!(find(&memory, Depth::Everything).unwrap().vmcoreinfo.text(), info(RELEASE));
}

#[test]
fn encoded_pages_are_looked_at_if_asked_for() {
    let page = info_page(&info(RELEASE));
    let records = image().records().compressed("pc.ram", INFO, &page);
    let stream = Synth::machine().ram(&[Block::new("pc.ram", RAM_LEN)], records).finish();
    assert_eq!(find_in(&stream, RAM_LEN, Depth::PlainStarts), None);
    assert_eq!(find_in(&stream, RAM_LEN, Depth::Starts).unwrap().evidence, Evidence::Kernel);
}

/// The section of QEMU's vmcoreinfo device, whose guest says that its note is
/// at `paddr`.
fn told(memory: &Memory, format: u16, paddr: u64) -> Vec<u8> {
    let (format, paddr) = (format.to_be_bytes(), paddr.to_be_bytes());
    let body = [&[0, 0], format.as_slice(), &4096_u32.to_be_bytes(), &paddr];
    let fields = r#"{"name": "vmcoreinfo.host_format", "type": "uint16", "size": 2},
        {"name": "vmcoreinfo.guest_format", "type": "uint16", "size": 2},
        {"name": "vmcoreinfo.size", "type": "uint32", "size": 4},
        {"name": "vmcoreinfo.paddr", "type": "uint64", "size": 8}"#;
    memory.stream().device(9, "vmcoreinfo", &body.concat(), fields).finish()
}

#[test]
fn a_guest_that_tells_qemu_is_believed() {
    // No page begins with it: without the device it would not be seen.
    let place = INFO + 0x320;
    let memory = image().put(place, &note(&info(RELEASE)));
    let linux = find_in(&told(&memory, 1, place), RAM_LEN, Depth::PlainStarts).unwrap();
    assert_eq!((linux.evidence, linux.at.0), (Evidence::Kernel, place + 24));
    assert_eq!(find_in(&told(&memory, 0, place), RAM_LEN, Depth::PlainStarts), None);
    for nowhere in [0, RAM_LEN, u64::MAX - 8] {
        assert_eq!(find_in(&told(&memory, 1, nowhere), RAM_LEN, Depth::PlainStarts), None);
    }
}

#[test]
fn a_guest_that_tells_qemu_something_else_is_believed_less_than_its_kernel() {
    let old = note(&info("5.10.0-old"));
    let memory = image().put(INFO + 0x320, &old);
    let linux = find_in(&told(&memory, 1, INFO + 0x320), RAM_LEN, Depth::Starts).unwrap();
    assert_eq!((linux.evidence, linux.at.0), (Evidence::Device, INFO + 0x320 + 24));
    let memory = memory.put(0x1f0_0000, info(RELEASE).as_bytes());
    let linux = find_in(&told(&memory, 1, INFO + 0x320), RAM_LEN, Depth::Starts).unwrap();
    assert_eq!((linux.evidence, linux.at.0), (Evidence::Kernel, 0x1f0_0000));
}

fn ranges(memory: &Memory) -> ramlift::Result<Vec<VirtualRange>> {
    let stream = memory.stream().finish();
    let stream = Stream::parse(&stream).unwrap();
    let layout = in_a_row(RAM_LEN);
    let memory = PhysicalMemory::new(stream.ram().unwrap(), &layout);
    let linux = Linux::find(&stream, memory, Depth::Starts).unwrap().unwrap();
    kernel_ranges(&memory, &linux)
}

fn virtual_range(start: u64, memory: std::ops::Range<u64>) -> VirtualRange {
    VirtualRange { start, memory: PhysicalAddress(memory.start)..PhysicalAddress(memory.end) }
}

#[test]
fn page_tables_lead_to_the_image_and_to_all_memory() {
    let expected = [virtual_range(LINEAR, 0..RAM_LEN), virtual_range(STEXT, IMAGE..IMAGE + IMAGE_LEN)];
    assert_eq!(ranges(&with_tables().put(INFO, info(RELEASE).as_bytes())).unwrap(), expected);
}

#[test]
fn those_of_aarch64_do_too() {
    let expected =
        [virtual_range(LINEAR_ARM, 0..RAM_LEN), virtual_range(STEXT_ARM, IMAGE..IMAGE + IMAGE_LEN)];
    assert_eq!(ranges(&with_tables_arm().put(INFO, info_arm(RELEASE).as_bytes())).unwrap(), expected);
}

#[test]
fn no_tables_lead_nowhere() {
    assert_eq!(ranges(&image().put(INFO, info(RELEASE).as_bytes())).unwrap(), []);
    let unconfirmed = ranges(&Memory::default().put(INFO, info(RELEASE).as_bytes())).unwrap_err();
    assert!(matches!(unconfirmed.kind(), ErrorKind::Unsupported { .. }), "{unconfirmed}");
}

#[test]
fn tables_that_lead_to_each_other_in_circles_end() {
    // Each address is one of a page of the table; at one it is where the image
    // would have it.
    let memory = with_circles().put(INFO, info(RELEASE).as_bytes());
    let expected = virtual_range(STEXT + (TABLES - IMAGE), TABLES..TABLES + PAGE);
    assert_eq!(in_time(|| ranges(&memory)).unwrap(), [expected]);
}

#[test]
fn text_without_an_end_is_nothing() {
    let endless = format!("OSRELEASE={RELEASE}\nPAGESIZE=4096\nSYMBOL(x)=1\n{}", "A=1\n".repeat(1 << 15));
    let memory = image().put(INFO, endless.as_bytes());
    for depth in [Depth::Starts, Depth::Everything] {
        assert_eq!(in_time(|| find(&memory, depth)), None);
    }
    // And one that ends with memory.
    let cut = info(RELEASE);
    let memory = image().put(RAM_LEN - cut.len() as u64, cut.as_bytes());
    assert_eq!(find(&memory, Depth::Everything), None);
}

#[test]
fn many_that_look_like_it_take_little_time() {
    let head = "OSRELEASE=6\nPAGESIZE=65536\nSYMBOL(x)=1\n";
    let page = head.repeat(4096 / head.len() + 1);
    let page = &page.as_bytes()[..4096];
    let records = |records: Records, nth| records.data("pc.ram", nth * PAGE, page);
    let records = (0..RAM_LEN / PAGE).fold(Records::new(), records);
    let stream = Synth::machine().ram(&[Block::new("pc.ram", RAM_LEN)], records).finish();
    for depth in [Depth::PlainStarts, Depth::Starts, Depth::Everything] {
        assert_eq!(in_time(|| find_in(&stream, RAM_LEN, depth)), None);
    }
}

#[test]
fn memory_that_is_not_there_costs_nothing() {
    const TIB: u64 = 1 << 40;
    let text = info(RELEASE);
    let records = image().records().data("pc.ram", TIB - PAGE, &info_page(&text));
    let stream = Synth::machine().ram(&[Block::new("pc.ram", TIB)], records).finish();
    for depth in [Depth::PlainStarts, Depth::Starts, Depth::Everything] {
        assert_eq!(in_time(|| find_in(&stream, TIB, depth)).unwrap().at.0, TIB - PAGE);
    }
}

/// A stream of a guest that has a processor.
fn with_processor(memory: &Memory) -> Vec<u8> {
    let halted = r#"{"name": "halted", "type": "bool", "size": 1}"#;
    memory.stream().device(3, "cpu_common", &[0], halted).finish()
}

#[test]
fn info_says_which_kernel_runs() {
    let place = Workplace::with(&with_processor(&image().put(INFO, info(RELEASE).as_bytes())));
    let output = place.ramlift(&["info", "stream"]).expect_code(0);
    for line in [
        format!("  guest         {BANNER}\n"),
        format!("  KASLR offset  {KERNEL_OFFSET:#x}\n"),
        format!("  phys_base     -{:#x}\n", PHYS_BASE.unsigned_abs()),
    ] {
        assert!(output.text().contains(&line), "{line}{}", output.text());
    }
    let guest = &place.ramlift(&["info", "--json", "stream"]).json()["guest"];
    assert_eq!(guest["looked_at"], "starts");
    let linux = &guest["linux"];
    assert_eq!((&linux["banner"], &linux["release"]), (&BANNER.into(), &RELEASE.into()));
    assert_eq!(linux["kaslr_offset"], KERNEL_OFFSET);
    assert_eq!(linux["phys_base"], PHYS_BASE);
    assert_eq!(linux["image"], IMAGE);
    assert_eq!(linux["vmcoreinfo"]["address"], INFO);
    assert_eq!(linux["vmcoreinfo"]["confirmed_by"], "kernel");
    assert_eq!(linux["vmcoreinfo"]["text"], info(RELEASE));
}

#[test]
fn info_looks_further_if_asked_to() {
    let place = Workplace::with(&with_processor(&image().put(INFO + 0x320, info(RELEASE).as_bytes())));
    let guest = |args: &[&str]| place.ramlift(args).json()["guest"].clone();
    let found = guest(&["info", "--json", "stream"]);
    assert_eq!((&found["looked_at"], &found["linux"]), (&"starts".into(), &serde_json::Value::Null));
    let found = guest(&["info", "--json", "--guest", "stream"]);
    assert_eq!((&found["looked_at"], &found["linux"]["release"]), (&"everything".into(), &RELEASE.into()));
}

#[test]
fn info_looks_at_what_goes_by_if_asked_to() {
    let bytes = image().put(INFO, info(RELEASE).as_bytes()).stream().finish();
    let place = Workplace::with(&bytes);
    let guest =
        |args: &[&str]| ramlift_fed(place.path(), args, &bytes).expect_code(0).json()["guest"].clone();
    let found = guest(&["info", "--json", "-"]);
    assert_eq!((&found["looked_at"], &found["linux"]), (&"nothing".into(), &serde_json::Value::Null));
    assert_eq!(guest(&["info", "--json", "--guest", "-"])["linux"]["release"], RELEASE);
}

#[test]
fn no_kernel_is_seen_where_there_is_none() {
    let memory = Memory::default().put(INFO, &noise(1, 1 << 16));
    let place = Workplace::with(&memory.stream().finish());
    for args in [&["info", "--json", "stream"][..], &["info", "--json", "--guest", "stream"]] {
        assert_eq!(place.ramlift(args).expect_code(0).json()["guest"]["linux"], serde_json::Value::Null);
    }
}

/// The program headers of an ELF file: type, offset, virtual and physical
/// address, length.
fn segments(elf: &[u8]) -> Vec<[u64; 5]> {
    let word = |at: usize| u64::from_le_bytes(elf[at..at + 8].try_into().unwrap());
    let count = usize::from(u16::from_le_bytes(elf[56..58].try_into().unwrap()));
    let heads = (0..count).map(|nth| 64 + 56 * nth);
    heads.map(|at| [word(at) & 0xff, word(at + 8), word(at + 16), word(at + 24), word(at + 32)]).collect()
}

#[test]
fn an_elf_file_has_the_note_and_virtual_addresses() {
    let place = Workplace::with(&with_tables().put(INFO, info(RELEASE).as_bytes()).stream().finish());
    let elf = |args: &[&str]| {
        place
            .ramlift(
                &[&["extract", "stream", "--format", "elf", "--force", "--map", "pc.ram@0"], args].concat(),
            )
            .expect_code(0);
        place.read("stream.elf")
    };
    let plain = elf(&[]);
    let [kind, at, _, _, len] = segments(&plain)[0];
    assert_eq!(kind, 4);
    let notes = &plain[at as usize..][..len as usize];
    let expected = note(&info(RELEASE));
    assert!(notes.windows(expected.len()).any(|part| part == expected));
    assert_eq!(
        segments(&plain).len(),
        2,
        "{:x?} {}",
        segments(&plain),
        place.ramlift(&["layout", "stream"]).text()
    );
    let elf = elf(&["--vaddr"]);
    // `p_align`: another than 0, and crash takes the file for one of netdump.
    let is_zero = |nth: usize| elf[64 + 56 * nth + 48..][..8] == [0; 8];
    assert!((1..4).all(is_zero));
    let segments = segments(&elf);
    let seen: Vec<_> = segments[2..].iter().map(|[_, _, vaddr, paddr, len]| [*vaddr, *paddr, *len]).collect();
    assert_eq!(seen, [[LINEAR, 0, RAM_LEN], [STEXT, IMAGE, IMAGE_LEN]]);
    // Both are the same bytes of the file.
    assert_eq!(segments[2][1], segments[1][1]);
    assert_eq!(segments[3][1], segments[1][1] + IMAGE);
    let banner = segments[3][1] as usize + 0x10_1100;
    assert_eq!(&elf[banner..banner + BANNER.len()], BANNER.as_bytes());
}

#[test]
fn a_compressed_dump_has_the_name_of_the_kernel() {
    let stream = image().put(INFO, info(RELEASE).as_bytes()).stream().finish();
    let place = Workplace::with(&stream);
    let args = ["extract", "stream", "--quiet", "--format", "kdump", "--map", "pc.ram@0", "-o", "kdump"];
    place.ramlift(&args).expect_code(0);
    let [sysname, nodename, release, version, ..] =
        physical::kdump(&place.read("kdump"), false, true).utsname;
    // Without each of these libkdumpfile knows no machine.
    assert_eq!(
        [sysname.as_str(), &nodename, &release, &version],
        ["Linux", "synth-host", RELEASE, "#1 SMP 2026"]
    );
}

#[test]
fn long_ranges_begin_in_the_file_where_windows_do() {
    let place = Workplace::with(&image().stream().finish());
    for (map, offset) in [("pc.ram@0", 2 << 20), ("pc.ram@0x140100000", 1 << 20), ("pc.ram@0+0:64K", 0x1000)]
    {
        let args = ["extract", "stream", "--quiet", "--force", "--format", "elf", "--map", map, "-o", "elf"];
        place.ramlift(&args);
        let [kind, at, ..] = segments(&place.read("elf"))[1];
        assert_eq!((kind, at), (1, offset), "{map}");
    }
}

#[test]
fn virtual_addresses_need_a_kernel() {
    let place = Workplace::with(&Memory::default().put(INFO, &noise(1, 4096)).stream().finish());
    let refused = place.ramlift(&["extract", "stream", "--format", "elf", "--vaddr"]).expect_code(1);
    assert!(refused.stderr.contains("VMCOREINFO"), "{}", refused.stderr);
    for form in ["lime", "blocks"] {
        let refused = place.ramlift(&["extract", "stream", "--format", form, "--vaddr"]).expect_code(1);
        assert!(refused.stderr.contains("--format elf"), "{}", refused.stderr);
    }
}
