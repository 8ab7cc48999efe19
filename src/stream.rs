//! The front door: one walk over a stream, from its magic to its end.
//!
//! ```text
//! header [configuration] { command | section [footer] } EOF [description] [padding]
//! ```
//!
//! The walk finds where everything is: sections, RAM pages, the description.
//! It decodes no device and copies no page; both can be done in any order,
//! and by many threads, from what it leaves.
//!

use std::ops::Range;

use crate::body::{Piece, Pieces};
use crate::cursor::Cursor;
use crate::error::{Error, ErrorKind, Result};
use crate::header::Configuration;
use crate::progress::Progress;
use crate::ram::{PageRecord, Ram};
use crate::section::{Command, Handler, Section, SectionType};
use crate::units::{StreamOffset, index};
use crate::vmstate::decode::decode_body;
use crate::vmstate::{DeviceDesc, State};
use crate::walk::Walk;
use crate::walked::{Description, Walked, Warning};

/// A stream that has been walked: what it holds and where.
#[derive(Debug)]
pub struct Stream<'a>(Walked<'a>);

/// A device: a FULL section and its description.
#[derive(Clone, Copy, Debug)]
pub struct Device<'s> {
    /// Where it is.
    pub section: &'s Section,
    /// What the stream's description says of it.
    pub desc: Option<&'s DeviceDesc>,
    body: &'s [u8],
}

impl<'s> Device<'s> {
    /// Its body, as it stands in the stream.
    pub fn body(&self) -> &'s [u8] {
        self.body
    }

    /// What it says, if it is of the old style and has a layout of its own
    /// (`s390-skeys`, `todclock`) that its bytes follow; `None` for all others.
    pub fn pieces(&self) -> Option<impl Iterator<Item = Piece<'s>> + use<'s>> {
        let handler = &self.section.handler;
        let body = Cursor::new(self.body, self.section.body);
        let pieces = Pieces::of_device(handler.idstr.as_bytes(), handler.version_id, body)?;
        Some(pieces.filter_map(Result::ok))
    }

    /// Decodes it by its description.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] and others if there is no description, or if it
    /// does not lead from the begin of the body to its end.
    pub fn decode(&self) -> Result<State<'s, 's>> {
        let cursor = Cursor::new(self.body, self.section.body);
        let Some(desc) = self.desc else {
            let why = "the stream does not describe this device".to_owned();
            return Err(Error::at(self.section.body, ErrorKind::Device { why }).inside(&self.section.handler));
        };
        decode_body(desc, cursor).map_err(|error| error.inside(&self.section.handler))
    }
}

impl<'a> Stream<'a> {
    /// Walks the stream in `input`.
    ///
    /// # Errors
    /// If `input` is not a stream, is cut or damaged, or holds an encoding
    /// that is not read; with the offset, and inside which section.
    pub fn parse(input: &'a [u8]) -> Result<Self> {
        Self::parse_with(input, &Progress::new())
    }

    /// Walks the stream in `input`, and counts the bytes walked.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn parse_with(input: &'a [u8], progress: &Progress) -> Result<Self> {
        let mut late_page_size = None;
        loop {
            let mut walk = Walk::new(input, late_page_size, progress)?;
            walk.run()?;
            match walk.late_page_size() {
                // Pages were met whose size is not what was assumed, and
                // records before them are indexed by the wrong size.
                Some(size) if late_page_size.is_none() => late_page_size = Some(size),
                _ => return Ok(Self(walk.finish())),
            }
        }
    }

    /// The configuration: machine type and what changes the layout. `None`
    /// for machine types up to 2.3.
    pub fn configuration(&self) -> Option<&Configuration> {
        self.0.configuration.as_ref()
    }

    /// Whether sections end with footers.
    pub fn has_footers(&self) -> bool {
        self.0.has_footers
    }

    /// All sections, in the order of the stream.
    pub fn sections(&self) -> &[Section] {
        &self.0.sections
    }

    /// All commands, in the order of the stream.
    pub fn commands(&self) -> &[Command] {
        &self.0.commands
    }

    /// Guest RAM; `None` if the stream has no `ram` section.
    pub fn ram(&self) -> Option<&Ram<'a>> {
        self.0.ram.as_ref()
    }

    /// The description; `None` if there is none that can be used.
    pub fn description(&self) -> Option<&Description<'a>> {
        self.0.description.as_ref()
    }

    /// Where the stream ends, its description included.
    pub fn end(&self) -> StreamOffset {
        self.0.end
    }

    /// What was odd on the way.
    pub fn warnings(&self) -> &[Warning] {
        &self.0.warnings
    }

    /// The devices, in the order of the stream.
    pub fn devices(&self) -> impl Iterator<Item = Device<'_>> {
        let full = self.0.sections.iter().filter(|section| section.kind == SectionType::Full);
        full.enumerate().map(|(nth, section)| {
            let Handler { idstr, instance_id, .. } = &*section.handler;
            let desc = self
                .0
                .description
                .as_ref()
                .and_then(|found| found.desc.device(nth, idstr.as_bytes(), *instance_id));
            Device { section, desc, body: self.body(section) }
        })
    }

    /// All page records, in the order of the stream: each page as often as it
    /// was sent. Reads the stream again as it goes.
    pub fn page_records(&self) -> impl Iterator<Item = PageRecord> {
        let is_ram = |section: &&Section| section.handler.idstr == *"ram";
        self.0.ram.iter().flat_map(move |ram| ram.records(self.0.sections.iter().filter(is_ram)))
    }

    /// The body of a section, as it stands in the stream.
    pub fn body(&self, section: &Section) -> &'a [u8] {
        byte_range(section).and_then(|range| self.0.input.get(range)).unwrap_or_default()
    }

    /// The data of a command, as it stands in the stream.
    pub fn command_data(&self, command: &Command) -> &'a [u8] {
        // Behind type byte, command and length.
        const HEAD_LEN: u64 = 5;
        let range = || {
            let start = index(command.offset.checked_add(HEAD_LEN)?.0)?;
            Some(start..start.checked_add(command.len.into())?)
        };
        range().and_then(|range| self.0.input.get(range)).unwrap_or_default()
    }

    /// How many virtual CPUs the guest has, by their sections.
    pub fn vcpu_count(&self) -> usize {
        // Most targets have a section `cpu_common` for each, all a `cpu`; a
        // few have only one of the two.
        let count = |name: &str| {
            let is_one =
                |section: &&Section| section.kind == SectionType::Full && section.handler.idstr == *name;
            self.0.sections.iter().filter(is_one).count()
        };
        count("cpu").max(count("cpu_common"))
    }
}

fn byte_range(section: &Section) -> Option<Range<usize>> {
    Some(index(section.body.0)?..index(section.body_end.0)?)
}
