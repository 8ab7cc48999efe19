//! `ramlift analyze-migration`: what QEMU's script of that name prints and
//! writes, for those who have scripts around it.
//!
//! The text follows the script of QEMU 10.0: numbers are strings of hex
//! digits, opaque fields are hex bytes with spaces between, a list is whatever
//! fields have one name. `docs/analyze-migration.md` lists the differences.

use std::io::{self, Write};
use std::path::Path;

use indexmap::IndexMap;
use ramlift::{
    BlockFiles, BlockId, BlockOffset, Device, Kept, Page, Progress, Ram, RamBlock, Section, SectionType,
    State, Stream, Value, image_len, scatter,
};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::ser::{Formatter, PrettyFormatter};

use crate::args::{AnalyzeArgs, Dump};
use crate::exit::{Exit, Failure};
use crate::output::Staging;
use crate::paths::BlockPaths;
use crate::source::Opened;
use crate::{desc, progress, source, terminal};

pub(crate) fn run(args: &AnalyzeArgs) -> Result<Exit, Failure> {
    let path = &args.file;
    if args.dump == Dump::Desc && !args.extract {
        // The script does not walk the stream for this, so it has an answer
        // for streams whose RAM it cannot read.
        let (text, _) = desc::find(path, &args.layers)?;
        print(&DescText::of(path, &text)?)?;
        return Ok(Exit::Complete);
    }
    let input = match (args.extract, args.memory) {
        (true, _) => source::open_mapped(path, &args.layers, "--extract", false)?.0,
        (_, true) => source::open_mapped(path, &args.layers, "--memory", false)?.0,
        _ => match source::open_path(path, &args.layers)? {
            Opened::Mapped(input, _) => input,
            Opened::Incoming(incoming, origin) => {
                let kept = Kept::new();
                match source::pass(path, incoming, &kept) {
                    Ok(stream) => return analyze(args, &stream),
                    Err(failure) => source::go_back(path, &args.layers, failure, &origin)?.0,
                }
            }
        },
    };
    analyze(args, &progress::index(&input, progress::is_visible(false))?)
}

fn analyze(args: &AnalyzeArgs, stream: &Stream<'_>) -> Result<Exit, Failure> {
    for warning in crate::info::warnings(stream) {
        terminal::say(format_args!("warning: {warning}"));
    }
    if args.extract {
        stream.check_whole().map_err(Failure::input(&args.file))?;
        return extract(&args.file, stream);
    }
    print(&StateText { stream, with_memory: args.memory })?;
    Ok(Exit::Complete)
}

/// Prints as Python's `print(json)` does.
fn print(value: &impl Serialize) -> Result<(), Failure> {
    let mut out = terminal::stdout();
    write_text(&mut out, value).and_then(|()| writeln!(out)).map_err(Failure::stdout)?;
    terminal::finish(out)
}

/// Writes JSON as Python's encoder does with `indent=4`.
fn write_text(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    terminal::write_json_with(out, value, PythonFormatter(PrettyFormatter::with_indent(b"    ")))
}

/// `-x`: files in the current directory, named and announced as the script
/// does, but never outside of it.
fn extract(path: &Path, stream: &Stream<'_>) -> Result<Exit, Failure> {
    let desc = DescText::of(path, desc::text(path, stream)?)?;
    let mut staging = Staging::new(Path::new("."), true)?;
    let mut names = vec!["desc.json".to_owned()];
    staging.write("desc.json", |out| write_text(out, &desc))?;
    if let Some(ram) = stream.ram() {
        names.extend(ram.blocks().map(|(_, block, _)| block.idstr.to_string()));
        write_images(&mut staging, ram)?;
    }
    names.push("state.json".to_owned());
    staging.write("state.json", |out| write_text(out, &StateText { stream, with_memory: false }))?;
    staging.commit()?;
    let mut out = terminal::stdout();
    names.iter().try_for_each(|name| writeln!(out, "{name}")).map_err(Failure::stdout)?;
    terminal::finish(out)?;
    Ok(Exit::Complete)
}

fn write_images(staging: &mut Staging, ram: &Ram<'_>) -> Result<(), Failure> {
    let mut paths = BlockPaths::with_reserved(&["desc.json", "state.json"]);
    let blocks: Vec<BlockId> = ram.blocks().map(|(id, ..)| id).collect();
    let mut files = Vec::new();
    for (id, block, _) in ram.blocks() {
        files.push((id, staging.file(&paths.assign(&block.idstr))?));
    }
    let write = |progress: &Progress| {
        let sink = BlockFiles::create(ram, files)?;
        scatter(ram, &blocks, &sink, progress)
    };
    let done = progress::watch(progress::is_visible(false), "writing", image_len(ram, &blocks), write);
    done.map_err(|error| Failure::from(error).map_text(|text| staging.shown(text)))
}

/// The description as Python reads and writes it: of a key that stands in an
/// object more than once, the last value in the first place.
struct DescText(serde_json::Value);

impl DescText {
    fn of(path: &Path, text: &[u8]) -> Result<Self, Failure> {
        let value = serde_json::from_slice(text)
            .map_err(|error| Failure::Other(format!("{}: description: {error}", path.display())))?;
        Ok(Self(value))
    }
}

impl Serialize for DescText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

/// The state of all sections.
struct StateText<'s, 'a> {
    stream: &'s Stream<'a>,
    with_memory: bool,
}

impl Serialize for StateText<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut devices = self.stream.devices();
        // A section id has one entry, where it is met first and as it is met
        // last.
        let mut by_id: IndexMap<u32, (&Section, Option<Device<'_>>)> = IndexMap::new();
        for section in self.stream.sections() {
            match section.kind {
                SectionType::Full => {
                    by_id.insert(section.handler.section_id, (section, devices.next()));
                }
                SectionType::Start => {
                    by_id.insert(section.handler.section_id, (section, None));
                }
                SectionType::Part | SectionType::End => {}
            }
        }
        let mut map = serializer.serialize_map(Some(by_id.len()))?;
        for (id, (section, device)) in &by_id {
            let key = format!("{} ({id})", section.handler.idstr);
            match (device, self.stream.ram()) {
                (Some(device), _) => map.serialize_entry(&key, &DeviceText(*device))?,
                (None, Some(ram)) if section.handler.idstr == "ram" => {
                    map.serialize_entry(
                        &key,
                        &RamText { ram, memory: self.with_memory.then_some(self.stream) },
                    )?;
                }
                _ => map.serialize_entry(&key, "")?,
            }
        }
        map.end()
    }
}

struct RamText<'s, 'a> {
    ram: &'s Ram<'a>,
    memory: Option<&'s Stream<'a>>,
}

impl Serialize for RamText<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let sizes: IndexMap<String, String> = self
            .ram
            .blocks()
            .map(|(_, block, _)| (block.idstr.to_string(), format!("{:#018x}", block.used_length)))
            .collect();
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("section sizes", &sizes)?;
        if let Some(stream) = self.memory {
            map.serialize_entry("memory", &MemoryText { ram: self.ram, stream })?;
        }
        map.end()
    }
}

/// `-m`: each page once, where its first record stands, as its last one says.
/// With mapped-ram, which has no records, in the order of blocks and addresses.
struct MemoryText<'s, 'a> {
    ram: &'s Ram<'a>,
    stream: &'s Stream<'a>,
}

impl MemoryText<'_, '_> {
    fn serialize_page<M: SerializeMap>(
        &self,
        map: &mut M,
        block: BlockId,
        offset: BlockOffset,
    ) -> Result<(), M::Error> {
        let Some(RamBlock { idstr, .. }) = self.ram.block(block) else { return Ok(()) };
        let text = match self.ram.page(block, offset).map_err(serde::ser::Error::custom)? {
            Page::Fill(byte) => format!("Filled with {byte:#04x}"),
            Page::Data(bytes) => hex(&bytes),
            Page::Absent => return Ok(()),
        };
        map.serialize_entry(&format!("{idstr} ({:#018x})", offset.0), &text)
    }

    fn serialize_by_place<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error> {
        let page_len = self.ram.page_size().bytes();
        self.ram.blocks().try_for_each(|(id, block, _)| {
            let mut offsets = (0..).map(|page| page * page_len).take_while(|at| *at < block.used_length);
            offsets.try_for_each(|at| self.serialize_page(map, id, BlockOffset(at)))
        })
    }
}

impl Serialize for MemoryText<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut seen = std::collections::HashSet::<(BlockId, BlockOffset)>::new();
        let mut map = serializer.serialize_map(None)?;
        let mut records = self.stream.page_records().peekable();
        if records.peek().is_none() {
            self.serialize_by_place(&mut map)?;
        }
        for record in records {
            // Only guests that ran meanwhile send pages again: most streams
            // need no memory of what has been.
            if self.ram.pass_count() > 1 && !seen.insert((record.block, record.offset)) {
                continue;
            }
            self.serialize_page(&mut map, record.block, record.offset)?;
        }
        map.end()
    }
}

struct DeviceText<'s>(Device<'s>);

impl Serialize for DeviceText<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.decode() {
            Ok(state) => StructText(&state).serialize(serializer),
            // The script ends here.
            Err(error) => {
                terminal::say(format_args!("warning: not decoded: {error}"));
                serializer.serialize_str(&hex(self.0.body()))
            }
        }
    }
}

struct StructText<'v, 's>(&'v State<'s, 's>);

impl Serialize for StructText<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut by_name: IndexMap<&str, Vec<FieldText<'_, '_>>> = IndexMap::new();
        for field in &self.0.fields {
            by_name.entry(&field.desc.name).or_default().push(FieldText::Field(field));
        }
        for subsection in &self.0.subsections {
            let state = FieldText::Subsection(&subsection.state);
            by_name.insert(&subsection.state.vmsd.vmsd_name, vec![state]);
        }
        let mut map = serializer.serialize_map(Some(by_name.len()))?;
        for (name, fields) in &by_name {
            match fields.as_slice() {
                [field] => map.serialize_entry(name, field)?,
                fields => map.serialize_entry(name, fields)?,
            }
        }
        map.end()
    }
}

enum FieldText<'v, 's> {
    Field(&'v ramlift::Field<'s, 's>),
    Subsection(&'v State<'s, 's>),
}

impl Serialize for FieldText<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let field = match self {
            Self::Subsection(state) => return StructText(state).serialize(serializer),
            Self::Field(field) => field,
        };
        match (field.desc.type_name.as_str(), &field.value) {
            ("struct", Value::Struct(state)) => StructText(state).serialize(serializer),
            ("bool", Value::Bool(value)) => serializer.serialize_bool(*value),
            ("nullptr", _) => serializer.serialize_str("nullptr"),
            (
                "int8" | "int16" | "int32" | "int32 equal" | "int32 le" | "int64" | "int64 equal"
                | "uint8 equal" | "uint16 equal",
                _,
            ) => serializer.serialize_str(&number(field.bytes, true)),
            ("uint8" | "uint16" | "uint32" | "uint32 equal" | "uint64", _) => {
                serializer.serialize_str(&number(field.bytes, false))
            }
            _ => serializer.serialize_str(&hex(field.bytes)),
        }
    }
}

/// A number as the script shows it: hex, and a negative one in decimal too.
fn number(bytes: &[u8], is_signed: bool) -> String {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let is_negative = is_signed && bytes.first().is_some_and(|byte| byte & 0x80 != 0);
    if !is_negative {
        return format!("0x{digits}");
    }
    // Padded with ones on the left, a number of any width is one of 64 bits.
    let value = bytes.iter().fold(u64::MAX, |number, byte| number << 8 | u64::from(*byte)).cast_signed();
    format!("0x{digits} ({value})")
}

/// Bytes as hex with spaces between.
fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 3);
    for (nth, byte) in bytes.iter().enumerate() {
        if nth > 0 {
            text.push(' ');
        }
        for nibble in [byte >> 4, byte & 0xf] {
            text.push(char::from_digit(nibble.into(), 16).unwrap_or('0'));
        }
    }
    text
}

/// Python's JSON: as `serde_json`'s, but in ASCII only.
struct PythonFormatter<'i>(PrettyFormatter<'i>);

impl Formatter for PythonFormatter<'_> {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut plain = 0;
        let odd = |c: &char| !c.is_ascii() || *c == '\u{7f}';
        for (at, c) in fragment.char_indices().filter(|(_, c)| odd(c)) {
            writer.write_all(fragment.get(plain..at).unwrap_or_default().as_bytes())?;
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                write!(writer, "\\u{unit:04x}")?;
            }
            plain = at + c.len_utf8();
        }
        writer.write_all(fragment.get(plain..).unwrap_or_default().as_bytes())
    }

    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_array(writer)
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_array(writer)
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_array_value(writer, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_array_value(writer)
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_object(writer)
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_object(writer)
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_object_key(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_object_value(writer)
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_object_value(writer)
    }
}
