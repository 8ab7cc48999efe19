//! Where the body of a device ends.
//!
//! A FULL body carries neither length nor end mark. Its end is known in one of
//! four ways, tried in this order: its own layout (see [`body`](crate::body));
//! the sizes that its description adds up to; a scan for the footer; without
//! footers, a scan for the header of the device described next, or for the
//! last one the place of the description itself. The first two
//! count only if what must follow does follow: the footer, where there are
//! footers, and then a record. Two headers that fit are no accident.
//!
//! A scan begins where the one before ended, and goes no further than the end
//! it finds, or a bounded length beyond: all of them together take time in
//! proportion to the input.

use std::cell::Cell;

use crate::body::layout_of;
use crate::bytes::Bytes;
use crate::cursor::Cursor;
use crate::holes::Holes;
use crate::section::{Footers, Handler, Handlers, SectionType, read_command, read_handler};
use crate::units::{StreamOffset, index};
use crate::vmstate::DeviceDesc;
use crate::vmstate::locate::Located;
use crate::wire::record;

/// How far the right footer is looked for before the first likely one counts,
/// beyond four times the described length.
const STRICT_SCAN_LEN: u64 = 1 << 20;

/// What is known at a place in the stream that tells where a body can end.
#[derive(Clone, Copy)]
pub(crate) struct Boundaries<'w> {
    pub(crate) handlers: &'w Handlers,
    pub(crate) footers: Footers,
    /// Bytes that layouts may still go over in vain: bodies that look like
    /// theirs one behind the other would each be read up to the end.
    pub(crate) vain_len: &'w Cell<u64>,
    /// Where the stream's file has holes.
    pub(crate) holes: Holes<'w>,
}

/// Where devices end.
#[derive(Clone, Copy)]
pub(crate) struct EndOfDevices {
    /// Where the EOF byte is.
    pub(crate) eof: StreamOffset,
    /// Whether no likely end of a device was passed over to get there.
    pub(crate) is_straight: bool,
}

/// What stands behind a device.
pub(crate) enum Behind<'a> {
    /// The EOF byte, there.
    Eof(StreamOffset),
    /// Another device, whose body begins there.
    Device(Handler, Cursor<'a>),
}

impl Boundaries<'_> {
    /// Where walking on by a description, from the body of `first` on, meets
    /// the EOF byte, if that is just where the description stands.
    pub(crate) fn leads_to(
        &self,
        first: &Handler,
        body: Cursor<'_>,
        located: &Located<'_>,
    ) -> Option<EndOfDevices> {
        self.end_of_devices(first, body, Some(located)).filter(|end| end.eof == located.eof)
    }

    /// Where walking on from the body of `first` meets the EOF byte, by a
    /// description or without.
    pub(crate) fn end_of_devices(
        &self,
        first: &Handler,
        body: Cursor<'_>,
        located: Option<&Located<'_>>,
    ) -> Option<EndOfDevices> {
        let mut cursor = body;
        let mut handler = first.clone();
        let mut is_straight = true;
        for nth in 0.. {
            let (end, behind) = self.behind_device(&handler, cursor, located, nth)?;
            is_straight &= self.is_nearest(&handler, cursor, end, located, nth);
            match behind {
                Behind::Eof(eof) => return Some(EndOfDevices { eof, is_straight }),
                Behind::Device(next, body) => (handler, cursor) = (next, body),
            }
        }
        None
    }

    /// Where the `nth` device ends, whose body begins at `body`, and what
    /// stands behind it and behind commands.
    pub(crate) fn behind_device<'a>(
        self,
        handler: &Handler,
        body: Cursor<'a>,
        located: Option<&Located<'_>>,
        nth: usize,
    ) -> Option<(Cursor<'a>, Behind<'a>)> {
        let end = self.find_end(handler, body, located, nth)?;
        let mut cursor = end;
        let mut footers = self.footers;
        footers.read(&mut cursor, handler.section_id).ok()?;
        loop {
            let offset = cursor.offset();
            match cursor.u8().ok()? {
                record::QEMU_VM_EOF => return Some((end, Behind::Eof(offset))),
                record::QEMU_VM_COMMAND => drop(read_command(offset, &mut cursor).ok()?),
                record::QEMU_VM_SECTION_FULL => {
                    let handler = read_handler(&mut cursor).ok()?;
                    return Some((end, Behind::Device(handler, cursor)));
                }
                _ => return None,
            }
        }
    }

    /// Whether the end of the `nth` device is where its size says, or else the
    /// nearest that its footer says.
    fn is_nearest(
        self,
        handler: &Handler,
        body: Cursor<'_>,
        end: Cursor<'_>,
        located: Option<&Located<'_>>,
        nth: usize,
    ) -> bool {
        let Some(Located { desc, .. }) = located else { return true };
        let device = desc.device(nth, handler.idstr.as_bytes(), handler.instance_id);
        let is_end = |other: Option<Cursor<'_>>| other.is_some_and(|other| other.offset() == end.offset());
        is_end(described_end(device, body)) || is_end(self.find_end(handler, body, None, nth))
    }

    /// Finds where the body of the `nth` device ends, which begins at `body`.
    pub(crate) fn find_end<'a>(
        self,
        handler: &Handler,
        body: Cursor<'a>,
        located: Option<&Located<'_>>,
        nth: usize,
    ) -> Option<Cursor<'a>> {
        let desc = located.map(|located| &located.desc);
        let device = desc.and_then(|desc| desc.device(nth, handler.idstr.as_bytes(), handler.instance_id));
        let next = desc.and_then(|desc| desc.devices.get(nth + 1));
        // At a place that is known by itself any record will do: the device
        // described next may be missing.
        let is_end = |end: &Cursor<'a>| {
            self.is_section_end(*end, handler.section_id, next)
                || self.is_section_end(*end, handler.section_id, None)
        };
        let laid_out = self.laid_out_end(handler, body).filter(is_end);
        // Behind the last device of all may stand what is left of another
        // stream.
        let is_last = |end: &Cursor<'a>| {
            let mut behind = *end;
            Footers::is_footer(end, handler.section_id)
                && behind.array::<5>().is_ok()
                && behind.peek() == Some(record::QEMU_VM_EOF)
        };
        let known =
            laid_out.or_else(|| described_end(device, body).filter(|end| is_end(end) || is_last(end)));
        known
            .or_else(|| self.scan_for_end(handler, body, device, next))
            // Without footers nothing but the end of all records ends the
            // last device, and the description tells where that is.
            .or_else(|| located.and_then(|located| end_at(body, located.eof)).filter(is_end))
    }

    fn laid_out_end<'a>(self, handler: &Handler, body: Cursor<'a>) -> Option<Cursor<'a>> {
        let (layout, version) = layout_of(handler.idstr.as_bytes())?;
        let mut end = body;
        if version != handler.version_id || self.vain_len.get() == 0 {
            return None;
        }
        if layout.read(SectionType::Full, &mut end).is_ok() {
            return Some(end);
        }
        let gone = end.offset().0 - body.offset().0;
        // Of holes nothing was gone over.
        let data_len = self.holes.data_len();
        self.vain_len.set(self.vain_len.get().min(data_len).saturating_sub(gone.min(data_len)));
        None
    }

    /// Whether a section's body can end at `end`: its footer and then a
    /// record, or without footers just the record.
    pub(crate) fn is_section_end(
        self,
        mut end: Cursor<'_>,
        section_id: u32,
        next: Option<&DeviceDesc>,
    ) -> bool {
        let has_footer = Footers::is_footer(&end, section_id);
        if has_footer && self.footers != Footers::Absent {
            return end.array::<5>().is_ok() && self.is_record(end, next);
        }
        self.footers != Footers::Present && self.is_record(end, next)
    }

    /// Whether a record can begin at `at`: the next described device, if one
    /// is described, or what else QEMU writes behind a device.
    pub(crate) fn is_record(self, at: Cursor<'_>, next: Option<&DeviceDesc>) -> bool {
        let mut ahead = at;
        match ahead.u8() {
            Ok(record::QEMU_VM_EOF) => {
                next.is_none() && matches!(ahead.peek(), None | Some(0 | record::QEMU_VM_VMDESCRIPTION))
            }
            Ok(record::QEMU_VM_COMMAND) => {
                read_command(at.offset(), &mut ahead).is_ok_and(|command| command.name().is_some())
            }
            Ok(record::QEMU_VM_SECTION_FULL) => read_handler(&mut ahead).is_ok_and(|handler| match next {
                Some(next) => {
                    next.name.as_bytes() == handler.idstr.as_bytes()
                        && next.instance_id == handler.instance_id
                }
                None => is_likely(&handler),
            }),
            Ok(record::QEMU_VM_SECTION_START) => {
                read_handler(&mut ahead).is_ok_and(|handler| is_likely(&handler))
            }
            Ok(record::QEMU_VM_SECTION_PART | record::QEMU_VM_SECTION_END) => {
                ahead.be32().is_ok_and(|id| self.handlers.is_iterating(id))
            }
            _ => false,
        }
    }

    /// Looks for the end of a body in what follows it.
    fn scan_for_end<'a>(
        self,
        handler: &Handler,
        body: Cursor<'a>,
        device: Option<&DeviceDesc>,
        next: Option<&DeviceDesc>,
    ) -> Option<Cursor<'a>> {
        let len = match self.footers {
            Footers::Absent => self.find_header(body, next?),
            _ => self.find_footer(handler, body, device, next),
        };
        moved(body, len?)
    }

    /// How far from `body` the header of the device described next is.
    fn find_header(self, body: Cursor<'_>, next: &DeviceDesc) -> Option<usize> {
        /// Type byte and section id, which stand before the name.
        const HEAD_LEN: usize = 5;
        let behind = Bytes::behind(body, self.holes);
        let is_record = |at: &usize| moved(body, *at).is_some_and(|at| self.is_record(at, Some(next)));
        let name = [&[u8::try_from(next.name.len()).ok()?], next.name.as_bytes()].concat();
        if next.name.is_empty() {
            // Its header is looked for by its first byte: zeros are everywhere.
            let has_name = |at: &usize| body.rest().get(at.saturating_add(HEAD_LEN)) == Some(&0);
            return behind.others().filter(has_name).find(is_record);
        }
        behind.places(&name).filter_map(|at| at.checked_sub(HEAD_LEN)).find(is_record)
    }

    /// How far from `body` the footer is that ends it.
    fn find_footer(
        self,
        handler: &Handler,
        body: Cursor<'_>,
        device: Option<&DeviceDesc>,
        next: Option<&DeviceDesc>,
    ) -> Option<usize> {
        let footer = Footers::of(handler.section_id);
        let hits = || Bytes::behind(body, self.holes).places(&footer);
        let ends = |at: &usize, next| {
            moved(body, *at).is_some_and(|at| self.is_section_end(at, handler.section_id, next))
        };
        // A body can hold bytes like its own footer, so what follows has to be
        // the device described next. That may itself be missing: then any likely
        // one will do, the first of them.
        let described = device.and_then(DeviceDesc::described_len).unwrap_or(0);
        let near = described.saturating_mul(4).saturating_add(STRICT_SCAN_LEN);
        let strict = || hits().take_while(|at| *at as u64 <= near).find(|at| ends(at, next));
        // Where nothing is described, the last device ends with the first footer
        // that an EOF follows, whatever is behind the stream: the remains of an
        // older one have such a footer too.
        let is_last = |at: &usize| {
            let eof = moved(body, at.saturating_add(footer.len()));
            device.is_none() && eof.is_some_and(|eof| eof.peek() == Some(record::QEMU_VM_EOF))
        };
        next.and_then(|_| strict()).or_else(|| hits().find(|at| ends(at, None) || is_last(at)))
    }
}

fn described_end<'a>(device: Option<&DeviceDesc>, mut body: Cursor<'a>) -> Option<Cursor<'a>> {
    body.bytes(device?.described_len()?).ok()?;
    Some(body)
}

/// The cursor at `offset`, if that is not before it.
fn end_at(body: Cursor<'_>, offset: StreamOffset) -> Option<Cursor<'_>> {
    moved(body, index(offset.0.checked_sub(body.offset().0)?)?)
}

/// Whether this can be the header of a section that QEMU wrote: the test of
/// bytes that may be anything.
pub(crate) fn is_likely(handler: &Handler) -> bool {
    let idstr = handler.idstr.as_bytes();
    !idstr.is_empty()
        && idstr.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ')
        // The largest known is a date, 20061113: that of eeprom93xx.
        && handler.version_id < 1 << 28
}

/// The cursor moved on by `len` bytes.
fn moved<'a>(mut body: Cursor<'a>, len: usize) -> Option<Cursor<'a>> {
    body.bytes(len as u64).ok()?;
    Some(body)
}
