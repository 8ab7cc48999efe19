//! Device state as JSON: the public format of `docs/json.md`.
//!
//! Numbers are numbers, with all 64 bits. Bytes are strings of hex digits.
//! Fields of one name are one array, in the order of the stream, and keys
//! stand in the order of the stream.

mod body;
mod virtio;

use indexmap::IndexMap;
use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};

use crate::error::Error;
use crate::json::body::OldStyleJson;
use crate::json::virtio::VirtioJson;
use crate::stream::Device;
use crate::vmstate::{Field, State, TreeKey, Value};

pub use body::IteratedJson;

/// A device and what decoding it gave, for output as JSON.
#[derive(Debug)]
pub struct DeviceJson<'s> {
    /// The device.
    pub device: Device<'s>,
    /// What [`Device::decode`] gave.
    pub outcome: Result<State<'s, 's>, Error>,
}

impl<'s> DeviceJson<'s> {
    /// Decodes `device`.
    pub fn of(device: Device<'s>) -> Self {
        Self { device, outcome: device.decode() }
    }

    /// Why nothing but its bytes is shown; `None` if something is.
    pub fn into_failure(self) -> Option<Error> {
        let Self { device, outcome } = self;
        outcome.err().filter(|_| device.pieces().is_none())
    }
}

impl Serialize for DeviceJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let section = self.device.section;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("name", &section.handler.idstr)?;
        map.serialize_entry("instance_id", &section.handler.instance_id)?;
        map.serialize_entry("version_id", &section.handler.version_id)?;
        map.serialize_entry("section_id", &section.handler.section_id)?;
        map.serialize_entry("offset", &section.body.0)?;
        map.serialize_entry("length", &section.body_len())?;
        match (&self.outcome, OldStyleJson::of(self.device)) {
            (_, Some(state)) => {
                map.serialize_entry("status", "decoded")?;
                map.serialize_entry("state", &state)?;
            }
            (Ok(state), None) => {
                map.serialize_entry("status", "decoded")?;
                map.serialize_entry("state", &StateJson(state))?;
            }
            (Err(error), None) => {
                map.serialize_entry("status", "undecoded")?;
                map.serialize_entry("reason", &error.to_string())?;
                map.serialize_entry("bytes", &Hex(self.device.body()))?;
            }
        }
        map.end()
    }
}

/// A decoded structure, for output as JSON.
#[derive(Clone, Copy, Debug)]
pub struct StateJson<'v, 's>(pub &'v State<'s, 's>);

impl Serialize for StateJson<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut by_name: IndexMap<&str, Vec<&Field<'_, '_>>> = IndexMap::new();
        for field in &self.0.fields {
            by_name.entry(&field.desc.name).or_default().push(field);
        }
        let mut map = serializer.serialize_map(None)?;
        for (name, fields) in &by_name {
            match fields.as_slice() {
                [field] if !is_array(field) => match VirtioJson::of(self.0, field) {
                    Some(virtio) => map.serialize_entry(name, &virtio)?,
                    None => map.serialize_entry(name, &ValueJson(&field.value))?,
                },
                fields => map.serialize_entry(name, &Elements(fields))?,
            }
        }
        for subsection in &self.0.subsections {
            map.serialize_entry(&subsection.state.vmsd.vmsd_name, &StateJson(&subsection.state))?;
        }
        map.end()
    }
}

/// Whether a field that stands alone is an array of one element.
fn is_array(field: &Field<'_, '_>) -> bool {
    field.desc.array_len.is_some() || field.desc.index.is_some()
}

struct Elements<'v, 's>(&'v [&'v Field<'s, 's>]);

impl Serialize for Elements<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // The mark that a pointer is not NULL says nothing beside what it
        // points to, which comes next.
        let marks_next = |nth: usize| {
            let next = self.0.get(nth + 1).map(|field| &field.value);
            next.is_some_and(|value| !matches!(value, Value::Present | Value::Null))
        };
        let values = self.0.iter().enumerate().map(|(nth, field)| (nth, &field.value));
        let mut seq = serializer.serialize_seq(None)?;
        for (_, value) in values.filter(|(nth, value)| !(matches!(value, Value::Present) && marks_next(*nth)))
        {
            seq.serialize_element(&ValueJson(value))?;
        }
        seq.end()
    }
}

struct ValueJson<'v, 's>(&'v Value<'s, 's>);

impl Serialize for ValueJson<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Null => serializer.serialize_unit(),
            Value::Present => serializer.serialize_str("present"),
            Value::Bool(value) => serializer.serialize_bool(*value),
            Value::Signed(value) => serializer.serialize_i64(*value),
            Value::Unsigned(value) => serializer.serialize_u64(*value),
            Value::Words(words) => serializer.collect_seq(words),
            Value::Bytes(bytes) => Hex(bytes).serialize(serializer),
            Value::Struct(state) => StateJson(state).serialize(serializer),
            Value::List(elements) => serializer.collect_seq(elements.iter().map(StateJson)),
            Value::Tree(entries) => serializer.collect_seq(entries.iter().map(Entry)),
        }
    }
}

struct Entry<'v, 's>(&'v (TreeKey<'s, 's>, State<'s, 's>));

impl Serialize for Entry<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (key, value) = self.0;
        let mut map = serializer.serialize_map(Some(2))?;
        match key {
            TreeKey::Direct(key) => map.serialize_entry("key", key)?,
            TreeKey::Struct(key) => map.serialize_entry("key", &StateJson(key))?,
        }
        map.serialize_entry("value", &StateJson(value))?;
        map.end()
    }
}

/// Bytes as a string of hex digits.
struct Hex<'v>(&'v [u8]);

impl Serialize for Hex<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        const DIGITS: [char; 16] =
            ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
        let digit = |nibble: u8| DIGITS.get(usize::from(nibble & 0xf)).copied().unwrap_or('0');
        let text: String = self.0.iter().flat_map(|byte| [digit(byte >> 4), digit(*byte)]).collect();
        serializer.serialize_str(&text)
    }
}
