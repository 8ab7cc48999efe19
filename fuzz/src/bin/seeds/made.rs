//! Seeds that no stream of `tests/data` is small enough for.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use ramlift::{Packet, TargetPageSize};

use super::Seeds;
use super::channel::{HEADER_LEN, Packet as Made, channel, deflated, zstd_packed};
use super::streams::unpacked;
use super::synth::{noise, small_stream};

/// Bytes of a save image that are kept.
const SAVE_IMAGE_LEN: usize = 12_000;

pub fn seeds() -> HashMap<&'static str, Seeds> {
    let any =
        |count: u64| (0..count).map(|nth| (format!("any-{nth}"), noise(nth, 60 << (nth % 5)))).collect();
    HashMap::from([
        ("differential", any(20)),
        ("damage", any(20)),
        ("mapped_ram", any(20)),
        ("device_made", any(20)),
        ("virtio", any(20)),
        ("cpu", any(40)),
        ("layout", any(60)),
        ("guest", any(40)),
        ("body", (0..9).map(|which| (format!("empty-{which}"), vec![which, 0, 0, 0, 0])).collect()),
        ("xbzrle", xbzrle()),
        ("multifd", multifd()),
        ("wrapper", wrapper()),
        ("qcow2", qcow2()),
    ])
}

fn xbzrle() -> Seeds {
    let deltas: [&[&[u8]]; 5] = [
        &[&[0, 1, 7]],
        &[&[5, 2, 1, 2, 3, 1, 9]],
        &[&[0xff, 0x1e, 1, 8]],
        &[&[0x80, 0x1f, 2, 1, 2], &[1, 1, 5], &[]],
        &[&[0, 3, 1, 2, 3, 0, 1, 4]],
    ];
    let delta = |delta: &&[u8]| [(delta.len() as u16).to_be_bytes().as_slice(), delta].concat();
    let seed = |deltas: &[&[u8]]| deltas.iter().map(delta).collect::<Vec<_>>().concat();
    (0..)
        .zip(deltas)
        .map(|(nth, deltas)| (format!("made-{nth}"), [&[nth], seed(deltas).as_slice()].concat()))
        .collect()
}

/// The seed of these packets, in one channel or two.
fn packets_seed(channels: &[&[u8]]) -> Vec<u8> {
    let len = channels.first().map_or(0, |first| first.len() as u16);
    [&[channels.len() as u8 - 1], len.to_be_bytes().as_slice(), &channels.concat()].concat()
}

fn multifd() -> Seeds {
    let page = noise(1, 4096);
    let zero = Made { block: "main.ram".into(), zero: vec![0, 0x3000], ..Made::default() };
    let data = Made::data("main.ram", &[0x1000], &page);
    let packets = |packets: &[Made]| channel(0, packets)[64..].to_vec();
    let both = packets(&[zero.clone(), data, Made::sync(), Made::sync()]);
    let other = packets(&[
        Made { block: "vga.vram".into(), zero: vec![0x2000], ..Made::default() },
        Made::sync(),
        Made::sync(),
    ]);
    let packed = |flag: u32, payload: Vec<u8>| Made {
        flags: flag,
        block: "main.ram".into(),
        normal: vec![0x5000, 0x6000],
        payload,
        ..Made::default()
    };
    let pages = [&[0x55; 4096], page.as_slice()].concat();
    let fills = [[0x55; 4096], [0x66; 4096]].concat();
    let zlib = packed(super::channel::ZLIB, deflated(&[&pages]).remove(0));
    let zstd = packed(super::channel::ZSTD, zstd_packed(&[&fills], 1).remove(0));
    let mut seeds = vec![
        ("one".to_owned(), packets_seed(&[&both])),
        ("two".to_owned(), packets_seed(&[&both, &other])),
        ("zlib".to_owned(), packets_seed(&[&packets(&[zlib, Made::sync()])])),
        ("zstd".to_owned(), packets_seed(&[&packets(&[zstd, Made::sync()])])),
        (
            "state".to_owned(),
            packets_seed(&[&super::channel::device_state("0000:00:03.0/vfio", 1, &[1, 2, 3])]),
        ),
    ];
    seeds.extend(data_files(".channel-0.zst").into_iter().map(|path| {
        let bytes = unpacked(&path);
        let channel = ramlift::Channel::parse(&bytes, TargetPageSize::KIB_4).unwrap();
        // The first packets of little payload.
        let end = channel.packets().map_while(|packet| match packet {
            Packet::Ram(packet) => Some(packet.at.0 as usize),
            Packet::DeviceState(_) => None,
        });
        let end = end.take_while(|at| *at < 3 * HEADER_LEN).last().unwrap_or(64);
        (name(&path), packets_seed(&[&bytes[64..end]]))
    }));
    seeds
}

fn data_files(ending: &str) -> Vec<PathBuf> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data");
    let paths = fs::read_dir(data).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = paths.filter(|path| name(path).ends_with(ending)).collect();
    paths.sort();
    paths
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

fn wrapper() -> Seeds {
    let mut seeds = Seeds::new();
    for path in [
        data_files(".xz"),
        data_files(".gz"),
        data_files(".bz2"),
        data_files(".lzma"),
        data_files(".lz4"),
        data_files(".lzo"),
    ]
    .concat()
    {
        seeds.push((name(&path), fs::read(&path).unwrap()));
    }
    for path in data_files("zst")
        .into_iter()
        .filter(|path| name(path).starts_with("libvirt") || name(path).starts_with("packed"))
    {
        let bytes =
            if name(&path).starts_with("packed") { fs::read(&path).unwrap() } else { unpacked(&path) };
        seeds.push((name(&path), bytes[..bytes.len().min(SAVE_IMAGE_LEN)].to_vec()));
    }
    let small = small_stream().finish();
    let zstd = zstd::encode_all(small.as_slice(), 3).unwrap();
    // A frame that is long enough to be taken as a whole, and one that is not.
    let frame = zstd::encode_all(noise(1, 16_500).as_slice(), 3).unwrap();
    seeds.push(("frames".to_owned(), [frame, zstd.clone()].concat()));
    seeds.push(("bare".to_owned(), small));
    seeds.push(("zstd-in-zstd".to_owned(), zstd::encode_all(zstd.as_slice(), 3).unwrap()));
    seeds
}

/// Images with a snapshot of a small stream, in clusters of 512 bytes.
fn qcow2() -> Seeds {
    let stream = small_stream().finish();
    let image = |version| (format!("version-{version}"), image(version, 9, &stream));
    vec![image(2), image(3), ("wide".to_owned(), self::image(3, 12, &stream))]
}

/// An image of a disk of one L1 entry, with a VM state behind it.
fn image(version: u32, cluster_bits: u32, state: &[u8]) -> Vec<u8> {
    let cluster = 1_usize << cluster_bits;
    let span = cluster / 8 * cluster;
    let tables = state.len().div_ceil(span);
    let clusters = state.len().div_ceil(cluster);
    // Header, snapshots, L1, then L2 tables, then clusters, the last one first.
    let (snapshots_at, l1_at, l2_at) = (cluster, 2 * cluster, 3 * cluster);
    let data_at = l2_at + tables * cluster;
    let mut bytes = vec![0; data_at + clusters * cluster];
    let mut put = |at: usize, new: &[u8]| bytes[at..at + new.len()].copy_from_slice(new);
    put(0, b"QFI\xfb");
    put(4, &version.to_be_bytes());
    put(20, &cluster_bits.to_be_bytes());
    put(24, &(span as u64).to_be_bytes());
    put(60, &1_u32.to_be_bytes());
    put(64, &(snapshots_at as u64).to_be_bytes());
    put(96, &[0, 0, 0, 4, 0, 0, 0, 112]);
    put(snapshots_at, &(l1_at as u64).to_be_bytes());
    put(snapshots_at + 8, &(tables as u32 + 1).to_be_bytes());
    put(snapshots_at + 12, &[0, 1, 0, 5]);
    put(snapshots_at + 36, &16_u32.to_be_bytes());
    put(snapshots_at + 40, &(state.len() as u64).to_be_bytes());
    put(snapshots_at + 48, &(span as u64).to_be_bytes());
    put(snapshots_at + 56, b"1first");
    for table in 0..tables {
        put(l1_at + 8 + 8 * table, &((1_u64 << 63) | (l2_at + table * cluster) as u64).to_be_bytes());
    }
    for (nth, content) in state.chunks(cluster).enumerate() {
        let at = data_at + (clusters - 1 - nth) * cluster;
        put(at, content);
        put(l2_at + 8 * nth, &((1_u64 << 63) | at as u64).to_be_bytes());
    }
    bytes
}
