//! Decoding a device: its body and its description make values.
//!
//! What the bytes say of their own length goes before the sizes that the
//! description gives, which are those of an array's first element. Then the
//! two must meet: a body that its description does not fill to the byte is
//! read in the other ways that QEMU's known faults call for ([`Reading`]), and
//! if none fits, it is not decoded.

use crate::cursor::Cursor;
use crate::error::{Error, ErrorKind, Result};
use crate::vmstate::field::{FieldType, read_plain};
use crate::vmstate::value::{Field, State, Subsection, TreeKey, Value};
use crate::vmstate::vmdesc::{DeviceDesc, FieldDesc, Vmsd};
use crate::wire::{limit, record};

/// One way to understand a description where QEMU's own is ambiguous.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Reading {
    arrays: ArrayReading,
    /// Whether an array of pointers has one more NULL than is described.
    ///
    /// Since QEMU 11.0: a last run of one NULL behind a longer one is left
    /// out of the description.
    trailing_marker: bool,
    /// Whether the described size of lists is believed rather than the bytes.
    sized: bool,
}

/// How many elements each part of an array of pointers stands for.
///
/// QEMU describes such an array in parts, one for each run of NULL or present
/// elements, all of one name. Since QEMU 9.1.3, 9.2.1 and 10.0 ("migration:
/// Dump correct JSON format for nullptr replacement") the first part's `array_len` is that of the whole array if
/// its first element is not NULL.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ArrayReading {
    /// What the part says.
    Literal,
    /// The first part stands for what the other parts leave of it.
    FirstIsTotal,
    /// Each part is one element: arrays whose elements differ in layout.
    OneEach,
}

impl Reading {
    /// All readings, the likeliest first.
    const ALL: [Self; 12] = {
        const fn reading(arrays: ArrayReading, trailing_marker: bool, sized: bool) -> Reading {
            Reading { arrays, trailing_marker, sized }
        }
        use ArrayReading::{FirstIsTotal, Literal, OneEach};
        [
            reading(Literal, false, false),
            reading(FirstIsTotal, false, false),
            reading(OneEach, false, false),
            reading(Literal, true, false),
            reading(FirstIsTotal, true, false),
            reading(OneEach, true, false),
            reading(Literal, false, true),
            reading(FirstIsTotal, false, true),
            reading(OneEach, false, true),
            reading(Literal, true, true),
            reading(FirstIsTotal, true, true),
            reading(OneEach, true, true),
        ]
    };

    /// The readings worth a try: those that differ for this description.
    fn of(vmsd: &Vmsd) -> impl Iterator<Item = Self> + use<> {
        let markers = has(vmsd, &|field| field.kind.is_marker());
        let lists = has(vmsd, &|field| field.kind.is_self_delimiting());
        Self::ALL.into_iter().filter(move |reading| {
            let plain = reading.arrays == ArrayReading::Literal && !reading.trailing_marker;
            (plain || markers) && (!reading.sized || lists)
        })
    }
}

/// Whether any field of a description, at any depth, is of that kind.
fn has(vmsd: &Vmsd, wanted: &impl Fn(&FieldDesc) -> bool) -> bool {
    let nested = |field: &FieldDesc| field.nested.iter().any(|vmsd| has(vmsd, wanted));
    vmsd.fields.iter().any(|field| wanted(field) || nested(field))
        || vmsd.subsections.iter().any(|vmsd| has(vmsd, wanted))
}

/// Decodes a body whose end is known: all of `body`, to the byte.
///
/// # Errors
/// The failure of the likeliest reading, if none fits.
pub(crate) fn decode_body<'a, 'd>(device: &'d DeviceDesc, body: Cursor<'a>) -> Result<State<'a, 'd>> {
    let mut first_failure = None;
    for reading in Reading::of(&device.vmsd) {
        let mut decoder = Decoder::new(body, reading);
        let decoded = decoder.vmsd(&device.vmsd).and_then(|state| decoder.at_end().map(|()| state));
        match decoded {
            Ok(state) => return Ok(state),
            Err(error) => first_failure.get_or_insert(error),
        };
    }
    Err(first_failure.unwrap_or_else(|| Error::at(body.offset(), device_error("no reading"))))
}

fn device_error(why: impl Into<String>) -> ErrorKind {
    ErrorKind::Device { why: why.into() }
}

/// Takes one from what is left of `bound`.
fn take_one(left: &mut u64, what: &'static str, bound: u64, at: Cursor<'_>) -> Result<()> {
    *left = left
        .checked_sub(1)
        .ok_or_else(|| Error::at(at.offset(), ErrorKind::Limit { what, met: bound + 1, bound }))?;
    Ok(())
}

struct Decoder<'a> {
    cursor: Cursor<'a>,
    reading: Reading,
    depth: usize,
    /// Elements that may still come, and those of them without bytes.
    elements_left: u64,
    empty_left: u64,
}

impl<'a> Decoder<'a> {
    fn new(cursor: Cursor<'a>, reading: Reading) -> Self {
        Self { cursor, reading, depth: 0, elements_left: limit::ELEMENTS, empty_left: limit::EMPTY_ELEMENTS }
    }

    fn at_end(&self) -> Result<()> {
        if self.cursor.remaining() == 0 {
            return Ok(());
        }
        let left = self.cursor.remaining();
        let why = format!("the description ends {left} bytes before the section does");
        Err(Error::at(self.cursor.offset(), device_error(why)))
    }

    fn vmsd<'d>(&mut self, vmsd: &'d Vmsd) -> Result<State<'a, 'd>> {
        if self.depth == limit::VMSD_DEPTH {
            let kind = ErrorKind::Limit {
                what: "depth of nested descriptions",
                met: self.depth as u64 + 1,
                bound: limit::VMSD_DEPTH as u64,
            };
            return Err(Error::at(self.cursor.offset(), kind));
        }
        self.depth += 1;
        let mut fields = Vec::new();
        for parts in vmsd.fields.chunk_by(|one, next| one.name == next.name) {
            self.array(parts, &mut fields)?;
        }
        let subsections = vmsd.subsections.iter().map(|vmsd| self.subsection(vmsd)).collect::<Result<_>>()?;
        self.depth -= 1;
        Ok(State { vmsd, fields, subsections })
    }

    /// Decodes neighbours of one name: a field, an array, or an array's parts.
    fn array<'d>(&mut self, parts: &'d [FieldDesc], fields: &mut Vec<Field<'a, 'd>>) -> Result<()> {
        let has_markers = parts.iter().any(|part| part.kind.is_marker());
        for (nth, part) in parts.iter().enumerate() {
            let literal = part.array_len.unwrap_or(1);
            let count = match self.reading.arrays {
                _ if !has_markers => literal,
                ArrayReading::Literal => literal,
                ArrayReading::OneEach => 1,
                ArrayReading::FirstIsTotal if nth == 0 => {
                    let others: Option<u64> = parts
                        .iter()
                        .skip(1)
                        .try_fold(0u64, |sum, part| sum.checked_add(part.array_len.unwrap_or(1)));
                    others.and_then(|others| literal.checked_sub(others)).unwrap_or(literal)
                }
                ArrayReading::FirstIsTotal => literal,
            };
            for _ in 0..count {
                let field = self.field(part).map_err(|error| error.inside(format!("field {}", part.name)))?;
                fields.push(field);
            }
        }
        if let Some(last) = parts.last().filter(|last| self.reading.trailing_marker && last.kind.is_marker())
        {
            fields.push(self.field(last)?);
        }
        Ok(())
    }

    fn field<'d>(&mut self, desc: &'d FieldDesc) -> Result<Field<'a, 'd>> {
        let start = self.cursor;
        let value = self.value(desc)?;
        let len = self.cursor.offset().0 - start.offset().0;
        take_one(&mut self.elements_left, "number of elements", limit::ELEMENTS, start)?;
        if len == 0 {
            take_one(&mut self.empty_left, "number of elements without bytes", limit::EMPTY_ELEMENTS, start)?;
        }
        let mut all = start;
        Ok(Field { desc, offset: start.offset(), bytes: all.bytes(len)?, value })
    }

    fn value<'d>(&mut self, desc: &'d FieldDesc) -> Result<Value<'a, 'd>> {
        let by_size = self.reading.sized && desc.kind.is_self_delimiting();
        match desc.kind {
            _ if by_size => Ok(Value::Bytes(self.cursor.bytes(desc.size)?)),
            FieldType::Struct => self.structure(desc),
            FieldType::List => self.list(desc),
            FieldType::Tree => self.tree(desc),
            kind => read_plain(&mut self.cursor, kind, desc.size),
        }
    }

    fn structure<'d>(&mut self, desc: &'d FieldDesc) -> Result<Value<'a, 'd>> {
        match desc.nested.first() {
            Some(vmsd) if vmsd.has_fields => self.vmsd(vmsd).map(Value::Struct),
            // Up to QEMU 9.1.2 and 9.2.0 a NULL pointer's description is an
            // empty object of size 1, and its byte the marker.
            _ if desc.size == 1 => read_plain(&mut self.cursor, FieldType::NullPointer, 1),
            _ => Ok(Value::Bytes(self.cursor.bytes(desc.size)?)),
        }
    }

    /// Reads a byte that says whether an element follows.
    fn another(&mut self) -> Result<bool> {
        let at = self.cursor.offset();
        match self.cursor.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            met => {
                let what = "byte before a list's element";
                let kind =
                    ErrorKind::Malformed { what, met: format!("{met:#04x}"), expected: "0 or 1".into() };
                Err(Error::at(at, kind))
            }
        }
    }

    fn list<'d>(&mut self, desc: &'d FieldDesc) -> Result<Value<'a, 'd>> {
        let mut elements = Vec::new();
        while self.another()? {
            // Each element has its own description; where an array repeats
            // the list, those of the first one serve for all.
            let vmsd = desc.nested.get(elements.len()).or(desc.nested.last());
            let at = self.cursor.offset();
            let vmsd = vmsd.ok_or_else(|| Error::at(at, device_error("an element that is not described")))?;
            elements.push(self.vmsd(vmsd)?);
        }
        Ok(Value::List(elements))
    }

    fn tree<'d>(&mut self, desc: &'d FieldDesc) -> Result<Value<'a, 'd>> {
        let at = self.cursor.offset();
        let count = u64::from(self.cursor.be32()?);
        let described = desc.nested.len() as u64;
        let has_struct_keys = count > 0 && described == 2 * count;
        if !has_struct_keys && described != count {
            let why = format!("a tree of {count} entries, of which {described} are described");
            return Err(Error::at(at, device_error(why)));
        }
        let mut entries = Vec::new();
        let mut nested = desc.nested.iter();
        while self.another()? {
            let mut next =
                || nested.next().ok_or_else(|| Error::at(at, device_error("more entries than counted")));
            let key = if has_struct_keys {
                TreeKey::Struct(self.vmsd(next()?)?)
            } else {
                TreeKey::Direct(self.cursor.be64()?)
            };
            entries.push((key, self.vmsd(next()?)?));
        }
        if entries.len() as u64 != count {
            let why = format!("a tree of {count} entries that has {}", entries.len());
            return Err(Error::at(at, device_error(why)));
        }
        Ok(Value::Tree(entries))
    }

    fn subsection<'d>(&mut self, vmsd: &'d Vmsd) -> Result<Subsection<'a, 'd>> {
        self.subsection_body(vmsd).map_err(|error| error.inside(format!("subsection {}", vmsd.vmsd_name)))
    }

    fn subsection_body<'d>(&mut self, vmsd: &'d Vmsd) -> Result<Subsection<'a, 'd>> {
        let at = self.cursor.offset();
        let met = self.cursor.u8()?;
        if met != record::QEMU_VM_SUBSECTION {
            let kind = ErrorKind::Malformed {
                what: "begin of a subsection",
                met: format!("{met:#04x}"),
                expected: format!("{:#04x}", record::QEMU_VM_SUBSECTION),
            };
            return Err(Error::at(at, kind));
        }
        let name = self.cursor.str8()?;
        if name != vmsd.vmsd_name.as_bytes() {
            let met = crate::idstr::Idstr::from(name).to_string();
            let kind =
                ErrorKind::Malformed { what: "name of a subsection", met, expected: vmsd.vmsd_name.clone() };
            return Err(Error::at(at, kind));
        }
        let version_id = self.cursor.be32()?;
        Ok(Subsection { version_id, state: self.vmsd(vmsd)? })
    }
}
