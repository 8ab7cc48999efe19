//! Registers by name, and how they come out of decoded fields.

use indexmap::IndexMap;

use crate::error::{Error, ErrorKind, Result};
use crate::vmstate::{Field, State, Value};

/// Registers in a row: each is one word of up to 64 bits, or several, lowest
/// first.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Registers(IndexMap<String, Vec<u64>>);

impl Registers {
    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &[u64])> {
        self.0.iter().map(|(name, words)| (name.as_str(), words.as_slice()))
    }

    pub(super) fn words(&self, name: &str) -> Option<&[u64]> {
        self.0.get(name).map(Vec::as_slice)
    }

    /// A word of a register; 0 if there is none.
    pub(super) fn word(&self, name: &str, nth: usize) -> u64 {
        self.words(name).and_then(|words| words.get(nth)).copied().unwrap_or(0)
    }

    pub(super) fn put(&mut self, name: impl Into<String>, word: u64) {
        self.0.insert(name.into(), vec![word]);
    }

    /// Puts a register of several words; of none there is nothing to put.
    pub(super) fn put_words(&mut self, name: impl Into<String>, words: Vec<u64>) {
        if !words.is_empty() {
            self.0.insert(name.into(), words);
        }
    }

    /// Puts the elements of an array under these names. It has at least as many.
    pub(super) fn put_array<N: Into<String>>(
        &mut self,
        state: &State<'_, '_>,
        field: &str,
        names: impl IntoIterator<Item = N>,
    ) -> Result<()> {
        let mut words = words(state, field).into_iter();
        for name in names {
            self.put(name, words.next().ok_or_else(|| missing(field))?);
        }
        Ok(())
    }

    /// Puts fields under names of their own: register, field.
    pub(super) fn put_each(&mut self, state: &State<'_, '_>, names: &[(&str, &str)]) -> Result<()> {
        names.iter().try_for_each(|(name, field)| {
            self.put(*name, word(state, field)?);
            Ok(())
        })
    }

    /// Puts those of the fields that are there: what a model of processor or a
    /// version of QEMU has, others may not.
    pub(super) fn put_some(&mut self, state: &State<'_, '_>, names: &[(&str, &str)]) {
        for (name, field) in names {
            if let Ok(word) = word(state, field) {
                self.put(*name, word);
            }
        }
    }
}

/// `x0`, `x1`, …
pub(super) fn numbered(prefix: &str, count: usize) -> impl Iterator<Item = String> {
    (0..count).map(move |nth| format!("{prefix}{nth}"))
}

/// The numbers in all fields of that name: one, or the elements of an array.
pub(super) fn words(state: &State<'_, '_>, name: &str) -> Vec<u64> {
    let mut words = Vec::new();
    for field in fields(state, name) {
        match &field.value {
            Value::Words(parts) => words.extend(parts),
            value => words.extend(number(value)),
        }
    }
    words
}

/// The fields of that name.
pub(super) fn fields<'v, 'a, 'd>(
    state: &'v State<'a, 'd>,
    name: &'v str,
) -> impl Iterator<Item = &'v Field<'a, 'd>> {
    state.fields.iter().filter(move |field| field.desc.name == name)
}

/// The number in the field of that name.
pub(super) fn word(state: &State<'_, '_>, name: &str) -> Result<u64> {
    words(state, name).first().copied().ok_or_else(|| missing(name))
}

fn number(value: &Value<'_, '_>) -> Option<u64> {
    match value {
        Value::Unsigned(number) => Some(*number),
        Value::Signed(number) => Some(number.cast_unsigned()),
        Value::Bool(truth) => Some((*truth).into()),
        _ => None,
    }
}

/// That a field is not there which every version of QEMU writes.
pub(super) fn missing(name: &str) -> Error {
    let expected = format!("a field \"{name}\"");
    Error::new(ErrorKind::Malformed { what: "register", met: "none".to_owned(), expected })
}
