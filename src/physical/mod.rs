//! Guest-physical memory: where the bytes of RAM blocks are in the address
//! space that the guest sees.
//!
//! ```text
//!  RAM blocks        machine type, device state, hints
//!      └───────┬────────────────┘
//!              ▼
//!           Layout ── regions: address range → place in a block
//!              │
//!   ┌──────────┼──────────────────┐
//!   ▼          ▼                  ▼
//! PhysicalMemory   files of physical memory   `ramlift layout`
//! (reads bytes)    (ELF, LiME, raw, …)
//! ```
//!
//! Files are of two kinds. Where all of memory stands in a file as it is, a
//! [`Plan`] says where, and the scatter writes it. Formats that compress have
//! windows of memory packed by all threads, and put behind each other in order.
//!
//! A stream has offsets in blocks and no address. Which block is where is the
//! board's code in QEMU: [`Layout::derive`] knows it for each machine type.

mod avml;
pub mod elf;
mod file;
mod kdump;
mod layout;
pub mod lime;
mod memory;
mod packed;
pub mod raw;

pub use avml::Avml;
pub use elf::{Core, Note, Uname, VirtualRange};
pub use file::{Plan, progress_len, scatter_file, write};
pub use kdump::{Compression, Kdump};
pub use layout::{Assumption, Layout, LayoutHints, MapHint, Region, Unplaced};
pub use memory::PhysicalMemory;
