//! Streams that go by: all is as if they could be gone back to.

use std::io::Cursor;

use ramlift::{
    BlockPages, Description, DeviceJson, ErrorKind, Incoming, Kept, Progress, Ram, SectionType, Stream,
};

use super::images::{Images, Passing};
use super::look::check_error;
use super::synth::FOOTER;

/// The first byte says how much is read at a time.
pub fn run(bytes: &[u8]) {
    let Some((first, bytes)) = bytes.split_first() else { return };
    check_going_by(bytes, chunk_len(*first));
}

/// Chunks of a few bytes, and of more than most streams here have.
pub fn chunk_len(byte: u8) -> usize {
    const LENS: [usize; 8] = [1, 7, 13, 64, 500, 4096, 5000, 1 << 20];
    LENS[usize::from(byte) % LENS.len()]
}

/// Chunks that a stream is read in at most: each costs two threads a turn.
const CHUNKS: usize = 10;

/// Reads a stream both ways and compares.
pub fn check_going_by(bytes: &[u8], chunk_len: usize) {
    let kept = Kept::new();
    let chunk_len = chunk_len.max(bytes.len() / CHUNKS);
    let mut passing = Passing::default();
    let incoming = Incoming::new("pipe", Cursor::new(bytes.to_vec())).with_chunk_len(chunk_len);
    let passed = Stream::read_once(incoming, &kept, &Progress::new(), &mut passing);
    match (Stream::parse(bytes), passed) {
        (Ok(whole), _) if is_misled(&whole) => {}
        (Ok(whole), Ok(passed)) => check_same(&whole, &passed, &passing.images, bytes),
        (Ok(whole), Err(error)) => {
            check_error(&error, bytes);
            let is_expected = may_fail(&whole, &error) || early_devices(&whole).next().is_some();
            assert!(is_expected, "read at once it is whole; as it goes by: {error}");
        }
        (Err(error), Ok(passed)) => {
            check_error(&error, bytes);
            if is_told_late(&passed, bytes) || early_devices(&passed).next().is_some() {
                return;
            }
            panic!("read at once: {error}; as it goes by it has {} sections", passed.sections().len());
        }
        (Err(error), Err(passed)) => {
            check_error(&error, bytes);
            check_error(&passed, bytes);
        }
    }
}

/// Whether what goes by can fail where the whole stream does not: if it has to
/// be gone back in, or if pages cannot be decoded, which the walk alone does
/// not do.
fn may_fail(whole: &Stream<'_>, error: &ramlift::Error) -> bool {
    let is_scattered = || whole.ram().is_none_or(|ram| Images::scattered(ram, 1).is_ok());
    matches!(error.kind(), ErrorKind::GoneBy { .. } | ErrorKind::TooMuchToKeep { .. }) || !is_scattered()
}

/// Devices before the end of RAM. Where they end, what goes by has to believe their
/// footers: the description, which knows better or worse, is yet to come.
fn early_devices<'s>(stream: &'s Stream<'_>) -> impl Iterator<Item = &'s ramlift::Section> {
    let sections = stream.sections();
    let is_end =
        |section: &ramlift::Section| section.kind == SectionType::End && section.handler.idstr == *"ram";
    let end = sections.iter().position(is_end).unwrap_or(sections.len());
    sections.iter().take(end).filter(|section| section.kind == SectionType::Full)
}

/// Whether one of them has its own footer in its body.
fn is_misled(whole: &Stream<'_>) -> bool {
    early_devices(whole).any(|section| {
        let footer = [&[FOOTER], section.handler.section_id.to_be_bytes().as_slice()].concat();
        whole.body(section).windows(footer.len()).any(|bytes| bytes == footer)
    })
}

fn check_same(whole: &Stream<'_>, passed: &Stream<'_>, images: &Images, bytes: &[u8]) {
    let section = |section: &ramlift::Section| {
        (section.offset, section.kind, section.handler.clone(), section.body, section.body_end)
    };
    let sections = |stream: &Stream<'_>| stream.sections().iter().map(section).collect::<Vec<_>>();
    assert_eq!(sections(whole), sections(passed));
    assert_eq!(whole.commands(), passed.commands());
    assert_eq!((whole.end(), whole.has_footers()), (passed.end(), passed.has_footers()));
    assert_eq!(whole.description().map(|found| found.text), passed.description().map(|found| found.text));
    assert!(devices(whole) == devices(passed), "devices are not decoded alike");
    if is_told_late(passed, bytes) {
        return;
    }
    assert_eq!(whole.warnings(), passed.warnings());
    match (whole.ram(), passed.ram()) {
        (Some(ram), Some(passed)) => check_same_ram(ram, passed, images),
        (ram, passed) => assert_eq!(ram.is_none(), passed.is_none()),
    }
}

/// Whether the description alone tells that pages are of another size, which it
/// does when all of them have gone by: a warning says it then, if it is the
/// stream's.
fn is_told_late(passed: &Stream<'_>, bytes: &[u8]) -> bool {
    let described = Description::at_end_of(bytes).and_then(|found| found.desc.page_size);
    let taken = passed.ram().map(|ram| ram.page_size().bytes());
    described.zip(taken).is_some_and(|(described, taken)| described != taken)
}

fn check_same_ram(ram: &Ram<'_>, passed: &Ram<'_>, images: &Images) {
    assert_eq!(ram.page_size(), passed.page_size());
    assert_eq!((ram.pass_count(), ram.pages_per_pass()), (passed.pass_count(), passed.pages_per_pass()));
    for (id, _, pages) in ram.blocks() {
        let other = passed.pages(id).expect("the same blocks");
        let counts = |pages: &BlockPages<'_>| (pages.fill_pages(), pages.data_pages(), pages.resent_pages());
        assert_eq!(counts(pages), counts(other), "{id:?}");
    }
    if let Ok(expected) = Images::scattered(ram, 2) {
        assert!(expected == *images, "read at once: {expected:?}; as it goes by: {images:?}");
    }
}

fn devices(stream: &Stream<'_>) -> Vec<String> {
    stream.devices().map(|device| serde_json::to_string(&DeviceJson::of(device)).unwrap()).collect()
}
