//! The bytes of a VM state, in order.

use std::io::{self, Read};

use super::runs::{Run, RunSource, Runs};
use super::{ClusterCompression, DAMAGED, ReadAt, VmState};
use crate::error::Error;
use crate::units::index;
use crate::wrapper::{carry, failure};

/// The largest window of zstd in a cluster, as a power of two. A cluster has
/// at most 2 MiB, for which no level of zstd makes a larger one than that.
const CLUSTER_WINDOW_LOG: u32 = 23;

/// Reads a VM state from its start to its end.
///
/// Errors carry an [`Error`]: see [`error_of`](crate::wrapper::error_of).
#[derive(Debug)]
pub struct Reader<'a, F> {
    state: &'a VmState<F>,
    runs: Runs<'a, F>,
    /// What of the run at hand was not read yet.
    run: Option<Run>,
    /// The cluster that was unpacked last, if the run is compressed.
    unpacked: Vec<u8>,
}

impl<'a, F: ReadAt> Reader<'a, F> {
    pub(super) fn new(state: &'a VmState<F>) -> Self {
        Self { state, runs: state.runs(), run: None, unpacked: Vec::new() }
    }

    /// Passes over zeros that are in no cluster, if such come next. Gives how
    /// many they are, which can be far more than the file has bytes.
    ///
    /// # Errors
    /// As its reads.
    pub fn skip_zeros(&mut self) -> io::Result<u64> {
        match self.next_run()? {
            Some(Run { source: RunSource::Zeros, len, .. }) => Ok(len),
            run => {
                self.run = run;
                Ok(0)
            }
        }
    }

    fn next_run(&mut self) -> io::Result<Option<Run>> {
        let run = self.run.take().map_or_else(|| self.runs.next().transpose(), |run| Ok(Some(run)));
        run.map_err(carry_damage)
    }

    /// Fills `into` from the start of `run`, which is at least as long.
    fn fill(&mut self, run: Run, into: &mut [u8]) -> io::Result<()> {
        match run.source {
            RunSource::Zeros => into.fill(0),
            RunSource::File(offset) => self.state.file.read_exact_at(offset, into)?,
            RunSource::Compressed { offset, len } => {
                let inside = index(run.at % self.state.layout.cluster_len()).unwrap_or(usize::MAX);
                if inside == 0 {
                    self.unpack(offset, len)?;
                }
                let bytes = self.unpacked.get(inside..).and_then(|rest| rest.get(..into.len()));
                into.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
            }
        }
        Ok(())
    }

    /// Unpacks the cluster whose compressed bytes are at `offset`.
    fn unpack(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let layout = self.state.layout;
        // Sectors are rounded up, past the file's end if it is the last one.
        // At most two clusters' length: the descriptor has no more bits.
        let len = len.min(self.state.file.len().saturating_sub(offset));
        let mut packed = vec![0; index(len).ok_or(io::ErrorKind::InvalidData)?];
        self.state.file.read_exact_at(offset, &mut packed)?;
        self.unpacked.clear();
        self.unpacked.resize(index(layout.cluster_len()).ok_or(io::ErrorKind::InvalidData)?, 0);
        let result = match layout.compression {
            ClusterCompression::Deflate => inflate(&packed, &mut self.unpacked),
            ClusterCompression::Zstd => unzstd(&packed, &mut self.unpacked),
        };
        result.map_err(|met| {
            let expected = format!("{:#x} bytes", layout.cluster_len());
            let error = failure(offset, "compressed cluster", met, expected, DAMAGED);
            carry(io::ErrorKind::InvalidData, error)
        })
    }
}

impl<F: ReadAt> Read for Reader<'_, F> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        let Some(run) = self.next_run()? else { return Ok(0) };
        let len = index(run.len).map_or(into.len(), |len| len.min(into.len()));
        self.fill(run, into.get_mut(..len).unwrap_or_default())?;
        self.run = run.behind(len as u64);
        Ok(len)
    }
}

impl Run {
    /// What is left of the run behind `len` bytes; nothing if that is all.
    fn behind(self, len: u64) -> Option<Self> {
        let source = match self.source {
            RunSource::File(offset) => RunSource::File(offset + len),
            source => source,
        };
        (self.len > len).then(|| Self { at: self.at + len, len: self.len - len, source })
    }
}

fn carry_damage(error: Error) -> io::Error {
    carry(io::ErrorKind::InvalidData, error)
}

/// Inflates up to a cluster's end; what is behind is the rest of a sector.
fn inflate(packed: &[u8], cluster: &mut [u8]) -> Result<(), String> {
    let mut inflater = flate2::Decompress::new(false);
    let result = inflater.decompress(packed, cluster, flate2::FlushDecompress::Finish);
    if inflater.total_out() == cluster.len() as u64 {
        return Ok(());
    }
    Err(result.map_or_else(|error| error.to_string(), |_| format!("{:#x} bytes", inflater.total_out())))
}

fn unzstd(packed: &[u8], cluster: &mut [u8]) -> Result<(), String> {
    let mut unpack = || {
        let mut decoder = zstd::Decoder::with_buffer(packed)?;
        decoder.window_log_max(CLUSTER_WINDOW_LOG)?;
        decoder.read_exact(cluster)
    };
    unpack().map_err(|error| error.to_string())
}
