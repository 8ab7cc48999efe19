//! Devices of described fields, put together by numbers and names, and changed.

use arbitrary::{Result, Unstructured};

use super::synth::{Synth, subsection};

/// A field, or an array of such.
#[derive(Clone, Debug)]
pub struct Field {
    pub name: String,
    pub content: Content,
}

/// What a field holds.
#[derive(Clone, Debug)]
pub enum Content {
    /// Numbers of so many bytes each; of more than 8, several words. Whether they
    /// are an array.
    Numbers { kind: &'static str, size: u64, is_array: bool, words: Vec<u64> },
    /// Bytes as they are.
    Bytes { kind: &'static str, bytes: Vec<u8> },
    /// Structures of the same fields.
    Structs(Vec<Vec<Field>>),
}

/// The fields of a device or a subsection.
#[derive(Clone, Default, Debug)]
pub struct Fields {
    pub fields: Vec<Field>,
    pub subsections: Vec<(String, Fields)>,
}

impl Field {
    /// A number of a type that says how long it is.
    pub fn word(name: &str, size: u64, word: u64) -> Self {
        let content =
            Content::Numbers { kind: unsigned(size), size, is_array: false, words: vec![cut(word, size)] };
        Self { name: name.to_owned(), content }
    }

    /// An array of such.
    pub fn array(name: &str, size: u64, words: &[u64]) -> Self {
        let words = words.iter().map(|word| cut(*word, size)).collect();
        let content = Content::Numbers { kind: unsigned(size), size, is_array: true, words };
        Self { name: name.to_owned(), content }
    }

    pub fn bytes(name: &str, kind: &'static str, bytes: Vec<u8>) -> Self {
        Self { name: name.to_owned(), content: Content::Bytes { kind, bytes } }
    }

    pub fn structs(name: &str, elements: Vec<Vec<Self>>) -> Self {
        Self { name: name.to_owned(), content: Content::Structs(elements) }
    }

    fn keys(&self) -> String {
        let (count, rest) = match &self.content {
            Content::Numbers { kind, size, is_array, words } => {
                let count = words.len() as u64 / size.div_ceil(8).max(1);
                (is_array.then_some(count), format!(r#""type": "{kind}", "size": {size}"#))
            }
            Content::Bytes { kind, bytes } => (None, format!(r#""type": "{kind}", "size": {}"#, bytes.len())),
            Content::Structs(elements) => {
                let first = elements.first().map(Vec::as_slice).unwrap_or_default();
                let size = bytes_of(first).len();
                let keys = keys_of("of", first);
                let count = (elements.len() != 1).then_some(elements.len() as u64);
                (count, format!(r#""type": "struct", "size": {size}, "struct": {{{keys}}}"#))
            }
        };
        let count = count.map_or(String::new(), |count| format!(r#""array_len": {count}, "#));
        format!(r#"{{"name": "{}", {count}{rest}}}"#, self.name)
    }

    fn bytes_of(&self, into: &mut Vec<u8>) {
        match &self.content {
            Content::Numbers { size, words, .. } => {
                let len = (*size).min(8) as usize;
                words.iter().for_each(|word| into.extend(&word.to_be_bytes()[8 - len..]));
            }
            Content::Bytes { bytes, .. } => into.extend(bytes),
            Content::Structs(elements) => elements.iter().flatten().for_each(|field| field.bytes_of(into)),
        }
    }
}

/// The type of numbers of so many bytes.
fn unsigned(size: u64) -> &'static str {
    match size {
        1 => "uint8",
        2 => "uint16",
        4 => "uint32",
        _ => "uint64",
    }
}

/// A word as a number of so many bytes has it.
pub fn cut(word: u64, size: u64) -> u64 {
    if size < 8 { word & ((1 << (8 * size)) - 1) } else { word }
}

fn keys_of(name: &str, fields: &[Field]) -> String {
    let fields: Vec<String> = fields.iter().map(Field::keys).collect();
    format!(r#""vmsd_name": "{name}", "version": 1, "fields": [{}]"#, fields.join(", "))
}

fn bytes_of(fields: &[Field]) -> Vec<u8> {
    let mut bytes = Vec::new();
    fields.iter().for_each(|field| field.bytes_of(&mut bytes));
    bytes
}

impl Fields {
    pub fn of(fields: Vec<Field>) -> Self {
        Self { fields, subsections: Vec::new() }
    }

    pub fn push(&mut self, field: Field) {
        self.fields.push(field);
    }

    fn keys(&self, name: &str) -> String {
        let mut keys = keys_of(name, &self.fields);
        if !self.subsections.is_empty() {
            let all: Vec<String> =
                self.subsections.iter().map(|(name, fields)| format!("{{{}}}", fields.keys(name))).collect();
            keys.push_str(&format!(r#", "subsections": [{}]"#, all.join(", ")));
        }
        keys
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = bytes_of(&self.fields);
        for (name, fields) in &self.subsections {
            bytes.extend(subsection(name, 1, &fields.bytes()));
        }
        bytes
    }

    /// Puts a device of these fields into a stream.
    pub fn put(&self, synth: Synth, id: u32, name: &str, instance: u32) -> Synth {
        synth.device_as(id, name, instance, &self.bytes(), &self.keys(name))
    }

    /// Changes something that QEMU would not.
    pub fn change(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let kind = u.int_in_range(0..=10)?;
        if !self.subsections.is_empty() && u.ratio(1, 4)? {
            let nth = u.choose_index(self.subsections.len())?;
            match kind {
                0..=2 => drop(self.subsections.remove(nth)),
                3..=4 => self.subsections.push(self.subsections[nth].clone()),
                _ => self.subsections[nth].1.change(u)?,
            }
            return Ok(());
        }
        if self.fields.is_empty() {
            return Ok(());
        }
        let (nth, other) = (u.choose_index(self.fields.len())?, u.choose_index(self.fields.len())?);
        match kind {
            0 => drop(self.fields.remove(nth)),
            1 => self.fields[nth].name = self.fields[other].name.clone(),
            2 => self.fields.push(self.fields[nth].clone()),
            3 => self.fields.swap(nth, other),
            4 => self.fields[nth].content = self.fields[other].content.clone(),
            _ => self.fields[nth].content.change(u)?,
        }
        Ok(())
    }
}

impl Content {
    fn change(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        match self {
            Self::Numbers { kind, size, words, is_array } => match u.int_in_range(0..=4)? {
                0 => {
                    (*kind, *size) =
                        *u.choose(&[("uint8", 1), ("uint16", 2), ("uint32", 4), ("uint64", 8), ("avr", 16)])?;
                    if *size == 16 {
                        words.truncate(words.len() / 2 * 2);
                    }
                }
                1 => *kind = u.choose(&["int8", "bool", "buffer", "timer", "fpr", "no type"])?,
                2 => words.truncate(u.int_in_range(0..=words.len())?),
                3 => {
                    let count = *u.choose(&[9, 17, 33, 65, 300, 3000])?;
                    words.resize(count, 0x0123_4567_89ab_cdef);
                    *is_array = true;
                }
                _ => {
                    if let Some(word) = words.first_mut() {
                        *word = u.arbitrary()?;
                    }
                }
            },
            Self::Bytes { kind, bytes } => match u.int_in_range(0..=2)? {
                0 => *kind = u.choose(&["buffer", "uint8", "bitmap", "avr"])?,
                1 => bytes.truncate(u.int_in_range(0..=bytes.len())?),
                _ => {
                    let at = u.choose_index(bytes.len().max(1))?;
                    let byte = u.arbitrary()?;
                    bytes.iter_mut().skip(at).take(1).for_each(|old| *old = byte);
                }
            },
            Self::Structs(elements) => match u.int_in_range(0..=3)? {
                0 => elements.truncate(u.int_in_range(0..=elements.len())?),
                1 if !elements.is_empty() => {
                    let first = elements[0].clone();
                    elements.resize(*u.choose(&[2, 9, 33, 70, 300])?, first);
                }
                2 => *self = Self::Bytes { kind: "buffer", bytes: vec![7; 20] },
                _ => {
                    // The same field of all: they have one description.
                    let count = elements.first().map_or(0, Vec::len);
                    let nth = u.choose_index(count.max(1))?;
                    for element in elements {
                        if nth < element.len() {
                            element.remove(nth);
                        }
                    }
                }
            },
        }
        Ok(())
    }
}
