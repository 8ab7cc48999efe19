//! `ramlift layout`: where guest-physical memory is.

use std::io::{self, Write};

use ramlift::Stream;
use ramlift::physical::{Layout, LayoutHints};
use serde::Serialize;

use crate::args::{LayoutArgs, LayoutCommandArgs};
use crate::exit::{Exit, Failure};
use crate::layers::Origin;
use crate::{source, terminal};

/// `ramlift layout --json`.
#[derive(Serialize)]
struct Report {
    ramlift: &'static str,
    machine: Option<String>,
    regions: Vec<RegionReport>,
    unplaced: Vec<UnplacedReport>,
    assumptions: Vec<AssumptionReport>,
}

#[derive(Serialize)]
struct RegionReport {
    address: u64,
    length: u64,
    idstr: String,
    offset: u64,
    derived: String,
}

#[derive(Serialize)]
struct UnplacedReport {
    idstr: String,
    offset: u64,
    length: u64,
    is_ram: bool,
    reason: String,
}

#[derive(Serialize)]
struct AssumptionReport {
    text: String,
    option: Option<&'static str>,
}

pub(crate) fn run(args: &LayoutCommandArgs) -> Result<Exit, Failure> {
    source::with_stream(&args.source, |stream, origin| {
        let layout = Layout::derive(stream, &hints(&args.layout, origin))
            .map_err(Failure::layer(&args.source.stream))?;
        let report = report(stream, &layout);
        if args.json {
            terminal::print_json(&report)?;
        } else {
            let mut out = terminal::stdout();
            write_text(&mut out, &report).map_err(Failure::stdout)?;
            terminal::finish(out)?;
        }
        Ok(Exit::of(origin.is_damaged || is_partial(&layout)))
    })
}

/// What is known of the layout beside the stream.
pub(crate) fn hints(args: &LayoutArgs, origin: &Origin) -> LayoutHints {
    LayoutHints { below_4g: args.below_4g, maps: args.maps.clone(), domain_xml: origin.domain_xml.clone() }
}

/// Whether RAM of the guest is missing from a layout.
pub(crate) fn is_partial(layout: &Layout) -> bool {
    layout.unplaced().iter().any(|unplaced| unplaced.is_ram)
}

/// What was assumed, and what is missing, as warnings.
pub(crate) fn warnings(stream: &Stream<'_>, layout: &Layout) -> Vec<String> {
    let assumed = layout.assumptions().iter().map(|assumption| match assumption.option {
        Some(option) => format!("assumed: {} ({option} says other)", assumption.text),
        None => format!("assumed: {}", assumption.text),
    });
    let report = report(stream, layout);
    let missing = report.unplaced.into_iter().filter(|unplaced| unplaced.is_ram).map(|unplaced| {
        format!(
            "RAM block \"{}\": {:#x} bytes from {:#x} on have no place: {} (--map gives one)",
            unplaced.idstr, unplaced.length, unplaced.offset, unplaced.reason
        )
    });
    assumed.chain(missing).collect()
}

fn report(stream: &Stream<'_>, layout: &Layout) -> Report {
    let idstr = |block| {
        let block = stream.ram().and_then(|ram| ram.block(block));
        block.map(|block| block.idstr.to_string()).unwrap_or_default()
    };
    let region = |region: &ramlift::physical::Region| RegionReport {
        address: region.range.start.0,
        length: region.bytes(),
        idstr: idstr(region.block),
        offset: region.offset.0,
        derived: region.derived.to_string(),
    };
    let unplaced = |unplaced: &ramlift::physical::Unplaced| UnplacedReport {
        idstr: idstr(unplaced.block),
        offset: unplaced.range.start.0,
        length: unplaced.range.end.0 - unplaced.range.start.0,
        is_ram: unplaced.is_ram,
        reason: unplaced.reason.to_string(),
    };
    let assumption = |assumption: &ramlift::physical::Assumption| AssumptionReport {
        text: assumption.text.to_string(),
        option: assumption.option,
    };
    Report {
        ramlift: env!("CARGO_PKG_VERSION"),
        machine: stream.configuration().map(|configuration| configuration.machine.to_string()),
        regions: layout.regions().iter().map(region).collect(),
        unplaced: layout.unplaced().iter().map(unplaced).collect(),
        assumptions: layout.assumptions().iter().map(assumption).collect(),
    }
}

fn write_text(out: &mut impl Write, report: &Report) -> io::Result<()> {
    writeln!(out, "machine  {}", report.machine.as_deref().unwrap_or("not in the stream"))?;
    writeln!(out, "\nGuest-physical memory")?;
    writeln!(out, "  {:>18}  {:>18}  {:>18}  RAM block", "address", "bytes", "offset in block")?;
    for region in &report.regions {
        let RegionReport { address, length, idstr, offset, derived } = region;
        writeln!(out, "  {address:>#18x}  {length:>#18x}  {offset:>#18x}  {idstr}: {derived}")?;
    }
    if !report.unplaced.is_empty() {
        writeln!(out, "\nNot in it")?;
        writeln!(out, "  {:>18}  {:>18}  RAM block", "offset in block", "bytes")?;
    }
    for unplaced in &report.unplaced {
        let UnplacedReport { idstr, offset, length, is_ram, reason } = unplaced;
        let mark = if *is_ram { "  (--map gives it one)" } else { "" };
        writeln!(out, "  {offset:>#18x}  {length:>#18x}  {idstr}: {reason}{mark}")?;
    }
    if !report.assumptions.is_empty() {
        writeln!(out, "\nAssumed")?;
    }
    for AssumptionReport { text, option } in &report.assumptions {
        let option = option.map(|option| format!(" ({option} says other)")).unwrap_or_default();
        writeln!(out, "  {text}{option}")?;
    }
    Ok(())
}
