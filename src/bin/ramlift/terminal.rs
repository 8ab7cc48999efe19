//! Standard output is data, standard error is everything else.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};

use ramlift::Idstr;
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter};

use crate::exit::Failure;

/// Prints a line on standard error. A closed one is nobody's problem.
///
/// Whatever part of the line comes from the stream is escaped by then. This
/// makes sure of it: nothing printed here can control a terminal.
pub(crate) fn say(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr().lock(), "{}", plain(&line.to_string()));
}

/// A line without what could control a terminal.
pub(crate) fn plain(line: &str) -> String {
    line.chars().map(|c| if Idstr::is_plain(c) { c } else { char::REPLACEMENT_CHARACTER }).collect()
}

/// Text of the stream that is printed byte for byte, but on a terminal as
/// [`plain`].
pub(crate) fn as_shown(text: &[u8]) -> Cow<'_, [u8]> {
    if !io::stdout().is_terminal() {
        return text.into();
    }
    let is_shown = |c: char| matches!(c, '\n' | '\t') || Idstr::is_plain(c);
    let shown = |c| if is_shown(c) { c } else { char::REPLACEMENT_CHARACTER };
    let shown: String = String::from_utf8_lossy(text).chars().map(shown).collect();
    shown.into_bytes().into()
}

/// Text of any length in a message: of what is too long, begin and end.
pub(crate) struct Brief<'t>(pub(crate) &'t str);

impl fmt::Display for Brief<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const HEAD: usize = 160;
        const TAIL: usize = 40;
        let text = self.0;
        let count = text.chars().count();
        if count <= HEAD + TAIL {
            return f.write_str(text);
        }
        let head: String = text.chars().take(HEAD).collect();
        let tail: String = text.chars().skip(count - TAIL).collect();
        write!(f, "{head}[… {} characters …]{tail}", count - HEAD - TAIL)
    }
}

/// Standard output, buffered. What is written must be flushed by [`finish`].
pub(crate) fn stdout() -> BufWriter<StdoutLock<'static>> {
    BufWriter::with_capacity(1 << 16, io::stdout().lock())
}

/// Flushes what was written to standard output.
pub(crate) fn finish(mut out: BufWriter<StdoutLock<'static>>) -> Result<(), Failure> {
    out.flush().map_err(Failure::stdout)
}

/// Writes `value` as JSON for people and machines alike: two spaces of indent,
/// a line break at the end.
pub(crate) fn write_json(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    write_json_with(out, value, PrettyFormatter::new())?;
    writeln!(out)
}

/// Writes `value` as JSON in a given form.
pub(crate) fn write_json_with(
    out: &mut impl Write,
    value: &impl Serialize,
    formatter: impl Formatter,
) -> io::Result<()> {
    let mut serializer = serde_json::Serializer::with_formatter(out, formatter);
    value.serialize(&mut serializer).map_err(io::Error::from)
}

/// JSON in one line, in which what could control a terminal is escaped: names of
/// the stream's description stand in it as they are.
pub(crate) struct PlainFormatter;

impl Formatter for PlainFormatter {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, out: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        while let Some((at, c)) = rest.char_indices().find(|(_, c)| !Idstr::is_plain(*c)) {
            let (plain, behind) = rest.split_at(at);
            // All of them have 16 bits at most.
            write!(out, "{plain}\\u{:04x}", u32::from(c))?;
            rest = behind.get(c.len_utf8()..).unwrap_or_default();
        }
        out.write_all(rest.as_bytes())
    }
}

/// Prints `value` as JSON on standard output.
pub(crate) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let mut out = stdout();
    write_json(&mut out, value).map_err(Failure::stdout)?;
    finish(out)
}
