//! The target page size, told or found out.

use super::{KIB_4, check, page};
use crate::support::synth::{Block, Records, Synth, noise};
use ramlift::Stream;

#[test]
fn pages_of_256_bytes_use_the_bits_of_newer_flags() {
    // avr before QEMU 10.2: offsets 0x100 and 0x200 are no flags there.
    let mut records = Records::new();
    for nth in 0..16 {
        records = match nth % 3 {
            0 => records.fill("ram", nth * 256, nth as u8),
            1 => records.data("ram", nth * 256, &noise(nth, 256)),
            _ => records.next_data(nth * 256, &noise(nth, 256)),
        };
    }
    let stream = Synth::machine().described_page_size(Some(256)).ram(&[Block::new("ram", 0x1000)], records);
    check(&stream.finish(), 256);
}

#[test]
fn a_page_size_that_nothing_gives_is_found_out() {
    for bits in 10..=16 {
        let size = 1usize << bits;
        let records = Records::new()
            .data("ram", 0, &noise(1, size))
            .next_fill(size as u64, 0)
            .next_data(2 * size as u64, &noise(2, size))
            .next_data(3 * size as u64, &noise(3, size));
        let stream = Synth::machine().ram(&[Block::new("ram", 4 * size as u64)], records);
        check(&stream.finish_undescribed(), size);
    }
}

#[test]
fn a_page_size_that_nothing_gives_is_found_out_behind_fill_pages() {
    for bits in 8..=16 {
        let size = 1u64 << bits;
        let fills = (0..8).fold(Records::new(), |records, nth| records.fill("ram", nth * size, 0));
        let stream = Synth::machine()
            .ram_start(&[Block::new("ram", 16 * size)])
            .ram_part(fills)
            .ram_end(Records::new().data("ram", 9 * size, &noise(1, size as usize)).next_fill(10 * size, 0));
        check(&stream.finish_undescribed(), size as usize);
    }
}

#[test]
fn the_configuration_goes_before_the_description_on_the_page_size() {
    let records = Records::new().data("ram", 0x2000, &noise(1, 8192)).next_fill(0, 0);
    let stream = Synth::machine()
        .target_page_bits(13)
        .described_page_size(Some(4096))
        .ram(&[Block::new("ram", 0x8000)], records)
        .finish();
    check(&stream, 8192);
    let parsed = Stream::parse(&stream).unwrap();
    assert!(parsed.warnings().iter().any(|warning| warning.is_loss), "the two do not agree");
}

#[test]
fn a_described_page_size_that_does_not_fit_is_not_believed() {
    let records = Records::new().fill("ram", 0, 0).next_data(0x1000, &page(1)).next_data(0x2000, &page(2));
    let stream = Synth::machine().described_page_size(Some(8192)).ram(&[Block::new("ram", 0x4000)], records);
    check(&stream.finish(), KIB_4);
}
