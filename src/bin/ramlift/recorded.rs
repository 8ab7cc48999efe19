//! A manifest, read to be checked: strictly, because what is passed over here
//! is checked by nobody.
//!
//! A key that is given twice is an error: readers differ in which one they
//! take, so one could be checked and the other believed. Keys that nobody here
//! knows are listed.
//!
//! What is read takes memory: `{"":0}` some 500 bytes. So it is counted, and no
//! more is kept than what a manifest of that length can honestly say.

use std::cell::Cell;
use std::fmt;
use std::io::{BufReader, Read};
use std::path::Path;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::evidence::InputEntry;
use crate::exit::Failure;
use crate::hash::Algorithm;
use crate::manifest::{FileEntry, Run, VERSION};
use crate::terminal::Brief;

/// Bytes of memory that what a manifest says may take, and for each of its own: of
/// 65,536 blocks it takes 180 MiB and their names, of what a salvage lost the fourfold.
const MEMORY: u64 = 256 << 20;
const MEMORY_PER_BYTE: u64 = 4;
/// Bytes of a manifest: twice what the longest names of 65,536 blocks make.
const LONGEST: u64 = 512 << 20;

/// What a manifest says.
pub(crate) struct Recorded {
    /// The version of the command that wrote it.
    pub(crate) ramlift: String,
    pub(crate) hash: Option<Algorithm>,
    pub(crate) inputs: Vec<InputEntry>,
    pub(crate) files: Vec<FileEntry>,
    pub(crate) run: Run,
    /// All that follows from the stream.
    pub(crate) content: Map<String, Value>,
}

/// What of it does not follow from the stream.
#[derive(Serialize, Deserialize)]
struct Head {
    ramlift: String,
    manifest_version: u64,
    hash: Option<Algorithm>,
    inputs: Vec<InputEntry>,
    files: Vec<FileEntry>,
    run: Run,
}

impl Head {
    const KEYS: [&str; 6] = ["ramlift", "manifest_version", "hash", "inputs", "files", "run"];
}

/// What is asked of a manifest before the rest.
#[derive(Deserialize)]
struct Version {
    ramlift: String,
    manifest_version: u64,
}

impl Recorded {
    /// Reads a manifest of `len` bytes. `path` is its name for messages.
    ///
    /// Gives it, and the places of keys below the first level that are unknown:
    /// on the first, [`content`](Self::content) has what is left.
    pub(crate) fn read(path: &Path, file: impl Read, len: u64) -> Result<(Self, Vec<String>), Failure> {
        let fail = |error: &dyn fmt::Display| {
            let text = format!("is no manifest that can be checked: {}", Brief(&error.to_string()));
            Failure::Other(format!("{}: {text}", path.display()))
        };
        if len > LONGEST {
            return Err(fail(&format_args!("it has {len} bytes, and none has more than {LONGEST}")));
        }
        let mut deserializer = serde_json::Deserializer::from_reader(BufReader::new(file.take(len)));
        let left = Cell::new(MEMORY + MEMORY_PER_BYTE * len);
        let read = Reading { place: Place::Root, left: &left }.deserialize(&mut deserializer);
        let value =
            read.and_then(|value| deserializer.end().map(|()| value)).map_err(|error| fail(&error))?;
        let version = Version::deserialize(&value).map_err(|error| fail(&error))?;
        if version.manifest_version != VERSION {
            let text = format!(
                "is of another kind: manifest_version {}, and this version of ramlift checks {VERSION}; \
                 ramlift {} wrote it",
                version.manifest_version,
                Brief(&version.ramlift)
            );
            return Err(Failure::Hinted {
                text: format!("{}: {text}", path.display()),
                hint: "verify it with the version that wrote it, or a later one",
            });
        }
        let Value::Object(keys) = value else { return Err(fail(&"it is no object")) };
        let (head, content): (Map<_, _>, Map<_, _>) =
            keys.into_iter().partition(|(key, _)| Head::KEYS.contains(&key.as_str()));
        let met = Value::Object(head);
        let head = Head::deserialize(&met).map_err(|error| fail(&error))?;
        // What was understood, written again, is all that was.
        let understood = serde_json::to_value(&head).map_err(|error| fail(&error))?;
        let mut unknown = Vec::new();
        find_unknown(&Place::Root, &met, &understood, &mut unknown);
        let Head { ramlift, manifest_version: _, hash, inputs, files, run } = head;
        Ok((Self { ramlift, hash, inputs, files, run, content }, unknown))
    }
}

/// Lists the keys of `met` that `understood` does not have.
fn find_unknown(place: &Place<'_>, met: &Value, understood: &Value, unknown: &mut Vec<String>) {
    match (met, understood) {
        (Value::Object(met), Value::Object(understood)) => {
            for (key, met) in met {
                let place = Place::Key(place, key);
                match understood.get(key) {
                    Some(understood) => find_unknown(&place, met, understood, unknown),
                    None => unknown.push(place.to_string()),
                }
            }
        }
        (Value::Array(met), Value::Array(understood)) => {
            for (nth, (met, understood)) in met.iter().zip(understood).enumerate() {
                find_unknown(&Place::Nth(place, nth), met, understood, unknown);
            }
        }
        _ => {}
    }
}

/// A place in a JSON text.
#[derive(Clone, Copy)]
enum Place<'p> {
    Root,
    Key(&'p Place<'p>, &'p str),
    Nth(&'p Place<'p>, usize),
}

/// As a JSON pointer has it.
impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Key(above, key) => write!(f, "{above}/{}", Brief(key)),
            Self::Nth(above, nth) => write!(f, "{above}/{nth}"),
        }
    }
}

/// Reads the value that stands at a place, and refuses keys that are given twice.
#[derive(Clone, Copy)]
struct Reading<'p> {
    place: Place<'p>,
    /// Bytes of memory that all may yet take.
    left: &'p Cell<u64>,
}

impl Reading<'_> {
    /// Counts `len` bytes of memory.
    fn takes<E: serde::de::Error>(&self, len: usize) -> Result<(), E> {
        let left = self.left.get().checked_sub(len as u64);
        let Some(left) = left else {
            return Err(E::custom("it says more than one of its length can honestly say"));
        };
        self.left.set(left);
        Ok(())
    }
}

/// What a value takes where it stands, and a key with it.
const VALUE_LEN: usize = size_of::<Value>();
const ENTRY_LEN: usize = VALUE_LEN + size_of::<String>() + 2 * size_of::<usize>();
/// What an allocation takes beside what it is for.
const ALLOCATION_LEN: usize = 16;
/// What an object or an array has room for from the first on.
const ROOM: usize = 4;

impl<'de> DeserializeSeed<'de> for Reading<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Reading<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Value, E> {
        self.takes(ALLOCATION_LEN + value.len())?;
        Ok(value.into())
    }

    fn visit_string<E: serde::de::Error>(self, value: String) -> Result<Value, E> {
        self.takes(ALLOCATION_LEN + value.len())?;
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        self.takes(ALLOCATION_LEN)?;
        let (above, left) = (self.place, self.left);
        while let Some(element) =
            elements.next_element_seed(Reading { place: Place::Nth(&above, array.len()), left })?
        {
            let room = if array.is_empty() { ROOM } else { usize::from(array.len() >= ROOM) };
            self.takes(room * VALUE_LEN)?;
            array.push(element);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        self.takes(ALLOCATION_LEN)?;
        while let Some(key) = entries.next_key::<String>()? {
            let room = if object.is_empty() { ROOM } else { usize::from(object.len() >= ROOM) };
            self.takes(room * ENTRY_LEN + ALLOCATION_LEN + key.len())?;
            let place = Place::Key(&self.place, &key);
            if object.contains_key(&key) {
                return Err(A::Error::custom(format_args!("{place} is given twice")));
            }
            let value = entries.next_value_seed(Reading { place, left: self.left })?;
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}
