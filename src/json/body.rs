//! Bodies with layouts of their own as JSON.
//!
//! Written while the stream is read: of long lists nothing is kept.

use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::body::{BlockDevice, BlockDevices, Content, DirtyBitmap, DirtyBitmaps, DirtyRange, Piece};
use crate::error::Error;
use crate::idstr::Idstr;
use crate::iterated::Iterated;
use crate::json::Hex;
use crate::section::Section;
use crate::stream::Device;

/// An iterative handler and what its sections say, for output as JSON.
#[derive(Debug)]
pub struct IteratedJson<'s, 'a> {
    iterated: Iterated<'s, 'a>,
    gathered: Result<Gathered<'a>, Error>,
}

/// What is put together before it is written.
#[derive(Debug)]
enum Gathered<'a> {
    Bitmaps(DirtyBitmaps<'a>),
    Devices(BlockDevices<'a>),
    /// Nothing: the pieces are written one by one.
    Pieces,
}

impl<'s, 'a> IteratedJson<'s, 'a> {
    /// Gathers what `iterated` says.
    pub fn of(iterated: Iterated<'s, 'a>) -> Self {
        let gathered = match iterated.handler().idstr.as_bytes() {
            b"dirty-bitmap" => iterated.dirty_bitmaps().map(Gathered::Bitmaps),
            b"block" => iterated.block_devices().map(Gathered::Devices),
            _ => Ok(Gathered::Pieces),
        };
        Self { iterated, gathered }
    }

    /// Why it could not be gathered.
    pub fn into_failure(self) -> Option<Error> {
        self.gathered.err()
    }
}

impl Serialize for IteratedJson<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let handler = self.iterated.handler();
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("name", &handler.idstr)?;
        map.serialize_entry("instance_id", &handler.instance_id)?;
        map.serialize_entry("version_id", &handler.version_id)?;
        map.serialize_entry("section_id", &handler.section_id)?;
        map.serialize_entry(
            "sections",
            &Seq(|| self.iterated.sections().iter().map(|section| Place(section))),
        )?;
        match &self.gathered {
            Ok(gathered) => {
                let status = if self.iterated.is_opaque() { "opaque" } else { "decoded" };
                map.serialize_entry("status", status)?;
                map.serialize_entry("state", &StateOfIterated(&self.iterated, gathered))?;
            }
            Err(error) => {
                map.serialize_entry("status", "undecoded")?;
                map.serialize_entry("reason", &error.to_string())?;
            }
        }
        map.end()
    }
}

/// Where a section's body is.
struct Place<'s>(&'s Section);

impl Serialize for Place<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(3))?;
        map.serialize_entry("type", &self.0.kind.to_string())?;
        map.serialize_entry("offset", &self.0.body.0)?;
        map.serialize_entry("length", &self.0.body_len())?;
        map.end()
    }
}

/// A list that is written as it is made.
struct Seq<F>(F);

impl<F: Fn() -> I, I: Iterator<Item: Serialize>> Serialize for Seq<F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq((self.0)())
    }
}

struct StateOfIterated<'h, 's, 'a>(&'h Iterated<'s, 'a>, &'h Gathered<'a>);

impl Serialize for StateOfIterated<'_, '_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(iterated, gathered) = self;
        let mut map = serializer.serialize_map(None)?;
        match (gathered, iterated.handler().idstr.as_bytes()) {
            (Gathered::Bitmaps(bitmaps), _) => {
                map.serialize_entry("bitmaps", &Seq(|| bitmaps.iter().map(BitmapJson)))?;
            }
            (Gathered::Devices(devices), _) => {
                map.serialize_entry("devices", &Seq(|| devices.iter().map(BlockDeviceJson)))?;
            }
            (Gathered::Pieces, b"spapr/htab") => write_htab(&mut map, iterated)?,
            (Gathered::Pieces, b"s390-storage_attributes") => {
                write_page_bytes(&mut map, "attributes", || iterated.pieces())?;
                map.serialize_entry("is_complete", &iterated.pieces().any(is_all_sent))?;
            }
            _ => map.serialize_entry("records", &Seq(|| iterated.pieces().map(Record)))?,
        }
        map.end()
    }
}

fn write_htab<M: SerializeMap>(map: &mut M, iterated: &Iterated<'_, '_>) -> Result<(), M::Error> {
    let shift = iterated.pieces().find_map(|piece| match piece.content {
        Content::HashTable { shift } => shift,
        _ => None,
    });
    map.serialize_entry("shift", &shift)?;
    let is_chunk = |piece: &Piece<'_>| matches!(piece.content, Content::HashEntries { .. });
    map.serialize_entry("chunks", &Seq(|| iterated.pieces().filter(is_chunk).map(Record)))
}

fn is_all_sent(piece: Piece<'_>) -> bool {
    piece.content == Content::AllSent
}

/// Writes ranges of pages with a byte each, which are called `name`.
fn write_page_bytes<'a, M: SerializeMap, I: Iterator<Item = Piece<'a>>>(
    map: &mut M,
    name: &'static str,
    pieces: impl Fn() -> I,
) -> Result<(), M::Error> {
    let ranges = || {
        pieces().filter_map(|Piece { offset, content }| match content {
            Content::PageBytes { address, bytes } => {
                Some(PageRange { offset: offset.0, address, name, bytes })
            }
            _ => None,
        })
    };
    map.serialize_entry("ranges", &Seq(ranges))?;
    let has_failed = pieces().any(|piece| piece.content == Content::SaveFailed);
    map.serialize_entry("has_failed", &has_failed)
}

struct PageRange<'a> {
    offset: u64,
    address: u64,
    name: &'static str,
    bytes: &'a [u8],
}

impl Serialize for PageRange<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(4))?;
        map.serialize_entry("offset", &self.offset)?;
        map.serialize_entry("address", &self.address)?;
        map.serialize_entry("count", &self.bytes.len())?;
        map.serialize_entry(self.name, &Hex(self.bytes))?;
        map.end()
    }
}

/// What a device of the old style says that has a layout of its own.
pub(super) struct OldStyleJson<'s>(Device<'s>);

impl<'s> OldStyleJson<'s> {
    /// `None` for all other devices.
    pub(super) fn of(device: Device<'s>) -> Option<Self> {
        device.pieces().map(|_| Self(device))
    }
}

impl Serialize for OldStyleJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let pieces = || self.0.pieces().into_iter().flatten();
        let mut map = serializer.serialize_map(None)?;
        match pieces().next().map(|piece| piece.content) {
            Some(Content::TodClock(tod)) => {
                map.serialize_entry("high", &tod.map(|tod| tod.high))?;
                map.serialize_entry("low", &tod.map(|tod| tod.low))?;
            }
            _ => write_page_bytes(&mut map, "keys", pieces)?,
        }
        map.end()
    }
}

/// A piece that stands for itself.
struct Record<'a>(Piece<'a>);

impl Serialize for Record<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("offset", &self.0.offset.0)?;
        match self.0.content {
            Content::HashEntries { index, valid, n_invalid } => {
                map.serialize_entry("index", &index)?;
                map.serialize_entry("n_valid", &(valid.len() / 16))?;
                map.serialize_entry("n_invalid", &n_invalid)?;
                map.serialize_entry("valid", &Hex(valid))?;
            }
            Content::Vfio { tag, data } => {
                map.serialize_entry("tag", tag)?;
                map.serialize_entry("length", &data.map(<[u8]>::len))?;
            }
            Content::Opaque(bytes) => map.serialize_entry("length", &bytes.len())?,
            _ => {}
        }
        map.end()
    }
}

struct BitmapJson<'v, 'a>(&'v DirtyBitmap<'a>);

impl Serialize for BitmapJson<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let DirtyBitmap { node, name, granularity, flags, is_complete, ranges } = self.0;
        let has = |flag| flags.map(|flags| flags & flag != 0);
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("node", &Idstr::from(*node))?;
        map.serialize_entry("name", &Idstr::from(*name))?;
        map.serialize_entry("granularity", granularity)?;
        map.serialize_entry("flags", flags)?;
        map.serialize_entry("is_enabled", &has(1))?;
        map.serialize_entry("is_persistent", &has(2))?;
        map.serialize_entry("is_complete", is_complete)?;
        map.serialize_entry("ranges", &Seq(|| ranges.iter().map(RangeJson)))?;
        map.end()
    }
}

struct RangeJson<'v, 'a>(&'v DirtyRange<'a>);

impl Serialize for RangeJson<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(4))?;
        map.serialize_entry("offset", &self.0.offset.0)?;
        map.serialize_entry("first_sector", &self.0.first_sector)?;
        map.serialize_entry("sector_count", &self.0.sector_count)?;
        map.serialize_entry("bits", &self.0.bits.map(Hex))?;
        map.end()
    }
}

struct BlockDeviceJson<'v, 'a>(&'v BlockDevice<'a>);

impl Serialize for BlockDeviceJson<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let BlockDevice { name, chunks } = self.0;
        let zero_chunks = chunks.iter().filter(|chunk| chunk.data.is_none()).count();
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("name", &Idstr::from(*name))?;
        map.serialize_entry("length", &self.0.proven_len())?;
        map.serialize_entry("data_chunks", &(chunks.len() - zero_chunks))?;
        map.serialize_entry("zero_chunks", &zero_chunks)?;
        let places = || {
            chunks.iter().map(|chunk| ChunkJson {
                offset: chunk.offset.0,
                position: chunk.position,
                is_zero: chunk.data.is_none(),
            })
        };
        map.serialize_entry("chunks", &Seq(places))?;
        map.end()
    }
}

#[derive(serde::Serialize)]
struct ChunkJson {
    offset: u64,
    position: u64,
    is_zero: bool,
}
