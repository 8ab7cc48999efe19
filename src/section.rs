//! Framing: headers and footers of sections, commands between them.
//!
//! ```text
//! 01|04  be32 section_id  str8 idstr  be32 instance_id  be32 version_id   START, FULL
//! 02|03  be32 section_id                                                  PART, END
//! 7e     be32 section_id                                                  footer
//! 08     be16 command  be16 length  data                                  command
//! ```
//!
//! No length stands in front of a body: its reader finds the end, and the
//! footer, where the machine type has footers, proves it right.
//!
//! Source followed: QEMU `migration/savevm.c` (`save_section_header`,
//! `save_section_footer`, `qemu_loadvm_section_start_full`).

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use crate::cursor::Cursor;
use crate::error::{Error, ErrorKind, Result};
use crate::header::hex;
use crate::idstr::Idstr;
use crate::units::StreamOffset;
use crate::wire::{command, record};

/// The four kinds of section.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SectionType {
    /// The first of an iterative handler.
    Start,
    /// One between the first and the last.
    Part,
    /// The last of an iterative handler.
    End,
    /// A device, whole.
    Full,
}

impl SectionType {
    /// The type that a record's first byte stands for.
    pub(crate) fn of(byte: u8) -> Option<Self> {
        Some(match byte {
            record::QEMU_VM_SECTION_START => Self::Start,
            record::QEMU_VM_SECTION_PART => Self::Part,
            record::QEMU_VM_SECTION_END => Self::End,
            record::QEMU_VM_SECTION_FULL => Self::Full,
            _ => return None,
        })
    }
}

impl fmt::Display for SectionType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Start => "START",
            Self::Part => "PART",
            Self::End => "END",
            Self::Full => "FULL",
        })
    }
}

/// What writes sections: QEMU's `SaveStateEntry`, as START and FULL name it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Handler {
    /// The number that ties its sections together. Neither dense nor small.
    pub section_id: u32,
    /// Its name, such as `ram`, `timer`, `0000:00:02.0/vga`.
    pub idstr: Idstr,
    /// Tells handlers of one name apart: an index, an I/O base, or a hash.
    pub instance_id: u32,
    /// The version of its layout when it was saved.
    pub version_id: u32,
}

impl fmt::Display for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "section {} \"{}\"", self.section_id, self.idstr)
    }
}

/// A section: where it is and whose.
#[derive(Clone, Debug)]
pub struct Section {
    /// Where its header begins.
    pub offset: StreamOffset,
    /// START, PART, END or FULL.
    pub kind: SectionType,
    /// Whose it is.
    pub handler: Arc<Handler>,
    /// Where its body begins.
    pub body: StreamOffset,
    /// Where its body ends and the footer, if any, begins.
    pub body_end: StreamOffset,
}

impl Section {
    /// The length of the body in bytes.
    pub fn body_len(&self) -> u64 {
        self.body_end.0.saturating_sub(self.body.0)
    }
}

/// A command between sections: QEMU's `MIG_CMD_*`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Command {
    /// Where the record begins.
    pub offset: StreamOffset,
    /// Which command.
    pub command: u16,
    /// The length of its data in bytes.
    pub len: u16,
}

impl Command {
    /// QEMU's name for it, such as `SWITCHOVER_START`.
    pub fn name(&self) -> Option<&'static str> {
        command::name(self.command)
    }
}

/// Reads what follows the type byte of a command, which stands at `offset`.
pub(crate) fn read_command(offset: StreamOffset, cursor: &mut Cursor<'_>) -> Result<Command> {
    let mut ahead = *cursor;
    let command = Command { offset, command: ahead.be16()?, len: ahead.be16()? };
    ahead.bytes(command.len.into())?;
    *cursor = ahead;
    Ok(command)
}

/// Reads what follows the type byte of START and FULL.
pub(crate) fn read_handler(cursor: &mut Cursor<'_>) -> Result<Handler> {
    let mut ahead = *cursor;
    let handler = Handler {
        section_id: ahead.be32()?,
        idstr: Idstr::from(ahead.str8()?),
        instance_id: ahead.be32()?,
        version_id: ahead.be32()?,
    };
    *cursor = ahead;
    Ok(handler)
}

/// The handlers met so far, and what has been seen of each.
#[derive(Default)]
pub(crate) struct Handlers(HashMap<u32, Entry>);

struct Entry {
    handler: Arc<Handler>,
    iterating: bool,
}

impl Handlers {
    /// The handler of this id, if its START or FULL has been met.
    pub(crate) fn get(&self, section_id: u32) -> Option<&Arc<Handler>> {
        self.0.get(&section_id).map(|entry| &entry.handler)
    }

    /// The handler of the `ram` section.
    pub(crate) fn ram(&self) -> Option<&Arc<Handler>> {
        self.0.values().map(|entry| &entry.handler).find(|handler| handler.idstr == *"ram")
    }

    /// Whether PART or END of this id can come next.
    pub(crate) fn is_iterating(&self, section_id: u32) -> bool {
        self.0.get(&section_id).is_some_and(|entry| entry.iterating)
    }

    /// Reads the header of a section whose type byte has been read.
    ///
    /// Refuses orders that QEMU never writes: PART or END of an id that is
    /// not iterating, START of one that is, one id under two names. FULL may
    /// follow END: vfio's device writes both.
    pub(crate) fn read_header(&mut self, kind: SectionType, cursor: &mut Cursor<'_>) -> Result<Arc<Handler>> {
        let at = cursor.offset();
        let out_of_order = |what| Error::at(at, ErrorKind::SectionOrder { what });
        match kind {
            SectionType::Start | SectionType::Full => {
                let handler = read_handler(cursor)?;
                let iterating = kind == SectionType::Start;
                if let Some(known) = self.0.get_mut(&handler.section_id) {
                    if *known.handler != handler {
                        return Err(
                            out_of_order("the section id belongs to another name already").inside(&handler)
                        );
                    }
                    if iterating {
                        return Err(
                            out_of_order("START of a section that has started already").inside(&handler)
                        );
                    }
                    return Ok(Arc::clone(&known.handler));
                }
                let handler = Arc::new(handler);
                let entry = Entry { handler: Arc::clone(&handler), iterating };
                self.0.insert(handler.section_id, entry);
                Ok(handler)
            }
            SectionType::Part | SectionType::End => {
                let section_id = cursor.be32()?;
                let known = self.0.get_mut(&section_id).filter(|known| known.iterating);
                let known = known.ok_or_else(|| {
                    out_of_order("PART or END of a section that has not started, or has ended")
                        .inside(format!("section {section_id}"))
                })?;
                known.iterating = kind == SectionType::Part;
                Ok(Arc::clone(&known.handler))
            }
        }
    }
}

/// Whether sections end with footers. Found out once, behind the first body.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Footers {
    #[default]
    Unknown,
    Present,
    Absent,
}

impl Footers {
    /// The footer of `section_id`.
    pub(crate) fn of(section_id: u32) -> [u8; 5] {
        let [a, b, c, d] = section_id.to_be_bytes();
        [record::QEMU_VM_SECTION_FOOTER, a, b, c, d]
    }

    /// Whether the bytes at `cursor` are the footer of `section_id`.
    pub(crate) fn is_footer(cursor: &Cursor<'_>, section_id: u32) -> bool {
        cursor.rest().starts_with(&Self::of(section_id))
    }

    /// Reads the footer of `section_id`, if the stream has footers.
    ///
    /// Called only behind bodies whose own layout says where they end, so the
    /// first call may decide: a footer's byte means that there are footers.
    pub(crate) fn read(&mut self, cursor: &mut Cursor<'_>, section_id: u32) -> Result<()> {
        if *self == Self::Unknown {
            let present = cursor.peek() == Some(record::QEMU_VM_SECTION_FOOTER);
            *self = if present { Self::Present } else { Self::Absent };
        }
        if *self == Self::Absent {
            return Ok(());
        }
        if !Self::is_footer(cursor, section_id) {
            let rest = cursor.rest();
            if rest.len() < 5 {
                return Err(Error::at(
                    cursor.offset(),
                    ErrorKind::Truncated { needed: 5, available: rest.len() as u64 },
                ));
            }
            let met = hex(rest.get(..5).unwrap_or(rest));
            return Err(Error::at(cursor.offset(), ErrorKind::Footer { expected: section_id, met }));
        }
        cursor.array::<5>().map(drop)
    }
}
