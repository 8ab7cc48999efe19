//! The blob of a virtio device, as QEMU writes it, and with a change or two.

use arbitrary::{Arbitrary, Result, Unstructured};
use ramlift::{Stream, Value, Virtio};

use super::look::{check_error, look_through};
use super::synth::{Synth, noise, subsection};

/// Queues that a blob has room for, whatever the device has.
const QUEUES_MAX: usize = 1024;

/// What is made up.
struct Made {
    blob: Vec<u8>,
    config: Vec<u8>,
    queues: usize,
    own_part: Vec<u8>,
}

pub fn run(bytes: &[u8]) {
    let mut u = Unstructured::new(bytes);
    let Ok(made) = Made::arbitrary(&mut u) else { return };
    check(&made);
    let Ok(changes) = <[(u16, u8); 3]>::arbitrary(&mut u) else { return };
    let mut blob = made.blob;
    for (at, byte) in changes {
        // Most of a blob is tables; what counts stands at its begin.
        let at = usize::from(at) % blob.len().min(2000);
        blob[at] = byte;
    }
    let stream = stream_of(&blob);
    match Stream::parse(&stream) {
        Ok(parsed) => look_through(&parsed, &stream),
        Err(error) => check_error(&error, &stream),
    }
}

fn stream_of(blob: &[u8]) -> Vec<u8> {
    let keys = format!(
        r#""vmsd_name": "virtio-blk", "version": 1, "fields": [{{"name": "virtio", "type": "virtio", "size": {}}}]"#,
        blob.len()
    );
    Synth::machine().device_as(3, "0000:00:03.0/virtio-blk", 0, blob, &keys).finish()
}

/// Checks that the blob is told apart as it was put together.
fn check(made: &Made) {
    let bytes = stream_of(&made.blob);
    let stream = Stream::parse(&bytes).expect("it is a stream");
    look_through(&stream, &bytes);
    let state = stream.devices().next().expect("it has a device").decode().expect("it is described");
    let field = state.field("virtio").expect("it is there");
    assert!(matches!(field.value, Value::Bytes(bytes) if bytes == made.blob));
    let virtio = Virtio::of(field).expect("it is a blob").expect("QEMU writes such");
    assert_eq!(virtio.config, made.config);
    assert_eq!(virtio.queues.len(), made.queues);
    assert_eq!(virtio.device, made.own_part);
    assert!(virtio.subsections.unknown.is_empty());
}

/// A blob with this as the device's own part.
pub fn blob(u: &mut Unstructured<'_>, own_part: Vec<u8>) -> Result<Vec<u8>> {
    Made::with(u, Some(own_part)).map(|made| made.blob)
}

impl<'a> Arbitrary<'a> for Made {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        Self::with(u, None)
    }
}

impl Made {
    fn with(u: &mut Unstructured<'_>, own_part: Option<Vec<u8>>) -> Result<Self> {
        let (mut blob, has_alignment, has_vectors) = transport(u)?;
        blob.extend(u.arbitrary::<[u8; 8]>()?);
        let config = text(u, 60)?;
        blob.extend((config.len() as u32).to_be_bytes());
        blob.extend(&config);
        let queues = u.int_in_range(0..=4)?;
        blob.extend((queues as u32).to_be_bytes());
        for _ in 0..queues {
            blob.extend(u.int_in_range(1_u32..=1 << 15)?.to_be_bytes());
            let rest = 10 + if has_alignment { 4 } else { 0 } + if has_vectors { 2 } else { 0 };
            blob.extend(noise(u.arbitrary::<u8>()?.into(), rest));
        }
        let own_part = own_part.map_or_else(|| text(u, 100), Ok)?;
        blob.extend(&own_part);
        // Without any, nothing says that the own part is none.
        for _ in 0..u.int_in_range(0..=4)? {
            blob.extend(behind(u)?);
        }
        Ok(Self { blob, config, queues, own_part })
    }
}

/// Some bytes, none of which can begin a name.
fn text(u: &mut Unstructured<'_>, most: usize) -> Result<Vec<u8>> {
    let len = u.int_in_range(0..=most)?;
    let bytes = u.bytes(len.min(u.len()))?;
    Ok(bytes.iter().map(|byte| if *byte == b'v' { b'w' } else { *byte }).collect())
}

/// How the guest sees the device; whether queues have an alignment, and vectors.
fn transport(u: &mut Unstructured<'_>) -> Result<(Vec<u8>, bool, bool)> {
    Ok(match u.int_in_range(0..=4)? {
        0 => ([&[0; 11], u.bytes(1)?].concat(), true, false),
        1 => (channel(u)?, false, true),
        _ => pci(u)?,
    })
}

fn pci(u: &mut Unstructured<'_>) -> Result<(Vec<u8>, bool, bool)> {
    let (has_express, vectors) =
        (u.arbitrary()?, if u.arbitrary()? { u.int_in_range(1_u16..=20)? } else { 0 });
    let mut config = vec![0; if has_express { 4096 } else { 256 }];
    config[..2].copy_from_slice(&[0xf4, 0x1a]);
    config[6] = 0x10;
    let mut link = 0x34;
    for (at, id, is_there) in [(0x40, 0x10, has_express), (0x60, 9, true), (0x98, 0x11, vectors > 0)] {
        if is_there {
            (config[link], config[at], link) = (at as u8, id, at + 1);
        }
    }
    config[0x9a..0x9c].copy_from_slice(&vectors.saturating_sub(1).to_le_bytes());
    let mut blob = [&[0, 0, 0, 2], config.as_slice()].concat();
    for _ in 0..4 {
        blob.extend(u32::from(u.arbitrary::<bool>()?).to_be_bytes());
    }
    if vectors > 0 {
        let vectors = usize::from(vectors);
        blob.extend(noise(1, 16 * vectors + vectors.div_ceil(8) + 2));
    }
    Ok((blob, false, vectors > 0))
}

fn channel(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    // The sense id says what control unit it is.
    let mut blob = vec![0; 366];
    blob[108..111].copy_from_slice(&[0xff, 0x38, 0x32]);
    if u.arbitrary()? {
        blob.extend(subsection("s390_subch_dev/orb", 1, &[7; 12]));
    }
    blob.extend(noise(2, 3 * 12 + 2 + 8));
    if u.arbitrary()? {
        blob.extend(subsection("s390_adapter_info/summary_offset", 1, &[0, 0, 0, 9]));
    }
    blob.extend(u.arbitrary::<[u8; 5]>()?);
    Ok(blob)
}

/// A subsection.
fn behind(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let table = |name: &str, len: usize| subsection(name, 1, &vec![0x11; QUEUES_MAX * len]);
    Ok(match u.int_in_range(0..=9)? {
        0 => table("virtio/virtqueues", 16),
        1 => table("virtio/ringsize", 4),
        2 => table("virtio/packed_virtqueues", 10),
        3 => subsection("virtio/64bit_features", 1, &u.arbitrary::<[u8; 8]>()?),
        4 => subsection("virtio/128bit_features", 1, &u.arbitrary::<[u8; 8]>()?),
        5 => extra(&subsection("virtio_mmio/state", 1, &vec![0x22; 8 + QUEUES_MAX * 27])),
        6 => {
            let high = if u.arbitrary()? {
                subsection("virtio_pci/modern_state/features128", 1, &[1; 8])
            } else {
                Vec::new()
            };
            extra(
                &[subsection("virtio_pci/modern_state", 1, &vec![0x33; 16 + QUEUES_MAX * 28]), high].concat(),
            )
        }
        7 => extra(&[]),
        _ => {
            let name = u.choose(&["device_endian", "broken", "started", "disabled"])?;
            subsection(&format!("virtio/{name}"), 1, &u.arbitrary::<[u8; 1]>()?)
        }
    })
}

fn extra(state: &[u8]) -> Vec<u8> {
    subsection("virtio/extra_state", 1, state)
}
