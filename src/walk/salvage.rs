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

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use memchr::memmem;

use super::{Walk, mapped};
use crate::boundary::is_likely;
use crate::cursor::Cursor;
use crate::error::{Error, ErrorKind, Result};
use crate::header::{read_configuration, read_magic};
use crate::loss::{DoubtfulPage, Loss};
use crate::progress::Progress;
use crate::ram::block::RamLayout;
use crate::ram::resync::{Attribution, FirstRecord, RecordSearch};
use crate::ram::{PageRecord, PageSizeHint, RamReader};
use crate::section::{Footers, Handler, Section, SectionType, read_handler};
use crate::units::{BlockId, StreamOffset, index};
use crate::vmstate::DeviceDesc;
use crate::vmstate::locate::{self, Located};
use crate::walked::{Walked, Warning};
use crate::wire::{self, limit, record};

/// How far the footer of a device is looked for that nothing describes.
const UNDESCRIBED_LEN: usize = 1 << 20;

/// Losses that have a warning of their own.
const WARNED_LOSSES: usize = 64;

/// Walks a damaged stream. `error` is what the walk without salvage met: it is
/// given back if nothing can be had.
pub(crate) fn salvage<'a>(input: &'a [u8], progress: &Progress, error: Error) -> Result<Walked<'a>> {
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
        is_in_the_midst && self.description.is_none() && self.cursor.rest().iter().any(|byte| *byte != 0)
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
    fn begin(input: &'a [u8], late_page_size: Option<PageSizeHint>, progress: &'p Progress) -> Option<Self> {
        let error = match Walk::new(input, late_page_size, progress) {
            Ok(walk) => return Some(Self::new(walk)),
            Err(error) => error,
        };
        let mut head = Cursor::new(input, StreamOffset(0));
        let at = if read_magic(&mut head).is_ok() { head } else { Cursor::new(input, StreamOffset(0)) };
        // What of the configuration can be read is not kept: it is not whole.
        let _ = read_configuration(&mut head);
        let mut salvage = Self::new(Walk::begin(input, at, None, late_page_size, progress));
        let failure = Failure { at: at.offset(), section: None, is_in_ram_body: false, error };
        salvage.go_on(failure).then_some(salvage)
    }

    fn new(mut walk: Walk<'a, 'p>) -> Self {
        walk.ram.take_content();
        let vain_budget = (walk.input.len() as u64).saturating_mul(limit::VAIN_SCANS);
        Self {
            walk,
            ram: None,
            floor: StreamOffset::default(),
            unattributed: StreamOffset::default(),
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
        Some(Cursor::new(self.walk.input.get(index(at.0)?..)?, at))
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

    /// Ends a device whose own bytes are whole, whatever became of those behind
    /// it. Gives where the next record should be.
    fn end_device(&mut self, failure: &Failure) -> Option<StreamOffset> {
        let section = failure.section.as_ref().filter(|section| section.kind == SectionType::Full)?;
        let body = self.cursor(section.body)?;
        let end = self.described_end(section, body).or_else(|| self.first_footer(section, body))?;
        let body_end = end.offset();
        let mut behind = end;
        behind.array::<5>().ok()?;
        if !Footers::is_footer(&end, section.handler.section_id) {
            let why = "the section does not end with its footer".to_owned();
            let section = Some(section.handler.to_string());
            self.note_loss(Loss { offset: body_end, len: 5, why, section, is_in_ram: false });
        }
        self.walk.sections.push(Section { body_end, ..section.clone() });
        self.walk.full_count += 1;
        Some(behind.offset())
    }

    /// Where a device ends by its description, if its footer stands there, or
    /// what should stand behind its footer.
    fn described_end(&self, section: &Section, mut body: Cursor<'a>) -> Option<Cursor<'a>> {
        let Handler { idstr, instance_id, section_id, .. } = &*section.handler;
        let desc = &self.walk.located.as_ref()?.desc;
        let device = desc.device(self.walk.full_count, idstr.as_bytes(), *instance_id)?;
        body.bytes(device.described_len()?).ok()?;
        let mut behind = body;
        behind.array::<5>().ok().filter(|_| self.walk.footers == Footers::Present)?;
        (Footers::is_footer(&body, *section_id) || self.is_described(behind)).then_some(body)
    }

    /// Where a device's footer stands that nothing describes.
    fn first_footer(&self, section: &Section, mut body: Cursor<'a>) -> Option<Cursor<'a>> {
        if self.walk.located.is_some() || self.walk.footers != Footers::Present || self.vain_budget == 0 {
            return None;
        }
        let near = body.rest().get(..UNDESCRIBED_LEN).unwrap_or(body.rest());
        let len = memmem::find(near, &footer_of(&section.handler))?;
        body.bytes(len as u64).ok()?;
        Some(body)
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
        self.locate(failure.at);
        let Some(section) = failure.section.as_ref().filter(|_| failure.is_in_ram_body) else {
            if failure.section.as_ref().is_some_and(|section| section.kind == SectionType::Full) {
                let gone = self.walk.input.len() as u64 - failure.at.0;
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

    /// Finds the description, to know what devices there are.
    fn locate(&mut self, from: StreamOffset) {
        if !self.walk.has_searched {
            self.walk.has_searched = true;
            let tail = self.walk.tail.take().filter(|tail| tail.eof > from);
            let behind = self.cursor(from).unwrap_or(self.walk.cursor);
            let mut all = locate::candidates(behind, |desc| !desc.devices.is_empty());
            self.walk.located = all
                .find(|located| self.is_preceded(from, located))
                .or_else(|| tail.filter(|located| self.is_preceded(from, located)));
        }
        if let Some(located) = self.walk.located.as_ref().filter(|_| self.described.is_empty()) {
            let devices = located.desc.devices.iter().enumerate().rev();
            self.described = devices.filter_map(|(nth, device)| Some((header_of(device)?, nth))).collect();
        }
    }

    /// Whether the last device that is described, or the first, stands before
    /// the description. Else it is one that guest memory holds.
    fn is_preceded(&self, from: StreamOffset, located: &Located<'_>) -> bool {
        let devices = &located.desc.devices;
        let ends = [devices.last(), devices.first()];
        let before = index(from.0).zip(index(located.eof.0));
        let Some(before) = before.and_then(|(from, eof)| self.walk.input.get(from..eof)) else {
            return false;
        };
        ends.into_iter().flatten().filter_map(header_of).any(|header| {
            /// Type byte and section id.
            const HEAD_LEN: usize = 5;
            memmem::rfind(before, &header)
                .and_then(|at| before.get(at.checked_sub(HEAD_LEN)?))
                .is_some_and(|byte| *byte == record::QEMU_VM_SECTION_FULL)
        })
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
            Attribution::Unknown { skipped, until } => {
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

    /// Looks for where the walk can go on.
    fn search(&self, from: StreamOffset, failure: &Failure) -> Option<Resume> {
        let mut cursor = self.cursor(from)?;
        let wants_records = self.is_in_ram(failure);
        let mut records = self.walk.ram.search().filter(|_| wants_records);
        let eof = self.walk.located.as_ref().map(|located| located.eof);
        let mut undescribed = Budget(self.vain_budget);
        loop {
            let at = cursor.offset();
            if Some(at) == eof {
                return Some(Resume::Record(at));
            }
            let byte = cursor.peek()?;
            if let Some(resume) = self.record_at(byte, cursor, &mut records, &mut undescribed) {
                return Some(resume);
            }
            if byte == 0 && self.are_pages(cursor, &mut records) {
                return Some(Resume::Pages(at));
            }
            cursor.u8().ok()?;
        }
    }

    fn are_pages(&self, at: Cursor<'a>, records: &mut Option<RecordSearch<'_>>) -> bool {
        let boundaries = self.walk.boundaries();
        let Some((records, ram)) = records.as_mut().zip(self.ram.as_ref()) else { return false };
        records.is_believable(at, |end| boundaries.is_section_end(end, ram.section_id, None))
    }

    /// Whether the walk can go on with a record at `at`, or behind a footer.
    fn record_at(
        &self,
        byte: u8,
        at: Cursor<'a>,
        records: &mut Option<RecordSearch<'_>>,
        undescribed: &mut Budget,
    ) -> Option<Resume> {
        let mut ahead = at;
        ahead.u8().ok()?;
        let is_record = match byte {
            record::QEMU_VM_SECTION_FOOTER if self.walk.footers != Footers::Absent => {
                let is_known = self.walk.handlers.get(ahead.be32().ok()?).is_some();
                if ahead.peek() == Some(record::QEMU_VM_SECTION_FULL) && self.vain_budget == 0 {
                    return None;
                }
                let is_end = is_known && self.walk.boundaries().is_record(ahead, None);
                return (is_end || self.is_described(ahead)).then_some(Resume::Record(ahead.offset()));
            }
            record::QEMU_VM_SECTION_PART | record::QEMU_VM_SECTION_END => {
                let id = ahead.be32().ok()?;
                let is_ram = self.ram.as_ref().is_some_and(|ram| ram.section_id == id);
                is_ram && self.walk.handlers.is_iterating(id) && self.are_pages(ahead, records)
            }
            record::QEMU_VM_SECTION_START => self.is_ram_start(ahead, undescribed),
            record::QEMU_VM_SECTION_FULL => {
                self.vain_budget > 0 && (self.is_described(at) || self.is_whole_device(at, undescribed))
            }
            _ => false,
        };
        is_record.then_some(Resume::Record(at.offset()))
    }

    /// Whether this is the header of a device that is described and has not
    /// been read.
    fn is_described(&self, at: Cursor<'_>) -> bool {
        let mut ahead = at;
        let is_new = ahead.u8().is_ok() && ahead.be32().is_ok_and(|id| !self.seen.contains(&id));
        is_new && self.described_at(at).is_some()
    }

    /// Which of the described devices has its header here.
    fn described_at(&self, mut at: Cursor<'_>) -> Option<usize> {
        at.array::<5>().ok().filter(|head| head.first() == Some(&record::QEMU_VM_SECTION_FULL))?;
        let header = at.rest().get(..usize::from(at.peek()?) + 5)?;
        self.described.get(header).copied()
    }

    /// Whether this is a device of which nothing but its footer tells: only
    /// where there is no description.
    fn is_whole_device(&self, mut at: Cursor<'a>, budget: &mut Budget) -> bool {
        if self.walk.located.is_some() || self.walk.footers != Footers::Present || at.u8().is_err() {
            return false;
        }
        let Ok(handler) = read_handler(&mut at) else { return false };
        if !is_likely(&handler) || self.seen.contains(&handler.section_id) {
            return false;
        }
        let body = at.rest().get(..UNDESCRIBED_LEN).unwrap_or(at.rest());
        let footer = footer_of(&handler);
        budget.spend(body.len() as u64)
            && memmem::find_iter(body, &footer).any(|len| {
                let mut end = at;
                let is_end = end.bytes(len as u64).is_ok();
                is_end && self.walk.boundaries().is_section_end(end, handler.section_id, None)
            })
    }

    /// Whether this is the header of `ram`, with a block list behind it.
    fn is_ram_start(&self, mut at: Cursor<'a>, budget: &mut Budget) -> bool {
        if self.walk.ram.has_started() {
            return false;
        }
        let Ok(handler) = read_handler(&mut at) else { return false };
        let is_ram = handler.idstr == *"ram" && handler.version_id == wire::RAM_VERSION;
        let progress = Progress::new();
        let mut trial = RamReader::new(self.walk.input, PageSizeHint::Unknown, &progress);
        let start = at.remaining();
        is_ram
            && trial.read_list(&mut at, handler.version_id, RamLayout::default()).is_ok()
            && budget.spend(start - at.remaining())
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
        walked.described = described_sections(&walked);
        walked.doubtful.extend(self.doubtful);
        walked
    }
}

/// Bytes that may still be looked at in vain.
struct Budget(u64);

impl Budget {
    fn spend(&mut self, bytes: u64) -> bool {
        let left = self.0.checked_sub(bytes);
        self.0 = left.unwrap_or(0);
        left.is_some()
    }
}

/// Which description each FULL section has: the next one of its name, as some
/// between may be lost.
fn described_sections(walked: &Walked<'_>) -> Option<Vec<Option<usize>>> {
    let mut by_header: HashMap<Box<[u8]>, VecDeque<usize>> = HashMap::new();
    for (nth, device) in walked.description.as_ref()?.desc.devices.iter().enumerate() {
        by_header.entry(header_of(device)?).or_default().push_back(nth);
    }
    let full = walked.sections.iter().filter(|section| section.kind == SectionType::Full);
    let find = |section: &Section| -> Option<usize> {
        let Handler { idstr, instance_id, .. } = &*section.handler;
        by_header.get_mut(&*header(idstr.as_bytes(), *instance_id)?)?.pop_front()
    };
    Some(full.map(find).collect())
}

/// The footer of a handler's sections.
fn footer_of(handler: &Handler) -> Vec<u8> {
    [[record::QEMU_VM_SECTION_FOOTER].as_slice(), &handler.section_id.to_be_bytes()].concat()
}

/// Name and instance of a described device, as its section's header has them.
fn header_of(device: &DeviceDesc) -> Option<Box<[u8]>> {
    header(device.name.as_bytes(), device.instance_id)
}

fn header(name: &[u8], instance_id: u32) -> Option<Box<[u8]>> {
    let len = u8::try_from(name.len()).ok()?;
    Some([&[len], name, &instance_id.to_be_bytes()].concat().into())
}
