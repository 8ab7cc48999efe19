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

use crate::body::{Piece, Pieces};
use crate::bytes::Bytes;
use crate::cursor::Cursor;
use crate::error::{Error, ErrorKind, Result};
use crate::feed::{Incoming, Kept};
use crate::header::Configuration;
use crate::loss::{DoubtfulPage, Loss};
use crate::progress::Progress;
use crate::ram::join::ChannelPages;
use crate::ram::{PageRecord, PageSizeHint, PageTaker, Ram};
use crate::section::{Command, Handler, Section, SectionType};
use crate::units::{BlockId, StreamOffset};
use crate::vmstate::decode::decode_body;
use crate::vmstate::{DeviceDesc, State};
use crate::walk::{Walk, discarded, salvage};
use crate::walked::{Description, Walked, Warning};

/// A stream that has been walked: what it holds and where.
#[derive(Debug)]
pub struct Stream<'a>(Walked<'a>);

const LONE_CHANNEL: &str = "this is the main channel of a multifd migration: none of its pages holds data, they went through other channels";

const LACKS_CHANNELS: &str = "pages are in no record, and MULTIFD_FLUSH says that pages may have gone through other channels (multifd, and postcopy)";

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

    /// Walks the stream in `input`, and counts the bytes walked. Given an
    /// [`Input`](crate::Input) rather than its bytes, it passes over the holes of
    /// its file.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn parse_with(input: impl Into<Bytes<'a>>, progress: &Progress) -> Result<Self> {
        let input = input.into();
        let mut late_page_size = None;
        loop {
            let mut walk = Walk::new(input, late_page_size, progress)?;
            walk.run()?;
            match walk.late_page_size().and_then(|size| PageSizeHint::late(late_page_size, size)) {
                // Pages were met whose size is not what was assumed, and
                // records before them are indexed by the wrong size.
                Some(hint) => late_page_size = Some(hint),
                None => return Ok(Self::warned(walk.finish())),
            }
        }
    }

    /// Walks a stream that goes by and cannot be gone back to: out of a pipe, or
    /// decompressed. Its pages go to `taker` as they come; a page that is sent
    /// again goes there again. All else is copied to `kept`.
    ///
    /// Takes three chunks, what is kept, and 24 bytes an extent. A thread
    /// reads; if the walk fails, it is left behind in its last read.
    ///
    /// # Errors
    /// As [`parse`](Self::parse); what the reader and the taker say;
    /// [`ErrorKind::GoneBy`] for what cannot be read so, which is mapped-ram;
    /// [`ErrorKind::TooMuchToKeep`] for a device of more than 64 MiB, if no
    /// layout of its own tells its end, and for devices of 512 MiB in all.
    pub fn read_once(
        incoming: Incoming,
        kept: &'a Kept,
        progress: &Progress,
        taker: &mut impl PageTaker,
    ) -> Result<Self> {
        let mut walk = Walk::over_reader(incoming, kept, progress, taker)?;
        let behind = walk.run_over_reader()?;
        if walk.late_page_size().is_some() {
            return Err(Error::new(ErrorKind::GoneBy { what: "the page size shows too late" }));
        }
        let mut stream = Self::warned(walk.finish());
        if let Some(failure) = behind {
            stream.warn_behind(&failure);
        }
        Ok(stream)
    }

    /// Adds to the [`warnings`](Self::warnings) how it ended to unpack what the
    /// stream is inside of, where that is no loss: behind the stream's end. What
    /// goes by has that already.
    pub fn warn_behind(&mut self, failure: &Error) {
        let text = format!("behind the end of the stream: {failure}");
        self.0.warnings.push(Warning { offset: Some(self.0.end), text, is_loss: false });
    }

    /// Warns of a stream whose pages are in other files: all of its memory
    /// seems to be zero, or most of it.
    fn warned(mut walked: Walked<'a>) -> Self {
        walked.warnings.extend(discarded::warnings(&walked));
        let Some(ram) = &walked.ram else { return Self(walked) };
        let is_lone = ram.is_lone_channel().then_some(LONE_CHANNEL);
        if let Some(text) = is_lone.or(ram.may_lack_channels().then_some(LACKS_CHANNELS)) {
            let (offset, text) = (Some(ram.first_record()), text.to_owned());
            walked.warnings.push(Warning { offset, text, is_loss: true });
        }
        if let Some(error) = walked.ram.as_ref().and_then(unwritten) {
            let warning = Warning { offset: error.offset(), text: error.kind().to_string(), is_loss: true };
            walked.warnings.push(warning);
        }
        Self(walked)
    }

    /// Refuses a stream whose memory would seem to be zero, although its
    /// devices can be read: the main channel of a multifd migration, whose
    /// [channels](Self::join) are not there, and mapped-ram without bitmaps.
    ///
    /// # Errors
    /// [`ErrorKind::Part`], [`ErrorKind::BitmapUnwritten`].
    pub fn check_whole(&self) -> Result<()> {
        if let Some(error) = self.ram().and_then(unwritten) {
            return Err(error);
        }
        match self.ram().filter(|ram| ram.is_lone_channel()) {
            Some(ram) => {
                let kind = ErrorKind::Part { why: LONE_CHANNEL.to_owned() };
                Err(Error::at(ram.first_record(), kind).inside("ram section"))
            }
            None => Ok(()),
        }
    }

    /// Takes in the pages that went through the channels of a multifd
    /// migration, whose main channel this is. All channels at once.
    ///
    /// # Errors
    /// [`ErrorKind::Part`] if one is missing, cut off or of another migration;
    /// others for pages that are outside of their blocks. The stream is as it
    /// was then.
    pub fn join(&mut self, channels: &[ChannelPages<'a>]) -> Result<()> {
        let Some(ram) = &mut self.0.ram else { return Ok(()) };
        let sections = self.0.sections.iter().filter(|section| section.handler.idstr == *"ram");
        ram.join(sections, channels)?;
        self.0.warnings.retain(|warning| ![LONE_CHANNEL, LACKS_CHANNELS].contains(&&*warning.text));
        Ok(())
    }

    /// Supplies the content of a RAM block that the stream does not have
    /// (capability `x-ignore-shared`): the bytes of the file that was shared.
    ///
    /// # Errors
    /// If `content` is not as long as the block.
    pub fn supply(&mut self, block: BlockId, content: impl Into<Bytes<'a>>) -> Result<()> {
        self.0.ram.as_mut().map_or(Ok(()), |ram| ram.supply(block, content))
    }

    /// Walks the stream in `input` as [`parse_with`](Self::parse_with) does,
    /// and goes on behind what is cut or damaged: see `docs/salvage.md` for
    /// what is promised. What was lost is in [`losses`](Self::losses).
    ///
    /// # Errors
    /// If `input` is not a stream.
    pub fn salvage(input: impl Into<Bytes<'a>>, progress: &Progress) -> Result<Self> {
        let input = input.into();
        match Self::parse_with(input, progress) {
            Ok(stream) if stream.0.ends_early => {
                let error = Error::at(stream.end(), ErrorKind::RecordType { met: 0 });
                Ok(salvage(input, progress, error).map_or(stream, Self::tolerated))
            }
            Ok(stream) => match stream.ram().and_then(unwritten) {
                Some(error) => salvage(input, progress, error).map(Self::tolerated),
                None => Ok(stream),
            },
            Err(error) => {
                let warning = survived(&error);
                let mut stream = salvage(input, progress, error).map(Self::tolerated)?;
                // A header may be strange and yet lead on.
                if stream.losses().is_empty() && !stream.warnings().iter().any(|warning| warning.is_loss) {
                    stream.0.warnings.push(warning);
                }
                Ok(stream)
            }
        }
    }

    /// Adds the pages that cannot be decoded, or not with certainty, to the
    /// doubtful ones.
    fn tolerated(mut walked: Walked<'a>) -> Self {
        let gaps: Vec<StreamOffset> =
            walked.losses.iter().filter(|loss| loss.is_in_ram).map(|loss| loss.offset).collect();
        if let Some(ram) = &mut walked.ram {
            let doubtful = ram.tolerate(&gaps);
            if let Some(first) = doubtful.first() {
                let text = format!("encoded pages that damage may have changed: {}", doubtful.len());
                walked.warnings.push(Warning { offset: Some(first.payload), text, is_loss: true });
            }
            walked.doubtful.extend(doubtful);
        }
        Self::warned(walked)
    }

    /// The ranges of the stream that are in no result, in order. Empty if it
    /// is whole.
    pub fn losses(&self) -> &[Loss] {
        &self.0.losses
    }

    /// Pages that may not be what the guest had, although their records are
    /// whole: damage shows in the record behind, but may begin before; or only the
    /// length of a gap says whose they are.
    pub fn doubtful_pages(&self) -> &[DoubtfulPage] {
        &self.0.doubtful
    }

    /// Pages of a block whose last record stands before bytes of the `ram`
    /// section that are lost: the guest may have sent them again there.
    pub fn possibly_stale_pages(&self, block: BlockId) -> u64 {
        let lost = self.0.losses.iter().rev().find(|loss| loss.is_in_ram);
        let pages = self.ram().and_then(|ram| ram.pages(block));
        pages.zip(lost).map_or(0, |(pages, loss)| pages.last_sent_before(loss.offset))
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
            let desc = self.0.description.as_ref().and_then(|found| match &self.0.described {
                Some(described) => found.desc.devices.get((*described.get(nth)?)?),
                None => found.desc.device(nth, idstr.as_bytes(), *instance_id),
            });
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
        self.0.input.get(section.body..section.body_end).unwrap_or_default()
    }

    /// The data of a command, as it stands in the stream.
    pub fn command_data(&self, command: &Command) -> &'a [u8] {
        self.0.command_data(command)
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

/// What a salvage that has lost nothing says of the failure that it was for.
fn survived(error: &Error) -> Warning {
    let text = format!("only a salvage gets over this: {error}");
    Warning { offset: error.offset(), text, is_loss: true }
}

/// The failure of a block of mapped-ram whose bitmap was not written, and whose
/// pages were not taken by their content instead.
fn unwritten(ram: &Ram<'_>) -> Option<Error> {
    let block = ram.block(ram.unwritten().last()?)?;
    let kind = ErrorKind::BitmapUnwritten { idstr: block.idstr.to_string() };
    Some(Error::at(block.offset, kind).inside("ram section"))
}
