//! Devices: a body with a description.

use std::fmt::Write;

use arbitrary::{Arbitrary, Result, Unstructured};
use ramlift::{Stream, Value};

use super::look::{check_error, look_through};
use super::synth::{Block, Records, Synth, subsection};

/// Behind the one under test.
const BEHIND: &str = r#"{"name": "on", "type": "bool", "size": 1}"#;

/// A description of fields, `be16` long, then a body.
pub fn run(bytes: &[u8]) {
    let Some((len, rest)) = bytes.split_first_chunk::<2>() else { return };
    let len = usize::from(u16::from_be_bytes(*len)).min(rest.len());
    let (keys, body) = rest.split_at(len);
    let Ok(keys) = std::str::from_utf8(keys) else { return };
    let stream = with_device("dut", body, keys);
    match Stream::parse(&stream) {
        Ok(parsed) => look_through(&parsed, &stream),
        Err(error) => check_error(&error, &stream),
    }
}

fn with_device(name: &str, body: &[u8], keys: &str) -> Vec<u8> {
    let blocks = [Block::new("main.ram", 0x1000)];
    Synth::machine()
        .ram(&blocks, Records::new().fill("main.ram", 0, 0x55))
        .device_as(3, name, 0, body, keys)
        .device(4, "behind", &[1], BEHIND)
        .finish()
}

/// A device that is described as QEMU does it, and a change or two.
pub fn run_made(bytes: &[u8]) {
    let mut u = Unstructured::new(bytes);
    let mut made = Made::default();
    if made.vmsd(&mut u, 0, "dut").is_err() {
        return;
    }
    let name = *u.choose(&["dut", "cpu", "0000:00:01.0/virtio-net", "fw_cfg"]).unwrap_or(&"dut");
    let stream = with_device(name, &made.body, &made.keys);
    let parsed = Stream::parse(&stream).expect("it is a stream");
    look_through(&parsed, &stream);
    let device = parsed.devices().next().expect("it has devices");
    assert_eq!(device.body(), made.body, "the device ends elsewhere: {}", made.keys);
    match device.decode() {
        Ok(state) => assert_eq!(state.fields.len(), made.fields, "{}", made.keys),
        Err(error) => panic!("{error}: {}", made.keys),
    }
    let behind = parsed.devices().nth(1).expect("there is one behind").decode().expect("it is described");
    assert!(matches!(behind.field("on").unwrap().value, Value::Bool(true)));
    let Ok(changes) = <[(u16, u8); 2]>::arbitrary(&mut u) else { return };
    let mut stream = stream;
    for (at, byte) in changes {
        let at = usize::from(at) % stream.len();
        stream[at] = byte;
    }
    match Stream::parse(&stream) {
        Ok(parsed) => look_through(&parsed, &stream),
        Err(error) => check_error(&error, &stream),
    }
}

/// The types that are as long as the description says, and how long.
const PLAIN: [(&str, u64); 14] = [
    ("bool", 1),
    ("uint8", 1),
    ("int16", 2),
    ("uint32", 4),
    ("int32 equal", 4),
    ("uint64", 8),
    ("timer", 8),
    ("CPU_Double_U", 8),
    ("buffer", 13),
    ("pci config", 256),
    ("bitmap", 16),
    ("msix state", 20),
    ("virtio", 60),
    ("never heard of", 3),
];

/// What is made up: keys of a description, and the body that goes with it.
#[derive(Default)]
struct Made {
    keys: String,
    body: Vec<u8>,
    /// Fields of the outermost description, each element of an array for itself.
    fields: usize,
}

impl Made {
    /// The keys of a description, and its body.
    fn vmsd(&mut self, u: &mut Unstructured<'_>, depth: u32, name: &str) -> Result<()> {
        write!(self.keys, r#""vmsd_name": "{name}", "version": 1, "fields": ["#).unwrap();
        let count = u.int_in_range(1..=if depth == 0 { 6 } else { 3 })?;
        for nth in 0..count {
            let comma = if nth > 0 { ", " } else { "" };
            write!(self.keys, r#"{comma}{{"name": "f{nth}", "#).unwrap();
            let elements = self.field(u, depth)?;
            self.keys.push('}');
            if depth == 0 {
                self.fields += elements;
            }
        }
        self.keys.push(']');
        if u.ratio(1, 4)? {
            let name = format!("{name}/s{depth}");
            self.body.extend(subsection(&name, 1, &[]));
            self.keys.push_str(r#", "subsections": [{"#);
            self.plain_vmsd(u, &name)?;
            self.keys.push_str("}]");
        }
        Ok(())
    }

    fn plain_vmsd(&mut self, u: &mut Unstructured<'_>, name: &str) -> Result<()> {
        write!(self.keys, r#""vmsd_name": "{name}", "version": 1, "fields": [{{"name": "x", "#).unwrap();
        self.plain(u, 1)?;
        self.keys.push_str("}]");
        Ok(())
    }

    /// A field; gives how many elements it has.
    fn field(&mut self, u: &mut Unstructured<'_>, depth: u32) -> Result<usize> {
        let array = if u.ratio(1, 4)? { Some(u.int_in_range(1..=9)?) } else { None };
        if let Some(count) = array {
            write!(self.keys, r#""array_len": {count}, "#).unwrap();
        }
        match array {
            None if depth < 4 && u.ratio(1, 3)? => {
                let begin = self.body.len();
                self.keys.push_str(r#""type": "struct", "struct": {"#);
                self.vmsd(u, depth + 1, &format!("dut{depth}"))?;
                write!(self.keys, r#"}}, "size": {}"#, self.body.len() - begin).unwrap();
            }
            _ => self.plain(u, array.unwrap_or(1))?,
        }
        Ok(array.unwrap_or(1) as usize)
    }

    fn plain(&mut self, u: &mut Unstructured<'_>, count: u64) -> Result<()> {
        let (kind, size) = *u.choose(&PLAIN)?;
        write!(self.keys, r#""type": "{kind}", "size": {size}"#).unwrap();
        for _ in 0..count * size {
            // A footer in a body ends it as well as its own.
            let byte = u.arbitrary::<u8>()?;
            self.body.push(if byte == 0x7e { 0x7f } else { byte });
        }
        Ok(())
    }
}
