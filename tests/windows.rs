//! A Windows guest: its kernel, found by where vCPUs enter it, and nothing that
//! is not one.

mod support;

use ramlift::guest::{Kdbg, Windows};
use ramlift::physical::{Layout, PhysicalMemory, Region};
use ramlift::{BlockId, BlockOffset, PhysicalAddress, Stream};
use support::cli::Workplace;
use support::hostile::in_time;
use support::kernel::{Memory, PAGE, RAM_LEN};
use support::vcpu::Vcpu;
use support::windows::{
    BASE, DEBUG, EXPORTS, Guest, HEADERS, IMAGE_LEN, KDBG, LAB_TEXT, LSTAR, NAMES, OPTIONAL, ROOT, RSDS,
    directory, image,
};

fn find_in(stream: &[u8]) -> Option<Windows> {
    let stream = Stream::parse(stream).unwrap();
    let range = PhysicalAddress(0)..PhysicalAddress(RAM_LEN);
    let region = Region { range, block: BlockId(0), offset: BlockOffset(0), derived: "test".into() };
    let layout = Layout::from_regions(vec![region]).unwrap();
    in_time(|| Windows::find(&stream, PhysicalMemory::new(stream.ram().unwrap(), &layout))).unwrap()
}

/// What is found of an image that the vCPU's tables have.
fn find(image: &Memory) -> Option<Windows> {
    find_in(&Guest::with(image).stream(ROOT).finish())
}

#[test]
fn the_kernel_is_where_vcpus_enter_it() {
    let windows = find(&image()).unwrap();
    assert_eq!((windows.base, windows.image_len), (BASE, IMAGE_LEN.into()));
    assert_eq!(windows.page_tables, PhysicalAddress(ROOT));
    assert_eq!(windows.timestamp, 0x5f00_1234);
    let pdb = windows.pdb.unwrap();
    assert_eq!((pdb.name.as_str(), pdb.age), ("ntkrnlmp.pdb", 2));
    assert_eq!(pdb.guid, "123456789ABCDEF00102030405060708");
    assert_eq!((windows.build, windows.build_lab.as_deref()), (Some(19041), Some(LAB_TEXT)));
    assert_eq!(windows.kdbg, Some(Kdbg { address: BASE + KDBG, len: 0x380 }));
    // Its first page is the last in memory.
    let pages = image().0.len() as u64;
    assert_eq!(windows.at, PhysicalAddress(0x100_0000 + (pages - 1) * PAGE));
}

#[test]
fn either_name_is_enough() {
    let without = |first: u64, count: u64| {
        let mut image = image();
        (0..count).for_each(|nth| drop(image.0.remove(&(first + nth * PAGE))));
        image
    };
    let paged_out = find(&without(EXPORTS, 1)).unwrap();
    assert_eq!((paged_out.base, paged_out.build, paged_out.build_lab), (BASE, None, None));
    assert_eq!(paged_out.pdb.unwrap().name, "ntkrnlmp.pdb");
    let paged_out = find(&without(DEBUG, 1)).unwrap();
    assert_eq!((paged_out.base, paged_out.build, paged_out.pdb), (BASE, Some(19041), None));
    let nameless = image().put(EXPORTS + 0x40, b"hal.dll\0").put(RSDS + 24, b"hal.pdb\0");
    assert_eq!(find(&nameless), None);
}

#[test]
fn what_does_not_have_the_entry_in_it_is_not_the_kernel() {
    for len in [0, 0x21_0040, 0x1000_0000, u32::MAX] {
        assert_eq!(find(&image().put(OPTIONAL + 56, &len.to_le_bytes())), None, "{len:#x}");
    }
    assert!(find(&image().put(OPTIONAL + 56, &0x21_0041_u32.to_le_bytes())).is_some());
    // Nor is one of another machine.
    assert_eq!(find(&image().put(HEADERS + 4, &[0x64, 0xaa])), None);
}

#[test]
fn another_program_below_the_entry_is_passed_over() {
    let other = image().0[&0].clone();
    assert_eq!(find(&image().put(0x20_0000, &other)).unwrap().base, BASE);
}

#[test]
fn kdbg_has_to_be_the_kernels() {
    for image in [image().word(KDBG + 24, BASE + PAGE), image().put(KDBG + 16, b"\x12\x34\x56\x78")] {
        assert_eq!(find(&image).unwrap().kdbg, None);
    }
}

#[test]
fn a_vcpu_in_a_program_leads_to_the_kernels_tables() {
    // Of the kernel these have the entry, and the processor's own page that
    // says where the kernel's tables are.
    const SHADOW: u64 = 0x20_0000 - 0x8000;
    const KPCR: u64 = 0xffff_f805_1000_0000;
    let mut guest = Guest::with(&image());
    guest.map(SHADOW, LSTAR / PAGE * PAGE, 0x100_0000);
    guest.map(SHADOW, KPCR + 0x7000, 0x1f0_0000);
    assert_eq!(find_in(&guest.stream(SHADOW).finish()), None);
    guest.memory = guest.memory.word(0x1f0_0000, ROOT | 2);
    for (gs_base, kernel_gs_base) in [(0x7ff0_0000, KPCR), (KPCR, 0x7ff0_0000)] {
        let vcpu = Vcpu { lstar: LSTAR, cr3: SHADOW | 1, gs_base, kernel_gs_base, ..Vcpu::default() };
        let windows = find_in(&vcpu.put(guest.memory.stream(), 0).finish()).unwrap();
        assert_eq!((windows.base, windows.page_tables.0), (BASE, ROOT));
    }
    // Without them, another vCPU does.
    let lost = Vcpu { lstar: LSTAR, cr3: SHADOW, ..Vcpu::default() };
    let found = Vcpu { lstar: LSTAR, cr3: ROOT, ..Vcpu::default() };
    let stream = found.put(lost.put(guest.memory.stream(), 0), 1).finish();
    assert_eq!(find_in(&stream).unwrap().base, BASE);
}

#[test]
fn flags_of_cr3_are_no_part_of_where_tables_are() {
    let guest = Guest::with(&image());
    for flags in [0x18, 1 << 63, 1 << 61] {
        let windows = find_in(&guest.stream(ROOT | flags).finish()).unwrap();
        assert_eq!((windows.base, windows.page_tables.0), (BASE, ROOT), "{flags:#x}");
    }
}

#[test]
fn five_levels_of_tables_are_gone_through() {
    const TOP: u64 = 0x20_0000 - PAGE;
    let guest = Guest::with(&image());
    let memory = guest.memory.word(TOP + 8 * 511, ROOT | 3);
    let vcpu = Vcpu { lstar: LSTAR, cr3: TOP, cr4: 1 << 12, ..Vcpu::default() };
    assert_eq!(find_in(&vcpu.put(memory.stream(), 0).finish()).unwrap().base, BASE);
}

#[test]
fn a_vcpu_that_leads_nowhere_finds_nothing() {
    let guest = Guest::with(&image());
    for lstar in [0, 0x7ff0_0000_1000, LSTAR & 0x0000_ffff_ffff_ffff, 0xffff_f780_0000_0000, u64::MAX] {
        let vcpu = Vcpu { lstar, cr3: ROOT, ..Vcpu::default() };
        assert_eq!(find_in(&vcpu.put(guest.memory.stream(), 0).finish()), None, "{lstar:#x}");
    }
    for cr3 in [0, RAM_LEN, u64::MAX] {
        assert_eq!(find_in(&guest.stream(cr3).finish()), None, "{cr3:#x}");
    }
    assert_eq!(find_in(&guest.memory.stream().finish()), None);
}

#[test]
fn tables_in_circles_end() {
    // Each address is one of the same table, which looks like a program, and
    // so does the page that all others lead to.
    let entry = ROOT | 3;
    let circle = (0..512).fold(Memory::default(), |memory, nth| memory.word(ROOT + 8 * nth, entry));
    let vcpu = Vcpu { lstar: LSTAR, cr3: ROOT, ..Vcpu::default() };
    assert_eq!(find_in(&vcpu.put(circle.stream(), 0).finish()), None);
    let mut guest = Guest::with(&image());
    let first = 0x100_0000 + (image().0.len() as u64 - 1) * PAGE;
    (0..1 << 14).for_each(|nth| guest.map(ROOT, LSTAR / PAGE * PAGE - nth * PAGE, first));
    let many = (0..200).fold(guest.memory.stream(), |stream, nth| {
        Vcpu { lstar: LSTAR, cr3: ROOT | u64::from(nth), ..Vcpu::default() }.put(stream, nth)
    });
    // The names are in pages that are not there, so none of them is the kernel.
    assert_eq!(find_in(&many.finish()), None);
}

#[test]
fn numbers_of_exports_that_lie_give_no_exports() {
    let lies = [
        image().put(EXPORTS + 20, &[0xff; 4]),
        image().put(EXPORTS + 24, &[0xff; 4]),
        image().put(EXPORTS + 28, &[0xff; 12]),
        image().put(EXPORTS + 16, &[0xff; 4]),
        image().put(EXPORTS + 0x180, &[0xff; 6]),
        image().put(EXPORTS + 0x100, &[0xff; 12]),
        image().put(NAMES, &[b'A'; 0xe00]),
        directory(image(), 0, EXPORTS as u32, u32::MAX),
        directory(image(), 0, EXPORTS as u32, 40),
        // Addresses of exports that are not in the image, or in their directory.
        image().put(EXPORTS + 0x80, &[0xff; 12]),
        image().put(EXPORTS + 0x80, &[EXPORTS as u32 + 0x40; 3].map(u32::to_le_bytes).concat()),
    ];
    for (nth, lie) in lies.iter().enumerate() {
        let windows = find(lie).unwrap_or_else(|| panic!("{nth}"));
        assert_eq!((windows.base, windows.build), (BASE, None), "{nth}");
    }
}

#[test]
fn tables_that_lie_over_each_other_or_nowhere_are_no_names() {
    let nowhere = directory(directory(image(), 0, u32::MAX - 4, 0x1000), 6, u32::MAX - 4, u32::MAX);
    assert_eq!(find(&nowhere), None);
    let headers = directory(directory(image(), 0, 0, 0x1000), 6, 2, u32::MAX);
    assert_eq!(find(&headers), None);
    // A name without an end.
    let endless = image().put(EXPORTS + 0x40, &[b'n'; 0x100]).put(RSDS + 24, &[b'n'; 0x400]);
    assert_eq!(find(&endless), None);
    // Headers that begin where the page ends, or far from it.
    for at in [PAGE as u32 - 4, PAGE as u32, u32::MAX] {
        assert_eq!(find(&image().put(0x3c, &at.to_le_bytes())), None);
    }
}

#[test]
fn info_says_which_windows_runs() {
    let place = Workplace::with(&Guest::with(&image()).stream(ROOT).finish());
    let output = place.ramlift(&["info", "stream"]).expect_code(0);
    for line in [
        format!("  guest         Windows, build 19041 ({LAB_TEXT})\n"),
        "  PDB           ntkrnlmp.pdb 123456789ABCDEF00102030405060708 age 2\n".to_owned(),
        format!("  KDBG          {:#x}, 0x380 bytes\n", BASE + KDBG),
    ] {
        assert!(output.text().contains(&line), "{line}{}", output.text());
    }
    for args in [&["info", "--json", "stream"][..], &["info", "--json", "--guest", "stream"]] {
        let guest = &place.ramlift(args).json()["guest"];
        assert_eq!((&guest["looked_at"], &guest["linux"]), (&"nothing".into(), &serde_json::Value::Null));
        let windows = &guest["windows"];
        assert_eq!((&windows["base"], &windows["image_length"]), (&BASE.into(), &IMAGE_LEN.into()));
        assert_eq!((&windows["page_tables"], &windows["build"]), (&ROOT.into(), &19041.into()));
        assert_eq!(windows["build_lab"], LAB_TEXT);
        assert_eq!((&windows["pdb"]["name"], &windows["pdb"]["age"]), (&"ntkrnlmp.pdb".into(), &2.into()));
        assert_eq!(windows["kdbg"]["address"], BASE + KDBG);
    }
}
