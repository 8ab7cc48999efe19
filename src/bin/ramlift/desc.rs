//! `ramlift desc`: the stream's own description.

use std::io::Write;
use std::path::Path;

use ramlift::{Description, ErrorKind, Kept, Stream};

use crate::args::{DescArgs, LayerArgs};
use crate::exit::{Exit, Failure};
use crate::source::Opened;
use crate::{progress, source, terminal};

/// Prints the description's text, byte for byte if not on a terminal, and a line
/// break.
pub(crate) fn run(args: &DescArgs) -> Result<Exit, Failure> {
    let (text, exit) = find(&args.stream, &args.layers)?;
    let mut out = terminal::stdout();
    out.write_all(&terminal::as_shown(&text)).and_then(|()| writeln!(out)).map_err(Failure::stdout)?;
    terminal::finish(out)?;
    Ok(exit)
}

/// The text of the description: the one the walk arrives at, or where the
/// walk fails the one that the file ends with.
pub(crate) fn find(path: &Path, args: &LayerArgs) -> Result<(Vec<u8>, Exit), Failure> {
    let whole = |stream: &Stream<'_>| text(path, stream).map(|text| (text.to_vec(), Exit::Complete));
    let input = match source::open_path(path, args)? {
        Opened::Mapped(input, _) => input,
        Opened::Incoming(incoming, origin) => {
            let kept = Kept::new();
            match source::pass(path, incoming, &kept) {
                Ok(stream) => return whole(&stream),
                Err(failure) => source::go_back(path, args, failure, &origin)?.0,
            }
        }
    };
    let failure = match progress::index(&input, progress::is_visible(false)) {
        Ok(stream) => return whole(&stream),
        Err(failure) => failure,
    };
    // What is no stream at all has no description either.
    let is_stream = !failure.is_of(|kind| matches!(kind, ErrorKind::NotAStream { .. }));
    let Some(last) = Description::at_end_of(&input).filter(|_| is_stream) else { return Err(failure) };
    terminal::say(format_args!("warning: {failure}"));
    terminal::say(format_args!("warning: this is the description that the file ends with"));
    Ok((last.text.to_vec(), Exit::Partial))
}

/// The text of a stream's description, or the failure that there is none.
pub(crate) fn text<'a>(path: &Path, stream: &Stream<'a>) -> Result<&'a [u8], Failure> {
    let description = stream.description().ok_or_else(|| {
        let why = stream.warnings().iter().map(|warning| format!("; {warning}")).collect::<String>();
        Failure::Other(format!("{}: the stream has no usable description{why}", path.display()))
    })?;
    Ok(description.text)
}
