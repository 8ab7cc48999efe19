//! Salvage: the walk, and a way on behind what is cut or damaged.
//!
//! ```text
//! … records records ###### records … EOS 7e id 02 id records …  04 id name body 7e id …  00 06 len {…}
//!        kept       lost   ▲ resumed      ▲ or here              ▲ or here             ▲ or here
//! ```
//!
//! Where the walk ends with an error, the bytes behind are searched for a
//! place where it can go on: page records that lead on, the footer of a known
//! section with a record behind it, the header of a section, or the end of the
//! records where the description says that it is. What lies between is a
//! [`Loss`]. Nothing is guessed: pages whose block is not certain are lost too.
//!
//! The search goes over each byte once. What costs more, looking for the end
//! of a device through all of the input, has a budget.

mod described;
mod likely;
mod search;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use likely::Likely;

use super::{Walk, mapped};
use crate::bytes::Bytes;
use crate::cursor::Cursor;
use crate::error::{Error, ErrorKind, Result};
use crate::header::{read_configuration, read_magic};
use crate::loss::{DoubtfulPage, Loss};
use crate::progress::Progress;
use crate::ram::resync::{Attribution, FirstRecord};
use crate::ram::{PageRecord, PageSizeHint};
use crate::section::{Footers, Handler, Section, SectionType, read_handler};
use crate::units::{BlockId, StreamOffset};
use crate::walked::{Walked, Warning};
use crate::wire::{limit, record};

/// How far the footer of a device is looked for that nothing describes.
const UNDESCRIBED_LEN: usize = 1 << 20;

/// Losses that have a warning of their own.
const WARNED_LOSSES: usize = 64;

/// Walks a damaged stream. `error` is what the walk without salvage met: it is
/// given back if nothing can be had.
pub(crate) fn salvage<'a>(input: Bytes<'a>, progress: &Progress, error: Error) -> Result<Walked<'a>> {
    let mut late_page_size = None;
    loop {
        let mut salvage = match Salvage::begin(input, late_page_size, progress) {
            Some(salvage) if !is_other_file(&error) => salvage,
            _ => return Err(error),
        };
        salvage.run();
        let late = salvage.walk.late_page_size();
        match late.and_then(|size| PageSizeHint::late(late_page_size, size)) {
            Some(hint) => late_page_size = Some(hint),
            None if salvage.walk.sections.is_empty() => return Err(error),
            None => return Ok(salvage.finish()),
        }
    }
}

/// Whether the input is known to be something else than a stream.
fn is_other_file(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::NotAStream { looks_like: Some(_), .. })
}

impl Walk<'_, '_> {
    /// Whether the walk has met an EOF byte where no stream ends: in the midst
    /// of RAM or before the first device, with other bytes behind. Zeros over
    /// the header of a section look like that.
    pub(super) fn ends_early(&self) -> bool {
        let is_in_the_midst = self.ram.has_started() && (self.ram_is_iterating || self.full_count == 0);
        is_in_the_midst && self.description.is_none() && !self.behind().is_zero()
    }
}

/// Where the walk goes on.
#[derive(Clone, Copy)]
enum Resume {
    /// A record begins here.
    Record(StreamOffset),
    /// Page records begin here, or the end word of a body.
    Pages(StreamOffset),
}

/// The walk ended here.
struct Failure {
    /// Where what cannot be read begins.
    at: StreamOffset,
    /// The section that it is inside of.
    section: Option<Section>,
    is_in_ram_body: bool,
    error: Error,
}

struct Salvage<'a, 'p> {
    walk: Walk<'a, 'p>,
    ram: Option<Arc<Handler>>,
    /// Before this nothing is resumed any more.
    floor: StreamOffset,
    /// Up to here CONTINUE is known to be of no certain block.
    unattributed: StreamOffset,
    /// Records of which only a gap's length tells the block.
    likely: Likely,
    /// Name and instance of each described device, as in its header, and
    /// which it is.
    described: HashMap<Box<[u8]>, usize>,
    /// Ids of FULL sections that have been read.
    seen: HashSet<u32>,
    seen_sections: usize,
    vain_budget: u64,
    losses: Vec<Loss>,
    doubtful: Vec<DoubtfulPage>,
}

impl<'a, 'p> Salvage<'a, 'p> {
    /// `None` if there is neither a head that can be read, nor a `ram` section.
    fn begin(input: Bytes<'a>, late_page_size: Option<PageSizeHint>, progress: &'p Progress) -> Option<Self> {
        let error = match Walk::new(input, late_page_size, progress) {
            Ok(walk) => return Some(Self::new(walk)),
            Err(error) => error,
        };
        let start = Cursor::new(input.slice(), StreamOffset(0));
        let mut head = start;
        let at = if read_magic(&mut head).is_ok() { head } else { start };
        // What of the configuration can be read is not kept: it is not whole.
        let _ = read_configuration(&mut head);
        let mut salvage = Self::new(Walk::begin(input, at, None, late_page_size, progress));
        let failure = Failure { at: at.offset(), section: None, is_in_ram_body: false, error };
        salvage.go_on(failure).then_some(salvage)
    }

    fn new(mut walk: Walk<'a, 'p>) -> Self {
        walk.ram.take_content();
        let vain_budget = walk.input.data_len().saturating_mul(limit::VAIN_SCANS);
        Self {
            walk,
            ram: None,
            floor: StreamOffset::default(),
            unattributed: StreamOffset::default(),
            likely: Likely::default(),
            described: HashMap::new(),
            seen: HashSet::new(),
            seen_sections: 0,
            vain_budget,
            losses: Vec::new(),
            doubtful: Vec::new(),
        }
    }

    fn run(&mut self) {
        loop {
            let failure = match self.walk.run() {
                Err(error) => self.failure(error),
                Ok(()) if self.walk.ends_early() => self.false_end(),
                Ok(()) => return,
            };
            if !self.go_on(failure) {
                return;
            }
        }
    }

    /// Takes back what the walk made of an EOF byte that is none.
    fn false_end(&mut self) -> Failure {
        let at = self.walk.record;
        self.walk.warnings.retain(|warning| warning.offset < Some(at));
        self.walk.has_searched = false;
        let error = Error::at(at, ErrorKind::RecordType { met: record::QEMU_VM_EOF });
        Failure { at, section: None, is_in_ram_body: false, error }
    }

    /// Where the walk stands that ended with `error`.
    fn failure(&self, error: Error) -> Failure {
        let is_order = matches!(error.kind(), ErrorKind::SectionOrder { .. });
        let section = self.section_at(self.walk.record);
        let first_record = self.walk.ram.first_record();
        let is_in_ram_body = section.as_ref().is_some_and(|section| {
            let has_list = self.walk.ram.has_started()
                && (section.kind != SectionType::Start || first_record > section.body);
            section.handler.idstr == *"ram" && section.kind != SectionType::Full && has_list && !is_order
        });
        let here = self.walk.ram.cut_at().unwrap_or(self.walk.cursor.offset());
        let at = if is_in_ram_body { here } else { self.walk.record };
        Failure { at, section, is_in_ram_body, error }
    }

    /// The section whose header stands at `offset`, up to where the walk is.
    fn section_at(&self, offset: StreamOffset) -> Option<Section> {
        let mut cursor = self.cursor(offset)?;
        let kind = SectionType::of(cursor.u8().ok()?)?;
        let handler = match kind {
            SectionType::Start | SectionType::Full => {
                let met = read_handler(&mut cursor).ok()?;
                self.walk.handlers.get(met.section_id).filter(|known| ***known == met)
            }
            SectionType::Part | SectionType::End => self.walk.handlers.get(cursor.be32().ok()?),
        };
        let (body, body_end) = (cursor.offset(), self.walk.cursor.offset());
        let handler = Arc::clone(handler.filter(|_| body <= body_end)?);
        Some(Section { offset, kind, handler, body, body_end })
    }

    fn cursor(&self, at: StreamOffset) -> Option<Cursor<'a>> {
        self.walk.input.cursor(at)
    }

    /// Goes on behind a failure. False if there is nothing to go on with.
    fn go_on(&mut self, mut failure: Failure) -> bool {
        loop {
            let from = self.note_failure(&failure);
            if let Some(behind) = self.end_device(&failure) {
                return self.seek(behind);
            }
            match self.search(from, &failure) {
                Some(Resume::Record(at)) => {
                    self.lose(&failure, at, None);
                    return self.seek(at);
                }
                Some(Resume::Pages(at)) => match self.read_pages(at, &failure) {
                    Ok(()) => return true,
                    Err(next) => failure = next,
                },
                None => {
                    let end = StreamOffset(self.walk.input.len() as u64);
                    self.lose(&failure, end, None);
                    self.walk.cursor = Cursor::new(&[], end);
                    return false;
                }
            }
        }
    }

    /// Notes what is known of a section that ends with a failure. Gives where
    /// to look for what comes behind.
    fn note_failure(&mut self, failure: &Failure) -> StreamOffset {
        if self.ram.is_none() {
            self.ram = self.walk.handlers.ram().cloned();
        }
        let sections = self.walk.sections.get(self.seen_sections..).unwrap_or_default();
        let full = sections.iter().filter(|section| section.kind == SectionType::Full);
        self.seen.extend(full.map(|section| section.handler.section_id));
        self.seen_sections = self.walk.sections.len();
        self.likely.end_at(failure.at);
        self.locate(failure.at);
        let Some(section) = failure.section.as_ref().filter(|_| failure.is_in_ram_body) else {
            if failure.section.as_ref().is_some_and(|section| section.kind == SectionType::Full) {
                // Holes are no work.
                let gone = (self.walk.input.len() as u64 - failure.at.0).min(self.walk.input.data_len());
                self.vain_budget = self.vain_budget.saturating_sub(gone);
            }
            return StreamOffset(failure.at.0 + 1).max(self.floor);
        };
        let section = section.clone();
        if section.body < failure.at || section.kind == SectionType::Start {
            self.walk.sections.push(Section { body_end: failure.at, ..section.clone() });
        }
        // Pages that the input ends among are not searched.
        let cut = self.walk.ram.cut_at().map(|_| self.walk.cursor.offset());
        cut.or_else(|| self.doubt_last(&section, failure)).unwrap_or(failure.at).max(self.floor)
    }

    /// Doubts the page before a bad record: where damage shows is not where it
    /// begins. Gives where to look for records then: bytes may be missing, and
    /// what the page ends with be the begin of another.
    fn doubt_last(&mut self, section: &Section, failure: &Failure) -> Option<StreamOffset> {
        let (last, end) = self.walk.ram.last_record()?;
        let is_cut = matches!(failure.error.kind(), ErrorKind::Truncated { .. });
        if end != failure.at || last.payload < section.body || is_cut || !self.walk.ram.has_current() {
            return None;
        }
        let PageRecord { block, offset, payload, .. } = last;
        self.doubtful.push(DoubtfulPage { block, offset, pages: 1, payload });
        last.payload.checked_add(1)
    }

    /// Notes that the bytes from a failure up to `end` are lost.
    fn lose(&mut self, failure: &Failure, end: StreamOffset, why: Option<&str>) {
        let is_in_ram = self.is_in_ram(failure);
        if is_in_ram {
            self.walk.ram.resume(end, None);
        }
        let section = failure.section.as_ref().map(|section| section.handler.to_string());
        let offset = failure.at.min(end);
        let len = end.0.saturating_sub(failure.at.0);
        let why = why.map_or_else(|| failure.error.kind().to_string(), str::to_owned);
        self.note_loss(Loss { offset, len, why, section, is_in_ram });
    }

    /// Notes a loss, or that the one before goes on.
    fn note_loss(&mut self, loss: Loss) {
        let goes_on =
            |last: &&mut Loss| last.offset.0 + last.len == loss.offset.0 && last.section == loss.section;
        match self.losses.last_mut().filter(goes_on) {
            Some(last) => last.len += loss.len,
            None => self.losses.push(loss),
        }
    }

    /// Whether page records can be among what a failure has lost.
    fn is_in_ram(&self, failure: &Failure) -> bool {
        self.walk.ram.has_started() && (self.walk.ram_is_iterating || failure.is_in_ram_body)
    }

    fn seek(&mut self, at: StreamOffset) -> bool {
        self.floor = StreamOffset(at.0 + 1);
        if let Some(nth) = self.cursor(at).and_then(|cursor| self.described_at(cursor)) {
            self.walk.full_count = self.walk.full_count.max(nth);
        }
        self.cursor(at).map(|cursor| self.walk.cursor = cursor).is_some()
    }

    /// Reads the page records at `at` to the end of their body.
    fn read_pages(&mut self, at: StreamOffset, failure: &Failure) -> Result<(), Failure> {
        let (start, current, why) = self.first_certain(at, failure);
        // Of no length where records go on right there: others may be missing.
        self.lose(failure, start, why);
        self.walk.ram.resume(start, current);
        self.seek(start);
        let kind = failure.section.as_ref().filter(|_| failure.is_in_ram_body);
        let kind = kind.map_or(SectionType::Part, |section| section.kind);
        let kind = if kind == SectionType::End { kind } else { SectionType::Part };
        let fail = |this: &Self, error, is_in_ram_body| {
            let body_end = this.walk.cursor.offset();
            let handler = this.ram.clone();
            let section =
                handler.map(|handler| Section { offset: start, kind, handler, body: start, body_end });
            Failure { at: body_end, section, is_in_ram_body, error }
        };
        self.walk.ram.read_records(&mut self.walk.cursor).map_err(|error| fail(self, error, true))?;
        let Some(handler) = self.ram.clone() else { return Ok(()) };
        self.walk.end_section(start, kind, handler, start).map_err(|error| fail(self, error, true))
    }

    /// Where behind a gap records begin that are certain, and the block of
    /// those with CONTINUE.
    fn first_certain(
        &mut self,
        at: StreamOffset,
        failure: &Failure,
    ) -> (StreamOffset, Option<BlockId>, Option<&'static str>) {
        let Some(cursor) = self.cursor(at) else { return (at, None, None) };
        // Behind a whole header the first record is as good as any; only its
        // block is not known.
        let is_behind_header = at == failure.at && !self.walk.ram.has_current();
        let mut start = cursor;
        if !is_behind_header
            && let FirstRecord::Doubtful { end, block } = self.walk.ram.first_behind_gap(cursor)
        {
            start = self.cursor(end).unwrap_or(cursor);
            if block.is_some() {
                return (end, block, None);
            }
        }
        let is_known_unknown = start.offset() < self.unattributed;
        let step = |end| if is_known_unknown { None } else { self.next_body(end) };
        match self.walk.ram.attribute(start, step) {
            Attribution::Named => (start.offset(), None, None),
            Attribution::Known(block) => (start.offset(), Some(block), None),
            // Of records that are in one row, the first has said what can be said.
            Attribution::Unknown { likely: Some(likely), .. } if !is_known_unknown => {
                self.likely.add(start.offset()..likely.until);
                (start.offset(), Some(likely.block), None)
            }
            Attribution::Unknown { skipped, until, .. } => {
                self.unattributed = self.unattributed.max(until);
                (skipped, None, Some("page records of which nothing says what RAM block they belong to"))
            }
        }
    }

    /// From the end of a body of `ram` to the next one.
    fn next_body(&self, mut cursor: Cursor<'a>) -> Option<Cursor<'a>> {
        let id = self.ram.as_ref()?.section_id;
        if Footers::is_footer(&cursor, id) {
            cursor.array::<5>().ok()?;
        }
        let kind = cursor.u8().ok()?;
        let is_ram = matches!(kind, record::QEMU_VM_SECTION_PART | record::QEMU_VM_SECTION_END);
        (is_ram && cursor.be32().ok()? == id).then_some(cursor)
    }

    fn finish(self) -> Walked<'a> {
        let mut walked = self.walk.finish();
        walked.losses = self.losses;
        mapped::note(&mut walked);
        walked.warnings.extend(walked.losses.iter().take(WARNED_LOSSES).map(|loss| Warning {
            offset: Some(loss.offset),
            text: loss.to_string(),
            is_loss: true,
        }));
        if let Some(more) = walked.losses.get(WARNED_LOSSES..).filter(|more| !more.is_empty()) {
            let len: u64 = more.iter().map(|loss| loss.len).sum();
            let text = format!("lost: {len} bytes more, in {} ranges", more.len());
            walked.warnings.push(Warning { offset: None, text, is_loss: true });
        }
        if !self.doubtful.is_empty() {
            let text = format!(
                "pages before damage, which may reach into them: {}, the first is listed at {}",
                self.doubtful.len(),
                self.doubtful.first().map(|page| page.payload).unwrap_or_default()
            );
            walked.warnings.push(Warning { offset: None, text, is_loss: true });
        }
        let likely = walked.ram.as_ref().map(|ram| self.likely.pages(ram)).unwrap_or_default();
        if let Some(first) = likely.first() {
            let pages: u64 = likely.iter().map(|row| row.pages).sum();
            let text = format!(
                "pages of which nothing but how much was lost before them tells the RAM block: {pages}"
            );
            walked.warnings.push(Warning { offset: Some(first.payload), text, is_loss: true });
        }
        walked.described = described::described_sections(&walked);
        walked.doubtful.extend(self.doubtful);
        walked.doubtful.extend(likely);
        walked
    }
}
