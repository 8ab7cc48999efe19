//! What a walk finds.

use std::fmt;

use crate::bytes::Bytes;
use crate::feed::Parts;
use crate::header::Configuration;
use crate::loss::{DoubtfulPage, Loss};
use crate::ram::Ram;
use crate::section::{Command, Section};
use crate::units::StreamOffset;
use crate::vmstate::VmDesc;
use crate::vmstate::locate::{self, Located};

/// All that a walk leaves.
#[derive(Debug)]
pub(crate) struct Walked<'a> {
    pub(crate) input: Parts<'a>,
    pub(crate) configuration: Option<Configuration>,
    pub(crate) has_footers: bool,
    pub(crate) sections: Vec<Section>,
    pub(crate) commands: Vec<Command>,
    pub(crate) ram: Option<Ram<'a>>,
    pub(crate) description: Option<Description<'a>>,
    pub(crate) end: StreamOffset,
    pub(crate) warnings: Vec<Warning>,
    pub(crate) losses: Vec<Loss>,
    pub(crate) doubtful: Vec<DoubtfulPage>,
    /// Whether the EOF byte stands where a stream cannot end.
    pub(crate) ends_early: bool,
    /// Which description each FULL section has, where some may be lost.
    pub(crate) described: Option<Vec<Option<usize>>>,
}

impl<'a> Walked<'a> {
    /// The data of a command, as it stands in the stream.
    pub(crate) fn command_data(&self, command: &Command) -> &'a [u8] {
        // Behind type byte, command and length.
        const HEAD_LEN: u64 = 5;
        let start = command.offset.checked_add(HEAD_LEN);
        let range = start.and_then(|start| Some(start..start.checked_add(command.len.into())?));
        range.and_then(|range| self.input.get(range)).unwrap_or_default()
    }
}

/// The stream's own description of its devices.
#[derive(Debug)]
pub struct Description<'a> {
    /// Where its text begins.
    pub offset: StreamOffset,
    /// The text, JSON, as QEMU wrote it.
    pub text: &'a [u8],
    /// What it says.
    pub desc: VmDesc,
}

impl<'a> Description<'a> {
    /// The description that `input` ends with, zero padding aside, found
    /// without a walk: whether it is this stream's is not proven.
    ///
    /// For streams whose RAM cannot be read. `None` if there is none.
    pub fn at_end_of(input: impl Into<Bytes<'a>>) -> Option<Self> {
        let Located { eof, text, desc } = locate::at_end(input.into())?;
        let offset = eof.checked_add(locate::HEAD_LEN)?;
        Some(Self { offset, text, desc })
    }
}

/// Something that a user of the stream should know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Warning {
    /// Where in the stream, if it has a place there.
    pub offset: Option<StreamOffset>,
    /// What it is.
    pub text: String,
    /// Whether something that the stream should hold could not be had.
    pub is_loss: bool,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.offset {
            Some(at) => write!(f, "at {at}: {}", self.text),
            None => f.write_str(&self.text),
        }
    }
}
