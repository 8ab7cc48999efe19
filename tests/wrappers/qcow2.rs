//! VM states in qcow2 images, read as QEMU reads them, and images that nobody
//! can have written.

use std::fs;
use std::io::Read;

use super::{DISKS, SAVEVM, Tampered, check_content, fixture, truth};
use ramlift::wrapper::qcow2::{ImageFile, Qcow2, ReadAt, RunSource};
use ramlift::wrapper::{Chain, Layer, detect};
use ramlift::{BlockOffset, Page, Stream};

#[test]
fn reads_a_vm_state_as_qemu_io_does() {
    let others = ["pc-10.0-savevm-qcow2", "savevm-11.1-mapped-ram"];
    for name in SAVEVM.into_iter().chain(others).chain(DISKS) {
        let image = fixture(name);
        let truth = truth(name);
        let qcow2 = Qcow2::open(image.as_slice()).unwrap();
        let known = truth["snapshots"].as_object().unwrap();
        assert_eq!(qcow2.snapshots().len(), known.len());
        for (tag, truth) in known {
            let snapshot = qcow2.find(tag.as_bytes()).unwrap();
            assert_eq!(snapshot.vm_state_size, truth["vm_state_size"].as_u64().unwrap());
            let state = qcow2.vm_state(snapshot).unwrap();
            let mut content = Vec::new();
            state.reader().read_to_end(&mut content).unwrap();
            assert_eq!(content.len() as u64, state.len());
            assert!(state.len() >= snapshot.vm_state_size);
            check_content(truth, &content);
            check_runs(&qcow2, tag, &image, &content);
        }
    }
}

/// Runs follow each other, are merged, and are of the same bytes.
fn check_runs<F: ReadAt>(qcow2: &Qcow2<F>, tag: &str, image: &[u8], content: &[u8]) {
    let state = qcow2.vm_state(qcow2.find(tag.as_bytes()).unwrap()).unwrap();
    let runs: Vec<_> = state.runs().collect::<Result<_, _>>().unwrap();
    let mut at = 0;
    for run in &runs {
        assert_eq!(run.at, at);
        let part = &content[at as usize..][..run.len as usize];
        match run.source {
            RunSource::Zeros => assert!(part.iter().all(|byte| *byte == 0)),
            RunSource::File(offset) => assert!(part == &image[offset as usize..][..run.len as usize]),
            RunSource::Compressed { offset, .. } => assert!(offset < image.len() as u64),
        }
        at += run.len;
    }
    assert_eq!(at, state.len());
    for pair in runs.windows(2) {
        assert!(pair[0].source != RunSource::Zeros || pair[1].source != RunSource::Zeros);
        assert!(pair[0].host().is_none_or(|host| pair[1].host() != Some(host + pair[0].len)));
    }
}

#[test]
fn reads_an_image_as_a_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), fixture("savevm-7.2")).unwrap();
    let qcow2 = Qcow2::open(ImageFile::new(fs::File::open(file.path()).unwrap()).unwrap()).unwrap();
    let state = qcow2.vm_state(qcow2.find(b"second").unwrap()).unwrap();
    let mut content = Vec::new();
    state.reader().take(state.vm_state_size()).read_to_end(&mut content).unwrap();
    check_content(&truth("savevm-7.2")["snapshots"]["second"], &content);
}

#[test]
fn meets_every_kind_of_cluster() {
    let kinds = |name| {
        let image = fixture(name);
        let qcow2 = Qcow2::open(image.as_slice()).unwrap();
        let state = qcow2.vm_state(&qcow2.snapshots()[0]).unwrap();
        let runs: Vec<_> = state.runs().collect::<Result<_, _>>().unwrap();
        let is_compressed = |source| matches!(source, RunSource::Compressed { .. });
        let count = |kind: &dyn Fn(RunSource) -> bool| runs.iter().filter(|run| kind(run.source)).count();
        (count(&is_compressed), count(&|source| source == RunSource::Zeros), runs.len())
    };
    for name in DISKS {
        let (compressed, zeros, all) = kinds(name);
        assert!(compressed >= 4 && zeros >= 4 && all > compressed + zeros, "{name}");
    }
    assert_eq!(kinds("savevm-7.2"), (0, 0, 1));
    // Holes are where mapped-ram aligns its pages.
    assert!(kinds("savevm-11.1-mapped-ram").1 > 0);
}

#[test]
fn the_vm_state_is_a_stream_with_the_guests_ram() {
    for name in SAVEVM.into_iter().chain(["savevm-11.1-mapped-ram"]) {
        let image = fixture(name);
        let qcow2 = Qcow2::open(image.as_slice()).unwrap();
        for snapshot in qcow2.snapshots() {
            let mut content = Vec::new();
            qcow2.vm_state(snapshot).unwrap().reader().read_to_end(&mut content).unwrap();
            let ram = block(&content, b"ram");
            // What scripts/make-wrappers put there.
            for (number, page) in ram.chunks(4096).enumerate() {
                let word = if number % 3 == 0 { 0 } else { number as u32 };
                assert!(
                    page.as_chunks::<4>().0.iter().all(|met| *met == word.to_le_bytes()),
                    "{name}: {number}"
                );
            }
            assert_eq!(ram.len(), 1 << 20);
        }
    }
}

/// A RAM block of a stream, page by page.
fn block(stream: &[u8], idstr: &[u8]) -> Vec<u8> {
    let stream = Stream::parse(stream).unwrap();
    let ram = stream.ram().unwrap();
    let id = ram.find(idstr).unwrap();
    let (_, block, _) = ram.blocks().find(|(met, ..)| *met == id).unwrap();
    let mut content = vec![0; block.used_length as usize];
    for (number, into) in content.chunks_mut(4096).enumerate() {
        match ram.page(id, BlockOffset(number as u64 * 4096)).unwrap() {
            Page::Data(bytes) => into.copy_from_slice(&bytes[..into.len()]),
            Page::Fill(byte) => into.fill(byte),
            _ => {}
        }
    }
    content
}

#[test]
fn finds_a_snapshot_by_name_and_id_and_lists_them_otherwise() {
    let image = fixture("savevm-7.2");
    let qcow2 = Qcow2::open(image.as_slice()).unwrap();
    assert_eq!(qcow2.find(b"2").unwrap().name, "second");
    assert!(!qcow2.is_dirty() && !qcow2.is_corrupt());
    let error = qcow2.find(b"third\x1b").unwrap_err().to_string();
    assert!(error.contains("\"first\" (1), \"second\" (2)") && error.contains("third\\x1b"), "{error}");
    let layer = Layer::Qcow2 { snapshot: Some(qcow2.find(b"first").unwrap().name.clone()) };
    let chain = Chain(vec![layer, Layer::Stream]);
    assert_eq!(chain.to_string(), "qcow2 snapshot \"first\" → QEVM");
    assert_eq!(detect(&image), Layer::Qcow2 { snapshot: None });
}

#[test]
fn refuses_images_that_it_would_read_wrongly() {
    let image = || Tampered::with("savevm-7.2");
    image().put(4, [0, 0, 0, 1]).check(4, "2 or 3");
    image().put(20, [0, 0, 0, 8]).check(20, "9 to 21");
    image().put(20, [0, 0, 0, 22]).check(20, "9 to 21");
    image().put(32, [0, 0, 0, 2]).check(32, "not encrypted");
    image().put(72, 1_u64.rotate_left(5).to_be_bytes()).check(72, "0x20");
    image().put(72, 4_u64.to_be_bytes()).check(72, "external data file");
    image().put(72, 8_u64.to_be_bytes()).check(104, "zstd");
    image().put(104, [1]).check(104, "zlib");
    image().put(60, [0, 1, 0, 1]).check(60, "65536");
    image().put(64, 0x1234_u64.to_be_bytes()).check(64, "start of a cluster");
    image().put(64, (1_u64 << 62).to_be_bytes()).check(1 << 62, "snapshot 1 of 2");
    let dirty = image().put(72, 3_u64.to_be_bytes());
    dirty.read().unwrap();
    let qcow2 = Qcow2::open(dirty.0.as_slice()).unwrap();
    assert!(qcow2.is_dirty() && qcow2.is_corrupt() && qcow2.version() == 3);
}

#[test]
fn refuses_tables_that_loop_overlap_or_lie() {
    let image = || Tampered::with("savevm-7.2");
    let (table, l1, l2) = (image().table(), image().l1(), image().l2());
    let len = image().0.len() as u64;
    let copied = 1_u64 << 63;
    // Snapshots.
    image().put(table + 36, [0, 0, 4, 1]).check(table + 36, "1024");
    image().put(table + 8, [0xff; 4]).check(table + 8, "4194304");
    image().put(table + 8, [0; 4]).check(table + 8, "map the disk");
    image().put(table, (copied - 65_536).to_be_bytes()).check(copied - 65_536 + 8, "L1 table");
    image().put(table, 0x201_u64.to_be_bytes()).check(table, "start of a cluster");
    image().put(table + 40, u64::MAX.to_be_bytes()).check(table + 40, "maps");
    image().put(table + 40, [0; 8]).check(table + 32, "disk alone");
    image().put(table + 48, u64::MAX.to_be_bytes()).check(table + 8, "map the disk");
    // L1.
    image().put(l1, (l2 | 1).to_be_bytes()).check(l1, "no bit but");
    image().put(l1, (l2 + 512).to_be_bytes()).check(l1, "start of a cluster");
    image().put(l1, (1_u64 << 40).to_be_bytes()).check(l1, "inside the file");
    // L2: reserved bits, itself, not a cluster's start, behind the end, more than there is.
    let entry = image().be64(l2);
    image().put(l2, (entry | 2).to_be_bytes()).check(l2, "reserved");
    image().put(l2, l2.to_be_bytes()).check(l2, "in a table");
    image().put(l2, table.to_be_bytes()).check(l2, "in a table");
    let own = image().be64(table);
    image().put(l2, own.to_be_bytes()).check(l2, "in a table");
    image().put(l1, own.to_be_bytes()).check(l1, "part of another table");
    // Less than a cluster, at the file's end.
    image().put(l1, table.to_be_bytes()).check(l1, "inside the file");
    image().put(l2, (entry + 512).to_be_bytes()).check(l2, "cluster's start");
    image().put(l2, (1_u64 << 40).to_be_bytes()).check(1 << 40, "left");
    image().put(l2, (1_u64 << 62 | len).to_be_bytes()).check(l2, "inside the file");
    let mut everywhere = image();
    for number in 0..8192 {
        everywhere = everywhere.put(l2 + number * 8, entry.to_be_bytes());
    }
    let error = everywhere.read().unwrap_err();
    assert!(error.to_string().contains("no more than the file has"), "{error}");
}

#[test]
fn refuses_an_l2_table_that_is_there_twice() {
    let image = Tampered::with("savevm-7.2-v2-small-clusters");
    let (l1, l2, offset) = (image.l1(), image.l2(), image.be64(image.table()));
    image.put(l1 + 8, l2.to_be_bytes()).check(offset, "twice");
}

#[test]
fn a_compressed_cluster_that_does_not_unpack_is_an_error_at_its_place() {
    for name in ["disk-7.2-deflate", "disk-7.2-zstd"] {
        let mut image = Tampered::with(name);
        let places: Vec<_> = {
            let qcow2 = Qcow2::open(image.0.as_slice()).unwrap();
            let state = qcow2.vm_state(&qcow2.snapshots()[0]).unwrap();
            let compressed = state.runs().map(Result::unwrap).filter_map(|run| match run.source {
                RunSource::Compressed { offset, .. } => Some(offset),
                _ => None,
            });
            compressed.collect()
        };
        image.0[places[0] as usize..][..8].fill(0xff);
        image.check(places[0], "compressed cluster");
    }
}

#[test]
fn an_image_cut_anywhere_is_read_to_there_or_refused() {
    let whole = Tampered::with("savevm-7.2");
    for len in (0..4096).chain((4096..whole.0.len()).step_by(4093)) {
        let cut = Tampered(whole.0[..len].to_vec());
        // The second snapshot is behind the first: some cuts leave that whole.
        if let Ok(read) = cut.read() {
            assert!(read >= whole.be64(whole.table() + 40) && len > whole.0.len() / 2);
        }
        assert!(len >= 72 || cut.read().is_err());
    }
}

#[test]
fn no_bit_of_a_header_or_table_hangs_or_breaks_it() {
    for name in SAVEVM.into_iter().chain(DISKS) {
        let image = Tampered::with(name);
        let (table, l1, l2) = (image.table(), image.l1(), image.l2());
        let large = image.0.len() > 4 << 20;
        let step = if large { 29 } else { 7 };
        let places = [(0, 112), (table, 80), (l1, 16), (l2, 128)];
        let end = image.0.len() as u64 * 8;
        for bit in places.iter().flat_map(|(at, len)| (at * 8..end.min((at + len) * 8)).step_by(step)) {
            let mut image = Tampered(image.0.clone());
            image.0[(bit / 8) as usize] ^= 1 << (bit % 8);
            let _ = image.read();
        }
    }
}
