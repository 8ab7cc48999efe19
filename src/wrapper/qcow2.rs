//! Internal snapshots of qcow2 images: where `savevm`, `snapshot-save` and
//! `virsh snapshot-create` put a stream.
//!
//! ```text
//!  0  "QFI\xfb"  be32 version           2 or 3
//!  8  be64 backing file  be32 its length
//! 20  be32 cluster_bits                 a cluster is 1 << 9 to 1 << 21 bytes
//! 24  be64 size                         of the virtual disk
//! 32  be32 crypt_method  be32 l1_size  be64 l1_table_offset
//! 48  be64 refcount table  be32 its clusters
//! 60  be32 nb_snapshots  be64 snapshots_offset
//! 72  be64 incompatible  be64 compatible  be64 autoclear features    from version 3 on
//! 96  be32 refcount_order  be32 header_length  u8 compression_type
//! ```
//!
//! A snapshot has an L1 table of its own. It maps the disk and, behind the
//! disk's end, the *VM state*: the stream. See [`snapshot`](Snapshot) for the
//! table of them, [`VmState`] for the way from L1 to the bytes.
//!
//! Only what leads to a VM state is read: no refcounts, no disk. Images with
//! an external data file cannot hold snapshots; encrypted ones encrypt the
//! VM state too: both are refused, and so are features that nobody knows.
//!
//! **Crates looked at**, whether one reads a VM state: `imago` 0.2 reads no
//! snapshots and is async at heart; `qcow2-rs` 0.1 does not either;
//! `qcow2-core` 0.3 lists snapshots and reads the active disk only; `qcow` 1.2
//! reads a snapshot's L1 table but no byte through it, ignores the 64-bit
//! size, allocates what the file claims, and rests since 2021. So this is our
//! own, and no more than the way to the VM state.
//!
//! Sources followed: QEMU `docs/interop/qcow2.txt`, `block/qcow2.c`,
//! `block/qcow2.h`, `block/qcow2-snapshot.c`, `block/qcow2-cluster.c`.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use super::{error_of, failure};
use crate::cursor::Cursor;
use crate::error::{Error, ErrorKind, Result};
use crate::input::Input;
use crate::units::{StreamOffset, index};

mod read;
mod runs;
mod snapshot;
mod vm_state;

pub use read::Reader;
pub use runs::{Run, RunSource, Runs};
pub use snapshot::Snapshot;
pub use vm_state::VmState;

/// What every image begins with.
pub const MAGIC: [u8; 4] = *b"QFI\xfb";

/// Bytes of the header that are read.
const HEADER_LEN: u64 = 112;
/// The smallest cluster of an image with extended L2 entries.
const SUBCLUSTERS_CLUSTER_BITS: u32 = 14;

/// Incompatible features: QEMU's `QCOW2_INCOMPAT_*`.
mod incompatible {
    pub(super) const DIRTY: u64 = 1;
    pub(super) const CORRUPT: u64 = 2;
    pub(super) const DATA_FILE: u64 = 4;
    pub(super) const COMPRESSION: u64 = 8;
    pub(super) const EXTL2: u64 = 16;
    pub(super) const KNOWN: u64 = DIRTY | CORRUPT | DATA_FILE | COMPRESSION | EXTL2;
}

/// Something to read at any place, by several threads.
#[expect(clippy::len_without_is_empty, reason = "nobody asks an image whether it is empty")]
pub trait ReadAt: Send + Sync {
    /// Bytes there are.
    fn len(&self) -> u64;
    /// Fills `into` with what is at `at`.
    ///
    /// # Errors
    /// The system's, or `UnexpectedEof` past the end.
    fn read_exact_at(&self, at: u64, into: &mut [u8]) -> io::Result<()>;
}

impl ReadAt for [u8] {
    fn len(&self) -> u64 {
        self.len() as u64
    }

    fn read_exact_at(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        let rest = index(at).and_then(|at| self.get(at..)).and_then(|rest| rest.get(..into.len()));
        into.copy_from_slice(rest.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

impl ReadAt for Input {
    fn len(&self) -> u64 {
        self.bytes().len() as u64
    }

    fn read_exact_at(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        self.bytes().read_exact_at(at, into)
    }
}

impl<T: ReadAt + ?Sized> ReadAt for &T {
    fn len(&self) -> u64 {
        (**self).len()
    }

    fn read_exact_at(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        (**self).read_exact_at(at, into)
    }
}

/// A file or block device, as long as it was when it was taken.
#[derive(Debug)]
pub struct ImageFile {
    file: File,
    len: u64,
}

impl ImageFile {
    /// Takes `file` and measures it.
    ///
    /// # Errors
    /// The system's.
    pub fn new(mut file: File) -> io::Result<Self> {
        let len = file.seek(SeekFrom::End(0))?;
        Ok(Self { file, len })
    }
}

impl ReadAt for ImageFile {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_exact_at(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(into, at)
    }
}

/// How an image compresses clusters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ClusterCompression {
    /// Raw deflate; QEMU calls it zlib.
    Deflate,
    Zstd,
}

/// What of a header is needed to find clusters.
#[derive(Clone, Copy, Debug)]
struct Layout {
    cluster_bits: u32,
    has_subclusters: bool,
    compression: ClusterCompression,
}

impl Layout {
    fn cluster_len(self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bytes of an L2 entry.
    fn entry_len(self) -> u64 {
        if self.has_subclusters { 16 } else { 8 }
    }

    /// Bytes of the disk, or of VM state, that an L1 entry stands for.
    fn l1_span(self) -> u64 {
        self.cluster_len() / self.entry_len() * self.cluster_len()
    }
}

/// A qcow2 image: its header and its snapshots.
#[derive(Debug)]
pub struct Qcow2<F> {
    file: F,
    layout: Layout,
    version: u32,
    incompatible: u64,
    snapshots: Vec<Snapshot>,
    /// Where the table of snapshots is.
    snapshot_table: std::ops::Range<u64>,
}

impl<F: ReadAt> Qcow2<F> {
    /// Reads header and snapshot table of an image.
    ///
    /// # Errors
    /// [`ErrorKind::Wrapper`], [`ErrorKind::Limit`], [`ErrorKind::Truncated`]
    /// for what cannot be or is not read, and those of `file`.
    pub fn open(file: F) -> Result<Self> {
        let bytes = read(&file, 0, file.len().min(HEADER_LEN), "qcow2 header")?;
        let header = Header::parse(&bytes)?;
        let layout = header.layout()?;
        let (snapshots, snapshot_table) = snapshot::read_table(&file, &header)?;
        let (version, incompatible) = (header.version, header.incompatible);
        Ok(Self { file, layout, version, incompatible, snapshots, snapshot_table })
    }

    /// The image's version: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Whether the image was not closed: its refcounts may be wrong, which
    /// does not matter here.
    pub fn is_dirty(&self) -> bool {
        self.incompatible & incompatible::DIRTY != 0
    }

    /// Whether QEMU found the image corrupt. What is read from it is checked
    /// as ever, but clusters may have been written over.
    pub fn is_corrupt(&self) -> bool {
        self.incompatible & incompatible::CORRUPT != 0
    }

    /// All snapshots, with VM state and without.
    pub fn snapshots(&self) -> &[Snapshot] {
        &self.snapshots
    }

    /// The snapshot of that name, else of that id, as `loadvm` finds it.
    ///
    /// # Errors
    /// [`ErrorKind::Wrapper`], which lists those there are.
    pub fn find(&self, name: &[u8]) -> Result<&Snapshot> {
        let by_name = self.snapshots.iter().find(|snapshot| snapshot.name.as_bytes() == name);
        let by_id = || self.snapshots.iter().find(|snapshot| snapshot.id.as_bytes() == name);
        by_name.or_else(by_id).ok_or_else(|| {
            let met = format!("\"{}\"", crate::Idstr::from(name));
            let hint = "give one of those; disk-only ones hold no stream";
            failure(self.snapshot_table.start, "qcow2 snapshot", met, self.list(), hint)
        })
    }

    /// The snapshots as a message lists them: the first few.
    fn list(&self) -> String {
        const SHOWN: usize = 16;
        if self.snapshots.is_empty() {
            return "no snapshot: the image has none".to_owned();
        }
        let shown = self.snapshots.iter().take(SHOWN).map(Snapshot::to_string);
        let mut list = shown.collect::<Vec<_>>().join(", ");
        if self.snapshots.len() > SHOWN {
            list.push_str(", …");
        }
        list
    }

    /// The VM state of one of these [`snapshots`](Self::snapshots).
    ///
    /// # Errors
    /// [`ErrorKind::Wrapper`], [`ErrorKind::Truncated`] if there is none or
    /// its tables cannot be, and those of the file.
    pub fn vm_state(&self, snapshot: &Snapshot) -> Result<VmState<&F>> {
        VmState::open(self, snapshot).map_err(|error| error.inside(format!("qcow2 snapshot {snapshot}")))
    }
}

/// The fields of a header.
struct Header {
    version: u32,
    cluster_bits: u32,
    size: u64,
    crypt_method: u32,
    nb_snapshots: u32,
    snapshots_offset: u64,
    incompatible: u64,
    compression_type: u8,
}

const DAMAGED: &str = "the image is damaged: `qemu-img check` says how badly; try another copy";

impl Header {
    fn parse(bytes: &[u8]) -> Result<Self> {
        let inside = |error: Error| error.inside("qcow2 header");
        let cursor = &mut Cursor::new(bytes, StreamOffset(0));
        let magic: [u8; 4] = cursor.array().map_err(inside)?;
        if magic != MAGIC {
            let met = format!("{:08x}", u32::from_be_bytes(magic));
            return Err(failure(0, "qcow2 header, magic", met, "514649fb", "this is no qcow2 image"));
        }
        let version = cursor.be32().map_err(inside)?;
        if !(2..=3).contains(&version) {
            let hint =
                "version 1 is qcow, which holds no VM state that is read here; `qemu-img info` knows more";
            return Err(failure(4, "qcow2 header, version", version.to_string(), "2 or 3", hint));
        }
        let header = Self::fields(bytes, version).map_err(inside)?;
        header.check()
    }

    fn fields(bytes: &[u8], version: u32) -> Result<Self> {
        let cursor = &mut Cursor::new(bytes, StreamOffset(0));
        cursor.bytes(20)?;
        let cluster_bits = cursor.be32()?;
        let size = cursor.be64()?;
        let crypt_method = cursor.be32()?;
        cursor.bytes(24)?;
        let (nb_snapshots, snapshots_offset) = (cursor.be32()?, cursor.be64()?);
        let mut header = Self {
            version,
            cluster_bits,
            size,
            crypt_method,
            nb_snapshots,
            snapshots_offset,
            incompatible: 0,
            compression_type: 0,
        };
        if version >= 3 {
            header.incompatible = cursor.be64()?;
            cursor.bytes(20)?;
            let header_length = cursor.be32()?;
            if header_length > 104 {
                header.compression_type = cursor.u8()?;
            }
        }
        Ok(header)
    }

    fn check(self) -> Result<Self> {
        if !(9..=21).contains(&self.cluster_bits) {
            let met = self.cluster_bits.to_string();
            return Err(failure(20, "qcow2 header, cluster_bits", met, "9 to 21", DAMAGED));
        }
        if self.crypt_method != 0 {
            let met = self.crypt_method.to_string();
            let hint = "the VM state is encrypted too: load the snapshot with its key in QEMU, stop the guest, and `migrate file:…`";
            return Err(failure(
                32,
                "qcow2 header, crypt_method",
                met,
                "0: an image that is not encrypted",
                hint,
            ));
        }
        let unknown = self.incompatible & !incompatible::KNOWN;
        if unknown != 0 {
            let hint = "a newer QEMU wrote it: load the snapshot there, stop the guest, and `migrate file:…`";
            let met = format!("{unknown:#x}");
            return Err(failure(
                72,
                "qcow2 header, incompatible features",
                met,
                "known ones, up to 0x1f",
                hint,
            ));
        }
        if self.incompatible & incompatible::DATA_FILE != 0 {
            let hint = "an image with an external data file holds no VM state: look for it in the guest's other disks";
            return Err(failure(
                72,
                "qcow2 header, incompatible features",
                "an external data file",
                "none",
                hint,
            ));
        }
        Ok(self)
    }

    fn layout(&self) -> Result<Layout> {
        let has_subclusters = self.incompatible & incompatible::EXTL2 != 0;
        if has_subclusters && self.cluster_bits < SUBCLUSTERS_CLUSTER_BITS {
            let met = format!("{} with extended L2 entries", self.cluster_bits);
            let expected = format!("at least {SUBCLUSTERS_CLUSTER_BITS}");
            return Err(failure(20, "qcow2 header, cluster_bits", met, expected, DAMAGED));
        }
        let is_set = self.incompatible & incompatible::COMPRESSION != 0;
        let compression = match (is_set, self.compression_type) {
            (false, 0) => ClusterCompression::Deflate,
            (true, 1) => ClusterCompression::Zstd,
            (_, met) => {
                let expected = if is_set { "1: zstd" } else { "0: zlib" };
                return Err(failure(
                    104,
                    "qcow2 header, compression_type",
                    met.to_string(),
                    expected,
                    DAMAGED,
                ));
            }
        };
        Ok(Layout { cluster_bits: self.cluster_bits, has_subclusters, compression })
    }
}

/// `len` bytes of `file` at `at`, which must be there. Callers bound `len`.
fn read(file: &impl ReadAt, at: u64, len: u64, what: &'static str) -> Result<Vec<u8>> {
    let available = file.len().saturating_sub(at);
    let len = index(len).filter(|_| len <= available).ok_or_else(|| {
        Error::at(StreamOffset(at), ErrorKind::Truncated { needed: len, available }).inside(what)
    })?;
    let mut bytes = vec![0; len];
    file.read_exact_at(at, &mut bytes).map_err(|error| error_of(error, ""))?;
    Ok(bytes)
}
