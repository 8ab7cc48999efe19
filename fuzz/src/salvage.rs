//! The salvage, over any bytes.

use ramlift::{BlockOffset, Page, Progress, RunContent, Stream};

use super::look::{check_error, look_through};

pub fn run(bytes: &[u8]) {
    let stream = match Stream::salvage(bytes, &Progress::new()) {
        Ok(stream) => stream,
        Err(error) => {
            assert!(Stream::parse(bytes).is_err(), "what can be read can be salvaged: {error}");
            return check_error(&error, bytes);
        }
    };
    look_through(&stream, bytes);
    check_losses(&stream, bytes);
    check_claims(&stream, bytes);
    match Stream::parse(bytes) {
        Ok(whole) if stream.losses().is_empty() => {
            assert_eq!(whole.sections().len(), stream.sections().len());
            assert_eq!(whole.end(), stream.end());
        }
        Ok(_) => {}
        Err(error) => {
            let said = stream.warnings().iter().any(|warning| warning.is_loss);
            assert!(said || !stream.losses().is_empty(), "nothing is said of {error}");
        }
    }
}

/// Losses are in order, in the input, and in no section's header.
fn check_losses(stream: &Stream<'_>, bytes: &[u8]) {
    let mut end = 0;
    for loss in stream.losses() {
        assert!(loss.offset.0 >= end, "{loss:?} begins before {end:#x}");
        end = loss.offset.0 + loss.len;
        assert!(end <= bytes.len() as u64, "{loss:?} ends behind the input");
        assert!(!loss.to_string().chars().any(char::is_control), "{loss:?}");
    }
}

/// No page is claimed that no record proves: each has its bytes in a `ram`
/// section, and not in what is said to be lost.
fn check_claims(stream: &Stream<'_>, bytes: &[u8]) {
    let Some(ram) = stream.ram() else { return };
    let is_lost =
        |at: u64| stream.losses().iter().any(|loss| loss.offset.0 <= at && at < loss.offset.0 + loss.len);
    let in_ram = |at: u64| {
        let mut sections = stream.sections().iter().filter(|section| section.handler.idstr == *"ram");
        sections.any(|section| section.body.0 <= at && at <= section.body_end.0)
    };
    for (id, _, pages) in ram.blocks() {
        for run in pages.runs(BlockOffset(0), BlockOffset(u64::MAX)) {
            let (mut offset, step) = (run.offset.0, ram.page_size().bytes());
            for _ in 0..run.pages.min(64) {
                let at = pages.last_record(BlockOffset(offset)).map(|at| at.0);
                if let Some(at) = at {
                    assert!(in_ram(at) && !is_lost(at), "page {offset:#x} of {id:?} is claimed by {at:#x}");
                    assert!(at < bytes.len() as u64);
                }
                let page = ram.page(id, BlockOffset(offset)).expect("a salvage has only what can be had");
                assert!(
                    page != Page::Absent || matches!(run.content, RunContent::Fill(_)),
                    "{id:?} {offset:#x}"
                );
                offset += step;
            }
        }
    }
}
