//! What hostile streams are held against: time, memory, and what may be left.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ramlift::{
    BlockId, BlockOffset, DeviceJson, Error, ErrorKind, ImageSink, IteratedJson, Progress, Stream, scatter,
};

use super::cli::{Output, Workplace, entries_of, ramlift_within};
use super::synth::{Block, Records, Synth};

/// What any of these may take. Most take milliseconds; the rest are there to
/// catch what grows with the square of the input.
pub const TIME: Duration = Duration::from_secs(10);

/// Address space, in KiB, for runs whose memory must not follow a claim.
pub const MEMORY_KIB: u64 = 1 << 20;

#[track_caller]
pub fn in_time<T>(work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let done = work();
    assert!(start.elapsed() < TIME, "took {:?}", start.elapsed());
    done
}

/// Checks that a stream fails with this kind of error at this place, in a
/// section of this name, and that the command leaves nothing behind.
#[track_caller]
pub fn check(stream: &[u8], at: u64, section: &str, is_expected: fn(&ErrorKind) -> bool) {
    let error = in_time(|| Stream::parse(stream).err()).expect("the stream is refused");
    assert!(is_expected(error.kind()), "{error:?}");
    assert_eq!(error.offset().map(|at| at.0), Some(at), "{error:?}");
    let place = Workplace::with(stream);
    for args in [&["extract", "stream"][..], &["info", "stream"], &["state", "stream"]] {
        let output = in_time(|| place.ramlift(args)).expect_code(1);
        assert_eq!(output.text(), "");
        assert!(output.stderr.contains(section), "{}", output.stderr);
        assert!(output.stderr.contains(&format!("{at:#x}")), "{}", output.stderr);
        assert_eq!(entries_of(place.path()), ["stream"]);
    }
}

/// Checks that a stream's RAM can be had although its description is of no
/// use, and that the command says so.
#[track_caller]
pub fn check_description(text: impl AsRef<[u8]>) {
    let stream = one_page().undescribed(3, "timer", 0, &[1, 2, 3]).describe(text);
    let place = Workplace::with(&stream);
    let output = in_time(|| place.ramlift(&["extract", "stream", "-o", "out"])).expect_code(3);
    assert_eq!(place.read("out/main.ram"), [0x55; 4096]);
    assert!(!output.stderr.is_empty());
    let state = place.json("out/state.json");
    assert_eq!(state["devices"][0]["bytes"], "010203");
    in_time(|| place.ramlift(&["info", "stream"])).expect_code(3);
    in_time(|| place.ramlift(&["state", "stream"])).expect_code(3);
}

/// Checks that a device is not decoded by these fields, in time and memory,
/// and that the one behind it is.
#[track_caller]
pub fn check_undecoded(fields: &str, body: &[u8]) {
    let output = state_within(fields, body).expect_code(3);
    let devices = &output.json()["devices"];
    assert_eq!(devices[0]["status"], "undecoded");
    assert_eq!(devices[1]["state"]["on"], true);
}

#[track_caller]
pub fn state_within(fields: &str, body: &[u8]) -> Output {
    let behind = r#"{"name": "on", "type": "bool", "size": 1}"#;
    let stream = one_page().device(3, "dut", body, fields).device(4, "behind", &[1], behind).finish();
    let place = Workplace::with(&stream);
    in_time(|| ramlift_within(MEMORY_KIB, place.path(), &["state", "stream"]))
}

pub fn one_page() -> Synth {
    Synth::machine().ram(&[Block::new("main.ram", 0x1000)], Records::new().fill("main.ram", 0, 0x55))
}

pub fn two_pages() -> Synth {
    Synth::machine().ram_start(&[Block::new("main.ram", 0x2000), Block::new("vga.vram", 0x1000)])
}

/// Reads all that can be read of a stream.
pub fn exercise(stream: &[u8]) -> Result<(), Error> {
    let stream = Stream::parse(stream)?;
    for device in stream.devices() {
        serde_json::to_writer(std::io::sink(), &DeviceJson::of(device)).unwrap();
    }
    for iterated in stream.iterated() {
        serde_json::to_writer(std::io::sink(), &IteratedJson::of(iterated)).unwrap();
    }
    let Some(ram) = stream.ram() else { return Ok(()) };
    let ids: Vec<BlockId> = ram.blocks().map(|(id, ..)| id).collect();
    for id in &ids {
        let len = ram.block(*id).unwrap().used_length;
        for offset in [0, 0x1000, len / 2, len.wrapping_sub(1), u64::MAX] {
            drop(ram.page(*id, BlockOffset(offset)));
        }
        ram.absent_pages(*id);
    }
    stream.page_records().count();
    let sink = Bounded {
        lens: ram.blocks().map(|(_, block, _)| block.used_length).collect(),
        written: AtomicU64::new(0),
    };
    scatter(ram, &ids, &sink, &Progress::new())?;
    let held = stream.page_records().count() as u64;
    // A page, and a gap of zeros between two pieces, for each record.
    assert!(sink.written.into_inner() <= held * (128 << 10));
    Ok(())
}

/// A sink that minds the ends of the blocks.
pub struct Bounded {
    lens: Vec<u64>,
    written: AtomicU64,
}

impl ImageSink for Bounded {
    fn write(&self, block: BlockId, offset: BlockOffset, data: &[u8]) -> Result<(), Error> {
        let end = offset.checked_add(data.len() as u64).unwrap();
        assert!(end.0 <= self.lens[block.0], "{block:?} written up to {end}");
        self.written.fetch_add(data.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}
