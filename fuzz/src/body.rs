//! Sections with layouts of their own: any bytes as their bodies.

use ramlift::Stream;

use super::look::{check_error, check_every_byte, look_through};
use super::synth::{Block, Records, Synth};

/// Handlers and their versions: those with START, PART and END, then those of one
/// body.
const ITERATIVE: [(&str, u32); 6] = [
    ("spapr/htab", 1),
    ("s390-storage_attributes", 0),
    ("dirty-bitmap", 1),
    ("block", 1),
    ("0000:00:02.0/vfio", 1),
    ("pbs-state", 1),
];
const WHOLE: [&str; 3] = ["s390-skeys", "todclock", "vfio"];

/// The input that has these bodies of START, PART and END, or of one section, if the
/// handler is one of these.
#[allow(dead_code, reason = "for those who make seeds")]
pub fn seed(idstr: &[u8], bodies: [&[u8]; 3]) -> Option<Vec<u8>> {
    let names = ITERATIVE.iter().map(|(name, _)| *name).chain(WHOLE);
    let which = names.map(str::as_bytes).position(|name| name == idstr)? as u8;
    let len = |nth: usize| u16::try_from(bodies[nth].len()).ok().map(u16::to_be_bytes);
    Some([[which].as_slice(), &len(0)?, &len(1)?, &bodies.concat()].concat())
}

/// Which handler, how long the bodies of START and PART are, `be16` each, then all
/// bodies.
pub fn run(bytes: &[u8]) {
    let Some(([which, start, start_low, part, part_low], bodies)) = bytes.split_first_chunk() else { return };
    let len = |high: &u8, low: &u8| usize::from(u16::from_be_bytes([*high, *low]));
    let (start, rest) = bodies.split_at(len(start, start_low).min(bodies.len()));
    let (part, end) = rest.split_at(len(part, part_low).min(rest.len()));
    let blocks = [Block::new("main.ram", 0x1000)];
    let records = Records::new().fill("main.ram", 0, 0x55);
    let which = usize::from(*which) % (ITERATIVE.len() + WHOLE.len());
    let stream = match ITERATIVE.get(which) {
        Some((name, version)) => {
            let begin = Synth::machine().start(5, name, *version, start).part(5, part);
            begin.ram(&blocks, records).end(5, end)
        }
        None => {
            Synth::machine().ram(&blocks, records).undescribed(6, WHOLE[which - ITERATIVE.len()], 0, bodies)
        }
    };
    let stream = stream.device(7, "behind", &[1], r#"{"name": "on", "type": "bool", "size": 1}"#).finish();
    match Stream::parse(&stream) {
        Ok(parsed) => {
            look_through(&parsed, &stream);
            check_every_byte(&parsed, &stream);
        }
        Err(error) => check_error(&error, &stream),
    }
}
