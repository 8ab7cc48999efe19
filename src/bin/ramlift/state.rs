//! `ramlift state`: decoded device state as JSON.

use std::io::{self, Write};

use ramlift::{Device, DeviceJson, Error, Iterated, IteratedJson, Stream};
use rayon::prelude::*;
use wildmatch::WildMatch;

use crate::args::StateArgs;
use crate::exit::{Exit, Failure};
use crate::raw::{self, RawChoice};
use crate::source;
use crate::terminal::{self, PlainFormatter, write_json_with};

/// What is written of a stream's state.
pub(crate) struct Chosen<'s, 'a> {
    devices: Vec<Device<'s>>,
    handlers: Vec<Iterated<'s, 'a>>,
}

impl<'s, 'a> Chosen<'s, 'a> {
    /// All of it.
    pub(crate) fn all(stream: &'s Stream<'a>) -> Self {
        Self { devices: stream.devices().collect(), handlers: stream.iterated().collect() }
    }
}

/// Writes what is chosen as `state` prints it, and `state.json` has it: JSON,
/// each device on a line of its own. Gives the failures of those that could
/// not be decoded.
///
/// Decoded are a few devices at a time, in parallel; what they take is given
/// back before the next.
pub(crate) fn write_report(
    out: &mut impl Write,
    stream: &Stream<'_>,
    Chosen { devices, handlers }: Chosen<'_, '_>,
) -> io::Result<Vec<Error>> {
    let machine = stream.configuration().map(|configuration| &configuration.machine);
    let page_size = stream.ram().map(|ram| ram.page_size().bytes());
    writeln!(out, "{{\n\"machine\": {},", serde_json::to_string(&machine)?)?;
    writeln!(out, "\"page_size\": {},", serde_json::to_string(&page_size)?)?;
    write!(out, "\"devices\": [")?;
    let mut failures = Vec::new();
    let mut separator = "\n";
    let mut waiting = devices.as_slice();
    while !waiting.is_empty() {
        let batch = waiting.split_off(..batch_len(waiting)).unwrap_or_default();
        let lines: Vec<_> = batch.par_iter().map(|device| line(*device)).collect();
        for line in lines {
            let (text, failure) = line?;
            out.write_all(separator.as_bytes())?;
            out.write_all(&text)?;
            failures.extend(failure);
            separator = ",\n";
        }
    }
    write!(out, "\n],\n\"handlers\": [")?;
    failures.extend(write_handlers(out, handlers)?);
    writeln!(out, "\n]\n}}")?;
    Ok(failures)
}

/// Writes iterative handlers, each on a line of its own. What one says can be
/// as long as the stream: it is written as it is read.
fn write_handlers(out: &mut impl Write, handlers: Vec<Iterated<'_, '_>>) -> io::Result<Vec<Error>> {
    let mut failures = Vec::new();
    let mut separator = "\n";
    for handler in handlers {
        out.write_all(separator.as_bytes())?;
        let json = IteratedJson::of(handler);
        write_json_with(&mut *out, &json, PlainFormatter)?;
        failures.extend(json.into_failure());
        separator = ",\n";
    }
    Ok(failures)
}

/// Bytes of bodies that are decoded before what came out is written.
const BATCH_LEN: u64 = 1 << 20;

/// How many devices are decoded together at most.
const BATCH_DEVICES: usize = 256;

/// How many of the next devices are decoded together: at least one.
fn batch_len(devices: &[Device<'_>]) -> usize {
    let mut len = 0;
    let fitting = devices.iter().take(BATCH_DEVICES).take_while(|device| {
        len += device.section.body_len();
        len <= BATCH_LEN
    });
    fitting.count().max(1)
}

/// A device as a line of JSON, and why it could not be decoded.
fn line(device: Device<'_>) -> io::Result<(Vec<u8>, Option<Error>)> {
    let decoded = DeviceJson::of(device);
    let mut text = Vec::new();
    write_json_with(&mut text, &decoded, PlainFormatter)?;
    Ok((text, decoded.into_failure()))
}

pub(crate) fn run(args: &StateArgs) -> Result<Exit, Failure> {
    source::with_stream(&args.source, |stream, origin| {
        for warning in &origin.warnings {
            terminal::say(format_args!("warning: {warning}"));
        }
        let exit = print(args, stream)?;
        Ok(if origin.is_damaged { Exit::Partial } else { exit })
    })
}

fn print(args: &StateArgs, stream: &Stream<'_>) -> Result<Exit, Failure> {
    if let Some(idstr) = &args.raw {
        return raw::print(stream, &RawChoice { idstr, instance: args.instance, at: args.at });
    }
    let chosen = choose(stream, &args.devices)?;
    let mut out = terminal::stdout();
    let failures = write_report(&mut out, stream, chosen).map_err(Failure::stdout)?;
    terminal::finish(out)?;
    for warning in stream.warnings() {
        terminal::say(format_args!("warning: {warning}"));
    }
    // Without a description one warning says it of all of them.
    for failure in failures.iter().filter(|_| stream.description().is_some()) {
        terminal::say(format_args!("warning: not decoded: {failure}"));
    }
    let is_loss = stream.warnings().iter().any(|warning| warning.is_loss);
    Ok(Exit::of(is_loss || !failures.is_empty() || stream.description().is_none()))
}

/// The devices and handlers that any of the patterns matches; all if there
/// are none.
fn choose<'s, 'a>(stream: &'s Stream<'a>, patterns: &[String]) -> Result<Chosen<'s, 'a>, Failure> {
    let mut chosen = Chosen::all(stream);
    if patterns.is_empty() {
        return Ok(chosen);
    }
    let mut patterns: Vec<(&String, WildMatch, bool)> =
        patterns.iter().map(|pattern| (pattern, WildMatch::new(pattern), false)).collect();
    let mut is_chosen = |is_match: &dyn Fn(&WildMatch) -> bool| {
        // All of them: each has to be used by something.
        let matching = patterns.iter_mut().filter(|(_, pattern, _)| is_match(pattern));
        matching.map(|(.., is_used)| *is_used = true).count() > 0
    };
    chosen.devices.retain(|device| is_chosen(&|pattern| matches(pattern, device)));
    chosen.handlers.retain(|handler| {
        let name = handler.handler().idstr.to_string();
        is_chosen(&|pattern| pattern.matches(&name))
    });
    if let Some((pattern, ..)) = patterns.iter().find(|(.., is_used)| !is_used) {
        let text =
            format!("no device matches \"{pattern}\"; `ramlift info` lists the sections, `*` is any text");
        return Err(Failure::Other(text));
    }
    Ok(chosen)
}

/// Whether a pattern matches a device's name, or its description's.
fn matches(pattern: &WildMatch, device: &Device<'_>) -> bool {
    let name = device.section.handler.idstr.to_string();
    pattern.matches(&name) || device.desc.is_some_and(|desc| pattern.matches(&desc.vmsd.vmsd_name))
}
