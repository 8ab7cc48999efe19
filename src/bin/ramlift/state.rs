//! `ramlift state`: decoded device state as JSON.

use ramlift::{Device, DeviceJson, Input, Stream};
use rayon::prelude::*;
use serde::{Serialize, Serializer};
use wildmatch::WildMatch;

use crate::args::StateArgs;
use crate::exit::{Exit, Failure};
use crate::terminal;

/// The output of `state`, and `state.json`.
#[derive(Serialize)]
pub(crate) struct StateReport<'s> {
    pub(crate) machine: Option<String>,
    pub(crate) page_size: Option<u64>,
    pub(crate) devices: Devices<'s>,
}

/// Decoded devices, in the order of the stream.
pub(crate) struct Devices<'s>(Vec<DeviceJson<'s>>);

impl<'s> StateReport<'s> {
    /// Decodes `devices` in parallel.
    pub(crate) fn of(stream: &'s Stream<'_>, devices: Vec<Device<'s>>) -> Self {
        Self {
            machine: stream.configuration().map(|configuration| configuration.machine.to_string()),
            page_size: stream.ram().map(|ram| ram.page_size().bytes()),
            devices: Devices(devices.into_par_iter().map(DeviceJson::of).collect()),
        }
    }

    /// One line for each device that could not be decoded.
    pub(crate) fn undecoded(&self) -> impl Iterator<Item = &ramlift::Error> {
        self.devices.0.iter().filter_map(|device| device.outcome.as_ref().err())
    }
}

impl Serialize for Devices<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(&self.0)
    }
}

pub(crate) fn run(args: &StateArgs) -> Result<Exit, Failure> {
    let input = Input::open(&args.stream).map_err(Failure::input(&args.stream))?;
    let stream = Stream::parse(input.bytes()).map_err(Failure::input(&args.stream))?;
    let devices = choose(&stream, &args.devices)?;
    let report = StateReport::of(&stream, devices);
    terminal::print_json(&report)?;
    for warning in stream.warnings() {
        terminal::say(format_args!("warning: {warning}"));
    }
    let mut undecoded = 0;
    for error in report.undecoded() {
        undecoded += 1;
        if stream.description().is_some() {
            terminal::say(format_args!("warning: not decoded: {error}"));
        }
    }
    let is_partial = undecoded > 0 || stream.warnings().iter().any(|warning| warning.is_loss);
    Ok(Exit::of(is_partial || stream.description().is_none()))
}

/// The devices that any of the patterns matches; all if there are none.
fn choose<'s>(stream: &'s Stream<'_>, patterns: &[String]) -> Result<Vec<Device<'s>>, Failure> {
    let mut patterns: Vec<(&String, WildMatch, bool)> =
        patterns.iter().map(|pattern| (pattern, WildMatch::new(pattern), false)).collect();
    if patterns.is_empty() {
        return Ok(stream.devices().collect());
    }
    let mut chosen = Vec::new();
    for device in stream.devices() {
        let mut is_chosen = false;
        for (_, pattern, is_used) in &mut patterns {
            if matches(pattern, &device) {
                (is_chosen, *is_used) = (true, true);
            }
        }
        chosen.extend(is_chosen.then_some(device));
    }
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
