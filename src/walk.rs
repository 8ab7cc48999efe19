//! The walk: one pass over the records of a stream.
//!
//! It goes from record to record and leaves an index of sections and RAM
//! pages. A walk that does not know where a body ends stops with an error,
//! except where a stream has neither footers nor description (machine types up
//! to 2.2): there RAM is complete, and its devices cannot be told apart by
//! anyone but the QEMU that wrote them.
//!
//! Source followed: QEMU `migration/savevm.c` (`qemu_loadvm_state_main`).

pub(crate) mod discarded;
mod going_by;
mod mapped;
mod salvage;

use std::cell::Cell;
use std::sync::Arc;

use crate::body::layout_of;
use crate::boundary::Boundaries;
use crate::bytes::Bytes;
use crate::cursor::Cursor;
use crate::error::{Error, ErrorKind, Result};
use crate::feed::Parts;
use crate::header::{Configuration, bounded, hex, read_configuration, read_magic};
use crate::idstr::Idstr;
use crate::progress::Progress;
use crate::ram::block::RamLayout;
use crate::ram::{PageSizeHint, Ram, RamReader};
use crate::section::{Command, Footers, Handler, Handlers, Section, SectionType, read_command};
use crate::units::{StreamOffset, TargetPageSize, index};
use crate::vmstate::locate::{self, Located};
use crate::vmstate::{DeviceDesc, VmDesc};
use crate::walked::{Description, Walked, Warning};
use crate::wire::{limit, record};

pub(crate) use salvage::salvage;

use going_by::GoingBy;

pub(crate) struct Walk<'a, 'p> {
    input: Bytes<'a>,
    cursor: Cursor<'a>,
    /// Where the record begins that is being read.
    record: StreamOffset,
    configuration: Option<Configuration>,
    handlers: Handlers,
    footers: Footers,
    sections: Vec<Section>,
    full_count: usize,
    commands: Vec<Command>,
    ram: RamReader<'a, 'p>,
    ram_is_iterating: bool,
    /// A description that ends where the input does. Not yet proven.
    tail: Option<Located<'a>>,
    /// The description that bodies are measured by.
    located: Option<Located<'a>>,
    has_searched: bool,
    vain_len: Cell<u64>,
    /// Bytes of holes in sections that are not RAM.
    hollow_len: u64,
    description: Option<Description<'a>>,
    warnings: Vec<Warning>,
    /// Where more comes from, if the stream goes by: then `cursor` is only
    /// over what was kept of it last.
    going_by: Option<GoingBy<'a, 'p>>,
}

impl<'a, 'p> Walk<'a, 'p> {
    pub(crate) fn new(
        input: Bytes<'a>,
        late_page_size: Option<PageSizeHint>,
        progress: &'p Progress,
    ) -> Result<Self> {
        let head = Cursor::new(input.slice(), StreamOffset(0));
        Self::from_head(input, head, late_page_size, progress)
    }

    fn from_head(
        input: Bytes<'a>,
        mut head: Cursor<'a>,
        late_page_size: Option<PageSizeHint>,
        progress: &'p Progress,
    ) -> Result<Self> {
        read_magic(&mut head).map_err(|error| error.inside("header"))?;
        let configuration = read_configuration(&mut head)?;
        Ok(Self::begin(input, head, configuration, late_page_size, progress))
    }

    /// A walk that begins with the record at `cursor`.
    fn begin(
        input: Bytes<'a>,
        cursor: Cursor<'a>,
        configuration: Option<Configuration>,
        late_page_size: Option<PageSizeHint>,
        progress: &'p Progress,
    ) -> Self {
        let tail = locate::at_end(input);
        let given = configuration.as_ref().and_then(|configuration| configuration.target_page_size);
        let described =
            tail.as_ref().and_then(|tail| tail.desc.page_size).and_then(TargetPageSize::from_bytes);
        let page_size = match (given, late_page_size, described) {
            (Some(size), ..) => PageSizeHint::Given(size),
            (None, Some(late), _) => late,
            (None, None, Some(size)) => PageSizeHint::Likely(size),
            (None, None, None) => PageSizeHint::Unknown,
        };
        Self {
            input,
            cursor,
            record: cursor.offset(),
            configuration,
            handlers: Handlers::default(),
            footers: Footers::default(),
            sections: Vec::new(),
            full_count: 0,
            commands: Vec::new(),
            ram: RamReader::new(input, page_size, progress),
            ram_is_iterating: false,
            tail,
            located: None,
            has_searched: false,
            vain_len: Cell::new(input.len() as u64),
            hollow_len: 0,
            description: None,
            warnings: Vec::new(),
            going_by: None,
        }
    }

    /// The page size that pages turned out to have, if records before them
    /// are indexed by another one: the walk must be done again with this.
    pub(crate) fn late_page_size(&self) -> Option<TargetPageSize> {
        self.ram.late_page_size()
    }

    /// Walks to the end.
    pub(crate) fn run(&mut self) -> Result<()> {
        loop {
            let offset = self.cursor.offset();
            self.record = offset;
            self.keep_head()?;
            let byte = self.cursor.u8().map_err(|error| error.inside("next record"))?;
            match (byte, SectionType::of(byte)) {
                (record::QEMU_VM_EOF, _) => {
                    self.keep_description()?;
                    return self.read_description();
                }
                (record::QEMU_VM_COMMAND, _) => self.read_command(offset)?,
                (_, Some(SectionType::Full)) => {
                    if !self.read_device(offset)? {
                        return Ok(());
                    }
                }
                (_, Some(kind)) => self.read_iterative(offset, kind)?,
                (met, None) => {
                    return Err(Error::at(offset, ErrorKind::RecordType { met }).inside(self.place()));
                }
            }
        }
    }

    /// All that stands from the cursor on.
    fn behind(&self) -> Bytes<'a> {
        Bytes::behind(self.cursor, self.input.holes())
    }

    fn boundaries(&self) -> Boundaries<'_> {
        Boundaries {
            handlers: &self.handlers,
            footers: self.footers,
            vain_len: &self.vain_len,
            holes: self.input.holes(),
        }
    }

    /// Where the walk is, for messages: behind which section.
    fn place(&self) -> String {
        match self.sections.last() {
            Some(section) => format!("after {}", section.handler),
            None => "after the header".to_owned(),
        }
    }

    fn read_command(&mut self, offset: StreamOffset) -> Result<()> {
        let command = read_command(offset, &mut self.cursor).map_err(|error| error.inside("command"))?;
        self.commands.push(command);
        Ok(())
    }

    /// Reads START, PART or END of an iterative handler.
    fn read_iterative(&mut self, offset: StreamOffset, kind: SectionType) -> Result<()> {
        let handler =
            self.handlers.read_header(kind, &mut self.cursor).map_err(|error| error.inside(self.place()))?;
        let body = self.cursor.offset();
        self.read_iterative_body(kind, &handler).map_err(|error| error.inside(&*handler))?;
        self.end_section(offset, kind, handler, body)
    }

    fn read_iterative_body(&mut self, kind: SectionType, handler: &Handler) -> Result<()> {
        if handler.idstr == *"ram" {
            return self.read_ram(kind, handler.version_id);
        }
        let Some((layout, expected)) = layout_of(handler.idstr.as_bytes()) else {
            let feature = format!("{kind} of this handler");
            return Err(Error::at(self.cursor.offset(), ErrorKind::Unsupported { feature }));
        };
        let met = handler.version_id;
        if met != expected {
            return Err(Error::at(
                self.cursor.offset(),
                ErrorKind::Version { what: "section", met, expected },
            ));
        }
        self.keep_laid_out(|cursor| layout.read(kind, cursor))?;
        layout.read(kind, &mut self.cursor)
    }

    fn read_ram(&mut self, kind: SectionType, version_id: u32) -> Result<()> {
        self.ram_is_iterating = kind != SectionType::End;
        if kind != SectionType::Start {
            self.read_pages()?;
            if kind == SectionType::End {
                self.ram.end();
            }
            return Ok(());
        }
        if self.ram.has_started() {
            let what = "a second ram section";
            return Err(Error::at(self.cursor.offset(), ErrorKind::SectionOrder { what }));
        }
        let has = |name| {
            self.configuration.as_ref().is_some_and(|configuration| configuration.has_capability(name))
        };
        let layout = RamLayout { mapped_ram: has("mapped-ram"), mr_addr: has("x-ignore-shared") };
        self.read_kept(|walk, cursor| walk.ram.read_list(cursor, version_id, layout))?;
        self.announce_blocks()?;
        self.read_pages()
    }

    /// Reads the footer, if any, and notes the section.
    fn end_section(
        &mut self,
        offset: StreamOffset,
        kind: SectionType,
        handler: Arc<Handler>,
        body: StreamOffset,
    ) -> Result<()> {
        let body_end = self.cursor.offset();
        self.note_hollow(&handler, body, body_end).map_err(|error| error.inside(&*handler))?;
        self.keep_footer()?;
        self.footers.read(&mut self.cursor, handler.section_id).map_err(|error| error.inside(&*handler))?;
        self.sections.push(Section { offset, kind, handler, body, body_end });
        Ok(())
    }

    /// Counts the holes of a body that is not RAM. What of it is shown, byte by
    /// byte, shall be no longer than what is there.
    fn note_hollow(&mut self, handler: &Handler, body: StreamOffset, end: StreamOffset) -> Result<()> {
        let len = end.0.saturating_sub(body.0);
        if handler.idstr == *"ram" || len < limit::NOTED_LEN {
            return Ok(());
        }
        let range = index(body.0).zip(index(end.0)).map(|(body, end)| body..end);
        let hole_len = range.and_then(|range| self.input.part(range)).map_or(0, |body| body.hole_len());
        self.hollow_len = self.hollow_len.saturating_add(hole_len);
        let bound = limit::HOLLOW_LEN.max(self.input.data_len());
        if self.hollow_len <= bound {
            return Ok(());
        }
        let (what, met) = ("bytes of holes in sections", self.hollow_len);
        Err(Error::at(body, ErrorKind::Limit { what, met, bound }))
    }

    /// Reads FULL. False if the walk cannot go on and need not.
    fn read_device(&mut self, offset: StreamOffset) -> Result<bool> {
        let handler = self
            .handlers
            .read_header(SectionType::Full, &mut self.cursor)
            .map_err(|error| error.inside(self.place()))?;
        self.keep_device(&handler)?;
        if !self.has_searched {
            self.locate_description(offset, &handler);
        }
        let body = self.cursor.offset();
        match self.boundaries().find_end(&handler, self.cursor, self.located.as_ref(), self.full_count) {
            Some(end) => self.cursor = end,
            None if self.has_neither_footers_nor_description() => {
                self.stop_before_devices(offset)?;
                return Ok(false);
            }
            None => return Err(self.lost(&handler).inside(&*handler)),
        }
        self.full_count += 1;
        self.end_section(offset, SectionType::Full, handler, body)?;
        Ok(true)
    }

    fn has_neither_footers_nor_description(&self) -> bool {
        self.footers != Footers::Present
            && self.located.is_none()
            && self.ram.has_started()
            && !self.ram_is_iterating
    }

    /// Ends the walk at the first device of a stream whose devices nothing
    /// separates. The stream must at least end as one does.
    fn stop_before_devices(&mut self, offset: StreamOffset) -> Result<()> {
        let end = StreamOffset(self.cursor.offset().0 + self.cursor.remaining());
        if self.cursor.rest().last() != Some(&record::QEMU_VM_EOF) {
            return Err(Error::at(end, ErrorKind::Truncated { needed: 1, available: 0 })
                .inside("device state without footers or description, which should end with a zero byte"));
        }
        self.cursor = Cursor::new(&[], end);
        self.warn(
            Some(offset),
            "the stream has neither footers nor a description (machine type 2.2 or older, or saved so): RAM is complete, device state from here on could not be decoded".into(),
            false,
        );
        Ok(())
    }

    /// The failure of a device whose end is nowhere to be found.
    fn lost(&self, handler: &Handler) -> Error {
        let desc = self.located.as_ref().map(|located| &located.desc);
        let device =
            desc.and_then(|desc| desc.device(self.full_count, handler.idstr.as_bytes(), handler.instance_id));
        let described = device.and_then(DeviceDesc::described_len);
        let mut end = self.cursor;
        let available = self.cursor.remaining();
        match described {
            Some(len) if end.bytes(len).is_ok() => {
                let mut behind = end;
                if Footers::is_footer(&end, handler.section_id) && behind.array::<5>().is_ok() {
                    return no_record(behind);
                }
                let met = hex(end.rest().get(..5).unwrap_or(end.rest()));
                Error::at(end.offset(), ErrorKind::Footer { expected: handler.section_id, met })
            }
            Some(needed) => Error::at(self.cursor.offset(), ErrorKind::Truncated { needed, available }),
            // Nothing says how long it is, only that its footer is nowhere:
            // the stream was cut before it.
            None => {
                Error::at(self.cursor.offset(), ErrorKind::Truncated { needed: available + 5, available })
            }
        }
    }

    fn warn(&mut self, offset: Option<StreamOffset>, text: String, is_loss: bool) {
        self.warnings.push(Warning { offset, text, is_loss });
    }

    /// Finds the description when the first device is met, `offset` being
    /// where its section begins and the cursor behind its header.
    fn locate_description(&mut self, offset: StreamOffset, first: &Handler) {
        self.has_searched = true;
        let fits = |desc: &VmDesc| desc.begins_with(first.idstr.as_bytes(), first.instance_id);
        let tail = self.tail.take().filter(|tail| tail.eof > offset && fits(&tail.desc));
        self.located = if self.ram_is_iterating {
            // A device before RAM: there is no walking on from here to prove
            // anything, so it is the last description in the file, and the
            // walk will tell.
            tail.or_else(|| locate::candidates(self.behind(), fits).last())
        } else {
            // The nearest first: behind a stream there may be older ones.
            let mut candidates = locate::candidates(self.behind(), fits).peekable();
            let first_one = candidates.peek().cloned();
            let proven = candidates.find_map(|located| {
                let end = self.boundaries().leads_to(first, self.cursor, &located)?;
                Some((located, end))
            });
            // Devices that lead to an EOF by their footers alone have no
            // description, and what was found is another stream's: it leads
            // nowhere, or past that EOF into the remains of its own devices.
            let undescribed = || match self.footers {
                Footers::Present => self.boundaries().end_of_devices(first, self.cursor, None),
                _ => None,
            };
            match proven {
                Some((located, end)) => {
                    let is_own = end.is_straight || undescribed().is_none_or(|other| other.eof >= end.eof);
                    is_own.then_some(located)
                }
                None if (first_one.is_some() || tail.is_some()) && undescribed().is_some() => None,
                None => first_one.or(tail),
            }
        };
    }

    /// Reads what follows the EOF byte.
    fn read_description(&mut self) -> Result<()> {
        let eof = self.cursor.offset();
        if self.cursor.peek() == Some(record::QEMU_VM_VMDESCRIPTION) {
            self.read_description_text().map_err(|error| error.inside("description"))?;
        }
        let located = self.located.take();
        if self.description.is_none() && located.is_some() {
            let text = "what looked like the stream's description is not where the sections end".to_owned();
            self.warn(Some(eof), text, true);
        }
        if self.description.is_none() && self.cursor.offset() == eof && self.full_count > 0 {
            let text = "the stream has no description (machine property suppress-vmdesc, an old QEMU, or postcopy): device state could not be decoded";
            self.warn(Some(eof), text.into(), false);
        }
        self.note_tail();
        Ok(())
    }

    fn read_description_text(&mut self) -> Result<()> {
        self.cursor.u8()?;
        let at = self.cursor.offset();
        let len = u64::from(self.cursor.be32()?);
        bounded(at, "length of the description", len, limit::VMDESC_LEN)?;
        let offset = self.cursor.offset();
        let text = self.cursor.bytes(len)?;
        // Already read, if it is the one that bodies were measured by.
        let located = self.located.take_if(|located| located.text.as_ptr() == text.as_ptr());
        let desc = match located {
            Some(located) => Ok(located.desc),
            None => VmDesc::parse(text),
        };
        match desc {
            Ok(desc) => {
                self.warn_of_faults(offset, &desc);
                self.description = Some(Description { offset, text, desc });
            }
            Err(why) => {
                let text =
                    format!("the stream's description is unusable: {why}; device state could not be decoded");
                self.warn(Some(offset), text, true);
                self.located = None;
            }
        }
        Ok(())
    }

    /// Says that descriptions of devices are not what QEMU writes.
    fn warn_of_faults(&mut self, offset: StreamOffset, desc: &VmDesc) {
        let mut faulty = desc.devices.iter().filter(|device| device.fault.is_some()).peekable();
        if let Some(first) = faulty.peek().copied() {
            let name = Idstr::from(first.name.as_str());
            let text = format!(
                "descriptions of devices that are unusable: {}, the first is that of \"{name}\": {}",
                faulty.count(),
                first.fault.as_deref().unwrap_or_default()
            );
            self.warn(Some(offset), text, true);
        }
    }

    /// Says what stands behind the stream.
    fn note_tail(&mut self) {
        let rest = self.behind();
        let (gone_by, is_zero) = self.going_by.as_mut().map_or((0, true), GoingBy::drain);
        if !is_zero || !rest.is_zero() {
            let len = rest.len() as u64 + gone_by;
            let text = format!("{len} bytes behind the end of the stream are not part of it");
            // Behind a stream without a description they may well be the
            // remains of one.
            let is_loss = self.description.is_none();
            self.warn(Some(self.cursor.offset()), text, is_loss);
        }
    }

    fn warn_of_unknown_commands(&mut self) {
        let mut unknown = self.commands.iter().filter(|command| command.name().is_none()).peekable();
        if let Some(first) = unknown.peek().copied() {
            let text = format!(
                "commands that no known QEMU writes, passed over by their lengths: {}, the first is {}",
                unknown.count(),
                first.command
            );
            self.warn(Some(first.offset), text, false);
        }
    }

    /// What the walk has found.
    pub(crate) fn finish(mut self) -> Walked<'a> {
        self.warn_of_unknown_commands();
        let ends_early = self.ends_early();
        let ram = self.ram.finish();
        if let Some(ram) = &ram {
            self.warnings.extend(page_size_warning(ram, self.description.as_ref()));
            self.warnings.extend(orphans_warning(ram));
        }
        let input = match self.going_by {
            Some(going_by) => going_by.into_parts(),
            None => Parts::whole(self.input.slice()),
        };
        Walked {
            input,
            configuration: self.configuration,
            has_footers: self.footers == Footers::Present,
            sections: self.sections,
            commands: self.commands,
            ram,
            description: self.description,
            end: self.cursor.offset(),
            warnings: self.warnings,
            losses: Vec::new(),
            doubtful: Vec::new(),
            described: None,
            ends_early,
        }
    }
}

/// That pages are of another size than the description has them.
fn page_size_warning(ram: &Ram<'_>, description: Option<&Description<'_>>) -> Option<Warning> {
    let description = description?;
    let described = description.desc.page_size.filter(|size| *size != ram.page_size().bytes())?;
    let text =
        format!("the description has pages of {described} bytes, the RAM records have {}", ram.page_size());
    Some(Warning { offset: Some(description.offset), text, is_loss: true })
}

/// That there are changes to pages that were never sent.
fn orphans_warning(ram: &Ram<'_>) -> Option<Warning> {
    let (pages, first) = ram.orphans()?;
    let text =
        format!("XBZRLE records of {pages} pages that no record before holds: they count as never sent");
    Some(Warning { offset: Some(first), text, is_loss: true })
}

/// The failure of a device whose footer is where it should be, and nothing that
/// QEMU writes behind it: of a device, not even a name.
fn no_record(behind: Cursor<'_>) -> Error {
    /// Bytes that are shown.
    const SHOWN: usize = 16;
    let met = hex(behind.rest().get(..SHOWN).unwrap_or(behind.rest()));
    let expected = "a device with its name, a command, or the end of the records".to_owned();
    Error::at(behind.offset(), ErrorKind::Malformed { what: "record behind the footer", met, expected })
}
