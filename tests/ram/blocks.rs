//! The block list: lengths, page sizes of hosts, offsets of regions.

use super::{KIB_4, check, page};
use crate::support::synth::{Block, Records, Synth};
use ramlift::{BlockOffset, Page, Stream};

#[test]
fn a_block_that_ends_inside_a_page_has_all_of_its_bytes() {
    let blocks = [Block::new("odd", 0x1000 + 0x700), Block::new("tail", 0x900)];
    let records = Records::new().data("odd", 0x1000, &page(1)).fill("tail", 0, 0xee);
    check(&Synth::machine().ram(&blocks, records).finish_undescribed(), KIB_4);
}

#[test]
fn blocks_of_no_bytes_are_listed() {
    let blocks = [Block::new("empty", 0), Block::new("main.ram", 0x1000)];
    let records = Records::new().data("main.ram", 0, &page(1));
    check(&Synth::machine().ram(&blocks, records).finish_undescribed(), KIB_4);
}

#[test]
fn a_stream_of_no_blocks_has_ram_that_is_empty() {
    check(&Synth::machine().ram(&[], Records::new()).finish_undescribed(), KIB_4);
}

#[test]
fn page_sizes_of_blocks_are_told_from_what_follows() {
    // Postcopy was allowed: blocks of huge pages give their size.
    let blocks = [
        Block::new("huge", 0x4000).page_size(2 << 20),
        Block::new("plain", 0x2000),
        Block::new("last", 0x1000).page_size(1 << 30),
    ];
    let records = Records::new().data("huge", 0, &page(1)).data("last", 0, &page(2));
    let stream = Synth::machine().ram(&blocks, records).finish_undescribed();
    let parsed = Stream::parse(&stream).unwrap();
    let ram = parsed.ram().unwrap();
    let sizes: Vec<_> = ram.blocks().map(|(_, block, _)| block.host_page_size).collect();
    assert_eq!(sizes, [Some(2 << 20), None, Some(1 << 30)]);
    assert_eq!(ram.page(ram.find(b"last").unwrap(), BlockOffset(0)).unwrap(), Page::Data(page(2).into()));
}

#[test]
fn region_offsets_are_read_where_shared_blocks_are_ignored() {
    // 0x100000 and 0x2000 could be page sizes too.
    let blocks = [
        Block::new("shared", 0x4000).mr_addr(0),
        Block::new("bios", 0x2000).mr_addr(0xfffc_0000),
        Block::new("huge", 0x1000).page_size(2 << 20).mr_addr(0x10_0000),
        Block::new("last", 0x1000).mr_addr(0x2000),
    ];
    let records = Records::new().data("bios", 0, &page(1)).data("last", 0, &page(2));
    let stream =
        Synth::machine().capabilities(&["x-ignore-shared"]).ram(&blocks, records).finish_undescribed();
    let parsed = Stream::parse(&stream).unwrap();
    let listed: Vec<_> =
        parsed.ram().unwrap().blocks().map(|(_, block, _)| (block.host_page_size, block.mr_addr)).collect();
    let expected =
        [(None, Some(0)), (None, Some(0xfffc_0000)), (Some(2 << 20), Some(0x10_0000)), (None, Some(0x2000))];
    assert_eq!(listed, expected);
}

#[test]
fn a_region_offset_that_could_be_a_page_size_is_none() {
    // The second node of a NUMA guest begins at 1 GiB of its region.
    let blocks = [
        Block::new("node0", 0x2000).mr_addr(0),
        Block::new("node1", 0x2000).mr_addr(1 << 30),
        Block::new("0000:00:02.0/vga.vram", 0x1000).mr_addr(0x1000),
        Block::new("a", 0x1000).mr_addr(0x2000),
        Block::new("pc.bios", 0x1000).mr_addr(0x4000),
        Block::new("pc.rom", 0x1000).mr_addr(1 << 50),
    ];
    let records = Records::new().data("node1", 0, &page(1)).fill("pc.rom", 0, 7);
    for stream in [Synth::machine(), Synth::machine().without_footers()] {
        let stream = stream.capabilities(&["x-ignore-shared"]).ram(&blocks, records.clone());
        let stream = stream.finish_undescribed();
        let parsed = Stream::parse(&stream).unwrap();
        for (expected, (_, block, _)) in blocks.iter().zip(parsed.ram().unwrap().blocks()) {
            assert_eq!((block.host_page_size, block.mr_addr), (None, expected.mr_addr), "{block:?}");
        }
    }
}
