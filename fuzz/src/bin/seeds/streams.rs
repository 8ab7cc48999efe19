//! Seeds out of the real streams of `tests/data`: of each its head, its block
//! list, a few page records, and devices as they fit.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use ramlift::{Device, PageRecord, Ram, RecordContent, Section, SectionType, Stream};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::Seeds;
use super::synth::{
    COMPRESS_PAGE, CONTINUE, EOF, FOOTER, MEM_SIZE, PAGE, Records, VMDESCRIPTION, XBZRLE, ZERO, str8,
};

/// Bytes of devices and their descriptions that a seed has at most.
const DEVICES_LEN: usize = 6000;

/// Bytes before which sections of other iterative handlers are kept.
const ITERATED_LEN: usize = 3000;

/// Seeds of all targets that take streams, or parts of them.
pub fn seeds() -> HashMap<&'static str, Seeds> {
    let mut seeds = HashMap::<_, Seeds>::new();
    let mut seen = HashSet::new();
    for (name, bytes) in fixtures() {
        let Ok(stream) = Stream::parse(&bytes) else { continue };
        let mapped =
            stream.configuration().is_some_and(|configuration| configuration.has_capability("mapped-ram"));
        for (nth, seed) in bodies(&stream).into_iter().enumerate() {
            seeds.entry("body").or_default().push((format!("{name}-{nth}"), seed));
        }
        let descs = descriptions(&stream);
        for (nth, group) in groups(&stream, &descs, &mut seen).into_iter().enumerate() {
            for (device, desc) in &group {
                if let Some(seed) = device_seed(device, desc) {
                    let name = format!("{name}-{}", device.section.handler.section_id);
                    seeds.entry("device").or_default().push((name, seed));
                }
            }
            let text = description(&stream, group.iter().map(|(_, desc)| *desc));
            let name = format!("{name}-{nth}");
            seeds.entry("description").or_default().push((name.clone(), text.clone().into_bytes()));
            if mapped {
                continue;
            }
            let small = minimised(&bytes, &stream, nth == 0, &group, &text);
            if Stream::parse(&small).is_err() {
                println!("{name}: {}", Stream::parse(&small).err().unwrap());
            }
            seeds.entry("read_once").or_default().push((name.clone(), [&[4], small.as_slice()].concat()));
            for target in ["stream", "salvage"] {
                seeds.entry(target).or_default().push((name.clone(), small.clone()));
            }
        }
    }
    seeds
}

/// The streams of `tests/data`.
fn fixtures() -> Vec<(String, Vec<u8>)> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data");
    let mut paths: Vec<PathBuf> = [data.clone(), data.join("cpu")]
        .iter()
        .flat_map(|dir| fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "zst" || extension == "qevm"))
        .collect();
    paths.sort();
    paths
        .iter()
        .map(|path| (path.file_stem().unwrap().to_string_lossy().into_owned(), unpacked(path)))
        .collect()
}

/// A file of `tests/data`, unpacked.
pub fn unpacked(path: &Path) -> Vec<u8> {
    let bytes = fs::read(path).unwrap();
    if path.extension().is_none_or(|extension| extension != "zst") {
        return bytes;
    }
    let mut decoder = zstd::Decoder::new(bytes.as_slice()).unwrap();
    decoder.window_log_max(27).unwrap();
    let mut stream = Vec::new();
    decoder.read_to_end(&mut stream).unwrap();
    stream
}

#[derive(Deserialize)]
struct Text<'t> {
    #[serde(borrow, default)]
    devices: Vec<&'t RawValue>,
}

/// The text of each device's description.
fn descriptions<'a>(stream: &Stream<'a>) -> Vec<&'a str> {
    let Some(found) = stream.description() else { return Vec::new() };
    let text: Text<'a> = serde_json::from_slice(found.text).unwrap();
    text.devices.iter().map(|device| device.get()).collect()
}

/// Devices with their descriptions, as many together as fit into a seed: of each
/// layout the first that is met anywhere, and a few of each stream.
fn groups<'s>(
    stream: &'s Stream<'_>,
    descs: &[&'s str],
    seen: &mut HashSet<String>,
) -> Vec<Vec<(Device<'s>, &'s str)>> {
    let mut groups = vec![Vec::new()];
    let mut len = 0;
    // FULL sections and descriptions are in one order.
    for (nth, (device, desc)) in stream.devices().zip(descs.iter().copied()).enumerate() {
        let cost = device.body().len() + desc.len();
        let layout = keys(desc).map(without_digits).unwrap_or_default();
        if cost > DEVICES_LEN || !seen.insert(layout) && nth > 2 {
            continue;
        }
        if len + cost > DEVICES_LEN {
            groups.push(Vec::new());
            len = 0;
        }
        len += cost;
        groups.last_mut().unwrap().push((device, desc));
    }
    groups
}

/// Seeds of the target `body`: of each handler the first sections that are not long.
fn bodies(stream: &Stream<'_>) -> Vec<Vec<u8>> {
    const BODY_LEN: usize = 2500;
    let mut by_handler = HashMap::<u32, [&[u8]; 3]>::new();
    let mut names = HashMap::new();
    for section in stream.sections() {
        let nth = match section.kind {
            SectionType::Start => 0,
            SectionType::Part => 1,
            _ => 2,
        };
        let body = stream.body(section);
        names.insert(section.handler.section_id, section.handler.idstr.clone());
        let bodies = by_handler.entry(section.handler.section_id).or_default();
        if bodies[nth].is_empty() && body.len() <= BODY_LEN {
            bodies[nth] = body;
        }
    }
    let mut seeds: Vec<_> = by_handler
        .into_iter()
        .filter_map(|(id, bodies)| ramlift_fuzz::body_seed(names[&id].as_bytes(), bodies))
        .collect();
    seeds.sort();
    seeds
}

/// What a description says behind name and instance.
fn keys(desc: &str) -> Option<&str> {
    let start = desc.find("\"vmsd_name\"")?;
    Some(desc[start..].strip_suffix('}')?.trim_end())
}

fn without_digits(text: &str) -> String {
    text.chars().filter(|char| !char.is_ascii_digit()).collect()
}

/// A seed of the target `device`.
fn device_seed(device: &Device<'_>, desc: &str) -> Option<Vec<u8>> {
    let keys = keys(desc)?;
    let len = u16::try_from(keys.len()).ok()?;
    Some([len.to_be_bytes().as_slice(), keys.as_bytes(), device.body()].concat())
}

/// The description of some of a stream's devices.
fn description<'d>(stream: &Stream<'_>, descs: impl Iterator<Item = &'d str>) -> String {
    let page_size = stream.ram().map_or(4096, |ram| ram.page_size().bytes());
    format!(r#"{{"page_size": {page_size}, "devices": [{}]}}"#, descs.collect::<Vec<_>>().join(","))
}

/// A stream with these devices and little else.
fn minimised(
    bytes: &[u8],
    stream: &Stream<'_>,
    is_first: bool,
    group: &[(Device<'_>, &str)],
    text: &str,
) -> Vec<u8> {
    let footer = |section: &Section| match stream.has_footers() {
        true => [&[FOOTER], section.handler.section_id.to_be_bytes().as_slice()].concat(),
        false => Vec::new(),
    };
    let head = |section: &Section| &bytes[section.offset.0 as usize..section.body.0 as usize];
    let first = stream.sections().iter().map(|section| section.offset.0);
    let first = first.chain(stream.commands().iter().map(|command| command.offset.0)).min().unwrap();
    let mut small = bytes[..first as usize].to_vec();
    let mut kept = stream.ram().map(|ram| kept_records(stream, ram, bytes, is_first)).unwrap_or_default();
    let mut parts = 0;
    for section in stream.sections() {
        let body = &bytes[section.body.0 as usize..section.body_end.0 as usize];
        match section.kind {
            SectionType::Full => {}
            SectionType::Start if section.handler.idstr == *"ram" => {
                let list = stream.ram().map(block_list).unwrap();
                small.extend([head(section), &list, &Records::new().end(), &footer(section)].concat());
            }
            kind if section.handler.idstr == *"ram" => {
                parts += 1;
                if parts > 2 && kind == SectionType::Part {
                    continue;
                }
                let half = if kind == SectionType::Part { kept.len() / 2 } else { kept.len() };
                let records: Vec<u8> = kept.drain(..half).flatten().collect();
                small.extend([head(section), &records, &Records::new().end(), &footer(section)].concat());
            }
            _ if body.len() + small.len() < ITERATED_LEN => {
                small.extend([head(section), body, &footer(section)].concat())
            }
            _ => {}
        }
    }
    for (device, _) in group {
        small.extend([head(device.section), device.body(), &footer(device.section)].concat());
    }
    small.push(EOF);
    if stream.description().is_some() {
        small.push(VMDESCRIPTION);
        small.extend((text.len() as u32).to_be_bytes());
        small.extend(text.as_bytes());
    }
    small
}

fn block_list(ram: &Ram<'_>) -> Vec<u8> {
    let total: u64 = ram.blocks().map(|(_, block, _)| block.used_length).sum();
    let mut list = (total | MEM_SIZE).to_be_bytes().to_vec();
    for (_, block, _) in ram.blocks() {
        list.extend(str8(block.idstr.as_bytes()));
        let numbers = [Some(block.used_length), block.host_page_size, block.mr_addr];
        list.extend(numbers.iter().flatten().flat_map(|number| number.to_be_bytes()));
    }
    list
}

/// A few records of each kind; a page of data, which is most of a seed, only
/// where it is wanted.
fn kept_records(stream: &Stream<'_>, ram: &Ram<'_>, bytes: &[u8], with_data: bool) -> Vec<Vec<u8>> {
    let mut left =
        HashMap::from([("fill", 4), ("data", usize::from(with_data)), ("xbzrle", 2), ("compressed", 1)]);
    let mut kept = Vec::new();
    let mut last = None;
    let page_len = ram.page_size().bytes() as usize;
    for record in stream.page_records() {
        let PageRecord { block, offset, content, payload } = record;
        let rest = &bytes[payload.0 as usize..];
        let be = |bytes: &[u8]| bytes.iter().fold(0, |number, byte| number << 8 | usize::from(*byte));
        let (kind, flag, len) = match content {
            RecordContent::Fill(_) => ("fill", ZERO, 1),
            RecordContent::Data => ("data", PAGE, page_len),
            RecordContent::Compressed => ("compressed", COMPRESS_PAGE, 4 + be(&rest[..4])),
            RecordContent::Xbzrle => ("xbzrle", XBZRLE, 3 + be(&rest[1..3])),
        };
        let left = left.get_mut(kind).unwrap();
        if *left == 0 {
            continue;
        }
        *left -= 1;
        let is_same = last.replace(block) == Some(block);
        let word = offset.0 | flag | if is_same { CONTINUE } else { 0 };
        let name = if is_same { Vec::new() } else { str8(ram.block(block).unwrap().idstr.as_bytes()) };
        kept.push([word.to_be_bytes().as_slice(), &name, &rest[..len]].concat());
    }
    kept
}
