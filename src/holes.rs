//! Where a file has data: all the rest are holes, which read as zeros.
//!
//! ```text
//! length   0 ────────────────────────────────────────────────► 8 TiB
//! data     ████░░░░░░░░░░░░░░░░░░░░░░░░░░░░░██░░░░░░░░░░░░░░░░       on the disk: 12 KiB
//! ```
//!
//! Anybody can make a file of any length, so nothing may take time in proportion
//! to it. Nobody is asked, though, before zeros have been met, many of them in a
//! row: a stream without holes pays nothing, and no list of extents is made.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// Zeros in a row before a file is asked whether they are a hole: to read them
/// takes several times as long as to ask.
const FILE_PATIENCE: usize = 64 << 10;

/// The same where it is known already.
const LISTED_PATIENCE: usize = 64;

/// Data in what file systems tell can end at no finer a place.
const GRANULE: u64 = 512;

/// A file that is short may have no blocks, and all of its data elsewhere.
const LEAST_DATA_LEN: u64 = 1 << 20;

/// Where a stretch of a file has data. Found out when it is first asked.
#[derive(Debug)]
pub(crate) struct FileHoles {
    /// The stretch.
    range: Range<u64>,
    own: OnceLock<Own>,
}

#[derive(Debug)]
struct Own {
    /// The file, opened anew: to ask moves the position that is read from.
    /// None if there is nothing to ask.
    file: Option<File>,
    data_len: u64,
}

impl FileHoles {
    pub(crate) fn new(range: Range<u64>) -> Self {
        Self { range, own: OnceLock::new() }
    }

    fn own(&self, file: &File) -> &Own {
        self.own.get_or_init(|| {
            let len = self.range.end - self.range.start;
            let metadata = file.metadata().ok().filter(std::fs::Metadata::is_file);
            let on_disk = metadata.map_or(len, |file| file.blocks().saturating_mul(512).max(LEAST_DATA_LEN));
            let opened = || File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).ok();
            let file = if on_disk < len { opened() } else { None };
            Own { file, data_len: on_disk.min(len) }
        })
    }
}

/// What is known of holes among the bytes of a stream.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) enum Holes<'a> {
    /// Nothing: all may be data.
    #[default]
    Unknown,
    /// What the file says.
    Of(&'a File, &'a FileHoles),
    /// Only these places, ascending, have data.
    Listed(&'a [Range<u64>]),
}

impl Holes<'_> {
    /// Zeros that are met in a row before it is asked for holes.
    pub(crate) fn patience(self) -> usize {
        if let Self::Listed(_) = self { LISTED_PATIENCE } else { FILE_PATIENCE }
    }

    /// Bytes of data, at most; the greatest number if nobody knows.
    pub(crate) fn data_len(self) -> u64 {
        match self {
            Self::Unknown => u64::MAX,
            Self::Of(file, holes) => holes.own(file).data_len,
            Self::Listed(ranges) => ranges.iter().map(|range| range.end - range.start).sum(),
        }
    }

    /// The first data at or behind `at`; what is before it is zero. `None` if
    /// there is no more.
    pub(crate) fn next_data(self, at: u64) -> Option<Range<u64>> {
        let all = at..u64::MAX;
        let (file, start) = match self {
            Self::Unknown => return Some(all),
            Self::Listed(ranges) => {
                let next = ranges.get(ranges.partition_point(|range| range.end <= at))?;
                return Some(next.start.max(at)..next.end);
            }
            Self::Of(file, holes) => match &holes.own(file).file {
                Some(file) => (file, holes.range.start),
                None => return Some(all),
            },
        };
        let data = match seek(file, SeekFrom::Data(start.saturating_add(at))) {
            Ok(data) => data.saturating_sub(start).max(at),
            Err(Errno::NXIO) => return None,
            Err(_) => return Some(all),
        };
        let end = seek(file, SeekFrom::Hole(start.saturating_add(data)));
        Some(data..end.map_or(u64::MAX, |end| end.saturating_sub(start)).max(data + 1))
    }

    /// Where the last data before `end` ends: what is between is zero. 0 if
    /// there is none.
    pub(crate) fn data_end(self, end: u64) -> u64 {
        let is_before = |at: u64| self.next_data(at).map(|data| data.start).filter(|data| *data < end);
        // Mostly there is no hole right here.
        if end == 0 || is_before(end - 1).is_some() {
            return end;
        }
        let Some(first) = is_before(0) else { return 0 };
        let (mut last, mut bound) = (first, end);
        while bound - last > GRANULE {
            let middle = last + (bound - last) / 2;
            match is_before(middle) {
                Some(data) => last = data,
                None => bound = middle,
            }
        }
        bound
    }
}
