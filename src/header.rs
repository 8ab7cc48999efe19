//! The stream's head: magic, version, configuration.
//!
//! ```text
//! 51 45 56 4d  00 00 00 03                      "QEVM", version 3
//! 07  be32 length  machine type                 configuration, since QEMU 2.4
//!   { 05  str8 name  be32 version  payload }    its subsections
//! ```
//!
//! The configuration is there or not by its first byte alone: machine types
//! up to 2.3 and Xen have none. Its subsections are not framed by a length:
//! each is read by its own layout, and a name this reader does not know is an
//! error, because nothing behind it could be found.
//!
//! Source followed: QEMU `migration/savevm.c` (`vmstate_configuration`).

use crate::cursor::Cursor;
use crate::error::{Error, ErrorKind, Result};
use crate::idstr::Idstr;
use crate::units::{StreamOffset, TargetPageSize};
use crate::wire::{self, limit, record};
use crate::wrapper::{Layer, PREFIX_LEN, detect};

/// What the configuration record says.
#[derive(Clone, Debug, Default)]
pub struct Configuration {
    /// Where the record begins.
    pub offset: StreamOffset,
    /// The machine type, such as `pc-i440fx-10.0`.
    pub machine: Idstr,
    /// `configuration/target-page-bits`: given by targets whose page size
    /// varies, since QEMU 2.8.
    pub target_page_size: Option<TargetPageSize>,
    /// `configuration/capabilities`: those that change the layout of the
    /// stream, since QEMU 4.0. Most capabilities are never listed.
    pub capabilities: Vec<Idstr>,
    /// `configuration/uuid`: the guest's, with capability `validate-uuid`.
    pub uuid: Option<[u8; 16]>,
}

impl Configuration {
    /// Whether a capability is listed.
    pub fn has_capability(&self, name: &str) -> bool {
        self.capabilities.iter().any(|capability| *capability == *name)
    }
}

/// Reads magic and version.
pub(crate) fn read_magic(cursor: &mut Cursor<'_>) -> Result<()> {
    let start = *cursor;
    let head = start.rest();
    let magic = wire::QEMU_VM_FILE_MAGIC.to_be_bytes();
    let is_cut = !head.is_empty() && magic.starts_with(head);
    if !head.starts_with(&magic) && !is_cut {
        return Err(Error::at(start.offset(), not_a_stream(head)));
    }
    cursor.be32()?;
    let at = cursor.offset();
    let met = cursor.be32()?;
    if met != wire::QEMU_VM_FILE_VERSION {
        let kind = ErrorKind::Version { what: "stream", met, expected: wire::QEMU_VM_FILE_VERSION };
        return Err(Error::at(at, kind));
    }
    Ok(())
}

/// Says what a file that is no bare stream might be, by its first bytes.
fn not_a_stream(head: &[u8]) -> ErrorKind {
    let looks_like = match detect(head.get(..PREFIX_LEN).unwrap_or(head)) {
        Layer::Stream | Layer::Unknown => None,
        layer => Some(layer.to_string()),
    };
    let met = if head.is_empty() {
        "nothing (the file is empty)".to_owned()
    } else {
        hex(head.get(..8).unwrap_or(head))
    };
    ErrorKind::NotAStream { met, looks_like }
}

/// Bytes as hex, for messages.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}

/// Reads the configuration record, if the next byte begins one.
pub(crate) fn read_configuration(cursor: &mut Cursor<'_>) -> Result<Option<Configuration>> {
    if cursor.peek() != Some(record::QEMU_VM_CONFIGURATION) {
        return Ok(None);
    }
    parse_configuration(cursor).map(Some).map_err(|error| error.inside("configuration"))
}

fn parse_configuration(cursor: &mut Cursor<'_>) -> Result<Configuration> {
    let offset = cursor.offset();
    cursor.u8()?;
    let len_at = cursor.offset();
    let len = cursor.be32()?;
    bounded(len_at, "length of the machine type", len.into(), limit::MACHINE_NAME_LEN)?;
    let machine = Idstr::from(cursor.bytes(len.into())?);
    let mut configuration = Configuration { offset, machine, ..Configuration::default() };
    while let Some((name, at)) = subsection_name(cursor)? {
        parse_subsection(cursor, name, at, &mut configuration)?;
    }
    Ok(configuration)
}

/// The name of the subsection that begins here, if one does that belongs to
/// the configuration. QEMU decides the same way, by the name's beginning.
fn subsection_name<'a>(cursor: &mut Cursor<'a>) -> Result<Option<(&'a [u8], StreamOffset)>> {
    if cursor.peek() != Some(record::QEMU_VM_SUBSECTION) {
        return Ok(None);
    }
    let at = cursor.offset();
    cursor.u8()?;
    let name = cursor.str8()?;
    if !name.starts_with(b"configuration/") {
        let kind = ErrorKind::Malformed {
            what: "subsection behind the configuration",
            met: Idstr::from(name).to_string(),
            expected: "a name that begins with configuration/".into(),
        };
        return Err(Error::at(at, kind));
    }
    Ok(Some((name, at)))
}

fn parse_subsection(
    cursor: &mut Cursor<'_>,
    name: &[u8],
    at: StreamOffset,
    configuration: &mut Configuration,
) -> Result<()> {
    let met = cursor.be32()?;
    if met != 1 {
        return Err(Error::at(at, ErrorKind::Version { what: "configuration subsection", met, expected: 1 }));
    }
    match name {
        b"configuration/target-page-bits" => {
            let at = cursor.offset();
            let bits = cursor.be32()?;
            let size = TargetPageSize::from_bits(bits).ok_or_else(|| {
                let what = "target-page-bits";
                Error::at(
                    at,
                    ErrorKind::Malformed { what, met: bits.to_string(), expected: "8 to 16".into() },
                )
            })?;
            configuration.target_page_size = Some(size);
        }
        b"configuration/capabilities" => {
            let at = cursor.offset();
            let count = cursor.be32()?;
            bounded(at, "number of capabilities", count.into(), limit::CAPABILITIES)?;
            for _ in 0..count {
                configuration.capabilities.push(Idstr::from(cursor.str8()?));
            }
        }
        b"configuration/uuid" => configuration.uuid = Some(cursor.array()?),
        _ => {
            let feature = format!("the subsection \"{}\"", Idstr::from(name));
            return Err(Error::at(at, ErrorKind::Unsupported { feature }));
        }
    }
    Ok(())
}

/// Fails if a number met in the stream is over its limit.
pub(crate) fn bounded(at: StreamOffset, what: &'static str, met: u64, bound: u64) -> Result<()> {
    if met > bound {
        return Err(Error::at(at, ErrorKind::Limit { what, met, bound }));
    }
    Ok(())
}
