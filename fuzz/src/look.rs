//! Looking at all that a stream holds, and what must hold of any that is read.

use std::collections::BTreeMap;

use ramlift::{
    BlockOffset, DeviceJson, Error, IteratedJson, Page, Ram, RecordContent, Section, SectionType, Stream,
};
use serde::Serialize;

use super::images::Images;

/// Pages that are looked at one by one.
const PAGES: usize = 64;

/// Looks at everything.
pub fn look_through(stream: &Stream<'_>, bytes: &[u8]) {
    look_at_sections(stream, bytes);
    check_json(stream);
    stream.warnings().iter().for_each(|warning| check_text(&warning.to_string()));
    stream.check_whole().unwrap_or_else(|error| check_error(&error, bytes));
    if let Some(ram) = stream.ram() {
        look_at_ram(stream, ram, bytes);
    }
}

/// Checks what is said of a failure.
pub fn check_error(error: &Error, bytes: &[u8]) {
    check_message(error);
    if let Some(at) = error.offset() {
        assert!(at.0 <= bytes.len() as u64, "{error}: at {at}, of {:#x} bytes", bytes.len());
    }
}

/// Checks what is said of a failure, which may be of a place that is not there.
pub fn check_message(error: &Error) {
    check_text(&error.to_string());
    if let Some(hint) = error.hint() {
        check_text(hint);
    }
}

/// Messages go to terminals: names of the stream stand escaped in them.
pub fn check_text(text: &str) {
    // The longest lists 16 snapshots by name and id, 255 bytes each, escaped.
    assert!(!text.is_empty() && text.len() < 36 << 10, "a message of {} bytes", text.len());
    assert!(text.chars().all(ramlift::Idstr::is_plain), "a message that a terminal obeys: {text:?}");
}

fn look_at_sections(stream: &Stream<'_>, bytes: &[u8]) {
    for section in stream.sections() {
        // Behind damage a section may be met inside its body.
        let has_head = section.offset < section.body || !stream.losses().is_empty();
        assert!(has_head && section.body <= section.body_end, "{section:?}");
        assert!(section.body_end.0 <= bytes.len() as u64, "{section:?}");
        assert_eq!(stream.body(section), &bytes[section.body.0 as usize..section.body_end.0 as usize]);
        check_text(&section.handler.to_string());
    }
    for command in stream.commands() {
        assert_eq!(stream.command_data(command).len(), usize::from(command.len));
    }
    assert!(stream.end().0 <= bytes.len() as u64);
    stream.devices().for_each(|device| _ = device.pieces().map(Iterator::count));
    let fulls = stream.sections().iter().filter(|section| section.kind == SectionType::Full).count();
    assert_eq!(stream.devices().count(), fulls);
}

/// Checks that records stand one behind the other from the head of a stream to
/// its end: that each byte is in a section, its footer, a command or the
/// description.
pub fn check_every_byte(stream: &Stream<'_>, bytes: &[u8]) {
    let footer_len = if stream.has_footers() { 5 } else { 0 };
    let place = |section: &Section| (section.offset.0, section.body_end.0 + footer_len);
    let sections = stream.sections().iter().map(place);
    let commands = stream
        .commands()
        .iter()
        .map(|command| (command.offset.0, command.offset.0 + 5 + u64::from(command.len)));
    let places: BTreeMap<u64, u64> = sections.chain(commands).collect();
    assert_eq!(places.len(), stream.sections().len() + stream.commands().len(), "records begin at one place");
    let mut at = places.first_key_value().map_or(stream.end().0, |(first, _)| *first);
    assert!(
        at == 8 || stream.configuration().is_some() || places.is_empty(),
        "the first record is at {at:#x}"
    );
    for (start, end) in places {
        assert_eq!(start, at, "a record does not stand where the one before it ends");
        at = end;
    }
    let end = stream.end().0;
    match stream.description() {
        Some(found) => {
            assert_eq!(bytes[at as usize..][..2], [0, 6], "EOF, description");
            assert_eq!((found.offset.0, found.offset.0 + found.text.len() as u64), (at + 6, end));
        }
        // The byte that ends the records; what may follow is warned of.
        None => assert!(end >= at, "the stream ends at {end:#x}, its last record at {at:#x}"),
    }
}

/// Checks that JSON is JSON, and the same twice.
fn check_json(stream: &Stream<'_>) {
    for device in stream.devices() {
        let json = check_twice(|| DeviceJson::of(device));
        let is_decoded = device.decode().is_ok();
        let status = json["status"] == "decoded";
        assert!(status || !is_decoded || device.desc.is_none(), "{json}");
    }
    for iterated in stream.iterated() {
        check_twice(|| IteratedJson::of(iterated.clone()));
    }
    stream.iterated().for_each(|iterated| _ = iterated.pieces().count());
}

fn check_twice<T: Serialize>(make: impl Fn() -> T) -> serde_json::Value {
    let text = serde_json::to_string(&make()).expect("it is serialised");
    assert!(text == serde_json::to_string(&make()).unwrap(), "not the same twice");
    serde_json::from_str(&text).unwrap_or_else(|why| panic!("{why}: {text}"))
}

fn look_at_ram(stream: &Stream<'_>, ram: &Ram<'_>, bytes: &[u8]) {
    let records: Vec<_> = stream.page_records().collect();
    for (id, block, pages) in ram.blocks() {
        check_text(&block.idstr.to_string());
        let all = ram.page_size().pages_in(block.used_length);
        assert!(pages.data_pages() + pages.fill_pages() <= all, "{} has more pages than fit", block.idstr);
        let mut end = 0;
        let (mut data, mut fill) = (0, 0);
        for run in pages.runs(BlockOffset(0), BlockOffset(u64::MAX)) {
            assert!(run.pages > 0 && run.offset.0 >= end, "{run:?} begins before {end:#x}");
            end = run.offset.0 + run.pages * ram.page_size().bytes();
            let is_fill = matches!(run.content, ramlift::RunContent::Fill(_));
            *(if is_fill { &mut fill } else { &mut data }) += run.pages;
        }
        assert!(end <= all * ram.page_size().bytes());
        assert_eq!((data + fill, fill), (pages.data_pages() + pages.fill_pages(), pages.fill_pages()));
        for offset in [0, block.used_length / 2, block.used_length, u64::MAX] {
            drop(ram.page(id, BlockOffset(offset)));
        }
    }
    let one = Images::scattered(ram, 1);
    let two = Images::scattered(ram, 2);
    match (one, two) {
        (Ok(one), Ok(two)) => {
            assert!(one == two, "one thread made {one:?}, two made {two:?}");
            check_pages(ram, &one, &records);
        }
        (Err(one), Err(two)) => {
            check_error(&one, bytes);
            check_error(&two, bytes);
        }
        (one, two) => panic!("one thread: {:?}, two: {:?}", one.err(), two.err()),
    }
}

/// Checks single pages against the images, and records against pages.
fn check_pages(ram: &Ram<'_>, images: &Images, records: &[ramlift::PageRecord]) {
    let step = records.len().div_ceil(PAGES).max(1);
    for record in records.iter().step_by(step) {
        let len = ram.block(record.block).unwrap().used_length;
        assert!(record.offset.0 < len, "{record:?} is outside of its block");
        let page_len = ram.page_size().bytes().min(len - record.offset.0) as usize;
        let image = images.bytes(record.block.0, record.offset.0, page_len);
        let page = match ram.page(record.block, record.offset).expect("the scatter has read it") {
            // Changes of a page that was never sent.
            Page::Absent if record.content == RecordContent::Xbzrle => vec![0; page_len],
            Page::Absent => panic!("{record:?} is absent"),
            Page::Fill(byte) => vec![byte; page_len],
            Page::Data(data) => data[..page_len].to_vec(),
        };
        assert!(page == image, "{record:?}: the page and its image differ");
    }
}
