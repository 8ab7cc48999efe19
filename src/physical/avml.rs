//! AVML images, version 2, as Microsoft's AVML writes them.
//!
//! ```text
//! le32 0x4c4d5641 "AVML"  le32 2  le64 first  le64 last  8 × 0    a head, 32 bytes
//! snappy's frames of the memory from `first` to `last`, both included, 64 KiB each
//! le64 bytes of all frames
//! head, frames, length, …                                         by ascending address
//! ```
//!
//! A head is at most 2 MiB of memory. As AVML does, memory that is zero all
//! that long is left out: it is there as much as memory between ranges is not.
//!
//! Source followed: AVML `src/image.rs`, volatility3 `layers/avml.py`, snappy's
//! `framing_format.txt`.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use snap::write::FrameEncoder;

use crate::block_files::create_new;
use crate::error::{Error, Result};
use crate::extract::WINDOW_LEN;
use crate::physical::Layout;
use crate::physical::packed::{self, Packed, Packer, WindowMemory};
use crate::progress::Progress;
use crate::ram::Ram;
use crate::units::index;

const MAGIC: u32 = 0x4c4d_5641;
const VERSION: u32 = 2;

/// An AVML image in the making.
#[derive(Debug)]
pub struct Avml<'r, 'a> {
    ram: &'r Ram<'a>,
    layout: &'r Layout,
    windows: Vec<u64>,
}

impl<'r, 'a> Avml<'r, 'a> {
    /// The image of the memory that `layout` makes of `ram`.
    pub fn new(ram: &'r Ram<'a>, layout: &'r Layout) -> Self {
        Self { ram, layout, windows: packed::windows(&packed::filled(ram, layout)) }
    }

    /// The bytes that [`write`](Self::write) counts.
    pub fn progress_len(&self) -> u64 {
        self.windows.len() as u64 * WINDOW_LEN
    }

    /// Writes the file, new, at `path`, on all threads of the current rayon pool.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if the file exists, or cannot be
    /// made or written; others for pages that cannot be decoded.
    pub fn write(&self, path: &Path, progress: &Progress) -> Result<()> {
        let file = create_new(path).map_err(|source| Error::io(path, source))?;
        packed::write(self.ram, self.layout, &self.windows, self, (&file, path), 0, progress).map(drop)
    }

    /// The ranges of a window in which RAM follows RAM.
    fn ranges(&self, window: u64) -> Vec<Range<u64>> {
        let window = packed::addresses(window);
        let mut ranges = Vec::new();
        for region in self.layout.regions() {
            let start = region.range.start.0.max(window.start);
            let end = region.range.end.0.min(window.end);
            if start < end {
                packed::push_range(&mut ranges, start..end);
            }
        }
        ranges
    }
}

impl Packer for Avml<'_, '_> {
    type Worker = ();
    type Index = ();

    fn worker(&self) -> Result<()> {
        Ok(())
    }

    fn pack(&self, (): &mut (), window: u64, memory: &WindowMemory) -> Result<Packed<()>> {
        let start = packed::addresses(window).start;
        let mut data = Vec::new();
        for range in self.ranges(window) {
            let place = |address: u64| index(address - start).unwrap_or(0);
            if let Some(bytes) = memory.data(place(range.start)..place(range.end)) {
                pack(&mut data, &range, bytes).map_err(|source| {
                    Error::io("snappy", source).inside(format!("memory at {:#x}", range.start))
                })?;
            }
        }
        Ok(Packed { data, index: () })
    }

    fn put(&self, file: &File, _: u64, at: u64, packed: Packed<()>) -> io::Result<()> {
        file.write_all_at(&packed.data, at)
    }
}

/// Adds a range: its head, frames, and their length.
fn pack(data: &mut Vec<u8>, range: &Range<u64>, bytes: &[u8]) -> io::Result<()> {
    data.extend(MAGIC.to_le_bytes());
    data.extend(VERSION.to_le_bytes());
    data.extend([range.start, range.end - 1, 0].iter().flat_map(|word| word.to_le_bytes()));
    let begin = data.len();
    let mut encoder = FrameEncoder::new(&mut *data);
    encoder.write_all(bytes)?;
    encoder.into_inner().map_err(snap::write::IntoInnerError::into_error)?;
    let len = (data.len() - begin) as u64;
    data.extend(len.to_le_bytes());
    Ok(())
}
