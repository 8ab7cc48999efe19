//! What streams are wrapped in: layer in layer, and snapshots of qcow2.

use std::io::Read;
use std::path::Path;

use ramlift::physical::{Layout, LayoutHints};
use ramlift::wrapper::libvirt::SaveImage;
use ramlift::wrapper::qcow2::{Qcow2, RunSource, VmState};
use ramlift::wrapper::{Chain, Layer, PREFIX_LEN, compression, detect, error_of};
use ramlift::{Stream, StreamOffset};

use super::look::{check_error, check_message, look_through};
use super::synth::small_stream;

/// What is unpacked of a layer at most, more than a decoder hands on at a time: a
/// bomb is larger, and no finding.
const UNPACKED: u64 = 300 << 10;
const DEPTH: usize = 8;

/// What is unpacked in one go at most, whatever is asked for.
const PIECE: usize = 64 << 10;
const RUNS: usize = 4096;

/// Goes into all layers.
pub fn run(bytes: &[u8]) {
    let mut chain = Chain::default();
    let mut bytes = bytes.to_vec();
    while chain.0.len() < DEPTH {
        let layer = detect(&bytes);
        assert_eq!(layer, detect(&bytes[..bytes.len().min(PREFIX_LEN)]), "the prefix is not enough");
        assert!(!layer.to_string().is_empty());
        chain.0.push(layer.clone());
        bytes = match layer {
            Layer::Libvirt { .. } => match save_image(&bytes) {
                Some(inner) => inner,
                None => break,
            },
            Layer::Compressed(kind) => {
                unpack(&bytes, |bytes| compression::decoder(kind, bytes, StreamOffset(0)))
            }
            Layer::Qcow2 { .. } => match snapshot(&bytes) {
                Some(inner) => inner,
                None => break,
            },
            Layer::Stream => return walk(&bytes),
            _ => break,
        };
    }
    assert!(!chain.to_string().is_empty());
}

/// Reads an image whatever it begins with.
pub fn run_qcow2(bytes: &[u8]) {
    if let Some(inner) = snapshot(bytes) {
        walk(&inner);
    }
}

fn walk(bytes: &[u8]) {
    match Stream::parse(bytes) {
        Ok(stream) => look_through(&stream, bytes),
        Err(error) => check_error(&error, bytes),
    }
}

fn save_image(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut rest = bytes;
    let image = match SaveImage::read(&mut rest) {
        Ok(image) => image,
        Err(error) => {
            check_message(&error);
            return None;
        }
    };
    assert_eq!(SaveImage::parse(bytes).unwrap(), image);
    assert_eq!(image.stream_offset(), (bytes.len() - rest.len()) as u64);
    check_layout(&image.xml);
    Some(unpack(rest, |rest| image.open(rest, StreamOffset(image.stream_offset()))))
}

/// Has the layout of memory derived by any XML.
fn check_layout(xml: &[u8]) {
    let stream = small_stream().finish();
    let stream = Stream::parse(&stream).unwrap();
    let hints = LayoutHints { domain_xml: Some(xml.to_vec()), ..LayoutHints::default() };
    drop(Layout::derive(&stream, &hints));
}

/// Unpacks twice, in large pieces and in small ones, and checks that it is the
/// same.
fn unpack<'b>(bytes: &'b [u8], open: impl Fn(&'b [u8]) -> Box<dyn Read + Send + 'b>) -> Vec<u8> {
    let (whole, failure) = read(open(bytes), &[UNPACKED as usize]);
    let (pieces, other) = read(open(bytes), &[1, 37, 512, 4099, 30_000]);
    let same = whole.len().min(pieces.len());
    let lens = format!("{} bytes at once, {} in pieces", whole.len(), pieces.len());
    assert!(whole[..same] == pieces[..same], "other bytes: {lens}");
    // A failure takes with it what was unpacked in the same go.
    let slack = if failure.is_some() || other.is_some() { PIECE } else { 0 };
    assert!(whole.len().abs_diff(pieces.len()) <= slack, "{lens}: {failure:?}, {other:?}");
    let is_cut = |bytes: &[u8]| bytes.len() as u64 == UNPACKED;
    let are_alike = failure.is_some() == other.is_some() || is_cut(&whole) || is_cut(&pieces);
    assert!(are_alike, "{lens}: {failure:?}, {other:?}");
    pieces
}

/// Reads pieces of these lengths, again and again.
fn read(mut reader: impl Read, lens: &[usize]) -> (Vec<u8>, Option<String>) {
    let mut buffer = vec![0; lens.iter().copied().max().expect("there is one")];
    let mut all = Vec::new();
    for len in lens.iter().cycle() {
        if all.len() as u64 >= UNPACKED {
            break;
        }
        match reader.read(&mut buffer[..*len]) {
            Ok(0) => return (all, None),
            Ok(len) => all.extend(&buffer[..len]),
            Err(why) => {
                let error = error_of(why, Path::new("layer"));
                check_message(&error);
                return (all, Some(error.to_string()));
            }
        }
    }
    all.truncate(UNPACKED as usize);
    (all, None)
}

/// The VM state of the first snapshot that has one. All are looked at.
fn snapshot(bytes: &[u8]) -> Option<Vec<u8>> {
    let image = match Qcow2::open(bytes) {
        Ok(image) => image,
        Err(error) => {
            check_message(&error);
            return None;
        }
    };
    let mut first = None;
    for snapshot in image.snapshots().iter().take(8) {
        assert!(!snapshot.to_string().chars().any(char::is_control));
        assert!(image.find(snapshot.name.as_bytes()).is_ok());
        match image.vm_state(snapshot) {
            Ok(state) => {
                let content = vm_state(&state, bytes);
                first = first.or(content);
            }
            Err(error) => check_message(&error),
        }
    }
    if let Err(error) = image.find(b"no such snapshot") {
        check_message(&error);
    }
    first
}

/// What a VM state holds, which its runs must hold too.
fn vm_state(state: &VmState<&&[u8]>, bytes: &[u8]) -> Option<Vec<u8>> {
    let mut by_runs = Vec::new();
    let mut end = 0;
    for run in state.runs().take(RUNS) {
        let run = match run {
            Ok(run) => run,
            Err(error) => {
                check_message(&error);
                break;
            }
        };
        assert!(run.at == end && run.len > 0, "{run:?} begins elsewhere than {end:#x}");
        end = run.at + run.len;
        let wanted = run.len.min(UNPACKED - by_runs.len() as u64) as usize;
        match run.source {
            RunSource::Zeros => by_runs.resize(by_runs.len() + wanted, 0),
            RunSource::File(at) => match bytes.get(at as usize..).and_then(|rest| rest.get(..wanted)) {
                Some(content) => by_runs.extend(content),
                None => break,
            },
            RunSource::Compressed { .. } => break,
        }
        if by_runs.len() as u64 == UNPACKED {
            break;
        }
    }
    assert!(end <= state.len() || end >= UNPACKED, "runs end at {end:#x}, the state at {:#x}", state.len());
    let (content, _) = read(state.reader(), &[1 << 16]);
    let (pieces, _) = read(state.reader(), &[1000]);
    assert!(content == pieces, "the state reads in two ways");
    let common = content.len().min(by_runs.len());
    assert!(content[..common] == by_runs[..common], "the state is not what its runs have");
    (!content.is_empty()).then_some(content)
}
