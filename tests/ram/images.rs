//! Image files: as long as their blocks, and no more of the disk than needed.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};

use super::{KIB_4, four_pages, page};
use crate::support::cli::Workplace;
use crate::support::synth::{Block, Records, Synth};
use ramlift::{BlockFiles, BlockId, ErrorKind, Stream, WINDOW_LEN};

#[test]
fn a_window_without_data_takes_no_disk_blocks() {
    let window = WINDOW_LEN;
    let mut records = Records::new().data("ram", 0, &page(1));
    for at in (window..2 * window).step_by(KIB_4) {
        records = records.next_fill(at, 0);
    }
    // Sent as data and zero since, and never sent: both are holes as well.
    for at in (2 * window..3 * window).step_by(KIB_4) {
        records = records.next_data(at, &page(2)).next_fill(at, 0);
    }
    let blocks = Block::new("ram", 64 * window);
    let stream = Synth::machine().ram(&[blocks], records).finish_undescribed();
    assert!(allocated(&stream) <= 64 << 10);
}

#[test]
fn pages_of_data_that_are_zero_take_no_disk_blocks() {
    // With zero-page-detection=none, QEMU sends zero pages as data.
    let mut records = Records::new().data("ram", 0, &page(1));
    for at in (WINDOW_LEN..2 * WINDOW_LEN).step_by(KIB_4) {
        records = records.next_data(at, &[0; KIB_4]);
    }
    let stream = Synth::machine().ram(&[Block::new("ram", 2 * WINDOW_LEN)], records).finish_undescribed();
    assert!(allocated(&stream) <= 64 << 10);
}

/// The bytes that the image of the block `ram` takes on disk: how much a
/// page's worth is, the file system says.
fn allocated(stream: &[u8]) -> u64 {
    let place = Workplace::with(stream);
    place.ramlift(&["extract", "stream", "-o", "out"]).expect_code(0);
    fs::metadata(place.join("out/ram")).unwrap().blocks() * 512
}

#[test]
fn an_image_is_as_long_as_its_block() {
    // 1 TiB, one page of it at the very end.
    let len = 1u64 << 40;
    let records = Records::new().data("ram", len - 0x1000, &page(1));
    let stream = Synth::machine().ram(&[Block::new("ram", len)], records).finish_undescribed();
    let place = Workplace::with(&stream);
    place.ramlift(&["extract", "stream", "-o", "out"]).expect_code(0);
    let image = File::open(place.join("out/ram")).unwrap();
    assert_eq!(image.metadata().unwrap().len(), len);
    let mut last = vec![0; KIB_4];
    image.read_exact_at(&mut last, len - 0x1000).unwrap();
    assert_eq!(last, page(1));
}

#[test]
fn files_of_images_are_created_new() {
    let stream = four_pages().ram_end(Records::new().data("main.ram", 0, &page(1))).finish_undescribed();
    let parsed = Stream::parse(&stream).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    fs::write(&path, "mine").unwrap();
    let error = BlockFiles::create(parsed.ram().unwrap(), [(BlockId(0), path.clone())]).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Io { path: named, .. } if *named == path), "{error:?}");
    assert_eq!(fs::read(&path).unwrap(), b"mine");
}
