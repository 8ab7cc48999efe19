//! The walk over a stream that goes by.
//!
//! The cursor of a walk is over bytes that stay. Of a stream that goes by only
//! those stay that are copied: a few for the header of a section, the whole
//! body of one that may be asked for later, and from the first device behind
//! RAM all that is left. Pages are read where they pass; whenever the window
//! has to move, the taker gets what is in it.

use super::Walk;
use crate::cursor::Cursor;
use crate::error::{Error, ErrorKind, Result};
use crate::feed::{Feed, Incoming, Kept, Parts};
use crate::progress::Progress;
use crate::ram::stretch::PageTaker;
use crate::ram::{PageSizeHint, RamReader};
use crate::section::Handler;
use crate::units::{StreamOffset, index};
use crate::vmstate::VmDesc;
use crate::vmstate::locate;
use crate::wire::{limit, record};
use crate::wrapper::compression::BEHIND_DATA;

/// Bytes of magic and configuration, at most: capabilities have names of up to
/// 255 bytes, and QEMU knows some 40.
const CONFIGURATION_LEN: usize = 64 << 10;

/// Bytes of a PART's or END's header: type and section id.
const PART_LEN: usize = 5;

/// Bytes of the longest header, of START and FULL: type, section id, counted
/// name, instance, version.
const HEADER_LEN: usize = 1 + 4 + 256 + 4 + 4;

/// Bytes of the longest command: type, command, length, data.
const COMMAND_LEN: usize = 1 + 2 + 2 + 65535;

/// Bytes of a footer.
const FOOTER_LEN: usize = 5;

/// How much is looked at first of what stands behind RAM.
const REST_LEN: usize = 4 << 20;

/// How much of a body is kept at first.
const BODY_LEN: usize = 4 << 10;

/// Where more of a stream comes from that goes by, and where it goes.
pub(crate) struct GoingBy<'a, 'p> {
    feed: Feed,
    kept: &'a Kept,
    parts: Parts<'a>,
    taker: &'p mut dyn PageTaker,
    /// Whether all that is left was kept.
    is_whole: bool,
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
        let (len, is_zero) = (unkept.len() as u64, unkept.iter().all(|byte| *byte == 0));
        let (more, more_is_zero) = self.feed.drain();
        (len + more, is_zero && more_is_zero)
    }

    /// Keeps `len` bytes from `at` on, or all that are left, and gives a
    /// cursor over them.
    fn keep(&mut self, ram: &mut RamReader<'a, '_>, at: StreamOffset, len: usize) -> Result<Cursor<'a>> {
        self.reach(ram, at, len)?;
        let bytes = self.kept.keep(self.feed.copy(at, len)?);
        self.parts.add(at, bytes);
        Ok(Cursor::new(bytes, at))
    }
}

/// Whether a reader failed on what is no part of the data.
fn is_behind_data(failure: &Error) -> bool {
    matches!(failure.kind(), ErrorKind::Io { .. } | ErrorKind::Wrapper { what: BEHIND_DATA, .. })
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
        let mut going_by =
            GoingBy { feed, kept, parts: Parts::default(), taker, is_whole: false, is_over: false };
        let mut no_ram = RamReader::new(&[], PageSizeHint::Unknown, progress);
        let head = going_by.keep(&mut no_ram, StreamOffset(0), CONFIGURATION_LEN)?;
        let mut walk = Self::from_head(&[], head, None, progress)?;
        walk.ram.let_go_by();
        walk.vain_len.set(limit::EARLY_DEVICE_LEN);
        walk.going_by = Some(going_by);
        Ok(walk)
    }

    /// Walks to the end, as [`run`](Self::run) does. Where the reader failed
    /// before that, this is why.
    pub(crate) fn run_over_reader(&mut self) -> Result<()> {
        let walked = self.run();
        let failure = self.going_by.as_mut().and_then(GoingBy::failure);
        match (walked, failure) {
            (Err(_), Some(failure)) => Err(failure),
            // A checksum at the end speaks for all that came before it.
            (Ok(()), Some(failure)) if !is_behind_data(&failure) => {
                Err(failure.inside("behind the end of the stream"))
            }
            (Ok(()), Some(failure)) => {
                let text = format!("behind the end of the stream: {failure}");
                self.warn(Some(self.cursor.offset()), text, false);
                Ok(())
            }
            (walked, None) => walked,
        }
    }

    /// Has `len` bytes under the cursor, or all that are left.
    fn keep(&mut self, len: usize) -> Result<()> {
        if let Some(going_by) = self.going_by.as_mut().filter(|going_by| !going_by.is_whole)
            && self.cursor.rest().len() < len
        {
            self.cursor = going_by.keep(&mut self.ram, self.cursor.offset(), len)?;
        }
        Ok(())
    }

    /// Has the header of the next record under the cursor.
    pub(super) fn keep_head(&mut self) -> Result<()> {
        self.keep(PART_LEN)?;
        match self.cursor.peek() {
            Some(record::QEMU_VM_SECTION_START | record::QEMU_VM_SECTION_FULL) => self.keep(HEADER_LEN),
            Some(record::QEMU_VM_COMMAND) => self.keep(COMMAND_LEN),
            _ => Ok(()),
        }
    }

    /// Has the footer under the cursor, if there is one.
    pub(super) fn keep_footer(&mut self) -> Result<()> {
        self.keep(FOOTER_LEN)
    }

    /// Has all that is left of the stream under the cursor.
    pub(super) fn keep_rest(&mut self) -> Result<()> {
        self.keep_through(|_, _| None)
    }

    /// Has all that is left under the cursor, up to the stream's end if `end`
    /// finds it in what follows.
    fn keep_through(&mut self, end: impl Fn(&Self, Cursor<'_>) -> Option<StreamOffset>) -> Result<()> {
        let Some(mut going_by) = self.going_by.take() else { return Ok(()) };
        let kept = if going_by.is_whole { Ok(()) } else { self.keep_rest_of(&mut going_by, end) };
        self.going_by = Some(going_by);
        kept
    }

    fn keep_rest_of(
        &mut self,
        going_by: &mut GoingBy<'a, 'p>,
        end: impl Fn(&Self, Cursor<'_>) -> Option<StreamOffset>,
    ) -> Result<()> {
        self.ram.end_records();
        let at = self.cursor.offset();
        let mut len = REST_LEN;
        let end = loop {
            going_by.reach(&mut self.ram, at, len)?;
            let seen = going_by.feed.from(at);
            let is_all = seen.len() < len || seen.len() as u64 >= limit::REST_LEN;
            match end(self, Cursor::new(seen, at)) {
                Some(end) => break index(end.0 - at.0).unwrap_or(seen.len()),
                None if is_all => break seen.len(),
                None => len = seen.len().saturating_mul(2),
            }
        };
        self.cursor = going_by.keep(&mut self.ram, at, end)?;
        going_by.hand_on(&mut self.ram)?;
        going_by.is_whole = true;
        self.vain_len.set(self.cursor.remaining());
        Ok(())
    }

    /// Has a device under the cursor, which stands before its body. Behind RAM
    /// that is all that is left; before, as much as it takes to find its end.
    pub(super) fn keep_device(&mut self, handler: &Handler) -> Result<()> {
        if self.going_by.is_none() {
            return Ok(());
        }
        if self.ram.has_started() && !self.ram_is_iterating {
            return self.keep_through(|walk, from| walk.described_end(handler, from));
        }
        let mut len = BODY_LEN;
        loop {
            self.keep(len)?;
            let is_all = self.cursor.rest().len() < len;
            // Near the end of what is kept, what stands behind is not seen.
            let end = self.boundaries().find_end(handler, self.cursor, None, self.full_count);
            let is_found = end.is_some_and(|end| end.rest().len() > HEADER_LEN);
            if is_found || is_all {
                return Ok(());
            }
            if len as u64 >= limit::EARLY_DEVICE_LEN {
                let what = "the end of a device before RAM is not near";
                return Err(Error::at(self.cursor.offset(), ErrorKind::GoneBy { what }).inside(handler));
            }
            len *= 4;
        }
    }

    /// Where the description ends that walking on by it from the body of
    /// `first` leads to.
    fn described_end(&self, first: &Handler, body: Cursor<'_>) -> Option<StreamOffset> {
        let fits = |desc: &VmDesc| desc.begins_with(first.idstr.as_bytes(), first.instance_id);
        let mut candidates = locate::candidates(body, fits);
        let proven = candidates.find(|located| self.boundaries().leads_to(first, body, located).is_some())?;
        proven.eof.checked_add(locate::HEAD_LEN + proven.text.len() as u64)
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
