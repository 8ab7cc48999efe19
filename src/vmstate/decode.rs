//! Decoding a device: its body and its description make values.
//!
//! What the bytes say of their own length goes before the sizes that the
//! description gives, which are those of an array's first element. Then the
//! two must meet, to the byte. Where QEMU's own description is ambiguous, or
//! wrong in a known way, there is more than one [`Reading`] of a group of
//! fields; they are tried, the likeliest first, until the whole body fits. If
//! nothing fits, the device is not decoded.

use indexmap::IndexMap;

use crate::cursor::Cursor;
use crate::error::{Error, ErrorKind, Result};
use crate::idstr::Idstr;
use crate::vmstate::field::{FieldType, read_plain};
use crate::vmstate::value::{Field, State, Subsection, TreeKey, Value};
use crate::vmstate::vmdesc::{DeviceDesc, FieldDesc, Vmsd};
use crate::wire::{limit, pointer, record};

/// One way to understand neighbouring fields of one name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reading {
    /// As it stands there.
    Literal,
    /// An array of pointers, of which the first part's `array_len` is that of
    /// the whole array: it stands for what the other parts leave of it.
    ///
    /// QEMU describes such an array in parts, one for each run of NULL or
    /// present elements. Since 9.1.3, 9.2.1 and 10.0 ("migration: Dump correct
    /// JSON format for nullptr replacement") the first part counts all
    /// elements if the first is not NULL.
    FirstIsTotal,
    /// An array of pointers whose elements differ in layout: each part is one
    /// element, whatever its `array_len` says.
    OneEach,
    /// As [`Literal`](Self::Literal), and one NULL more.
    ///
    /// Since QEMU 11.0 a last run of one NULL behind a longer run is left out
    /// of the description.
    LiteralAndNull,
    /// As [`FirstIsTotal`](Self::FirstIsTotal), and one NULL more, which the
    /// first part counts too.
    FirstIsTotalAndNull,
    /// As [`OneEach`](Self::OneEach), and one NULL more.
    OneEachAndNull,
    /// A list by the size that its description gives, not by its bytes.
    Sized,
}

impl Reading {
    /// The readings of a group, the likeliest first. Most have one.
    fn of(parts: &[FieldDesc]) -> &'static [Self] {
        use Reading::{
            FirstIsTotal, FirstIsTotalAndNull, Literal, LiteralAndNull, OneEach, OneEachAndNull, Sized,
        };
        if parts.iter().any(|part| part.kind.is_marker()) {
            return &[Literal, FirstIsTotal, OneEach, LiteralAndNull, FirstIsTotalAndNull, OneEachAndNull];
        }
        match parts {
            // Perhaps an array of pointers of which no NULL is described.
            [only] if only.kind == FieldType::Struct && only.array_len.is_some() => {
                &[Literal, FirstIsTotalAndNull, LiteralAndNull]
            }
            [first, ..] if first.kind.is_self_delimiting() => &[Literal, Sized],
            _ => &[Literal],
        }
    }

    /// Whether a NULL follows the parts that are described.
    fn has_null(self) -> bool {
        matches!(self, Self::LiteralAndNull | Self::FirstIsTotalAndNull | Self::OneEachAndNull)
    }

    /// How many elements the `nth` of `parts` stands for.
    fn count(self, parts: &[FieldDesc], nth: usize, part: &FieldDesc) -> u64 {
        let literal = part.array_len.unwrap_or(1);
        match self {
            Self::OneEach | Self::OneEachAndNull => 1,
            Self::FirstIsTotal | Self::FirstIsTotalAndNull if nth == 0 => {
                let others = parts.iter().skip(1).try_fold(u64::from(self.has_null()), |sum, part| {
                    sum.checked_add(part.array_len.unwrap_or(1))
                });
                others.and_then(|others| literal.checked_sub(others)).unwrap_or(literal)
            }
            _ => literal,
        }
    }
}

/// The reading of each group that has several, in the order met.
///
/// All elements of an array share their description's choices. The first
/// attempt takes the likeliest of each. One that fails is followed by one that
/// differs, as the digits of a counter do: groups with markers of NULL change
/// fastest, as they are what QEMU describes wrongly, and of those the last
/// ones, as a wrong reading shows soon behind it.
#[derive(Default)]
struct Choices(IndexMap<*const FieldDesc, Choice>);

struct Choice {
    readings: &'static [Reading],
    chosen: usize,
    has_markers: bool,
}

impl Choices {
    fn reading_of(&mut self, parts: &[FieldDesc]) -> Reading {
        let readings = Reading::of(parts);
        let chosen = if readings.len() < 2 {
            0
        } else {
            // A description stays where it is while it is decoded by, so its
            // address names it.
            let has_markers = parts.iter().any(|part| part.kind.is_marker());
            self.0.entry(parts.as_ptr()).or_insert(Choice { readings, chosen: 0, has_markers }).chosen
        };
        readings.get(chosen).copied().unwrap_or(Reading::Literal)
    }

    /// Prepares the next attempt. False if all have been made.
    fn next_attempt(&mut self) -> bool {
        for fast in [true, false] {
            for choice in self.0.values_mut().rev().filter(|choice| choice.has_markers == fast) {
                choice.chosen += 1;
                if choice.chosen < choice.readings.len() {
                    return true;
                }
                choice.chosen = 0;
            }
        }
        false
    }
}

/// Decodes a body whose end is known: all of `body`, to the byte.
///
/// # Errors
/// The failure of the likeliest reading, if none fits.
pub(crate) fn decode_body<'a, 'd>(device: &'d DeviceDesc, body: Cursor<'a>) -> Result<State<'a, 'd>> {
    if let Some(fault) = &device.fault {
        let why = format!("the device's description is unusable: {fault}");
        return Err(Error::at(body.offset(), device_error(why)));
    }
    let mut choices = Choices::default();
    let mut first_failure = None;
    // Attempts share the elements of one, so that a large body gets few.
    let mut decoded_elements = 0;
    for _ in 0..limit::DECODE_ATTEMPTS {
        let mut decoder = Decoder::new(body, &mut choices);
        let decoded = decoder.vmsd(&device.vmsd).and_then(|state| decoder.at_end().map(|()| state));
        match decoded {
            Ok(state) => return Ok(state),
            Err(error) => first_failure.get_or_insert(error),
        };
        decoded_elements += limit::ELEMENTS - decoder.elements_left;
        if decoded_elements > limit::ELEMENTS || !choices.next_attempt() {
            break;
        }
    }
    Err(first_failure.unwrap_or_else(|| Error::at(body.offset(), device_error("no reading"))))
}

fn device_error(why: impl Into<String>) -> ErrorKind {
    ErrorKind::Device { why: why.into() }
}

/// A name of the description, safe on a terminal.
fn shown(name: &str) -> String {
    Idstr::from(name).to_string()
}

/// Takes one from what is left of `bound`.
fn take_one(left: &mut u64, what: &'static str, bound: u64, at: Cursor<'_>) -> Result<()> {
    *left = left
        .checked_sub(1)
        .ok_or_else(|| Error::at(at.offset(), ErrorKind::Limit { what, met: bound + 1, bound }))?;
    Ok(())
}

struct Decoder<'a, 'c> {
    cursor: Cursor<'a>,
    choices: &'c mut Choices,
    depth: usize,
    /// Elements that may still come, and those of them without bytes.
    elements_left: u64,
    empty_left: u64,
    /// Bytes of names that the JSON may still have.
    names_left: u64,
}

impl<'a, 'c> Decoder<'a, 'c> {
    fn new(cursor: Cursor<'a>, choices: &'c mut Choices) -> Self {
        Self {
            cursor,
            choices,
            depth: 0,
            elements_left: limit::ELEMENTS,
            empty_left: limit::EMPTY_ELEMENTS,
            names_left: cursor
                .remaining()
                .saturating_mul(limit::NAMES_PER_BYTE)
                .saturating_add(limit::NAMES_LEN),
        }
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
        self.count_name(parts.first().map_or("", |part| &part.name))?;
        let reading = self.choices.reading_of(parts);
        for (nth, part) in parts.iter().enumerate() {
            // Counted even if it has no element: to look at it takes time.
            take_one(&mut self.elements_left, "number of elements", limit::ELEMENTS, self.cursor)?;
            for _ in 0..reading.count(parts, nth, part) {
                let field = self
                    .field(part, reading)
                    .map_err(|error| error.inside(format!("field {}", shown(&part.name))))?;
                fields.push(field);
            }
        }
        if let Some(last) = parts.last().filter(|_| reading.has_null()) {
            let marker = parts.iter().find(|part| part.kind.is_marker()).unwrap_or(last);
            fields.push(self.undescribed_null(marker)?);
        }
        Ok(())
    }

    fn count_name(&mut self, name: &str) -> Result<()> {
        let left = self.names_left.checked_sub(name.len() as u64);
        self.names_left = left.ok_or_else(|| {
            let why = "its fields' names take far more room than it does".to_owned();
            Error::at(self.cursor.offset(), device_error(why))
        })?;
        Ok(())
    }

    fn undescribed_null<'d>(&mut self, desc: &'d FieldDesc) -> Result<Field<'a, 'd>> {
        let start = self.cursor;
        let bytes = self.cursor.bytes(1)?;
        if bytes != [pointer::VMS_NULLPTR_MARKER] {
            return Err(Error::at(start.offset(), device_error("no NULL behind an array of pointers")));
        }
        Ok(Field { desc, offset: start.offset(), bytes, value: Value::Null })
    }

    fn field<'d>(&mut self, desc: &'d FieldDesc, reading: Reading) -> Result<Field<'a, 'd>> {
        let start = self.cursor;
        let value = self.value(desc, reading)?;
        let len = self.cursor.offset().0 - start.offset().0;
        take_one(&mut self.elements_left, "number of elements", limit::ELEMENTS, start)?;
        if len == 0 {
            take_one(&mut self.empty_left, "number of elements without bytes", limit::EMPTY_ELEMENTS, start)?;
        }
        let mut all = start;
        Ok(Field { desc, offset: start.offset(), bytes: all.bytes(len)?, value })
    }

    fn value<'d>(&mut self, desc: &'d FieldDesc, reading: Reading) -> Result<Value<'a, 'd>> {
        match desc.kind {
            _ if reading == Reading::Sized => Ok(Value::Bytes(self.cursor.bytes(desc.size)?)),
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
            take_one(&mut self.elements_left, "number of elements", limit::ELEMENTS, self.cursor)?;
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
            take_one(&mut self.elements_left, "number of elements", limit::ELEMENTS, self.cursor)?;
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
        self.subsection_body(vmsd)
            .map_err(|error| error.inside(format!("subsection {}", shown(&vmsd.vmsd_name))))
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
            let (met, expected) = (Idstr::from(name).to_string(), shown(&vmsd.vmsd_name));
            let kind = ErrorKind::Malformed { what: "name of a subsection", met, expected };
            return Err(Error::at(at, kind));
        }
        self.count_name(&vmsd.vmsd_name)?;
        let version_id = self.cursor.be32()?;
        Ok(Subsection { version_id, state: self.vmsd(vmsd)? })
    }
}
