//! What the description tells a salvage: which devices there are, where they
//! end, and which of them is left.

use std::collections::{HashMap, VecDeque};

use memchr::memmem;

use super::{Failure, Salvage, UNDESCRIBED_LEN};
use crate::bytes::Bytes;
use crate::cursor::Cursor;
use crate::loss::Loss;
use crate::section::{Footers, Handler, Section, SectionType};
use crate::units::{StreamOffset, index};
use crate::vmstate::DeviceDesc;
use crate::vmstate::locate::{self, Located};
use crate::walked::Walked;
use crate::wire::record;

impl<'a> Salvage<'a, '_> {
    /// Finds the description, to know what devices there are.
    pub(super) fn locate(&mut self, from: StreamOffset) {
        if !self.walk.has_searched {
            self.walk.has_searched = true;
            let tail = self.walk.tail.take().filter(|tail| tail.eof > from);
            let behind = self.cursor(from).unwrap_or(self.walk.cursor);
            let behind = Bytes::behind(behind, self.walk.input.holes());
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
        let Some(before) = before.and_then(|(from, eof)| self.walk.input.part(from..eof)) else {
            return false;
        };
        ends.into_iter().flatten().filter_map(header_of).any(|header| {
            /// Type byte and section id.
            const HEAD_LEN: usize = 5;
            let at = before.last_place(&header);
            at.and_then(|at| before.slice().get(at.checked_sub(HEAD_LEN)?))
                .is_some_and(|byte| *byte == record::QEMU_VM_SECTION_FULL)
        })
    }

    /// Ends a device whose own bytes are whole, whatever became of those behind
    /// it. Gives where the next record should be.
    pub(super) fn end_device(&mut self, failure: &Failure) -> Option<StreamOffset> {
        let section = failure.section.as_ref().filter(|section| section.kind == SectionType::Full)?;
        let body = self.cursor(section.body)?;
        let end = self.described_end(section, body).or_else(|| self.first_footer(section, body))?;
        let body_end = end.offset();
        self.walk.note_hollow(&section.handler, section.body, body_end).ok()?;
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
        let len = memmem::find(near, &Footers::of(section.handler.section_id))?;
        body.bytes(len as u64).ok()?;
        Some(body)
    }

    /// Whether this is the header of a device that is described and has not
    /// been read.
    pub(super) fn is_described(&self, at: Cursor<'_>) -> bool {
        let mut ahead = at;
        let is_new = ahead.u8().is_ok() && ahead.be32().is_ok_and(|id| !self.seen.contains(&id));
        is_new && self.described_at(at).is_some()
    }

    /// Which of the described devices has its header here.
    pub(super) fn described_at(&self, mut at: Cursor<'_>) -> Option<usize> {
        at.array::<5>().ok().filter(|head| head.first() == Some(&record::QEMU_VM_SECTION_FULL))?;
        let header = at.rest().get(..usize::from(at.peek()?) + 5)?;
        self.described.get(header).copied()
    }
}

/// Which description each FULL section has: the next one of its name, as some
/// between may be lost.
pub(super) fn described_sections(walked: &Walked<'_>) -> Option<Vec<Option<usize>>> {
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

/// Name and instance of a described device, as its section's header has them.
fn header_of(device: &DeviceDesc) -> Option<Box<[u8]>> {
    header(device.name.as_bytes(), device.instance_id)
}

fn header(name: &[u8], instance_id: u32) -> Option<Box<[u8]>> {
    let len = u8::try_from(name.len()).ok()?;
    Some([&[len], name, &instance_id.to_be_bytes()].concat().into())
}
