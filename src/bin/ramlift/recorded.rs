//! A manifest, read to be checked: strictly, because what is passed over here
//! is checked by nobody.
//!
//! A key that is given twice is an error: readers differ in which one they
//! take, so one could be checked and the other believed. Keys that nobody here
//! knows are listed.

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

/// What a manifest says.
#[derive(Serialize, Deserialize)]
pub(crate) struct Recorded {
    /// The version of the command that wrote it.
    pub(crate) ramlift: String,
    manifest_version: u64,
    pub(crate) hash: Option<Algorithm>,
    pub(crate) inputs: Vec<InputEntry>,
    pub(crate) files: Vec<FileEntry>,
    pub(crate) run: Run,
    /// All that follows from the stream.
    #[serde(flatten)]
    pub(crate) content: Map<String, Value>,
}

/// What is asked of a manifest before the rest.
#[derive(Deserialize)]
struct Version {
    ramlift: String,
    manifest_version: u64,
}

impl Recorded {
    /// Reads a manifest. `path` is its name for messages.
    ///
    /// Gives it, and the places of keys below the first level that are unknown:
    /// on the first, [`content`](Self::content) has what is left.
    pub(crate) fn read(path: &Path, file: impl Read) -> Result<(Self, Vec<String>), Failure> {
        let fail = |error: &dyn fmt::Display| {
            let text = format!("is no manifest that can be checked: {}", Brief(&error.to_string()));
            Failure::Other(format!("{}: {text}", path.display()))
        };
        let mut deserializer = serde_json::Deserializer::from_reader(BufReader::new(file));
        let read = Place::Root.deserialize(&mut deserializer);
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
        let recorded = Self::deserialize(&value).map_err(|error| fail(&error))?;
        // What was understood, written again, is all that was.
        let understood = serde_json::to_value(&recorded).map_err(|error| fail(&error))?;
        let mut unknown = Vec::new();
        find_unknown(&Place::Root, &value, &understood, &mut unknown);
        Ok((recorded, unknown))
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

/// Reads the value that stands there, and refuses keys that are given twice.
impl<'de> DeserializeSeed<'de> for Place<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Place<'_> {
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

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(element) = elements.next_element_seed(Place::Nth(&self, array.len()))? {
            array.push(element);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let place = Place::Key(&self, &key);
            if object.contains_key(&key) {
                return Err(A::Error::custom(format_args!("{place} is given twice")));
            }
            let value = entries.next_value_seed(place)?;
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}
