//! What a layout takes of time and memory, of streams made to take much.

mod support;

use ramlift::physical::{Core, Layout, Region, VirtualRange, elf};
use ramlift::{BlockId, BlockOffset, PhysicalAddress};
use support::cli::{Workplace, ramlift_within};
use support::hostile::in_time;
use support::kernel::{self, TABLES};
use support::synth::{Block, Records, Synth, noise};

/// What QEMU describes of a virtio-mem device before RAM.
const EARLY: &str = r#"{"name": "checks", "type": "struct", "size": 24, "struct": {"vmsd_name": "checks", "version": 1,
    "fields": [{"name": "addr", "type": "uint64", "size": 8}, {"name": "region_size", "type": "uint64", "size": 8},
    {"name": "block_size", "type": "uint64", "size": 8}]}}"#;

/// The address from which on these devices have memory.
const START: u64 = 1 << 40;

/// A stream of a PC with these blocks beside its RAM.
fn pc(blocks: impl Iterator<Item = Block>) -> Synth {
    let blocks: Vec<Block> = std::iter::once(Block::new("pc.ram", 0x1000)).chain(blocks).collect();
    let records = Records::new().data("pc.ram", 0, &noise(1, 4096));
    Synth::new().configuration("pc-i440fx-10.0").ram(&blocks, records)
}

/// A virtio-mem device of `len` bytes at `address`, in blocks of 4 KiB.
fn device(synth: Synth, nth: u64, address: u64, len: u64, bitmap: &[u8]) -> Synth {
    let checks = [address, len, 4096].map(u64::to_be_bytes).concat();
    let fields = match bitmap.len() {
        0 => EARLY.to_owned(),
        len => format!(r#"{EARLY}, {{"name": "bitmap", "type": "bitmap", "size": {len}}}"#),
    };
    let id = u32::try_from(nth).unwrap() + 3;
    synth.device(id, &format!("d{nth}/virtio-mem"), &[&checks, bitmap].concat(), &fields)
}

fn layout_json(stream: &[u8]) -> serde_json::Value {
    let place = Workplace::with(stream);
    let kib = (stream.len() as u64 >> 10) * 20 + (256 << 10);
    let output = in_time(|| ramlift_within(kib, place.path(), &["layout", "--json", "stream"]));
    assert!([0, 3].contains(&output.code), "{}", output.stderr);
    output.json()
}

#[test]
fn as_many_devices_of_memory_as_blocks_take_no_time() {
    // Each device was held against each block: it took more than the time there is.
    let count = 30_000;
    let blocks = (0..count).map(|nth| Block::new(format!("d{nth}/m"), 0x1000));
    let others = (0..30_000).map(|nth| Block::new(format!("x{nth}"), 0));
    let synth = pc(others.chain(blocks));
    let stream = (0..count).fold(synth, |synth, nth| {
        device(synth, nth, START + (nth << 12), 0x1000, &[0x80, 0, 0, 0, 0, 0, 0, 0])
    });
    let layout = layout_json(&stream.finish());
    let unplaced = layout["unplaced"].as_array().unwrap();
    assert_eq!(
        unplaced.iter().filter(|part| part["reason"] == "virtio-mem that is not plugged in").count(),
        30_000
    );
}

#[test]
fn memory_in_more_parts_than_there_can_be_is_placed_as_one() {
    // A part is two bits of the stream. All of them had places: this one of 450 KB
    // took five minutes, and was not done.
    let (count, pages) = (300, 8192);
    let len = pages << 12;
    let synth = pc((0..count).map(|nth| Block::new(format!("d{nth}/m"), len)));
    let bitmap = vec![0x55; pages as usize / 8];
    let stream =
        (0..count).rev().fold(synth, |synth, nth| device(synth, nth, START + nth * len, len, &bitmap));
    let layout = layout_json(&stream.finish());
    let regions = layout["regions"].as_array().unwrap();
    let is_of = |region: &&serde_json::Value, text: &str| region["derived"].as_str().unwrap().contains(text);
    let parts = regions.iter().filter(|region| is_of(region, "its own state says where")).count();
    assert_eq!(parts, 65_536, "16 devices have each part in its place");
    let whole = regions.iter().filter(|region| is_of(region, "all of it")).count();
    assert_eq!(whole as u64, count - 16);
}

/// A kernel's memory that is seen at every other page of [`RAM_LEN`], and devices that
/// have 61,440 parts of memory.
const RAM_LEN: u64 = 1 << 30;

fn many_parts(memory: &kernel::Memory) -> Vec<u8> {
    let (count, pages) = (15, 8192);
    let len = pages << 12;
    let devices = (0..count).map(|nth| Block::new(format!("d{nth}/m"), len));
    let blocks: Vec<Block> = std::iter::once(Block::new("pc.ram", RAM_LEN)).chain(devices).collect();
    let synth = Synth::new().configuration("pc-i440fx-10.0").ram(&blocks, memory.records());
    let bitmap = vec![0x55; pages as usize / 8];
    (0..count).fold(synth, |synth, nth| device(synth, nth, START + nth * len, len, &bitmap)).finish()
}

#[test]
fn an_elf_file_of_as_many_parts_as_there_can_be_takes_no_time() {
    // Each segment was looked for among all regions, and all virtual addresses of the
    // kernel were held against all of them: minutes for 4 MB.
    let info = kernel::info(kernel::RELEASE);
    let next = |table: u64| (TABLES + table * kernel::PAGE) | 3;
    let slot = |table: u64, nth: u64| TABLES + table * kernel::PAGE + 8 * nth;
    let small = |at: u64| at | 3;
    let memory = kernel::with_tables().put(kernel::INFO, &kernel::info_page(&info));
    let tables = 6..6 + (RAM_LEN >> 21);
    let memory = tables.clone().fold(memory, |memory, table| {
        let at = (table - 6) << 21;
        let entries = (0..512).map(|nth| if nth % 2 == 0 { small(at + (nth << 12)) } else { 0 });
        let bytes: Vec<u8> = entries.flat_map(u64::to_le_bytes).collect();
        memory.word(slot(4, table - 6), next(table)).put(TABLES + table * kernel::PAGE, &bytes)
    });
    let place = Workplace::with(&many_parts(&memory));
    let elf = |more: &[&str]| {
        let args = [&["extract", "stream", "--format", "elf", "--force"], more].concat();
        in_time(|| place.ramlift(&args))
    };
    // Most pages are not in the stream.
    elf(&[]).expect_code(3);
    let refused = elf(&["--vaddr"]).expect_code(1);
    assert!(refused.stderr.contains("for the segments of an ELF file"), "{}", refused.stderr);
}

#[test]
fn memory_of_a_virtio_mem_device_that_does_not_tell_is_missing() {
    // It was taken for a device's own, and all was said to be there.
    let len = 0x20_0000;
    let synth = || pc(std::iter::once(Block::new("d0/m", len)).chain([Block::new("d0/m.rom", 0x1000)]));
    let told = device(synth(), 0, START, len, &[0xff; 64]);
    let behind_all = device(synth(), 0, u64::MAX - 0x1f_ffff, len, &[0xff; 64]);
    let undescribed = device(synth(), 0, START, len, &[0xff; 64]).finish_undescribed();
    for (stream, is_missing) in [(told.finish(), false), (behind_all.finish(), true), (undescribed, true)] {
        let layout = layout_json(&stream);
        let unplaced = layout["unplaced"].as_array().unwrap();
        let missing: Vec<_> = unplaced.iter().filter(|part| part["is_ram"] == true).collect();
        assert_eq!(missing.iter().any(|part| part["idstr"] == "d0/m"), is_missing, "{unplaced:?}");
        assert_eq!(missing.len(), usize::from(is_missing));
        let place = Workplace::with(&stream);
        let output = place.ramlift(&["extract", "stream", "--format", "lime"]).expect_code(3);
        let is_told = output.stderr.contains("\"d0/m\": 0x200000 bytes from 0x0 on have no place");
        assert_eq!(is_told, is_missing, "{}", output.stderr);
    }
}

/// A layout of pages, the nth at the nth multiple of `step`.
fn pages(count: u64, step: u64) -> Layout {
    let region = |nth: u64| Region {
        range: PhysicalAddress(nth * step)..PhysicalAddress(nth * step + 0x1000),
        block: BlockId(0),
        offset: BlockOffset(nth << 12),
        derived: "".into(),
    };
    Layout::from_regions((0..count).map(region).collect()).unwrap()
}

#[test]
fn virtual_addresses_of_many_ranges_take_no_time() {
    // All ranges were gone through for each virtual one, of which a page of a guest's
    // tables can have 256.
    let layout = pages(60_000, 0x2000);
    let alias = |nth: u64| VirtualRange {
        start: 0xffff_8880_0000_0000 + nth * 0x2000,
        memory: PhysicalAddress(nth * 0x2000)..PhysicalAddress(nth * 0x2000 + 0x1000),
    };
    let core = |count| Core { virtual_ranges: (0..count).map(alias).collect(), ..Core::default() };
    let plan = in_time(|| elf::plan(&layout, &core(5000))).unwrap();
    assert_eq!(plan.file_len() >> 12, 60_000 + (plan.heads_len().div_ceil(0x1000)));
    assert!(in_time(|| elf::plan(&layout, &core(60_000))).is_err());
    // One that shows all of memory, again and again.
    let all = VirtualRange { start: 1 << 63, memory: PhysicalAddress(0)..PhysicalAddress(u64::MAX) };
    let core = Core { virtual_ranges: vec![all; 60_000], ..Core::default() };
    assert!(in_time(|| elf::plan(&layout, &core)).is_err());
}
