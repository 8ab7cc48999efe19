//! `ramlift desc`: the stream's own description.

use std::io::Write;
use std::path::Path;

use ramlift::{Description, ErrorKind, Input, Stream};

use crate::args::DescArgs;
use crate::exit::{Exit, Failure};
use crate::{progress, terminal};

/// Prints the description's text, byte for byte, and a line break.
pub(crate) fn run(args: &DescArgs) -> Result<Exit, Failure> {
    let input = Input::open(&args.stream).map_err(Failure::input(&args.stream))?;
    let (text, exit) = find(&args.stream, &input)?;
    let mut out = terminal::stdout();
    out.write_all(text).and_then(|()| writeln!(out)).map_err(Failure::stdout)?;
    terminal::finish(out)?;
    Ok(exit)
}

/// The text of the description: the one the walk arrives at, or where the
/// walk fails the one that the file ends with.
pub(crate) fn find<'a>(path: &Path, input: &'a Input) -> Result<(&'a [u8], Exit), Failure> {
    let failure = match progress::index(input, progress::is_visible(false)) {
        Ok(stream) => return text(path, &stream).map(|text| (text, Exit::Complete)),
        Err(failure) => failure,
    };
    // What is no stream at all has no description either.
    let is_stream = !failure.is_of(|kind| matches!(kind, ErrorKind::NotAStream { .. }));
    let Some(last) = Description::at_end_of(input.bytes()).filter(|_| is_stream) else { return Err(failure) };
    terminal::say(format_args!("warning: {failure}"));
    terminal::say(format_args!("warning: this is the description that the file ends with"));
    Ok((last.text, Exit::Partial))
}

/// The text of a stream's description, or the failure that there is none.
pub(crate) fn text<'a>(path: &Path, stream: &Stream<'a>) -> Result<&'a [u8], Failure> {
    let description = stream.description().ok_or_else(|| {
        let why = stream.warnings().iter().map(|warning| format!("; {warning}")).collect::<String>();
        Failure::Other(format!("{}: the stream has no usable description{why}", path.display()))
    })?;
    Ok(description.text)
}
