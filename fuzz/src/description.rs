//! The description: any text, by itself and behind devices.

use ramlift::{Description, Stream, VmDesc};

use super::look::{check_error, look_through};
use super::synth::{Block, Records, Synth, noise};

pub fn run(text: &[u8]) {
    let desc = VmDesc::parse(text);
    let is_json = serde_json::from_slice::<serde::de::IgnoredAny>(text).is_ok();
    assert!(is_json || desc.is_err(), "what is no JSON is a description: {desc:?}");
    // Bytes for whatever it describes: two devices by the names it gives.
    let names: Vec<(String, u32)> = desc
        .iter()
        .flat_map(|desc| &desc.devices)
        .map(|device| (device.name.chars().filter(char::is_ascii).take(200).collect(), device.instance_id))
        .take(3)
        .collect();
    let blocks = [Block::new("main.ram", 0x1000)];
    let mut stream = Synth::machine().ram(&blocks, Records::new().fill("main.ram", 0, 0x55));
    for (id, (name, instance)) in (3..).zip(&names) {
        let body = noise(u64::from(id), 8 * id as usize);
        stream = stream.undescribed(id, name, *instance, &body);
    }
    let stream = stream.describe(text);
    match Stream::parse(&stream) {
        Ok(parsed) => look_through(&parsed, &stream),
        Err(error) => check_error(&error, &stream),
    }
    if let Some(found) = Description::at_end_of(&stream) {
        assert!(stream.ends_with(found.text));
    }
}
