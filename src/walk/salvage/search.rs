//! Where the walk can go on: each place behind a failure is looked at, once.

use memchr::memmem;

use super::{Failure, Resume, Salvage, UNDESCRIBED_LEN};
use crate::boundary::is_likely;
use crate::bytes::Bytes;
use crate::cursor::Cursor;
use crate::progress::Progress;
use crate::ram::block::RamLayout;
use crate::ram::resync::RecordSearch;
use crate::ram::{PageSizeHint, RamReader};
use crate::section::{Footers, read_handler};
use crate::units::StreamOffset;
use crate::wire::{self, record};

impl<'a> Salvage<'a, '_> {
    /// Looks for where the walk can go on.
    pub(super) fn search(&self, from: StreamOffset, failure: &Failure) -> Option<Resume> {
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
            self.pass_zeros(&mut cursor);
        }
    }

    /// Passes over zeros that nothing begins among: more than a word has.
    fn pass_zeros(&self, cursor: &mut Cursor<'a>) {
        /// Zeros that a word or an EOF can begin with.
        const REACH: usize = 7;
        if cursor.rest().starts_with(&[0; REACH + 1]) {
            let zeros = Bytes::behind(*cursor, self.walk.input.holes()).zeros_end(0);
            // They are there: they have been looked at.
            let _ = cursor.bytes((zeros - REACH) as u64);
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
        let footer = Footers::of(handler.section_id);
        budget.spend((body.len() as u64).min(self.walk.input.data_len()))
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
