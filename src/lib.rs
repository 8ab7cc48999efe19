//! Reads QEMU migration streams: guest RAM images and decoded device state.
//!
//! A stream is what `migrate file:…`, `savevm` and `virsh dump` write. It has
//! no index and no lengths: it is a row of *sections*, whose bodies only their
//! readers know the ends of, and a JSON description of the devices at the very
//! end.
//!
//! ```text
//! "QEVM" 3  configuration
//! START ram     block list
//! PART ram      page records            one pass over guest memory,
//! PART ram      page records            then the pages written meanwhile, …
//! END ram       the last page records, the guest being stopped
//! FULL timer    fields
//! FULL cpu      fields, subsections     one for each device
//! …
//! EOF           description
//! ```
//!
//! [`Stream::parse`] walks it once and leaves an index: where each section is,
//! and where the last record of each page. Everything else is random access
//! over that, by as many threads as there are.
//!
//! # Open a stream and list what it holds
//!
//! ```
//! # fn main() -> ramlift::Result<()> {
//! let input = ramlift::Input::open("tests/data/riscv64-virt-10.0.qevm")?;
//! let stream = ramlift::Stream::parse(input.bytes())?;
//! if let Some(ram) = stream.ram() {
//!     for (_, block, pages) in ram.blocks() {
//!         println!("{} {:#x} bytes, {} pages of data", block.idstr, block.used_length, pages.data_pages());
//!     }
//! }
//! assert_eq!(stream.vcpu_count(), 1);
//! # Ok(())
//! # }
//! ```
//!
//! # Read a page, write an image
//!
//! ```
//! # fn main() -> ramlift::Result<()> {
//! use ramlift::{BlockFiles, BlockOffset, Page, Progress, scatter};
//! # let input = ramlift::Input::open("tests/data/riscv64-virt-10.0.qevm")?;
//! # let stream = ramlift::Stream::parse(input.bytes())?;
//! # let dir = tempfile::tempdir().map_err(|why| ramlift::Error::io("", why))?;
//! # let path = dir.path().join("main.raw");
//! # let ram = stream.ram().unwrap();
//! let main = ram.find(b"riscv_virt_board.ram").unwrap();
//! if let Page::Data(bytes) = ram.page(main, BlockOffset(0x1000))? {
//!     println!("{:02x?}", &bytes[..16]);
//! }
//! let files = BlockFiles::create(ram, [(main, path)])?;
//! scatter(ram, &[main], &files, &Progress::new())?;
//! # Ok(())
//! # }
//! ```
//!
//! # Decode a device
//!
//! ```
//! # fn main() -> ramlift::Result<()> {
//! # let input = ramlift::Input::open("tests/data/riscv64-virt-10.0.qevm")?;
//! # let stream = ramlift::Stream::parse(input.bytes())?;
//! let cpu = stream.devices().find(|device| device.section.handler.idstr == "cpu").unwrap();
//! let state = cpu.decode()?;
//! let pc = state.field("env.pc").and_then(|field| field.value.as_u64());
//! println!("pc = {:#x}", pc.unwrap());
//! # Ok(())
//! # }
//! ```

// No panic on input, and no number cut short.
#![warn(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss
)]

mod arch;
mod block_files;
mod body;
mod boundary;
mod bytes;
pub mod cpu;
mod cursor;
mod error;
mod extract;
mod feed;
pub mod guest;
mod header;
mod holes;
mod idstr;
mod input;
mod iterated;
mod json;
mod loss;
mod multifd;
mod pace;
pub mod physical;
mod progress;
mod ram;
mod section;
mod stream;
mod units;
mod vmstate;
mod volume;
mod walk;
mod walked;
mod wire;
pub mod wrapper;

pub use arch::Architecture;
pub use block_files::{BlockFiles, create_new};
pub use body::{
    BLOCK_LEN, BitmapPiece, BlockChunk, BlockDevice, BlockDevices, Content, DirtyBitmap, DirtyBitmaps,
    DirtyRange, Piece, Tod,
};
pub use bytes::Bytes;
pub use error::{Error, ErrorKind, Result};
pub use extract::{
    ImageSink, ImageStore, PIECE_ALIGN, PIECE_LEN, WINDOW_LEN, image_len, scatter, scatter_stretch,
};
pub use feed::{Incoming, Kept};
pub use header::Configuration;
pub use idstr::Idstr;
pub use input::{Change, FileState, Input, open_to_read};
pub use iterated::Iterated;
pub use json::{DeviceJson, IteratedJson, StateJson};
pub use loss::{DoubtfulPage, Loss};
pub use multifd::{
    Channel, DeviceStatePacket, MultifdCompression, Packet, PacketContent, PacketPage, RamPacket,
};
pub use progress::Progress;
pub use ram::join::ChannelPages;
pub use ram::{
    BlockPages, Chain, Page, PageRecord, PageRun, PageSource, PageTaker, Ram, RamBlock, RecordContent,
    RunContent, Stretch,
};
pub use section::{Command, Handler, Section, SectionType};
pub use stream::{Device, Stream};
pub use units::{BlockId, BlockOffset, PhysicalAddress, StreamOffset, TargetPageSize};
pub use vmstate::{DeviceDesc, Field, FieldDesc, FieldType, State, Subsection, TreeKey, Value, VmDesc, Vmsd};
pub use vmstate::{
    Indicator, ModernQueue, MsixState, PackedQueue, Unknown, Virtio, VirtioElement, VirtioExtra, VirtioQueue,
    VirtioSubsections, VirtioTransport,
};
pub use volume::{data_len, nonzero_len};
pub use walked::{Description, Warning};
