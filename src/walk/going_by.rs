//! The walk over a stream that goes by.
//!
//! The cursor of a walk is over bytes that stay. Of a stream that goes by only
//! those stay that are copied: a few for the header of a section, the whole
//! body of one that may be asked for later, and from the first device behind
//! RAM all that is left. Pages are read where they pass; whenever the window
//! has to move, the taker gets what is in it.

use super::Walk;
use crate::boundary::Behind;
use crate::bytes::{self, Bytes};
use crate::cursor::Cursor;
use crate::error::{Error, ErrorKind, Result};
use crate::feed::{Feed, Incoming, Kept, Parts};
use crate::holes::Holes;
use crate::progress::Progress;
use crate::ram::stretch::PageTaker;
use crate::ram::{PageSizeHint, RamReader};
use crate::section::{Footers, Handler};
use crate::units::{StreamOffset, index};
use crate::vmstate::VmDesc;
use crate::vmstate::locate;
use crate::wire::{limit, record};
use crate::wrapper::compression::BEHIND_DATA;

/// Bytes of magic and configuration, at most: capabilities have names of up to
/// 255 bytes, and QEMU knows some 40.
const CONFIGURATION_LEN: usize = 64 << 10;

/// Bytes of a PART's or END's header: type and section id. As many as a command
/// has before its data: type, command, length.
const PART_LEN: usize = 5;

/// Bytes of the longest header, of START and FULL: type, section id, counted
/// name, instance, version.
const HEADER_LEN: usize = 1 + 4 + 256 + 4 + 4;

/// Bytes of a footer.
const FOOTER_LEN: usize = 5;

/// Bytes before the text of a description: type and length.
const DESCRIPTION_HEAD_LEN: usize = 5;

/// How much is looked at first of what stands behind RAM.
const FIRST_LOOK_LEN: usize = 4 << 20;

/// How much of a body is kept at first.
const BODY_LEN: usize = 4 << 10;

/// Where more of a stream comes from that goes by, and where it goes.
pub(crate) struct GoingBy<'a, 'p> {
    feed: Feed,
    kept: &'a Kept,
    parts: Parts<'a>,
    taker: &'p mut dyn PageTaker,
    /// Up to where the devices behind RAM were kept.
    devices_end: StreamOffset,
    /// Whether the reader has no more.
    is_over: bool,
}

impl<'a> GoingBy<'a, '_> {
    /// Why the reader ended, if it failed.
    pub(super) fn failure(&mut self) -> Option<Error> {
        self.feed.failure()
    }

    /// What was kept.
    pub(crate) fn into_parts(self) -> Parts<'a> {
        self.parts
    }

    /// Has `len` bytes from `at` on in the window, or all that are left. The
    /// pages in the window before it moves are handed on.
    fn reach(&mut self, ram: &mut RamReader<'a, '_>, at: StreamOffset, len: usize) -> Result<()> {
        while self.feed.from(at).len() < len && self.more(ram, at)? {}
        Ok(())
    }

    fn more(&mut self, ram: &mut RamReader<'a, '_>, at: StreamOffset) -> Result<bool> {
        self.hand_on(ram)?;
        Ok(self.feed.more(at))
    }

    /// Hands the pages in the window on.
    fn hand_on(&mut self, ram: &mut RamReader<'a, '_>) -> Result<()> {
        ram.hand_on(self.feed.window(), self.feed.start(), self.taker)
    }

    /// Reads what is left of the reader behind what was kept. Gives how many
    /// bytes it is, and whether all of them are zero.
    pub(super) fn drain(&mut self) -> (u64, bool) {
        let kept = self.parts.end();
        let unkept = self.feed.from(kept);
        let (len, is_zero) = (unkept.len() as u64, bytes::is_zero(unkept));
        let (more, more_is_zero) = self.feed.drain();
        (len + more, is_zero && more_is_zero)
    }

    /// Keeps `len` bytes from `at` on, or all that are left, and gives a
    /// cursor over them.
    fn keep(&mut self, ram: &mut RamReader<'a, '_>, at: StreamOffset, len: usize) -> Result<Cursor<'a>> {
        self.reach(ram, at, len)?;
        if Feed::gives_away(len) {
            self.hand_on(ram)?;
        }
        let bytes = self.kept.keep(self.feed.keep(at, len)?);
        self.parts.add(at, bytes);
        Ok(Cursor::new(bytes, at))
    }
}

/// Twice what is seen, but no more than `bound`.
fn doubled(seen: Cursor<'_>, bound: u64) -> usize {
    index(bound).unwrap_or(usize::MAX).min(seen.rest().len().saturating_mul(2))
}

/// Bytes of the longest header that the record at `at` can have; of a command
/// all of its bytes. No more is kept: a stream may have millions.
fn head_len(at: Cursor<'_>) -> usize {
    let mut ahead = at;
    match (at.peek(), ahead.array::<3>(), ahead.be16()) {
        (Some(record::QEMU_VM_SECTION_START | record::QEMU_VM_SECTION_FULL), ..) => HEADER_LEN,
        (Some(record::QEMU_VM_COMMAND), Ok(_), Ok(len)) => PART_LEN + usize::from(len),
        _ => PART_LEN,
    }
}

/// Bytes of the footer and the next record, or of that alone, by which a body
/// is known to end at `end`.
fn end_mark_len(end: Cursor<'_>) -> usize {
    let mut behind = end;
    let behind_footer = behind.array::<FOOTER_LEN>().map_or(0, |_| head_len(behind));
    head_len(end).max(FOOTER_LEN + behind_footer)
}

/// Whether a reader failed on what is no part of the data.
fn is_behind_data(failure: &Error) -> bool {
    matches!(failure.kind(), ErrorKind::Io { .. } | ErrorKind::Wrapper { what: BEHIND_DATA, .. })
}

/// How far devices lead on by their footers.
struct Lead {
    handler: Handler,
    /// The first body whose end was not found.
    body: StreamOffset,
    nth: usize,
    /// The EOF byte that they lead to.
    eof: Option<StreamOffset>,
}

impl Lead {
    /// The failure of not finding on.
    fn lost(&self, seen: Cursor<'_>) -> Error {
        let proven = self.body.0 - seen.offset().0;
        let (what, met, bound) = match proven.saturating_add(limit::UNPROVEN_LEN) <= limit::REST_LEN {
            true => {
                ("bytes of a device without an end in sight", seen.remaining() - proven, limit::UNPROVEN_LEN)
            }
            false => ("bytes of devices behind RAM", seen.remaining(), limit::REST_LEN),
        };
        Error::at(self.body, ErrorKind::TooMuchToKeep { what, met, bound }).inside(&self.handler)
    }
}

impl<'a, 'p> Walk<'a, 'p> {
    /// A walk over a stream that goes by.
    pub(crate) fn over_reader(
        incoming: Incoming,
        kept: &'a Kept,
        progress: &'p Progress,
        taker: &'p mut dyn PageTaker,
    ) -> Result<Self> {
        let feed = Feed::new(incoming);
        let mut going_by = GoingBy {
            feed,
            kept,
            parts: Parts::default(),
            taker,
            devices_end: StreamOffset(0),
            is_over: false,
        };
        let mut no_ram = RamReader::new(Bytes::default(), PageSizeHint::Unknown, progress);
        let head = going_by.keep(&mut no_ram, StreamOffset(0), CONFIGURATION_LEN)?;
        let walk = Self::from_head(Bytes::default(), head, None, progress);
        let mut walk = walk.map_err(|error| going_by.failure().unwrap_or(error))?;
        walk.ram.let_go_by();
        walk.vain_len.set(limit::UNPROVEN_LEN);
        walk.going_by = Some(going_by);
        Ok(walk)
    }

    /// Walks to the end, as [`run`](Self::run) does. Where the reader failed
    /// before that, this is why. Gives what it met behind the end that is no
    /// part of the data.
    pub(crate) fn run_over_reader(&mut self) -> Result<Option<Error>> {
        let walked = self.run();
        let failure = self.going_by.as_mut().and_then(GoingBy::failure);
        match (walked, failure) {
            (Err(_), Some(failure)) => Err(failure),
            // A checksum at the end speaks for all that came before it.
            (Ok(()), Some(failure)) if !is_behind_data(&failure) => {
                Err(failure.inside("behind the end of the stream"))
            }
            (walked, failure) => walked.map(|()| failure),
        }
    }

    /// Has `len` bytes under the cursor, or all that are left.
    fn keep(&mut self, len: usize) -> Result<()> {
        if let Some(going_by) = &mut self.going_by
            && self.cursor.rest().len() < len
        {
            self.cursor = going_by.keep(&mut self.ram, self.cursor.offset(), len)?;
        }
        Ok(())
    }

    /// Has the header of the next record under the cursor, and of a command all.
    pub(super) fn keep_head(&mut self) -> Result<()> {
        let Some(going_by) = &mut self.going_by else { return Ok(()) };
        let mut seen = self.cursor;
        if seen.rest().len() < PART_LEN {
            let at = seen.offset();
            going_by.reach(&mut self.ram, at, PART_LEN)?;
            seen = Cursor::new(going_by.feed.from(at), at);
        }
        let len = head_len(seen);
        self.keep(len)
    }

    /// Has the footer under the cursor, if there is one.
    pub(super) fn keep_footer(&mut self) -> Result<()> {
        self.keep(FOOTER_LEN)
    }

    /// Has the description under the cursor, if one stands there. What stands
    /// behind it is not kept.
    pub(super) fn keep_description(&mut self) -> Result<()> {
        self.with_going_by(Self::end_pages)?;
        self.keep(DESCRIPTION_HEAD_LEN)?;
        let mut head = self.cursor;
        let len = match (head.u8(), head.be32()) {
            (Ok(record::QEMU_VM_VMDESCRIPTION), Ok(len)) if u64::from(len) <= limit::VMDESC_LEN => len,
            _ => return Ok(()),
        };
        self.keep(DESCRIPTION_HEAD_LEN.saturating_add(index(len.into()).unwrap_or(0)))
    }

    /// Has a device under the cursor, which stands before its body. Behind RAM
    /// those that follow as well, and the description; before, itself.
    pub(super) fn keep_device(&mut self, handler: &Handler) -> Result<()> {
        let is_behind_ram = self.ram.has_started() && !self.ram_is_iterating;
        self.with_going_by(|walk, going_by| match is_behind_ram {
            true => walk.keep_devices(going_by, handler),
            false => walk.keep_early_device(going_by, handler),
        })
    }

    /// Hands the last pages on.
    fn end_pages(&mut self, going_by: &mut GoingBy<'a, 'p>) -> Result<()> {
        self.ram.end_records();
        going_by.hand_on(&mut self.ram)
    }

    fn with_going_by(
        &mut self,
        work: impl FnOnce(&mut Self, &mut GoingBy<'a, 'p>) -> Result<()>,
    ) -> Result<()> {
        let Some(mut going_by) = self.going_by.take() else { return Ok(()) };
        let done = work(self, &mut going_by);
        self.going_by = Some(going_by);
        done
    }

    /// Keeps from the body of `first` on what is the stream's: all up to the
    /// end of the description that leads there, or of the devices that lead on
    /// by their footers. Neither is known before it is found, and what may be
    /// in vain is bounded.
    fn keep_devices(&mut self, going_by: &mut GoingBy<'a, 'p>, first: &Handler) -> Result<()> {
        let at = self.cursor.offset();
        if at < going_by.devices_end {
            return Ok(());
        }
        self.end_pages(going_by)?;
        let mut lead = Lead { handler: first.clone(), body: at, nth: 0, eof: None };
        let mut len = FIRST_LOOK_LEN;
        let end = loop {
            going_by.reach(&mut self.ram, at, len)?;
            let seen = Cursor::new(going_by.feed.from(at), at);
            let is_all = seen.rest().len() < len;
            self.vain_len.set(seen.remaining());
            if let Some(end) = self.described_end(first, seen) {
                break end;
            }
            self.lead_on(&mut lead, seen);
            let bound = (lead.body.0 - at.0).saturating_add(limit::UNPROVEN_LEN).min(limit::REST_LEN);
            let is_enough = is_all || seen.remaining() >= bound;
            match lead.eof {
                Some(eof) if is_enough => break StreamOffset(eof.0 + 1),
                // Nothing but a description tells where devices without footers
                // end, and the last byte seen whether there are only such.
                None if is_all || is_enough && self.footers != Footers::Present => {
                    break StreamOffset(at.0 + seen.remaining());
                }
                None if is_enough => return Err(lead.lost(seen)),
                _ => len = doubled(seen, bound),
            }
        };
        self.cursor = going_by.keep(&mut self.ram, at, index(end.0 - at.0).unwrap_or(0))?;
        going_by.devices_end = end;
        self.vain_len.set(self.cursor.remaining());
        Ok(())
    }

    /// Goes on from device to device by their footers, as far as they are seen.
    fn lead_on(&self, lead: &mut Lead, seen: Cursor<'_>) {
        while lead.eof.is_none() {
            let mut body = seen;
            let behind = body
                .bytes(lead.body.0 - seen.offset().0)
                .ok()
                .and_then(|_| self.boundaries().behind_device(&lead.handler, body, None, lead.nth));
            match behind {
                Some((_, Behind::Eof(eof))) => lead.eof = Some(eof),
                Some((_, Behind::Device(handler, body))) => {
                    *lead = Lead { handler, body: body.offset(), nth: lead.nth + 1, eof: None };
                }
                None => return,
            }
        }
    }

    /// Keeps the body of a device before RAM, up to its end.
    fn keep_early_device(&mut self, going_by: &mut GoingBy<'a, 'p>, handler: &Handler) -> Result<()> {
        let at = self.cursor.offset();
        let mut len = BODY_LEN;
        let kept_len = loop {
            going_by.reach(&mut self.ram, at, len)?;
            let seen = Cursor::new(going_by.feed.from(at), at);
            let end = self.boundaries().find_end(handler, seen, None, self.full_count);
            // Near the end of what is seen, what stands behind is not.
            match end.filter(|end| end.rest().len() > HEADER_LEN) {
                // What follows tells that it is the end.
                Some(end) => break seen.rest().len() - end.rest().len() + end_mark_len(end),
                None if seen.rest().len() < len => break len,
                None if seen.remaining() >= limit::UNPROVEN_LEN => {
                    let lead = Lead { handler: handler.clone(), body: at, nth: 0, eof: None };
                    return Err(lead.lost(seen));
                }
                None => len = doubled(seen, limit::UNPROVEN_LEN),
            }
        };
        self.cursor = going_by.keep(&mut self.ram, at, kept_len)?;
        Ok(())
    }

    /// Where the description ends that walking on by it from the body of
    /// `first` leads to.
    fn described_end(&self, first: &Handler, body: Cursor<'_>) -> Option<StreamOffset> {
        let fits = |desc: &VmDesc| desc.begins_with(first.idstr.as_bytes(), first.instance_id);
        let mut candidates = locate::candidates(Bytes::behind(body, Holes::Unknown), fits);
        let proven = candidates.find(|located| self.boundaries().leads_to(first, body, located).is_some())?;
        proven.eof.checked_add(locate::HEAD_LEN + proven.text.len() as u64)
    }

    /// Has a body under the cursor that `read` finds the end of.
    pub(super) fn keep_laid_out(&mut self, read: impl Fn(&mut Cursor<'_>) -> Result<()>) -> Result<()> {
        self.with_going_by(|walk, going_by| {
            let at = walk.cursor.offset();
            let mut len = BODY_LEN;
            let kept_len = loop {
                going_by.reach(&mut walk.ram, at, len)?;
                let seen = Cursor::new(going_by.feed.from(at), at);
                let mut end = seen;
                let needed = match read(&mut end).as_ref().map_err(Error::kind) {
                    Ok(()) => break seen.rest().len() - end.rest().len(),
                    Err(ErrorKind::Truncated { needed, .. }) => *needed,
                    Err(_) => break seen.rest().len(),
                };
                if seen.rest().len() < len || seen.remaining() > limit::KEPT_LEN {
                    break seen.rest().len();
                }
                // What was read so far is the stream's. What its next piece
                // claims has yet to come.
                if needed > limit::UNPROVEN_LEN {
                    let what = "bytes of a piece of a section";
                    let kind = ErrorKind::TooMuchToKeep { what, met: needed, bound: limit::UNPROVEN_LEN };
                    return Err(Error::at(end.offset(), kind));
                }
                len = doubled(seen, u64::MAX);
            };
            walk.cursor = going_by.keep(&mut walk.ram, at, kept_len)?;
            Ok(())
        })
    }

    /// Reads a body with as much of it under the cursor as it takes.
    pub(super) fn read_kept<T>(
        &mut self,
        read: impl Fn(&mut Self, &mut Cursor<'a>) -> Result<T>,
    ) -> Result<T> {
        let mut len = BODY_LEN;
        loop {
            self.keep(len)?;
            let is_all = self.going_by.is_none() || self.cursor.rest().len() < len;
            let mut cursor = self.cursor;
            match read(self, &mut cursor) {
                Err(error) if !is_all && matches!(error.kind(), ErrorKind::Truncated { .. }) => {
                    len = self.cursor.rest().len().saturating_mul(2);
                }
                outcome => {
                    self.cursor = cursor;
                    return outcome;
                }
            }
        }
    }

    /// Tells who takes pages what blocks there are.
    pub(super) fn announce_blocks(&mut self) -> Result<()> {
        match &mut self.going_by {
            Some(going_by) => self.ram.announce(going_by.taker),
            None => Ok(()),
        }
    }

    /// Reads page records to the end of a body.
    pub(super) fn read_pages(&mut self) -> Result<()> {
        let Some(going_by) = &mut self.going_by else { return self.ram.read_records(&mut self.cursor) };
        let mut at = self.cursor.offset();
        loop {
            let mut cursor = Cursor::new(going_by.feed.from(at), at);
            let read = self.ram.read_records(&mut cursor);
            at = cursor.offset();
            self.cursor = Cursor::new(&[], at);
            match read {
                Err(error) if matches!(error.kind(), ErrorKind::Truncated { .. }) => {
                    if !going_by.more(&mut self.ram, at)? {
                        if going_by.is_over {
                            return Err(error);
                        }
                        // What was too short to show the page size is all.
                        going_by.is_over = true;
                        self.ram.end_input();
                    }
                }
                read => return read,
            }
        }
    }
}
