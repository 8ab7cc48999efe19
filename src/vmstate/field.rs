//! Types of fields, and how the bytes of a plain one are read.
//!
//! The description names a type and gives a size. Plain types are read here;
//! those that hold structures are [`decode`](super::decode)'s. A type this
//! reader does not know is `size` opaque bytes: that is always enough to find
//! what comes next.
//!
//! Source followed: QEMU `migration/vmstate-types.c` and the `VMStateInfo`s of
//! devices and targets, by the `name` that each has there.

use crate::cursor::Cursor;
use crate::error::{Error, ErrorKind, Result};
use crate::vmstate::value::Value;
use crate::wire::pointer;

/// What a field's type says of its bytes. Several of QEMU's types can be one
/// of these: the description's own word is [`FieldDesc::type_name`].
///
/// [`FieldDesc::type_name`]: super::FieldDesc::type_name
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FieldType {
    /// One byte, 0 or 1.
    Bool,
    /// A big-endian two's complement number of so many bytes.
    Signed(u8),
    /// A big-endian unsigned number of so many bytes.
    Unsigned(u8),
    /// A register: a big-endian unsigned number of the described size, or
    /// several of 8 bytes.
    Register,
    /// Big-endian numbers of so many bytes, as many as the size holds.
    Words(u8),
    /// As many opaque bytes as the size says.
    Opaque,
    /// The marker of a NULL pointer.
    NullPointer,
    /// The marker of a pointer that is NULL or not.
    PointerMarker,
    /// A structure, described in the field.
    Struct,
    /// Elements, each behind a byte 1; a byte 0 ends them.
    List,
    /// A count, entries of key and value, each behind a byte 1; then 0.
    Tree,
    /// A one-byte length, then as many bytes.
    CountedByte,
    /// A four-byte length, then as many bytes.
    CountedLong,
    /// A four-byte count, then as many numbers of 8 bytes.
    CountedWords,
    /// `usb-redir-bufpq`: a count, then length, status and bytes of each.
    UsbRedirBuffers,
    /// Chunks, each behind a four-byte length; a length of 0 ends them.
    Chunks,
    /// `irqs`: an eight-byte count, or -1, then 72 bytes each.
    FlicIrqs,
}

impl FieldType {
    /// The type by the word that the description has for it.
    pub(crate) fn of(name: &str) -> Self {
        match name {
            "bool" | "powered_off" => Self::Bool,
            "int8" => Self::Signed(1),
            "int16" => Self::Signed(2),
            // "le" is "less or equal", a check on load, and no byte order.
            "int32" | "int32 equal" | "int32 le" => Self::Signed(4),
            "int64" | "timer" => Self::Signed(8),
            "uint8" | "uint8 equal" | "uint16_from_uint8" | "fd" => Self::Unsigned(1),
            "uint16" | "uint16 equal" | "int32_as_uint16" => Self::Unsigned(2),
            "uint32" | "uint32 equal" | "cpu/altivec/vscr" | "cpsr" => Self::Unsigned(4),
            // QEMU's name for the check of uint64 fields has no "u".
            "uint64" | "int64 equal" | "CPU_Double_U" | "float64" | "vsr" | "pstate64" => Self::Unsigned(8),
            "fpr" | "fpscr" | "fpcr" | "fpsr" | "psr" | "xcc" | "fsr" | "sr" | "msr" | "psw" | "sreg"
            | "rampD" | "rampX" | "rampY" | "rampZ" | "eind" | "slbe" | "avr" => Self::Register,
            "bitmap" => Self::Words(8),
            "pci irq state" => Self::Words(4),
            "nullptr" => Self::NullPointer,
            "ptr-marker" => Self::PointerMarker,
            "struct" | "vstruct" | "tmp" | "vdagent/cbinfos" => Self::Struct,
            "qtailq" | "qlist" => Self::List,
            "gtree" => Self::Tree,
            "capability" => Self::CountedByte,
            "GByteArray" | "usb-redir-parser" => Self::CountedLong,
            "usb-redir-packet-id-q" => Self::CountedWords,
            "usb-redir-bufpq" => Self::UsbRedirBuffers,
            "virtio-fs back-end state" | "virtio-net vhost-user backend state" => Self::Chunks,
            "irqs" => Self::FlicIrqs,
            // Known and opaque: buffer, unused_buffer, pci config, msix state,
            // shpc, virtio, virtio-gpu, blob, scsi-requests, tlb entry,
            // tlb_entry. Unknown: the same.
            _ => Self::Opaque,
        }
    }

    /// Whether the bytes themselves say how many they are, whatever size the
    /// description gives.
    pub(crate) fn is_self_delimiting(self) -> bool {
        matches!(
            self,
            Self::List
                | Self::Tree
                | Self::CountedByte
                | Self::CountedLong
                | Self::CountedWords
                | Self::UsbRedirBuffers
                | Self::Chunks
                | Self::FlicIrqs
        )
    }

    /// Whether an element of this type can be a pointer's marker.
    pub(crate) fn is_marker(self) -> bool {
        matches!(self, Self::NullPointer | Self::PointerMarker)
    }
}

/// Reads a field of a plain type: none that holds structures.
pub(crate) fn read_plain<'a, 'd>(
    cursor: &mut Cursor<'a>,
    kind: FieldType,
    size: u64,
) -> Result<Value<'a, 'd>> {
    Ok(match kind {
        FieldType::Bool => Value::Bool(cursor.u8()? != 0),
        FieldType::Signed(len) => Value::Signed(signed(cursor.bytes(len.into())?)),
        FieldType::Unsigned(len) => Value::Unsigned(unsigned(cursor.bytes(len.into())?)),
        FieldType::Register if matches!(size, 1 | 2 | 4 | 8) => {
            Value::Unsigned(unsigned(cursor.bytes(size)?))
        }
        FieldType::Register => words(cursor.bytes(size)?, 8),
        FieldType::Words(len) => words(cursor.bytes(size)?, len.into()),
        FieldType::NullPointer | FieldType::PointerMarker => read_marker(cursor, kind)?,
        FieldType::CountedByte => Value::Bytes(cursor.str8()?),
        FieldType::CountedLong => {
            let len = cursor.be32()?;
            Value::Bytes(cursor.bytes(len.into())?)
        }
        FieldType::CountedWords => {
            let count = cursor.be32()?;
            words(cursor.bytes(u64::from(count) * 8)?, 8)
        }
        FieldType::UsbRedirBuffers | FieldType::Chunks | FieldType::FlicIrqs => {
            let start = *cursor;
            skip_counted(cursor, kind)?;
            let len = cursor.offset().0 - start.offset().0;
            let mut all = start;
            Value::Bytes(all.bytes(len)?)
        }
        FieldType::Opaque | FieldType::Struct | FieldType::List | FieldType::Tree => {
            Value::Bytes(cursor.bytes(size)?)
        }
    })
}

fn read_marker<'a, 'd>(cursor: &mut Cursor<'a>, kind: FieldType) -> Result<Value<'a, 'd>> {
    let at = cursor.offset();
    match cursor.u8()? {
        pointer::VMS_NULLPTR_MARKER => Ok(Value::Null),
        pointer::VMS_MARKER_PTR_VALID if kind == FieldType::PointerMarker => Ok(Value::Present),
        met => {
            let expected = match kind {
                FieldType::PointerMarker => "0x30 or 0x31",
                _ => "0x30",
            };
            let kind = ErrorKind::Malformed {
                what: "marker of a pointer",
                met: format!("{met:#04x}"),
                expected: expected.to_owned(),
            };
            Err(Error::at(at, kind))
        }
    }
}

/// Goes over the types that are lists of opaque pieces.
fn skip_counted(cursor: &mut Cursor<'_>, kind: FieldType) -> Result<()> {
    match kind {
        FieldType::UsbRedirBuffers => {
            for _ in 0..cursor.be32()? {
                let len = cursor.be32()?;
                cursor.be32()?;
                cursor.bytes(len.into())?;
            }
        }
        FieldType::FlicIrqs => {
            let at = cursor.offset();
            let count = cursor.be64()?;
            if count != u64::MAX {
                let len = count.checked_mul(72).ok_or_else(|| {
                    Error::at(at, ErrorKind::Truncated { needed: u64::MAX, available: cursor.remaining() })
                })?;
                cursor.bytes(len)?;
            }
        }
        _ => loop {
            let len = cursor.be32()?;
            if len == 0 {
                break;
            }
            cursor.bytes(len.into())?;
        },
    }
    Ok(())
}

/// The number that up to 8 bytes stand for, big-endian.
fn unsigned(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn signed(bytes: &[u8]) -> i64 {
    // Moved to the top so that the shift back down copies the sign.
    let shift = 64 - 8 * u32::try_from(bytes.len()).unwrap_or(8).min(8);
    (unsigned(bytes) << (shift % 64)).cast_signed() >> (shift % 64)
}

/// Numbers of `len` bytes each, or the bytes as they are if they do not divide.
fn words<'a, 'd>(bytes: &'a [u8], len: usize) -> Value<'a, 'd> {
    let chunks = bytes.chunks_exact(len);
    if chunks.remainder().is_empty() {
        Value::Words(chunks.map(unsigned).collect())
    } else {
        Value::Bytes(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::StreamOffset;

    #[test]
    fn numbers_are_big_endian_and_keep_their_sign() {
        assert_eq!(signed(&[0xff]), -1);
        assert_eq!(signed(&[0x80, 0, 0, 0]), i64::from(i32::MIN));
        assert_eq!(signed(&[0x7f; 8]), 0x7f7f_7f7f_7f7f_7f7f);
        assert_eq!(signed(&[0xff; 8]), -1);
        assert_eq!(unsigned(&[0xff; 8]), u64::MAX);
        assert_eq!(signed(&[]), 0);
    }

    #[test]
    fn less_or_equal_is_no_byte_order() {
        assert_eq!(FieldType::of("int32 le"), FieldType::Signed(4));
    }

    #[test]
    fn a_count_beyond_the_input_is_an_error_at_once() {
        for kind in
            [FieldType::CountedLong, FieldType::CountedWords, FieldType::UsbRedirBuffers, FieldType::FlicIrqs]
        {
            let mut cursor = Cursor::new(&[0x7f; 24], StreamOffset(0));
            assert!(read_plain(&mut cursor, kind, 24).is_err(), "{kind:?}");
        }
    }
}
