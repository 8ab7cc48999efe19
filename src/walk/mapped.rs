//! What a salvage has to say of mapped-ram: pages behind a cut, and pages that
//! no bitmap vouches for.
//!
//! ```text
//! entry header bitmap pages | entry header bitmap pages ###| entry …
//!              ▲ blank: not written                    ▲ cut ▲ not listed
//! ```

use crate::loss::DoubtfulPage;
use crate::ram::mapped::MappedPages;
use crate::ram::{BlockPages, Ram, RamBlock, RunContent};
use crate::units::{BlockId, BlockOffset};
use crate::walked::{Walked, Warning};

/// Notes it when all losses are known.
pub(super) fn note(walked: &mut Walked<'_>) {
    let Some(ram) = walked.ram.as_ref().filter(|ram| ram.is_mapped()) else { return };
    let lost = walked.losses.iter_mut().find(|loss| loss.is_in_ram);
    if let Some((loss, behind)) = lost.zip(behind(ram)) {
        loss.why = format!("{behind}: {}", loss.why);
    }
    for (id, block, pages) in ram.blocks() {
        let Some(mapped) = pages.as_mapped() else { continue };
        if mapped.is_by_content() {
            walked.doubtful.extend(data_runs(id, pages));
        }
        let text = unvouched(ram, block, mapped);
        let offset = Some(block.offset);
        walked.warnings.extend(text.map(|text| Warning { offset, text, is_loss: true }));
    }
}

/// What of the list, and of the pages in it, stands behind where it ends.
fn behind(ram: &Ram<'_>) -> Option<String> {
    let (id, block, pages) = ram.blocks().last()?;
    let count = pages.as_mapped().map_or(ram.absent_pages(id), MappedPages::cut_count);
    let pages = || format!("{count} pages of RAM block \"{}\"", block.idstr);
    let blocks = || format!("RAM blocks of {:#x} bytes that are not listed before", ram.unlisted());
    match (count, ram.unlisted()) {
        (0, 0) => None,
        (_, 0) => Some(pages()),
        (0, _) => Some(blocks()),
        _ => Some(format!("{}, and {}", pages(), blocks())),
    }
}

/// What the bitmap does not say, or may say wrongly.
fn unvouched(ram: &Ram<'_>, block: &RamBlock, mapped: &MappedPages<'_>) -> Option<String> {
    let idstr = &block.idstr;
    if mapped.is_by_content() {
        let (data, _) = mapped.counts();
        return Some(format!(
            "RAM block \"{idstr}\": no bit of its bitmap is set, and nothing shows that it was written: {data} pages are taken by their content, the others were zero or not written yet"
        ));
    }
    let left_out = if ram.has_ended() { 0 } else { mapped.left_out(ram.input()) };
    (left_out > 0).then(|| {
        format!(
            "RAM block \"{idstr}\": {left_out} pages that its bitmap leaves out have content: what they held before they were zero, or the bitmap is an older one"
        )
    })
}

fn data_runs<'r>(block: BlockId, pages: &'r BlockPages<'_>) -> impl Iterator<Item = DoubtfulPage> + 'r {
    let runs = pages.runs(BlockOffset(0), BlockOffset(u64::MAX));
    runs.filter_map(move |run| match run.content {
        RunContent::Data { first, .. } => {
            Some(DoubtfulPage { block, offset: run.offset, pages: run.pages, payload: first })
        }
        _ => None,
    })
}
