//! Paths and arguments in JSON, which has text, and the system has bytes.
//!
//! Nearly all of them are UTF-8 and stand as they are. What is not stands with
//! U+FFFD for what is none, to be read by people, and in a second key of the
//! same name with `_escaped` behind it, as names of the stream are: each
//! backslash and each byte that is no plain text as `\xNN`. By that it can be
//! found again.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use ramlift::Idstr;
use serde::{Deserialize, Serialize};

use crate::terminal::Brief;

/// As people read it.
pub(crate) fn shown(text: &OsStr) -> String {
    text.to_string_lossy().into_owned()
}

/// All of its bytes; `None` if it is UTF-8.
pub(crate) fn escaped(text: &OsStr) -> Option<String> {
    text.to_str().is_none().then(|| Idstr::from(text.as_bytes()).to_string())
}

/// The two keys do not tell the same.
#[derive(Debug, thiserror::Error)]
#[error("\"{}\" is not what \"{}\" stands for", Brief(.shown), Brief(.escaped))]
pub(crate) struct Mismatch {
    shown: String,
    escaped: String,
}

/// What was written as `shown` and `escaped`.
pub(crate) fn restore(shown: String, escaped: Option<String>) -> Result<OsString, Mismatch> {
    let Some(escaped) = escaped else { return Ok(shown.into()) };
    let text = unescape(&escaped);
    let is_of =
        |text: &OsString| self::escaped(text).as_ref() == Some(&escaped) && self::shown(text) == shown;
    text.filter(is_of).ok_or(Mismatch { shown, escaped })
}

fn unescape(text: &str) -> Option<OsString> {
    let mut parts = text.split("\\x");
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let (digits, plain) = part.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        bytes.extend(plain.as_bytes());
    }
    Some(OsString::from_vec(bytes))
}

/// A path as a manifest has it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "Keys", into = "Keys")]
pub(crate) struct RecordedPath(OsString);

#[derive(Serialize, Deserialize)]
struct Keys {
    path: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path_escaped: Option<String>,
}

impl From<RecordedPath> for Keys {
    fn from(RecordedPath(path): RecordedPath) -> Self {
        Self { path: shown(&path), path_escaped: escaped(&path) }
    }
}

impl TryFrom<Keys> for RecordedPath {
    type Error = Mismatch;

    fn try_from(keys: Keys) -> Result<Self, Mismatch> {
        restore(keys.path, keys.path_escaped).map(Self)
    }
}

impl<T: AsRef<OsStr> + ?Sized> From<&T> for RecordedPath {
    fn from(path: &T) -> Self {
        Self(path.as_ref().to_owned())
    }
}

impl AsRef<Path> for RecordedPath {
    fn as_ref(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl AsRef<OsStr> for RecordedPath {
    fn as_ref(&self) -> &OsStr {
        &self.0
    }
}

/// For messages: it can be anybody's, and of any length.
impl fmt::Display for RecordedPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Brief(&shown(&self.0)).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_text_stands_as_it_is() {
        for text in ["stream", "caf\u{e9}", "back\\slash", "\\xff", "\u{fffd}", "line\nbreak"] {
            assert_eq!((shown(OsStr::new(text)), escaped(OsStr::new(text))), (text.to_owned(), None));
            assert_eq!(restore(text.to_owned(), None).unwrap(), text);
        }
    }

    #[test]
    fn what_is_no_text_comes_back() {
        for bytes in [&b"\xff"[..], b"caf\xe9/\\x41\\", b"\xe2\x80\xae\xf0\x9f", b"\n\x1b\xc3\xa4\xc3"] {
            let text = OsStr::from_bytes(bytes);
            assert_eq!(restore(shown(text), escaped(text)).unwrap(), text);
        }
    }

    #[test]
    fn keys_that_do_not_agree_are_refused() {
        for (shown, escaped) in
            [("a", "b"), ("a", "a"), ("\u{fffd}", "\\xFF"), ("\u{fffd}", "\\x"), ("a\u{fffd}", "\\x61\\xff")]
        {
            assert!(restore(shown.to_owned(), Some(escaped.to_owned())).is_err(), "{shown} {escaped}");
        }
    }
}
